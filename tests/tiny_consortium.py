"""A tiny consortium in one process: four participants, a study of two rounds, every layer of protection on."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from hansa.coordinator.aggregator import AggregationService
from hansa.coordinator.app import make_server_app
from hansa.coordinator.rounds import RoundSummary
from hansa.errors import Error
from hansa.federation.agreements import terms_of
from hansa.local_grid import RUN_ID, LocalGrid, from_bytes, to_bytes
from hansa.models.features import FeatureEncoder
from hansa.models.pretraining import Base
from hansa.participant.app import make_client_app
from hansa.participant.node import ParticipantNode
from hansa.participant.policy import Policy
from hansa.participant.registered_data import register_data
from hansa.participant.trainer import Rows
from hansa.privacy.noise import SecretRandom
from hansa.secure_agg.aggregator import RoundAggregator
from hansa.secure_agg.identity import Identity, Roster
from hansa.secure_agg.relay import EpochRelay, PackageBoard
from hansa.secure_agg.store import MemoryStore
from hansa.study import Study

NAMES = ("bank-1", "bank-2", "bank-3", "bank-4")
EPOCH = 1
RECORDS = 80

TINY_STUDY = """
schema = "hansa/study/v1"
name = "tiny"
purpose = "Test the whole path on a small table."

[data]
label = "late"
columns = [
  { name = "a", kind = "numeric", minimum = -10, maximum = 10 },
  { name = "b", kind = "numeric", minimum = -10, maximum = 10 },
  { name = "c", kind = "numeric", minimum = -10, maximum = 10 },
  { name = "d", kind = "numeric", token = "pair", minimum = -10, maximum = 10 },
  { name = "e", kind = "numeric", token = "pair", minimum = -10, maximum = 10 },
  { name = "f", kind = "categorical", values = [1, 2, 3] },
]

[model]
dim = 8
layers = 1
heads = 2
experts = 8
top_k = 2
expert_dim = 4
shared_expert_dim = 4

[adapters]
rank = 4

[privacy]
epsilon = 8.0
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.5
nominal_records = 80

[training]
rounds = 2

[training.server_optimizer]
learning_rate = 3e-2

[compression]
kept_share = 0.3
always = ["embedding", "class_token", "head", "attention"]

[aggregation]
mode = "quorum"
participants = 4
"""


class Table:
    """Synthetic raw rows, their encoding and their labels; one per name, always the same."""

    def __init__(self, name: str, encoder: FeatureEncoder | None = None, records: int = RECORDS) -> None:
        draws = np.random.default_rng(list(name.encode()))
        self.numeric = draws.standard_normal((records, 5))
        self.categorical = draws.integers(0, 4, (records, 1))
        self.labels = (self.numeric[:, 0] + 0.5 * draws.standard_normal(records) > 0).astype(np.float64)
        if encoder is not None:
            self.rows = Rows(
                features=encoder.encode(self.numeric, self.categorical),
                labels=torch.tensor(self.labels, dtype=torch.float32),
            )


class Untouchable:
    """Private rows that no code may look at."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the records were touched: {name}")

    def __len__(self) -> int:
        raise AssertionError("the records were counted")


class Wire:
    """A participant's way to the aggregation service; it remembers every byte."""

    def __init__(self, service: AggregationService) -> None:
        self.service = service
        self.sent: list[bytes] = []
        self.received: list[bytes] = []

    def upload(self, round_index: int, attempt: int, header: bytes, ciphertexts: Any) -> None:
        parts = list(ciphertexts)
        self.sent += [header, *parts]
        self.service.upload(round_index, attempt, header, parts)

    def download(self, round_index: int, attempt: int) -> tuple[list[bytes], list[bytes]]:
        headers, aggregate = self.service.download(round_index, attempt)
        self.received += [*headers, *aggregate]
        return headers, aggregate

    def package_leaves(self, round_index: int, attempt: int, dealer: str) -> bytes:
        leaves = self.service.package_leaves(round_index, attempt, dealer)
        self.received.append(leaves)
        return leaves


