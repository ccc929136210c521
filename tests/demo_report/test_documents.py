"""The documents name files, tests, contracts and exit statuses; all of them must exist."""

import re
import tomllib
from pathlib import Path

import pytest

from hansa import errors

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "deploy/README.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLANNED: set[str] = set()
TOP = "src|tests|docs|examples|benchmarks|deploy"


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request) -> Path:
    return request.param


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def test_every_file_that_is_named_exists(document):
    spans = code_spans(document.read_text())
    named = {span.split("::")[0] for span in spans if re.match(rf"(?:{TOP})/[^ <>]*$", span)}
    named -= PLANNED | {"benchmarks/out/<name>.json"}
    assert sorted(name for name in named if not any(ROOT.glob(name))) == []


def test_every_test_that_is_named_exists(document):
    file, missing = Path(), []
    for span in code_spans(document.read_text()):
        found = re.fullmatch(r"(?:tests/)?([\w/]+\.py)?(?:::(\w+))?", span)
        if found is None or not (found[1] or found[2]):
            continue
        if found[1] and "/test_" in found[1]:
            file = ROOT / "tests" / found[1]
        if found[2] and (not file.is_file() or f"def {found[2]}(" not in file.read_text()):
            missing.append(f"{file.name}::{found[2]}")
    assert missing == []


def test_no_test_name_is_left_open(document):
    assert "TODO" not in document.read_text()


def test_every_relative_link_leads_to_a_file(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_no_absolute_path_of_a_machine(document):
    assert re.findall(r"(?<![\w.:/-])/(?:home|root|tmp|work|usr|opt|mnt)/", document.read_text()) == []


def test_the_readme_is_short_and_opens_with_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    commands = [line.split()[:2] for line in lines if line.startswith("    make ")]
    assert commands[:2] == [["make", "demo"], ["make", "test"]]
    begin, end = lines.index("<!-- demo-output:begin -->"), lines.index("<!-- demo-output:end -->")
    assert begin < end


def test_the_exit_statuses_of_the_readme_are_those_of_the_errors():
    text = (ROOT / "README.md").read_text()
    stated = {int(number) for number in re.findall(r"(?:: |, )(\d+) ", text.split("scripts can use")[1])}
    classes = [errors.Error]
    for cls in classes:
        classes += cls.__subclasses__()
    assert stated >= {cls.exit_status for cls in classes}


def test_the_attack_table_names_errors_that_exist_and_leaves_none_of_the_protocol_out():
    text = (ROOT / "docs/protocol.md").read_text().split("## Attacks and the tests")[1]
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row for row in rows if len(row) != 3 or "::test_" not in row[2]] == []
    named = {name for _, ends, _ in rows for name in code_spans(ends)}
    below = [*errors.ProtocolError.__subclasses__(), errors.CohortTooSmall, errors.TooLittleNoise]
    for kind in below:
        below += kind.__subclasses__()
    # A member that does not answer, or will not, attacks nobody: tests/coordinator/test_rounds.py.
    silent = {kind for kind in below if issubclass(kind, errors.ParticipantLost)}
    assert named == {kind.__name__ for kind in below if kind not in silent}


def test_the_contracts_of_the_architecture_are_those_that_are_checked():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = {contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]}
    assert set(re.findall(r'contract "([^"]+)"', text)) == contracts
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    rooms = [name.strip() for layer in layers for name in layer.replace("hansa.", "").split("|")]
    picture = text.split("## The rooms")[1].split("**`cli.py`**")[0]
    places = [re.search(rf"\b{room}\b", picture.split("Arrows point down")[1]) for room in rooms]
    assert None not in places
