"""What the agent of a home wrote down about itself, read by commands; whether it runs is asked of the system."""

import json
import os
from pathlib import Path
from typing import Any

from hansa.participant.agent import STATUS_FILE


def read_status(folder: Path) -> dict[str, Any]:
    """Give process, status, connection, rounds by session and time of the last change, and whether the agent runs now."""
    nothing: dict[str, Any] = {
        "process": 0, "status": "the agent has never run", "connected": False, "seats": {}, "changed": 0,
    }  # fmt: skip
    try:
        found = {**nothing, **json.loads((folder / STATUS_FILE).read_bytes())}
    except (OSError, ValueError, TypeError):
        found = nothing
    running = _runs(int(found["process"]))
    return {**found, "running": running, "connected": bool(found["connected"]) and running}


def _runs(process: int) -> bool:
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
