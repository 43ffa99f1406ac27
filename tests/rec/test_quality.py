import json

import jax
import numpy as np
import pytest

from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.quality import (
    assignment_quality,
    level_quality,
    quality_report,
    quality_table,
)
from rec_jax.semantic_ids.residual import SemanticIdConfig, encode_nearest, fit_residual


def grid_codebook():
    """Level 1 moves along x by 10, level 2 along y by 1: 3 x 5 exact points."""
    first = np.stack([10.0 * np.arange(3), np.zeros(3)], axis=-1).astype(np.float32)
    second = np.stack([np.zeros(5), np.arange(5)], axis=-1).astype(np.float32)
    return Codebook(centroids=(first, second), settings={})


@pytest.mark.parametrize("size", [2, 7, 41])
def test_even_use_has_full_entropy(size):
    quality = level_quality(np.repeat(np.arange(size), 3), size)
    assert quality.entropy_bits == pytest.approx(np.log2(size))
    assert quality.perplexity == pytest.approx(size)
    assert (quality.utilisation, quality.smallest_bucket, quality.largest_bucket) == (1.0, 3, 3)


def test_entropy_of_a_skewed_level():
    """Shares 1/2, 1/4, 1/4: H = 1/2 * 1 + 2 * 1/4 * 2 = 3/2 bits."""
    quality = level_quality(np.array([3, 3, 0, 1]), 5)
    assert quality.entropy_bits == pytest.approx(1.5)
    assert quality.perplexity == pytest.approx(2**1.5)
    assert (quality.utilisation, quality.smallest_bucket, quality.largest_bucket) == (0.6, 0, 2)


def test_exact_codes_lose_nothing():
    codes = np.stack(np.meshgrid(np.arange(3), np.arange(5)), axis=-1).reshape(-1, 2)
    embeddings = (codes * np.array([10, 1])).astype(np.float32)
    quality = assignment_quality(grid_codebook(), embeddings, codes)
    assert quality.reconstruction_loss == quality.unexplained_variance == 0.0
    assert (quality.num_ids, quality.own_id_share, quality.colliding_items) == (15, 1.0, 0)
    assert quality.largest_collision == 1


def test_loss_and_collisions_of_wrong_codes():
    """All four points get ID (0, 0), whose centroids sum to 0; |e|^2 = 1, 4, 9, 16."""
    embeddings = np.array([[0, 1], [0, 2], [0, 3], [0, 4]], np.float32)
    quality = assignment_quality(grid_codebook(), embeddings, np.zeros((4, 2), np.int32))
    assert quality.reconstruction_loss == pytest.approx((1 + 4 + 9 + 16) / 4)
    assert quality.unexplained_variance == pytest.approx(7.5 / 1.25)
    assert (quality.num_ids, quality.own_id_share, quality.colliding_items) == (1, 0.0, 4)
    assert quality.largest_collision == 4


def test_own_ids_and_collisions_add_up():
    codes = np.array([[0, 0], [0, 0], [1, 2], [2, 4], [0, 0], [2, 3], [2, 3]])
    quality = assignment_quality(grid_codebook(), np.ones((7, 2), np.float32), codes)
    assert (quality.num_ids, quality.colliding_items, quality.largest_collision) == (4, 5, 3)
    assert quality.own_id_share == pytest.approx(2 / 7)
    assert quality.unexplained_variance == 0.0


def test_report_measures_both_assignments():
    """Balanced codes are even and lose more; nearest codes are uneven and lose less."""
    embeddings = np.random.default_rng(0).normal(size=(210, 3)).astype(np.float32)
    config = SemanticIdConfig(level_sizes=(7, 5), iterations=20)
    codebook, codes = fit_residual(embeddings, config, key=jax.random.key(0))
    report = quality_report(codebook, embeddings, codes)
    nearest = encode_nearest(codebook, embeddings)
    assert report.nearest == assignment_quality(codebook, embeddings, nearest)
    assert report.catalogue == assignment_quality(codebook, embeddings, codes)
    assert report.agreement == pytest.approx((nearest == codes).all(axis=-1).mean())
    assert 0.0 < report.agreement < 1.0
    for level, size in zip(report.catalogue.levels, (7, 5), strict=True):
        assert level.entropy_bits == pytest.approx(np.log2(size))
        assert level.smallest_bucket == level.largest_bucket == 210 / size
    assert report.nearest.reconstruction_loss < report.catalogue.reconstruction_loss
    assert report.nearest.levels[0].entropy_bits < np.log2(7)


def test_report_is_json_and_a_table():
    embeddings = np.ones((4, 2), np.float32)
    report = quality_report(grid_codebook(), embeddings, np.zeros((4, 2), np.int32))
    told = json.loads(json.dumps(report.to_dict()))
    assert told["num_items"] == 4
    assert told["catalogue"]["levels"][1]["size"] == 5
    assert told["nearest"]["reconstruction_loss"] == report.nearest.reconstruction_loss
    lines = str(report).splitlines()
    assert lines[0].split() == ["catalogue", "nearest"]
    assert len(lines) == 1 + 6 + 2 * 6 + 1
    assert "collaborative" not in lines[-1] and told["predicted_share"] is None
    some = quality_report(grid_codebook(), embeddings, np.zeros((4, 2), np.int32), num_predicted=1)
    assert some.to_dict()["predicted_share"] == 0.25
    assert str(some).endswith("collaborative factors of 25.0% are from their text")
    own = next(line for line in lines if line.startswith("own id share"))
    assert own.removeprefix("own id share").split() == ["0.0%", "0.0%"]
    assert quality_table({"one": report.catalogue}).splitlines()[0].split() == ["one"]
