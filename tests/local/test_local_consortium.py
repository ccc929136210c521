"""The embedded consortium in two worker processes: runs, failures, and nothing left afterwards."""

import ast
import dataclasses
import inspect
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import hansa
from hansa import errors, local
from hansa.local import LocalConsortium
from hansa.local_grid import from_bytes
from hansa.local_seats import Member
from hansa.participant.node import ParticipantNode
from hansa.participant.policy import Policy
from hansa.privacy.accounting import calibrate
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES, SEEDED_BYTES
from hansa.secure_agg.participant import RoundMachine
from hansa.study import Study


def alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def consortia(tiny, tiny_study, tiny_base, tiny_tables, monkeypatch):
    """Make a consortium of the tiny study; `policies` and `names` replace the usual ones."""
    privacy = tiny_study.privacy  # computed here once: the workers inherit what the accountant remembers
    calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=privacy.sample_rate, steps=2)

    def make(policies=None, names=None, study=tiny_study, base=tiny_base, **named):
        usual = Policy(studies=frozenset({study.id}), epsilon_limit=study.privacy.epsilon)
        members = [
            Member(name=shown, rows=tiny_tables[name].rows, policy=(policies or {}).get(name, usual))
            for name, shown in zip(tiny.NAMES, names or tiny.NAMES, strict=True)
        ]
        arguments = {"make_model": base.model, "layout": base.layout, "workers": 2} | named
        return LocalConsortium(study, members, **arguments)

    return make


def ids(consortium):
    return [host.process_id for host in consortium._hosts]


def assert_gone(consortium, processes, threads):
    assert not consortium._directory.exists()
    assert not any(alive(process_id) for process_id in processes)
    assert threading.active_count() == threads


def test_a_study_runs_in_two_processes_and_nothing_is_left(consortia, tiny, tiny_study, tiny_base):
    rounds, crossed, digests, threads = [], [], [], threading.active_count()

    def on_round(summary):
        rounds.append(summary.round)
        digests.append({inspection.digest for inspection in consortium.inspect_all().values()})

    with consortia(tap=lambda direction, data: crossed.append((direction, data))) as consortium:
        processes = ids(consortium)
        assert len(set(processes)) == consortium.workers == 2
        assert consortium.traffic == (0, 0)
        consortium.run(on_round)
        found = consortium.inspect_all()
        traffic, memory = consortium.traffic, consortium.peak_memory_bytes()
        folders = sorted(path.name for path in consortium._directory.iterdir())
        modes = {
            path.stat().st_mode & 0o777 for path in [consortium._directory, *consortium._directory.iterdir()]
        }
    assert_gone(consortium, processes, threads)
    assert rounds == [1, 2]
    assert [len(digest) for digest in digests] == [1, 1]
    assert digests[0] != digests[1]
    assert tuple(found) == tuple(folders) == tiny.NAMES
    assert modes == {0o700}
    start = tiny_base.layout.gather(tiny_base.model())
    for inspection in found.values():
        assert inspection.digest == found["bank-1"].digest
        assert inspection.values.tobytes() == found["bank-1"].values.tobytes()
        assert np.count_nonzero(inspection.values != start) > 0.9 * start.size
        assert 0 < inspection.epsilon <= tiny_study.privacy.epsilon
        assert inspection.seconds["train"] > 0
    # Traffic: headers are signed messages of some 500 bytes; 4 members, 2 rounds, one ciphertext.
    up, down = traffic
    headers = sum(
        len(record["header"])
        for direction, data in crossed
        if direction == "from node"
        and "header" in (record := from_bytes(data).content.config_records["reply"])
    )
    assert up == 8 * SEEDED_BYTES + headers
    assert down == 8 * EXPANDED_BYTES + 4 * headers
    assert memory > 100 << 20


def test_the_leaves_of_a_package_reach_a_member_that_needs_them(consortia, tiny, monkeypatch):
    """A member releases a wrong share of everybody: the others fetch leaves through their workers' pipes."""
    release = RoundMachine._release

    def lying(machine, attempt, view):
        if machine._epoch.participant == "bank-1":
            attempt = dataclasses.replace(attempt, shares=dict.fromkeys(attempt.shares, bytes(64)))
        return release(machine, attempt, view)

    monkeypatch.setattr(RoundMachine, "_release", lying)
    summaries = []
    with consortia() as consortium:
        consortium.run(summaries.append)
        found = consortium.inspect_all()  # raises where two differ
    assert [summary.finished for summary in summaries] == [tiny.NAMES, tiny.NAMES]
    assert len({inspection.digest for inspection in found.values()}) == 1


