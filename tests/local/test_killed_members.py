"""A bank's process that ends by SIGKILL at one write after another, in a running study, and comes back from its disk."""

import json
import os
import signal

import pytest
import torch

from hansa import errors
from hansa.coordinator.aggregator import AggregationService
from hansa.local import LocalConsortium
from hansa.local_seats import Member
from hansa.participant.policy import Policy
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.privacy.accounting import calibrate
from hansa.secure_agg.messages import Envelope, UploadHeader

ROUNDS = 14
VICTIM = "bank-2"


class MortalStore(SealedStore):
    """An encrypted store whose process kills itself at some of its changes, before or after they are on the disk.

    The plan lies on the disk, so that it survives the death: the changes so far, and at which of them to die next.
    """

    EVERY = 16

    def plan(self, path):
        self.path = path
        if not path.exists():
            path.write_text(json.dumps({"changes": 0, "next": self.EVERY, "died": []}))
        return self

    def _change(self, act, key, *values):
        plan = json.loads(self.path.read_text())
        plan["changes"] += 1
        dies, after = plan["changes"] == plan["next"], plan["changes"] % 2 == 0
        if dies:
            plan["next"] += self.EVERY + len(plan["died"]) % 7  # never in step with the rounds
            plan["died"].append(f"{act.__name__} {key.split('/')[0]}/{'after' if after else 'before'}")
        self.path.write_text(json.dumps(plan))
        if dies and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        act(key, *values)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(self, key, value):
        self._change(super().put, key, value)

    def delete(self, key):
        if key in self.keys(key):
            self._change(super().delete, key)


def open_mortal(folder):
    store, key = folder / "state.db", open_or_make_key(folder / "store.key")
    if folder.name != VICTIM:
        return SealedStore(store, key)
    return MortalStore(store, key).plan(folder / "plan.json")


@pytest.fixture
def consortium(tiny, tiny_study, tiny_bases, tiny_tables):
    study = tiny_study.with_changes(rounds=ROUNDS)
    base, privacy = tiny_bases(study), study.privacy
    # Computed here once: every process that is started anew inherits what the accountant remembers.
    calibrate(epsilon=privacy.epsilon, delta=privacy.delta, sample_rate=privacy.sample_rate, steps=ROUNDS)
    # A reservation that a crash left without an update stays spent: the limit leaves room for some.
    policy = Policy(studies=frozenset({study.id}), epsilon_limit=100.0)
    members = [Member(name=name, rows=tiny_tables[name].rows, policy=policy) for name in tiny.NAMES]
    torch.set_num_threads(1)
    return LocalConsortium(
        study, members, make_model=base.model, layout=base.layout, workers=4, open_store=open_mortal
    )


def test_a_bank_that_is_killed_again_and_again_takes_part_to_the_end(consortium, tiny, monkeypatch):
    uploads, summaries, begin = {}, [], AggregationService.begin_upload

    def note(self, round_index, attempt, header):
        body = UploadHeader.decode(Envelope.decode(header).body)
        uploads.setdefault((body.sender, body.round, body.attempt), set()).add(header)
        return begin(self, round_index, attempt, header)

    monkeypatch.setattr(AggregationService, "begin_upload", note)
    with consortium:
        consortium.run(summaries.append)
        found = consortium.inspect_all()
        plan = json.loads((consortium._directory / VICTIM / "plan.json").read_text())
        ledgers = {name: (consortium._directory / name).glob("ledger-*.jsonl") for name in tiny.NAMES}
        spent = {name: tiny.kinds(next(found)) for name, found in ledgers.items()}
    assert [summary.round for summary in summaries] == list(range(1, ROUNDS + 1))
    assert consortium.replaced_workers == len(plan["died"]) >= 8
    assert len(set(plan["died"])) >= 6  # deaths at different writes, on either side of them
    assert len({inspection.digest for inspection in found.values()}) == 1
    assert all(len(headers) == 1 for headers in uploads.values())  # masks serve one upload
    assert sum(VICTIM in summary.contributors for summary in summaries) >= ROUNDS // 2
    # Never under-counted: every update that left was reserved; nobody else noticed anything.
    own = {at for at in uploads if at[0] == VICTIM}
    assert spent[VICTIM].count("reserve") >= len({number for _, number, _ in own})
    assert spent["bank-1"] == ["reserve", "commit"] * ROUNDS


def test_a_store_that_was_put_back_to_an_older_copy_is_noticed(consortium, tiny):
    """Its owner restores a backup of its folder between two rounds."""
    copies = {}

    def restore(summary):
        folder = consortium._directory / "bank-3"
        if summary.round == 2:
            copies.update({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        if summary.round == 5:
            host = consortium._host("bank-3")
            os.kill(host.process_id, signal.SIGKILL)
            host._process.join()
            for path in folder.iterdir():
                path.unlink()
            for name, data in copies.items():
                (folder / name).write_bytes(data)
                (folder / name).chmod(0o600)
        if summary.round == 7:
            raise errors.Interrupted("enough")

    seen = []
    with consortium:
        consortium._errors = _Noting(seen)
        with pytest.raises(errors.Interrupted):
            consortium.run(restore)
    assert any(type(error) is errors.StateRollback for error in seen)


class _Noting(list):
    """The consortium's list of errors, with a second reader that forgets nothing."""

    def __init__(self, seen):
        super().__init__()
        self._seen = seen

    def append(self, error):
        self._seen.append(error)
        super().append(error)
