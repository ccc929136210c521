"""What a participant's machines need of durable storage, and a store in memory."""

from typing import Protocol


class Store(Protocol):
    """Keys and values that survive a crash. Every machine writes here before it acts.

    Guarantees (of an implementation):
        - When `put` or `delete` returns, the change survives a crash; a change that was interrupted happened
          wholly or not at all.
    """

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""

    def put(self, key: str, value: bytes) -> None:
        """Set a value; durable when it returns."""

    def delete(self, key: str) -> None:
        """Remove a key if it is there."""

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""


class MemoryStore:
    """A store that lives as long as the process; for tests and measurements."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """Return the value of a key, or None."""
        return self._values.get(key)

    def put(self, key: str, value: bytes) -> None:
        """Set a value."""
        self._values[key] = bytes(value)

    def delete(self, key: str) -> None:
        """Remove a key if it is there."""
        self._values.pop(key, None)

    def keys(self, prefix: str) -> list[str]:
        """Return the keys that begin with a prefix, sorted."""
        return sorted(key for key in self._values if key.startswith(prefix))

    def copy(self) -> "MemoryStore":
        """Return an independent copy, such as a backup that is restored later."""
        twin = MemoryStore()
        twin._values = dict(self._values)
        return twin

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._values)} keys)"
