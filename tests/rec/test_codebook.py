import numpy as np
import pytest

from core_jax.errors import CheckpointError, ConfigError
from rec_jax.semantic_ids.codebook import (
    Codebook,
    check_fingerprint,
    load_codebook,
    save_codebook,
)


def make_codebook(**changes):
    rng = np.random.default_rng(0)
    centroids = tuple(rng.normal(size=(size, 3)).astype(np.float32) for size in (7, 5))
    centroids[0][0] = [-0.0, np.float32(1e-42), np.nextafter(np.float32(1), np.float32(2))]
    fields = {"centroids": centroids, "settings": {"level_sizes": [7, 5], "iterations": 11}}
    return Codebook(**(fields | changes))


def test_reload_is_bit_exact(tmp_path):
    """Signed zeros, denormals and last bits included."""
    codebook = make_codebook()
    save_codebook(codebook, tmp_path / "deep" / "codebook.npz")
    loaded = load_codebook(tmp_path / "deep" / "codebook.npz")
    for old, new in zip(codebook.centroids, loaded.centroids, strict=True):
        assert old.tobytes() == new.tobytes() and old.dtype == new.dtype
    assert loaded.level_sizes == (7, 5)
    assert loaded.settings == codebook.settings
    assert loaded.fingerprint == codebook.fingerprint
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["codebook.npz"]


def test_fingerprint_tells_arrays_order_shape_and_settings_apart():
    codebook = make_codebook()
    flipped = [centroids.copy() for centroids in codebook.centroids]
    flipped[1].view(np.uint32)[2, 1] ^= 1
    others = [
        make_codebook(centroids=tuple(flipped)),
        make_codebook(centroids=codebook.centroids[::-1]),
        make_codebook(centroids=tuple(array.astype(np.float64) for array in codebook.centroids)),
        make_codebook(centroids=tuple(array.reshape(3, -1) for array in codebook.centroids)),
        make_codebook(settings={"level_sizes": [7, 5], "iterations": 12}),
    ]
    fingerprints = {book.fingerprint for book in [codebook, *others]}
    assert len(fingerprints) == 1 + len(others)
    assert make_codebook().fingerprint == codebook.fingerprint
    assert len(codebook.fingerprint) == 16


def test_tampered_file_is_refused(tmp_path):
    codebook = make_codebook()
    save_codebook(codebook, tmp_path / "codebook.npz")
    with np.load(tmp_path / "codebook.npz") as file:
        content = {name: file[name] for name in file.files}
    content["centroids_1"].view(np.uint32)[0, 0] ^= 1
    np.savez(tmp_path / "codebook.npz", **content)
    with pytest.raises(CheckpointError, match=r"content of codebook.*has fingerprint"):
        load_codebook(tmp_path / "codebook.npz")


def test_unreadable_files_are_named(tmp_path):
    path = tmp_path / "codebook.npz"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_codebook(path)
    save_codebook(make_codebook(), path)
    whole = path.read_bytes()
    for damage in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(damage)
        with pytest.raises(CheckpointError, match="damaged"):
            load_codebook(path)
    np.savez(path, something=np.zeros(3))
    with pytest.raises(CheckpointError, match="damaged or of another kind"):
        load_codebook(path)
    with pytest.raises(ConfigError, match=r"must end in \.npz"):
        save_codebook(make_codebook(), tmp_path / "codebook.bin")


def test_other_fingerprint_is_refused():
    check_fingerprint("abc", "abc", "the catalogue")
    with pytest.raises(CheckpointError, match="the catalogue has fingerprint def, but abc was"):
        check_fingerprint("abc", "def", "the catalogue")
