"""Aggregates of finished rounds on disk, for members that open them later.

An aggregate is as large as the sum of a round, and a member that stays away may need many of them. They lie in files,
ciphertexts one after another, which nobody without the participants' key can read. The signed headers lie beside them and in
memory; a result counts from the moment on in which its headers are there.
"""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import cbor2

from hansa.errors import ResultExpired, StaleRound, StoreDamaged, StoreNotWritable
from hansa.secure_agg.ciphertext_format import EXPANDED_BYTES

KEPT_ROUNDS = 64
_AGGREGATE, _HEADERS = ".aggregate", ".headers"
_NAME = re.compile(r"round-(?P<round>\d+)-attempt-(?P<attempt>\d+)\.(aggregate|headers)")

At = tuple[int, int]
Seal = Callable[[Callable[[bytes], None]], list[bytes]]


class RoundResults:
    """Headers and aggregate of the last rounds, by round and attempt.

    Args:
        folder: Where the files lie; a folder of its own for temporary files if not given, removed with this object.
        rounds: Rounds that are kept; when there are more the oldest is removed.

    Guarantees:
        - A result is there whole or not at all, also after a crash or on a full disk.
        - Memory and disk are bounded by `rounds`, whatever a member that stays away does.
        - Made anew on the same folder it has the same results.

    Raises:
        StoreDamaged: A file of headers in the folder is not one.
    """

    def __init__(self, folder: Path | None = None, rounds: int = KEPT_ROUNDS) -> None:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="hansa-results-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._rounds = folder, rounds
        self._lock = threading.Lock()
        self._headers: dict[At, list[bytes]] = {}
        self._counts: dict[At, int] = {}
        self._expired_round = 0
        self._find()

    def keep(self, at: At, seal: Seal) -> None:
        """Write one result.

        Args:
            at: Round and attempt.
            seal: Called with what takes one ciphertext after another; returns the signed headers.

        Raises:
            StoreNotWritable: The disk is full or the folder is gone; no result is kept, and it can be tried again.
        """
        with self._lock:
            path, count = self._path(at), 0
            partial = path.with_suffix(".part")
            try:
                with open(partial, "wb") as file:

                    def write(ciphertext: bytes) -> None:
                        nonlocal count
                        file.write(ciphertext)
                        count += 1

                    headers = seal(write)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
                self._write_headers(path.with_suffix(_HEADERS), headers)
            except OSError as error:
                raise StoreNotWritable(
                    f"the result of round {at[0]} cannot be kept: {error.strerror}"
                ) from error
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
            self._headers[at], self._counts[at] = headers, count
            self._keep_within_bounds()

    def headers(self, at: At) -> list[bytes]:
        """Return the signed headers of a result.

        Raises:
            ResultExpired: The round is older than those that are kept.
            StaleRound: There is no such result.
        """
        with self._lock:
            if at in self._headers:
                return list(self._headers[at])
            if 0 < at[0] <= self._expired_round:
                raise ResultExpired(
                    f"the result of round {at[0]} is not kept any more, the last {self._rounds} rounds are"
                )
            raise StaleRound(f"round {at[0]} attempt {at[1]} has no result")

    def count(self, at: At) -> int:
        """Return the number of ciphertexts of a result; raises as `headers`."""
        self.headers(at)
        return self._counts.get(at, 0)  # 0 if it was forgotten this moment

    def ciphertexts(self, at: At, first_index: int = 0) -> Iterator[bytes]:
        """Give the aggregate of a result from an index on, one ciphertext at a time; raises as `headers`, and StoreDamaged."""
        self.headers(at)
        try:
            with open(self._path(at), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size != self._counts[at] * EXPANDED_BYTES:
                    raise StoreDamaged(
                        f"the result of round {at[0]} was altered on disk: it has {size} bytes",
                        hint="find out who writes to the coordinator's folder; members that need this result are out of this run",
                    )
                file.seek(first_index * EXPANDED_BYTES)
                while ciphertext := file.read(EXPANDED_BYTES):
                    yield ciphertext
        except (FileNotFoundError, KeyError):
            self.headers(at)  # it was forgotten in between, or
            raise StoreDamaged(
                f"the result of round {at[0]} was removed from the disk",
                hint="find out who writes to the coordinator's folder; members that need this result are out of this run",
            ) from None

    def forget(self, before_round: int) -> None:
        """Remove the results of rounds before this one: every member has applied them."""
        with self._lock:
            self._remove(lambda number: number < before_round)

    def __len__(self) -> int:
        return len(self._headers)

    def _keep_within_bounds(self) -> None:
        rounds = sorted({number for number, _ in self._headers})
        if len(rounds) > self._rounds:
            oldest = rounds[-self._rounds]
            self._expired_round = max(self._expired_round, oldest - 1)
            self._remove(lambda number: number < oldest)

    def _remove(self, outdated: Callable[[int], bool]) -> None:
        for at in [at for at in self._headers if outdated(at[0])]:
            del self._headers[at], self._counts[at]
            self._path(at).with_suffix(_HEADERS).unlink(missing_ok=True)
            self._path(at).unlink(missing_ok=True)

    def _write_headers(self, path: Path, headers: list[bytes]) -> None:
        """Write the headers; the result counts when this returns."""
        partial = path.with_suffix(".headers-part")
        with open(partial, "wb") as file:
            file.write(cbor2.dumps(headers))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _find(self) -> None:
        """Take up the results that a process before this one kept, and remove what it left half done."""
        for path in self._folder.glob("round-*"):
            named = _NAME.fullmatch(path.name)
            whole = path.with_suffix(_HEADERS).exists() and path.with_suffix(_AGGREGATE).exists()
            if named is None or not whole:
                path.unlink(missing_ok=True)
                continue
            if path.suffix != _HEADERS:
                continue
            at = int(named["round"]), int(named["attempt"])
            try:
                headers = cbor2.loads(path.read_bytes())
            except cbor2.CBORError as error:
                raise StoreDamaged(f"{path.name} is not a file of headers") from error
            if not isinstance(headers, list) or not all(isinstance(one, bytes) for one in headers):
                raise StoreDamaged(f"{path.name} is not a file of headers")
            self._headers[at] = headers
            self._counts[at] = path.with_suffix(_AGGREGATE).stat().st_size // EXPANDED_BYTES
        if self._headers:
            self._expired_round = min(number for number, _ in self._headers) - 1

    def _path(self, at: At) -> Path:
        return self._folder / f"round-{at[0]}-attempt-{at[1]}{_AGGREGATE}"
