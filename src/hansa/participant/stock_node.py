"""A participant on a stock SuperNode, for those who run Flower already; see `deploy/flower_app/`. The node agent is the better way.

A stock SuperNode runs whatever bundle its SuperLink sends and starts a process for each message. The bundle of `deploy/flower_app/`
holds one line of code that calls this; home and code are the participant's own. In each process

    1 the home is opened, news of the consortium are looked for and decided on, as the agent does
    2 the seat of the message's session is made anew on its store
    3 a step of an epoch's set-up that needs an earlier one is preceded by it: what the earlier process held in memory alone
      is made again from the store and from the request that it had, which is kept in a file
    4 the message is answered; a study that is finished by it has its model written
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from traceback import format_exception
from typing import Any

import cbor2
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from hansa.errors import (
    Error,
    HomeMissing,
    InternalFailure,
    MalformedMessage,
    OutOfOrder,
    UnknownStudy,
)
from hansa.federation.files import read_file, write_file
from hansa.federation.fleet_messages import LOOK, MOST_MESSAGE_BYTES, REPLY
from hansa.federation.logs import log, set_up_logs
from hansa.participant.agent_work import AgentWork, open_work
from hansa.participant.app import REQUEST
from hansa.participant.home import ParticipantHome
from hansa.participant.seat import Seat
from hansa.participant.session_apps import App, aborted, session_handler
from hansa.secure_agg.certificates import utc_now

HOME_KEY = "hansa-home"  # of the SuperNode's configuration, which its owner writes; never of the run's
_VOTED = "voted-for"
_SETUP = {"query.deal", "query.vote", "query.enter"}


class StockClientApp(ClientApp):
    """The ClientApp of a stock SuperNode.

    Guarantees:
        - The home is the one that the SuperNode's own configuration names; what comes over the network names none.
        - Whatever goes wrong, the reply says no more than a node agent's does, and nothing raises.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message."""
        set_up_logs()
        try:
            with ExitStack() as stack:
                home = _home(context)
                return _answer(stack, home, message, context)
        except Exception as error:  # Flower would send the text of whatever passes here to the coordinator
            known = error if isinstance(error, Error) else InternalFailure("".join(format_exception(error)))
            _report("stock_node", known)
            return aborted(message)


def make_stock_client_app() -> ClientApp:
    """Make the ClientApp of `deploy/flower_app/`."""
    return StockClientApp()


# -- inside --------------------------------------------------------------------------------------------------


def _home(context: Context) -> ParticipantHome:
    place = context.node_config.get(HOME_KEY)
    if not isinstance(place, str) or not Path(place).is_absolute():
        raise HomeMissing(
            f"the SuperNode's configuration names no home as {HOME_KEY}",
            hint=f"flower-supernode --node-config '{HOME_KEY}=\"FOLDER\"', with the whole path",
        )
    home = ParticipantHome.open(Path(place))
    home.verify_key_files()
    home.enrolment()
    return home


def _answer(stack: ExitStack, home: ParticipantHome, message: Message, context: Context) -> Message:
    work = open_work(stack, home, now=utc_now, report=_report, note=_note)
    work.look()
    if message.metadata.message_type == LOOK:
        # The name is all that leaves; the coordinator knows it from the enrolment.
        return Message(RecordDict({REPLY: ConfigRecord({"participant": home.name})}), reply_to=message)

    def find(session: str) -> App | None:
        seat = work.seats.get(session)
        if seat is None:
            return None
        return lambda taken, known: _with_setup(work, seat, taken, known)

    reply = session_handler(find, report=lambda error: _report("request", error))(message)
    work.finish()  # now: there may be no further message
    return reply


def _with_setup(work: AgentWork, seat: Seat, message: Message, context: Context) -> Message:
    """Answer a message, after what its step needs in memory was made again."""
    kind, place = message.metadata.message_type, work.desk.folder_of(seat.study) / _VOTED
    if kind in _SETUP:
        try:
            request = _request(message)
            number = request["round"]
            seat.node.join(number)  # the same join as before
            if kind == "query.enter":
                voted = _kept(place, number)
                seat.node.vote(
                    voted["joins"], voted["deal"][0]
                )  # for the same manifest as before, or not at all
        except Error as error:
            _report("setup", error)
            return aborted(message)
        if kind == "query.vote":
            kept = {name: request[name] for name in ("round", "joins", "deal") if name in request}
            write_file(place, cbor2.dumps(kept))
    reply = seat(message, context)
    if kind == "query.enter":
        place.unlink(missing_ok=True)
    return reply


def _request(message: Message) -> dict[str, Any]:
    record = message.content.config_records.get(REQUEST) if message.has_content() else None
    if record is None or type(record.get("round")) is not int:
        raise MalformedMessage("a step of an epoch's set-up names no epoch")
    return dict(record)


def _kept(place: Path, number: int) -> Mapping[str, Any]:
    """Read the request for the vote of this epoch. It was public, and the node checks it again."""
    try:
        found = cbor2.loads(read_file(place, MOST_MESSAGE_BYTES))
        if found["round"] == number and found["joins"] and found["deal"]:
            return dict(found)
    except (HomeMissing, cbor2.CBORDecodeError, ValueError, KeyError, TypeError) as error:
        raise OutOfOrder(f"epoch {number} was not voted for here") from error
    raise OutOfOrder(f"epoch {number} was not voted for here")


def _report(where: str, error: Error) -> None:
    if isinstance(error, UnknownStudy):  # most likely a coordinator that was faster than the news of a start
        log("participant").info(f"{where}_failed", error_code=error.code, message=error.message)
        return
    log("participant").warning(
        f"{where}_failed", error_code=error.code, message=error.message, hint=error.hint
    )


def _note(event: str, **values: Any) -> None:
    log("participant").info(event, **values)
