"""report.html and report.json of a demo run: each one file, self-contained, written whole or not at all.

The page holds inline SVG and CSS only. Its content security policy forbids the browser to load anything, so
it can be opened on a machine without a network and mailed to somebody who trusts nobody. The heavy imports
happen when the page is made.
"""

import json
import os
from pathlib import Path

from hansa.demo import wording
from hansa.demo.result import DemoResult
from hansa.errors import OutputNotWritable

_TEMPLATE = "report.html.j2"
HTML_NAME = "report.html"
JSON_NAME = "report.json"


def prepare_directory(directory: Path) -> None:
    """Make the folder for the report and prove that it can be written to, before a run spends minutes.

    Raises:
        OutputNotWritable: It cannot be made, is a file, or refuses a new file.
    """
    probe = directory / f".{JSON_NAME}.{os.getpid()}.probe"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_writable(directory, error) from error


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
        loader=FileSystemLoader(Path(__file__).parent),
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
    contents = {HTML_NAME: report_html(result), JSON_NAME: report_json(result)}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write_atomically(directory / name, content.encode())
    except OSError as error:
        raise _not_writable(directory, error) from error
    return directory / HTML_NAME, directory / JSON_NAME


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, must survive a power cut
    finally:
        os.close(folder)


def _not_writable(directory: Path, error: OSError) -> OutputNotWritable:
    reason = (error.strerror or "unknown reason").lower()
    return OutputNotWritable(f"folder {str(directory)!r} cannot be written: {reason}")
