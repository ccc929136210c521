"""What a round costs on stock SuperNodes of Flower: with hansa's app (`deploy/flower_app/`), and with an app that only echoes.

The second has no protection of any kind: no signatures, no encryption, no masks, no noise, no training. It is what Flower itself
takes for one message to five nodes and back, each with a process that it starts for the message.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

from peers.stock_flower import StockFlower

from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.office import open_office
from hansa.demo.cluster import Cluster

ROOT = Path(__file__).parents[1]
HANSA_APP = ROOT / "deploy/flower_app/hansa-flower"
ECHO_APP = Path(__file__).parent / "peers/echo-app"
_WAIT_SECONDS = 900.0


def echo_seconds(folder: Path, port: int, nodes: int, rounds: int = 5) -> list[float]:
    """Wall seconds of rounds in which every node gives back a thousand floats; the first one, which warms up, is left out."""
    folder.mkdir()
    with StockFlower(folder, port, {f"node-{number}": "" for number in range(nodes)}) as stock:
        stock.start()
        run = stock.run(ECHO_APP, f"nodes={nodes} rounds={rounds + 1}")
        run.wait(_WAIT_SECONDS)
        found = [json.loads(line) for line in re.findall(r'\{"echoed".*?\}', stock.log("admin"))]
        if len(found) != rounds + 1 or any(each["echoed"] != nodes for each in found):
            raise RuntimeError(stock.log("admin")[-2000:])
    return [each["seconds"] for each in found[1:]]


def hansa_seconds(cluster: Cluster, session: str, folder: Path, port: int, rounds: int = 3) -> list[float]:
    """Wall seconds of rounds of a study that goes on, on stock SuperNodes; the first one is left out.

    Args:
        cluster: Its homes; its processes have ended.
        session: The study.
        folder: For the logs.
        port: First of six.
        rounds: How many to measure.
    """
    folder.mkdir()
    known = len(rounds_after(cluster, 0))
    nodes = {name: f'hansa-home="{cluster.home(name)}"' for name in cluster.names}
    with StockFlower(folder, port, nodes) as stock:
        stock.start()
        run = stock.run(HANSA_APP, f'hansa-home="{cluster.coordinator}" study="{session}"')
        until = time.monotonic() + _WAIT_SECONDS
        while len(found := rounds_after(cluster, known)) <= rounds:
            if run.poll() is not None or time.monotonic() > until:
                raise RuntimeError(stock.log("admin")[-4000:])
            time.sleep(1.0)
    return found[1:]


def rounds_after(cluster: Cluster, known: int) -> list[float]:
    """Wall seconds of the rounds in the coordinator's journal after so many."""
    with open_office(CoordinatorHome.open(cluster.coordinator)) as office:
        events = office.journal.events(most=100_000)
    return [float(event.detail["seconds"]) for event in events if event.kind == "round_ended"][known:]


def median_of(seconds: list[float]) -> float:
    """Round the median."""
    return round(statistics.median(seconds), 3)
