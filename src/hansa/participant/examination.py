"""What the checks of a participant's doctor look at: its home, opened once, and what they tell each other."""

from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hansa.federation import mending
from hansa.participant.agent_status import read_status
from hansa.participant.consortium_client import CoordinatorFacts
from hansa.participant.dataset_file import DatasetsFile, load_datasets
from hansa.participant.home import ParticipantHome
from hansa.participant.study_desk import DeskStudy, StudyDesk
from hansa.secure_agg.certificates import utc_now

_STANDING = ("approved", "started", "paused")
DOOR_SECONDS = 5.0


class Examination:
    """A participant under examination.

    Args:
        folder: Its home.
        now: Clock.
        door_seconds: Longest wait for each step at a door of the coordinator.

    Attributes:
        facts: What the coordinator said of itself, once its door was tried.
    """

    def __init__(
        self, folder: Path, *, now: Callable[[], datetime] = utc_now, door_seconds: float = DOOR_SECONDS
    ) -> None:
        self.folder, self.now, self.door_seconds = folder, now, door_seconds
        self.facts: CoordinatorFacts | None = None

    @cached_property
    def home(self) -> ParticipantHome:
        """The home; raises as `ParticipantHome.open`."""
        return ParticipantHome.open(self.folder)

    @cached_property
    def datasets(self) -> DatasetsFile:
        """The data sets; raises as `load_datasets`."""
        return load_datasets(self.folder)

    @cached_property
    def studies(self) -> list[DeskStudy]:
        """The studies that were approved here and are not over."""
        desk = StudyDesk(self.folder, participant=self.home.name, now=self.now)
        return [study for study in desk.all() if study.state in _STANDING]

    @cached_property
    def agent(self) -> dict[str, Any]:
        """What the agent wrote down about itself, and whether it runs."""
        return read_status(self.folder)

    def served_by(self, data_set: str) -> list[DeskStudy]:
        """The studies that a data set serves."""
        return [study for study in self.studies if study.data_set == data_set]

    def command(self, words: str) -> str:
        """A command of hansa for this home."""
        return mending.hansa(words, self.folder)
