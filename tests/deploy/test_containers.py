"""Images and compose file: hardened, without a secret, and with commands, paths and ports that exist."""

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from typer.main import get_command

from hansa.cli import app
from hansa.coordinator.founding import DEFAULT_PORT, SERVICES
from hansa.coordinator.settings import Listen

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy/compose.yaml"
SIDES = ("coordinator", "participant")
OWN = {name: yaml.safe_load(COMPOSE.read_text())["services"][name] for name in SIDES}


def dockerfile(side):
    return ROOT / f"deploy/docker/Dockerfile.{side}"


def instructions(side):
    """The instructions of a Dockerfile in order, continued lines joined."""
    text = re.sub(r"\\\n", " ", dockerfile(side).read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(None, 1)) for line in lines]


def last(side, name):
    return [value for key, value in instructions(side) if key == name][-1]


def is_command(words):
    found = get_command(app)
    for word in words:
        if not isinstance(found, click.Group) or word not in found.commands:
            return False
        found = found.commands[word]
    return not isinstance(found, click.Group)


# -- images --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_an_image_runs_its_daemon_as_a_user_without_rights(side):
    assert last(side, "FROM").startswith("python:3.11-slim")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last(side, "USER"))
    order = [key for key, _ in instructions(side)]
    assert order.index("USER") < order.index("CMD")
    assert json.loads(last(side, "ENTRYPOINT")) == ["/srv/hansa/bin/hansa"]
    assert is_command(json.loads(last(side, "CMD")))
    assert last(side, "STOPSIGNAL") == "SIGTERM"


@pytest.mark.parametrize("side", SIDES)
def test_an_image_reports_nothing_and_searches_no_foreign_folder(side):
    environment = dict(pair.split("=", 1) for pair in last(side, "ENV").split())
    wanted = {"PYTHONSAFEPATH": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    assert environment.items() >= (wanted | {"HANSA_HOME": "/var/lib/hansa"}).items()


@pytest.mark.parametrize("side", SIDES)
def test_nothing_but_the_package_comes_into_an_image(side):
    copied = [value.split() for key, value in instructions(side) if key in ("COPY", "ADD")]
    own = {word for words in copied if not words[0].startswith("--from=") for word in words[:-1]}
    assert own == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "src"}
    assert all((ROOT / name).exists() for name in own)
    assert not [key for key, _ in instructions(side) if key == "ARG"]
    assert not re.search(r"(?i)(password|secret|token|private)[\w]*\s*=", dockerfile(side).read_text())
    assert "-c constraints.txt" in " ".join(value for key, value in instructions(side) if key == "RUN")


def test_health_is_asked_where_it_is_told():
    check = last("coordinator", "HEALTHCHECK")
    assert f"http://{Listen.model_fields['metrics'].default}/readyz" in check
    words = json.loads(last("participant", "HEALTHCHECK").split("CMD", 1)[1])
    asked = shlex.split(words[2].split("|")[0])
    assert asked[0] == "/srv/hansa/bin/hansa"
    assert is_command(asked[1:3])
    assert json.dumps({"running": True})[1:-1] in words[2]


def test_open_ports_are_those_of_the_services_and_a_participant_has_none():
    ports = [str(DEFAULT_PORT + at) for at in range(len(SERVICES))]
    assert last("coordinator", "EXPOSE").split() == ports
    assert [key for key, _ in instructions("participant") if key == "EXPOSE"] == []
    assert OWN["coordinator"]["ports"] == [f"{port}:{port}" for port in ports]
    assert "ports" not in OWN["participant"]


# -- compose -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES)
def test_a_service_is_hardened(side):
    service = OWN[side]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == last(side, "USER")
    assert service["ulimits"] == {"core": 0}
    assert "noexec" in service["tmpfs"][0]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode"} & service.keys()
    assert is_command(service["command"])


@pytest.mark.parametrize("side", SIDES)
def test_a_service_is_built_from_what_is_here(side):
    build = OWN[side]["build"]
    assert (COMPOSE.parent / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == dockerfile(side)


def test_volumes_exist_and_data_is_read_only():
    whole = yaml.safe_load(COMPOSE.read_text())
    for service in whole["services"].values():
        for volume in service["volumes"]:
            if isinstance(volume, dict):
                assert volume["read_only"] is True
                continue
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).is_dir()
            else:
                assert source in whole["volumes"]
    assert OWN["coordinator"]["networks"] != OWN["participant"]["networks"]


def test_every_other_service_is_off_unless_it_is_asked_for():
    whole = yaml.safe_load(COMPOSE.read_text())
    for name in set(whole["services"]) - set(SIDES):
        service = whole["services"][name]
        assert service["profiles"]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_no_secret_stands_in_the_file():
    text = COMPOSE.read_text()
    lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
    assert not re.search(r"(?i)(password|secret|token)", "\n".join(lines))
