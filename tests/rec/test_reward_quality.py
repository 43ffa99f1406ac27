"""AUC, group AUC, log loss and calibration against brute force; the baseline; fusion."""

import math

import numpy as np
import pytest

from core_jax.errors import CheckpointError, ConfigError, DataError
from rec_jax.evaluation_tables import to_text
from rec_jax.reward import judgement
from rec_jax.reward.baseline import fit_logistic
from rec_jax.reward.config import FusionConfig, TargetConfig, TargetKind
from rec_jax.reward.fusion import (
    describe,
    fuse,
    load_fusion,
    make_fusion,
    reweighted,
    save_fusion,
)
from rec_jax.reward.item_vectors import item_vectors
from rec_jax.reward.labels import Labels
from rec_jax.reward.quality import measure, quality_table, to_records, with_p_score


def brute_auc(is_positive, scores):
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[is_positive] for b in scores[~is_positive]]
    return np.mean(pairs) if pairs else math.nan


@pytest.mark.parametrize("distinct", [3, 1000])
def test_auc_equals_counting_pairs(distinct):
    generator = np.random.default_rng(0)
    is_positive = generator.random(101) < 0.3
    scores = generator.integers(0, distinct, 101) / 7
    assert judgement.auc(is_positive, scores) == pytest.approx(brute_auc(is_positive, scores))
    assert judgement.auc(is_positive, -scores) == pytest.approx(
        1 - judgement.auc(is_positive, scores)
    )
    assert math.isnan(judgement.auc(np.ones(3, bool), scores[:3]))


def test_group_auc_equals_weighting_groups_with_both_classes():
    generator = np.random.default_rng(1)
    is_positive, groups = generator.random(127) < 0.4, generator.integers(0, 31, 127)
    scores = generator.integers(0, 11, 127).astype(float)
    total = weight = count = 0
    for group in set(groups.tolist()):
        own = groups == group
        value = brute_auc(is_positive[own], scores[own])
        if not math.isnan(value):
            total, weight, count = total + value * own.sum(), weight + own.sum(), count + 1
    found, number = judgement.group_auc(is_positive, scores, groups)
    assert found == pytest.approx(total / weight)
    assert 0 < number == count < len(set(groups.tolist()))
    nothing = judgement.group_auc(np.ones(3, bool), scores[:3], groups[:3])
    assert math.isnan(nothing[0])
    assert nothing[1] == 0


def test_log_loss_is_least_at_the_label():
    labels = np.array([0.2, 0.7, 1.0])
    entropy = -np.mean([0.2 * math.log(0.2) + 0.8 * math.log(0.8)] * 1)
    assert judgement.log_loss(labels[:1], labels[:1]) == pytest.approx(entropy)
    for shift in (-0.1, 0.1):
        moved = np.clip(labels + shift, 0.0, 1.0)
        assert judgement.log_loss(labels, moved) > judgement.log_loss(labels, labels)


def test_perfectly_calibrated_predictions_have_no_error():
    """In a bin of probability p the share of positives is p: here 2 p of every 2 rows."""
    predictions = np.repeat([0.0, 0.25, 0.5, 0.75, 1.0], 8)
    labels = np.concatenate([np.arange(8) < 8 * p for p in (0.0, 0.25, 0.5, 0.75, 1.0)])
    result = judgement.calibration(labels.astype(float), predictions, 5)
    assert result.error == 0
    assert result.counts == (8,) * 5
    assert result.predicted == result.observed == (0.0, 0.25, 0.5, 0.75, 1.0)
    shifted = judgement.calibration(labels.astype(float), predictions * 0.8, 5)
    assert shifted.error == pytest.approx(0.2 * 0.5)


def test_bins_have_equal_mass():
    generator = np.random.default_rng(2)
    counts = judgement.calibration(generator.random(103), generator.random(103), 10).counts
    assert sum(counts) == 103
    assert max(counts) - min(counts) == 1


def test_logistic_regression_is_at_its_optimum():
    """The gradient is zero: sum (p - y) x + penalty w = 0 and sum (p - y) = 0."""
    generator = np.random.default_rng(3)
    features = generator.normal(size=(211, 5)).astype(np.float32)
    labels = generator.random(211).astype(np.float32)
    weights, bias = (
        np.asarray(part, np.float64) for part in fit_logistic(features, labels, penalty=3.0)
    )
    gap = 1 / (1 + np.exp(-(features @ weights + bias))) - labels
    np.testing.assert_allclose(features.T @ gap + 3.0 * weights, 0, atol=2e-2)
    assert abs(gap.sum()) < 2e-2


NAMES = ("a", "b", "p_score")
PROBABILITIES = np.random.default_rng(4).random((97, 3)).astype(np.float32)


