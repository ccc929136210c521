"""Uploads without the protocol around them: real ciphertexts, and members that sign whatever header a test wants."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hansa.coordinator.ciphertext_adder import CiphertextAdder
from hansa.secure_agg.bfv import CiphertextSum, HeKey
from hansa.secure_agg.cohort import ciphertext_list_hash
from hansa.secure_agg.expected import ExpectedHeader
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.messages import UploadHeader, sign_message
from hansa.secure_agg.parameters import PLAIN_MODULUS, SLOTS, Terms

EPOCH = 1


def _sums_of(uploads: Iterable[list[bytes]]) -> list[bytes]:
    found = list(uploads)
    sums = [CiphertextSum() for _ in found[0]]
    for upload in found:
        for running, ciphertext in zip(sums, upload, strict=True):
            running.add(ciphertext)
    return [running.serialise() for running in sums]


def _send(sums: Any, upload: list[bytes], count: int | None = None) -> None:
    incoming = sums.open(len(upload) if count is None else count)
    try:
        for ciphertext in upload:
            incoming.write(ciphertext)
        incoming.commit()
    finally:
        incoming.discard()


class Senders:
    """Members that sign headers; they hold no key of an epoch."""

    def __init__(self, participants: int) -> None:
        self.names = tuple(f"bank-{index:03d}" for index in range(participants))
        self.identities = {name: Identity.generate() for name in self.names}
        self.roster = Roster(
            session_id=b"S" * 16,
            study_id=b"T" * 32,
            members=tuple((name, self.identities[name].public) for name in self.names),
        )
        self.terms = Terms(participants=participants)

    def expected(self, count: int) -> ExpectedHeader:
        hashes = dict.fromkeys(("cohort_hash", "he_key_id", "state_tag", "previous_transcript"), b"x" * 32)
        return ExpectedHeader(**hashes, ciphertext_count=count)

    def header(self, name: str, ciphertexts: list[bytes], **changes: Any) -> bytes:
        known = self.expected(max(len(ciphertexts), 1))
        fields = {
            "session": self.roster.session_id,
            "study": self.roster.study_id,
            "epoch": EPOCH,
            "sender": name,
            "round": 1,
            "attempt": 0,
            "ciphertext_list_hash": ciphertext_list_hash(ciphertexts),
            "ledger_head": bytes(40),
            **{field: getattr(known, field) for field in known.__slots__},
        }
        return sign_message(self.identities[name], UploadHeader(**(fields | changes)))


@pytest.fixture(scope="session")
def senders() -> type[Senders]:
    return Senders


@pytest.fixture(scope="session")
def adding() -> SimpleNamespace:
    """What a test of sums needs: `sums_of` uploads as they must be, and `send` for one upload."""
    return SimpleNamespace(sums_of=_sums_of, send=_send)


@pytest.fixture(scope="session")
def uploads() -> list[list[bytes]]:
    """Six uploads of three ciphertexts."""
    generator, key = np.random.default_rng(3), HeKey.generate()
    return [
        [key.encrypt(generator.integers(0, PLAIN_MODULUS, SLOTS, dtype=np.uint64)) for _ in range(3)]
        for _ in range(6)
    ]


@pytest.fixture
def adders(tmp_path: Any) -> Any:
    """Make adders, and end them after the test."""
    made: list[CiphertextAdder] = []

    def make(**arguments: Any) -> CiphertextAdder:
        made.append(CiphertextAdder(spool_folder=tmp_path, **arguments))
        return made[-1]

    yield make
    for adder in made:
        adder.close()


@pytest.fixture
def site(network: Any, senders: Any, adders: Any, tmp_path: Any, socket_enabled: Any) -> Any:
    """A coordinator of five members on loopback; see `Site`."""
    made = Site(network, senders(5), adders(), tmp_path)
    yield made
    made.close()


class Site:
    """A coordinator on loopback, the members' certificates, and clients for them; everything ends with the test."""

    def __init__(self, network: Any, members: Senders, adder: CiphertextAdder, folder: Any) -> None:
        self.network, self.members, self.adder, self.folder = network, members, adder, folder
        self.pki = network.Pki(folder / "pki")
        self.files = {name: self.pki.files(name) for name in members.names}
        self.server_files = self.pki.files("coordinator", hosts=["127.0.0.1", "localhost"])
        self.revoked: Any = None
        self.reported: list[Exception] = []
        self._open: list[Any] = []

    def service(self, count: int, *, attempt: int = 0, **options: Any) -> Any:
        """A service whose first round takes uploads of so many ciphertexts."""
        from hansa.coordinator.aggregator import AggregationService

        made = AggregationService(
            self.members.roster,
            self.members.terms,
            new_sums=self.adder.begin,
            results_folder=self.folder,
            **options,
        )
        made.begin(EPOCH, 1, attempt, self.members.names, self.members.expected(count))
        return made

    def plane(self, service: Any = None, *, port: int = 0, tls: Any = None, **limits: Any) -> Any:
        """Serve, under the limits given."""
        from hansa.coordinator.data_plane import DataPlane, DataPlaneLimits
        from hansa.federation.tls_files import TlsSource

        made = DataPlane(
            host="127.0.0.1",
            port=port,
            tls=tls or TlsSource(self.server_files),
            revoked=lambda: self.revoked,
            report=self.reported.append,
            limits=DataPlaneLimits(**limits),
        )
        if service is not None:
            made.aggregator.open_session(service, self.members.roster)
        made.__enter__()
        self._open.append(lambda: made.__exit__(None, None, None))
        return made

    def proxy(self, port: int, **cuts: Any) -> Any:
        """Stand between members and a port."""
        made = self.network.Proxy(port, **cuts)
        self._open.append(made.close)
        return made

    def channel(
        self, name: str, port: int, *, host: str = "127.0.0.1", files: Any = None, **patience: Any
    ) -> Any:
        """A member's channel; it gives up soon if the test does not say otherwise."""
        from hansa.federation.tls_files import TlsSource
        from hansa.participant.coordinator_channel import CoordinatorChannel, Patience

        given = {"deadline_seconds": 20.0, "first_pause_seconds": 0.05, "longest_pause_seconds": 0.2}
        made = CoordinatorChannel(
            f"{host}:{port}",
            tls=TlsSource(files or self.files[name]),
            participant=name,
            patience=Patience(**(given | patience)),
        )
        self._open.append(made.close)
        return made

    def client(self, name: str, port: int, **options: Any) -> Any:
        """A member's client."""
        from hansa.participant.aggregator_client import GrpcAggregatorClient

        return GrpcAggregatorClient(self.channel(name, port, **options), self.members.roster.session_id)

    def stub(self, name: str, port: int, files: Any = None) -> Any:
        """A bare stub under a member's certificate, for whoever does not keep to the rules."""
        import grpc

        from hansa.federation.aggregator_pb2_grpc import AggregatorStub
        from hansa.federation.tls_files import channel_credentials, read_tls

        credentials = channel_credentials(read_tls(files or self.files[name]))
        channel = grpc.secure_channel(
            f"127.0.0.1:{port}", credentials, options=[("grpc.max_send_message_length", 64 << 20)]
        )
        self._open.append(channel.close)
        return AggregatorStub(channel)

    def close(self) -> None:
        """End everything, the last one first."""
        while self._open:
            self._open.pop()()


def _long_upload(uploads: list[list[bytes]], number: int, count: int) -> list[bytes]:
    """A member's upload of any length, made of ciphertexts that exist."""
    distinct = [ciphertext for upload in uploads for ciphertext in upload]
    return [distinct[(number + index) % len(distinct)] for index in range(count)]


@pytest.fixture(scope="session")
def long_upload() -> Any:
    """Makes long uploads."""
    return _long_upload
