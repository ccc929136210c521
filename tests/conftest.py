"""Fixtures of the tiny consortium, of text models, of a fleet, of a network and of an auditor's folder.

Their parts stand in files beside this one.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault(
    "FLWR_TELEMETRY_ENABLED", "0"
)  # as `make test` does; Flower reads it when it is imported

if TYPE_CHECKING:
    from hansa.models.features import FeatureEncoder
    from hansa.models.pretraining import Base
    from hansa.privacy.ledger import LedgerOwner
    from hansa.study import Study


def _module(name: str) -> ModuleType:
    """Load a file beside this one, on demand, for it brings torch along."""
    module = _plain_module(name)
    module.torch.set_num_threads(1)
    return module


def _plain_module(name: str) -> ModuleType:
    """Load a file beside this one, on demand."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The parts of the tiny consortium."""
    return _module("tiny_consortium")


@pytest.fixture(scope="session")
def network() -> ModuleType:
    """Certificates of a consortium, and a proxy that fails as networks do."""
    return _plain_module("network_parts")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Any]:
    """A server of PostgreSQL; see `postgresql_server.py`. Skips where there is none, or no driver."""
    parts = _plain_module("postgresql_server")
    missing = parts.why_not()
    if missing:
        pytest.skip(missing)
    with parts.PostgresqlServer() as server:
        yield server


@pytest.fixture
def database(postgresql: Any) -> str:
    """The URL, with its password, of an empty database in PostgreSQL."""
    return _plain_module("postgresql_server").with_password(postgresql.new_database())


@pytest.fixture(scope="session")
def texts() -> ModuleType:
    """Small text models and their oracle."""
    return _module("text_models")


@pytest.fixture(scope="session")
def public() -> ModuleType:
    """Tiny models of the public families, by transformers."""
    return _module("public_models")


@pytest.fixture(scope="session")
def tiny_study(tiny: ModuleType) -> "Study":
    from hansa.study import parse_study

    return parse_study(tiny.TINY_STUDY)


@pytest.fixture(scope="session")
def tiny_encoder(tiny: ModuleType, tiny_study: "Study") -> "FeatureEncoder":
    from hansa.models.features import encoder_of_public_sample

    return encoder_of_public_sample(tiny_study.data, tiny.Table("public").numeric, 1, 4)


@pytest.fixture(scope="session")
def tiny_bases(tiny: ModuleType, tiny_encoder: "FeatureEncoder") -> "Callable[..., Base]":
    """Make the base of a study from the public sample; the same whenever study and seed are."""
    from hansa.models.pretraining import PretrainingConfig, make_base

    public = tiny.Table("public", tiny_encoder).rows.features

    def make(study: "Study", seed: int = 0) -> "Base":
        pretraining = PretrainingConfig(steps=2, batch_size=16)
        return make_base(study, public, tiny_encoder.used(), seed=seed, pretraining=pretraining)

    return make


@pytest.fixture(scope="session")
def tiny_base(tiny_study: "Study", tiny_bases: "Callable[..., Base]") -> "Base":
    return tiny_bases(tiny_study)


@pytest.fixture(scope="session")
def tiny_tables(tiny: ModuleType, tiny_encoder: "FeatureEncoder") -> dict[str, Any]:
    return {name: tiny.Table(name, tiny_encoder) for name in tiny.NAMES}


@pytest.fixture(scope="session")
def strict_study(tiny: ModuleType) -> "Study":
    from hansa.study import parse_study

    return parse_study(tiny.TINY_STUDY.replace('"quorum"', '"strict"'))


@pytest.fixture
def houses(
    tiny: ModuleType,
    tiny_study: "Study",
    tiny_base: "Base",
    tiny_encoder: "FeatureEncoder",
    tiny_tables: dict[str, Any],
    tmp_path: Path,
) -> Iterator[Callable[..., Any]]:
    """Make a house; `rows`, `policies` and `random` replace those of the members that they name."""
    from hansa.participant.policy import Policy

    made: list[Any] = []

    def make(
        study: "Study" = tiny_study,
        base: "Base" = tiny_base,
        names: tuple[str, ...] = tiny.NAMES,
        **replaced: dict[str, Any] | None,
    ) -> Any:
        policy = Policy(studies=frozenset({study.id}), epsilon_limit=study.privacy.epsilon)
        for name in names:
            tiny_tables.setdefault(name, tiny.Table(name, tiny_encoder))
        made.append(
            tiny.House(
                study,
                base,
                tmp_path / f"house-{len(made)}",
                rows={name: tiny_tables[name].rows for name in names} | (replaced.get("rows") or {}),
                policies=dict.fromkeys(names, policy) | (replaced.get("policies") or {}),
                random=replaced.get("random") or {},
            )
        )
        return made[-1]

    yield make
    for house in made:
        house.grid.close()


