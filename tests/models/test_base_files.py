"""The base of a study as a file that all participants check before they read it."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hansa.errors import BaseMismatch, CheckpointDamaged, CheckpointFileMissing, OutputNotWritable
from hansa.models.base_files import file_sha256, load_base, metadata_of, save_base


@pytest.fixture
def saved(tiny_base, tiny_encoder, tiny_study, tmp_path):
    path = tmp_path / "base.safetensors"
    return path, save_base(tiny_base, tiny_encoder, tiny_study, path)


def test_every_number_comes_back_bit_by_bit(saved, tiny_base, tiny_encoder, tiny_study, tiny):
    path, digest = saved
    found = load_base(path, tiny_study, sha256=digest)
    assert found.sha256 == digest == file_sha256(path)
    assert found.base.config == tiny_base.config
    assert found.base.weights.keys() == tiny_base.weights.keys()
    for name, tensor in tiny_base.weights.items():
        assert torch.equal(found.base.weights[name], tensor), name
    assert any("factor_A" in name for name in found.base.weights)
    table = tiny.Table("public")
    encoded = found.encoder.encode(table.numeric, table.categorical)
    assert torch.equal(encoded, tiny_encoder.encode(table.numeric, table.categorical))
    np.testing.assert_array_equal(
        found.base.layout.gather(found.base.model()), tiny_base.layout.gather(tiny_base.model())
    )


def test_the_factors_a_come_from_the_file_and_not_from_the_seed(saved, tiny_study, tmp_path):
    path, _ = saved
    tensors = load_file(path)
    name = next(name for name in tensors if "factor_A" in name)
    tensors[name] = tensors[name] + 0.5
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, metadata=metadata_of(tiny_study))
    model = load_base(other, tiny_study).base.model()
    assert torch.equal(dict(model.named_buffers())[name.removeprefix("model/")], tensors[name])


def test_the_same_base_gives_the_same_bytes(saved, tiny_base, tiny_encoder, tiny_study, tmp_path):
    assert save_base(tiny_base, tiny_encoder, tiny_study, tmp_path / "again.safetensors") == saved[1]


def test_another_hash_than_agreed_on_is_refused_before_the_file_is_parsed(saved, tiny_study):
    saved[0].write_bytes(b"not a safetensors file at all")
    with pytest.raises(BaseMismatch, match="agreed on was"):
        load_base(saved[0], tiny_study, sha256=saved[1])


def test_a_base_fits_studies_that_differ_in_privacy_and_rounds_only(saved, tiny_study):
    load_base(saved[0], tiny_study.with_changes(epsilon=3.0, rounds=7))
    adapters = tiny_study.adapters.model_copy(update={"factor_seed": 5})
    with pytest.raises(BaseMismatch, match="other columns"):
        load_base(saved[0], tiny_study.model_copy(update={"adapters": adapters}))


def test_what_is_no_base_is_refused(saved, tiny_study, tmp_path):
    path, _ = saved
    whole = path.read_bytes()
    for spoilt in (b"", whole[: len(whole) // 2], struct.pack("<Q", 2) + b"[]", json.dumps({}).encode()):
        path.write_bytes(spoilt)
        with pytest.raises(CheckpointDamaged):
            load_base(path, tiny_study)
    with pytest.raises(CheckpointFileMissing):
        load_base(tmp_path / "absent", tiny_study)


@pytest.mark.parametrize(
    "change", ["missing", "extra", "shape", "type", "nan", "edges", "deviation", "statistics"]
)
def test_a_tensor_that_is_not_as_it_must_be_is_refused(saved, tiny_study, tmp_path, change):
    tensors = load_file(saved[0])
    weight = next(name for name in tensors if name.startswith("model/") and tensors[name].dim() == 2)
    if change == "missing":
        del tensors[weight]
    elif change == "extra":
        tensors["model/other"] = torch.zeros(1)
    elif change == "shape":
        tensors[weight] = tensors[weight][:-1].contiguous()
    elif change == "type":
        tensors[weight] = tensors[weight].double()
    elif change == "nan":
        tensors[weight][0, 0] = float("nan")
    elif change == "edges":
        tensors["encoder/0"] = tensors["encoder/0"].flip(0)
    elif change == "deviation":
        tensors["encoder/0"][1] = 0.0
    else:
        del tensors["encoder/0"]
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, metadata=metadata_of(tiny_study))
    with pytest.raises(CheckpointDamaged):
        load_base(path, tiny_study)


def test_a_folder_that_cannot_be_written_is_a_named_error(tiny_base, tiny_encoder, tiny_study, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputNotWritable):
        save_base(tiny_base, tiny_encoder, tiny_study, tmp_path / "file" / "base.safetensors")
