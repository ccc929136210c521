"""What a participant must not forget, on disk and encrypted: keys, masks in use, uploads, releases.

    header    the store's random id; generation and digest of all records, sealed
    records   slot     HMAC of the name: the place of a record says nothing about its name
              label    the generation of its last write and its name, sealed
              value    sealed under its name and generation

The names are sealed beside their values and read into memory when the store is opened: `keys` needs them in clear,
and the disk must not have them. Sealing is AES-256-GCM-SIV (RFC 8452): after a restored snapshot two histories run
under one key, and a repeated nonce must cost no more than showing that two values are equal. It is slow, so a long
value, an upload, is sealed by AES-256-GCM under a fresh random key that serves it alone; that key is sealed before it
in the same record. The digest is an
incremental multiset hash (Clarke et al., ASIACRYPT 2003, MSet-Add-Hash: a sum of keyed hashes modulo 2^256), so a
record that was taken out or put back to an older value is noticed.

What this does not hide: how many records there are, their lengths, and which of them change. It does not stop
whoever reads the key file. An older copy of the whole store is intact, and a log cut short is one: only a number
from outside tells, see `SealedStore.verify_not_older_than`. Deleted bytes are overwritten in the file, but a disk
may keep copies of its own.
"""

import hmac
import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from hansa import labels
from hansa.errors import KeyFileUnsafe, StateRollback, StoreDamaged, StoreInUse, StoreNotWritable
from hansa.secure_agg.derivation import derive_key, framed

KEY_BYTES = 32
_STORE_ID_BYTES = 16
_NONCE_BYTES = 12
_SEAL_BYTES = _NONCE_BYTES + 16  # that sealing adds: nonce and tag
_LONG_BYTES = 1 << 16  # values of more bytes have a key of their own
_GENERATION_BYTES = 8
_DIGEST_BYTES = 32
_SCHEMA = (
    "CREATE TABLE header (store_id BLOB NOT NULL, sealed BLOB NOT NULL)",
    "CREATE TABLE records (slot BLOB PRIMARY KEY, label BLOB NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
)
_PAGE_SIZE = "PRAGMA page_size = 16384"  # an upload of megabytes costs half as much as on pages of 4096
_SETTINGS = (
    "trusted_schema = OFF",
    "locking_mode = EXCLUSIVE",  # held until close; the end of a process, however it comes, frees it
    "journal_mode = WAL",
    "synchronous = FULL",  # a commit has reached the disk when it returns
    "secure_delete = ON",
)
_DISK_ERRORS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)


class _Seal:
    """Encryption of one store: everything it seals is bound to the store, a kind, a name and a generation."""

    def __init__(self, key: bytes, store_id: bytes) -> None:
        self._aead = AESGCMSIV(derive_key(key, salt=store_id, info=labels.STORE_KEY))
        self._slot_key = derive_key(key, salt=store_id, info=labels.STORE_SLOT_KEY)
        self.store_id = store_id

    def _context(self, kind: str, name: str, generation: int) -> bytes:
        counted = generation.to_bytes(_GENERATION_BYTES, "big")
        return framed(labels.STORE_RECORD, self.store_id, kind.encode(), name.encode(), counted)

    def close(self, data: bytes, kind: str, name: str = "", generation: int = 0) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, data, self._context(kind, name, generation))

    def open(self, sealed: object, kind: str, name: str = "", generation: int = 0) -> bytes:
        # SQLite has no fixed column types: a damaged file can give text, a number or nothing here.
        if type(sealed) is bytes and len(sealed) > _NONCE_BYTES:
            with suppress(InvalidTag, ValueError):
                context = self._context(kind, name, generation)
                return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        raise StoreDamaged(f"a {kind} of the store was altered, or the key is another store's")

    def close_value(self, value: bytes, name: str, generation: int) -> bytes:
        if len(value) <= _LONG_BYTES:
            return self.close(value, "value", name, generation)
        key = os.urandom(KEY_BYTES)
        head = self.close(key, "value key", name, generation)
        return head + AESGCM(key).encrypt(bytes(_NONCE_BYTES), value, None)

    def open_value(self, sealed: object, name: str, generation: int) -> bytes:
        if type(sealed) is not bytes or len(sealed) <= _LONG_BYTES + _SEAL_BYTES:
            return self.open(sealed, "value", name, generation)
        head_bytes = KEY_BYTES + _SEAL_BYTES
        key = self.open(sealed[:head_bytes], "value key", name, generation)
        try:
            return AESGCM(key).decrypt(bytes(_NONCE_BYTES), memoryview(sealed)[head_bytes:], None)
        except InvalidTag as error:
            raise StoreDamaged("a value of the store was altered") from error

    def slot(self, name: str) -> bytes:
        return hmac.digest(self._slot_key, self._context("slot", name, 0), "sha256")

    def term(self, name: str, generation: int) -> int:
        """What a record adds to the digest; its value is bound to name and generation by its seal."""
        return int.from_bytes(hmac.digest(self._slot_key, self._context("term", name, generation), "sha256"))


