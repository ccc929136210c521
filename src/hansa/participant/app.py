"""The participant as a Flower `ClientApp`: handlers that pass messages to the node and its answers back.

Only this file of the room knows Flower. A request holds round and attempt and signed messages of other members; every reply is
one config record. A failure, foreseen or not, leaves as one word: what went wrong stays with the participant.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import ConfigRecord, ConfigRecordValues, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa.errors import Error, InternalFailure, MalformedMessage, ReleaseNotAgreed
from hansa.federation.fleet_messages import REPLY
from hansa.participant.node import ParticipantNode
from hansa.participant.node_core import Packages
from hansa.participant.outputs import code_of, verify_reply

REQUEST = "request"
MOST_MEMBERS = 258
MOST_ROUNDS = 2**31 - 1
MOST_ATTEMPTS = 2**16 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request of the coordinator, checked for form only: a number, an attempt, lists of byte strings."""

    round: int
    attempt: int
    lists: Mapping[str, list[bytes]]


Fields = dict[str, ConfigRecordValues]
Step = Callable[[ParticipantNode, Request], Fields]


def _request(message: Message, lists: tuple[str, ...]) -> Request:
    """Take the one record out of a message; it holds round, attempt and the lists named."""
    if not message.has_content() or set(message.content.keys()) != {REQUEST}:
        raise MalformedMessage(f"a request holds one record, {REQUEST!r}")
    record = message.content.config_records.get(REQUEST)
    if record is None or set(record.keys()) != {"round", "attempt", *lists}:
        raise MalformedMessage(f"a request holds exactly {', '.join(('round', 'attempt', *lists))}")
    return Request(
        round=_number(record, "round", MOST_ROUNDS),
        attempt=_number(record, "attempt", MOST_ATTEMPTS),
        lists={key: _signed(record, key, 1 if key == "deal" else MOST_MEMBERS) for key in lists},
    )


def _number(record: ConfigRecord, key: str, most: int) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedMessage(f"{key} of a request is not an integer from 0 to {most}")
    return value


def _signed(record: ConfigRecord, key: str, most: int = MOST_MEMBERS) -> list[bytes]:
    value = record.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise MalformedMessage(f"{key} of a request is not a list of 1 to {most} signed messages")
    messages = [item for item in value if isinstance(item, bytes)]
    if len(messages) != len(value):
        raise MalformedMessage(f"{key} of a request holds something that is not bytes")
    return messages


def _with_packages(packages: Packages, **signed: bytes) -> Fields:
    """Lay packages side by side: the signed ones, then all posted shares in order."""
    shares = [share for _, sealed in packages for share in sealed]
    return {"packages": [package for package, _ in packages], "shares": shares, **signed}


def _opened(result: bytes, packages: Packages) -> Fields:
    return _with_packages(packages, result=result)


def _closed(node: ParticipantNode, request: Request) -> Fields:
    node.close(request.round, request.attempt, request.lists["results"])
    return {"closed": True}


# Each step: the lists of signed messages that its request holds beside round and attempt, and what it calls. Where an epoch is
# set up, the round is the epoch's number; where packages are asked for, that of the last one which was handed out.
_STEPS: dict[str, tuple[tuple[str, ...], Step]] = {
    "query.join": ((), lambda n, q: {"join": n.join(q.round)}),
    "query.deal": (("joins",), lambda n, q: {"deal": n.deal(q.lists["joins"])}),
    "query.vote": (("joins", "deal"), lambda n, q: {"vote": n.vote(q.lists["joins"], q.lists["deal"][0])}),
    "query.enter": (("votes",), lambda n, q: _with_packages(n.enter(q.lists["votes"]))),
    "query.packages": ((), lambda n, q: _with_packages(n.packages(q.round))),
    "train": (
        ("packages", "shares"),
        lambda n, q: {"header": n.train(q.round, q.attempt, q.lists["packages"], q.lists["shares"])},
    ),
    "query.answer": ((), lambda n, q: {"answer": n.answer(q.round, q.attempt)}),
    "query.consents": (
        ("consents",),
        lambda n, q: {"answer": n.consents(q.round, q.attempt, q.lists["consents"])},
    ),
    "query.unmask": (
        ("releases",),
        lambda n, q: _opened(*n.unmask(q.round, q.attempt, q.lists["releases"])),
    ),
    "query.void": ((), lambda n, q: {"void": n.void(q.round, q.attempt)}),
    "query.skip": (("voids",), lambda n, q: _with_packages(n.skip(q.round, q.attempt, q.lists["voids"]))),
    "query.open": ((), lambda n, q: _opened(*n.open(q.round, q.attempt))),
    "query.catch_up": (
        ("packages", "releases"),
        lambda n, q: _with_packages(n.catch_up(q.round, q.attempt, q.lists["packages"], q.lists["releases"])),
    ),
    "query.close": (("results",), _closed),
}


def make_client_app(node: ParticipantNode, *, report: Callable[[Error], None]) -> ClientApp:
    """Make the ClientApp of a participant.

    Args:
        node: The participant.
        report: Receives every error in full, for the participant's own log; an unforeseen one as the cause of an InternalFailure.

    Guarantees:
        - A reply holds signed protocol messages, sealed shares or an error code, nothing else: `outputs.py` has the list, and what
          is not on it does not leave.
        - Training results other than protected updates do not leave: `evaluate` is refused.
        - A refusal by policy or budget leaves as its code. Every other failure is the same reply, whatever went wrong:
          reasons would tell a coordinator that crafts messages and sums about keys and data.
    """
    app = ClientApp()
    for kind in _STEPS:
        register = app.train() if kind == "train" else app.query(kind.removeprefix("query."))
        register(_handler(node, report, kind))

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        refusal = ReleaseNotAgreed("the study releases no evaluation results")
        report(refusal)
        return Message(RecordDict({REPLY: ConfigRecord({"error": refusal.code})}), reply_to=message)

    return app


def _handler(
    node: ParticipantNode, report: Callable[[Error], None], kind: str
) -> Callable[[Message, Context], Message]:
    lists, step = _STEPS[kind]

    def handle(message: Message, _: Context) -> Message:
        try:
            reply = step(node, _request(message, lists))
            verify_reply(kind, reply)
        except Exception as error:  # Flower would send the text of whatever passes here to the coordinator
            known = error if isinstance(error, Error) else _unforeseen(error)
            report(known)
            reply = {"error": code_of(known)}
        return Message(RecordDict({REPLY: ConfigRecord(reply)}), reply_to=message)

    return handle


def _unforeseen(error: Exception) -> InternalFailure:
    failure = InternalFailure("".join(traceback.format_exception(error)))
    failure.__cause__ = error
    return failure
