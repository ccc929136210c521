"""`hansa study` and `hansa participant study`, as authors and members meet them: the way of a study, and what is wrong by name.

No daemon runs: homes, journal and desks are as daemons leave them, and commands run in this process through `main`.
"""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from hansa import cli
from hansa.coordinator.authoring import Authoring
from hansa.coordinator.office import open_office
from hansa.coordinator.progress import ProgressWriter
from hansa.coordinator.study_states import Outcomes, find_study
from hansa.demo.cluster import environment, hansa_command
from hansa.errors import ModelDivergence
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket  # of the ports that the coordinator's settings name


class Done(NamedTuple):
    stdout: str
    stderr: str


class Desk:
    """A consortium whose study was proposed, and commands at its homes."""

    def __init__(self, consortium, folder):
        self.site, self.folder = consortium, folder
        self.study = folder / "study.toml"

    def run(self, *arguments, home="coordinator", status=0):
        side = () if home is None else ("--home", str(self.site.folder / home))
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["hansa", *map(str, arguments), *side])
            patch.setattr(sys, "stdin", io.StringIO())
            with pytest.raises(SystemExit) as ended:
                cli.main()
        assert ended.value.code == status, err.getvalue()
        return Done(out.getvalue(), err.getvalue())

    def json(self, *arguments, home="coordinator"):
        found = json.loads(self.run(*arguments, "--json", home=home).stdout)
        assert found["schema"].startswith("hansa/")
        return found

    def fails(self, *arguments, status, code, home="coordinator"):
        """Run a command that ends in this error, with a hint, and without a word on stdout."""
        done = self.run(*arguments, status=status, home=home)
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error.startswith("hansa: error: ")
        assert error.endswith(f"[{code}]")
        assert hint.startswith("hansa: hint: ")
        assert done.stdout == ""
        return error, hint

    def started(self):
        self.site.approve()
        self.run("study", "start", "tiny")

    def says(self, word, error=None):
        """Write down what the loop would say of the study."""
        with open_office(self.site.home) as office:
            desk = Authoring(office, "admin").desk
            outcomes = Outcomes(office.journal)
            outcomes.note(find_study(desk, outcomes, "tiny", utc_now()), word, error)


@pytest.fixture
def desk(make_consortium, tiny, tmp_path):
    found = Desk(make_consortium(2), tmp_path)
    found.study.write_text(tiny.TINY_STUDY)
    return found


# -- the author ----------------------------------------------------------------------------------------------


def test_the_way_of_a_study_at_the_coordinator(desk):
    (listed,) = desk.json("study", "list")["studies"]
    assert (listed["name"], listed["state"], listed["approved"], listed["needed"]) == (
        "tiny",
        "proposed",
        [],
        4,
    )
    assert "tiny" in desk.run("study", "list").stdout
    desk.site.approve("bank-1", "bank-2")
    shown = desk.run("study", "show", "tiny").stdout
    assert "approved   2 of 4: bank-1, bank-2" in shown
    assert "no answer  bank-3, bank-4" in shown
    desk.site.approve("bank-3", "bank-4")
    started = desk.json("study", "start", "tiny")
    assert (started["what"], started["session"]) == ("started", desk.site.session)
    assert desk.json("study", "show", desk.site.session[:8])["state"] == "queued"
    desk.says("running")
    assert desk.json("study", "pause", "tiny")["what"] == "paused"
    assert desk.json("study", "show", "tiny")["state"] == "paused"
    assert "next: hansa study watch tiny" in desk.run("study", "resume", "tiny").stdout
    assert desk.json("study", "show", "tiny")["state"] == "running"
    assert desk.json("study", "stop", "tiny", "--yes")["what"] == "stopped"
    assert desk.json("study", "show", "tiny")["state"] == "stopped"
    kinds = [
        json.loads(line)["event"] for line in desk.run("study", "logs", "tiny", "--json").stdout.splitlines()
    ]
    assert kinds == [
        "study_proposed",
        *["study_approved"] * 4,
        "study_started",
        "study_running",
        "study_pause",
        "study_resume",
        "study_stop",
    ]
    assert "study_approved" in desk.run("study", "logs", "tiny").stdout
    assert len(desk.run("study", "logs", "tiny", "--most", "3").stdout.splitlines()) == 3


def test_a_study_is_proposed_with_its_base_and_with_a_dry_run_not(desk):
    plan = (
        "study",
        "propose",
        desk.study,
        "--base",
        desk.site.base,
        "--participants",
        "bank-1,bank-2,bank-3,bank-4",
    )
    assert desk.json(*plan, "--dry-run")["changed"] is False
    assert len(desk.json("study", "list")["studies"]) == 1
    found = desk.json(*plan)
    assert found["invited"] == ["bank-1", "bank-2", "bank-3", "bank-4"]
    assert len(desk.json("study", "list")["studies"]) == 2
    _, hint = desk.fails("study", "start", "tiny", status=2, code="usage")
    assert found["session"][:8] in hint
    assert desk.json("study", "show", found["session"][:8])["session"] == found["session"]


