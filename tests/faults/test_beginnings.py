"""What goes wrong before the first round, and on the coordinator's disk: it is named, waited out, and nothing is lost."""

import resource
import shutil
import time

import pytest

pytestmark = [pytest.mark.enable_socket, pytest.mark.slow]

DEADLINES = {"exchange_seconds": 40.0, "upload_seconds": 15.0, "longest_pause_seconds": 2.0}
TRAINING, JOINING, VOTING = "training and uploading", "joining an epoch", "voting for the manifest"


@pytest.fixture
def consortium(make_consortium):
    return make_consortium(4, settings={"deadlines": DEADLINES})


def limit_files(consortium, most_bytes):
    """Let the coordinator write no file beyond so many bytes; -1 for no limit. A full disk fails the same calls."""
    process = consortium.daemons.running["coordinator"].pid
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (most_bytes, hard))


def test_a_coordinator_that_is_killed_while_an_epoch_is_set_up(consortium):
    consortium.run()
    for stage in (JOINING, VOTING):
        with consortium.stopped_at("bank-4", stage):
            consortium.restart_coordinator()
    consortium.finishes()


def test_another_base_model_for_one_participant_gets_no_seat(consortium):
    (kept,) = (consortium.coordinator / "models").iterdir()
    model = kept.read_bytes()
    kept.write_bytes(bytes([model[0] ^ 1]) + model[1:])
    consortium.run_coordinator()
    consortium.approve()
    consortium.start_study()
    consortium.run_agent("bank-4")
    consortium.until(lambda: "checksum_mismatch" in consortium.daemons.codes("bank-4"), "its refusal")
    assert consortium.count("bank-4", "seat_taken") == 0
    assert not list((consortium.place("bank-4") / "models").glob("*.safetensors"))
    assert consortium.reserved("bank-4") == []
    kept.write_bytes(model)
    for name in consortium.names[:3]:
        consortium.run_agent(name)
    consortium.finishes()


def test_a_full_disk_under_the_spool_and_then_under_everything(consortium):
    consortium.run()
    assert consortium.contributors(1) == list(consortium.names)
    limit_files(
        consortium, 64 << 20
    )  # below the places of all members but one in the spool, above everything else
    consortium.until(
        lambda: consortium.stage() == "" and consortium.progress().problem, "a problem that is shown"
    )
    done = consortium.rounds_done()
    assert consortium.state() == "running"
    assert consortium.progress().problem
    limit_files(consortium, -1)
    consortium.round_reached(done + 1)
    limit_files(consortium, 1)  # journal, log and all
    time.sleep(5.0)
    limit_files(consortium, -1)
    consortium.finishes()


def test_a_coordinator_that_relays_another_history_to_one_member(consortium, cluster_parts):
    consortium.run()
    consortium.round_reached(1)
    with consortium.stopped_at("bank-4", TRAINING):
        number = consortium.rounds_done() + 1
        copy = shutil.copytree(
            consortium.coordinator,
            consortium.folder / "copy",
            ignore=shutil.ignore_patterns("*.lock", "superlink"),
        )
    consortium.round_reached(number)
    consortium.command("pause")
    consortium.until(lambda: consortium.stage() == "", "the pause")
    ports = cluster_parts.free_ports(5)
    settings = (copy / "coordinator.toml").read_text()
    for (door, old), new in zip(consortium.ports.items(), ports, strict=True):
        settings = settings.replace(f":{old}", f":{new}")
        if door in consortium.doors["bank-4"]:
            consortium.doors["bank-4"][door].lead_to(new)
    (copy / "coordinator.toml").write_text(settings)
    consortium.daemons.spawn("copy", "coordinator", "run", "--home", str(copy))
    before, refused = consortium.model_state("bank-4"), len(consortium.daemons.codes("bank-4"))
    consortium.until(
        lambda: (
            {"stale_round", "out_of_order", "transcript_divergence", "state_rollback", "already_released"}
            & set(consortium.daemons.codes("bank-4")[refused:])
        ),
        "a refusal by name",
    )
    assert consortium.model_state("bank-4") == before
    consortium.daemons.kill("copy")
    for door in consortium.doors["bank-4"]:
        consortium.doors["bank-4"][door].lead_to(consortium.ports[door])
    consortium.command("resume")
    consortium.finishes()


def test_a_network_that_is_away_for_two_minutes(make_consortium):
    deadlines = {"exchange_seconds": 300.0, "upload_seconds": 300.0, "longest_pause_seconds": 2.0}
    consortium = make_consortium(3, settings={"deadlines": deadlines})
    consortium.run()
    consortium.round_reached(1)
    with consortium.cut(*consortium.names):
        consortium.holds_for(120.0)
    consortium.finishes()
    assert {tuple(event["contributors"]) for event in consortium.events("round_ended")} == {consortium.names}


def test_a_member_whose_budget_ends_in_the_middle(consortium):
    consortium.run()
    consortium.round_reached(1)
    (path,) = consortium.place("bank-2").glob("ledger-*.jsonl")
    from hansa.privacy.audit import audit_ledger

    consortium.daemons.end("bank-2")
    spent = audit_ledger(path).epsilon
    consortium.write_policy("bank-2", epsilon=spent)
    consortium.run_agent("bank-2")
    consortium.finishes()  # it applies what the others train
    assert "budget_exhausted" in consortium.daemons.codes("bank-2")
    assert audit_ledger(path).epsilon == spent
    assert consortium.contributors(4) == ["bank-1", "bank-3", "bank-4"]
