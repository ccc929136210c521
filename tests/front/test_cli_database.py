"""Commands of a coordinator whose journal is at a server: what is wrong ends by name, and the password is in no output."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from hansa.coordinator.journal import Journal
from hansa.coordinator.sole_server import SoleServer

HANSA = [sys.executable, "-P", "-m", "hansa"]
WITHOUT_DRIVER = (
    "import sys; sys.modules['psycopg'] = None\n"  # as where it is not installed: its import fails
    "from hansa.cli import main; main()"
)
PASSWORD = "geheim-4711"


def without_password(url: str) -> str:
    return sa.make_url(url)._replace(password=None).render_as_string(hide_password=False)


class Place:
    """A consortium that was founded with its journal at the server, by the command."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.home, self.url = folder, folder / "home", without_password(url)
        self.home.mkdir(mode=0o700)
        self.file = self.home / "database-password"
        self.file.touch(mode=0o600)
        self.password = str(sa.make_url(url).password)
        self.file.write_text(self.password + "\n")
        at = ("--database", self.url, "--database-password-file", self.file.name)
        done = self.run("consortium", "init", "northern", "--address", "127.0.0.1", *at)
        assert done.returncode == 0, done.stderr
        self.settings = self.home / "coordinator.toml"

    def run(self, *arguments: str, command: list[str] | None = None) -> Any:
        done = subprocess.run(
            [*(command or HANSA), *arguments],
            cwd=self.folder,
            env={**os.environ, "HANSA_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        for secret in (self.password, PASSWORD):
            assert secret not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def fails(
        self, *arguments: str, status: int, code: str, command: list[str] | None = None
    ) -> tuple[str, str]:
        done = self.run(*arguments, command=command)
        assert done.returncode == status, done.stderr
        error, hint = done.stderr.strip().splitlines()[-2:]
        assert error.startswith("hansa: error: ")
        assert error.endswith(f"[{code}]")
        assert hint.startswith("hansa: hint: ")
        assert done.stdout == ""
        return error, hint

    def change(self, old: str, new: str) -> None:
        text = self.settings.read_text()
        assert old in text
        self.settings.write_text(text.replace(old, new))


@pytest.fixture
def place(tmp_path: Path, database: str) -> Place:
    return Place(tmp_path, database)


def test_a_consortium_is_founded_and_shown_with_its_journal_at_a_server(place: Place) -> None:
    done = place.run("consortium", "show")
    assert done.returncode == 0, done.stderr
    assert "authors             admin" in done.stdout
    assert not (place.home / "journal.sqlite").exists()


def test_what_is_wrong_with_the_database_ends_by_name(place: Place) -> None:
    show = ("consortium", "show")
    place.file.write_text(PASSWORD)
    error, hint = place.fails(*show, status=69, code="journal_unreachable")
    assert "password authentication failed" in error
    assert "database_password_file" in hint
    place.file.chmod(0o644)
    place.fails(*show, status=78, code="key_file_unsafe")
    place.file.unlink()
    error, hint = place.fails(*show, status=66, code="password_file_missing")
    assert "database_password_file" in hint
    place.change("database_password_file", "# database_password_file")
    place.change(place.url, f"postgresql://bank:{PASSWORD}@127.0.0.1:1/none")
    error, _ = place.fails(*show, status=69, code="journal_unreachable")
    assert "127.0.0.1:1/none does not answer" in error
    error, hint = place.fails(
        *show, status=78, code="driver_missing", command=[sys.executable, "-P", "-c", WITHOUT_DRIVER]
    )
    assert "'psycopg' is not installed" in error
    assert "pip install 'hansa[postgresql]'" in hint
    place.change("postgresql://", "")
    place.fails(*show, status=78, code="database_unusable")


def test_a_url_with_a_password_founds_nothing(place: Place) -> None:
    url = f"postgresql://bank:{PASSWORD}@127.0.0.1/none"
    init = ("consortium", "init", "northern", "--address", "127.0.0.1", "--home", "second")
    error, hint = place.fails(*init, "--database", url, status=78, code="invalid_value")
    assert "holds a password" in error
    assert "--database-password-file" in hint
    assert not (place.folder / "second").exists()
    at = ("--database", place.url, "--database-password-file", str(place.file))
    place.fails(*init, *at, "--dry-run", status=78, code="home_exists")


def test_a_coordinator_from_another_home_is_refused_while_one_serves(place: Place, database: str) -> None:
    second = place.folder / "second"
    shutil.copytree(place.home, second)
    with Journal(database) as journal, SoleServer(journal):
        error, hint = place.fails("coordinator", "run", "--home", str(second), status=1, code="store_in_use")
        assert "another coordinator serves on the journal" in error
        assert "a database of its own" in hint
        assert place.run("participant", "list").returncode == 0  # the admin's commands go on


@pytest.mark.enable_socket  # to find free ports
def test_two_coordinators_from_two_homes_do_not_both_serve(place: Place, cluster_parts: Any) -> None:
    """As processes, started at one moment, with doors of their own: one is ready, the other has ended."""
    homes = [place.home, place.folder / "second"]
    shutil.copytree(place.home, homes[1])
    children = []
    for home in homes:
        *ports, metrics = cluster_parts.free_ports(5)
        file = home / "coordinator.toml"
        text = file.read_text().replace("127.0.0.1:9447", f"127.0.0.1:{metrics}")
        for at, port in enumerate(ports):
            text = text.replace(f'"0.0.0.0:{9443 + at}"', f'"127.0.0.1:{port}"')
        file.write_text(text)
        children.append(
            subprocess.Popen(
                [*HANSA, "coordinator", "run", "--home", str(home)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        until = time.monotonic() + 90
        while all(child.poll() is None for child in children):
            assert time.monotonic() < until
            time.sleep(0.1)
        (ended,) = [child for child in children if child.poll() is not None]
        (serving,) = [child for child in children if child is not ended]
        assert ended.returncode == 1
        assert "[store_in_use]" in str(ended.stderr and ended.stderr.read())
        for line in serving.stderr or ():
            if "coordinator_ready" in line:
                break
        assert serving.poll() is None
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            _, err = child.communicate(timeout=60)
            assert place.password not in err
