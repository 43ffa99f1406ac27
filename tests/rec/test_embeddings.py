import dataclasses
import logging

import jax
import numpy as np
import polars as pl
import pytest

from core_jax.config import from_dict, to_dict
from core_jax.errors import ConfigError, DataError
from rec_jax.semantic_ids import collaborative as collaborative_module
from rec_jax.semantic_ids.collaborative import (
    CollaborativeConfig,
    collaborative_factors,
    fit_ridge,
    predict_factors,
)
from rec_jax.semantic_ids.embedder import embed_catalogue
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.scaling import fit_scaling, scale
from rec_jax.semantic_ids.text_features import TextConfig, fit_text_features

KEY = jax.random.key(0)
WIDE = 1000  # more dimensions than any matrix here has: nothing is cut off


def text_features(config, items, *, key):
    return fit_text_features(config, items, key=key)[0]


def standardise(part):
    return scale(fit_scaling(part), part)


def make_items(rows):
    titles, texts, categories = zip(*rows, strict=True)
    return pl.DataFrame(
        {
            "item_id": [f"i{index}" for index in range(len(rows))],
            "title": titles,
            "text": texts,
            "categories": categories,
        },
        schema_overrides={"title": pl.String, "text": pl.String, "categories": pl.List(pl.String)},
    )


ITEMS = make_items(
    [
        ("Red Fish", "fish and RED stones", ["sea", "colour"]),
        ("Blue fish", None, ["sea", "colour"]),
        ("stones", "red", []),
        ("Nothing in common", "", []),
        ("", "fish", ["sea", "sea"]),
    ]
)


def tf_idf(items, config):
    """The documented formula, one entry at a time."""
    num_items = items.height
    blocks = []
    texts = [f"{title or ''} {text or ''}".lower() for title, text in items["title", "text"].rows()]
    words = [text.split() for text in texts]
    categories = [sorted(set(names)) for names in items["categories"].to_list()]
    for lists, weight in ((words, 1.0), (categories, config.category_weight)):
        df = {term: sum(term in terms for terms in lists) for terms in lists for term in terms}
        kept = sorted(term for term, count in df.items() if count >= config.min_items)
        block = np.zeros((num_items, len(kept)))
        for item, terms in enumerate(lists):
            for column, term in enumerate(kept):
                if term in terms:
                    idf = np.log((1 + num_items) / (1 + df[term])) + 1
                    block[item, column] = (1 + np.log(terms.count(term))) * idf
        length = np.linalg.norm(block, axis=-1, keepdims=True)
        blocks.append(weight * block / np.maximum(length, 1e-30))
    return np.concatenate(blocks, axis=-1)


@pytest.mark.parametrize(
    "config",
    [
        TextConfig(dim=WIDE),
        TextConfig(dim=WIDE, category_weight=2.0, min_items=1),
        TextConfig(dim=WIDE, category_weight=0.0),
    ],
)
def test_text_features_keep_all_inner_products_of_tf_idf(config):
    """Without truncation (U S)(U S)^T = X X^T."""
    features = text_features(config, ITEMS, key=KEY)
    expected = tf_idf(ITEMS, config)
    np.testing.assert_allclose(features @ features.T, expected @ expected.T, atol=2e-3)
    np.testing.assert_allclose(features[3], 0.0, atol=2e-3 if config.min_items == 2 else 2.0)


def test_truncated_text_features_are_the_best_of_their_rank():
    """Eckart-Young: the squared error is the sum of the squared singular values left out."""
    exact = tf_idf(ITEMS, TextConfig())
    singular = np.linalg.svd(exact, compute_uv=False)
    features = text_features(TextConfig(dim=2), ITEMS, key=KEY).astype(float)
    assert features.shape == (5, 2)
    error = np.linalg.norm(exact @ exact.T - features @ features.T) ** 2
    np.testing.assert_allclose(error, np.sum(singular[2:] ** 4), rtol=1e-3)


def test_rarest_words_go_first():
    """Three items have fish, two have red and stones; with ties the alphabet decides."""
    config = TextConfig(dim=WIDE, category_weight=0.0, max_terms=2)
    features = text_features(config, ITEMS, key=KEY)
    gram = features @ features.T
    np.testing.assert_allclose(gram[1], [gram[0, 1], 1, 0, 0, 1], atol=2e-3)
    assert gram[2, 0] > 0.1


