"""The participants of one worker process of the embedded consortium, each with a folder of its own.

A participant's identity, its protocol state and its model state are in its encrypted store: `restart` makes it anew from
there, as a new process does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict

from hansa.errors import Error
from hansa.local_grid import RUN_ID, from_bytes, to_bytes
from hansa.local_host import Parent, Service, error_values
from hansa.local_uplink import send_upload
from hansa.models.trainable import TrainableLayout
from hansa.models.transformer import FeatureTransformer
from hansa.participant.app import make_client_app
from hansa.participant.membership import Credentials
from hansa.participant.node import ParticipantNode
from hansa.participant.policy import Policy
from hansa.participant.registered_data import register_data
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.participant.trainer import Rows
from hansa.privacy.data_identity import persons_of_rows, row_units
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.store import Store
from hansa.study import Study

_IDENTITY = "node/identity"


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A participant to be: its name, its private records, its rules."""

    name: str
    rows: Rows
    policy: Policy


class PipeAggregator:
    """A participant's way to the aggregation service: through the worker's pipe."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Any) -> None:
        """Send an upload, one ciphertext a frame."""
        send_upload(self._parent, round_index, attempt, header, ciphertexts)

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        """Receive headers and aggregate."""
        headers, aggregate = self._parent.call("download", round_index, attempt)
        return headers, aggregate

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        """Receive the leaves of a dealer's package."""
        leaves: bytes = self._parent.call("package_leaves", round_index, attempt, dealer)
        return leaves


class Seats:
    """The participants of one worker process; lives in the worker."""

    def __init__(
        self,
        study: Study,
        members: Sequence[Member],
        make_model: Callable[[], FeatureTransformer],
        layout: TrainableLayout,
        directory: Path,
        parent: Parent,
        open_store: Callable[[Path], SealedStore],
    ) -> None:
        self._study, self._make_model, self._layout = study, make_model, layout
        self._members = {member.name: member for member in members}
        self._directory, self._parent, self._open_store = directory, parent, open_store
        self._stores: dict[str, SealedStore] = {}
        self._nodes: dict[str, ParticipantNode] = {}
        self._apps: dict[str, Any] = {}

    def operations(self) -> dict[str, Service]:
        """Give what the parent may call."""
        return {
            "enrol": self.enrol,
            "install": self.install,
            "restart": self.restart,
            "message": self.message,
            "inspect": self.inspect,
        }

    def enrol(self, name: str) -> tuple[bytes, bytes]:
        """Make the participant's identity where it is used; only its public key and a request for a certificate leave."""
        identity = self._identity(name)
        return identity.public, identity.request_certificate(name)

    def _identity(self, name: str) -> Identity:
        """Give the participant's identity, made and kept in its store at the first call."""
        if name not in self._stores:
            state_directory = self._directory / name
            state_directory.mkdir(mode=0o700, exist_ok=True)
            self._stores[name] = self._open_store(state_directory)
        store: Store = self._stores[name]
        secret = store.get(_IDENTITY)
        if secret is None:
            secret = Identity.generate().export()
            store.put(_IDENTITY, secret)
        return Identity.load(secret)

    def install(
        self, name: str, session_id: bytes, members: list[list[Any]], authority: bytes, certificate: bytes
    ) -> None:
        """Pin roster and authority at the participant, give it its certificate, and make its node on its store."""
        member = self._members[name]
        pinned = [(str(n), bytes(key)) for n, key in members]
        self._nodes[name] = ParticipantNode(
            name=name,
            identity=self._identity(name),
            study=self._study,
            policy=member.policy,
            roster=roster_of(self._study, session_id, pinned, authority),
            store=self._stores[name],
            model=self._make_model(),
            layout=self._layout,
            rows=member.rows,
            data_commitment=register_data(self._directory / name, units_of(member.rows, self._study)),
            state_directory=self._directory / name,
            aggregator=PipeAggregator(self._parent),
            credentials=lambda: Credentials(certificate=certificate),
        )
        self._apps[name] = make_client_app(self._nodes[name], report=self._report)

    def restart(self, name: str, *installed: Any) -> None:
        """Forget the participant and make it anew from its folder; as `install`."""
        self._nodes.pop(name, None)
        store = self._stores.pop(name, None)
        if store is not None:
            store.close()
        self.install(name, *installed)

    def message(self, name: str, message: bytes) -> bytes:
        """Let the participant's ClientApp answer a message."""
        context = context_of_run()
        return to_bytes(self._apps[name](from_bytes(message), context))

    def inspect(self, name: str) -> dict[str, Any]:
        """Show the participant's state to the evaluator."""
        node = self._nodes[name]
        return {
            "digest": node.state.digest(self._study.id),
            "values": node.result().astype("<f8").tobytes(),
            "epsilon": node.budget.epsilon(),
            "noise_multiplier": node.noise_multiplier,
            "seconds": dict(node.step_seconds()),
        }

    def _report(self, error: Error) -> None:
        """Show a participant's error to whoever runs the demonstration; the coordinator gets its code only."""
        self._parent.call("report", *error_values(error))


def units_of(rows: Rows, study: Study) -> list[bytes]:
    """Give the keys of a participant's units. Only encoded rows are here; a connector to an institution's table has its keys."""
    keys = row_units(rows.features.numpy(), rows.labels.numpy())
    if study.privacy.unit == "record" or rows.persons is None:
        return keys
    return persons_of_rows(keys, rows.persons.numpy())


def open_sealed_store(folder: Path) -> SealedStore:
    """Open the encrypted store in a member's folder.

    Its key lies beside it here: whoever runs the demonstration has both. At an institution the key file belongs where
    backups of the store do not reach it.
    """
    return SealedStore(folder / "state.db", open_or_make_key(folder / "store.key"))


def roster_of(
    study: Study, session_id: bytes, members: Sequence[tuple[str, bytes]], authority: bytes
) -> Roster:
    """Make the roster of a session of a study."""
    study_id = bytes.fromhex(study.id)
    return Roster(session_id=session_id, study_id=study_id, members=tuple(members), authority=authority)


def context_of_run() -> Context:
    """Make the context that Flower would hand to an app."""
    return Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
