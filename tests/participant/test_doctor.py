"""A participant's doctor at home: each check made to fail, with its level, its code and what mends it."""

import json
import os
import shutil
import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from hansa.errors import DatasetFileMissing
from hansa.federation.checks import as_json, run_checks
from hansa.participant import doctor_data, doctor_machine, doctor_network
from hansa.participant.agent import STATUS_FILE
from hansa.participant.data_reading import read_data
from hansa.participant.dataset_file import load_datasets
from hansa.participant.doctor import PARTICIPANT_CHECKS
from hansa.participant.doctor_data import DATA_CHECKS
from hansa.participant.doctor_keys import KEY_CHECKS
from hansa.participant.doctor_machine import MACHINE_CHECKS
from hansa.participant.examination import Examination
from hansa.participant.registered_data import register_named_data
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.privacy.accounting import Mechanism
from hansa.privacy.spent import Reservation, SpentSoFar
from hansa.secure_agg.certificates import utc_now

pytestmark = pytest.mark.enable_socket
DAY = timedelta(days=1)


def examine(place, checks=(*KEY_CHECKS, *DATA_CHECKS), **changes):
    results = run_checks(checks, Examination(place.folder, **changes))
    return {(one.name, one.finding.subject): one.finding for one in results}


def told(findings, name, subject=""):
    finding = findings[name, subject]
    return finding.level, finding.code, finding.mend


def edits(file):
    return f'"${{EDITOR:-vi}}" {file}'


@pytest.fixture
def member(doctor_site):
    return doctor_site.enrol()


def test_a_member_with_data_that_fits_is_well(doctor_site, member, study_with):
    study = study_with()
    doctor_site.add_data(member, model=doctor_site.propose(member, study))
    findings = examine(member)
    assert {name for name, _ in findings} == {check.name for check in (*KEY_CHECKS, *DATA_CHECKS)}
    assert [one for one in findings.values() if one.level != "ok"] == []
    assert findings["data_sets", "cards"].detail == "2 rows"
    assert findings["data_sets", "cards"].cause == "fits study small"


def test_names_of_checks_are_stable_and_each_follows_what_it_needs():
    names = [check.name for check in PARTICIPANT_CHECKS]
    assert len(set(names)) == len(names)
    for place, check in enumerate(PARTICIPANT_CHECKS):
        assert check.name.isidentifier()
        assert check.name == check.name.lower()
        assert set(check.needs) <= set(names[:place])


def test_an_empty_folder_is_no_crash(tmp_path):
    tmp_path.chmod(0o700)
    results = run_checks((*KEY_CHECKS, *doctor_network.NETWORK_CHECKS, *DATA_CHECKS), Examination(tmp_path))
    levels = {one.name: one.finding.level for one in results}
    assert levels.pop("settings") == "fail"
    assert levels.pop("home_folder") == "ok"
    assert set(levels.values()) == {"skipped"}
    assert list(tmp_path.iterdir()) == []
    assert results[0].finding.mend == f"hansa participant join INVITATION.json --home {tmp_path}"


# -- keys ----------------------------------------------------------------------------------------------------


def test_settings_with_an_unknown_key_are_told_with_the_nearest(member):
    file = member.folder / "participant.toml"
    file.write_text(file.read_text().replace("name = ", "nam = ", 1))
    findings = examine(member)
    assert told(findings, "settings") == ("fail", "unknown_key", edits(file))
    assert "'name'" in findings["settings", ""].cause or "`name`" in findings["settings", ""].cause
    assert findings["authority", ""].level == "skipped"


def test_an_authority_that_does_not_fit_the_pin_is_told(member, federated):
    from hansa.federation.tls_authority import to_pem

    file = member.folder / "authority.crt"
    file.write_bytes(to_pem(federated.House().authority.certificate))
    findings = examine(member)
    assert told(findings, "authority") == ("fail", "document_rejected", f"cp BACKUP/authority.crt {file}")


