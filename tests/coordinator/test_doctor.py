"""A coordinator's doctor: each check made to fail, with its level, its code and what mends it."""

import fcntl
import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from prometheus_client import CollectorRegistry

from hansa.coordinator import doctor_services
from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.coordinator.daemon import LOCK
from hansa.coordinator.doctor import COORDINATOR_CHECKS
from hansa.coordinator.examination import Examination
from hansa.coordinator.founding import FoundingPlan, found_consortium
from hansa.coordinator.journal import EVENTS
from hansa.coordinator.journal_probe import journal_state, verify_journal_writable
from hansa.coordinator.office import open_office
from hansa.coordinator.settings import Listen
from hansa.errors import DatabaseNewer, DatabaseUnusable, JournalNotWritable, WorkerFailed
from hansa.federation.checks import run_checks
from hansa.federation.status_page import StatusPage
from hansa.secure_agg.certificates import utc_now

DAY = timedelta(days=1)
SLOW = {"superlink", "adding_worker"}
CHEAP = tuple(check for check in COORDINATOR_CHECKS if check.name not in SLOW | {"daemon", "ports"})


@pytest.fixture
def home(tmp_path):
    plan = FoundingPlan(
        name="northern-banks", folder=tmp_path / "home", hosts=("127.0.0.1",), port=9443, author="admin"
    )
    return found_consortium(plan, utc_now())


def examine(folder, checks=CHEAP, **changes):
    with Examination(folder, **changes) as place:
        results = run_checks(checks, place)
    return {(one.name, one.finding.subject): one.finding for one in results}


def alone(folder, name, **changes):
    (check,) = [check for check in COORDINATOR_CHECKS if check.name == name]
    only = type(check)(name=check.name, look=check.look, limit_seconds=60.0, mend=check.mend)
    with Examination(folder, **changes) as place:
        return [one.finding for one in run_checks([only], place)]


def told(findings, name, subject=""):
    finding = findings[name, subject]
    return finding.level, finding.code, finding.mend


def renew(home):
    return f"hansa consortium renew --home {home.folder}"


def edits(home):
    return f'"${{EDITOR:-vi}}" {home.folder / "coordinator.toml"}'


def test_a_new_home_is_well(home):
    before = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    findings = examine(home.folder)
    here = set() if sys.flags.safe_path else {"path_unsafe"}  # `make test` sets PYTHONSAFEPATH
    assert {one.code for one in findings.values() if one.level != "ok"} == here
    assert {name for name, _ in findings} == {check.name for check in CHEAP}
    after = {path: path.read_bytes() for path in home.folder.rglob("*") if path.is_file()}
    assert {path.name for path in after if before.get(path) != after[path]} <= {
        "journal.sqlite-wal",
        "journal.sqlite-shm",
    }


def test_names_of_checks_are_stable_and_each_follows_what_it_needs():
    names = [check.name for check in COORDINATOR_CHECKS]
    assert len(set(names)) == len(names)
    for place, check in enumerate(COORDINATOR_CHECKS):
        assert check.name.isidentifier()
        assert check.name == check.name.lower()
        assert set(check.needs) <= set(names[:place])


def test_an_empty_folder_is_no_crash(tmp_path):
    tmp_path.chmod(0o700)
    findings = examine(tmp_path)
    assert told(findings, "settings") == (
        "fail",
        "settings_missing",
        f"hansa consortium init NAME --address HOST --home {tmp_path}",
    )
    others = {name: one.level for (name, _), one in findings.items()}
    assert {others[check.name] for check in CHEAP if check.needs} == {"skipped"}
    assert list(tmp_path.iterdir()) == []


# -- the home ------------------------------------------------------------------------------------------------


def test_settings_that_are_wrong_are_told(home):
    file = home.folder / "coordinator.toml"
    file.write_text(file.read_text().replace("[listen]", "[lisen]"))
    assert told(examine(home.folder), "settings") == ("fail", "unknown_key", edits(home))


def test_an_authority_certificate_that_is_none_is_told(home):
    file = home.folder / "ca" / "authority.crt"
    file.write_text("nothing")
    findings = examine(home.folder)
    assert told(findings, "settings")[:2] == ("fail", "certificate_rejected")
    assert findings["settings", ""].mend == f"cp BACKUP/authority.crt {file}"


def test_a_password_that_others_can_read_is_told_and_not_shown(home):
    file = home.folder / "coordinator.toml"
    url = "postgresql+psycopg://hansa:geheim-4711@127.0.0.1:1/none"
    file.write_text(file.read_text().replace("[addresses]", f'database = "{url}"\n[addresses]', 1))
    file.chmod(0o640)
    findings = examine(home.folder)
    assert told(findings, "settings", "password") == ("fail", "key_file_unsafe", f"chmod 600 {file}")
    assert "4711" not in repr(findings)


