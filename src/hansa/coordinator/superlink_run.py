"""A run in the SuperLink that this process holds the ServerApp task of.

Flower starts a ServerApp from a bundle of code, in a process of its own, which dies with the SuperLink. The
coordinator's ServerApp runs inside the coordinator instead: it starts a run with a bundle that holds no code, takes
the run's task as a SuperExec would, and keeps it alive.
"""

from collections.abc import Mapping

from flwr.proto.control_pb2 import StartRunRequest, StartRunResponse, StopRunRequest, StopRunResponse
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    AcquireTaskResponse,
    PullTaskInputRequest,
    PullTaskInputResponse,
    SendTaskHeartbeatRequest,
    SendTaskHeartbeatResponse,
)
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import TASK_TOKEN_HEADER, TaskType
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from hansa.errors import SuperLinkFailed
from hansa.federation.fleet_messages import EMPTY_BUNDLE, EMPTY_BUNDLE_HASH
from hansa.federation.flower_api import FlowerApi, Protobuf, R

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_MOST_TASKS = 64  # pending tasks of earlier runs in a SuperLink's database
HEARTBEAT_SECONDS = 20.0  # the SuperLink ends a run whose task was silent for 60 s


class SuperLinkRun:
    """A run, and the right to send and receive its messages.

    Args:
        api: The SuperLink on the loopback interface.
        secret: The SuperLink's secret for those that take tasks.
        generation: Number of the SuperLink process.

    Attributes:
        run_id: Flower's number of the run.
        sent: Messages that were sent in it.

    Raises:
        SuperLinkFailed: The task of the run is not given to whoever has the secret.
        See `FlowerApi.call` for everything else.
    """

    def __init__(self, api: FlowerApi, secret: bytes, generation: int) -> None:
        self._api, self.generation, self.sent = api, generation, 0
        bundle = Fab(hash_str=EMPTY_BUNDLE_HASH, content=EMPTY_BUNDLE)
        self.run_id = self._api.call(
            "/v1/control/start-run", StartRunRequest(fab=bundle), StartRunResponse
        ).run_id
        self._version = dict(RuntimeVersionMetadata.from_local_component("flwr-serverapp").as_metadata())
        self._token = self._acquire(derive_auth_secret(secret))
        self.call("pull-task-input", PullTaskInputRequest(), PullTaskInputResponse)

    def call(self, function: str, request: Protobuf, response_type: type[R]) -> R:
        """Call a function of the Runtime API as the task of this run."""
        headers = {TASK_TOKEN_HEADER: self._token, **self._version}
        return self._api.call(f"/v1/runtime/{function}", request, response_type, headers=headers)

    def keep_alive(self) -> None:
        """Tell the SuperLink that the ServerApp still runs."""
        self.call("send-task-heartbeat", SendTaskHeartbeatRequest(), SendTaskHeartbeatResponse)

    def stop(self) -> None:
        """End the run; the SuperLink forgets its messages."""
        self._api.call("/v1/control/stop-run", StopRunRequest(run_id=self.run_id), StopRunResponse)

    def _acquire(self, auth_secret: bytes) -> str:
        for _ in range(_MOST_TASKS):
            request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
            proof: Mapping[str, str] = create_superexec_auth_metadata(
                auth_secret=auth_secret, method=_ACQUIRE, request=request
            )
            found = self._api.call(
                "/v1/runtime/acquire-task", request, AcquireTaskResponse, headers={**proof, **self._version}
            )
            if not found.token:
                break
            if found.task.run_id == self.run_id:
                return str(found.token)
        raise SuperLinkFailed(f"the SuperLink does not give the task of run {self.run_id}")