def test_an_authority_that_ends_is_told(member):
    findings = examine(member, now=lambda: utc_now() + 4000 * DAY)
    assert told(findings, "authority", "time")[:2] == ("fail", "certificate_rejected")


@pytest.mark.parametrize("name", ["identity.key", "flower.key", "current/tls.key", "ledger.salt"])
def test_a_key_that_others_can_read_is_told(doctor_site, member, name):
    doctor_site.add_data(member)
    open_or_make_key(member.folder / "ledger.salt")
    file = (member.folder / name).resolve()
    file.chmod(0o644)
    findings = examine(member)
    subject = str(file.relative_to(member.folder))
    assert told(findings, "key_files", subject) == ("fail", "key_file_unsafe", f"chmod 600 {file}")


def test_a_key_that_is_gone_is_told_and_none_is_made(member):
    file = member.folder / "identity.key"
    file.unlink()
    findings = examine(member)
    assert told(findings, "key_files", "identity.key")[:2] == ("fail", "home_missing")
    assert findings["enrolment", ""].level == "skipped"
    assert not file.exists()


def test_a_home_that_others_can_write_is_told(member):
    member.folder.chmod(0o777)
    assert told(examine(member), "home_folder") == (
        "fail",
        "key_file_unsafe",
        f"chmod 700 {member.folder}",
    )


def test_a_tls_key_of_another_enrolment_is_told(doctor_site, member):
    other = doctor_site.enrol("bank-2")
    key = member.tls_files.key
    key.write_bytes(other.tls_files.key.read_bytes())
    findings = examine(member)
    assert told(findings, "enrolment")[:2] == ("fail", "document_rejected")
    assert findings["certificate_days", ""].level == "skipped"


@pytest.mark.parametrize(
    ("days", "level", "code"), [(70, "warn", "ends_soon"), (91, "fail", "certificate_rejected")]
)
def test_certificates_that_end_are_told(member, days, level, code):
    findings = examine(member, now=lambda: utc_now() + days * DAY)
    run = f"hansa participant run --home {member.folder}"
    assert findings["enrolment", ""].level == "ok"
    assert told(findings, "certificate_days") == (level, code, run)


def test_a_clock_before_the_certificates_is_told(member):
    findings = examine(member, now=lambda: utc_now() - timedelta(minutes=30))
    assert told(findings, "certificate_days") == (
        "fail",
        "certificate_rejected",
        "timedatectl set-ntp true",
    )


def test_a_revocation_list_that_has_ended_is_told(member):
    findings = examine(member, now=lambda: utc_now() + 8 * DAY)
    run = f"hansa participant run --home {member.folder}"
    assert told(findings, "revocation_list") == ("fail", "certificate_rejected", run)


def test_a_revocation_list_that_is_none_is_told(member):
    file = member.folder / "revocations.crl"
    file.write_bytes(b"nothing")
    assert told(examine(member), "revocation_list") == (
        "fail",
        "certificate_rejected",
        f"cp BACKUP/revocations.crl {file}",
    )


# -- data ----------------------------------------------------------------------------------------------------


def test_no_data_set_is_a_warning(member):
    findings = examine(member)
    assert told(findings, "datasets_file")[:2] == ("warn", DatasetFileMissing.code)
    assert "dataset add" in findings["datasets_file", ""].mend


def test_a_datasets_file_that_is_none_is_told(member):
    file = member.folder / "datasets.toml"
    file.write_text("schema = \n")
    findings = examine(member)
    assert told(findings, "datasets_file") == ("fail", "dataset_syntax", edits(file))
    assert findings["data_sets", ""].level == "skipped"


def test_a_data_set_that_serves_a_study_and_is_described_no_more_is_told(doctor_site, member, study_with):
    doctor_site.propose(member, study_with(), data_set="loans")
    doctor_site.add_data(member)
    assert told(examine(member), "datasets_file", "loans")[:2] == ("fail", "unknown_dataset")


