"""The report of a sound folder, made once."""

from pathlib import Path
from typing import Any

import pytest

from hansa.reports.gather import gather
from hansa.reports.privacy_report import PrivacyReport


@pytest.fixture(scope="session")
def report(sound_folder: Path) -> PrivacyReport:
    return gather(sound_folder)


@pytest.fixture(scope="session")
def document(report: PrivacyReport) -> dict[str, Any]:
    return report.to_json()
