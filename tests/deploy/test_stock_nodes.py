"""Nodes that are made anew for every message, as on stock SuperNodes, and the coordinator on a grid that it was given.

Here all of it is in one process, on an embedded grid; the doors for documents and ciphertexts are the real ones. The same on
stock processes: test_flower_app.py.
"""

import json
import logging
import shutil
import threading
import time

import httpx
import pytest
import structlog
from flwr.app import ConfigRecord, Context, Message, RecordDict

from hansa.coordinator.daemon import LOCK
from hansa.coordinator.office import open_office
from hansa.coordinator.stock_flower import StockCoordinator, StockGrid, StockNodes
from hansa.errors import InvalidValue, OutOfOrder, ParticipantLost, StoreInUse, SuperLinkFailed
from hansa.federation.files import holding
from hansa.federation.fleet_messages import LOOK
from hansa.local_grid import RUN_ID, LocalGrid, from_bytes, to_bytes
from hansa.participant import agent_work, stock_node
from hansa.participant.stock_node import HOME_KEY, StockClientApp

pytestmark = pytest.mark.enable_socket


@pytest.fixture(autouse=True)
def logs_as_before():
    root, before, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def context(home=None, **run_config):
    node = {} if home is None else {HOME_KEY: str(home)}
    return Context(run_id=RUN_ID, node_id=0, node_config=node, state=RecordDict(), run_config=run_config)


@pytest.fixture
def grids(small):
    """Make an embedded grid of all members; `asked` has the kinds of all messages."""
    made, asked = [], []

    def make(answer=None):
        def handler(home):
            def handle(data):
                message = from_bytes(data)
                asked.append(message.metadata.message_type)
                app = StockClientApp() if answer is None else answer
                return to_bytes(app(message, context(home.folder)))

            return handle

        handlers = {100 + place: handler(home) for place, home in enumerate(small.members.values())}
        made.append(LocalGrid(handlers, {node: node for node in handlers}))
        return made[-1], asked

    yield make
    for grid in made:
        grid.close()


@pytest.mark.slow
def test_a_study_goes_from_proposal_to_model_on_nodes_that_forget_everything_but_their_store(small, grids):
    proposal = small.propose()
    session = proposal.body.session_id.hex()
    grid, asked = grids()
    coordinator, ended = StockCoordinator(small.home, grid, session), []
    thread = threading.Thread(target=lambda: ended.append(coordinator.run()), daemon=True)
    thread.start()
    until = time.monotonic() + 200
    while small.approvals(proposal) < 3:  # by policy, at the first look
        assert time.monotonic() < until
        time.sleep(0.1)
    small.sign_start(proposal)
    thread.join(until - time.monotonic())
    assert ended == ["finished"]
    assert asked.count("query.join") == asked.count("query.vote") == asked.count("query.enter") == 3
    states = set()
    for home in small.members.values():
        desk = small.own_desk(home)
        study = desk.find(session)
        assert (study.state, study.answer.body.by) == ("finished", "policy")
        config = json.loads((desk.folder_of(study) / "model" / "config.json").read_text())
        states.add(config["training"]["state"])
        assert not (desk.folder_of(study) / "voted-for").exists()
        (ledger,) = home.folder.glob("ledger-*.jsonl")
        assert ledger.read_text().count('"reserve"') == small.study.training.rounds
    assert len(states) == 1
    with open_office(small.home) as office:
        kinds = [event.kind for event in office.journal.events(study=small.study.name)]
    assert kinds[-1] == "study_finished"


def test_no_other_coordinator_runs_on_the_same_home(small, grids):
    with holding(small.home.folder / LOCK), pytest.raises(StoreInUse):
        StockCoordinator(small.home, grids()[0]).run()


# -- the participant -----------------------------------------------------------------------------------------


def message(kind="query.join", **request):
    return Message(
        RecordDict({"request": ConfigRecord({"round": 1, "attempt": 0, **request})}),
        dst_node_id=100,
        message_type=kind,
    )


def values(reply):
    assert set(reply.content) == {"reply"}
    return dict(reply.content.config_records["reply"])


@pytest.fixture
def reports(monkeypatch):
    found = []
    monkeypatch.setattr(stock_node, "_report", lambda where, error: found.append((where, error.code)))
    return found


def test_only_the_nodes_own_configuration_names_its_home(small, reports, grids):
    grids()  # for Flower's identity of this process
    home = small.members["bank-1"].folder
    for known in (context(**{HOME_KEY: str(home)}), context("bank-1"), context(small.folder / "nobody")):
        assert values(StockClientApp()(message(LOOK), known)) == {"error": "aborted"}
    assert reports == [("stock_node", "home_missing")] * 3


