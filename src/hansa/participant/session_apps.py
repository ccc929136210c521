"""Which ClientApp answers: the one that this participant installed for the session that a message names."""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, RecordDict

from hansa.errors import Error, UnknownStudy
from hansa.federation.fleet_messages import ABORTED, REPLY, take_session

Handler = Callable[[Message], Message]
App = Callable[[Message, Context], Message]  # a ClientApp, or what stands before one


def aborted(message: Message) -> Message:
    """Make the one reply that says that something failed, and not what."""
    return Message(RecordDict({REPLY: ConfigRecord({"error": ABORTED})}), reply_to=message)


def session_handler(find_app: Callable[[str], App | None], *, report: Callable[[Error], None]) -> Handler:
    """Make the handler that gives each message to the app of its session.

    Args:
        find_app: Gives the app of a session id, such as the `get` of a dict; None where this participant takes part
            in no such session.
        report: Receives what is wrong with a message, for the participant's own log.

    Guarantees:
        - A message of an unknown session, or of none, is answered like any other failure.
    """

    def handle(message: Message) -> Message:
        try:
            session = take_session(message)
            app = find_app(session)
            if app is None:
                raise UnknownStudy(f"this participant takes part in no session {session}")
        except Error as error:
            report(error)
            return aborted(message)
        metadata = message.metadata
        context = Context(
            run_id=metadata.run_id,
            node_id=metadata.dst_node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        return app(message, context)

    return handle
