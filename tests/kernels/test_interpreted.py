"""Every Triton kernel equals its reference in Triton's interpreter.

The interpreter is chosen when a kernel is defined, for Triton's own library too, so the cases run in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = sorted((Path(__file__).parent / "interpreted").glob("*_cases.py"))
pytest.importorskip("triton")


def test_kernels_equal_their_references() -> None:
    assert len(CASES) == 6
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # Triton's interpreter uses what numpy has deprecated.
    command += ["-W", "ignore::DeprecationWarning", "-W", "ignore::RuntimeWarning", *map(str, CASES)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
