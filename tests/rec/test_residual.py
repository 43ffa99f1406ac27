import jax
import numpy as np
import pytest

from core_jax.config import from_dict, to_dict
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids.residual import (
    Assignment,
    CollisionPolicy,
    SemanticIdConfig,
    encode_nearest,
    fit_residual,
    propose_level_size,
)

SIZES = (7, 5, 3)  # for all tests: every further one costs a compilation
MIXED = SemanticIdConfig(level_sizes=SIZES, balance=(True, False, True), iterations=20)
PLAIN = SemanticIdConfig(level_sizes=SIZES, balance=(False,), iterations=20)


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(0).normal(size=(211, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def mixed(embeddings):
    return fit_residual(embeddings, MIXED, key=jax.random.key(0))


@pytest.fixture(scope="module")
def plain(embeddings):
    return fit_residual(embeddings, PLAIN, key=jax.random.key(0))


def residuals(codebook, embeddings, codes):
    """r^1 .. r^{L+1} in float64."""
    rests = [embeddings.astype(float)]
    for centroids, code in zip(codebook.centroids, codes.T, strict=True):
        rests.append(rests[-1] - centroids[code])
    return rests


def nearest_codes(codebook, embeddings):
    """The paper's formula, s^l = argmin_k |r^l - c^l_k|^2, in float64."""
    rest, codes = embeddings.astype(float), []
    for centroids in codebook.centroids:
        code = np.sum((rest[:, None] - centroids[None]) ** 2, axis=-1).argmin(axis=-1)
        rest = rest - centroids[code]
        codes.append(code)
    return np.stack(codes, axis=-1)


def test_codes_fit_their_levels(mixed):
    codebook, codes = mixed
    assert codes.dtype == np.int32 and codes.shape == (211, 3)
    assert codebook.level_sizes == SIZES
    assert (codes >= 0).all() and (codes < np.array(SIZES)).all()


def test_balance_holds_on_the_levels_that_ask_for_it(mixed):
    _, codes = mixed
    buckets = [np.bincount(code, minlength=size) for code, size in zip(codes.T, SIZES, strict=True)]
    assert [bucket.max() - bucket.min() <= 1 for bucket in buckets] == [True, False, True]


def test_centroids_are_the_means_of_what_the_levels_before_left(mixed, embeddings):
    codebook, codes = mixed
    for level, rest in enumerate(residuals(codebook, embeddings, codes)[:-1]):
        means = [rest[codes[:, level] == k].mean(axis=0) for k in range(SIZES[level])]
        np.testing.assert_allclose(codebook.centroids[level], means, rtol=1e-3, atol=1e-5)


def test_every_level_leaves_less(mixed, plain, embeddings):
    for codebook, codes in (mixed, plain):
        rests = residuals(codebook, embeddings, codes)
        losses = [np.mean(np.sum(rest**2, axis=-1)) for rest in rests]
        assert np.all(np.diff(losses) < 0)


def test_plain_loses_less_than_balanced_and_nearest_of_one_level_less_than_balanced(mixed, plain):
    """On the first level nearest centroids minimise the loss over all assignments."""
    embeddings = np.random.default_rng(0).normal(size=(211, 5)).astype(np.float32)
    loss = {}
    for name, (codebook, codes) in {"mixed": mixed, "plain": plain}.items():
        nearest = encode_nearest(codebook, embeddings)
        for kind, chosen in (("catalogue", codes), ("nearest", nearest)):
            rest = residuals(codebook, embeddings, chosen)[1]
            loss[name, kind] = np.mean(np.sum(rest**2, axis=-1))
    assert loss["mixed", "nearest"] < loss["mixed", "catalogue"]
    assert loss["plain", "nearest"] == loss["plain", "catalogue"] < loss["mixed", "catalogue"]


def test_encode_is_the_papers_formula(mixed, plain, embeddings):
    for codebook, _ in (mixed, plain):
        np.testing.assert_array_equal(
            encode_nearest(codebook, embeddings), nearest_codes(codebook, embeddings)
        )


def test_plain_codes_are_the_nearest_codes(plain, embeddings):
    codebook, codes = plain
    np.testing.assert_array_equal(encode_nearest(codebook, embeddings), codes)


def test_nearest_assignment_of_a_balanced_codebook(mixed, embeddings):
    """First level as before; what it hands on, and every code, is now that of `encode_nearest`."""
    config = SemanticIdConfig(
        level_sizes=SIZES, balance=MIXED.balance, iterations=20, assignment=Assignment.NEAREST
    )
    codebook, codes = fit_residual(embeddings, config, key=jax.random.key(0))
    np.testing.assert_array_equal(codebook.centroids[0], mixed[0].centroids[0])
    np.testing.assert_array_equal(encode_nearest(codebook, embeddings), codes)
    assert not np.array_equal(codes, mixed[1])


def test_a_part_of_the_items_is_encoded_like_all(mixed, embeddings):
    codebook, _ = mixed
    whole = encode_nearest(codebook, embeddings)
    np.testing.assert_array_equal(encode_nearest(codebook, embeddings[13:84]), whole[13:84])


def test_same_key_same_codes_other_key_other_codes(mixed, embeddings):
    again = fit_residual(embeddings, MIXED, key=jax.random.key(0))
    np.testing.assert_array_equal(again[1], mixed[1])
    assert again[0].fingerprint == mixed[0].fingerprint
    other = fit_residual(embeddings, MIXED, key=jax.random.key(1))
    assert other[0].fingerprint != mixed[0].fingerprint


@pytest.mark.parametrize("num_levels", [1, 2, 3, 5])
@pytest.mark.parametrize("num_distinct", [1, 2, 7, 8, 9, 1000, 1682, 10**6 + 3])
def test_proposed_size_is_the_smallest_that_covers(num_distinct, num_levels):
    size = propose_level_size(num_distinct, num_levels)
    assert size**num_levels >= num_distinct
    assert size == 2 or (size - 1) ** num_levels < num_distinct


def test_too_many_codes_propose_a_size(embeddings):
    """19 items, 13 of them distinct: 4 ** 2 = 16 is the first square of at least 13."""
    few = np.concatenate([embeddings[:13], embeddings[:6]])
    config = SemanticIdConfig(level_sizes=(17, 3))
    with pytest.raises(ConfigError, match=r"level_sizes\[0\] is 17.*only 13 distinct.*\b4 codes"):
        fit_residual(few, config, key=jax.random.key(0))


def test_too_many_codes_for_what_is_left_are_named_by_level(embeddings):
    """Of 211 items 2 distinct ones: a level of two codes leaves each its rounding error."""
    two = embeddings[np.arange(211) % 2]
    config = SemanticIdConfig(level_sizes=(2, 3), balance=(False,))
    with pytest.raises(
        ConfigError, match=r"level_sizes\[1\] is 3.*[12] distinct residuals after 1"
    ):
        fit_residual(two, config, key=jax.random.key(0))


def test_bad_embeddings_are_named(mixed, embeddings):
    bad = embeddings.copy()
    bad[[17, 31], 2] = np.nan
    with pytest.raises(DataError, match=r"2 of 211 item embeddings.*row 17"):
        fit_residual(bad, MIXED, key=jax.random.key(0))
    with pytest.raises(DataError, match=r"2 of 211 item embeddings.*row 17"):
        encode_nearest(mixed[0], bad)
    with pytest.raises(DataError, match="4 dimensions, the codebook 5"):
        encode_nearest(mixed[0], embeddings[:, :4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"level_sizes": ()}, "level_sizes"),
        ({"level_sizes": (5, 1)}, "level_sizes"),
        ({"level_sizes": (5, 5, 5), "balance": (True, False)}, "2 entries for 3 levels"),
        ({"level_sizes": (5,), "iterations": 0}, "iterations is 0"),
    ],
)
def test_config_is_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        SemanticIdConfig(**fields)


def test_config_survives_json():
    config = SemanticIdConfig(
        level_sizes=(5, 7),
        balance=(False,),
        collision=CollisionPolicy.SHARE,
        assignment=Assignment.NEAREST,
    )
    assert config.balance_per_level == (False, False)
    assert from_dict(SemanticIdConfig, to_dict(config)) == config
