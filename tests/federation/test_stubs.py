"""The generated messages and stubs are those of the .proto files."""

import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parents[2] / "src"
PROTOS = sorted((SOURCES / "hansa" / "federation").glob("*.proto"))


def test_stubs_are_what_make_stubs_writes(tmp_path):
    pytest.importorskip("grpc_tools")
    names = [str(path.relative_to(SOURCES)) for path in PROTOS]
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(SOURCES), *outputs, *names]
    subprocess.run(command, check=True, cwd=SOURCES, timeout=60)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    assert len(made) == 3 * len(PROTOS) > 0
    kept = {path.relative_to(SOURCES): path.read_bytes() for path in (SOURCES / "hansa").rglob("*_pb2*.py*")}
    assert {path: data for path, data in kept.items() if path.suffix != ".pyc"} == made