class SealedStore:
    """A durable key-value store, encrypted and authenticated.

    Args:
        path: The store; made if there is none. SQLite keeps a log beside it, `-wal`.
        key: 32 bytes, see `open_or_make_key`.

    Raises:
        StoreDamaged: The file was altered or cut short, or `key` is not its key.
        StoreInUse: Another process, or another object of this one, has it open.
        StoreNotWritable: The disk is full, or the folder is not writable.

    Guarantees:
        - What `put` and `delete` did is there after a crash once they returned; a part of it never is.
        - `get` returns the value last put under this name, or raises StoreDamaged.
        - Neither a name nor a value, nor a hash of one without a key, is on disk.
        - `generation` grows by one with every change.
        - repr() shows no secret. Calls from several threads are served one after another.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise StoreDamaged(f"a store key has {len(key)} bytes, not {KEY_BYTES}")
        self._path, self._lock = path, threading.Lock()
        self._written: dict[str, int] = {}  # name -> generation of its last write
        with _named_errors(path):
            if not path.exists():
                _make_empty(path, key)
            elif path.stat().st_size == 0:  # SQLite would take it for a new database
                raise StoreDamaged(f"{path.name} is empty")
            self._database = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
            try:
                for setting in _SETTINGS:
                    self._database.execute(f"PRAGMA {setting}")
                self._read(key)
            except BaseException:
                self._database.close()
                raise

    def _read(self, key: bytes) -> None:
        """Read header and names, and check that together they are what was last committed."""
        # A trigger or view in the file would run with our statements.
        found = tuple(sql for (sql,) in self._database.execute("SELECT sql FROM sqlite_schema ORDER BY name"))
        headers = self._database.execute("SELECT store_id, sealed FROM header").fetchall()
        if found != _SCHEMA or len(headers) != 1:
            raise StoreDamaged(f"{self._path.name} has not the tables of a store")
        store_id, sealed = headers[0]
        if type(store_id) is not bytes or len(store_id) != _STORE_ID_BYTES:
            raise StoreDamaged("the id of the store was altered")
        self._seal = _Seal(key, store_id)
        header = self._seal.open(sealed, "header")
        self._generation = int.from_bytes(header[:_GENERATION_BYTES])
        self._digest = int.from_bytes(header[_GENERATION_BYTES:])
        digest = 0
        for slot, label in self._database.execute("SELECT slot, label FROM records"):
            opened = self._seal.open(label, "label")
            generation, name = int.from_bytes(opened[:_GENERATION_BYTES]), opened[_GENERATION_BYTES:].decode()
            if slot != self._seal.slot(name):
                raise StoreDamaged("a record of the store stands at another place than its own")
            self._written[name] = generation
            digest = _plus(digest, self._seal.term(name, generation))
        if digest != self._digest:
            raise StoreDamaged("records of the store are missing or were put back to older ones")

    @property
    def generation(self) -> int:
        """How many changes were made to the store since it was made."""
        return self._generation

    def verify_not_older_than(self, generation: int) -> None:
        """Raise StateRollback if this is an older copy of the store than one that was seen.

        Args:
            generation: The highest generation that is known from outside the store: kept where a restored backup
                or snapshot does not reach it, or implied by what peers show that this participant signed.
        """
        if self._generation < generation:
            raise StateRollback(
                f"the store is at generation {self._generation}, it was at {generation} or above"
            )

    def keys(self, prefix: str = "") -> list[str]:
        """Return the names that begin with a prefix, sorted."""
        with self._lock:
            return sorted(name for name in self._written if name.startswith(prefix))

    def get(self, key: str) -> bytes | None:
        """Return the value under a name, None where there is none; StoreDamaged if it was altered."""
        with self._lock, _named_errors(self._path):
            if key not in self._written:
                return None
            query = "SELECT value FROM records WHERE slot = ?"
            found = self._database.execute(query, (self._seal.slot(key),)).fetchone()
            return self._seal.open_value(found and found[0], key, self._written[key])

    def put(self, key: str, value: bytes) -> None:
        """Keep a value under a name, in place of an earlier one. It is on disk when this returns.

        Raises:
            StoreNotWritable: The disk is full or failed; the store is as it was.
        """
        with self._lock:
            generation = self._generation + 1
            label = generation.to_bytes(_GENERATION_BYTES, "big") + key.encode()
            row = (
                self._seal.slot(key),
                self._seal.close(label, "label"),
                self._seal.close_value(value, key, generation),
            )
            term = self._seal.term(key, generation)
            self._commit(key, term, "INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)
            self._written[key] = generation

    def delete(self, key: str) -> None:
        """Forget a name and its value; nothing happens where there is none.

        Guarantees:
            - The sealed bytes are then in neither of the store's files.
        """
        with self._lock:
            if key in self._written:
                self._commit(key, 0, "DELETE FROM records WHERE slot = ?", (self._seal.slot(key),))
                del self._written[key]
                with _named_errors(self._path):
                    self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _commit(self, name: str, term: int, statement: str, values: tuple[bytes, ...]) -> None:
        """Change one record together with the header, or nothing."""
        digest = _plus(self._digest, term)
        if name in self._written:
            digest = _plus(digest, -self._seal.term(name, self._written[name]))
        generation = self._generation + 1
        sealed = _sealed_header(self._seal, generation, digest)
        with _named_errors(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.execute(statement, values)
                self._database.execute("UPDATE header SET sealed = ?", (sealed,))
                self._database.execute("COMMIT")
            except sqlite3.Error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        self._generation, self._digest = generation, digest

    def close(self) -> None:
        """Close the files; the store can then be opened elsewhere."""
        with self._lock:
            self._database.close()

    def __repr__(self) -> str:
        return f"SealedStore({self._path.name!r}, generation={self._generation})"


def _plus(digest: int, term: int) -> int:
    return (digest + term) % (1 << 8 * _DIGEST_BYTES)


def _sealed_header(seal: _Seal, generation: int, digest: int) -> bytes:
    plain = generation.to_bytes(_GENERATION_BYTES, "big") + digest.to_bytes(_DIGEST_BYTES, "big")
    return seal.close(plain, "header")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Give SQLite's failures the names that hansa has for them."""
    try:
        yield
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreInUse(f"{path.name} is open in another process") from error
        if primary in _DISK_ERRORS:
            raise StoreNotWritable(f"{path.name} cannot be written: {error}") from error
        raise StoreDamaged(f"{path.name} is not a store: {error}") from error
    except UnicodeDecodeError as error:
        raise StoreDamaged(f"{path.name} is not a store: damaged text") from error


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Give an empty file of mode 0600 to fill; it gets its name when it is whole, and replaces no other file."""
    unfinished = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    try:
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        yield unfinished
        for written in (unfinished, path.parent):
            descriptor = os.open(written, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
                if written is unfinished:
                    os.link(unfinished, path)
            finally:
                os.close(descriptor)
    except FileExistsError:
        raise
    except OSError as error:
        raise StoreNotWritable(f"{path.name} cannot be made: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _make_empty(path: Path, key: bytes) -> None:
    with (
        suppress(FileExistsError),
        _new_file(path) as unfinished,
    ):  # another process was first: open its store
        database = sqlite3.connect(unfinished)
        try:
            for statement in (_PAGE_SIZE, *_SCHEMA):
                database.execute(statement)
            seal = _Seal(key, os.urandom(_STORE_ID_BYTES))
            database.execute("INSERT INTO header VALUES (?, ?)", (seal.store_id, _sealed_header(seal, 0, 0)))
            database.commit()
        finally:
            database.close()


def open_or_make_key(path: Path) -> bytes:
    """Return the key in a file; make the file, with a new random key, if there is none.

    Args:
        path: The key file. It belongs on the machine that uses it, and in no backup that holds the store.

    Returns:
        32 bytes.

    Raises:
        KeyFileUnsafe: Not a regular file of ours, mode 0600 or stricter, of 32 bytes.
        StoreNotWritable: The file cannot be made.

    Guarantees:
        - The file is never readable by anybody else, not even while it is made, and is never overwritten.
        - Two processes that start together get the same key.
    """
    if not os.path.lexists(path):
        with suppress(FileExistsError), _new_file(path) as unfinished:
            unfinished.write_bytes(os.urandom(KEY_BYTES))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileUnsafe(f"{path.name} cannot be opened as a file: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise KeyFileUnsafe(f"{path.name} is not a file of this user")
        if status.st_mode & 0o077:
            raise KeyFileUnsafe(
                f"{path.name} has mode {stat.S_IMODE(status.st_mode):04o}, 0600 is the widest allowed"
            )
        key = os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(key) != KEY_BYTES:
        raise KeyFileUnsafe(f"{path.name} does not hold exactly {KEY_BYTES} bytes")
    return key
