"""The password of a database from its file: who else may read it, what it holds, and that no message repeats it."""

from pathlib import Path

import pytest

from hansa import errors
from hansa.federation.password_file import password_path, read_password

SECRET = "8675309"  # a value that must never be seen in a message


def assert_shows_no_value(error: BaseException | None) -> None:
    while error is not None:
        assert SECRET not in str(error)
        assert SECRET not in getattr(error, "hint", "")
        error = error.__cause__ or error.__context__


def secret_file(path: Path, content: bytes = SECRET.encode() + b"\n", mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_password_comes_from_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    secret_file(tmp_path / "p")
    assert read_password(Path("p"), tmp_path) == SECRET
    assert read_password(tmp_path / "p", Path("/nowhere")) == SECRET
    for mode in (0o640, 0o604, 0o660):
        secret_file(tmp_path / "p", mode=mode)
        with pytest.raises(errors.KeyFileUnsafe, match=f"mode {mode:04o}, 0600 is the widest") as caught:
            read_password(Path("p"), tmp_path)
        assert_shows_no_value(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"two\nlines", b"nul\0", b"\xff", b"x" * 4097])
def test_a_file_that_is_no_password(tmp_path: Path, content: bytes) -> None:
    secret_file(tmp_path / "p", content)
    with pytest.raises(errors.KeyFileUnsafe, match="does not hold one line"):
        read_password(Path("p"), tmp_path)


def test_a_password_that_is_missing_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(errors.PasswordFileMissing) as caught:
        read_password(Path("none"), tmp_path)
    assert caught.value.exit_status == 66
    with pytest.raises(errors.KeyFileUnsafe, match="not a regular file"):
        read_password(Path(), tmp_path)


def test_a_credential_of_the_system_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
    secret_file(tmp_path / "p", b"home")
    assert read_password(Path("p"), tmp_path) == "home"
    secret_file(credentials / "p", b"system", 0o440)  # as systemd hands it to a service user
    assert read_password(Path("p"), tmp_path) == "system"
    assert password_path(Path("p"), tmp_path) == credentials / "p"
    (credentials / "p").chmod(0o444)
    with pytest.raises(errors.KeyFileUnsafe, match="mode 0444"):
        read_password(Path("p"), tmp_path)