def test_data_that_does_not_fit_is_told_without_a_value_or_a_count(doctor_site, member, study_with):
    doctor_site.propose(member, study_with())
    doctor_site.add_data(member, "a,y\nsecret-4711,1\n0.25,0\n0.5,1\n")
    results = run_checks((*KEY_CHECKS, *DATA_CHECKS), Examination(member.folder))
    (finding,) = [one.finding for one in results if one.name == "data_sets"]
    assert (finding.level, finding.subject) == ("fail", "cards")
    assert finding.cause == "does not fit study small: non_numeric_column 'a'"
    assert finding.mend == edits(member.folder / "datasets.toml")
    assert "3 rows" in finding.detail
    report = json.dumps(as_json("participant", "home", results))
    assert "3 rows" not in report
    assert "4711" not in report + finding.detail


def test_data_that_cannot_be_read_is_told(doctor_site, member):
    doctor_site.add_data(member)
    (member.folder / "cards.csv").unlink()
    findings = examine(member)
    assert told(findings, "data_sets", "cards")[:2] == ("fail", "data_file_missing")
    assert "cards.csv" in findings["data_sets", "cards"].detail


def test_data_that_takes_too_long_is_a_warning():
    (check,) = [check for check in DATA_CHECKS if check.name == "data_sets"]
    assert check.late == "warn"


def test_a_data_set_without_a_policy_is_told(doctor_site, member):
    doctor_site.add_data(member)
    file = member.folder / "datasets.toml"
    file.write_text(file.read_text().replace('policy = "policy.toml"\n', ""))
    assert told(examine(member), "policies", "cards") == ("fail", "policy_file_missing", edits(file))


@pytest.mark.parametrize(
    ("old", "new", "level", "code"),
    [
        ('data_set = "cards"', 'data_set = "loans"', "fail", "policy_mismatch"),
        ("most_rounds", "mots_rounds", "fail", "unknown_key"),
        ("per_month = 9.5\n", "", "warn", "policy_open"),
        ("delta_limit = 1e-5", "delta_limit = 1e-9", "fail", "budget_exhausted"),
    ],
)
def test_a_policy_that_is_wrong_or_open_is_told(doctor_site, member, study_with, old, new, level, code):
    doctor_site.add_data(member, model=doctor_site.propose(member, study_with()))
    file = member.folder / "policy.toml"
    file.write_text(file.read_text().replace(old, new))
    assert told(examine(member), "policies", "cards") == (level, code, edits(file))


def spend(epsilon_steps):
    """Reservations of another study that cost a lot, in a ledger that states epsilon at a smaller delta than the policy's."""
    one = Reservation(study="other", round=1, mechanism=Mechanism(0.8, 0.5, epsilon_steps))
    return SpentSoFar(reservations=(one,), delta=1e-6)


@pytest.mark.parametrize(
    ("limit", "steps", "level"),
    [("10.0", 0, "ok"), ("7.0", 0, "warn"), ("7.0", 2, "fail"), ("1.0", 4, "fail")],
)
def test_a_budget_that_does_not_last_is_told(
    doctor_site, member, study_with, monkeypatch, limit, steps, level
):
    study = study_with()
    doctor_site.add_data(member, model=doctor_site.propose(member, study))
    file = member.folder / "policy.toml"
    file.write_text(file.read_text().replace("for_ever = 10.0", f"for_ever = {limit}"))
    entry = load_datasets(member.folder).dataset[0]
    data = read_data(entry, member.folder, study)
    identity = register_named_data(member.folder, "cards", units=data.units, marks=data.marks, time=0.0)
    doctor_data.ledger_path(member.folder, identity).touch()
    unspent = SpentSoFar(reservations=(), delta=None)
    monkeypatch.setattr(doctor_data, "read_spent", lambda _: spend(steps) if steps else unspent)
    worst = list(doctor_data.look_at_budgets(Examination(member.folder)))[-1]
    assert worst.level == level
    if level != "ok":
        assert (worst.code, worst.mend) == ("budget_exhausted", edits(file))
    if limit == "1.0":
        assert worst.cause.endswith("is spent at delta 1e-06: nothing is left")