def test_a_base_is_made_of_public_rows(desk, tiny, cluster_parts):
    cluster_parts.write_table(desk.folder / "public.csv", tiny.Table("public"))
    plan = ("study", "base", desk.study, "--public", desk.folder / "public.csv", "--steps", "2")
    found = desk.json(*plan, "--output", desk.folder / "base.safetensors", home=None)
    assert len(found["sha256"]) == 64
    output = ("--output", desk.folder / "base.safetensors")
    desk.fails(*plan, *output, status=73, code="output_not_writable", home=None)  # nothing is overwritten
    out = desk.run(*plan, "--output", desk.folder / "second.safetensors", home=None).stdout
    assert "next: hansa study propose" in out
    assert desk.json("study", "propose", desk.study, "--base", found["file"])["changed"] is True
    desk.fails(
        "study",
        "base",
        desk.study,
        "--public",
        "absent.csv",
        "--output",
        "third",
        status=66,
        code="data_file_missing",
        home=None,
    )
    desk.fails(*plan, "--output", "third", "--seed", "-1", status=2, code="usage", home=None)


@pytest.mark.parametrize("what", ["show", "start", "pause", "resume", "watch", "logs"])
def test_a_study_that_nobody_proposed_is_unknown(desk, what):
    error, _ = desk.fails("study", what, "absent", status=2, code="study_unknown")
    assert "there is no study 'absent'" in error


def test_what_cannot_be_proposed_is_named(desk, tiny):
    base = ("--base", desk.site.base)
    desk.fails("study", "propose", "absent.toml", *base, status=78, code="study_file_missing")
    desk.fails("study", "propose", desk.study, "--base", "absent", status=66, code="checkpoint_file_missing")
    desk.fails("study", "propose", desk.study, *base, "--days", "0", status=2, code="usage")
    desk.fails(
        "study",
        "propose",
        desk.study,
        *base,
        "--participants",
        "bank-1,nobody",
        status=2,
        code="participant_unknown",
    )
    error, hint = desk.fails(
        "study",
        "propose",
        desk.study,
        *base,
        "--participants",
        "bank-1,bank-2",
        status=75,
        code="not_enough_approvals",
    )
    assert "the study has 4 participants, and 2 members are invited" in error
    assert "invite more members" in hint
    desk.fails("study", "propose", desk.study, *base, "--author", "nobody", status=2, code="usage")
    other = desk.folder / "other.toml"
    other.write_text(tiny.TINY_STUDY.replace("experts = 8", "experts = 16"))
    desk.fails("study", "propose", other, *base, status=65, code="base_mismatch")
    assert len(desk.json("study", "list")["studies"]) == 1


def test_a_study_starts_with_enough_approvals_and_once(desk):
    desk.site.approve("bank-1", "bank-2", "bank-3")
    error, _ = desk.fails("study", "start", "tiny", status=75, code="not_enough_approvals")
    assert "not approved by bank-4" in error
    desk.site.approve("bank-4")
    desk.run("study", "start", "tiny")
    error, _ = desk.fails("study", "start", "tiny", status=4, code="study_already_started")
    assert "is queued" in error


def test_commands_that_change_nothing_are_refused(desk):
    for action in ("pause", "resume"):
        error, _ = desk.fails("study", action, "tiny", status=1, code="command_stale")
        assert f"is proposed: there is nothing to {action}" in error
    desk.fails("study", "stop", "tiny", status=2, code="usage")  # nobody was asked
    desk.started()
    desk.fails("study", "resume", "tiny", status=1, code="command_stale")
    desk.run("study", "pause", "tiny")
    desk.fails("study", "pause", "tiny", status=1, code="command_stale")
    desk.run("study", "stop", "tiny", "--yes")
    for action in ("pause", "resume"):
        desk.fails("study", action, "tiny", status=1, code="command_stale")
    desk.fails("study", "stop", "tiny", "--yes", status=1, code="command_stale")


def test_watch_follows_a_study_until_it_is_over(desk):
    desk.started()
    with open_office(desk.site.home) as office:
        ProgressWriter(office.journal, desk.site.session, rounds=2).begins(1)
    desk.says("running")
    desk.says("failed", ModelDivergence("states differ"))
    (line,) = desk.run("study", "watch", "tiny", "--json").stdout.splitlines()
    view = json.loads(line)
    assert (view["state"], view["error"], view["progress"]["round"]) == ("failed", "model_divergence", 1)
    said = desk.run("study", "watch", "tiny").stdout.strip()
    assert said == "tiny: failed, round 1/2; states differ [model_divergence]"
    desk.fails("study", "watch", "tiny", "--interval", "0", status=2, code="usage")


