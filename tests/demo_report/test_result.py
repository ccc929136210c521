import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from hansa.demo.result import Epsilon, Scores, Seconds, Traffic
from hansa.errors import ReportValueInvalid

NUMBER, SCORE = (int, float), (float, type(None))
SCORES = dict.fromkeys(
    (
        "joint",
        "local_only",
        "local_only_same_network",
        "local_only_logistic_regression",
        "local_only_dp",
        "federated_no_dp",
        "federated_no_compression",
        "pooled",
        "base",
    ),
    SCORE,
)
# hansa/demo-report/v1: a dict has exactly these keys; [T] is a list of T; {str: T} maps any name to T.
SCHEMA: dict[str, Any] = {
    "schema": str,
    "participants": int,
    "rounds": int,
    "partition": str,
    "partition_notes": [str],
    "seed": int,
    "auc": SCORES,
    "own_auc": SCORES,
    "auc_by_round": [SCORE],
    "gain": {"joint_vs_local_only": SCORE, "joint_vs_same_network": SCORE},
    "epsilon": {
        "max": NUMBER,
        "limit": NUMBER,
        "delta": NUMBER,
        "unit": str,
        "mechanism": str,
        "noise_multiplier": NUMBER,
        "per_participant": {str: NUMBER},
        "by_round": [NUMBER],
    },
    "traffic": {
        "uplink_bytes_per_parameter": float,
        "uplink_bytes": int,
        "downlink_bytes": int,
        "fp32_bytes": int,
        "trainable_parameters": int,
        "kept_entries": int,
        "padding_entries": int,
        "ciphertexts": int,
        "uplink_bytes_total": int,
        "downlink_bytes_total": int,
        "fp32_bytes_total": int,
    },
    "seconds": {"total": NUMBER, "per_round": NUMBER, "by_step": {str: NUMBER}},
    "peak_memory_bytes": int,
    "protections": {str: bool},
    "absent_steps": [str],
    "model_hash": str,
    "study_id": str,
    "versions": {str: str},
    "settings_origin": str,
    "data_source": str,
    "caveats": [str],
}


def mismatches(value: Any, schema: Any, place: str = "report") -> list[str]:
    """Every place where a document departs from the schema; types are exact, so numpy's are no match."""
    if isinstance(schema, list):
        if type(value) is not list:
            return [f"{place} is {type(value)}"]
        return [m for i, item in enumerate(value) for m in mismatches(item, schema[0], f"{place}[{i}]")]
    if isinstance(schema, dict):
        if type(value) is not dict:
            return [f"{place} is {type(value)}"]
        if str in schema:
            found = [f"{place} has key {key!r}" for key in value if type(key) is not str]
            return found + [m for k, v in value.items() for m in mismatches(v, schema[str], f"{place}.{k}")]
        found = [f"{place}: {key}" for key in value.keys() ^ schema.keys()]
        return found + [
            m for k in value.keys() & schema.keys() for m in mismatches(value[k], schema[k], f"{place}.{k}")
        ]
    allowed = schema if isinstance(schema, tuple) else (schema,)
    return [] if type(value) in allowed else [f"{place} is {type(value)}"]


def test_report_json_follows_the_written_schema(result, make_result):
    assert mismatches(result.to_json(), SCHEMA) == []
    bare = make_result(auc=Scores(joint=0.5), own_auc=Scores(joint=0.5), partition_notes=(), absent_steps=())
    assert mismatches(bare.to_json(), SCHEMA) == []
    assert result.to_json()["schema"] == "hansa/demo-report/v1"


def test_the_schema_check_can_fail(result):
    document = result.to_json()
    document["extra"] = 1
    document["seed"] = "7"
    document["auc"]["base"] = np.float64(0.5)
    assert len(mismatches(document, SCHEMA)) == 3


def test_an_arm_that_was_not_run_is_null(result):
    auc = result.to_json()["auc"]
    assert auc["pooled"] is None
    assert auc["federated_no_dp"] is None
    assert auc["base"] == 0.5


