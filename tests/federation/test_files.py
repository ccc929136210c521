"""Files of a home: whole or not at all, and secrets for their owner only."""

import os
import stat

import pytest

from hansa.errors import HomeMissing, KeyFileUnsafe, OutputNotWritable, StoreNotWritable
from hansa.federation.files import (
    PRIVATE,
    make_folder,
    point_to,
    read_file,
    read_private_file,
    write_file,
    write_output,
)


def test_a_secret_is_for_its_owner_from_the_first_moment(tmp_path, monkeypatch):
    seen, plain = [], os.rename

    def watch(source, target):
        seen.append(stat.S_IMODE(os.stat(source).st_mode))
        plain(source, target)

    monkeypatch.setattr(os, "rename", watch)
    old = os.umask(0)
    try:
        write_file(tmp_path / "key", b"secret", mode=PRIVATE)
    finally:
        os.umask(old)
    assert seen == [0o600]
    assert read_private_file(tmp_path / "key") == b"secret"


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_file(tmp_path / "file", b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreNotWritable, match="No space left"):
        write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_must_not_be_replaced_is_not(tmp_path):
    write_file(tmp_path / "key", b"first", mode=PRIVATE, replace=False)
    with pytest.raises(StoreNotWritable):
        write_file(tmp_path / "key", b"second", mode=PRIVATE, replace=False)
    with pytest.raises(OutputNotWritable):
        write_output(tmp_path / "key", b"third")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OutputNotWritable):
        write_output(tmp_path / "absent" / "file", b"x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610])
def test_a_secret_that_others_can_touch_is_refused(tmp_path, mode):
    path = tmp_path / "key"
    write_file(path, b"secret", mode=PRIVATE)
    path.chmod(mode)
    with pytest.raises(KeyFileUnsafe, match=f"has mode {mode:04o}"):
        read_private_file(path)


def test_a_secret_is_a_file_of_its_own(tmp_path):
    write_file(tmp_path / "key", b"secret", mode=PRIVATE)
    (tmp_path / "link").symlink_to("key")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe", "."):
        with pytest.raises(KeyFileUnsafe):
            read_private_file(tmp_path / name)
    with pytest.raises(HomeMissing):
        read_private_file(tmp_path / "absent")
    with pytest.raises(HomeMissing):
        read_file(tmp_path / "absent")


def test_a_folder_is_for_its_owner_and_a_link_moves_at_once(tmp_path):
    make_folder(tmp_path / "home")
    assert stat.S_IMODE((tmp_path / "home").stat().st_mode) == 0o700
    link = tmp_path / "home" / "current"
    for target in ("a", "b"):
        point_to(link, target)
        assert os.readlink(link) == target
    assert [path.name for path in link.parent.iterdir()] == ["current"]
    with pytest.raises(StoreNotWritable):
        point_to(tmp_path / "absent" / "current", "a")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreNotWritable):
        make_folder(tmp_path / "file" / "home")