def test_without_a_coordinator_and_with_a_bug_the_reply_says_no_more_than_that(
    small, reports, grids, monkeypatch
):
    grids()
    monkeypatch.setattr(agent_work, "_CALL_SECONDS", 0.5)
    known = context(small.members["bank-1"].folder)
    assert values(StockClientApp()(message(), known)) == {"error": "aborted"}
    assert reports.pop() == ("stock_node", "coordinator_unreachable")
    monkeypatch.setattr(stock_node, "_answer", lambda *_: {}["the records"])
    assert values(StockClientApp()(message(), known)) == {"error": "aborted"}
    assert reports == [("stock_node", "internal_failure")]


def test_a_request_for_the_vote_serves_its_epoch_only_and_a_damaged_one_none(tmp_path):
    kept = tmp_path / "voted-for"
    with pytest.raises(OutOfOrder):
        stock_node._kept(kept, 1)
    kept.write_bytes(stock_node.cbor2.dumps({"round": 1, "joins": [b"j"], "deal": [b"d"]}))
    assert stock_node._kept(kept, 1)["deal"] == [b"d"]
    with pytest.raises(OutOfOrder):
        stock_node._kept(kept, 2)
    for wrong in (b"", b"\xff\xff", stock_node.cbor2.dumps([1]), stock_node.cbor2.dumps({"round": 1})):
        kept.write_bytes(wrong)
        with pytest.raises(OutOfOrder):
            stock_node._kept(kept, 1)


# -- the coordinator -----------------------------------------------------------------------------------------


def named(answers):
    """A ClientApp that says one name after another."""
    left = iter(answers)

    def app(asked, _):
        return Message(RecordDict({"reply": ConfigRecord(next(left))}), reply_to=asked)

    return app


def test_nodes_are_known_by_what_they_say_and_asked_once(grids):
    grid, asked = grids(named([{"participant": "a"}, {"error": "aborted"}, {"participant": 7}] * 2))
    nodes = StockNodes(StockGrid(grid), ask_seconds=20)
    first = nodes.node_of("a")
    assert first in {100, 101, 102}
    assert nodes.node_of("a") == first
    assert asked == [LOOK] * 3
    with pytest.raises(ParticipantLost, match="b's"):
        nodes.node_of("b")  # those that said nothing useful are asked again


def test_a_look_waits_for_nobody_and_its_answers_are_taken_later(grids):
    grid, _ = grids(named([{"participant": name} for name in "abc"]))
    nodes = StockNodes(StockGrid(grid), ask_seconds=0.0)
    nodes.ask()
    until = time.monotonic() + 20
    while len(nodes._names) < 3:
        nodes.take()
        assert time.monotonic() < until
    assert {nodes.node_of(name) for name in "abc"} == {100, 101, 102}


class BrokenGrid:
    def __init__(self):
        self.pulls = 0

    def get_node_ids(self):
        raise httpx.ConnectError("refused")

    def pull_messages(self, _):
        self.pulls += 1
        return []


def test_a_superlink_that_is_gone_is_an_error_that_a_study_outlives_and_pulls_are_few():
    broken = BrokenGrid()
    grid = StockGrid(broken)
    with pytest.raises(SuperLinkFailed):
        grid.get_node_ids()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        grid.pull_messages(["x"])
    assert 1 <= broken.pulls <= 7


def test_a_run_without_a_home_names_what_is_missing(grids):
    from hansa.coordinator.stock_flower import make_stock_server_app

    with pytest.raises(InvalidValue, match="hansa-home"):
        make_stock_server_app()(grids()[0], context())


def test_keys_and_ledgers_of_a_member_go_on_in_a_new_home(small):
    """What docs/runbooks/key-compromise.md tells members of a consortium that is founded anew."""
    from hansa.participant.enrolling import begin_enrolment
    from hansa.secure_agg.certificates import utc_now

    old = small.members["bank-1"]
    new = small.folder / "new"
    new.mkdir(mode=0o700)
    for name in ("identity.store", "identity.key"):
        shutil.copy2(old.folder / name, new / name)
    with open_office(small.home) as office:
        invitation = office.registry.invite("bank-9", small.home.authority())
    place, _ = begin_enrolment(invitation, new, utc_now())
    assert place.identity().public == old.identity().public
