"""The app folder for people who run Flower: what a bundle holds, and one whole study on stock processes."""

import json
import os
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from hansa.coordinator.office import open_office

ROOT = Path(__file__).parents[2]
APP = ROOT / "deploy/flower_app/hansa-flower"  # Flower takes no folder with an underscore
PROGRAMS = Path(sys.executable).parent
SECONDS = 1500


def test_the_bundle_holds_no_code_but_two_calls_of_what_is_installed():
    for name, call in (("client_app", "make_stock_client_app"), ("server_app", "make_stock_server_app")):
        lines = (APP / f"hansa_flower/{name}.py").read_text().splitlines()
        code = [line for line in lines[1:] if line]
        assert len(code) == 2
        assert code[0].endswith(f"import {call}")
        assert code[1] == f"app = {call}()"
    init = (APP / "hansa_flower/__init__.py").read_text().strip()
    assert init.count('"""') == 2
    assert init.endswith('"""')
    assert sorted(path.name for path in APP.rglob("*.py")) == [
        "__init__.py",
        "client_app.py",
        "server_app.py",
    ]


def test_the_bundle_asks_for_the_versions_that_are_tested():
    project = tomllib.loads((APP / "pyproject.toml").read_text())
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    flower = next(line for line in own["dependencies"] if line.startswith("flwr"))
    assert project["project"]["dependencies"] == [f"hansa=={own['version']}", flower]
    assert project["project"]["requires-python"] == own["requires-python"]
    assert project["tool"]["flwr"]["app"]["config"] == {"hansa-home": "", "study": ""}


def environment(home):
    """What a stock process gets: folders of its own, no telemetry, no question for updates."""
    home.mkdir(exist_ok=True)
    passed = ("PYTHONPATH", "LANG", "TMPDIR", "VIRTUAL_ENV")
    return {key: os.environ[key] for key in passed if key in os.environ} | {
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
    }


def test_flower_takes_the_folder_as_an_app(tmp_path):
    build = subprocess.run(
        [str(PROGRAMS / "flwr"), "build", "--app", str(APP)],
        cwd=tmp_path,
        env=environment(tmp_path / "flwr"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    (bundle,) = tmp_path.glob("*.fab")
    names = zipfile.ZipFile(BytesIO(bundle.read_bytes())).namelist()
    code = {name for name in names if name.endswith(".py")}
    assert code == {f"hansa_flower/{name}.py" for name in ("__init__", "client_app", "server_app")}


# -- stock processes -----------------------------------------------------------------------------------------


class Stock:
    """A stock SuperLink and stock SuperNodes of a consortium, on loopback."""

    def __init__(self, small, folder):
        self.small, self.folder, self.running = small, folder, []
        self.port = small.port + 10  # beside the coordinator's own
        self.superlink = f"127.0.0.1:{self.port}"

    def environment(self, name):
        return environment(self.folder / f"flwr-{name}")

    def begin(self, name, *command):
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(PROGRAMS / command[0]), *command[1:]],
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        self.running.append(process)
        return process

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(self):
        self.begin(
            "superlink",
            *("flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port)),
            "--disable-runtime-dependency-installation",
        )
        until = time.monotonic() + 120
        while not self.is_healthy():
            assert time.monotonic() < until, self.log("superlink")
            time.sleep(0.2)
        for place, (name, home) in enumerate(self.small.members.items()):
            self.begin(
                name,
                *("flower-supernode", "--insecure", "--superlink", self.superlink, "--host", "127.0.0.1"),
                *("--port", str(self.port + 1 + place), "--node-config", f'hansa-home="{home.folder}"'),
            )
        config = Path(self.environment("admin")["FLWR_HOME"]) / "config.toml"
        config.write_text(f'[superlink.here]\naddress = "{self.superlink}"\ninsecure = true\n')

    def is_healthy(self):
        try:
            with urllib.request.urlopen(f"http://{self.superlink}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def run(self, study):
        settings = f'hansa-home="{self.small.home.folder}" study="{study}"'
        return self.begin("admin", "flwr", "run", str(APP), "here", "--stream", "-c", settings)

    def close(self):
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def stock(small, tmp_path):
    folder = tmp_path / "stock"
    folder.mkdir()
    found = Stock(small, folder)
    yield found
    found.close()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.enable_socket
def test_a_study_runs_to_its_end_on_stock_processes(stock, small):
    """Proposed and approved by policy over the same nodes, then a whole epoch and its rounds, a process a message."""
    proposal = small.propose()
    stock.start()
    session = proposal.body.session_id.hex()
    run = stock.run(session)
    started, until = False, time.monotonic() + SECONDS
    while time.monotonic() < until and run.poll() is None:
        if not started and small.approvals(proposal) == 3:
            small.sign_start(proposal)
            started = True
        time.sleep(1)
    words = stock.log("admin")
    assert run.poll() is not None, words[-3000:]
    assert started, words[-3000:]
    assert '"state": "finished"' in words or "state=finished" in words, words[-3000:]
    states = set()
    for name, home in small.members.items():
        desk = small.own_desk(home)
        study = desk.find(session)
        assert (study.state, study.answer.body.by) == ("finished", "policy"), stock.log(name)[-3000:]
        config = json.loads((desk.folder_of(study) / "model" / "config.json").read_text())
        assert config["training"]["rounds"] == small.study.training.rounds
        states.add(config["training"]["state"])
        (ledger,) = home.folder.glob("ledger-*.jsonl")
        assert ledger.read_text().count('"reserve"') == small.study.training.rounds
    assert len(states) == 1
    with open_office(small.home) as office:
        kinds = [event.kind for event in office.journal.events(study=small.study.name)]
    assert "study_finished" in kinds