def test_a_home_of_the_wrong_side_or_none_is_named(desk):
    for command in ("list", "show tiny", "start tiny", "logs tiny"):
        desk.fails("study", *command.split(), home="absent", status=66, code="home_missing")
        desk.fails("study", *command.split(), home="bank-1", status=66, code="home_missing")
    for command in ("list", "show tiny", "approve tiny"):
        desk.fails(
            "participant", "study", *command.split(), home="coordinator", status=66, code="home_missing"
        )


# -- a member ------------------------------------------------------------------------------------------------


@pytest.fixture
def offered(desk):
    """The proposal lies at every member's desk, where its agent puts it."""
    with open_office(desk.site.home) as office:
        (proposed,) = Authoring(office, "admin").desk.all()
    for name in desk.site.names:
        desk.site.desk(name).propose(proposed.proposal)
    return desk


def test_a_member_looks_and_approves_by_hand(offered):
    at = {"home": "bank-1"}
    (listed,) = offered.json("participant", "study", "list", **at)["studies"]
    assert (listed["name"], listed["state"]) == ("tiny", "undecided")
    shown = offered.run("participant", "study", "show", "tiny", **at).stdout
    assert "next: hansa study approve tiny" in shown
    assert "epsilon 8, delta 1e-05" in shown
    assert offered.json("study", "approve", "tiny", "--dry-run", **at)["changed"] is False
    offered.fails("study", "approve", "tiny", status=2, code="usage", **at)  # nobody was asked
    assert offered.json("study", "approve", "tiny", "--yes", **at)["data_set"] == "loans"
    assert offered.json("participant", "study", "show", "tiny", **at)["state"] == "approved"


def test_an_answer_stands(offered):
    at = {"home": "bank-1"}
    offered.run("study", "approve", "tiny", "--yes", **at)
    offered.run("study", "approve", "tiny", "--yes", **at)  # the same again changes nothing
    answer = offered.site.place("bank-1") / "studies" / offered.site.session / "answer.json"
    kept = answer.read_bytes()
    error, _ = offered.fails("study", "deny", "tiny", "--yes", status=1, code="already_answered", **at)
    assert "was approved before" in error
    assert answer.read_bytes() == kept
    at = {"home": "bank-2"}
    assert offered.json("participant", "study", "deny", "tiny", "--yes", **at)["changed"] is True
    offered.fails("participant", "study", "approve", "tiny", "--yes", status=1, code="already_answered", **at)
    assert offered.json("participant", "study", "list", **at)["studies"][0]["state"] == "denied"


def test_what_cannot_be_approved_is_named(offered):
    place, at = offered.site.place("bank-1"), {"home": "bank-1"}
    offered.fails("study", "approve", "absent", "--yes", status=2, code="study_unknown", **at)
    offered.fails("study", "deny", "absent", "--yes", status=2, code="study_unknown", **at)
    offered.fails(
        "study", "approve", "tiny", "--data-set", "other", "--yes", status=66, code="unknown_dataset", **at
    )
    policy = (place / "policy.toml").read_text()
    (place / "policy.toml").write_text(policy.replace("for_ever = 8.0", "for_ever = 8.0\nper_study = 1.0"))
    offered.fails("study", "approve", "tiny", "--yes", status=3, code="budget_exhausted", **at)
    (place / "policy.toml").unlink()
    offered.fails("study", "approve", "tiny", "--yes", status=78, code="policy_file_missing", **at)
    (place / "datasets.toml").unlink()
    offered.fails("study", "approve", "tiny", "--yes", status=66, code="dataset_file_missing", **at)
    assert offered.site.desk("bank-1").find("tiny").state == "undecided"


def test_commands_run_as_processes_of_their_own(offered):
    def run(*arguments, home):
        command = [*hansa_command(), *arguments, "--home", str(offered.site.folder / home)]
        return subprocess.run(
            command, capture_output=True, timeout=120, env=environment(), text=True, check=False
        )

    done = run("study", "start", "tiny", home="coordinator")
    assert done.returncode == 75
    assert done.stdout == ""
    assert "[not_enough_approvals]" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("study", "approve", "tiny", "--yes", home="bank-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "approved tiny" in done.stdout
    for side, arguments, status, code in (
        ("bank-1", ("deny", "tiny", "--yes"), 1, "already_answered"),
        ("bank-1", ("approve", "absent", "--yes"), 2, "study_unknown"),
        ("coordinator", ("show", "absent"), 2, "study_unknown"),
    ):
        done = run("study", *arguments, home=side)
        assert (done.returncode, done.stdout) == (status, "")
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error.endswith(f"[{code}]")
        assert hint.startswith("hansa: hint: ")
    assert os.access(offered.site.place("bank-1") / "studies" / offered.site.session / "answer.json", os.R_OK)
