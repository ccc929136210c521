"""A study small enough to train in milliseconds, with any value changed; a seat in a study that was started."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from hansa.participant.seat import Seat
from hansa.participant.study_desk import StudyDesk
from hansa.secure_agg.certificates import utc_now
from hansa.study import Study


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Work this small is slower on several threads, much slower on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def study_with() -> Callable[..., Study]:
    """Make a study; each argument is a section whose values replace the ones below."""

    def make(**changes: dict[str, Any]) -> Study:
        agreement: dict[str, Any] = {
            "schema": "hansa/study/v1",
            "name": "small",
            "purpose": "test",
            "data": {
                "label": "y",
                "columns": [{"name": "a", "kind": "numeric", "minimum": 0, "maximum": 1}],
            },
            "model": {
                "dim": 8,
                "layers": 2,
                "heads": 2,
                "experts": 8,
                "top_k": 2,
                "expert_dim": 4,
                "shared_expert_dim": 4,
            },
            "privacy": {
                "epsilon": 8.0,
                "delta": 1e-5,
                "clip_norm": 0.5,
                "sample_rate": 0.5,
                "nominal_records": 40,
            },
            "training": {"rounds": 4, "server_optimizer": {"learning_rate": 0.01}},
            "aggregation": {"participants": 3},
        }
        for section, values in changes.items():
            agreement[section] = {**agreement.get(section, {}), **values}
        return Study.model_validate(agreement)

    return make


@pytest.fixture
def seat(small: Any) -> Iterator[Seat]:
    """The seat of bank-1, which no coordinator can reach."""
    small.start()
    home = small.members["bank-1"]
    desk = StudyDesk(home.folder, participant=home.name, now=utc_now)
    (study,) = desk.all()
    channel: Any = None
    made = Seat(home, study, folder=desk.folder_of(study), base=small.base, channel=channel, report=[].append)
    yield made
    made.close()
