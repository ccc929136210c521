"""The participant as a Flower `ClientApp`: handlers that pass messages to the node and its answers back.

Only this file of the room knows Flower. A request holds round and attempt and signed messages of other members; every reply is
one config record. A failure leaves as its error code alone: messages of errors stay with the participant.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa.errors import Error, MalformedMessage, ReleaseNotAgreed
from hansa.participant.node import ParticipantNode

REQUEST = "request"
REPLY = "reply"
MOST_MEMBERS = 258


def _request(message: Message) -> ConfigRecord:
    records = message.content.config_records
    if set(message.content.keys()) != {REQUEST} or REQUEST not in records:
        raise MalformedMessage(f"a request holds one record, {REQUEST!r}")
    return records[REQUEST]


def _number(record: ConfigRecord, key: str) -> int:
    value = record.get(key)
    if type(value) is not int or not 0 <= value < 2**31:
        raise MalformedMessage(f"{key} of a request is not an integer from 0 to 2^31 - 1")
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
        report: Receives every error in full, for the participant's own log.

    Guarantees:
        - A reply holds signed protocol messages or an error code, nothing else.
        - Training results other than protected updates do not leave: `evaluate` is refused.
    """
    app = ClientApp()

    def answer(message: Message, action: Callable[[ConfigRecord, int, int], ConfigRecord]) -> Message:
        try:
            request = _request(message)
            reply = action(request, _number(request, "round"), _number(request, "attempt"))
        except Error as error:
            report(error)
            reply = ConfigRecord({"error": error.code})
        return Message(RecordDict({REPLY: reply}), reply_to=message)

    @app.query("advertise")
    def advertise(message: Message, _: Context) -> Message:
        return answer(message, lambda _, r, a: ConfigRecord({"round_key": node.advertise(r, a)}))

    @app.train()
    def train(message: Message, _: Context) -> Message:
        def action(request: ConfigRecord, r: int, a: int) -> ConfigRecord:
            return ConfigRecord({"header": node.train(r, a, _signed(request, "round_keys"))})

        return answer(message, action)

    @app.query("open")
    def open_sum(message: Message, _: Context) -> Message:
        return answer(message, lambda _, r, a: ConfigRecord({"result": node.open(r, a)}))

    @app.query("close")
    def close(message: Message, _: Context) -> Message:
        def action(request: ConfigRecord, r: int, a: int) -> ConfigRecord:
            node.close(r, a, _signed(request, "results"))
            return ConfigRecord({"closed": True})

        return answer(message, action)

    @app.evaluate()
    def evaluate(message: Message, _: Context) -> Message:
        def action(*_: object) -> ConfigRecord:
            raise ReleaseNotAgreed("the study releases no evaluation results")

        return answer(message, action)

    return app
