"""Flower's SecAgg+: its client mod and its workflow, unchanged, over a grid that is a function call.

Complete graph and the threshold floor(2n/3) + 1, as ours. Above a size only some clients mask vectors of full length;
the others go through every stage with a vector of one entry, and their masked vector is replaced by zeros on the
way, so that the coordinator does all of its work. The sum is then not checked.
"""

import logging
import os
import time
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import flwr
import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarray_to_bytes,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity

from peers.measured import LEVELS, Measured, floats_of, levels_of

NAME = f"SecAgg+, flwr {flwr.__version__}"
ALL_FULL_ENTRIES = 17_000_000  # participants times entries up to which every client masks a whole vector
FULL_CLIENTS = 4


class _Proxy:
    """What the workflow needs of a client."""

    def __init__(self, node_id: int) -> None:
        self.node_id, self.cid = node_id, str(node_id)


class _Strategy(FedAvg):
    """Samples everybody and keeps the aggregate instead of averaging the same vector n times."""

    def __init__(self, nodes: list[int]) -> None:
        super().__init__()
        self.nodes, self.aggregate = nodes, None

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return [(_Proxy(node), FitIns(Parameters([], ""), {})) for node in self.nodes]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        self.aggregate = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


class _Grid:
    """Delivers messages by calling the clients; counts their time and bytes apart from the coordinator's."""

    def __init__(self, entries: int, full: set[int], gone: set[int]) -> None:
        self.entries, self.full, self.gone = entries, full, gone
        self.contexts: dict[int, Context] = {}
        self.seconds: dict[int, float] = {}
        self.up, self.down = dict.fromkeys(full, 0), dict.fromkeys(full, 0)
        self.inside = 0.0
        self.zeros: list[bytes] = []

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        start = time.process_time()
        # The mod changes what it is given; a transport would give it a copy.
        copies = [
            Message(
                recorddict_from_proto(recorddict_to_proto(message.content)),
                metadata=message.metadata,
            )
            for message in messages
        ]
        replies = [self._deliver(message) for message in copies]
        self.inside += time.process_time() - start
        return replies

    def _deliver(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        masks = stage == Stage.COLLECT_MASKED_VECTORS
        if masks and node in self.gone:
            return Message(Error(code=0), reply_to=message)
        if node in self.full:
            self.down[node] += recorddict_to_proto(message.content).ByteSize()
        entries = self.entries if node in self.full else 1
        answer = self._fitted(node, entries) if masks else None
        context = self.contexts.setdefault(
            node, Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
        )
        start = time.process_time()
        reply = secaggplus_mod(message, context, lambda msg, _: Message(answer, reply_to=msg))
        self.seconds[node] = self.seconds.get(node, 0.0) + time.process_time() - start
        if node in self.full:
            self.up[node] += recorddict_to_proto(reply.content).ByteSize()
        elif masks:
            if not self.zeros:
                arrays = (np.array([0]), np.zeros(self.entries, dtype=np.int64))
                self.zeros = [ndarray_to_bytes(array) for array in arrays]
            reply.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS] = self.zeros
        return reply

    def _fitted(self, node: int, entries: int) -> RecordDict:
        parameters = ndarrays_to_parameters([floats_of(node - 1, entries)])
        result = FitRes(status=Status(Code.OK, ""), parameters=parameters, num_examples=1, metrics={})
        return compat.fitres_to_recorddict(result, False)


def run_flower(participants: int, entries: int, dropouts: int) -> Measured:
    """Run one round of Flower's workflow; dropouts vanish before their masked vector."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 0
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    nodes = list(range(1, participants + 1))
    gone = set(nodes[participants - dropouts :])
    whole = participants * entries <= ALL_FULL_ENTRIES
    full = set(nodes[: participants - dropouts if whole else FULL_CLIENTS])
    grid, strategy = _Grid(entries, full, gone), _Strategy(nodes)
    context = LegacyContext(
        Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}), strategy=strategy
    )
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        Parameters([], ""), keep_input=True
    )
    threshold = 2 * participants // 3 + 1
    workflow = SecAggPlusWorkflow(
        num_shares=1.0, reconstruction_threshold=threshold / participants, max_weight=1.0, clipping_range=1.0
    )
    start = time.process_time()
    workflow(grid, context)
    coordinator = time.process_time() - start - grid.inside
    if strategy.aggregate is None:
        raise RuntimeError("Flower's workflow gave no aggregate")
    error = None
    if whole:
        survivors = participants - dropouts
        expected = sum(levels_of(member, entries) for member in range(survivors))
        error = float(np.abs(strategy.aggregate * survivors * LEVELS - expected).max())
    return Measured(
        participant_seconds=[grid.seconds[node] for node in sorted(full)],
        coordinator_seconds=coordinator / participants,
        up_bytes=float(np.mean(list(grid.up.values()))),
        down_bytes=float(np.mean(list(grid.down.values()))),
        largest_error=error,
    )
