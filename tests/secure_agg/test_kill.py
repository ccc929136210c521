"""A member's process that ends by SIGKILL at every write of a round, before it and after it is on the disk.

The member runs in a process of its own on its encrypted store. Whenever it dies it is started again on that store and
asked again, as a coordinator would. Each round must end in the exact sum at everybody, and whatever left the member
must be one upload, one answer and one release for an attempt: no mask is used twice.
"""

import os
import signal
from multiprocessing import get_context

import numpy as np
import pytest

from hansa import errors
from hansa.participant.store import SealedStore
from hansa.secure_agg.messages import Envelope

VICTIM = "bank-000"
FORK = get_context("fork")


class MortalStore(SealedStore):
    """An encrypted store whose process kills itself at its k-th change."""

    def arm(self, changes, *, after):
        self.left, self.after = changes, after

    def _change(self, act, *values):
        self.left -= 1
        if self.left == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        act(*values)
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def put(self, key, value):
        self._change(super().put, key, value)

    def delete(self, key):
        if key in self.keys(key):
            self._change(super().delete, key)


class Victim:
    """The member, seen from the coordinator's process."""

    def __init__(self, members, path):
        self.members, self.path, self.starts = members, path, 0
        self.armed = (-1, True)

    def _serve(self, connection, armed):
        self.members.random_bytes = os.urandom  # a fork must not draw what its parent draws
        store = MortalStore(self.path, bytes(32))
        store.arm(armed[0], after=armed[1])
        machine = self.members.machine(VICTIM, store)
        while True:
            step, values = connection.recv()
            try:
                connection.send(("ok", getattr(self, f"_{step}")(machine, *values)))
            except errors.Error as error:
                connection.send(("error", type(error).__name__))

    @staticmethod
    def _upload(machine, at, packages, shares, state, levels):
        if machine.entered < at:
            machine.start(*at, packages, shares, model_hash=state[0], transcript=state[1])
        if machine.entered == at and machine.upload is not None:
            return machine.upload
        return machine.protect(levels)

    @staticmethod
    def _answer(machine, headers, aggregate):
        return machine.answer(headers, aggregate)

    @staticmethod
    def _consents(machine, headers, aggregate, consents):
        if not machine.answered:
            machine.answer(headers, aggregate)
        return machine.consents(consents)

    @staticmethod
    def _apply(machine, at, headers, aggregate, releases):
        if machine.entered == at and not machine.running:
            return None  # it had finished; the answer was lost
        if not machine.answered:
            machine.answer(headers, aggregate)
        opened = machine.unmask(releases)
        machine.finish(*at)
        return opened.total, opened.transcript

    @staticmethod
    def _packages(machine, handed_out):
        return machine.packages(handed_out)

    def _start(self):
        self.ours, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._serve, args=(theirs, self.armed), daemon=True)
        self.process.start()
        theirs.close()
        self.starts += 1
        self.armed = (-1, True)  # one death a round

    def stop(self):
        self.ours.close()
        self.process.kill()
        self.process.join()

    def ask(self, step, *values):
        """Ask the member; when it dies, start it again and ask again."""
        for _ in range(3):
            if self.starts == 0 or not self.process.is_alive():
                self._start()
            try:
                self.ours.send((step, values))
                kind, value = self.ours.recv()
            except (EOFError, ConnectionError):
                self.process.join()
                assert self.process.exitcode == -signal.SIGKILL
                continue
            if kind == "error":
                raise getattr(errors, value)(step)
            return value
        raise AssertionError("the member dies again and again")


def _play(members, victim, number, sent, *, full):
    """Play one round; a second attempt if the member has to abandon the first."""
    others = members.names[1:] if full else members.names[1:-1]
    for attempt in range(2):
        members.post(members.names[1:])
        for package in victim.ask("packages", members.board.handed_out(VICTIM)):
            members.board.accept(*package)
        round_ = members.begin_with_posted(number, attempt)
        round_.levels = members.levels(20, seed=number)
        for name in members.names[1:]:
            members.start(name, round_)
        for name in others:
            round_.aggregator.accept(*members.machines[name].protect(round_.levels[name]))
        at, state = (number, attempt), members.state[VICTIM]
        try:
            upload = victim.ask(
                "upload", at, round_.packages, round_.shares[VICTIM], state, round_.levels[VICTIM]
            )
        except (errors.UploadReuse, errors.StaleRound):
            continue  # it died between start and upload: the attempt is abandoned
        sent.setdefault(("upload", *at), set()).add(str(upload))
        round_.aggregator.accept(*upload)
        return round_, attempt
    raise AssertionError("both attempts were abandoned")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("full", [True, False], ids=["all there", "one missing"])
def test_killed_at_every_write_a_round_ends_in_the_exact_sum_and_nothing_leaves_twice(
    house, tmp_path, full, after
):
    members, outcomes = house(5), set()
    path = tmp_path / "state.db"
    with_epoch = SealedStore(path, bytes(32))
    for key in members.stores[VICTIM].keys(""):
        with_epoch.put(key, members.stores[VICTIM].get(key))
    with_epoch.close()
    victim, sent = Victim(members, path), {}
    try:
        for number in range(1, 40):
            if victim.starts:
                victim.stop()
            victim.starts, victim.armed = 0, (number, after)
            round_, attempt = _play(members, victim, number, sent, full=full)
            headers, aggregate = round_.aggregator.close()
            here = [name for name in round_.aggregator.contributors if name != VICTIM]
            answers = [victim.ask("answer", headers, aggregate)]
            answers += [members.machines[name].answer(headers, aggregate) for name in here]
            for answer in answers:
                round_.aggregator.accept_answer(answer)
            if not full:
                consents = round_.aggregator.consents()
                answers = [victim.ask("consents", headers, aggregate, consents)]
                answers += [members.machines[name].consents(consents) for name in here]
                for answer in answers:
                    round_.aggregator.accept_answer(answer)
            assert Envelope.decode(answers[0]).type == "release"
            sent.setdefault(("release", members.state[VICTIM][0]), set()).add(answers[0])
            releases = round_.aggregator.releases()
            applied = victim.ask("apply", (number, attempt), headers, aggregate, releases)
            for name in members.names[1:]:
                opened = members.catch_up(name, round_)
                np.testing.assert_array_equal(opened.total, round_.expected())
                members.finish(name, round_, opened)
            if applied is not None:
                np.testing.assert_array_equal(applied[0], round_.expected())
                assert applied[1] == members.state["bank-001"][1]
            members.state[VICTIM] = members.state["bank-001"]
            outcomes.add((attempt, victim.starts))
            if victim.starts == 1:  # no write left to die at
                break
    finally:
        victim.stop()
    assert number > 10  # so many writes a round has
    assert {(0, 2), (1, 2), (0, 1)} <= outcomes  # resumed, abandoned, and in the end not killed
    assert all(len(messages) == 1 for messages in sent.values())