@pytest.fixture
def house(houses: Callable[..., Any]) -> Any:
    return houses()


@pytest.fixture
def strict_house(houses: Callable[..., Any], strict_study: "Study", tiny_bases: "Callable[..., Base]") -> Any:
    return houses(strict_study, tiny_bases(strict_study))


@pytest.fixture(scope="session")
def ledger_owner() -> "Callable[..., LedgerOwner]":
    """Make the owner of a ledger; always the same one but for the values that are given."""
    from hansa.privacy.ledger import LedgerOwner
    from hansa.secure_agg.identity import Identity

    def make(seed: int = 1, data: bytes = b"d" * 32, **changes: Any) -> "LedgerOwner":
        identity = Identity.load(bytes([seed]) * 32)
        usual = {"participant": "bank-1", "sign": identity.sign, "now": lambda: 1_800_000_000.9}
        return LedgerOwner(public_key=identity.public, data=data, **{**usual, **changes})

    return make


@pytest.fixture(scope="session")
def fleet() -> ModuleType:
    """Parts of a coordinator and its nodes on the loopback interface."""
    return _plain_module("fleet_parts")


@pytest.fixture
def clusters(fleet: ModuleType, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make SuperLink, front and grid for members of these names, and end them and their nodes after the test."""
    made: list[Any] = []

    def make(*names: str, **front: Any) -> Any:
        made.append(fleet.Cluster(tmp_path / f"cluster-{len(made)}", names, **front))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture(scope="session")
def federated() -> ModuleType:
    """A consortium with an authority, an author and members, and its documents."""
    return _plain_module("federated_house")


@pytest.fixture(scope="session")
def house_of_members(federated: ModuleType) -> Any:
    return federated.House()


@pytest.fixture(scope="session")
def small_study(tiny: ModuleType) -> "Study":
    """The tiny study for three members in strict mode, one round."""
    from hansa.study import parse_study

    text = tiny.TINY_STUDY.replace('"quorum"', '"strict"').replace("participants = 4", "participants = 3")
    return parse_study(text.replace("rounds = 2", "rounds = 1"))


@pytest.fixture
def small(tmp_path: Path, tiny: ModuleType, small_study: "Study") -> Any:
    """A coordinator's home and three members' homes, enrolled, with data and policies; needs sockets to find free ports."""
    return _plain_module("small_consortium").SmallConsortium(tmp_path, small_study, tiny)


@pytest.fixture
def doctor_site(tmp_path: Path) -> Iterator[Any]:
    """A coordinator with its four doors, and members that a doctor examines."""
    found = _plain_module("doctor_site").DoctorSite(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="session")
def audits() -> ModuleType:
    """The parts of an auditor's folder."""
    return _plain_module("audit_folder")


@pytest.fixture
def institution(audits: ModuleType, tmp_path: Path) -> "Callable[..., Any]":
    """Make an institution that is written by hand."""

    def make(name: str = "bank-1", seed: int = 1, **values: Any) -> Any:
        return audits.Institution(folder=tmp_path / "audit", name=name, seed=seed, **values)

    return make


@pytest.fixture(scope="session")
def sound_folder(audits: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ledgers and statements of four institutions, not to be changed."""
    place = tmp_path_factory.mktemp("audit") / "audit"
    audits.make_folder(place)
    return place


@pytest.fixture
def audit_place(sound_folder: Path, tmp_path: Path) -> Path:
    """A copy of the sound folder, to be tampered with."""
    place = tmp_path / "copy"
    shutil.copytree(sound_folder, place)
    return place


@pytest.fixture(scope="session")
def cluster_parts() -> ModuleType:
    """Processes of a whole consortium, proxies before its doors, and what they write down."""
    return _plain_module("cluster_parts")


@pytest.fixture(scope="session")
def base_file(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Any, tiny_encoder: Any, tiny_study: Any
) -> Path:
    from hansa.models.base_files import save_base

    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_base(tiny_base, tiny_encoder, tiny_study, path)
    return path


@pytest.fixture(scope="module")
def make_consortium(
    cluster_parts: ModuleType, tiny: ModuleType, base_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    """Make a consortium for a study of so many rounds; its processes end with the module."""
    made: list[Any] = []

    def make(rounds: int = 3, **changes: Any) -> Any:
        text = tiny.TINY_STUDY.replace("rounds = 2", f"rounds = {rounds}")
        text = text.replace("participants = 4", f"participants = {len(changes.get('names', tiny.NAMES))}")
        made.append(
            cluster_parts.Consortium(
                tmp_path_factory.mktemp("consortium"), base=base_file, table=tiny.Table, study=text, **changes
            )
        )
        return made[-1]

    yield make
    for consortium in made:
        consortium.close()
