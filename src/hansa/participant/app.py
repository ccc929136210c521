"""The participant as a Flower `ClientApp`: handlers that pass messages to the node and its answers back.

Only this file of the room knows Flower. A request holds round and attempt and signed messages of other members; every reply is
one config record. A failure, foreseen or not, leaves as its error code alone: messages of errors stay with the participant.
"""

import traceback
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa.errors import Error, InternalFailure, MalformedMessage, ReleaseNotAgreed
from hansa.participant.node import ParticipantNode

REQUEST = "request"
REPLY = "reply"
MOST_MEMBERS = 258
MOST_ROUNDS = 2**31 - 1
MOST_ATTEMPTS = 2**16 - 1


def _request(message: Message, *signed: str) -> ConfigRecord:
    """Take the one record out of a message; it holds round, attempt and the lists named."""
    if not message.has_content() or set(message.content.keys()) != {REQUEST}:
        raise MalformedMessage(f"a request holds one record, {REQUEST!r}")
    record = message.content.config_records.get(REQUEST)
    if record is None or set(record.keys()) != {"round", "attempt", *signed}:
        raise MalformedMessage(f"a request holds exactly {', '.join(('round', 'attempt', *signed))}")
    return record


def _number(record: ConfigRecord, key: str, most: int) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise MalformedMessage(f"{key} of a request is not an integer from 0 to {most}")
    return value


def _signed(record: ConfigRecord, key: str) -> list[bytes]:
    value = record.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= MOST_MEMBERS:
        raise MalformedMessage(f"{key} of a request is not a list of 1 to {MOST_MEMBERS} signed messages")
    messages = [item for item in value if isinstance(item, bytes)]
    if len(messages) != len(value):
        raise MalformedMessage(f"{key} of a request holds something that is not bytes")
    return messages


def make_client_app(node: ParticipantNode, *, report: Callable[[Error], None]) -> ClientApp:
    """Make the ClientApp of a participant.

    Args:
        node: The participant.
        report: Receives every error in full, for the participant's own log; an unforeseen one as the cause of an InternalFailure.

    Guarantees:
        - A reply holds signed protocol messages or an error code, nothing else.
        - Training results other than protected updates do not leave: `evaluate` is refused.
    """
    app = ClientApp()

    def answer(
        message: Message, action: Callable[[ConfigRecord, int, int], ConfigRecord], *signed: str
    ) -> Message:
        try:
            request = _request(message, *signed)
            at = _number(request, "round", MOST_ROUNDS), _number(request, "attempt", MOST_ATTEMPTS)
            reply = action(request, *at)
        except Exception as error:  # Flower would send the text of whatever passes here to the coordinator
            known = error if isinstance(error, Error) else _unforeseen(error)
            report(known)
            reply = ConfigRecord({"error": known.code})
        return Message(RecordDict({REPLY: reply}), reply_to=message)

    @app.query("advertise")
    def advertise(message: Message, _: Context) -> Message:
        return answer(message, lambda _, r, a: ConfigRecord({"round_key": node.advertise(r, a)}))

    @app.train()
    def train(message: Message, _: Context) -> Message:
        def action(request: ConfigRecord, r: int, a: int) -> ConfigRecord:
            return ConfigRecord({"header": node.train(r, a, _signed(request, "round_keys"))})

        return answer(message, action, "round_keys")

    @app.query("open")
    def open_sum(message: Message, _: Context) -> Message:
        return answer(message, lambda _, r, a: ConfigRecord({"result": node.open(r, a)}))

    @app.query("close")
    def close(message: Message, _: Context) -> Message:
        def action(request: ConfigRecord, r: int, a: int) -> ConfigRecord:
            node.close(r, a, _signed(request, "results"))
            return ConfigRecord({"closed": True})

        return answer(message, action, "results")

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        refusal = ReleaseNotAgreed("the study releases no evaluation results")
        report(refusal)
        return Message(RecordDict({REPLY: ConfigRecord({"error": refusal.code})}), reply_to=message)

    return app


def _unforeseen(error: Exception) -> InternalFailure:
    failure = InternalFailure("".join(traceback.format_exception(error)))
    failure.__cause__ = error
    return failure