def test_members_that_vanish_at_random_come_back_with_the_same_state(consortia, tiny):
    summaries = []
    with consortia(drop=1) as consortium:
        consortium.run(summaries.append)
        found = consortium.inspect_all()  # raises where two differ
        assert len({inspection.values.tobytes() for inspection in found.values()}) == 1
        assert 0 <= consortium.dropouts.happened <= 2
        missing = sum(len(tiny.NAMES) - len(summary.finished) for summary in summaries)
    assert [summary.round for summary in summaries] == [1, 2]
    assert missing == consortium.dropouts.happened
    assert all(len(summary.contributors) >= 3 for summary in summaries)


def test_in_strict_mode_a_member_that_vanishes_ends_the_study(
    consortia, strict_study, tiny_bases, monkeypatch
):
    monkeypatch.setattr("hansa.local_dropouts._STAGES", ("train",))
    made = consortia(study=strict_study, base=tiny_bases(strict_study), drop=1)
    with (
        made as consortium,
        pytest.raises(errors.ParticipantLost, match="3 members left, below the threshold 4"),
    ):
        consortium.run(lambda _: None)


def test_equal_public_seeds_give_an_equal_base_and_unequal_results(consortia, tiny_study, tiny_bases):
    states, starts = [], []
    for _ in range(2):
        base = tiny_bases(tiny_study, seed=7)
        starts.append(base.layout.gather(base.model()))
        with consortia(base=base, workers=1) as consortium:
            consortium.run(lambda _: None)
            states.append(consortium.inspect("bank-1").values)
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.count_nonzero(states[0] == states[1]) < 10


def test_a_spent_budget_is_told_in_the_participants_own_words(consortia, strict_study, tiny_bases):
    poor = Policy(studies=frozenset({strict_study.id}), epsilon_limit=0.5)
    threads, messages = threading.active_count(), []
    named = {"study": strict_study, "base": tiny_bases(strict_study)}
    with consortia({"bank-3": poor}, tap=lambda *crossing: messages.append(crossing), **named) as consortium:
        processes = ids(consortium)
        with pytest.raises(
            errors.BudgetExhausted, match=r"the round would spend epsilon .* above the limit for ever, 0\.5"
        ):
            consortium.run(lambda _: None)
        found = consortium.inspect("bank-3")
        assert (found.epsilon, "train" in found.seconds) == (0.0, False)
        assert not list((consortium._directory / "bank-3").glob("ledger-*.jsonl"))
    assert_gone(consortium, processes, threads)
    # The coordinator's side got the code, not the words.
    assert any(b"budget_exhausted" in data for _, data in messages)
    assert not any(b"would spend" in data for _, data in messages)


def test_the_first_error_is_the_one_that_is_told(consortia, tiny_study):
    """Both fail, each in its own way; the one that came first is shown, not the one of the first worker."""
    unknown = Policy(studies=frozenset(), epsilon_limit=8.0)
    poor = Policy(studies=frozenset({tiny_study.id}), epsilon_limit=8.0, delta_limit=1e-9)
    policies = {"bank-2": poor, "bank-4": unknown}
    with consortia(policies, workers=1) as consortium, pytest.raises(errors.BudgetExhausted):
        consortium.run(lambda _: None)


@pytest.mark.parametrize("rounds", [(1,), (1, 2)], ids=["once", "in every round"])
def test_a_worker_that_is_killed_is_replaced_and_its_members_go_on_from_their_stores(consortia, rounds):
    threads = threading.active_count()

    def kill(summary):
        summaries.append(summary.round)
        if summary.round in rounds:
            process_id = consortium._hosts[1].process_id
            killed.append(process_id)
            os.kill(process_id, signal.SIGKILL)

    summaries, killed = [], []
    with consortia() as consortium:
        consortium.run(kill)
        assert consortium.replaced_workers == 1  # after the last round nobody is asked anything
        if rounds == (1,):
            assert len({found.digest for found in consortium.inspect_all().values()}) == 1
        processes = ids(consortium)
    assert summaries == [1, 2]
    assert_gone(consortium, processes + killed, threads)


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, errors.Interrupted])
@pytest.mark.parametrize("during", ["before", "round", "after"])
def test_whatever_happens_in_the_block_nothing_is_left(consortia, failure, during):
    threads = threading.active_count()

    def fail(_=None):
        raise failure("stop")

    def block(consortium):
        with consortium:
            processes.extend(ids(consortium))
            assert all(map(alive, processes))
            if during == "before":
                fail()
            consortium.run(fail if during == "round" else lambda _: None)
            fail()

    consortium, processes = consortia(), []
    with pytest.raises(failure, match="stop"):
        block(consortium)
    assert len(processes) == 2
    assert_gone(consortium, processes, threads)