def test_a_driver_that_is_not_installed_is_mended_by_installing_it(home):
    file = home.folder / "coordinator.toml"
    url = "postgresql+nodriver://hansa@127.0.0.1:1/none"
    file.write_text(file.read_text().replace("[addresses]", f'database = "{url}"\n[addresses]', 1))
    level, code, mend = told(examine(home.folder), "database")
    assert (level, code) == ("fail", "driver_missing")
    assert "pip install 'hansa[postgresql]'" in mend


def test_keys_that_others_can_read_are_told(home):
    for name in ("tls/server.key", "authors/admin.key", "ca/authority.key"):
        file = home.folder / name
        file.chmod(0o644)
        findings = examine(home.folder)
        assert told(findings, "key_files", name) == ("fail", "key_file_unsafe", f"chmod 600 {file}")
        if name == "ca/authority.key":
            assert told(findings, "authority_key") == ("fail", "key_file_unsafe", f"chmod 600 {file}")
        file.chmod(0o600)


def test_an_authority_key_that_is_away_is_well_and_another_one_is_not(home):
    file = home.folder / "ca" / "authority.key"
    file.write_bytes(os.urandom(32))
    assert told(examine(home.folder), "authority_key")[:2] == ("fail", "certificate_rejected")
    file.unlink()
    finding = examine(home.folder)["authority_key", ""]
    assert (finding.level, finding.cause.split(":")[0]) == ("ok", "kept elsewhere")


@pytest.mark.parametrize(
    ("name", "level", "code"),
    [("0777", "fail", "key_file_unsafe"), ("0755", "warn", "home_open"), ("0700", "ok", "")],
)
def test_a_home_that_others_can_enter_is_told(home, name, level, code):
    home.folder.chmod(int(name, 8))
    assert told(examine(home.folder), "home_folder")[:2] == (level, code)


def revise(home, revision):
    engine = sa.create_engine(home.settings.database_url(home.folder))
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = :r"), {"r": revision})
    engine.dispose()


def test_a_database_that_is_gone_newer_or_empty_is_told_and_not_touched(home):
    url, file = home.settings.database_url(home.folder), home.folder / "journal.sqlite"
    assert journal_state(url).is_newest
    revise(home, "journal_99")
    with pytest.raises(DatabaseNewer):
        journal_state(url)
    assert told(examine(home.folder), "database")[:2] == ("fail", "database_newer")
    for path in home.folder.glob("journal.sqlite*"):
        path.unlink()
    findings = examine(home.folder)
    assert told(findings, "database") == ("fail", "database_unusable", edits(home))
    assert findings["members", ""].level == "skipped"
    assert not file.exists()
    file.touch()
    findings = examine(home.folder)
    show = f"hansa consortium show --home {home.folder}"
    assert told(findings, "database") == ("fail", "database_older", show)
    assert file.stat().st_size == 0


@pytest.mark.parametrize("url", ["nonsense", "oracle9://x/y", "sqlite:///nowhere/at/all.sqlite"])
def test_a_database_url_that_is_none_is_named(url):
    with pytest.raises(DatabaseUnusable):
        journal_state(url)


def test_a_journal_that_cannot_be_written_is_told_and_a_probe_leaves_no_event(home):
    url = home.settings.database_url(home.folder)
    with open_office(home) as office:
        before = len(office.journal.events())
        verify_journal_writable(url)
        assert len(office.journal.events()) == before
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"DROP TABLE {EVENTS.name}"))
    engine.dispose()
    with pytest.raises(JournalNotWritable):
        verify_journal_writable(url)
    assert told(examine(home.folder), "journal") == ("fail", "journal_not_writable", f"df -h {home.folder}")


def test_a_spool_that_is_gone_or_too_small_is_told(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    findings = examine(home.folder)
    assert told(findings, "spool")[:2] == ("warn", "little_space")
    assert "less than 20.0 GiB" in findings["spool", ""].cause
    (home.folder / "spool").rmdir()
    assert told(examine(home.folder), "spool") == (
        "fail",
        "store_not_writable",
        f"mkdir -p -m 700 {home.folder / 'spool'}",
    )


@pytest.mark.enable_socket
def test_a_base_model_that_is_gone_or_another_is_told(doctor_site):
    from hansa.study import load_study

    study = load_study(Path(__file__).parents[2] / "examples/bank/study.toml")
    place = doctor_site.enrol()
    digest = doctor_site.propose(place, study.with_changes(participants=3)).hex()
    folder, file = doctor_site.home.folder, doctor_site.home.models / digest
    (finding,) = alone(folder, "base_models")
    assert (finding.level, finding.subject) == ("ok", study.name)
    file.write_bytes(b"another model")
    (finding,) = alone(folder, "base_models")
    assert (finding.level, finding.code, finding.mend) == (
        "fail",
        "checksum_mismatch",
        f"cp BASE_MODEL {file}",
    )
    file.unlink()
    (finding,) = alone(folder, "base_models")
    assert (finding.level, finding.code) == ("fail", "checkpoint_file_missing")


# -- what ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "level", "code"),
    [(0, "ok", ""), (3000, "warn", "ends_soon"), (4000, "fail", "certificate_rejected")],
)
def test_an_authority_that_ends_is_told(home, days, level, code):
    (finding,) = alone(home.folder, "authority", now=lambda: utc_now() + days * DAY)
    assert (finding.level, finding.code) == (level, code)


