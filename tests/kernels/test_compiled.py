"""Every Triton kernel compiles for an A100 (sm_80) and an H100 (sm_90), uses their matrix units and spills nothing.

Needs no GPU. A process that has chosen the interpreter cannot compile, so the compiler runs in one of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parent / "compiled" / "cases.py"
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10}  # what one block may have
# Kernels that multiply matrices; "mma" where the tile of a case is too small for the instruction of sm_90.
MATRIX_UNITS = {
    "attention, 64, bf16": "wgmma",
    "attention, 128, bf16": "wgmma",
    "attention, 128, bf16, full": "wgmma",
    "attention, 256, bf16": "mma",
    "attention, 64, fp32": "mma",
    "attention, 128, fp32": "mma",
    "lora, bf16": "wgmma",
    "lora, bf16, input gradient": "wgmma",
    "lora, bf16, few rows": "wgmma",
    "lora, bf16, rank 128": "wgmma",
    "lora, fp32": "wgmma",
    "lora, fp32, rank 64, transposed": "mma",
    "segments, 16 by 2048, bf16": "mma",
    "segments, 2048 by 64, bf16": "wgmma",
    "segments, 16 by 512, fp32": "mma",
}
NO_MATRICES = {
    "routing, 128 experts",
    "routing, groups of 256 experts",
    "compression, fp32",
    "compression, fp64",
}
QUICK = [
    "routing, 128 experts",
    "attention, 128, bf16",
    "lora, bf16",
    "segments, 2048 by 64, bf16",
    "compression, fp32",
]


def compiled(names: list[str], cache: Path) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    command = [sys.executable, str(SCRIPT), *names]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    rows: list[dict[str, Any]] = json.loads(run.stdout)
    return rows


def verify(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert (row["stack"], row["local"]) == (0, 0), row  # nothing is spilled
        assert row["dynamic_shared"] <= SHARED_BYTES[row["architecture"]], row
        assert row["atomics"] == 0, row  # the same sums in every run
        if row["kernel"] == "compress_kernel":
            assert row["fma64"] == 0, row  # a fused multiply-add rounds once less than the definition
        if row["case"] in NO_MATRICES:
            continue
        unit = MATRIX_UNITS[row["case"]] if row["architecture"] == 90 else "mma"
        assert row["mma"] + row["wgmma"] > 0 if unit == "mma" else row["wgmma"] > 0, row


def test_kernels_compile_use_the_matrix_units_and_spill_nothing(tmp_path: Path) -> None:
    rows = compiled(QUICK, tmp_path)
    assert {row["case"] for row in rows} == set(QUICK)
    assert {row["architecture"] for row in rows} == {80, 90}
    verify(rows)


@pytest.mark.slow
def test_every_case_compiles_uses_the_matrix_units_and_spills_nothing(tmp_path: Path) -> None:
    rows = compiled([], tmp_path)
    assert {row["case"] for row in rows} == set(MATRIX_UNITS) | NO_MATRICES
    verify(rows)