class House:
    """Nodes and a coordinator; the handlers of a one-lane grid call the ClientApps directly."""

    def __init__(
        self,
        study: Study,
        base: Base,
        directory: Path,
        *,
        rows: dict[str, Any],
        policies: dict[str, Policy],
        random: dict[str, SecretRandom],
    ) -> None:
        self.study, self.base, self.names = study, base, tuple(rows)
        self.node_ids = {name: 100 + number for number, name in enumerate(self.names)}
        self.identities = {name: Identity.generate() for name in self.names}
        self.roster = Roster(
            session_id=np.random.default_rng().bytes(16),
            study_id=bytes.fromhex(study.id),
            members=tuple((name, self.identities[name].public) for name in self.names),
        )
        self.terms = terms_of(study)
        self.service = AggregationService(self.roster, self.terms)
        self.wires = {name: Wire(self.service) for name in self.names}
        self.stores = {name: MemoryStore() for name in self.names}
        self.nodes: dict[str, ParticipantNode] = {}
        for name in self.names:
            (directory / name).mkdir(parents=True)
            self._rows, self._policies, self._random = rows, policies, random
            self.directories = {member: directory / member for member in self.names}
            self.nodes[name] = self._node(name)
        self.ledgers = {name: self.nodes[name].budget.path for name in self.names}
        self.errors: dict[str, list[Error]] = {name: [] for name in self.names}
        self.apps = {
            name: make_client_app(self.nodes[name], report=self.errors[name].append) for name in self.names
        }
        self.grid_bytes: list[tuple[str, bytes]] = []
        self.grid = LocalGrid(
            {self.node_ids[name]: self._handler(name) for name in self.names},
            dict.fromkeys(self.node_ids.values(), 0),
            tap=lambda direction, data: self.grid_bytes.append((direction, data)),
        )
        self.relay = EpochRelay(self.roster, EPOCH)
        self.board: PackageBoard | None = None
        self.aggregator: RoundAggregator | None = None
        self.packages: list[bytes] = []
        self.shares: dict[str, list[bytes]] = {}

    def _node(self, name: str) -> ParticipantNode:
        return ParticipantNode(
            name=name,
            identity=self.identities[name],
            study=self.study,
            policy=self._policies[name],
            roster=self.roster,
            store=self.stores[name],
            model=self.base.model(),
            layout=self.base.layout,
            rows=self._rows[name],
            data_commitment=register_data(self.directories[name], [name.encode()]),
            state_directory=self.directories[name],
            aggregator=self.wires[name],
            random=self._random.get(name),
        )

    def restart(self, name: str) -> ParticipantNode:
        """Forget a member's node and make it anew from store and ledger, as after a crash."""
        self.nodes[name] = self._node(name)
        self.apps[name] = make_client_app(self.nodes[name], report=self.errors[name].append)
        return self.nodes[name]

    def _handler(self, name: str) -> Callable[[bytes], bytes]:
        return lambda message: to_bytes(self.apps[name](from_bytes(message), context()))

    # -- the whole study ---------------------------------------------------------------------------------

    def server_app(self, on_round: Callable[[RoundSummary], None] | None = None, **changes: Any) -> Any:
        arguments: dict[str, Any] = {
            "roster": self.roster,
            "terms": self.terms,
            "nodes": self.node_ids,
            "aggregation": self.service,
            "rounds": self.study.training.rounds,
            "rounds_per_epoch": self.study.aggregation.rounds_per_epoch,
            "deadline_seconds": 60.0,
            "on_round": on_round or (lambda _: None),
        }
        return make_server_app(**(arguments | changes))

    def run(self, on_round: Callable[[RoundSummary], None] | None = None, **changes: Any) -> None:
        self.server_app(on_round, **changes)(self.grid, context())

    def digests(self) -> set[bytes]:
        return {node.state.digest(self.study.id) for node in self.nodes.values()}

    # -- one message at a time, over the grid ------------------------------------------------------------

    def send(self, name: str, kind: str, content: RecordDict) -> Message:
        """Send one message over the grid and wait for the reply."""
        message = Message(content, dst_node_id=self.node_ids[name], message_type=kind)
        ids = list(self.grid.push_messages([message]))
        until = time.monotonic() + 60
        while not (replies := list(self.grid.pull_messages(ids))):
            assert time.monotonic() < until
            time.sleep(0.001)
        return replies[0]

    def ask(self, name: str, kind: str, **request: Any) -> dict[str, Any]:
        """Send a request and give the values of the reply's one record."""
        reply = self.send(name, kind, RecordDict({"request": ConfigRecord(request)}))
        assert set(reply.content.keys()) == {"reply"}
        values = dict(reply.content.config_records["reply"])
        if values == {"error": "aborted"}:  # all that leaves; the test wants the member's own reason
            return {"error": self.errors[name][-1].code}
        return values

    # -- one step at a time, without Flower; each does the steps before it --------------------------------

    def voted(self) -> list[bytes]:
        """Steps 0.1 to 0.3."""
        for node in self.nodes.values():
            self.relay.accept_join(node.join(EPOCH))
        self.relay.accept_deal(self.nodes[self.relay.dealer].deal(self.relay.joins()))
        for node in self.nodes.values():
            self.relay.accept_vote(node.vote(self.relay.joins(), self.relay.deal()))
        return self.relay.votes()

    def enter(self) -> None:
        """Step 0.4; nothing if the epoch was entered."""
        if self.board is None:
            votes = self.voted()
            self.board = PackageBoard(self.roster, self.terms, EPOCH)
            for node in self.nodes.values():
                self.post(node.enter(votes))

    def post(self, packages: list[tuple[bytes, list[bytes]]]) -> None:
        for signed, sealed in packages:
            self.board.accept(signed, sealed)

    def begin(self, round_index: int = 1, attempt: int = 0, cohort: Any = None) -> tuple[Any, Any]:
        """Hand out a cohort's packages; give them with each member's shares."""
        self.enter()
        self.aggregator = self.service.begin(EPOCH, round_index, attempt, cohort or self.names)
        self.packages, self.shares = self.board.take(cohort or self.names)
        self.service.keep_leaves(round_index, attempt, self.board.leaves(cohort or self.names))
        return self.packages, self.shares

    def train(self, round_index: int = 1, attempt: int = 0) -> list[bytes]:
        """Step 1; the roster is closed."""
        self.begin(round_index, attempt)
        headers = [
            node.train(round_index, attempt, self.packages, self.shares[name])
            for name, node in self.nodes.items()
        ]
        self.service.close()
        return headers

    def answer(self, round_index: int = 1, attempt: int = 0) -> list[bytes]:
        """Step 2; nobody is missing, so the answers are releases."""
        self.train(round_index, attempt)
        for node in self.nodes.values():
            self.aggregator.accept_answer(node.answer(round_index, attempt))
        return self.aggregator.releases()

    def open(self, round_index: int = 1, attempt: int = 0) -> list[bytes]:
        """Step 3."""
        opened = []
        if self.terms.strict:
            self.train(round_index, attempt)
            opened = [node.open(round_index, attempt) for node in self.nodes.values()]
        else:
            releases = self.answer(round_index, attempt)
            opened = [node.unmask(round_index, attempt, releases) for node in self.nodes.values()]
        for _, packages in opened:
            self.post(packages)
        return [result for result, _ in opened]

    def close(self, round_index: int = 1, attempt: int = 0) -> None:
        """Step 4."""
        results = self.open(round_index, attempt)
        for node in self.nodes.values():
            node.close(round_index, attempt, results)


def entries(ledger: Path) -> list[dict[str, Any]]:
    """What a ledger holds after its opening, line by line."""
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [json.loads(line)["entry"] for line in lines[1:]]


def kinds(ledger: Path) -> list[str]:
    """Whether each line reserves or commits."""
    return [entry["kind"] for entry in entries(ledger)]


def context() -> Context:
    return Context(run_id=RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={})
