"""The operations documents: commands, options, error codes, events, alerts and pages that they name exist."""

import re
from pathlib import Path

import click
import pytest
import yaml
from typer.main import get_command

from hansa import errors
from hansa.cli import app
from hansa.coordinator.metrics import NAMES as COORDINATOR_METRICS
from hansa.coordinator.settings import CoordinatorSettings
from hansa.participant.dataset_file import DatasetEntry
from hansa.participant.metrics import NAMES as PARTICIPANT_METRICS
from hansa.participant.policy_file import PolicyFile
from hansa.participant.settings import ParticipantSettings
from hansa.study import Study

ROOT = Path(__file__).parents[2]
RUNBOOKS = ROOT / "docs/runbooks"
PAGES = sorted(RUNBOOKS.glob("*.md"))
OPERATIONS = [*PAGES, ROOT / "deploy/README.md", ROOT / "deploy/flower_app/README.md"]
NEEDED = {
    "certificate-expiry",
    "lost-participant",
    "exhausted-budget",
    "restore",
    "key-compromise",
    "upgrade",
}
# Commands that documents may name before they exist. Whoever adds one of them takes it off this list.
PENDING: set[str] = set()


def by_name(path):
    return str(path.relative_to(ROOT))


def code(text):
    """Code spans, and lines of indented blocks with what continues them."""
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.startswith("    ")]
    return re.findall(r"`([^`\n]+)`", text) + lines


def commands(text):
    """Everything after `hansa ` in code that is a call of the command line, one word list each."""
    calls = [re.search(r"(?:^|[\s/])hansa ([a-z].*)", piece) for piece in code(text)]
    return [call[1].split() for call in calls if call]


def problem_of(words):
    """What is wrong with a call, or nothing."""
    found, path = get_command(app), []
    while isinstance(found, click.Group):
        if len(path) == len(words) or words[len(path)] not in found.commands:
            named = " ".join(words[: len(path) + 1])
            return "" if named in PENDING else f"no command: hansa {named}"
        found = found.commands[words[len(path)]]
        path.append(words[len(path)])
    options = {option for parameter in found.params for option in parameter.opts}
    wrong = [word for word in words[len(path) :] if re.fullmatch(r"--[a-z-]+", word) and word not in options]
    return f"no option: {' '.join(path)} {wrong}" if wrong else ""


def all_errors():
    kinds = [errors.Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {kind.code for kind in kinds}


def keys_of(model, found=None):
    """Every key of a settings file."""
    found = set() if found is None else found
    for name, field in model.model_fields.items():
        found.add(field.alias or name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(inner, "model_fields"):
                keys_of(inner, found)
    return found


def words_of_the_source():
    """Constants that are logged or written down as events, and the places that an error is reported from."""
    text = "\n".join(path.read_text() for path in (ROOT / "src/hansa").rglob("*.py"))
    events = set(re.findall(r'(?:info|warning|error|exception|event|note|_note)\(\s*"([a-z_]+)"', text))
    places = set(re.findall(r'(?:_report|report|_try)\(\s*"([a-z_]+)"', text))
    return events | {f"{place}_failed" for place in places}


KNOWN = (
    all_errors()
    | words_of_the_source()
    | COORDINATOR_METRICS
    | PARTICIPANT_METRICS
    | set().union(
        *map(keys_of, (CoordinatorSettings, ParticipantSettings, PolicyFile, DatasetEntry, Study)),
        {"error_code"},
    )
)


def test_there_is_a_page_for_everything_that_has_to_be_run():
    assert {path.stem for path in PAGES} == NEEDED | {"README"}
    index = (RUNBOOKS / "README.md").read_text()
    assert all(f"({name}.md)" in index for name in NEEDED)


@pytest.mark.parametrize("page", sorted(NEEDED))
def test_a_page_says_how_it_shows_what_it_means_what_to_do_and_when_it_is_over(page):
    heads = re.findall(r"^## (.+)$", (RUNBOOKS / f"{page}.md").read_text(), re.MULTILINE)
    wanted = ["How it shows", "What it means", "What to do", "How to see that it is over"]
    assert [head for head in heads if head in wanted] == (
        wanted if page != "restore" else [wanted[0], *wanted[2:]]
    )


@pytest.mark.parametrize("document", OPERATIONS, ids=by_name)
def test_every_command_and_option_that_is_named_exists(document):
    assert [problem for words in commands(document.read_text()) if (problem := problem_of(words))] == []


def test_the_check_of_commands_can_fail():
    assert problem_of(["participant", "vanish"]) == "no command: hansa participant vanish"
    assert problem_of(["participant"]).startswith("no command")
    assert "--never" in problem_of(["participant", "list", "--never"])
    assert commands("`hansa participant list`\n\n    env X=1 /srv/hansa/bin/hansa study list\n") == [
        ["participant", "list"],
        ["study", "list"],
    ]


def test_what_is_pending_does_not_exist_yet():
    assert [name for name in PENDING if get_one(name.split()) is not None] == []


def get_one(words):
    found = get_command(app)
    for word in words:
        found = found.commands.get(word) if isinstance(found, click.Group) else None
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_code_event_and_key_that_is_named_exists(page):
    words = {
        span
        for span in re.findall(r"`([^`\n]+)`", page.read_text())
        if re.fullmatch(r"[a-z]+(_[a-z]+)+", span)
    }
    assert sorted(words - KNOWN) == []


def test_the_check_of_codes_can_fail_and_finds_those_that_are_there():
    assert "round_vanished" not in KNOWN
    assert {"budget_exhausted", "study_waits", "rounds_per_epoch", "renewal_failed", "error_code"} <= KNOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_alert_that_is_named_exists(page):
    groups = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    assert set(re.findall(r"\bHansa[A-Z]\w+", page.read_text())) <= alerts


@pytest.mark.parametrize("document", OPERATIONS, ids=by_name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_files_that_the_way_to_a_consortium_names_exist():
    text = (ROOT / "deploy/README.md").read_text() + (ROOT / "deploy/flower_app/README.md").read_text()
    named = set(re.findall(r"\b((?:deploy|examples|src|tests)/[\w./-]+\w)", text))
    assert len(named) > 8
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
