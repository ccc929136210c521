"""What a node keeps on its store beside the protocol's own records, and reads back after a crash.

    node/state     shared model state, own confirmation of the last round, what its end still waits for
    node/update    quantised update of the round in progress and its support, by the model state that it was trained from

The update is kept from the moment it is trained until its round is applied: a crash, or another attempt at the
round, sends the same noised values under other masks. Nothing is trained twice, noised twice or charged twice.
"""

from dataclasses import asdict, dataclass
from typing import Any

import cbor2
import numpy as np
from numpy.typing import NDArray

from hansa.errors import StoreDamaged
from hansa.participant.shared_state import SharedState
from hansa.privacy.budget import Spending
from hansa.secure_agg.store import Store

_STATE, _UPDATE = "node/state", "node/update"
_VECTORS = ("values", "first", "second", "decay_first", "decay_second")


@dataclass(kw_only=True, slots=True)
class Progress:
    """How far a node is with the round that it applied last.

    Attributes:
        result: Its signed confirmation of that round; empty before any, and after a void round.
        roster_hash: The roster whose sum was applied, 32 bytes; empty before any.
        awaits_close: Round and attempt whose confirmations it has not compared yet.
        diverged: Whether members were found to hold different states: no later round is entered then.
        epoch_rounds: Rounds applied when the running epoch was entered.
        contributors: Members whose updates are in the sum that was applied, if this one's is; 0 otherwise, and after a void round.
    """

    result: bytes = b""
    roster_hash: bytes = b""
    awaits_close: tuple[int, int] | None = None
    diverged: bool = False
    epoch_rounds: int = 0
    contributors: int = 0


def save_state(store: Store, state: SharedState, progress: Progress) -> None:
    """Write state and progress in one step."""
    vectors = {name: getattr(state, name).astype("<f8").tobytes() for name in _VECTORS}
    record = {**vectors, "round": state.round, "transcript": state.transcript, "progress": asdict(progress)}
    store.put(_STATE, cbor2.dumps(record))


def load_state(store: Store, initial: SharedState) -> tuple[SharedState, Progress]:
    """Read state and progress, or give the initial state where nothing was written.

    Raises:
        StoreDamaged: The record belongs to a model with another number of trained entries.
    """
    data = store.get(_STATE)
    if data is None:
        return initial, Progress()
    record: dict[str, Any] = cbor2.loads(data)
    vectors = {name: np.frombuffer(record[name], dtype="<f8").astype(np.float64) for name in _VECTORS}
    if vectors["values"].shape != initial.values.shape:
        raise StoreDamaged(
            f"the store holds a state of {vectors['values'].size} entries, the study trains {initial.values.size}"
        )
    state = SharedState(values=vectors["values"], round=record["round"], transcript=record["transcript"])
    for name in _VECTORS[1:]:
        setattr(state, name, vectors[name])
    progress = record["progress"]
    waits = progress["awaits_close"]
    return state, Progress(**progress | {"awaits_close": waits and (waits[0], waits[1])})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class TrainedUpdate:
    """A round's update, noised and quantised, and what it cost.

    Attributes:
        model_hash: The model state that it was trained from, 32 bytes.
        support: (m,) ascending positions that it was trained on.
        levels: (m,) int64.
        spending: The reservation that paid for it.
    """

    model_hash: bytes
    support: NDArray[np.int64]
    levels: NDArray[np.int64]
    spending: Spending

    def levels_on(self, support: NDArray[np.int64]) -> NDArray[np.int64]:
        """Give the levels on another support of the same size: 0 for an entry that was not trained.

        The keys of an epoch choose what a round explores, and new ones may come between two attempts. Moving what was
        noised and paid for costs nothing; training anew would be a second draw of the noise over one model state.
        """
        places = np.minimum(np.searchsorted(self.support, support), self.support.size - 1)
        return np.where(self.support[places] == support, self.levels[places], 0)


def save_update(store: Store, update: TrainedUpdate) -> None:
    """Write a round's update; it takes the place of an earlier one."""
    record = {
        "model": update.model_hash,
        "support": update.support.astype("<i8").tobytes(),
        # At most 20 bits, but for distributed noise, which bounds nothing.
        "levels": update.levels.astype("<i4" if update.spending.distributed is None else "<i8").tobytes(),
        "spending": update.spending.fields(),
    }
    store.put(_UPDATE, cbor2.dumps(record))


def load_update(store: Store, model_hash: bytes | None = None) -> TrainedUpdate | None:
    """Read the update that was kept; with a model hash, only if it was trained from that state."""
    data = store.get(_UPDATE)
    if data is None:
        return None
    record: dict[str, Any] = cbor2.loads(data)
    if model_hash is not None and record["model"] != model_hash:
        return None
    spending = Spending.of_fields(record["spending"])
    levels = np.frombuffer(record["levels"], dtype="<i4" if spending.distributed is None else "<i8")
    return TrainedUpdate(
        model_hash=record["model"],
        support=np.frombuffer(record["support"], dtype="<i8").astype(np.int64),
        levels=levels.astype(np.int64),
        spending=spending,
    )


def drop_update(store: Store) -> None:
    """Forget the update; its round is over."""
    store.delete(_UPDATE)
