"""Two consortia."""

from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def house(house_of_members: Any) -> Any:
    return house_of_members


@pytest.fixture(scope="session")
def other_house(federated: ModuleType) -> Any:
    return federated.House(name="southern-banks")
