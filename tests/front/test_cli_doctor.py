"""`hansa coordinator doctor` and `hansa participant doctor` as processes of their own, and the page that lists their checks."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hansa.coordinator.doctor import COORDINATOR_CHECKS
from hansa.participant.doctor import PARTICIPANT_CHECKS

ROOT = Path(__file__).parents[2]
CHECKS = {"coordinator": COORDINATOR_CHECKS, "participant": PARTICIPANT_CHECKS}


def hansa(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-m", "hansa", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        check=False,
    )


@pytest.mark.parametrize("side", CHECKS)
def test_an_empty_folder_fails_with_what_mends_it_and_nothing_is_raised(side, tmp_path):
    done = hansa(side, "doctor", "--home", tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    first, mend = done.stdout.splitlines()[:2]
    assert first.startswith("fail    settings ")
    assert mend.strip().startswith("-> hansa ")
    assert mend.endswith(f"--home {tmp_path}")
    assert re.fullmatch(r"\d+ ok, \d+ warn, 1 fail, \d+ skipped", done.stdout.splitlines()[-1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("side", CHECKS)
def test_no_folder_at_all_is_missing_input(side, tmp_path):
    done = hansa(side, "doctor", "--home", tmp_path / "none")
    assert (done.returncode, done.stdout) == (66, "")
    assert "[home_missing]" in done.stderr


def test_a_new_coordinator_is_well_and_the_report_is_one_object(tmp_path):
    home = tmp_path / "home"
    made = hansa(
        "consortium", "init", "northern", "--address", "127.0.0.1", "--port", "29443", "--home", home
    )
    assert made.returncode == 0, made.stderr
    done = hansa("coordinator", "doctor", "--json", HANSA_HOME=str(home))
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert (report["schema"], report["side"], report["home"]) == ("hansa/doctor/v1", "coordinator", str(home))
    assert report["healthy"]
    assert report["counts"]["fail"] == report["counts"]["skipped"] == 0
    assert {check["name"] for check in report["checks"]} == {check.name for check in COORDINATOR_CHECKS}
    for check in report["checks"]:
        assert set(check) == {"name", "subject", "level", "cause", "mend", "code"}
        assert bool(check["mend"]) == (check["level"] in {"warn", "fail"})


def test_a_participant_that_fails_says_so_in_its_report(tmp_path):
    done = hansa("participant", "doctor", "--json", "--home", tmp_path)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert (report["side"], report["healthy"]) == ("participant", False)
    assert [check["name"] for check in report["checks"] if check["level"] == "fail"] == ["settings"]
    assert {check["name"] for check in report["checks"]} == {check.name for check in PARTICIPANT_CHECKS}


@pytest.mark.parametrize("side", CHECKS)
def test_the_page_lists_every_check_in_its_order(side):
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.split(f"### `hansa {side} doctor`")[1].split("\n#")[0]
    listed = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert listed == [check.name for check in CHECKS[side]]
