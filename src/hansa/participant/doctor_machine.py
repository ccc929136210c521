"""Checks of a participant's machine and its agent: disk, GPU, packages, telemetry, the agent, the stores of its studies."""

import shlex
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hansa.errors import Error, StoreInUse
from hansa.federation.checks import Check, Finding, fail, failure, ok, warn
from hansa.federation.files import read_private_file
from hansa.federation.machine_checks import (
    look_at_disk,
    look_at_packages,
    look_at_shadows,
    look_at_telemetry,
)
from hansa.federation.mending import restore
from hansa.participant.examination import Examination
from hansa.participant.store import SealedStore


def look_at_accelerator(_place: Examination) -> Iterator[Finding]:
    """Say which processor trains. Nothing here fails: every operation has a path for the CPU."""
    import torch  # noqa: PLC0415 - seconds, and only this check needs it

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        if triton:
            yield ok(f"{name}, torch {torch.__version__}, triton {triton}")
        else:
            told = f"{name} is there, and Triton is not: torch's own operations are used"
            yield warn(told, "pip install triton", code="triton_missing")
    elif any(Path("/dev").glob("nvidia[0-9]*")):
        told = f"a GPU is there, and torch {torch.__version__} does not use it: the processor trains"
        yield warn(told, "nvidia-smi", code="gpu_unused")
    else:
        yield ok(f"no GPU: the processor trains, torch {torch.__version__}, triton {triton or 'missing'}")


def look_at_agent(place: Examination) -> Iterator[Finding]:
    """Say whether the agent runs, and what it says."""
    found, run = place.agent, place.command("participant run")
    if not found["running"]:
        yield warn("the agent does not run", run, code="agent_stopped")
    elif not found["connected"]:
        told = f"the agent runs as process {found['process']}: {found['status']}"
        yield warn(told, place.command("participant status"), code="agent_unconnected")
    else:
        yield ok(f"runs as process {found['process']}: {found['status']}")


def look_at_stores(place: Examination) -> Iterator[Finding]:
    """Open the store of every study where the agent does not have it open."""
    for path in sorted(place.folder.glob("studies/*/node.store")):
        session, key = path.parent.name[:8], path.with_name("node.key")
        if place.agent["running"]:
            yield ok("left to the agent, which runs", subject=session)
            continue
        try:
            SealedStore(path, read_private_file(key)).close()
        except StoreInUse as error:
            yield fail(
                f"{error.message}, and no agent of this home runs", f"fuser -v {shlex.quote(str(path))}", code=error.code,
                subject=session,
            )  # fmt: skip
        except Error as error:
            yield failure(error, "" if key.exists() else restore(key), subject=session)
        else:
            yield ok("opens", subject=session)


MACHINE_CHECKS: tuple[Check[Examination], ...] = (
    Check(name="disk_space", look=lambda place: [look_at_disk(place.folder)]),
    Check(name="accelerator", look=look_at_accelerator, limit_seconds=60.0),
    Check(name="packages", look=lambda _: look_at_packages()),
    Check(name="shadowing", look=lambda _: [look_at_shadows()]),
    Check(name="telemetry", look=lambda _: [look_at_telemetry()]),
    Check(name="agent", look=look_at_agent, needs=("settings",)),
    Check(name="node_stores", look=look_at_stores, needs=("settings",)),
)
