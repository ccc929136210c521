"""`hansa demo bank`: fifteen banks fine-tune one model together, and what each could have done alone.

1 data       read, check, split, deal out
2 base       pretrain the public base without labels
3 joint      the study itself, every layer of protection on
4 alone      the same network and logistic regression at each bank
5 compare    the other arms, where asked for
"""

import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hansa.coordinator.rounds import RoundSummary
from hansa.demo import arms
from hansa.demo.arena import Evaluator, Ground, Score, prepare
from hansa.demo.baselines import local_logistic_auc
from hansa.demo.display import Display
from hansa.demo.result import DemoResult, Epsilon, Scores, Seconds, Traffic
from hansa.errors import CohortTooSmall
from hansa.federation.agreements import terms_of
from hansa.local import Inspection, LocalConsortium
from hansa.local_seats import Member
from hansa.models.pretraining import Base, PretrainingConfig, make_base
from hansa.participant.policy import Policy
from hansa.privacy.accounting import calibrate, epsilon_of
from hansa.secure_agg.codec import kept_entries
from hansa.study import Study

PRETRAINING = PretrainingConfig(steps=150)
EVALUATE_EVERY = 3
SETTINGS_ORIGIN = (
    "Learning rate, sample rate, shares and what moves in every round were chosen on another public table (UCI Adult, label skew"
    " over 15 parties, two splits); clip norm and rounds started from trials on SUPPORT2 and, for a few points, on another split"
    " of this table. The scores shown here had no part in any choice."
)
DATA_SOURCE = (
    "UCI 'default of credit card clients' (I-Cheng Yeh, 2016, doi 10.24432/C55S3H), 30,000 rows, CC BY 4.0."
)
ABSENT = (
    "The authority that certifies the banks is made for this run; there is no enrolment and nobody revokes anything.",
    "The key of each bank's encrypted store lies beside it; state folders are removed at the end of the run.",
    "The keys of the epoch serve the whole run, unless two sums under them cannot be opened.",
)
CAVEATS = (
    "An evaluator that sees every bank's rows computed the scores; no study allows that.",
    "All banks run on one machine here; nothing crosses a network.",
    "One record is one client here; a bank with several records of a person needs person-level privacy.",
    "The test set is that of the whole consortium; on a bank's own customers the gain can be smaller: see the second column.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What the command line asks for."""

    partition: str
    seed: int
    compare: bool
    workers: int
    drop: int = 0


class BankDemo:
    """One run of the demo.

    Args:
        study: The agreement, with the command line's changes.
        parquet: The data file.
        options: The command line's other choices.
        display: Where progress goes.
    """

    def __init__(self, study: Study, parquet: Path, options: DemoOptions, display: Display) -> None:
        self._study, self._parquet, self._options, self._display = study, parquet, options, display
        self._started = time.monotonic()
        self._rounds: list[RoundSummary] = []
        self._auc_by_round: list[float | None] = []
        self._grid_bytes = {"to node": 0, "from node": 0}

    def run(self) -> DemoResult:
        """Run every step and put the result together."""
        torch.set_num_threads(1)
        self._verify_drop()
        study, display = self._study, self._display
        noise_multiplier = calibrate(
            epsilon=study.privacy.epsilon,
            delta=study.privacy.delta,
            sample_rate=study.privacy.sample_rate,
            steps=study.training.rounds * study.training.local_steps,
        )
        # 1
        display.phase("reading and dealing out the data")
        ground = prepare(study, self._parquet, kind=self._options.partition, seed=self._options.seed)
        # 2
        display.phase("pretraining the public base, without labels", PRETRAINING.steps)
        base = make_base(
            study,
            ground.public,
            ground.used_JZ,
            seed=self._options.seed,
            pretraining=PRETRAINING,
            progress=lambda _step, _loss: display.advance(),
        )
        evaluator = Evaluator(ground, base)
        jobs = _jobs(study, base, ground, evaluator, self._options.seed)
        policy = Policy(studies=frozenset({study.id}), epsilon_limit=study.privacy.epsilon)
        members = [
            Member(name=name, rows=rows, policy=policy)
            for name, rows in zip(ground.names, ground.banks, strict=True)
        ]
        with LocalConsortium(
            study,
            members,
            make_model=base.model,
            layout=base.layout,
            workers=self._options.workers,
            jobs=jobs,
            tap=self._count,
            drop=self._options.drop,
        ) as consortium:
            # 3
            inspections = self._train_jointly(consortium, evaluator, noise_multiplier)
            # 4, 5
            scores = self._score_arms(consortium, ground, evaluator, base)
            joint = evaluator.score(inspections[ground.names[0]].values)
            memory = consortium.peak_memory_bytes()
            traffic = self._traffic(consortium, base)
        display.phase("writing the report")
        return self._result(ground, inspections, {"joint": joint, **scores}, traffic, memory)

    def _verify_drop(self) -> None:
        most = terms_of(self._study).dropouts
        if self._options.drop > most:
            raise CohortTooSmall(
                f"{self._options.drop} of {self._study.aggregation.participants} banks cannot vanish in a round, {most} can",
                hint="ask for more participants, or let fewer of them vanish",
            )

    # -- steps -------------------------------------------------------------------------------------------

    def _train_jointly(
        self, consortium: LocalConsortium, evaluator: Evaluator, noise_multiplier: float
    ) -> dict[str, Inspection]:
        rounds = self._study.training.rounds
        self._display.phase("training together: private, masked, encrypted", rounds)

        def on_round(summary: RoundSummary) -> None:
            measured = summary.round % EVALUATE_EVERY == 0 or summary.round == rounds
            seen = consortium.inspect(summary.finished[0]) if measured and summary.finished else None
            auc = None if seen is None else evaluator.score(seen.values).test
            self._rounds.append(summary)
            self._auc_by_round.append(auc)
            spent = self._epsilon_after(summary.round, noise_multiplier)
            note = "its sum could not be opened and was left behind" if summary.void else ""
            self._display.round_done(summary.round, rounds, auc, spent, summary.seconds, note)

        consortium.run(on_round)
        return consortium.inspect_all()

    def _score_arms(
        self, consortium: LocalConsortium, ground: Ground, evaluator: Evaluator, base: Base
    ) -> dict[str, Score]:
        banks = range(len(ground.banks))
        asked = [("local_only_same_network", bank) for bank in banks]
        asked += [("local_only_logistic_regression", bank) for bank in banks]
        if self._options.compare:
            whole = ["pooled", "federated_no_dp", "federated_no_compression"]
            asked = [(arm, 0) for arm in whole] + asked + [("local_only_dp", bank) for bank in banks]
        self._display.phase("training alone, for comparison", len(asked))
        found = _spread(consortium, asked, self._display.advance)
        scores = {"base": evaluator.score(base.layout.gather(base.model()))}
        for arm in dict.fromkeys(arm for arm, _ in asked):
            results = [found[key] for key in asked if key[0] == arm]
            scores[arm] = Score(
                test=float(np.mean([test for test, _ in results])),
                own=float(np.mean([own for _, own in results])),
            )
        return scores

    def _count(self, direction: str, message: bytes) -> None:
        self._grid_bytes[direction] += len(message)

    def _epsilon_after(self, rounds: int, noise_multiplier: float) -> float:
        privacy = self._study.privacy
        return epsilon_of(
            noise_multiplier=noise_multiplier,
            sample_rate=privacy.sample_rate,
            steps=rounds * self._study.training.local_steps,
            delta=privacy.delta,
        )

    # -- the result --------------------------------------------------------------------------------------

    def _traffic(self, consortium: LocalConsortium, base: Base) -> Traffic:
        """Bytes of one bank in one round: ciphertexts, headers, and the messages on the grid."""
        study = self._study
        packing = terms_of(study).layout
        kept = kept_entries(base.layout.size, study.compression.kept_share, packing)
        ciphertexts = packing.ciphertexts_for(kept)
        up, down = consortium.traffic
        messages = study.aggregation.participants * study.training.rounds
        return Traffic(
            uplink_bytes=(up + self._grid_bytes["from node"]) // messages,
            downlink_bytes=(down + self._grid_bytes["to node"]) // messages,
            trainable_parameters=base.layout.size,
            kept_entries=kept,
            padding_entries=packing.capacity(ciphertexts) - kept,
            ciphertexts=ciphertexts,
        )

    def _result(
        self,
        ground: Ground,
        inspections: Mapping[str, Inspection],
        scores: Mapping[str, Score],
        traffic: Traffic,
        memory: int,
    ) -> DemoResult:
        study, first = self._study, inspections[ground.names[0]]
        privacy, rounds = study.privacy, study.training.rounds
        epsilon = Epsilon(
            limit=privacy.epsilon,
            delta=privacy.delta,
            unit="one record, added or removed",
            mechanism="DP-SGD: Poisson-subsampled Gaussian; privacy loss distribution, pessimistic (dp-accounting)",
            noise_multiplier=first.noise_multiplier,
            per_participant={name: inspection.epsilon for name, inspection in inspections.items()},
            by_round=tuple(self._epsilon_after(r, first.noise_multiplier) for r in range(1, rounds + 1)),
        )
        steps = {step for inspection in inspections.values() for step in inspection.seconds}
        by_step = {
            step: sum(inspection.seconds.get(step, 0.0) for inspection in inspections.values()) / rounds
            for step in sorted(steps)
        }
        seconds = Seconds(
            total=time.monotonic() - self._started,
            per_round=float(np.mean([summary.seconds for summary in self._rounds])),
            by_step=by_step,
        )
        return DemoResult(
            participants=study.aggregation.participants,
            rounds=rounds,
            partition=self._options.partition,
            partition_notes=ground.notes,
            seed=self._options.seed,
            auc=_scores({arm: score.test for arm, score in scores.items()}),
            own_auc=_scores({arm: score.own for arm, score in scores.items()}),
            auc_by_round=tuple(self._auc_by_round),
            epsilon=epsilon,
            traffic=traffic,
            seconds=seconds,
            peak_memory_bytes=memory,
            protections=study.protections(),
            absent_steps=ABSENT,
            model_hash=first.digest.hex(),
            study_id=study.id,
            versions=_versions(),
            settings_origin=SETTINGS_ORIGIN,
            data_source=DATA_SOURCE,
            caveats=CAVEATS,
        )


def with_total_seconds(result: DemoResult, seconds: float) -> DemoResult:
    """Replace the total wall time, once everything that belongs to it is done."""
    return replace(result, seconds=replace(result.seconds, total=seconds))


def _scores(found: Mapping[str, float]) -> Scores:
    return Scores(**found)


def _jobs(
    study: Study, base: Base, ground: Ground, evaluator: Evaluator, seed: int
) -> dict[str, Callable[[int], list[float]]]:
    """Give the comparison arms as jobs for the workers; each gives AUC on the test set and on own customers."""

    def pair(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
        score = evaluator.score(values)
        return [score.test, score.own]

    def alone(values: np.ndarray[Any, np.dtype[np.float64]], bank: int) -> list[float]:
        score = evaluator.score_own(values, bank)
        return [score.test, score.own]

    def logistic(bank: int) -> list[float]:
        rows = ground.own_test[bank]
        own = replace(
            ground.flat_test, features=ground.flat_test.features[rows], labels=ground.flat_test.labels[rows]
        )
        found = local_logistic_auc(
            [ground.flat_banks[bank]],
            public_features=ground.flat_public,
            test=ground.flat_test,
            own=[own],
            seed=seed,
        )
        return [found.mean_test, found.mean_own]

    pooled_batch = 2 * arms.BATCH_ROWS
    return {
        "local_only_same_network": lambda bank: alone(
            arms.train_plainly(base, ground.banks[bank], seed=seed), bank
        ),
        "local_only_dp": lambda bank: alone(
            arms.train_alone_privately(study, base, ground.banks[bank]), bank
        ),
        "local_only_logistic_regression": logistic,
        "pooled": lambda _: pair(
            arms.train_plainly(base, arms.pooled_rows(ground), seed=seed, batch_rows=pooled_batch)
        ),
        "federated_no_dp": lambda _: pair(
            arms.train_jointly(study, base, ground, noise=False, compress=True)
        ),
        "federated_no_compression": lambda _: pair(
            arms.train_jointly(study, base, ground, noise=True, compress=False)
        ),
    }


def _spread(
    consortium: LocalConsortium, asked: Sequence[tuple[str, int]], done: Callable[[], None]
) -> dict[tuple[str, int], list[float]]:
    """Run jobs on all workers side by side; `done` is called in this thread after each."""
    waiting: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[tuple[str, int], list[float] | BaseException]] = queue.SimpleQueue()
    for key in asked:
        waiting.put(key)

    def serve(worker: int) -> None:
        while True:
            try:
                key = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((key, consortium.job(worker, *key)))
            except BaseException as error:  # handed to the caller's thread, which raises it
                finished.put((key, error))
                return

    for worker in range(consortium.workers):
        threading.Thread(target=serve, args=(worker,), daemon=True).start()
    found: dict[tuple[str, int], list[float]] = {}
    while len(found) < len(asked):
        key, result = finished.get()
        if isinstance(result, BaseException):
            raise result
        found[key] = result
        done()
    return found


def _versions() -> dict[str, str]:
    packages = ("hansa", "flwr", "torch", "tenseal", "dp-accounting", "cryptography", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def workers_here() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))
