"""House rules that a machine can check: pinned versions, file lengths, the error tree, no traces of a machine."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from hansa import errors

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES_MOST = 400
FUNCTION_LINES_MOST = 50  # without its docstring

# In two parts each, so that this file does not name what it looks for.
TRACES = {
    "package registry": ["pypi" + r"\.(org|python)", "pythonhosted" + r"\.org", "anaconda" + r"\.org"],
    "absolute path": [r"(?<![\w.~-])/" + folder + r"/[\w.-]" for folder in ("root", "home", "Users", "work")],
}
EXAMPLES = {  # each must be found, so that the patterns cannot rot
    "package registry": ["https://pypi" + ".org/simple", "files.pythonhosted" + ".org"],
    "absolute path": ["cd /ro" + "ot/x", '"/ho' + 'me/me/x"', "/Us" + "ers/me", "see /wo" + "rk/x"],
}


def tracked_files():
    """What git tracks, and what it would: new files that it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, or no git here")
    paths = [ROOT / name.decode() for name in done.stdout.split(b"\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.mark.parametrize("what", TRACES)
def test_nothing_in_the_repository_names_a_registry_or_a_path_of_a_machine(what):
    patterns = [re.compile(pattern) for pattern in TRACES[what]]
    for example in EXAMPLES[what]:
        assert any(pattern.search(example) for pattern in patterns), example
    for path in tracked_files():
        text = path.read_bytes().decode(errors="replace")
        for pattern in patterns:
            found = pattern.search(text)
            assert found is None, f"{path.relative_to(ROOT)}: {found}"


def test_nothing_that_is_made_is_tracked():
    for path in tracked_files():
        parts = path.relative_to(ROOT).parts
        assert not {"__pycache__", "build", "dist", "hansa-demo", ".venv"} & set(parts)
        assert path.suffix not in {".pyc", ".whl", ".so", ".key", ".pem", ".jsonl"}
        assert path.stat().st_size < 4 << 20


# -- versions --------------------------------------------------------------------------------------------------


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements():
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return [Requirement(line) for line in PROJECT["dependencies"] + extras]


def test_a_constraint_is_one_name_and_one_version():
    for line in constraints():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    names = [canonicalize_name(line.partition("==")[0]) for line in constraints()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_dependency_is_pinned_to_a_version_that_pyproject_allows(requirement):
    pins = dict(line.split("==") for line in constraints())
    pinned = {canonicalize_name(name): Version(version) for name, version in pins.items()}
    assert canonicalize_name(requirement.name) in pinned
    assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def test_what_the_package_imports_is_named_in_pyproject():
    """A dependency of a dependency is nobody's promise."""
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["report"]]
    named = {canonicalize_name(Requirement(line).name) for line in lines}
    own_name = {"google": "protobuf", "grpc": "grpcio", "grpc_health": "grpcio-health-checking"}
    imported = set()
    for path in (ROOT / "src" / "hansa").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
    others = {name for name in imported if name not in sys.stdlib_module_names and name != "hansa"}
    assert "torch" in others
    assert {canonicalize_name(own_name.get(name, name)) for name in others} <= named


def test_python_versions_and_licence_are_stated_once_and_alike():
    assert PROJECT["requires-python"].startswith(">=3.11")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


# -- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    # All but what `make stubs` writes.
    sorted(path for path in (ROOT / "src" / "hansa").rglob("*.py") if "_pb2" not in path.name),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_a_source_file_is_short_and_begins_with_a_docstring(path):
    text = path.read_text()
    if path.name != "errors.py":  # one tree, and a list of classes with nothing in them
        assert len(text.splitlines()) <= LINES_MOST
    tree = ast.parse(text)
    assert (ast.get_docstring(tree) or "").strip()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            code = node.body[1:] if ast.get_docstring(node) else node.body
            length = code[-1].end_lineno - code[0].lineno + 1 if code else 0
            assert length <= FUNCTION_LINES_MOST, f"{node.name} has {length} lines"


# -- errors ----------------------------------------------------------------------------------------------------


def tree(kind=errors.Error):
    return [kind, *(below for child in kind.__subclasses__() for below in tree(child))]


def test_every_error_stands_in_the_module_of_errors():
    assert {kind.__module__ for kind in tree()} == {"hansa.errors"}
    defined = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    assert set(tree()) == defined


def test_every_error_has_a_code_of_its_own():
    codes = [kind.code for kind in tree()]
    assert len(set(codes)) == len(codes)
    for kind in tree():
        assert "code" in vars(kind), kind
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", kind.code)


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_an_error_says_what_to_do_and_how_a_command_ends(kind):
    error = kind("what is wrong")
    assert (str(error), error.message) == ("what is wrong", "what is wrong")
    assert error.hint == kind.default_hint
    assert kind.default_hint
    assert kind.default_hint[0] == kind.default_hint[0].lower()
    assert not kind.default_hint.endswith(".")
    assert kind("x", hint="another way").hint == "another way"
    assert error.exit_status in {1, 2, 3, 4, 65, 66, 69, 73, 75, 78, 130}
    assert (kind.__doc__ or "").strip()


def test_every_error_stands_in_the_tree_of_the_docstring_below_its_parent():
    lines = (errors.__doc__ or "").splitlines()
    drawn = {}
    for number, line in enumerate(lines):
        head = re.split(r"\s+exit \d+", line)[0]
        for name in re.findall(r"\b[A-Z][A-Za-z]+\b", head):
            drawn.setdefault(name, []).append((number, len(line) - len(line.lstrip("│├└─ "))))
    exits = {
        match[1]: int(match[2])
        for line in lines
        if (match := re.match(r"[│├└─ ]*([A-Z]\w+)\s+exit (\d+)", line))
    }
    for kind in tree()[1:]:
        assert kind.__name__ in drawn, f"{kind.__name__} is not in the tree"
        (place,) = drawn[kind.__name__]
        parent = kind.__mro__[1]
        if parent is errors.Error:
            assert exits[kind.__name__] == kind.exit_status
        else:
            above = drawn[parent.__name__][0]
            assert above[0] < place[0]
            between = [
                n for n, d in (v[0] for k, v in drawn.items() if k in exits) if above[0] < n <= place[0]
            ]
            assert not between, f"{kind.__name__} does not stand below {parent.__name__}"
