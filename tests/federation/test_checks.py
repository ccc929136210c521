"""The registry of checks: all run, each ends in a finding, and nothing of a surprise is told but its kind."""

import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from hansa.errors import PortInUse
from hansa.federation import machine_checks
from hansa.federation.checks import (
    LEVELS,
    Check,
    as_json,
    as_lines,
    fail,
    is_healthy,
    ok,
    run_checks,
    skipped,
    warn,
)

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def check(name, *findings, **changes):
    return Check(name=name, look=lambda _: list(findings), **changes)


def raising(name, error, **changes):
    def look(_):
        yield ok("so far")
        raise error

    return Check(name=name, look=look, **changes)


def found(results):
    return [(result.name, result.finding.level, result.finding.code) for result in results]


def test_all_checks_run_and_an_error_is_a_finding_with_its_code():
    checks = [raising("port", PortInUse("port 1 is taken")), check("later", ok("fine"))]
    results = run_checks(checks, None)
    assert found(results)[-2:] == [("port", "fail", "port_in_use"), ("later", "ok", "")]
    assert results[1].finding.mend == PortInUse.default_hint


def test_a_check_names_the_command_that_mends_what_it_raises():
    (result,) = run_checks([Check(name="port", look=_no_port, mend=lambda place: f"mend {place}")], "x")
    assert result.finding.mend == "mend x"


def _no_port(_):
    raise PortInUse("port 1 is taken")


def test_of_an_error_that_nobody_foresaw_only_the_kind_is_told():
    results = run_checks([raising("odd", KeyError("patient 4711"))], None)
    assert found(results)[-1] == ("odd", "fail", "internal_failure")
    assert "KeyError" in results[-1].finding.cause
    assert "4711" not in json.dumps(as_json("participant", "home", results)) + repr(results)


def test_a_check_that_does_not_end_is_left_behind():
    slow = Check(name="slow", look=lambda _: time.sleep(30), limit_seconds=0.05)
    lazy = Check(name="lazy", look=lambda _: time.sleep(30), limit_seconds=0.05, late="warn")
    began = time.monotonic()
    results = run_checks([slow, lazy, check("next", ok("fine"))], None)
    assert time.monotonic() - began < 5
    assert found(results) == [
        ("slow", "fail", "check_timed_out"),
        ("lazy", "warn", "check_timed_out"),
        ("next", "ok", ""),
    ]


def test_what_needs_a_check_that_fails_is_skipped_and_so_is_what_needs_that():
    checks = [
        check("first", ok("one"), fail("two", "mend")),
        check("second", ok("fine"), needs=("first",)),
        check("third", ok("fine"), needs=("second",)),
        check("fourth", warn("hm", "mend")),
        check("fifth", ok("fine"), needs=("fourth",)),
        check("nothing"),
    ]
    levels = {result.name: result.finding.level for result in run_checks(checks, None)}
    assert levels == {
        "first": "fail",
        "second": "skipped",
        "third": "skipped",
        "fourth": "warn",
        "fifth": "ok",
        "nothing": "skipped",
    }


def test_every_cause_is_one_printable_line():
    (result,) = run_checks([check("long", ok("a\n\x1b[31m" + "b" * 1000))], None)
    assert result.finding.cause.isprintable()
    assert len(result.finding.cause) == 400


def test_only_failures_are_unhealthy():
    checks = [check("a", ok("x")), check("b", warn("x", "y")), check("c", skipped("x"))]
    assert is_healthy(run_checks(checks, None))
    assert not is_healthy(run_checks([*checks, check("d", fail("x", "y"))], None))


def test_details_are_for_the_owners_terminal_only():
    results = run_checks([check("data", ok("fits", detail="4711 rows", subject="cards"))], None)
    assert "4711" in "\n".join(as_lines(results, for_owner=True))
    assert "4711" not in "\n".join(as_lines(results, for_owner=False))
    assert "4711" not in json.dumps(as_json("participant", "home", results))


def test_lines_are_aligned_and_what_mends_stands_below():
    checks = [check("a", ok("fine")), check("longer", fail("broken", "mend it", code="bad"))]
    lines = as_lines(run_checks(checks, None), for_owner=True)
    assert lines == [
        "ok      a       fine",
        "fail    longer  broken [bad]",
        "                -> mend it",
        "",
        "1 ok, 0 warn, 1 fail, 0 skipped",
    ]


def test_the_json_form_has_every_field():
    report = as_json("coordinator", "home", run_checks([check("a", fail("x", "y", code="c"))], None))
    assert report == {
        "schema": "hansa/doctor/v1",
        "side": "coordinator",
        "home": "home",
        "healthy": False,
        "counts": dict.fromkeys(LEVELS, 0) | {"fail": 1},
        "checks": [
            {"name": "a", "subject": "", "level": "fail", "cause": "x", "mend": "y", "code": "c"},
        ],
    }