def test_equal_weights_after_standardisation():
    fusion = make_fusion(FusionConfig(), NAMES, PROBABILITIES)
    assert fusion.weights == (0.5, 0.5, 0.0)
    wide = PROBABILITIES.astype(np.float64)
    standard = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    fused = fuse(fusion, PROBABILITIES)
    np.testing.assert_allclose(fused, standard[:, :2].mean(axis=1), atol=1e-9)
    assert fused.mean() == pytest.approx(0, abs=1e-9)
    folded = fuse(fusion, PROBABILITIES.reshape(97, 1, 3))
    np.testing.assert_array_equal(folded[:, 0], fused)


def test_weights_by_name(tmp_path):
    fusion = make_fusion(FusionConfig(weights=("b=2.0", "p_score=-1")), NAMES, PROBABILITIES)
    assert fusion.weights == (0.0, 2.0, -1.0)
    assert reweighted(fusion, FusionConfig(weights=("a=1",))).weights == (1.0, 0.0, 0.0)
    save_fusion(fusion, tmp_path / "fusion.json")
    assert load_fusion(tmp_path / "fusion.json") == fusion
    text = describe(fusion)
    for name, mean in zip(NAMES, fusion.means, strict=True):
        assert name in text
        assert f"{mean:.4f}" in text
    with pytest.raises(CheckpointError, match="does not hold a fusion"):
        load_fusion(tmp_path / "absent.json")


def test_weights_that_cannot_work():
    with pytest.raises(ConfigError, match=r"'c', no head .* has a, b, p_score"):
        make_fusion(FusionConfig(weights=("c=1",)), NAMES, PROBABILITIES)
    with pytest.raises(ConfigError, match="head=weight"):
        FusionConfig(weights=("a",))
    with pytest.raises(ConfigError, match="twice"):
        FusionConfig(weights=("a=1", "a=2"))
    with pytest.raises(ConfigError, match="all 0"):
        FusionConfig(weights=("a=0",))
    with pytest.raises(DataError, match=r"head 'a' gives all 97 .* 0.5"):
        make_fusion(FusionConfig(), NAMES, np.full((97, 3), 0.5, np.float32))


def test_qualities_per_head_predictor_and_group():
    generator = np.random.default_rng(5)
    values, mask = generator.random((89, 2)).astype(np.float32), generator.random((89, 2)) < 0.8
    targets = [
        TargetConfig(name=name, kind=TargetKind.ANY, column="x", p_weight=weight)
        for name, weight in (("a", 1.0), ("b", 3.0))
    ]
    labels = with_p_score(targets, Labels(values=values, mask=mask))
    both = mask.all(axis=1)
    np.testing.assert_allclose(
        labels.values[both, 2], (values[both, 0] + 3 * values[both, 1]) / 4, rtol=1e-5
    )
    np.testing.assert_array_equal(labels.mask[:, 2], mask.any(axis=1))
    predictors = {"model": generator.random((89, 3)), "baseline": generator.random((89, 2))}
    groups = {"some": np.arange(89) % 2 == 0, "none": np.zeros(89, bool)}
    trains = np.arange(89) % 2 == 1
    found = measure(
        ("a", "b", "p_score"),
        predictors,
        labels,
        np.arange(89) % 7,
        groups,
        trains,
        num_bins=10,
    )
    assert [(one.head, one.predictor) for one in found] == [
        *(("a", "model"), ("a", "baseline"), ("b", "model"), ("b", "baseline")),
        ("p_score", "model"),
    ]
    kept = groups["some"] & mask[:, 0]
    first, label = found[0], values[kept, 0].astype(np.float64)
    assert first.num_sessions == kept.sum()
    assert first.auc == judgement.auc(label > np.median(label), predictors["model"][kept, 0])
    mean = values[trains & mask[:, 0], 0].mean(dtype=np.float64)
    assert first.constant_log_loss == pytest.approx(
        -np.mean(label * math.log(mean) + (1 - label) * math.log(1 - mean))
    )
    assert f"{first.auc:.4f}" in to_text(quality_table(found))
    assert to_records(found)[0]["calibration"]["counts"]


def test_item_vectors_hold_durations_and_the_embeddings_geometry():
    """With as many dimensions as the embeddings have, distances stay, up to one factor."""
    generator = np.random.default_rng(6)
    embeddings = generator.normal(size=(31, 3)).astype(np.float32)
    durations = np.exp(generator.normal(size=31))
    durations[4] = np.nan
    vectors = item_vectors(embeddings, durations, 7)
    assert vectors.shape == (31, 7)
    assert vectors[4, 0] == pytest.approx(0, abs=1e-6)
    known = np.arange(31) != 4
    assert np.corrcoef(vectors[known, 0], np.log1p(durations[known]))[0, 1] == pytest.approx(1)
    assert (vectors[:, 4:] == 0).all()
    distance = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=2)
    rebuilt = np.linalg.norm(vectors[:, None, 1:] - vectors[None, :, 1:], axis=2)
    off = ~np.eye(31, dtype=bool)
    ratio = rebuilt[off] / distance[off]
    assert ratio.std() / ratio.mean() < 1e-5
    assert np.mean(vectors[:, 1:] ** 2) * 6 / 7 == pytest.approx(1, rel=1e-5)
    assert item_vectors(embeddings, None, 2).shape == (31, 2)
