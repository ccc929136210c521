"""Rounds between processes: what a round costs beside training, how soon a cluster works, what an idle agent costs.

A coordinator and five agents, each a process of its own, on loopback, TLS on, everything that a deployment has. The study is tiny
(80 records, eight experts, one ciphertext an upload), so that a round is the protocol and nothing else. Run by `network.py`.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH keeps it out

from network_stock import echo_seconds, hansa_seconds, median_of

from hansa.cli import run_here
from hansa.demo.cluster import Cluster
from hansa.demo.cluster_demo import free_ports

PARTICIPANTS = 5
TICKS = os.sysconf("SC_CLK_TCK")

STUDY = """
schema = "hansa/study/v1"
name = "network-benchmark"
purpose = "Measure what a round costs beside training."

[data]
label = "late"
columns = [
  {{ name = "a", kind = "numeric", minimum = -10, maximum = 10 }},
  {{ name = "b", kind = "numeric", minimum = -10, maximum = 10 }},
  {{ name = "c", kind = "categorical", values = [1, 2, 3] }},
]

[model]
dim = 8
layers = 1
heads = 2
experts = 8
top_k = 2
expert_dim = 4
shared_expert_dim = 4

[adapters]
rank = 4

[privacy]
epsilon = 8.0
delta = 1e-5
clip_norm = 0.5
sample_rate = 0.5
nominal_records = 80

[training]
rounds = {rounds}

[training.server_optimizer]
learning_rate = 3e-2

[compression]
kept_share = 0.3

[aggregation]
mode = "quorum"
participants = {participants}
"""
POLICY = """
schema = "hansa/policy/v1"
data_set = "credit-cards"
studies = ["{study}"]
delta_limit = 1e-5

