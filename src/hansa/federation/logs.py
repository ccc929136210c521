"""The daemons' log: one JSON object a line on stderr, or a readable line where stderr is a terminal.

An event is a constant in snake_case with values beside it. Secrets have no place in it: values of fields that are named like one
are replaced, bytes are shown by their length, a long text is cut, and no character comes through that a terminal would act on.
Lines of the libraries below (Flower, gRPC) pass through the same processors.
"""

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

_SECRET_NAMES = ("secret", "password", "token", "code", "private", "seed", "credential", "key_file_text")
_PUBLIC_NAMES = frozenset({"error_code", "exit_code", "status_code"})
_MOST_CHARACTERS = 2000
_CHATTERERS = ("flwr", "httpx", "alembic", "uvicorn")  # libraries with a handler or a level of their own
Event = MutableMapping[str, Any]


def set_up_logs(stream: TextIO = sys.stderr, *, level: int = logging.INFO) -> None:
    """Send every log line of this process to a stream.

    Args:
        stream: Where lines go; a terminal gets readable ones.
        level: Least level that is shown.

    Guarantees:
        - The value of a field whose name speaks of a secret is not shown, nor are the bytes of any field.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    plain = stream.isatty()
    last = structlog.dev.ConsoleRenderer(colors=False) if plain else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in _CHATTERERS:
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hansa").setLevel(level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def log(room: str) -> Any:
    """Give the log of a room, such as `log("coordinator")`: `.info("round_ended", round=3)`."""
    return structlog.get_logger(f"hansa.{room}")


def redact(_logger: Any, _method: str, event: Event) -> Event:
    """Replace values that no log may show."""
    return {name: _shown(name, value) for name, value in event.items()}


def _shown(name: str, value: Any) -> Any:
    if name not in _PUBLIC_NAMES and any(part in name.lower() for part in _SECRET_NAMES):
        return "..."
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {key: _shown(str(key), one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shown(name, one) for one in list(value)[:100]]
    if isinstance(value, str):
        text = value if len(value) <= _MOST_CHARACTERS else value[:_MOST_CHARACTERS] + "..."
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    return value


class FewLines:
    """Keeps a stranger from filling the log: of each kind of line a few are written a minute, the others counted.

    Args:
        most: Lines of a kind in a minute.
        clock: Seconds that only grow.

    Guarantees:
        - However often something happens, no more than `most` lines of its kind are written in a minute.
        - What was left out is counted in the first line of a later minute.
    """

    def __init__(self, most: int = 20, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._minutes: dict[str, tuple[int, int]] = {}  # by kind: the minute, and how often in it

    def next(self, kind: str) -> str | None:
        """Give what to write at the end of the next line of a kind, or None where it is left out."""
        minute = int(self._clock() // 60)
        then, times = self._minutes.get(kind, (minute, 0))
        left_out = times - self._most if then != minute else 0
        times = 1 if then != minute else times + 1
        self._minutes[kind] = (minute, times)
        if times > self._most:
            return None
        return f"; {left_out} more before that" if left_out > 0 else ""