def test_text_needs_its_columns_and_a_common_term():
    with pytest.raises(DataError, match=r"lacks the column.* text, categories"):
        text_features(TextConfig(), ITEMS.drop("text", "categories"), key=KEY)
    with pytest.raises(DataError, match="no word or category occurs in 7 or more of the 5 items"):
        text_features(TextConfig(min_items=7), ITEMS, key=KEY)


def make_events(seed, num_users=23, num_items=17):
    """Users stand together; item numbers 14..16 never occur."""
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(0, num_users, 307)).astype(np.int32)
    return users, (rng.zipf(1.5, 307) % (num_items - 3)).astype(np.int32)


def similarity(users, items, num_items, config):
    """The documented formula, one pair at a time."""
    count = np.zeros((num_items, num_items))
    for first in range(len(items)):
        for second in range(first + 1, min(first + config.window + 1, len(items))):
            if users[first] == users[second] and items[first] != items[second]:
                count[items[first], items[second]] += 1
                count[items[second], items[first]] += 1
    events = np.maximum(np.bincount(items, minlength=num_items), 1)
    return count / (np.sqrt(np.outer(events, events)) + config.shrinkage)


@pytest.mark.parametrize("window", [1, 3, 50])
def test_factors_are_the_positive_part_of_the_similarity(window):
    config = CollaborativeConfig(dim=WIDE, window=window, shrinkage=5.0)
    users, items = make_events(window)
    factors = collaborative_factors(config, users, items, 17, key=KEY)
    values, vectors = np.linalg.eigh(similarity(users, items, 17, config))
    positive = (vectors * np.maximum(values, 0)) @ vectors.T
    np.testing.assert_allclose(factors @ factors.T, positive, atol=1e-4)
    assert not factors[14:].any()


def test_pairs_counted_in_parts_are_the_same(monkeypatch):
    config = CollaborativeConfig(dim=5, window=7)
    users, items = make_events(0)
    whole = collaborative_factors(config, users, items, 17, key=KEY)
    monkeypatch.setattr(collaborative_module, "PAIRS_AT_ONCE", 400)
    parts = collaborative_factors(config, users, items, 17, key=KEY)
    np.testing.assert_array_equal(parts, whole)


def test_bad_events_are_named():
    config, users, items = CollaborativeConfig(), *make_events(0)
    for bad_users, bad_items, message in [
        (users, np.where(np.arange(307) == 5, 17, items), r"1 of 307 .* 0\.\.16, the first 17"),
        (users[::-1] % 2, items, "do not stand together"),
        (np.arange(307), items, "no user has two different items among the 307"),
        (users[:0], items[:0], "no user has two different items among the 0"),
    ]:
        with pytest.raises(DataError, match=message):
            collaborative_factors(
                config, bad_users.astype(np.int32), bad_items.astype(np.int32), 17, key=KEY
            )


def test_unseen_items_are_placed_by_ridge_regression():
    rng = np.random.default_rng(0)
    features, factors = rng.normal(size=(41, 5)), rng.normal(size=(41, 3))
    is_seen = np.arange(41) < 31
    regression = fit_ridge(
        CollaborativeConfig(ridge=0.7),
        factors[is_seen].astype(np.float32),
        features[is_seen].astype(np.float32),
    )
    predicted = predict_factors(regression, features[~is_seen].astype(np.float32))
    known, target = features[is_seen], factors[is_seen]
    centred = known - known.mean(axis=0)
    weights = np.linalg.solve(
        centred.T @ centred + 0.7 * np.eye(5), centred.T @ (target - target.mean(axis=0))
    )
    expected = (features[~is_seen] - known.mean(axis=0)) @ weights + target.mean(axis=0)
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-5)


def test_a_large_ridge_places_unseen_items_at_the_mean():
    features, factors = np.eye(7, 3, dtype=np.float32), np.arange(14.0, dtype=np.float32)
    factors = factors.reshape(7, 2)
    regression = fit_ridge(CollaborativeConfig(ridge=1e9), factors, features)
    predicted = predict_factors(regression, features[:2] + 5.0)
    np.testing.assert_allclose(predicted, np.tile(factors.mean(axis=0), (2, 1)), rtol=1e-5)


