"""The PDF: the same bytes every time, the same contents as the page, and a clear word where it cannot be made."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hansa.errors import ExtraMissing
from hansa.reports.paper import report_pdf, typst_here
from hansa.reports.privacy_report import PrivacyReport

typst = pytest.importorskip("typst")


@pytest.mark.slow
def test_a_pdf_is_made_and_its_bytes_depend_on_the_report_only(
    report: PrivacyReport, sound_folder: Path, tmp_path: Path
) -> None:
    found = report_pdf(report)
    assert found.startswith(b"%PDF-1.7")
    assert report_pdf(report) == found
    code = (
        "import sys; from pathlib import Path\n"
        "from hansa.reports.gather import gather\n"
        "from hansa.reports.paper import report_pdf\n"
        "Path(sys.argv[2]).write_bytes(report_pdf(gather(Path(sys.argv[1]))))\n"
    )
    changed = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Taipei", "SOURCE_DATE_EPOCH": "0"}
    subprocess.run(
        [sys.executable, "-c", code, str(sound_folder), str(tmp_path / "x.pdf")], env=changed, check=True
    )
    assert (tmp_path / "x.pdf").read_bytes() == found


def test_the_pdf_is_for_archives_and_names_its_date(report: PrivacyReport) -> None:
    found = report_pdf(report)
    assert b"<pdfaid:part>2</pdfaid:part>" in found
    assert b"20261111" in found  # creation date: the newest entry of a ledger, not today


def texts(report: PrivacyReport, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Catch what typst is given."""
    caught: dict[str, bytes] = {}
    compile_ = typst.compile

    def spy(inputs: dict[str, bytes], **given: Any) -> Any:
        caught.update(inputs)
        return compile_(inputs, **given)

    monkeypatch.setattr(typst, "compile", spy)
    report_pdf(report)
    return caught


def test_every_key_of_the_report_stands_in_the_document(
    report: PrivacyReport, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same contents as the page: each kind of number of the page is set in the PDF as well."""
    template = texts(report, monkeypatch)["main.typ"].decode()
    for key in (
        "epsilon_max", "epsilon_everywhere", "prv_low", "prv_high", "rdp", "limit", "left", "rounds_paid", "rounds_sent",
        "noise_multiplier", "sample_rate", "clip_norm", "steps_per_round", "rounds_planned", "cohort", "smallest_sum",
        "dropouts", "void_rounds", "base_model", "stated_by", "epsilon_at_least", "epsilon_claimed", "confidence",
        "canaries", "recovered", "approved_by", "code_version", "code_sha256", "public_key", "data", "root",
        "epsilon_each", "epsilon_after", "problems", "cautions", "sha256", "layers_off", "most_rounds",
    ):  # fmt: skip
        assert f".{key}" in template, key


def test_markup_in_a_text_is_shown_as_it_is(report: PrivacyReport) -> None:
    class Evil:
        time, date = report.time, report.date

        def to_json(self) -> dict[str, Any]:
            changed = report.to_json()
            changed["cautions"] = ['#panic("run")', "$x$ *b* <label> @ref"]
            changed["data_sets"][0]["name"] = '#read("/etc/passwd")'
            return changed

    assert report_pdf(Evil()).startswith(b"%PDF")  # type: ignore[arg-type]


def test_without_typst_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(ExtraMissing) as caught:
        typst_here()
    assert caught.value.exit_status == 78
    assert "hansa[report]" in caught.value.hint