@pytest.mark.slow
def test_a_worker_that_is_stuck_does_not_hold_up_the_end(consortia, monkeypatch):
    """The coordinator's deadline passes while a worker stands still."""
    monkeypatch.setattr(local, "DEADLINE_SECONDS", 2.0)
    monkeypatch.setattr("hansa.local_grid._CLOSE_SECONDS", 0.05)

    def stop(_):
        os.kill(processes[0], signal.SIGSTOP)

    with consortia() as consortium:
        processes = ids(consortium)
        stuck = consortium._hosts[0]._process
        monkeypatch.setattr(stuck, "terminate", stuck.kill)  # spares the test one of two waits
        with pytest.raises(
            errors.ParticipantLost,
            match=r"^round 2 has [0-2] members left, .*: no answer to train within 2 s",
        ):
            consortium.run(stop)
    assert not any(alive(process_id) for process_id in processes)
    assert not consortium._directory.exists()


def test_states_that_differ_are_an_error_of_inspect_all(consortia, monkeypatch):
    with consortia() as consortium:
        consortium.run(lambda _: None)
        inspect_one = consortium.inspect

        def differ(name):
            found = inspect_one(name)
            return dataclasses.replace(found, digest=bytes(32)) if name == "bank-2" else found

        monkeypatch.setattr(consortium, "inspect", differ)
        with pytest.raises(errors.ModelDivergence):
            consortium.inspect_all()


def test_two_members_of_one_name_are_refused(consortia):
    with pytest.raises(errors.DuplicateMember):
        consortia(names=("bank-1", "bank-2", "bank-2", "bank-4"))


def test_a_name_that_is_no_id_makes_no_folder(consortia):
    with consortia(names=("bank-1", "bank-2", "bank-3", "../bank-4")) as consortium:
        outside = consortium._directory.parent / "bank-4"
        with pytest.raises(errors.MalformedMessage, match="participant id"):
            consortium.run(lambda _: None)
        assert list(consortium._directory.iterdir()) == []
        assert not outside.exists()


def test_a_block_that_cannot_begin_leaves_nothing(consortia, monkeypatch):
    made, threads = [], threading.active_count()

    class Second(local.Host):
        def __init__(self, *values):
            if made:
                raise OSError("no more processes")
            super().__init__(*values)
            made.append(self)

    monkeypatch.setattr(local, "Host", Second)
    consortium = consortia()
    with pytest.raises(OSError, match="no more processes"):
        consortium.__enter__()
    assert_gone(consortium, [made[0].process_id], threads)


def test_jobs_run_in_the_workers(consortia):
    def double(value):
        return [2 * value, os.getpid()]

    with consortia(jobs={"double": double}) as consortium:
        results = [consortium.job(worker, "double", 21) for worker in (0, 1)]
        assert results == [[42, process_id] for process_id in ids(consortium)]


def test_a_worker_computes_in_one_thread_whatever_its_parent_does(consortia):
    """The thread pool of the parent is not there after the fork; who waits for it waits for ever."""

    def compute():
        square = torch.ones(300, 300)
        return [torch.get_num_threads(), float((square @ square)[0, 0])]

    torch.set_num_threads(2)
    try:
        square = torch.ones(600, 600)
        assert float((square @ square).sum()) == 600.0**3
        with consortia(jobs={"compute": compute}) as consortium:
            assert consortium.job(0, "compute") == [1, 300.0]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (1, 1), (3, 3), (99, 4)])
def test_there_are_no_more_workers_than_members_and_at_least_one(consortia, asked, given):
    consortium = consortia(workers=asked)
    assert consortium.workers == given
    dealt = set(consortium._worker_of.values())
    assert dealt == set(range(given))


# -- randomness ------------------------------------------------------------------------------------------------


def test_no_argument_of_a_consortium_and_no_key_of_a_study_reaches_secret_randomness():
    assert set(inspect.signature(LocalConsortium).parameters) == {
        "study",
        "members",
        "make_model",
        "layout",
        "workers",
        "jobs",
        "tap",
        "drop",
        "open_store",
    }
    assert set(Member.__dataclass_fields__) == {"name", "rows", "policy"}
    assert "random" in inspect.signature(ParticipantNode).parameters

    def keys(section, path=""):
        for name, field in section.model_fields.items():
            yield f"{path}{name}"
            if hasattr(field.annotation, "model_fields"):
                yield from keys(field.annotation, f"{path}{name}.")

    found = set(keys(Study))
    assert {"privacy.epsilon", "training.server_optimizer.name"} <= found
    assert {key for key in found if "seed" in key or "random" in key} == {"adapters.factor_seed"}


def test_nothing_in_the_package_injects_secret_randomness():
    """`random=` and a seed of SecretRandom are for tests: no call in the package gives either."""
    calls = {"SecretRandom": 0, "ParticipantNode": 0, "Identity.generate": 0, "HeKey.generate": 0}
    for path in Path(hansa.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            called = ast.unparse(call.func)
            if called not in calls:
                continue
            calls[called] += 1
            if called == "ParticipantNode":
                assert not call.args
                assert "random" not in {keyword.arg for keyword in call.keywords}
                assert None not in {keyword.arg for keyword in call.keywords}
            else:
                assert not call.args
                assert not call.keywords
    assert all(calls.values())