def test_a_clock_before_the_authority_is_told(home):
    (finding,) = alone(home.folder, "authority", now=lambda: utc_now() - DAY)
    assert (finding.level, finding.mend) == ("fail", "timedatectl set-ntp true")


def test_a_clock_that_was_set_back_is_told_by_the_journal(home):
    (finding,) = alone(home.folder, "clock", now=lambda: utc_now() - timedelta(minutes=6))
    assert (finding.level, finding.code, finding.mend) == ("fail", "clock_skew", "timedatectl set-ntp true")


@pytest.mark.parametrize(
    ("days", "level", "code"), [(250, "warn", "ends_soon"), (366, "fail", "certificate_rejected")]
)
def test_a_server_certificate_that_ends_is_told(home, days, level, code):
    finding = alone(home.folder, "server_certificate", now=lambda: utc_now() + days * DAY)[0]
    assert (finding.level, finding.code, finding.mend) == (level, code, renew(home))


def test_a_server_certificate_that_does_not_name_an_address_is_told(home):
    file = home.folder / "coordinator.toml"
    text = file.read_text().replace('fleet = "127.0.0.1:', 'fleet = "coord.example:', 1)
    file.write_text(text)
    assert told(examine(home.folder), "server_certificate", "hosts") == (
        "fail",
        "authentication_failed",
        f"{renew(home)} --address 127.0.0.1 --address coord.example",
    )


def test_a_server_key_of_another_certificate_is_told(home):
    from hansa.federation.tls_authority import new_tls_key

    home.tls_files.key.write_bytes(new_tls_key())
    assert told(examine(home.folder), "server_certificate")[:2] == ("fail", "configuration")


def test_a_revocation_list_that_is_old_gone_or_incomplete_is_told(home):
    ended = alone(home.folder, "revocation_list", now=lambda: utc_now() + 8 * DAY)[0]
    assert (ended.level, ended.code, ended.mend) == ("fail", "certificate_rejected", renew(home))
    with open_office(home) as office:
        office.authors.revoke("admin", reason="test")
    assert told(examine(home.folder), "revocation_list") == ("warn", "revocation_list_due", renew(home))
    before = home.revocation_list_file.read_bytes()
    with open_office(home) as office:
        office.revocations.publish(home.authority())
    home.revocation_list_file.write_bytes(before)
    assert told(examine(home.folder), "revocation_list") == ("fail", "revocation_list_old", renew(home))
    home.revocation_list_file.unlink()
    assert told(examine(home.folder), "revocation_list") == ("fail", "home_missing", renew(home))


@pytest.mark.enable_socket
def test_members_that_wait_or_whose_certificates_end_are_told(doctor_site):
    from hansa.participant.renewing import begin_renewal

    place, folder = doctor_site.enrol(), doctor_site.home.folder
    doctor_site.ask("bank-2")
    with pytest.raises(Exception, match="waits for the admin"):
        doctor_site.office.renewals.ask(begin_renewal(place, utc_now()), None)
    findings = {(one.subject, one.code): one for one in alone(folder, "members")}
    assert findings["bank-2", "request_waits"].level == "warn"
    assert findings["bank-2", "request_waits"].mend == (
        f"hansa participant approve bank-2 --fingerprint FINGERPRINT --home {folder}"
    )
    assert findings["bank-1", "renewal_waits"].mend == f"hansa participant renew bank-1 --home {folder}"
    assert findings["", ""].cause == "1 enrolled of 2 known"
    later = alone(folder, "members", now=lambda: utc_now() + 100 * DAY)
    assert [(one.level, one.subject) for one in later if one.code == "ends_soon"] == [("warn", "bank-1")]


def test_authors_whose_certificates_end_or_who_are_gone_are_told(home):
    (finding,) = alone(home.folder, "authors", now=lambda: utc_now() + 300 * DAY)
    add = f"hansa consortium author add admin --home {home.folder}"
    assert (finding.level, finding.code, finding.mend) == ("warn", "ends_soon", add)
    with open_office(home) as office:
        office.authors.revoke("admin", reason="test")
    (finding,) = alone(home.folder, "authors")
    assert (finding.level, finding.code) == ("warn", "no_author")


