"""Safetensors folders: slices of single and sharded files, and every refusal."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from core_jax.errors import DataError
from reasoning_jax.weights.safetensors_folder import SafetensorsFolder
from tests.reasoning.weight_cases import BF16, hf_tensors, small_config, write_folder


@pytest.mark.parametrize("num_files", [1, 4])
def test_specs_and_slices_are_those_of_the_tensors(tmp_path, num_files):
    tensors = hf_tensors(small_config(), BF16)
    source = SafetensorsFolder(write_folder(tmp_path, small_config(), tensors, num_files))
    assert {name: spec.shape for name, spec in source.specs.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert {spec.dtype for spec in source.specs.values()} == {"BF16"}
    name = "model.layers.2.mlp.up_proj.weight"
    part = source.read(name, (slice(5, 12), slice(3, 10)))
    assert part.dtype == BF16
    np.testing.assert_array_equal(part, tensors[name][5:12, 3:10])
    norm = source.read("model.norm.weight", (slice(2, 7),))
    np.testing.assert_array_equal(norm, tensors["model.norm.weight"][2:7])


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_never_loaded(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DataError, match=f"only as pickles \\({name}\\).*never loaded"):
        SafetensorsFolder(tmp_path)


def test_a_folder_without_weights_says_what_it_should_have(tmp_path):
    with pytest.raises(DataError, match=r"neither 'model.safetensors' nor 'model.safetensors.ind"):
        SafetensorsFolder(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        SafetensorsFolder(tmp_path / "absent")


def test_a_file_that_was_cut_off_is_named(tmp_path):
    folder = write_folder(tmp_path, small_config(), hf_tensors(small_config()))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"model.safetensors' is not a whole safetensors file"):
        SafetensorsFolder(folder)


def test_a_file_with_a_header_that_lies_is_refused(tmp_path):
    """8 bytes of length, then JSON: offsets that point past the end must not be followed."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        SafetensorsFolder(tmp_path)


def test_files_that_an_index_names_must_be_there(tmp_path):
    folder = write_folder(tmp_path, small_config(), hf_tensors(small_config()), num_files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(DataError, match=r"not there: model-00002-of-00003.safetensors; copy"):
        SafetensorsFolder(folder)


def test_an_index_that_disagrees_with_its_files_lists_both_sides(tmp_path):
    folder = write_folder(tmp_path, small_config(), hf_tensors(small_config()), num_files=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    place = index["weight_map"].pop("model.norm.weight")
    index["weight_map"]["model.spare.weight"] = place
    path.write_text(json.dumps(index))
    with pytest.raises(DataError) as caught:
        SafetensorsFolder(folder)
    assert f"'model.norm.weight' in '{place}' is not in the index" in str(caught.value)
    assert f"'model.spare.weight' in '{place}' is not in the file" in str(caught.value)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(DataError, match=r"outside its folder: \.\./other.safetensors"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"metadata": {}}'])
def test_an_index_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(DataError, match="has no JSON table 'weight_map'"):
        SafetensorsFolder(tmp_path)


def test_a_tensor_of_integers_is_no_parameter(tmp_path):
    save_file({"codes": np.arange(11, dtype=np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="'codes' is stored as I8; parameters are read from F64"):
        SafetensorsFolder(tmp_path).read("codes", (slice(0, 11),))
