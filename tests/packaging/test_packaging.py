"""What is installed: the root links, the wheel, and that every module of it imports from anywhere."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import hansa

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("coordinator", "federation", "kernels", "models", "participant", "privacy", "secure_agg")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, cwd, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV", "FLWR"))}
    return subprocess.run(
        command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel with the backend of pyproject.toml, from a copy: a build leaves files in the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for room in ROOMS:
        (tree / room).symlink_to(Path("src") / "hansa" / room)
    for folder in ("src", "tests", "benchmarks", "deploy", "examples"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.parquet")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    done = run(sys.executable, "-c", build, str(out), cwd=tree)
    assert done.returncode == 0, done.stderr
    (path,) = out.iterdir()
    return path


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_at_the_root_is_a_relative_link_into_the_tree(room):
    link = ROOT / room
    assert link.is_symlink()
    target = Path(os.readlink(link))
    assert not target.is_absolute()
    assert ".." not in target.parts
    assert link.resolve() == ROOT / "src" / "hansa" / room
    assert (link / "__init__.py").is_file()


def test_every_room_has_its_link_and_there_are_no_other_links():
    links = {path.name for path in ROOT.iterdir() if path.is_symlink()}
    assert links == set(ROOMS)
    packages = {path.parent.name for path in (ROOT / "src" / "hansa").glob("*/__init__.py")}
    assert packages == {*ROOMS, "demo", "reports"}
    assert not [path for path in (ROOT / "src").rglob("*") if path.is_symlink()]


def test_the_wheel_holds_hansa_and_its_metadata_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"hansa-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"hansa", metadata}
    assert wheel.name == f"hansa-{PROJECT['version']}-py3-none-any.whl"
    sources = ROOT / "src"
    expected = {str(path.relative_to(sources)) for path in (sources / "hansa").rglob("*.py")}
    expected |= {"hansa/py.typed"}
    for suffix in ("proto", "pyi", "j2", "typ"):
        expected |= {str(path.relative_to(sources)) for path in (sources / "hansa").rglob(f"*.{suffix}")}
    assert {name for name in names if name.startswith("hansa/")} == expected
    assert f"{metadata}/licenses/LICENSE" in names
    assert zipfile.ZipFile(wheel).read(f"{metadata}/top_level.txt").decode().split() == ["hansa"]


def test_the_wheel_names_what_pyproject_names(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert metadata.count("\nRequires-Dist: ") >= len(PROJECT["dependencies"])
    (name,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert archive.read(name).decode().split("\n")[:2] == ["[console_scripts]", "hansa = hansa.cli:main"]


def test_every_module_of_the_wheel_imports_from_anywhere(wheel, tmp_path):
    """From the unpacked wheel, in a folder that holds other packages of the rooms' names."""
    unpacked, elsewhere = tmp_path / "unpacked", tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(unpacked)
    for room in ROOMS:
        (elsewhere / room).mkdir(parents=True)
        (elsewhere / room / "__init__.py").write_text("raise ImportError('the wrong package')")
    program = """
import importlib, pkgutil, sys
import hansa
names = ["hansa", *(found.name for found in pkgutil.walk_packages(hansa.__path__, "hansa."))]
for name in names:
    importlib.import_module(name)
for name in names:
    assert sys.modules[name].__file__.startswith(sys.argv[1]), sys.modules[name].__file__
assert not {"coordinator", "federation", "kernels", "models", "participant", "privacy", "secure_agg"} & set(sys.modules)
print(len(names))
"""
    done = run(
        sys.executable,
        "-c",
        program,
        str(unpacked),
        cwd=elsewhere,
        PYTHONSAFEPATH="1",
        PYTHONPATH=str(unpacked),
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list((ROOT / "src" / "hansa").rglob("*.py")))


def test_every_command_of_the_makefile_runs_with_a_safe_path():
    makefile = (ROOT / "Makefile").read_text()
    assert "export PYTHONSAFEPATH := 1" in makefile
    assert "python -m pytest" not in makefile


@pytest.mark.parametrize("path", sorted((ROOT / "src" / "hansa").rglob("__init__.py")), ids=str)
def test_an_init_file_is_its_docstring_only(path):
    (statement,) = ast.parse(path.read_text()).body
    assert isinstance(statement, ast.Expr)
    assert isinstance(statement.value, ast.Constant)
    assert isinstance(statement.value.value, str)
    assert statement.value.value.strip()


def test_no_import_is_relative_or_names_a_room_without_hansa():
    looked_at = 0
    for path in (ROOT / "src" / "hansa").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                modules = [node.module]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            else:
                continue
            looked_at += len(modules)
            assert not [module for module in modules if module.split(".")[0] in ROOMS], path
    assert looked_at > 300


def test_the_package_is_typed():
    assert (Path(hansa.__file__).parent / "py.typed").is_file()
