"""What travels through Flower's SuperLink, and in what form.

A message is one protobuf `Message` with its content inside. Flower's own tools put the content into an object store
beside it, for payloads of gigabytes, at about twenty HTTP calls for a message and its reply; ours are small
(ciphertexts take another way), and three calls do.

Each message names the session of its study, for one connection of a participant serves all its studies.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from hansa.errors import InvalidValue, MalformedMessage, MessageTooLarge

REPLY = "reply"
ABORTED = "aborted"  # what a member says of every failure that is not a refusal by its policy
SESSION = "session"
LOOK = "query.look"  # only to stock SuperNodes, which look for news when they are asked: `participant.stock_node`
MOST_MESSAGE_BYTES = 16 << 20
LONGEST_WAIT_SECONDS = 30.0
WAIT_HEADER = "hansa-wait-seconds"  # how long the TLS front may keep a node waiting that asks for messages
_SESSION_ID = re.compile(r"[0-9a-f]{32}")
_MESSAGE_ID = re.compile(r"[0-9a-f]{64}")
_PROJECT = b"""[project]
name = "empty"
version = "1"

[tool.flwr.app]
publisher = "hansa"

[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""


def _empty_bundle() -> bytes:
    """Make the archive that Flower wants for a run; stored uncompressed, so its bytes are the same everywhere."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        entry = zipfile.ZipInfo("pyproject.toml", (1980, 1, 1, 0, 0, 0))
        entry.create_system = 3
        bundle.writestr(entry, _PROJECT)
    return archive.getvalue()


# A run of Flower has a bundle of code. Ours holds none; a node answers only messages of runs with exactly this one.
EMPTY_BUNDLE = _empty_bundle()
EMPTY_BUNDLE_HASH = hashlib.sha256(EMPTY_BUNDLE).hexdigest()


def canonical_node_key(pem: bytes) -> bytes:
    """Give a Flower node key in the one PEM form that Flower sends it in.

    Raises:
        InvalidValue: It is not a public key on a NIST curve.
    """
    try:
        key = load_pem_public_key(pem)
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name.startswith("secp"):
            return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except Exception as error:  # whatever a parser raises on hostile bytes is the same to us
        raise InvalidValue("a Flower node key is not a PEM public key") from error
    raise InvalidValue("a Flower node key is not on one of the curves that Flower takes")


def node_number(node_key: bytes) -> int:
    """Give the number under which the grid addresses a node: from its key, so that it outlives every SuperLink."""
    return int.from_bytes(hashlib.sha256(node_key).digest()[:8], "big") >> 1 | 2


def with_session(message: Message, session: str) -> Message:
    """Add the session to a message, in place."""
    message.content = RecordDict(
        {**dict(message.content.items()), SESSION: ConfigRecord({"id": session})},
    )
    return message


def take_session(message: Message) -> str:
    """Take the session off a message, in place, and give its id as 32 hexadecimal digits.

    Raises:
        MalformedMessage: There is none.
    """
    record = message.content.config_records.get(SESSION) if message.has_content() else None
    found = record.get("id") if record is not None and set(record) == {"id"} else None
    if not isinstance(found, str) or not _SESSION_ID.fullmatch(found):
        raise MalformedMessage("a message names no session")
    message.content = RecordDict({name: value for name, value in message.content.items() if name != SESSION})
    return found


def to_proto(message: Message, message_id: str) -> ProtoMessage:
    """Give a message in the form in which it travels, its content inside."""
    proto = message_to_proto(message)
    proto.metadata.message_id = message_id
    return proto


def from_proto(proto: ProtoMessage, most_bytes: int = MOST_MESSAGE_BYTES) -> Message:
    """Read a message of the other side.

    Raises:
        MessageTooLarge: It has more than `most_bytes` bytes.
        MalformedMessage: It is not one with content or error inside, or its id is none.
    """
    if proto.ByteSize() > most_bytes:
        raise MessageTooLarge(f"a Flower message has {proto.ByteSize()} bytes, the bound is {most_bytes}")
    if not _MESSAGE_ID.fullmatch(proto.metadata.message_id):
        raise MalformedMessage("a Flower message has no id of 64 hexadecimal digits")
    try:
        message = message_from_proto(proto)
    except Exception as error:  # whatever Flower's parser raises on hostile bytes is the same to us
        raise MalformedMessage("a Flower message is not well-formed") from error
    if message.has_content() == message.has_error():
        raise MalformedMessage("a Flower message has no content inside, or content and an error")
    return message


class SessionGrid(Grid):
    """A grid whose messages name the session of one study.

    Args:
        grid: The grid that all studies of a coordinator share.
        session: Session id, 32 hexadecimal digits.

    Guarantees:
        - Every message that is pushed names the session, once; nothing else of it changes.
    """

    def __init__(self, grid: Grid, session: str) -> None:
        if not _SESSION_ID.fullmatch(session):
            raise InvalidValue(f"a session id has 32 hexadecimal digits, not {session[:40]!r}")
        self._grid, self._session = grid, session

    def set_run(self, run: Run) -> None:
        """See the shared grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See the shared grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message (deprecated in Flower; `Message` does the same)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """List the nodes that are there."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages that name the session."""
        return self._grid.push_messages([with_session(message, self._session) for message in messages])

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give the replies that have come for these ids, each once."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages that name the session and wait for their replies."""
        named = [with_session(message, self._session) for message in messages]
        return self._grid.send_and_receive(named, timeout=timeout)
