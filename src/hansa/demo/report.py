"""report.html and report.json of a demo run: each one file, self-contained, written whole or not at all.

The page holds inline SVG and CSS only. Its content security policy forbids the browser to load anything, so
it can be opened on a machine without a network and mailed to somebody who trusts nobody. The heavy imports
happen when the page is made.
"""

import json
from pathlib import Path

from hansa.demo import wording
from hansa.demo.result import DemoResult
from hansa.reports.files import TEMPLATES, write_files

_TEMPLATE = "report.html.j2"
HTML_NAME = "report.html"
JSON_NAME = "report.json"


def report_json(result: DemoResult) -> str:
    """Return report.json: sorted keys, UTF-8, a newline at the end.

    Guarantees:
        - Two equal results give the same bytes.
    """
    text = json.dumps(result.to_json(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return text + "\n"


def report_html(result: DemoResult) -> str:
    """Return report.html.

    Guarantees:
        - Nothing in it is loaded from anywhere: no script, no address in src, href or url().
        - Every text of the result is escaped.
        - Two equal results give the same bytes.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from hansa.demo import plots

    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        bytes=wording.bytes_text,
        seconds=wording.seconds_text,
        score=wording.score_text,
        gain=wording.gain_text,
        epsilon=wording.epsilon_text,
        delta=wording.delta_text,
        factor=wording.factor_text,
    )
    layers = [(wording.layer_of(key), on) for key, on in result.protections.items()]
    return environment.get_template(_TEMPLATE).render(
        result=result,
        arms=wording.ARMS,
        layers=layers,
        switched_off=[layer.name for layer, on in layers if not on],
        messages=result.participants * result.rounds,
        figures={
            "auc": plots.auc_by_round(result),
            "epsilon": plots.epsilon_by_round(result),
            "traffic": plots.traffic(result),
            "time": plots.time_by_step(result),
        },
    )


def write_report(result: DemoResult, directory: Path) -> tuple[Path, Path]:
    """Write both files.

    Args:
        result: The finished run.
        directory: Folder, made if it does not exist.

    Returns:
        Paths of report.html and report.json.

    Raises:
        OutputNotWritable: A file cannot be written; an older report there is still whole.

    Guarantees:
        - A reader of either path sees the old file or the new one, never a part of one.
    """
    # Both are made before either is written: a fault in the page leaves no lone JSON behind.
    contents = {HTML_NAME: report_html(result).encode(), JSON_NAME: report_json(result).encode()}
    html_path, json_path = write_files(directory, contents)
    return html_path, json_path
