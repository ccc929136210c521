"""What a participant's node is made of, and what its steps have in common: recovery, order, keeping the state."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hansa.errors import (
    KeyRotationDue,
    OutOfOrder,
    StaleRound,
)
from hansa.federation.agreements import terms_of
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.local_update import Clock, LocalUpdates
from hansa.participant.membership import Credentials, Membership
from hansa.participant.node_state import (
    load_state,
    save_state,
)
from hansa.participant.policy import Policy
from hansa.participant.round_rosters import RoundRosters
from hansa.participant.seen_heads import (
    head_of_header,
    heads_apart,
    keep_heads,
    kept_heads,
    seen_head_as_json,
)
from hansa.participant.shared_state import SharedState, result_of
from hansa.participant.trainer import Rows
from hansa.privacy.budget import Budget
from hansa.privacy.data_identity import ledger_path
from hansa.privacy.ledger import LedgerOwner
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.participant import RoundMachine
from hansa.secure_agg.recovery import Leaves
from hansa.secure_agg.store import Store
from hansa.secure_agg.unmasking import Opened
from hansa.study import Study

Packages = list[tuple[bytes, list[bytes]]]


class AggregatorClient(Protocol):
    """How a participant reaches the aggregator."""

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Sequence[bytes]) -> None:
        """Send the signed header and the ciphertexts, which may be read more than once."""

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Receive the signed headers of the roster and the aggregate's ciphertexts; both are untrusted."""

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        """Receive the leaves of a dealer's package, joined in roster order; untrusted."""


