"""A server of PostgreSQL for tests: on a socket of its own, killed and started as a test wants. Its names sort as in English."""

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import sqlalchemy
from sqlalchemy.pool import NullPool

USER, PASSWORD = "bank", "a pass:word/with@signs"
FIRST_VERSION = 15  # the first whose databases may sort by ICU
FOLDERS = {int(path.parent.name): path for path in Path("/usr/lib/postgresql").glob("*/bin")}


def why_not() -> str:
    """Say what is missing for a server; empty where nothing is."""
    if importlib.util.find_spec("psycopg") is None:
        return "no driver of PostgreSQL"
    if max(FOLDERS, default=0) < FIRST_VERSION:
        return "no server of PostgreSQL"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "no server runs as root"
    return ""


class PostgresqlServer:
    """A server; use as a context manager, which ends it and removes what it wrote.

    Attributes:
        url: Of its first database, without the password.
    """

    def __init__(self) -> None:
        self._binaries = FOLDERS[max(FOLDERS)]
        as_root = os.geteuid() == 0
        self._lowered = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if as_root else []
        # Not below pytest's own folder, which only its owner may enter.
        self._held = tempfile.TemporaryDirectory(prefix="hansa-")
        self.folder = Path(self._held.name)
        secret = self.folder / "secret"
        secret.write_text(PASSWORD)
        if as_root:
            for path in (self.folder, secret):
                shutil.chown(path, "nobody", "nogroup")
        sorting = ["-E", "UTF8", "--locale=C", "--locale-provider=icu", "--icu-locale=en-US"]
        made = [
            self._binaries / "initdb",
            "-D",
            self.folder / "data",
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "-N",
        ]
        command = [*self._lowered, *map(str, made), *sorting, "--pwfile", str(secret)]
        subprocess.run(command, cwd=self.folder, check=True, capture_output=True, timeout=60)
        self._databases = 0
        self.url = self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def new_database(self) -> str:
        """Make an empty one; gives its URL without the password."""
        self._databases += 1
        name = f"test_{self._databases}"
        with self.owner(self.url, autocommit=True) as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return self.url_of(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = ["listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off"]
        options = [part for setting in settings for part in ("-c", setting)]
        self._process = subprocess.Popen(
            [*self._lowered, str(self._binaries / "postgres"), "-D", str(self.folder / "data"), *options],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with suppress(sqlalchemy.exc.OperationalError), self.owner(self.url):
                return
            time.sleep(0.1)
        raise TimeoutError("the server does not answer")

    def kill(self) -> None:
        """End it at once, in the middle of whatever it does."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(timeout=30)

    @contextmanager
    def owner(self, url: str, *, autocommit: bool = False) -> Iterator[sqlalchemy.Connection]:
        """A transaction of the owner of all."""
        engine = sqlalchemy.create_engine(with_password(url), poolclass=NullPool)
        if autocommit:
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.begin() as connection:
            yield connection

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._held.cleanup()


def with_password(url: str, password: str = PASSWORD) -> str:
    """Put a password into a URL."""
    return sqlalchemy.make_url(url).set(password=password).render_as_string(hide_password=False)