[epsilon]
for_ever = 100.0
"""


def write_rows(path: Path, seed: int, rows: int = 80) -> None:
    """Write a table that fits the study."""
    draws = np.random.default_rng(seed)
    a, b = draws.standard_normal((2, rows))
    columns = {"a": a, "b": b, "c": draws.integers(1, 4, rows), "late": (a > 0).astype(np.int64)}
    parquet.write_table(pa.table(columns), path)


def round_seconds(cluster: Cluster) -> list[float]:
    """Wall seconds of every round so far, as the coordinator has logged them."""
    lines = (cluster.folder / "coordinator.log").read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines if '"event": "round_ended"' in line]


def processor_seconds(process: int) -> float:
    """Processor seconds of a process and its threads so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def superlink_process(coordinator: int) -> list[int]:
    """Child processes of the coordinator."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(place.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == coordinator:
            found.append(int(place.parent.name))
    return found


def idle_shares(cluster: Cluster, seconds: float) -> tuple[float, float]:
    """Share of a core that an idle agent takes, and the coordinator with its children."""
    agents = [process.pid for name, process in cluster.processes.items() if name != "coordinator"]
    coordinator = cluster.processes["coordinator"].pid
    others = [coordinator, *superlink_process(coordinator)]
    before = [sum(map(processor_seconds, group)) for group in (agents, others)]
    began = time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - began
    after = [sum(map(processor_seconds, group)) for group in (agents, others)]
    return (after[0] - before[0]) / wall / len(agents), (after[1] - before[1]) / wall


def set_up(cluster: Cluster, study: Path) -> str:
    """Found, enrol, propose, approve by policy, start; give the session."""
    cluster.found()
    known = json.loads(run_here(["study", "validate", str(study), "--json"])[1])["id"]
    for place, name in enumerate(cluster.names):
        cluster.join(name)
        write_rows(cluster.folder / f"{name}.parquet", place)
        cluster.add_data(name, cluster.folder / f"{name}.parquet", POLICY.format(study=known))
        cluster.run_agent(name)
    write_rows(cluster.folder / "public.parquet", 99)
    base = cluster.folder / "base.safetensors"
    cluster.hansa(
        "study", "base", str(study), "--public", str(cluster.folder / "public.parquet"),
        "--output", str(base), "--steps", "5",
    )  # fmt: skip
    session = cluster.propose(study, base)
    cluster.start(session)
    return session


def await_rounds(cluster: Cluster, rounds: int, seconds: float = 300.0) -> None:
    """Wait until so many rounds are over."""
    log = cluster.folder / "coordinator.log"
    cluster.await_that(
        lambda: len(re.findall('"event": "round_ended"', log.read_text())) >= rounds,
        f"round {rounds}",
        seconds,
    )


def stop_all(cluster: Cluster) -> None:
    """End every process."""
    for process in cluster.processes.values():
        process.terminate()
    for process in cluster.processes.values():
        process.wait(60)
    cluster.processes.clear()


def restart_all(cluster: Cluster) -> float:
    """End every process and start all anew; give the wall seconds until a round is over."""
    done = len(round_seconds(cluster))
    stop_all(cluster)
    began = time.monotonic()
    cluster.spawn("coordinator", "coordinator", "run", "--home", str(cluster.coordinator))
    for name in cluster.names:
        cluster.run_agent(name)
    await_rounds(cluster, done + 1)
    return time.monotonic() - began


def stock_rounds(cluster: Cluster, session: str) -> dict[str, float]:
    """Seconds of a round of the same study on stock SuperNodes, and of a round of Flower alone."""
    port = cluster.port + 10  # beside the coordinator's own, which its ServerApp opens
    ours = hansa_seconds(cluster, session, cluster.folder / "stock", port)
    echoes = echo_seconds(cluster.folder / "echo", port, PARTICIPANTS)
    return {
        "hansa's app on stock SuperNodes": median_of(ours),
        "stock SuperNodes, messages echoed, no protection": median_of(echoes),
    }


def row(
    metric: str,
    unit: str,
    value: float,
    goal: float | None,
    conditions: str,
    peers: dict[str, float] | None = None,
) -> dict[str, object]:
    """One row of the table."""
    return {
        "metric": metric, "unit": unit, "better": "lower", "hansa": round(value, 4), "peers": peers or {}, "floor": None,
        "goal": goal, "conditions": conditions,
    }  # fmt: skip


def main() -> None:
    """Measure and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    rounds, idle_seconds = (12, 10.0) if options.quick else (40, 60.0)
    where = (
        f"n = {PARTICIPANTS}, quorum, loopback, TLS, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as folder:
        study = Path(folder) / "study.toml"
        study.write_text(STUDY.format(rounds=10 * rounds, participants=PARTICIPANTS))
        names = tuple(f"bank-{number}" for number in range(1, PARTICIPANTS + 1))
        with Cluster(Path(folder), names, free_ports(5), lambda _: None, run_here) as cluster:
            session = set_up(cluster, study)
            await_rounds(cluster, rounds)
            seconds = round_seconds(cluster)[1:]
            fresh = restart_all(cluster)
            cluster.hansa("study", "pause", session, "--home", str(cluster.coordinator))
            cluster.await_that(lambda: cluster.view(session)["state"] == "paused", "the pause", 60.0)
            time.sleep(12.0)  # until looks are rare again
            agent, coordinator = idle_shares(cluster, idle_seconds)
            stock = {}
            if not options.quick:
                cluster.hansa("study", "resume", session, "--home", str(cluster.coordinator))
                stop_all(cluster)
                stock = stock_rounds(cluster, session)
    rows = [
        row(
            "round without training",
            "s",
            float(np.median(seconds)),
            1.5,
            f"median of {len(seconds)}; {where}",
            peers=stock,
        ),
        row("first round of a fresh cluster", "s", fresh, 30.0, f"all processes started at once; {where}"),
        row(
            "idle agent",
            "share of a core",
            agent,
            0.01,
            f"mean of {PARTICIPANTS} over {idle_seconds:g} s; {where}",
        ),
        row("idle coordinator and SuperLink", "share of a core", coordinator, None, where),
    ]
    options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
