"""Alert rules and dashboard: every metric, label and page that they name exists; promtool accepts them where it is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from hansa.coordinator.metrics import NAMES as COORDINATOR_NAMES
from hansa.coordinator.metrics import CoordinatorMetrics
from hansa.coordinator.rounds import RoundSummary
from hansa.participant.metrics import NAMES as PARTICIPANT_NAMES
from hansa.participant.metrics import EpsilonStanding, ParticipantMetrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yaml"
SCRAPING = ROOT / "deploy/prometheus/prometheus.yaml"
DASHBOARD = ROOT / "deploy/grafana/dashboard.json"
OF_PROMETHEUS = {"up"}
ALWAYS = {"instance", "job", "__name__"}
WATCHED = {  # what issue and design ask to be warned of
    "HansaRoundLate",
    "HansaNoRoundForLong",
    "HansaServerCertificateEndsSoon",
    "HansaMemberCertificateEndsSoon",
    "HansaDropoutsHigh",
    "HansaSuperLinkRestarts",
    "HansaParticipantMissing",
    "HansaCoordinatorDown",
    "HansaBudgetNearlySpent",
}


def labels_by_sample():
    """The labels of each sample that either side shows."""
    ours, theirs = CoordinatorMetrics("1"), ParticipantMetrics("1")
    ours.study_begins("s", planned=2, done=0)
    summary = RoundSummary(round=1, attempt=1, epoch=1, seconds=1.0, contributors=("a",), finished=())
    ours.round_ended("s", summary, participants=3, now=1.0)
    ours.traffic(up_bytes=1, down_bytes=1)
    ours.members({})
    ours.studies({})
    ours.certificate_ends("server", 1.0)
    ours.superlink_restarted()
    ours.refused("fleet", "certificate_rejected")
    theirs.rounds("s", planned=2, done=1)
    theirs.epsilon("s", [EpsilonStanding(scope="study", spent=1.0, limit=2.0)])
    found = {}
    for registry in (ours.registry, theirs.registry):
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


KNOWN = labels_by_sample()


def problems_of(expression):
    """Everything in an expression that names what is not there."""
    problems = []
    used = set()
    for name, selector in re.findall(r"\b(hansa_\w+|up)\b(?:\{([^}]*)\})?", expression):
        if name in OF_PROMETHEUS:
            continue
        if name not in KNOWN:
            problems.append(name)
            continue
        used |= KNOWN[name]
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
        problems += [f"{name}{{{label}}}" for label in labels - KNOWN[name] - ALWAYS]
    for group in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
        problems += [label for label in re.findall(r"\w+", group) if label not in used | ALWAYS]
    return problems


def alerts():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def targets():
    board = json.loads(DASHBOARD.read_text())
    return [(panel["title"], one) for panel in board["panels"] for one in panel.get("targets", [])]


def test_the_check_finds_what_is_not_there():
    assert problems_of("rate(hansa_wrong_total[5m])") == ["hansa_wrong_total"]
    assert problems_of('hansa_rounds_done{stude="x"}') == ["hansa_rounds_done{stude}"]
    assert problems_of("sum by (phase) (hansa_rounds_done)") == ["phase"]
    assert problems_of('sum by (study) (hansa_rounds_done{study=~"$study"})') == []


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_names_metrics_labels_and_a_page_that_exist(rule):
    assert problems_of(rule["expr"]) == []
    assert rule["labels"]["severity"] in {"warning", "critical"}
    page = ROOT / rule["annotations"]["runbook"]
    assert page.is_file()
    assert rule["alert"] in page.read_text(), f"{page.name} does not say what {rule['alert']} means"
    named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    available = set().union(*(KNOWN[name] for name in KNOWN if name in rule["expr"]), ALWAYS)
    assert named <= available


def test_everything_that_has_to_be_watched_has_an_alert():
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    assert set(names) >= WATCHED


@pytest.mark.parametrize(("title", "target"), targets(), ids=lambda one: one if isinstance(one, str) else "")
def test_a_panel_names_metrics_and_labels_that_exist(title, target):
    assert problems_of(target["expr"]) == []
    used = set().union(*(KNOWN[name] for name in KNOWN if name in target["expr"]), ALWAYS)
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= used


def test_the_dashboard_shows_every_metric_of_both_sides():
    text = " ".join(target["expr"] for _, target in targets())
    missing = {name for name in COORDINATOR_NAMES | PARTICIPANT_NAMES if name not in text}
    assert missing == set()
    board = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)


def test_what_is_scraped_is_on_loopback_and_the_jobs_are_those_of_the_rules():
    found = yaml.safe_load(SCRAPING.read_text())
    jobs = {one["job_name"]: one["static_configs"][0]["targets"] for one in found["scrape_configs"]}
    assert all(target.startswith("127.0.0.1:") for places in jobs.values() for target in places)
    assert set(re.findall(r'job="([^"]+)"', RULES.read_text())) == set(jobs)
    assert found["rule_files"] == [RULES.name]


@pytest.mark.parametrize(("kind", "path"), [("rules", RULES), ("config", SCRAPING)])
def test_promtool_accepts_them(kind, path):
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool here")
    done = subprocess.run([program, "check", kind, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