def test_a_damaged_ledger_is_told(doctor_site, member, study_with):
    study = study_with()
    doctor_site.add_data(member)
    data = read_data(load_datasets(member.folder).dataset[0], member.folder, study)
    identity = register_named_data(member.folder, "cards", units=data.units, marks=data.marks, time=0.0)
    ledger = doctor_data.ledger_path(member.folder, identity)
    ledger.write_text('{"kind": "nothing"}\n')
    assert told(examine(member), "budgets", "cards") == (
        "fail",
        "ledger_damaged",
        f"hansa audit verify {ledger}",
    )


# -- machine -------------------------------------------------------------------------------------------------


def at_machine(place, name, **changes):
    (check,) = [check for check in MACHINE_CHECKS if check.name == name]
    alone = type(check)(name=check.name, look=check.look, limit_seconds=60.0)
    return [one.finding for one in run_checks([alone], Examination(place.folder, **changes))]


def test_a_gpu_without_triton_or_torch_for_it_is_a_warning(member, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_machine.Path, "glob", lambda *_: iter(()))
    assert at_machine(member, "accelerator")[0].level == "ok"
    monkeypatch.setattr(doctor_machine.Path, "glob", lambda *_: iter(("nvidia0",)))
    assert at_machine(member, "accelerator")[0].code == "gpu_unused"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    assert at_machine(member, "accelerator")[0].level == "ok"

    def missing(_):
        raise doctor_machine.PackageNotFoundError

    monkeypatch.setattr(doctor_machine, "version", missing)
    (finding,) = at_machine(member, "accelerator")
    assert (finding.level, finding.code, finding.mend) == ("warn", "triton_missing", "pip install triton")


def test_an_agent_that_does_not_run_or_is_not_connected_is_a_warning(member):
    (finding,) = at_machine(member, "agent")
    run = f"hansa participant run --home {member.folder}"
    assert (finding.level, finding.code, finding.mend) == ("warn", "agent_stopped", run)
    status = {"process": os.getpid(), "status": "not connected: x", "connected": False}
    (member.folder / STATUS_FILE).write_text(json.dumps(status))
    assert at_machine(member, "agent")[0].code == "agent_unconnected"
    (member.folder / STATUS_FILE).write_text(json.dumps({**status, "connected": True}))
    assert at_machine(member, "agent")[0].level == "ok"


def test_a_store_that_cannot_be_opened_is_told(member):
    folder = member.folder / "studies" / ("5" * 32)
    folder.mkdir(parents=True)
    key = open_or_make_key(folder / "node.key")
    store = SealedStore(folder / "node.store", key)
    (finding,) = at_machine(member, "node_stores")
    assert (finding.level, finding.code) == ("fail", "store_in_use")
    assert finding.mend.startswith("fuser -v ")
    (member.folder / STATUS_FILE).write_text(json.dumps({"process": os.getpid()}))
    assert at_machine(member, "node_stores")[0].cause == "left to the agent, which runs"
    (member.folder / STATUS_FILE).unlink()
    store.close()
    assert at_machine(member, "node_stores")[0].level == "ok"
    (folder / "node.key").unlink()
    (finding,) = at_machine(member, "node_stores")
    assert (finding.level, finding.code) == ("fail", "home_missing")
    assert not (folder / "node.key").exists()
    open_or_make_key(folder / "node.key")
    (finding,) = at_machine(member, "node_stores")
    assert (finding.level, finding.code) == ("fail", "store_damaged")


def test_disk_packages_paths_and_telemetry_are_looked_at(member, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    levels = {name: at_machine(member, name)[0].level for name in ("disk_space", "telemetry", "packages")}
    assert levels == {"disk_space": "fail", "telemetry": "fail", "packages": "ok"}
    assert at_machine(member, "shadowing")[0].level == ("ok" if sys.flags.safe_path else "warn")