# -- what both sides look at ---------------------------------------------------------------------------------


def level_of(finding):
    return finding.level, finding.code


def test_a_disk_that_fills_up_is_told_in_time(tmp_path, monkeypatch):
    def free(count):
        monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=count))
        return machine_checks.look_at_disk(tmp_path)

    assert level_of(free(100 << 20)) == ("fail", "store_not_writable")
    assert level_of(free(1 << 30)) == ("warn", "little_space")
    assert level_of(free(100 << 30)) == ("ok", "")
    assert str(tmp_path) in free(0).mend


def test_a_secret_that_others_can_read_or_that_is_gone_is_named(tmp_path):
    safe, open_, gone = tmp_path / "a.key", tmp_path / "b.key", tmp_path / "c.key"
    safe.touch(0o600)
    open_.touch(0o600)
    open_.chmod(0o640)
    findings = list(machine_checks.look_at_secrets(tmp_path, [safe, open_, gone]))
    assert [(one.level, one.code, one.subject) for one in findings] == [
        ("fail", "key_file_unsafe", "b.key"),
        ("fail", "home_missing", "c.key"),
        ("ok", "", ""),
    ]
    assert findings[0].mend == f"chmod 600 {open_}"
    assert findings[1].mend == f"cp BACKUP/c.key {gone}"


def test_a_home_that_others_can_enter_is_told(tmp_path):
    tmp_path.chmod(0o700)
    assert level_of(machine_checks.look_at_folder(tmp_path)) == ("ok", "")
    tmp_path.chmod(0o750)
    assert level_of(machine_checks.look_at_folder(tmp_path)) == ("warn", "home_open")
    tmp_path.chmod(0o770)
    finding = machine_checks.look_at_folder(tmp_path)
    assert (level_of(finding), finding.mend) == (("fail", "key_file_unsafe"), f"chmod 700 {tmp_path}")


@pytest.mark.parametrize(
    ("days", "level", "code"),
    [
        (-1, "fail", "certificate_rejected"),
        (0, "ok", ""),
        (59, "ok", ""),
        (61, "warn", "ends_soon"),
        (90, "fail", "certificate_rejected"),
    ],
)
def test_a_certificate_is_told_below_a_third_of_its_time(days, level, code):
    finding = machine_checks.look_at_window("it", NOW, NOW + 90 * DAY, NOW + days * DAY, mend="renew")
    assert level_of(finding) == (level, code)
    assert finding.mend == {-1: "timedatectl set-ntp true", 61: "renew", 90: "renew"}.get(days, "")


@pytest.mark.parametrize(
    ("seconds", "level"), [(0, "ok"), (59, "ok"), (-61, "warn"), (299, "warn"), (301, "fail"), (-301, "fail")]
)
def test_clocks_that_are_apart_are_told(seconds, level):
    finding = machine_checks.look_at_clock_against(seconds)
    assert finding.level == level
    assert bool(finding.mend) == (level != "ok")


def test_telemetry_that_is_on_is_told(monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    assert machine_checks.look_at_telemetry().level == "ok"
    for value in ("1", "yes"):
        monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", value)
        finding = machine_checks.look_at_telemetry()
        assert level_of(finding) == ("fail", "telemetry_on")
        assert finding.mend == "export FLWR_TELEMETRY_ENABLED=0"
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    loaded = SimpleNamespace(FLWR_TELEMETRY_ENABLED="1")
    monkeypatch.setitem(machine_checks.sys.modules, "flwr.supercore.telemetry", loaded)
    assert machine_checks.look_at_telemetry().level == "fail"


def test_a_folder_of_hansa_that_hides_a_package_is_told(monkeypatch):
    assert machine_checks.look_at_shadows().level in {"ok", "warn"}
    monkeypatch.syspath_prepend(str(machine_checks._PACKAGE))
    finding = machine_checks.look_at_shadows()
    assert level_of(finding) == ("fail", "package_shadowed")
    assert finding.mend.startswith("export PYTHONSAFEPATH=1")


def test_a_path_that_looks_into_the_current_folder_is_told(monkeypatch):
    monkeypatch.setattr(machine_checks, "sys", SimpleNamespace(flags=SimpleNamespace(safe_path=False)))
    assert level_of(machine_checks.look_at_shadows()) == ("warn", "path_unsafe")


def test_another_version_of_what_must_be_of_one_is_told(monkeypatch):
    assert set(machine_checks.exact_pins()) == {"flwr", "tenseal"}
    assert {one.level for one in machine_checks.look_at_packages()} == {"ok"}
    monkeypatch.setattr(machine_checks, "version", lambda name: "0.0.1")
    findings = list(machine_checks.look_at_packages())
    assert [level_of(one) for one in findings] == [("fail", "version_differs")] * 2
    pin = machine_checks.exact_pins()["flwr"]
    assert findings[0].mend == f"pip install 'flwr=={pin}'"