class NodeCore:
    """The parts of a participant, put together on its store; `node.ParticipantNode` documents arguments and adds the steps."""

    def __init__(
        self,
        *,
        name: str,
        identity: Identity,
        study: Study,
        policy: Policy,
        roster: Roster,
        store: Store,
        model: FeatureTransformer,
        layout: TrainableLayout,
        rows: Rows,
        data_commitment: bytes,
        state_directory: Path,
        aggregator: AggregatorClient,
        random: SecretRandom | None = None,
        credentials: Callable[[], Credentials] = Credentials,
        model_hash: str | None = None,
        submitter: str | None = None,
    ) -> None:
        self.name, self._study, self._policy = name, study, policy
        self._roster, self._store, self._aggregator = roster, store, aggregator
        self._base_model, self._submitter = model_hash, submitter
        random = SecretRandom() if random is None else random
        self._terms, self._clock = terms_of(study), Clock()
        self.updates = LocalUpdates(
            study=study,
            model=model,
            layout=layout,
            packing=self._terms.layout,
            rows=rows,
            ledger=ledger_path(state_directory, data_commitment),
            owner=LedgerOwner(
                participant=name,
                public_key=identity.public,
                data=data_commitment,
                sign=identity.sign,
                unit=study.privacy.unit,
            ),
            epsilon_limit=policy.epsilon_limit,
            store=store,
            random=random,
            clock=self._clock,
        )
        self.membership = Membership(
            participant=name,
            identity=identity,
            roster=roster,
            terms=self._terms,
            store=store,
            random_bytes=random.bytes,
            credentials=credentials,
        )
        self.rosters = RoundRosters(state_directory, study.id)
        self._start = layout.gather(model)
        self.state, self._progress = load_state(store, SharedState(values=self._start.copy()))
        self.faulty_holders: set[str] = set()
        self._verify_ledger_not_older()
        self._recover()

    def _verify_ledger_not_older(self) -> None:
        """Check that the ledger continues the longest head of it that this participant has signed in this study.

        Raises:
            LedgerDamaged: It is an older copy, or another one; what was spent is not known.
        """
        signed = kept_heads(self._store).get(self.name)
        if signed is not None:
            self.updates.budget.verify_continues(*head_of_header(signed))

    def _recover(self) -> None:
        """Finish what a crash left half done: a round whose new state was kept, but whose attempt was not closed."""
        if self.membership.has_entered:
            machine = self.membership.entered[1]
            if machine.running and machine.entered[0] <= self.state.round:
                machine.finish(*machine.entered)
        self.updates.settle(self.state.round, self._progress.contributors)

    # -- inside ------------------------------------------------------------------------------------------

    def _leaves(self, round_index: int, attempt: int) -> Leaves:
        """Give the way to the leaves of a package; it is taken only if somebody released a wrong share."""
        return partial(self._aggregator.package_leaves, round_index, attempt)

    def _applied(
        self, machine: RoundMachine, round_index: int, attempt: int, opened: Opened
    ) -> tuple[bytes, Packages]:
        with self._advancing():
            self._clock.timed("apply", lambda: self._apply(round_index, opened))
            result = machine.confirm(opened, self._model_hash())
            self._progress = replace(
                self._progress,
                result=result,
                roster_hash=opened.roster_hash,
                awaits_close=(round_index, attempt),
                contributors=self._contributors(opened),
            )
        self._finish(machine, round_index, attempt)
        return result, machine.packages()

    def _apply(self, round_index: int, opened: Opened) -> None:
        """Take the optimizer step, in memory."""
        self.faulty_holders.update(opened.faulty_holders)
        self.rosters.note_sum(round_index, self._roster.participants, opened.contributors)
        self.updates.apply(self.state, round_index, opened, self._group_key())

    def _contributors(self, opened: Opened) -> int:
        """Members whose updates are in a sum, if the own one is: its noise and its data are in the same sum or in none."""
        return len(opened.contributors) if self.name in opened.contributors else 0

    @contextmanager
    def _advancing(self) -> Iterator[None]:
        """Make the state that is reached inside durable. What cannot be kept was not done: it is asked for again."""
        before = deepcopy(self.state), self._progress
        try:
            yield
            self._clock.timed("keep the state", lambda: save_state(self._store, self.state, self._progress))
        except BaseException:
            self.state, self._progress = before
            raise

    def _finish(self, machine: RoundMachine, round_index: int, attempt: int) -> None:
        """Close a round whose new state is durable: attempt, ledger, update. See `_recover`."""
        machine.finish(round_index, attempt)
        self.updates.settle(self.state.round, self._progress.contributors)

    def _verify_study(self) -> None:
        self._policy.verify_study(self._study, model_hash=self._base_model, submitter=self._submitter)

    def _verify_next(self, round_index: int) -> None:
        expected = self.state.round + 1
        if self._progress.diverged:
            raise OutOfOrder(f"round {round_index} was asked for after members held different states")
        if round_index < expected:
            raise StaleRound(f"round {round_index} is over, the next one is {expected}")
        if self._progress.awaits_close is not None:
            raise OutOfOrder(f"round {round_index} was asked for before round {self.state.round} was closed")
        if round_index > expected or round_index > self._study.training.rounds:
            raise OutOfOrder(
                f"round {round_index} is not the next one, {expected} of {self._study.training.rounds}"
            )
        most = self._study.aggregation.rounds_per_epoch
        if most and self.state.round - self._progress.epoch_rounds >= most:
            raise KeyRotationDue(
                f"the keys of this epoch have served the {most} rounds that the study allows"
            )

    def _running(self, round_index: int, attempt: int) -> RoundMachine:
        machine = self.membership.entered[1]
        if machine.entered != (round_index, attempt) or not machine.running:
            raise OutOfOrder(f"round {round_index} attempt {attempt} is not the one that was trained")
        return machine

    def _answer(self, machine: RoundMachine, round_index: int, attempt: int) -> bytes:
        headers, aggregate = self._clock.timed(
            "download", lambda: self._aggregator.download(round_index, attempt)
        )
        signed = self._clock.timed("answer", lambda: machine.answer(headers, aggregate))
        keep_heads(self._store, headers)
        return signed

    def _answered(self, round_index: int, attempt: int) -> RoundMachine:
        """Give the machine, which after a restart has to see its roster again: it gives the same answer."""
        machine = self._running(round_index, attempt)
        if not machine.answered and machine.locked:
            self._answer(machine, round_index, attempt)
        return machine

    def _model_hash(self) -> bytes:
        return self.state.digest(self._study.id)

    def _group_key(self) -> bytes:
        return self.membership.entered[0].group_key

    def use_policy(self, policy: Policy) -> None:
        """Go by other rules of the owner from the next step on."""
        self._policy = policy
        self.updates.budget.epsilon_limit = policy.epsilon_limit

    @property
    def is_finished(self) -> bool:
        """Whether all rounds of the study are applied and closed."""
        return self.state.round >= self._study.training.rounds and self._progress.awaits_close is None

    def result(self) -> NDArray[np.float64]:
        """Give the trained vector that the study leaves behind, (P,), or would if it ended now; see `shared_state.result_of`."""
        return result_of(self._start, self.state.values, self._study)

    @property
    def budget(self) -> Budget:
        """The privacy budget of this participant's data set."""
        return self.updates.budget

    @property
    def noise_multiplier(self) -> float:
        """σ of this study."""
        return self.updates.noise_multiplier

    def seen_heads(self) -> list[dict[str, Any]]:
        """Give the longest ledger head that each member has signed, for `hansa audit verify --head`."""
        keys = dict(self._roster.members)
        return [seen_head_as_json(header, keys[name]) for name, header in kept_heads(self._store).items()]

    @property
    def rewound_ledgers(self) -> tuple[str, ...]:
        """Members whose signed headers contradict each other about what they had spent; the headers are on the store."""
        return tuple(sorted(heads_apart(self._store)))

    def step_seconds(self) -> Mapping[str, float]:
        """Wall seconds spent in each step so far; for the owner only: they tell about the number of records."""
        return self._clock.seconds()
