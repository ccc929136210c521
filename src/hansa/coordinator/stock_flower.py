"""The coordinator as a ServerApp that a stock SuperLink starts, for those who run Flower already; see `deploy/flower_app/`.

It is the daemon of `hansa coordinator run` without a SuperLink and a fleet door of its own: aggregator, consortium and enrolment
doors, the same journal, the same round loop. Nodes are stock SuperNodes that run the app's ClientApp (`participant.stock_node`).
Whoever can register a SuperNode can claim a member's name here, and by that keep it from being asked; he can say nothing in its
name, for every message is signed.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from hansa.coordinator.daemon import CoordinatorDaemon
from hansa.coordinator.fleet_door import Nodes
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.office import Office
from hansa.coordinator.study_desk import StudyDesk
from hansa.coordinator.study_runner import IDLE
from hansa.coordinator.study_states import OVER, Outcomes, find_study, state_of
from hansa.coordinator.tending import Tending
from hansa.errors import Error, InvalidValue, ParticipantLost, SuperLinkFailed
from hansa.federation.fleet_messages import LOOK, REPLY
from hansa.federation.logs import log, set_up_logs
from hansa.federation.revocation_file import RevocationFile
from hansa.secure_agg.certificates import utc_now

HOME_KEY, STUDY_KEY = "hansa-home", "study"  # of the run's configuration
_PULL_SECONDS = 0.2  # a pull is an HTTP call here, and a stage takes seconds
_ASK_SECONDS = 120.0  # a stock node starts a process for each message
_LOOK_SECONDS = 60.0


class StockGrid(Grid):
    """Flower's grid for several threads, asked at most five times a second, with errors that the round loop can outlive.

    Args:
        grid: Flower's.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid, self._lock, self._pulled_at = grid, threading.Lock(), 0.0

    def set_run(self, run: Run) -> None:
        """See Flower's grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Flower's grid."""
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
        with self._calling():
            return list(self._grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages."""
        with self._calling():
            return list(self._grid.push_messages(list(messages)))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Give the replies that have come for these ids."""
        time.sleep(max(0.0, self._pulled_at + _PULL_SECONDS - time.monotonic()))
        self._pulled_at = time.monotonic()
        with self._calling():
            return list(self._grid.pull_messages(list(message_ids)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages and wait for their replies."""
        pending, found = set(self.push_messages(messages)), list[Message]()
        end = time.monotonic() + (timeout if timeout is not None else float("inf"))
        while pending and time.monotonic() < end:
            for reply in self.pull_messages(pending):
                pending.discard(reply.metadata.reply_to_message_id)
                found.append(reply)
        return found

    @contextmanager
    def _calling(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except httpx.HTTPError as error:
                raise SuperLinkFailed(
                    f"the SuperLink does not answer: {type(error).__name__}",
                    hint="see whether the SuperLink runs, and read its log",
                ) from error


class StockNodes:
    """Which node of the grid is which member's: each node is asked, for Flower gives it another number at every start.

    Args:
        grid: The grid.
        ask_seconds: Longest wait for an answer.
    """

    def __init__(self, grid: StockGrid, *, ask_seconds: float = _ASK_SECONDS) -> None:
        self._grid, self._ask_seconds = grid, ask_seconds
        self._names: dict[int, str] = {}
        self._pending: set[str] = set()

    def node_of(self, name: str) -> int:
        """Give a member's node; nodes that are not known yet are asked.

        Raises:
            ParticipantLost: No node says that it is this member's.
            SuperLinkFailed: The SuperLink does not answer.
        """
        found = self._known(name)
        if found is None:
            self._take(self._grid.send_and_receive(self._questions(new=True), timeout=self._ask_seconds))
            found = self._known(name)
        if found is None:
            raise ParticipantLost(f"no SuperNode on the grid is {name}'s")
        return found

    def ask(self) -> None:
        """Let every node look for news of the consortium, and do not wait; `take` has what they say."""
        self._pending |= set(self._grid.push_messages(self._questions(new=False)))

    def take(self) -> None:
        """Take the answers that have come."""
        if self._pending:
            self._take(self._grid.pull_messages(self._pending))

    def _questions(self, *, new: bool) -> list[Message]:
        nodes = [node for node in self._grid.get_node_ids() if not new or node not in self._names]
        return [Message(RecordDict({REPLY: ConfigRecord({})}), node, LOOK) for node in nodes]

    def _take(self, replies: Iterable[Message]) -> None:
        for reply in replies:
            self._pending.discard(reply.metadata.reply_to_message_id)
            record = reply.content.config_records.get(REPLY) if reply.has_content() else None
            name = None if record is None else record.get("participant")
            if isinstance(name, str):
                self._names[reply.metadata.src_node_id] = name

    def _known(self, name: str) -> int | None:
        present = set(self._grid.get_node_ids())
        found = [node for node, known in self._names.items() if known == name and node in present]
        return (
            found[-1] if found else None
        )  # the one that came last: an earlier one may not be counted out yet


class StockCoordinator(CoordinatorDaemon):
    """A coordinator on a grid that it was given.

    Args:
        home: Its home.
        grid: Flower's grid.
        study: Name or session of the study at whose end it ends; empty: it ends with its run.

    Raises:
        StoreInUse: Another coordinator runs on this home, such as `hansa coordinator run`.
    """

    def __init__(self, home: CoordinatorHome, grid: Grid, study: str = "") -> None:
        super().__init__(home)
        self._grid = StockGrid(grid)
        self._nodes, self._wanted = StockNodes(self._grid), study
        self._over, self._looked_at = threading.Event(), float("-inf")
        self._desk: StudyDesk | None = None
        self._outcomes: Outcomes | None = None

    def run(self) -> str:
        """Serve until the study is over; give the state that it ended in.

        Raises:
            See `CoordinatorDaemon.serve`.
        """
        self.serve(self._over)
        return self._state

    def _reach_nodes(
        self, stack: ExitStack, office: Office, keys: dict[str, bytes], revoked: RevocationFile
    ) -> Nodes:
        self._desk = StudyDesk(office.journal, consortium=self._home.consortium, revoked=revoked)
        self._outcomes, self._state = Outcomes(office.journal), ""
        return Nodes(grid=self._grid, node_of=self._nodes.node_of, door=None)

    def _tend(self, tending: Tending) -> None:
        super()._tend(tending)
        runner, now = self._runner, time.monotonic()
        try:
            if self._wanted and self._is_over():
                self._over.set()
                return
            self._nodes.take()
            # Between studies nobody else speaks to the nodes, and proposals and answers would lie.
            if runner is not None and runner.doing == IDLE and now - self._looked_at >= _LOOK_SECONDS:
                self._looked_at = now
                self._nodes.ask()
        except Error as error:
            self._log.warning("looking_failed", error_code=error.code, message=error.message)

    def _is_over(self) -> bool:
        if self._desk is None or self._outcomes is None:
            return False
        now = utc_now()
        found = find_study(self._desk, self._outcomes, self._wanted, now)
        self._state = state_of(found, self._outcomes.get(found), now)
        return self._state in OVER


def make_stock_server_app() -> ServerApp:
    """Make the ServerApp of `deploy/flower_app/`; its run's configuration names the coordinator's home and a study."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        set_up_logs()
        home = _text(context.run_config, HOME_KEY)
        if not home:
            raise InvalidValue(
                f"the run's configuration names no {HOME_KEY}",
                hint=f"flwr run deploy/flower_app/hansa-flower -c '{HOME_KEY}=\"FOLDER\"'",
            )
        study = _text(context.run_config, STUDY_KEY)
        state = StockCoordinator(CoordinatorHome.open(Path(home)), grid, study).run()
        log("coordinator").info("stock_run_over", study=study, state=state)
        if state == "failed":
            raise Error(f"the study {study!r} has failed", hint="`hansa study show` says with which error")

    return app


def _text(config: Mapping[str, object], key: str) -> str:
    found = config.get(key, "")
    return found if isinstance(found, str) else ""
