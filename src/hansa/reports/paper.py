"""A privacy report as PDF, set by typst: the same contents as the page, for an archive (PDF/A-2a), for print and for a signature.

The bytes depend on the report only: fonts come with typst and matplotlib, never from the system, and the date is that of the
newest entry of a ledger. typst is an optional extra of the package; nothing else needs it.
"""

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hansa.errors import ExtraMissing, ReportValueInvalid
from hansa.reports.files import TEMPLATES
from hansa.reports.gather_data_sets import LAST_SECOND
from hansa.reports.privacy_report import PrivacyReport
from hansa.reports.wording import layer_of
from hansa.reports.written import written

_TEMPLATE = "privacy.typ"
_STANDARD = "a-2a"
# The light scheme of the page.
_COLOURS = {
    "ink": "#17202e",
    "soft": "#5a6474",
    "rule": "#dcdad3",
    "main": "#00639c",
    "second": "#7b8492",
    "limit": "#c24a00",
    "fill": "#dfeaf2",
}


def typst_here() -> Any:
    """Give typst, or say that PDFs cannot be made, before time is spent on a report.

    Raises:
        ExtraMissing: typst is not installed.
    """
    try:
        return import_module("typst")
    except ImportError as error:
        raise ExtraMissing(
            "a PDF report needs the package typst, which is not installed", hint="pip install 'hansa[report]'"
        ) from error


def report_pdf(report: PrivacyReport) -> bytes:
    """Return the report as a PDF.

    Raises:
        ExtraMissing: typst is not installed.
        ReportValueInvalid: typst refuses the document.

    Guarantees:
        - Two equal reports give the same bytes.
        - Every number is written as on the page; no text of the report is read as markup.
    """
    typst = typst_here()
    document = report.to_json()
    figures, files = _figures(document)
    layers = {one["layer"]: layer_of(one["layer"]) for one in document["overall"]["layers"]}
    for study in document["studies"]:
        layers.update((layer, layer_of(layer)) for layer in study["protections"])
    words = {layer: {"name": one.name, "on": one.on, "off": one.off} for layer, one in layers.items()}
    inputs = {
        "main.typ": (TEMPLATES / _TEMPLATE).read_bytes(),
        "written.json": json.dumps(written(document)).encode(),
        "figures.json": json.dumps(figures).encode(),
        "layers.json": json.dumps(words).encode(),
        **files,
    }
    try:
        found = typst.compile(
            inputs,
            format="pdf",
            ignore_system_fonts=True,
            font_paths=[str(_fonts())],
            pdf_standards=_STANDARD,
            timestamp=min(max(report.time, 0), LAST_SECOND),
            sys_inputs={"year": report.date[:4], "month": report.date[5:7], "day": report.date[8:]},
        )
    except RuntimeError as error:
        raise ReportValueInvalid(f"the report cannot be set as PDF: {str(error)[:200]}") from error
    if not isinstance(found, bytes):
        raise ReportValueInvalid("the report was set as something else than one PDF")
    return found


def _fonts() -> Path:
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf"


def _figures(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """File name and alternative text of each figure, and the files."""
    from hansa.reports import plots

    files: dict[str, bytes] = {}

    def entry(name: str, drawn: plots.Drawn | None) -> dict[str, str] | None:
        if drawn is None:
            return None
        files[name] = drawn.svg_file(_COLOURS)
        return {"file": name, "label": drawn.label}

    found = {
        "data_sets": entry("data-sets.svg", plots.epsilon_by_data_set(document)),
        "rounds": [
            entry(f"rounds-{place}.svg", plots.epsilon_by_round(one, place))
            for place, one in enumerate(document["data_sets"])
        ],
        "studies": [
            entry(f"study-{place}.svg", plots.participation(document, one, place))
            for place, one in enumerate(document["studies"])
        ],
    }
    return found, files
