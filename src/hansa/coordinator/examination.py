"""What the checks of a coordinator's doctor look at: its home and its journal, opened once."""

import fcntl
import os
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path

from hansa.coordinator.daemon import LOCK
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.office import Office, open_office
from hansa.coordinator.settings import FILE_NAME
from hansa.federation import mending
from hansa.secure_agg.certificates import utc_now


class Examination:
    """A coordinator under examination; use as a context manager.

    Args:
        folder: Its home.
        now: Clock.
    """

    def __init__(self, folder: Path, *, now: Callable[[], datetime] = utc_now) -> None:
        self.folder, self.now = folder, now
        self._office: Office | None = None

    def __enter__(self) -> "Examination":
        return self

    def __exit__(self, *_: object) -> None:
        if self._office is not None:
            self._office.journal.close()

    @cached_property
    def home(self) -> CoordinatorHome:
        """The home; raises as `CoordinatorHome.open`."""
        return CoordinatorHome.open(self.folder)

    @property
    def office(self) -> Office:
        """The home with its journal open. Opening brings an older one to the newest form: for checks that need `journal`."""
        if self._office is None:
            self._office = open_office(self.home)
        return self._office

    @property
    def is_running(self) -> bool:
        """Whether a coordinator runs on this home: whether its lock is held. Asking takes a shared lock for a moment."""
        try:
            descriptor = os.open(self.folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(descriptor)
        return False

    def command(self, words: str) -> str:
        """A command of hansa for this home."""
        return mending.hansa(words, self.folder)

    def editing(self) -> str:
        """Open coordinator.toml in the user's editor."""
        return mending.edit(self.folder / FILE_NAME)