# -- what runs -----------------------------------------------------------------------------------------------


@pytest.fixture
def served(home):
    """A home whose ports are of loopback and free."""
    file, ports = home.folder / "coordinator.toml", {}
    text = file.read_text()
    for name, old in zip(Listen.model_fields, range(9443, 9448), strict=True):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports[name] = probe.getsockname()[1]
        text = text.replace(f"0.0.0.0:{old}", f"127.0.0.1:{ports[name]}")
        text = text.replace(f'metrics = "127.0.0.1:{old}"', f'metrics = "127.0.0.1:{ports[name]}"')
    file.write_text(text)
    return home.folder, ports


@pytest.fixture
def lock(home):
    """Hold the home's lock, as a daemon does."""
    descriptor = os.open(home.folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


@pytest.mark.enable_socket
def test_free_ports_are_well_and_one_that_another_program_has_is_told(served):
    folder, ports = served
    assert {one.level for one in alone(folder, "ports")} == {"ok"}
    assert len(alone(folder, "ports")) == 5
    with socket.create_server(("127.0.0.1", ports["fleet"])):
        (taken,) = [one for one in alone(folder, "ports") if one.level != "ok"]
    assert (taken.level, taken.code, taken.subject) == ("fail", "port_in_use", "fleet")
    assert taken.mend == f"ss -ltnp 'sport = :{ports['fleet']}'"


@pytest.mark.enable_socket
def test_ports_that_a_running_daemon_does_not_serve_are_told(served, lock):
    folder, ports = served
    with socket.create_server(("127.0.0.1", ports["fleet"])):
        findings = {one.subject: one for one in alone(folder, "ports")}
    assert findings["fleet"].level == "ok"
    others = [findings[name] for name in ports if name != "fleet"]
    assert {(one.level, one.code) for one in others} == {("fail", "coordinator_unreachable")}


def test_a_daemon_that_does_not_run_is_a_warning(home):
    (finding,) = alone(home.folder, "daemon")
    run = f"hansa coordinator run --home {home.folder}"
    assert (finding.level, finding.code, finding.mend) == ("warn", "daemon_stopped", run)


@pytest.mark.enable_socket
def test_a_daemon_is_asked_whether_it_is_ready(served, lock):
    folder, ports = served
    (finding,) = alone(folder, "daemon")
    assert (finding.level, finding.code) == ("fail", "coordinator_unreachable")
    why = [""]
    with StatusPage(CollectorRegistry(), ready=lambda: why[0], port=ports["metrics"]):
        assert alone(folder, "daemon")[0].level == "ok"
        why[0] = "the study runner has ended"
        (finding,) = alone(folder, "daemon")
    assert (finding.level, finding.code) == ("fail", "daemon_not_ready")
    assert finding.cause.endswith("the study runner has ended")
    assert finding.mend == f"curl -s http://127.0.0.1:{ports['metrics']}/readyz"


def test_a_lock_that_is_held_says_that_a_daemon_runs(home):
    place = Examination(home.folder)
    assert not place.is_running
    descriptor = os.open(home.folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    assert not place.is_running
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # asking has left it free
    assert place.is_running
    os.close(descriptor)
    assert not place.is_running


def test_a_superlink_that_cannot_be_imported_is_told(home, monkeypatch):
    real = subprocess.run

    def broken(command, **arguments):
        return real([*command[:-1], "raise ImportError('flwr is broken')"], **arguments)

    monkeypatch.setattr(doctor_services.subprocess, "run", broken)
    (finding,) = alone(home.folder, "superlink")
    assert (finding.level, finding.code) == ("fail", "superlink_failed")
    assert finding.cause.endswith("ImportError: flwr is broken")


def test_a_worker_that_does_not_start_is_told(home, monkeypatch):
    class Broken(CiphertextAdder):
        def __init__(self, **changes):
            super().__init__(command=("false",), **changes)

    with Broken(spool_bytes=1 << 20) as adder, pytest.raises(WorkerFailed):
        adder.verify_starts()
    monkeypatch.setattr(doctor_services, "CiphertextAdder", Broken)
    (finding,) = alone(home.folder, "adding_worker")
    assert (finding.level, finding.code) == ("fail", "worker_failed")
    assert "hansa.coordinator.adding_worker" in finding.mend


def test_superlink_and_worker_start_here(home):
    assert alone(home.folder, "superlink")[0].cause == "can be started"
    assert alone(home.folder, "adding_worker")[0].cause == "starts"


def test_packages_paths_and_telemetry_are_looked_at(home, monkeypatch):
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    levels = {name: alone(home.folder, name)[0].level for name in ("telemetry", "packages", "shadowing")}
    assert levels["telemetry"] == "fail"
    assert levels["packages"] == "ok"
    assert levels["shadowing"] in {"ok", "warn"}
