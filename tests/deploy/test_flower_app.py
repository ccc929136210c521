"""The app folder for people who run Flower: what a bundle holds, and one whole study on stock processes."""

import importlib.util
import json
import subprocess
import time
import tomllib
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from hansa.coordinator.office import open_office

ROOT = Path(__file__).parents[2]
APP = ROOT / "deploy/flower_app/hansa-flower"  # Flower takes no folder with an underscore
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


@pytest.fixture
def flower():
    """Flower's own processes, as the benchmark of the network starts them."""
    spec = importlib.util.spec_from_file_location("stock_flower", ROOT / "benchmarks/peers/stock_flower.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flower_takes_the_folder_as_an_app(flower, tmp_path):
    build = subprocess.run(
        [str(flower.PROGRAMS / "flwr"), "build", "--app", str(APP)],
        cwd=tmp_path,
        env=flower.environment(tmp_path / "flwr"),
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


@pytest.fixture
def stock(flower, small, tmp_path):
    """A stock SuperLink, and a stock SuperNode of every member, on loopback."""
    folder = tmp_path / "stock"
    folder.mkdir()
    nodes = {name: f'hansa-home="{home.folder}"' for name, home in small.members.items()}
    with flower.StockFlower(folder, small.port + 10, nodes) as found:  # beside the coordinator's own
        yield found


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.enable_socket
def test_a_study_runs_to_its_end_on_stock_processes(stock, small):
    """Proposed and approved by policy over the same nodes, then a whole epoch and its rounds, a process a message."""
    proposal = small.propose()
    stock.start()
    session = proposal.body.session_id.hex()
    run = stock.run(APP, f'hansa-home="{small.home.folder}" study="{session}"')
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
