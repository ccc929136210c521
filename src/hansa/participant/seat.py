"""A participant's seat in one study that was started: its node, made on its own encrypted store, and what answers for it."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from hansa.errors import Error, OutOfOrder, PolicyFileMissing, StoreInUse
from hansa.federation.agreements import roster_of
from hansa.federation.files import make_folder
from hansa.models.base_files import load_base
from hansa.models.saving import save_model
from hansa.participant.aggregator_client import GrpcAggregatorClient
from hansa.participant.app import make_client_app
from hansa.participant.coordinator_channel import CoordinatorChannel
from hansa.participant.data_rows import open_data
from hansa.participant.dataset_file import load_datasets
from hansa.participant.home import ParticipantHome
from hansa.participant.membership import Credentials
from hansa.participant.metrics import EpsilonStanding
from hansa.participant.node import ParticipantNode
from hansa.participant.policy import Policy
from hansa.participant.policy_file import load_policy
from hansa.participant.registered_data import note_ledger
from hansa.participant.session_apps import aborted
from hansa.participant.store import SealedStore, open_or_make_key
from hansa.participant.study_desk import DeskStudy, policy_for, verify_allowed
from hansa.secure_agg.certificates import utc_now


class Seat:
    """A node and its store.

    Args:
        home: The participant's home.
        study: The study, with its start.
        folder: The study's own folder.
        base: File of the base model, whole and of the agreed hash.
        channel: Way to the aggregator.
        report: Receives every error of the node in full, for the participant's own log.

    Raises:
        OutOfOrder: The study was not started.
        PolicyRefusal: The data set's policy does not allow it, or there is none.
        CheckpointError: The base is not the one that was agreed on.
        DataError, ConfigurationError: The data set cannot be read, or does not fit.
        StoreInUse, StoreDamaged: The store of the node cannot be opened.

    Guarantees:
        - Roster, study and base are those of the documents that this participant approved.
        - No record is read before the policy has allowed the study.
        - One request is answered at a time, none after `close`, and whoever reads a policy or gets up need not wait for it.
        - An epoch is joined with the certificate in use at that moment, and without whoever the latest revocation list names.
    """

    def __init__(
        self,
        home: ParticipantHome,
        study: DeskStudy,
        *,
        folder: Path,
        base: Path,
        channel: CoordinatorChannel,
        report: Callable[[Error], None],
    ) -> None:
        if study.start is None:
            raise OutOfOrder(f"the study {study.name!r} was not started")
        self.study, self._home, self._folder = study, home, folder
        self._lock, self._is_closed = threading.Lock(), False
        self._noted, self._report = 0, report
        self._next_policy: Policy | None = None
        self._standing: tuple[object, tuple[EpsilonStanding, ...]] = (None, ())
        body, self._agreement = study.proposal.body, study.proposal.body.agreement()
        self._policy = policy = seat_policy(home.folder, study)
        verify_allowed(policy, study)
        loaded = load_base(base, self._agreement, sha256=body.base_model.hex())
        data = open_data(
            home.folder, study.data_set, self._agreement, loaded.encoder, time=utc_now().timestamp()
        )
        self.notes = tuple(note.code for note in data.notes)
        self._layout, self._model = loaded.base.layout, loaded.base.model()
        members = [(member.name, member.identity) for member in study.start.body.roster]
        make_folder(folder)
        self._store = SealedStore(folder / "node.store", open_or_make_key(folder / "node.key"))
        try:
            self.node = ParticipantNode(
                name=home.name,
                identity=home.identity(),
                study=self._agreement,
                policy=policy,
                roster=roster_of(self._agreement, body.session_id, members, home.consortium.authority),
                store=self._store,
                model=self._model,
                layout=self._layout,
                rows=data.rows,
                data_commitment=data.data_commitment,
                state_directory=home.folder,
                aggregator=GrpcAggregatorClient(channel, body.session_id),
                credentials=self._credentials,
                model_hash=body.base_model.hex(),
                submitter=body.author,
            )
        except BaseException:
            self._store.close()
            raise
        self._app: Any = make_client_app(self.node, report=report)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a request, one at a time."""
        with self._lock:
            if self._is_closed:
                return aborted(message)
            self._take_policy()
            answer: Message = self._app(message, context)
            self._note_ledger()
            return answer

    def _note_ledger(self) -> None:
        """Tell the register how far the ledger has come; where it is in use, with the next request."""
        head = self.node.budget.head
        if head is not None and head.size > self._noted:
            try:
                note_ledger(self._home.folder, self.study.data_set, head)
                self._noted = head.size
            except StoreInUse:
                pass
            except Error as error:  # what was done stands, and so does its answer
                self._report(error)

    @property
    def rounds_done(self) -> int:
        """Rounds that are applied."""
        return self.node.state.round

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are applied and closed."""
        return self.node.is_finished

    def use_policy(self) -> None:
        """Read the data set's policy again; the next request is checked against it. Raises as `load_policy`."""
        self._next_policy = seat_policy(self._home.folder, self.study)
        if self._lock.acquire(blocking=False):  # otherwise the next request begins with it
            try:
                self._take_policy()
            finally:
                self._lock.release()

    def _take_policy(self) -> None:
        policy, self._next_policy = self._next_policy, None
        if policy is not None:
            self._policy = policy
            self.node.use_policy(policy)

    def epsilon(self) -> tuple[EpsilonStanding, ...]:
        """Tell what the data set has spent; as it was told last while a request is being answered, for that may take long."""
        if not self._lock.acquire(blocking=False):
            return self._standing[1]
        try:
            budget, policy = self.node.budget, self._policy
            found = (policy, tuple(budget.spent()))
            if found != self._standing[0]:  # composing takes a while, and there is news once a round
                of_study = budget.epsilon(study=self._agreement.id)
                self._standing = (
                    found,
                    (
                        EpsilonStanding(scope="for_ever", spent=budget.epsilon(), limit=policy.epsilon_limit),
                        EpsilonStanding(scope="study", spent=of_study, limit=policy.epsilon_per_study),
                    ),
                )
            return self._standing[1]
        finally:
            self._lock.release()

    def save_model(self) -> Path:
        """Write the model that the study has trained so far; raises OutputNotWritable."""
        with self._lock:
            return self._save_model()

    def _save_model(self) -> Path:
        state = self.node.state
        self._layout.load(self._model, self.node.result())
        training = {
            "study": self._agreement.id,
            "session": self.study.session,
            "rounds": state.round,
            "state": state.digest(self._agreement.id).hex(),
        }
        save_model(self._model, self._folder / "model", training=training)
        return self._folder / "model"

    def _credentials(self) -> Credentials:
        home = self._home
        return Credentials(certificate=home.enrolment().body.identity_certificate, revoked=home.revocations())

    def close(self, *, wait: bool = True, keep_model: bool = False) -> bool:
        """Close the store, after the request that is being answered.

        Args:
            wait: Whether to wait for that request; a local step may take long.
            keep_model: Whether to write the model of the rounds that are applied, if there are any.

        Returns:
            Whether the store is closed.

        Raises:
            OutputNotWritable: The model cannot be written; the store is open.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            if keep_model and self.rounds_done and not self._is_closed:
                self._save_model()
            self._is_closed = True
            self._store.close()
        finally:
            self._lock.release()
        return True


def seat_policy(home: Path, study: DeskStudy) -> Policy:
    """Read the policy of the data set that serves a study.

    Raises:
        PolicyFileMissing: The data set names no policy, and so allows nothing.
        ConfigurationError: See `load_datasets` and `load_policy`.
    """
    return policy_for(data_set_policy(home, study.data_set), study)


def data_set_policy(home: Path, data_set: str) -> Policy:
    """Read the policy of a data set; raises as `seat_policy`."""
    entry = load_datasets(home).named(data_set)
    if entry.policy is None:
        raise PolicyFileMissing(
            f"data set {data_set!r} names no policy, and so allows no study",
            hint="write a policy.toml and name it in datasets.toml; examples/bank has one",
        )
    return load_policy(home / entry.policy)
