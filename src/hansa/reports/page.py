"""A privacy report as JSON and as a page: one file, self-contained, that opens offline and says the same on every machine.

The page is made from the JSON form. Every number in it is a `<data>` element that names its place there, so that a reader, or a
test, can hold the two together. Its content security policy forbids the browser to load anything.
"""

import json
from collections.abc import Mapping
from typing import Any

from hansa.reports.files import TEMPLATES
from hansa.reports.privacy_report import PrivacyReport
from hansa.reports.wording import layer_of
from hansa.reports.written import write

_TEMPLATE = "privacy.html.j2"


def report_json(report: PrivacyReport) -> str:
    """Return the report as JSON: sorted keys, UTF-8, a newline at the end.

    Guarantees:
        - Two equal reports give the same bytes.
    """
    text = json.dumps(report.to_json(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text + "\n"


def report_html(report: PrivacyReport) -> str:
    """Return the report as a page.

    Guarantees:
        - Nothing in it is loaded from anywhere: no script, no address in src, href or url().
        - Every number in it is one of the JSON form, written by one rule for its kind; every text is escaped.
        - Two equal reports give the same bytes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    document = report.to_json()

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(at=at, text_at=text_at, layer_of=layer_of)
    return environment.get_template(_TEMPLATE).render(report=document, figures=_figures(document))


def at(document: Any, place: str) -> Any:
    """Give the value at a place of the JSON form, such as `data_sets.0.spent.epsilon`."""
    for part in place.split("."):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def text_at(document: Any, place: str) -> str:
    """Write the number at a place of the JSON form."""
    key = [part for part in place.split(".") if not part.isdigit()][-1]
    return write(key, at(document, place))


def _figures(document: Mapping[str, Any]) -> dict[str, Any]:
    from hansa.reports import plots

    def svg(drawn: plots.Drawn | None) -> str:
        return "" if drawn is None else drawn.svg()

    return {
        "data_sets": svg(plots.epsilon_by_data_set(document)),
        "rounds": [
            svg(plots.epsilon_by_round(one, place)) for place, one in enumerate(document["data_sets"])
        ],
        "studies": [
            svg(plots.participation(document, one, place)) for place, one in enumerate(document["studies"])
        ],
    }
