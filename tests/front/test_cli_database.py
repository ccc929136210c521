"""Commands of a coordinator whose journal is at a server: what is wrong ends by name, and the password is in no output."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

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
