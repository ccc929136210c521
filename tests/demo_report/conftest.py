"""A finished run made by hand, with every value that a test wants to change."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from hansa.demo.result import DemoResult, Epsilon, Scores, Seconds, Traffic

RESULT = DemoResult(
    participants=3,
    rounds=4,
    partition="dirichlet-0.3",
    partition_notes=("bank-2 was dealt again: 12 rows are under the floor of 60",),
    seed=7,
    auc=Scores(joint=0.733, local_only_same_network=0.610, local_only_logistic_regression=0.653, base=0.5),
    own_auc=Scores(joint=0.689, local_only_same_network=0.671, local_only_logistic_regression=0.668),
    auc_by_round=(0.55, None, 0.70, 0.733),
    epsilon=Epsilon(
        limit=8.0,
        delta=1e-5,
        unit="one record, added or removed",
        mechanism="DP-SGD with Poisson sampling",
        noise_multiplier=0.93,
        per_participant={"bank-1": 7.98, "bank-2": 7.98, "bank-3": 6.1},
        by_round=(3.1, 5.2, 6.8, 7.98),
    ),
    traffic=Traffic(
        uplink_bytes=99_412,
        downlink_bytes=201_733,
        trainable_parameters=163_000,
        kept_entries=48_900,
        padding_entries=252,
        ciphertexts=3,
    ),
    seconds=Seconds(total=96.4, per_round=2.9, by_step={"train": 4.1, "protect": 0.42, "aggregate": 0.11}),
    peak_memory_bytes=1_420_000_000,
    protections={
        "differential_privacy": True,
        "secure_aggregation_masks": True,
        "homomorphic_encryption": True,
        "compression": True,
        "signatures": True,
        "in_slot_tag": True,
        "dropout_recovery": True,
        "crash_recovery": True,
        "coordinator_equivocation_check": True,
    },
    absent_steps=("no network",),
    model_hash="ab" * 32,
    study_id="cd" * 32,
    versions={"hansa": "0.1.0", "torch": "2.13.0"},
    settings_origin="chosen on the public sample",
    data_source="UCI default of credit card clients, CC BY 4.0",
    caveats=("one seed",),
)

MakeResult = Callable[..., DemoResult]


@pytest.fixture
def make_result() -> MakeResult:
    def make(**changes: Any) -> DemoResult:
        return dataclasses.replace(RESULT, **changes)

    return make


@pytest.fixture
def result(make_result: MakeResult) -> DemoResult:
    return make_result()