def test_local_only_is_the_better_of_the_two_models_of_a_bank(result):
    document = result.to_json()
    assert document["auc"]["local_only"] == 0.653
    assert document["own_auc"]["local_only"] == 0.671
    assert Scores(joint=0.7, local_only_same_network=0.6).local_only == 0.6
    assert Scores(joint=0.7).local_only is None


def test_gains_are_relative_and_null_without_a_baseline(result, make_result):
    gain = result.to_json()["gain"]
    assert gain["joint_vs_local_only"] == pytest.approx(0.733 / 0.653 - 1)
    assert gain["joint_vs_same_network"] == pytest.approx(0.733 / 0.610 - 1)
    assert make_result(auc=Scores(joint=0.7)).to_json()["gain"] == {
        "joint_vs_local_only": None,
        "joint_vs_same_network": None,
    }


def test_derived_numbers(result):
    document = result.to_json()
    assert document["epsilon"]["max"] == 7.98
    assert document["traffic"]["fp32_bytes"] == 4 * 163_000
    assert document["traffic"]["uplink_bytes_per_parameter"] == pytest.approx(99_412 / 163_000)
    assert document["traffic"]["uplink_bytes_total"] == 3 * 4 * 99_412
    assert document["traffic"]["downlink_bytes_total"] == 3 * 4 * 201_733
    assert document["traffic"]["fp32_bytes_total"] == 3 * 4 * 4 * 163_000


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, np.float32("nan")])
def test_nan_infinity_and_numbers_out_of_bounds_are_refused_everywhere(make_result, bad):
    result = make_result()
    makers = [
        lambda: Scores(joint=bad),
        lambda: Scores(joint=0.5, pooled=bad),
        lambda: dataclasses.replace(result.epsilon, limit=bad),
        lambda: dataclasses.replace(result.epsilon, per_participant={"bank-1": bad}),
        lambda: dataclasses.replace(result.epsilon, by_round=(bad,)),
        lambda: Seconds(total=bad, per_round=1.0, by_step={}),
        lambda: Seconds(total=1.0, per_round=1.0, by_step={"train": bad}),
        lambda: make_result(auc_by_round=(0.5, bad, 0.5, 0.5)),
        lambda: make_result(peak_memory_bytes=bad),
    ]
    for make in makers:
        with pytest.raises(ReportValueInvalid, match=str(bad)):
            make()


def test_an_auc_above_one_and_a_model_without_parameters_are_refused(result):
    with pytest.raises(ReportValueInvalid, match=r"auc of joint = 1\.2 is not a finite number in 0\.\.1"):
        Scores(joint=1.2)
    with pytest.raises(ReportValueInvalid, match="trainable_parameters = 0"):
        dataclasses.replace(result.traffic, trainable_parameters=0)


def test_parts_that_disagree_on_rounds_or_participants_are_refused(make_result):
    with pytest.raises(ReportValueInvalid, match="auc_by_round has 4 values, not 5"):
        make_result(rounds=5)
    with pytest.raises(ReportValueInvalid, match=r"epsilon.per_participant has 3 values, not 15"):
        make_result(participants=15)


def test_json_holds_plain_types_only_whatever_numbers_came_in(make_result):
    result = make_result(
        participants=np.int64(3),
        auc=Scores(joint=np.float64(0.7), pooled=np.float32(0.75)),
        auc_by_round=tuple(np.array([0.5, 0.6, 0.7, 0.7])),
        protections={"signatures": np.True_},
        traffic=Traffic(
            uplink_bytes=np.int32(10),
            downlink_bytes=20,
            trainable_parameters=5,
            kept_entries=1,
            padding_entries=0,
            ciphertexts=1,
        ),
    )
    assert mismatches(result.to_json(), SCHEMA) == []
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


def test_a_value_that_json_does_not_have_is_refused_when_the_result_is_made(make_result):
    with pytest.raises(ReportValueInvalid, match=r"report\.versions\.torch is a bytes"):
        make_result(versions={"torch": b"2.13.0"})


def test_a_result_cannot_be_changed(result):
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.seed = 1
    with pytest.raises(TypeError):
        Epsilon(8.0)
