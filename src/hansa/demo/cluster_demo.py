"""`hansa demo cluster`: the bank example between processes that meet through TLS doors only, as between institutions."""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hansa.demo.arena import logits
from hansa.demo.bank_data import load_bank, partition
from hansa.demo.cluster import Cluster, Command, in_a_process
from hansa.demo.cluster_data import write_bank
from hansa.demo.display import Display
from hansa.demo.metrics import auc
from hansa.demo.study_toml import toml_of
from hansa.errors import ModelDivergence, OutputNotWritable
from hansa.models.base_files import load_base
from hansa.models.saving import load_model
from hansa.participant.dataset import read_table
from hansa.study import Study

_PRETRAINING_STEPS = 150
_STUDY_SECONDS = 3600.0
_POLICY = """# Rules of {name}, a bank of the demonstration.
schema = "hansa/policy/v1"
data_set = "credit-cards"
studies = [{studies}]
delta_limit = 1e-5
smallest_cohort = 3
most_rounds = {rounds}
required_layers = ["differential_privacy", "secure_aggregation_masks", "homomorphic_encryption", "signatures"]

[epsilon]
for_ever = {epsilon}
per_study = {epsilon}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterResult:
    """What a cluster did.

    Attributes:
        participants: Agents.
        rounds: Rounds of the study.
        ready_seconds: From the first command to the last enrolment.
        first_round_seconds: From the start of the study to the end of its first round.
        round_seconds: Median wall seconds of a round.
        up_bytes: Bytes of all uploads.
        auc_base: Test AUC of the base.
        auc: Test AUC of the model that all agents hold.
        state: Hash of that model's state, the same at all of them.
        ledgers: Ledgers that verified.
        epsilon: ε that each participant spent.
    """

    participants: int
    rounds: int
    ready_seconds: float
    first_round_seconds: float
    round_seconds: float
    up_bytes: int
    auc_base: float
    auc: float
    state: str
    ledgers: int
    epsilon: float

    def as_json(self) -> dict[str, Any]:
        """Give the result in plain JSON types."""
        return {"schema": "hansa/cluster-demo/v1", **asdict(self)}

    def as_words(self, folder: Path) -> str:
        """Say the result for people."""
        gain = self.auc - self.auc_base
        return (
            f"{self.participants} agents and a coordinator, each a process of its own, finished {self.rounds} rounds\n"
            f"test AUC        {self.auc_base:.4f} -> {self.auc:.4f} ({gain:+.4f}), the same model at all agents\n"
            f"privacy         epsilon {self.epsilon:.3f} spent by each; {self.ledgers} ledgers verify\n"
            f"first round     {self.first_round_seconds:.1f} s after the start; each one {self.round_seconds:.2f} s\n"
            f"uploads         {self.up_bytes / 1e6:.1f} MB\n"
            f"privacy report  {folder / 'report' / 'privacy-report.html'}\n"
            f"homes and logs  {folder}\n"
            f"next: hansa study logs bank-credit-default --home {folder / 'coordinator'}\n"
        )


def free_ports(count: int) -> int:
    """Find the first of so many ports in a row that nobody listens on, on loopback."""
    for first in range(20_000, 60_000, 97):
        try:
            probes = [socket.create_server(("127.0.0.1", first + place)) for place in range(count)]
        except OSError:
            continue
        for probe in probes:
            probe.close()
        return first
    raise OutputNotWritable("no five free ports in a row were found on loopback")


class ClusterDemo:
    """One run.

    Args:
        study: The agreement, for as many participants as there are to be.
        parquet: The example's table.
        folder: Where everything goes; made, and empty before.
        display: Shows progress.
        command: Runs commands; see `Cluster`.
    """

    def __init__(
        self, study: Study, parquet: Path, folder: Path, display: Display, command: Command = in_a_process
    ) -> None:
        self._study, self._parquet, self._folder, self._display = study, parquet, folder, display
        self._command = command
        count = study.aggregation.participants
        self._names = tuple(f"bank-{number:02d}" for number in range(1, count + 1))

    def run(self) -> ClusterResult:
        """Set up, run and check the consortium.

        Raises:
            OutputNotWritable: The folder holds something, or cannot be written.
            CommandFailed, WorkerFailed: A command or a daemon failed; its log is in the folder.
            ModelDivergence: Two agents hold different models.
        """
        self._prepare()
        began = time.monotonic()
        with Cluster(self._folder, self._names, free_ports(5), self._say, self._command) as cluster:
            cluster.found()
            self._display.phase("enrolling banks", len(self._names))
            for name in self._names:
                cluster.join(name)
                self._add_data(cluster, name)
                cluster.run_agent(name)
                self._display.advance(note=name)
            ready = time.monotonic() - began
            session = self._propose(cluster)
            started = time.monotonic()
            cluster.start(session)
            view, first = self._watch(cluster, session, started)
            states = cluster.models(session)
            if len(set(states.values())) != 1:
                raise ModelDivergence("agents hold different models")
            return self._result(cluster, session, view, ready, first, next(iter(states.values())))

    # -- inside ------------------------------------------------------------------------------------------

    def _say(self, words: str) -> None:
        self._display.phase(words)

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if any(self._folder.iterdir()):
                raise OutputNotWritable(
                    f"{str(self._folder)!r} is not empty", hint="give another --output, or remove it"
                )
            (self._folder / "study.json").write_text(
                json.dumps(self._study.model_dump(by_alias=True, mode="json"))
            )
        except OSError as error:
            raise OutputNotWritable(f"{str(self._folder)!r} cannot be written: {error.strerror}") from error
        self._display.phase("dealing out the data")
        data = load_bank(self._parquet, self._study, seed=0)
        dealt = partition(data, kind="dirichlet", participants=len(self._names), seed=0)
        write_bank(data, dict(zip(self._names, dealt.indices, strict=True)), self._folder)

    def _add_data(self, cluster: Cluster, name: str) -> None:
        """Every bank's policy names the study but the first one's: there a hand has to approve."""
        by_hand = name == self._names[0]
        policy = _POLICY.format(
            name=name,
            studies="" if by_hand else f'"{self._study.id}"',
            rounds=self._study.training.rounds,
            epsilon=self._study.privacy.epsilon,
        )
        cluster.add_data(name, self._folder / f"{name}.parquet", policy)

    def _propose(self, cluster: Cluster) -> str:
        study, base = self._folder / "study.toml", self._folder / "base.safetensors"
        study.write_text(toml_of(self._study))
        self._display.phase("pretraining the public base")
        cluster.hansa(
            "study", "base", str(study), "--public", str(self._folder / "public.parquet"),
            "--output", str(base), "--steps", str(_PRETRAINING_STEPS),
        )  # fmt: skip
        session = cluster.propose(study, base)
        self._display.phase("approving: one bank by hand, the others by policy")
        cluster.approve(self._names[0], session)
        return session

    def _watch(self, cluster: Cluster, session: str, started: float) -> tuple[dict[str, Any], float]:
        rounds, seen, first = self._study.training.rounds, 0, 0.0
        self._display.phase("rounds", rounds)

        def each(view: dict[str, Any]) -> None:
            nonlocal seen, first
            progress = view["progress"] or {"round": 0}
            if progress["round"] > 0 and not first:
                first = time.monotonic() - started
            if progress["round"] > seen:
                self._display.advance(progress["round"] - seen)
                seen = progress["round"]

        return cluster.watch(session, _STUDY_SECONDS, each), first

    def _result(
        self, cluster: Cluster, session: str, view: dict[str, Any], ready: float, first: float, state: str
    ) -> ClusterResult:
        self._display.phase("checking models and ledgers, making the privacy report")
        cluster.report(self._folder / "report")
        audit = cluster.hansa("audit", "verify", str(self._folder))
        scores = [ledger["epsilon"] for ledger in audit["ledgers"]]
        seconds = _round_seconds(cluster)
        before, after = self._scores(session)
        return ClusterResult(
            participants=len(self._names),
            rounds=self._study.training.rounds,
            ready_seconds=round(ready, 2),
            first_round_seconds=round(first, 2),
            round_seconds=round(float(np.median(seconds)), 3),
            up_bytes=view["progress"]["up_bytes"],
            auc_base=before,
            auc=after,
            state=state,
            ledgers=len(scores),
            epsilon=max(scores),
        )

    def _scores(self, session: str) -> tuple[float, float]:
        """Score base and final model on the test rows: the evaluator's view, which no participant has."""
        loaded = load_base(self._folder / "base.safetensors", self._study)
        test = read_table(self._folder / "test.parquet", self._study.data)
        features = loaded.encoder.encode(test.numeric, test.categorical)
        model = load_model(self._folder / self._names[0] / "studies" / session / "model")
        return (
            auc(logits(loaded.base.model(), features), test.labels),
            auc(logits(model, features), test.labels),
        )


def _round_seconds(cluster: Cluster) -> list[float]:
    lines = (cluster.folder / "coordinator.log").read_text().splitlines()
    return [float(json.loads(line)["seconds"]) for line in lines if '"event": "round_ended"' in line]