def test_standardised_parts_have_mean_zero_and_unit_mean_square():
    part = 5.0 + 3.0 * np.random.default_rng(0).normal(size=(31, 7))
    scaled = standardise(part)
    np.testing.assert_allclose(scaled.mean(axis=0), 0.0, atol=1e-6)
    assert np.mean(np.sum(scaled**2, axis=-1)) == pytest.approx(1.0, rel=1e-5)
    ratio = scaled.std(axis=0) / part.std(axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    assert not standardise(np.ones((5, 3))).any()


@pytest.fixture(scope="module")
def catalogue():
    rng = np.random.default_rng(1)
    words = [" ".join(rng.choice(list("abcdefgh"), 3)) for _ in range(17)]
    users, items = make_events(0)
    return make_items([(text, "", ["x"]) for text in words]), users, items


def embed(kind, catalogue, **fields):
    config = EmbeddingConfig(
        kind=kind, text=TextConfig(dim=5), collaborative=CollaborativeConfig(dim=7), **fields
    )
    return embed_catalogue(config, *catalogue, key=KEY).embeddings


def squared_distances(embeddings):
    wide = embeddings.astype(float)
    return np.sum((wide[:, None] - wide[None]) ** 2, axis=-1)


def test_concat_weighs_squared_distances(catalogue):
    text = squared_distances(embed(EmbeddingKind.TEXT, catalogue))
    factors = squared_distances(embed(EmbeddingKind.COLLABORATIVE, catalogue))
    for weight in (0.0, 0.3, 1.0):
        both = embed(EmbeddingKind.CONCAT, catalogue, text_weight=weight)
        assert both.shape == (17, 12) and both.dtype == np.float32
        expected = weight * text + (1 - weight) * factors
        np.testing.assert_allclose(squared_distances(both), expected, rtol=1e-4, atol=1e-4)


def test_items_without_events_are_placed_and_counted(catalogue, caplog):
    with caplog.at_level(logging.WARNING):
        factors = embed(EmbeddingKind.COLLABORATIVE, catalogue)
    assert "3 of 17 items never occur together" in caplog.text
    assert np.isfinite(factors).all()
    assert np.linalg.norm(factors[14:], axis=-1).min() > 0.0
    assert len(np.unique(factors[14:].round(5), axis=0)) == 3


def test_text_embeddings_do_not_read_events(catalogue):
    items, users, positives = catalogue
    with_events = embed(EmbeddingKind.TEXT, catalogue)
    without = embed(EmbeddingKind.TEXT, (items, users[:0], positives[:0]))
    np.testing.assert_array_equal(with_events, without)


def test_same_key_same_embeddings(catalogue):
    runs = [embed(EmbeddingKind.CONCAT, catalogue) for _ in range(2)]
    np.testing.assert_array_equal(*runs)


def test_file_embeddings_stay_as_they_are(catalogue, tmp_path):
    matrix = np.random.default_rng(2).normal(size=(17, 3)).astype(np.float32)
    np.save(tmp_path / "own.npy", matrix)
    own = embed(EmbeddingKind.FILE, catalogue, path=str(tmp_path / "own.npy"))
    np.testing.assert_array_equal(own, matrix)


def test_configs_are_checked_and_survive_json():
    for build in (
        lambda: EmbeddingConfig(kind=EmbeddingKind.FILE),
        lambda: EmbeddingConfig(kind=EmbeddingKind.TEXT, path="own.npy"),
        lambda: EmbeddingConfig(kind=EmbeddingKind.CONCAT, text_weight=1.1),
        lambda: TextConfig(dim=0),
        lambda: TextConfig(category_weight=-1.0),
        lambda: CollaborativeConfig(window=0),
        lambda: CollaborativeConfig(shrinkage=-1.0),
        lambda: CollaborativeConfig(ridge=0.0),
    ):
        with pytest.raises(ConfigError, match=r"it must|needs a path"):
            build()
    config = EmbeddingConfig(kind=EmbeddingKind.CONCAT, text=TextConfig(dim=3))
    assert from_dict(EmbeddingConfig, to_dict(config)) == config
    assert dataclasses.replace(config, text_weight=0.1).text.dim == 3
