"""New items are embedded as the catalogue's items were."""

import jax
import numpy as np
import polars as pl
import pytest

from core_jax.errors import CheckpointError, DataError
from rec_jax.semantic_ids.codebook import load_arrays, save_arrays
from rec_jax.semantic_ids.collaborative import CollaborativeConfig
from rec_jax.semantic_ids.embedder import (
    embed_catalogue,
    embed_items,
    load_embedder,
    save_embedder,
)
from rec_jax.semantic_ids.embeddings import EmbeddingConfig, EmbeddingKind
from rec_jax.semantic_ids.text_features import TextConfig, fit_text_features, project_text

KEY = jax.random.key(0)
NUM_ITEMS, NUM_SEEN, TEXT_DIMS, FACTOR_DIMS = 97, 83, 11, 7


def make_items(num_items, seed, num_words=41):
    """Titles of words with Zipf frequencies; the spectrum of such a catalogue decays slowly."""
    rng = np.random.default_rng(seed)
    words = [f"w{rank}" for rank in range(num_words)]
    share = 1.0 / np.arange(1, num_words + 1)
    titles = [" ".join(rng.choice(words, 5, p=share / share.sum())) for _ in range(num_items)]
    categories = [[f"c{n}" for n in rng.integers(0, 5, 2)] for _ in range(num_items)]
    return pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(num_items)],
            "title": titles,
            "text": [None] * num_items,
            "categories": categories,
        },
        schema_overrides={"text": pl.String},
    )


def one_item(title, categories=()):
    return pl.DataFrame(
        {"item_id": ["new"], "title": [title], "text": [None], "categories": [list(categories)]},
        schema_overrides={"text": pl.String, "categories": pl.List(pl.String)},
    )


ITEMS = make_items(NUM_ITEMS, 0)


def make_embedded(kind, **fields):
    """Items NUM_SEEN.. never occur: their factors are predicted."""
    rng = np.random.default_rng(1)
    users = np.sort(rng.integers(0, 31, 997)).astype(np.int32)
    positives = np.concatenate([np.arange(NUM_SEEN), rng.integers(0, NUM_SEEN, 997 - NUM_SEEN)])
    config = EmbeddingConfig(
        kind=kind,
        text=TextConfig(dim=TEXT_DIMS),
        collaborative=CollaborativeConfig(dim=FACTOR_DIMS),
        **fields,
    )
    return embed_catalogue(config, ITEMS, users, positives.astype(np.int32), key=KEY)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "config",
    [
        TextConfig(dim=13),
        TextConfig(dim=5, category_weight=0.0, max_terms=29),
        TextConfig(dim=1000, category_weight=2.0, min_items=3),
    ],
)
def test_folding_in_the_catalogue_gives_its_features(config, seed):
    """X W = U S to float32, also for the last dimensions, where the iteration is far from done.

    Rounding eps of products with X X^T moves an eigenvector of eigenvalue s^2 by up to
    eps s_1^2 / s^2, so its column of U S is known to eps s_1^2 / s; s is the column's length.
    """
    items = make_items(211, seed)
    features, basis = fit_text_features(config, items, key=KEY)
    projected, num_known = project_text(basis, items)
    lengths = np.linalg.norm(features, axis=0)
    known_to = np.finfo(np.float32).eps * lengths[0] ** 2 / lengths
    assert (np.abs(projected - features) <= 2 * known_to).all()
    terms = [set(title.split()) & set(basis.terms[0]) for title in items["title"]]
    if config.category_weight:
        terms = [
            words | set(names) for words, names in zip(terms, items["categories"], strict=True)
        ]
    assert num_known.tolist() == [len(words) for words in terms]


def test_unknown_words_count_for_nothing_and_order_neither():
    embedder = make_embedded(EmbeddingKind.TEXT).embedder
    (known, num_known), (more, num_more) = (
        embed_items(embedder, one_item(title, ["c1"])) for title in ("w0 W3 w3", "zzz w3, w3 w0!")
    )
    np.testing.assert_array_equal(known, more)
    assert num_known.tolist() == num_more.tolist() == [3]


def test_features_below_the_noise_are_zero():
    """Two groups of equal items have rank 2; what the iteration finds beyond is rounding."""
    items = pl.concat([one_item("red fish"), one_item("blue stone")] * 3)
    features, basis = fit_text_features(TextConfig(dim=1000), items, key=KEY)
    assert (np.linalg.norm(features, axis=0) > 0).sum() == 2
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(project_text(basis, items)[0], features, atol=1e-6)


def test_an_item_without_terms_has_no_features_wherever_it_stands():
    """Rounding of the factorisation must not become a direction of length 1."""
    items = pl.concat([one_item("alone"), ITEMS.drop("item_id").insert_column(0, ITEMS["item_id"])])
    features, _ = fit_text_features(TextConfig(dim=11), items, key=KEY)
    assert not features[0].any() and features[1:].any(axis=-1).all()


@pytest.mark.parametrize(
    "kind", [EmbeddingKind.TEXT, EmbeddingKind.COLLABORATIVE, EmbeddingKind.CONCAT]
)
def test_catalogue_items_get_their_embeddings_again(kind):
    """All of a text embedding, and the factors of items that have them from their text."""
    made = make_embedded(kind)
    again, _ = embed_items(made.embedder, ITEMS)
    assert again.dtype == np.float32 and again.shape == made.embeddings.shape
    first_predicted = 0 if kind is EmbeddingKind.TEXT else NUM_SEEN
    np.testing.assert_allclose(
        again[first_predicted:], made.embeddings[first_predicted:], atol=1e-5
    )
    if kind is EmbeddingKind.CONCAT:
        np.testing.assert_allclose(again[:, :TEXT_DIMS], made.embeddings[:, :TEXT_DIMS], atol=1e-5)
        assert np.abs(again[:NUM_SEEN] - made.embeddings[:NUM_SEEN]).max() > 0.1


def test_a_batch_of_new_items_is_embedded_row_by_row():
    """No statistic of the new items takes part."""
    embedder = make_embedded(EmbeddingKind.CONCAT).embedder
    items = make_items(17, 5)
    together, _ = embed_items(embedder, items)
    alone = [embed_items(embedder, items[row])[0] for row in range(items.height)]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_an_item_without_known_terms_is_where_the_text_is_empty():
    """Features of zero: the text part is -mean / length."""
    embedder = make_embedded(EmbeddingKind.TEXT).embedder
    embedded, num_known = embed_items(embedder, one_item("zzz", ["none"]))
    scaling = embedder.scalings[0]
    np.testing.assert_allclose(embedded[0], -scaling.mean / scaling.length, rtol=1e-5)
    assert num_known.tolist() == [0]


def test_predicted_items_are_counted():
    assert make_embedded(EmbeddingKind.CONCAT).num_predicted == NUM_ITEMS - NUM_SEEN
    assert make_embedded(EmbeddingKind.TEXT).num_predicted is None


@pytest.fixture
def own_file(tmp_path):
    rows = np.random.default_rng(3).normal(size=(NUM_ITEMS, 5)).astype(np.float32)
    np.save(tmp_path / "own.npy", rows)
    return str(tmp_path / "own.npy")


def test_embeddings_from_a_file_need_a_file_of_the_same_width(own_file, tmp_path):
    made = make_embedded(EmbeddingKind.FILE, path=own_file)
    assert made.num_predicted is None
    items = make_items(3, 7)
    with pytest.raises(DataError, match=r"own\.npy'; embeddings of the 3 new .* same 5 dimensions"):
        embed_items(made.embedder, items)
    for width in (4, 5):
        rows = np.random.default_rng(width).normal(size=(3, width)).astype(np.float32)
        np.savez(tmp_path / f"{width}.npz", item_ids=["i2", "i0", "i1"], embeddings=rows)
    embedded, num_known = embed_items(made.embedder, items, str(tmp_path / "5.npz"))
    np.testing.assert_array_equal(embedded, rows[[1, 2, 0]])
    assert num_known is None
    with pytest.raises(DataError, match=r"4 dimensions, the catalogue's have 5"):
        embed_items(made.embedder, items, str(tmp_path / "4.npz"))


def test_a_file_is_refused_where_the_words_are_read(own_file):
    embedder = make_embedded(EmbeddingKind.CONCAT).embedder
    with pytest.raises(DataError, match=r"own\.npy', but .* kind 'concat'.*leave the file out"):
        embed_items(embedder, ITEMS, own_file)


@pytest.mark.parametrize("kind", list(EmbeddingKind))
def test_a_saved_embedder_embeds_the_same(kind, own_file, tmp_path):
    fields = {"path": own_file} if kind is EmbeddingKind.FILE else {}
    embedder = make_embedded(kind, **fields).embedder
    save_embedder(embedder, tmp_path / "embedder.npz", codebook_fingerprint="0a")
    loaded = load_embedder(tmp_path / "embedder.npz", codebook_fingerprint="0a")
    assert loaded.config == embedder.config and loaded.num_dims == embedder.num_dims
    before, after = (
        embed_items(one, ITEMS, fields.get("path", ""))[0] for one in (embedder, loaded)
    )
    np.testing.assert_array_equal(before, after)


def test_absent_changed_and_foreign_embedders_are_refused(tmp_path):
    path = tmp_path / "embedder.npz"
    with pytest.raises(CheckpointError, match=r"before embedders were kept.*run rec\.tokenize"):
        load_embedder(path, codebook_fingerprint="0a")
    save_embedder(make_embedded(EmbeddingKind.CONCAT).embedder, path, codebook_fingerprint="0a")
    with pytest.raises(CheckpointError, match=r"codebook beside .* fingerprint 0b, but 0a"):
        load_embedder(path, codebook_fingerprint="0b")
    arrays, facts, fingerprint = load_arrays(path)
    for change in (
        {"arrays": arrays | {"idf": np.nextafter(arrays["idf"], 9.0)}, "facts": facts},
        {"arrays": arrays, "facts": facts | {"words": facts["words"][::-1]}},
    ):
        save_arrays(path, **change, fingerprint=fingerprint)
        with pytest.raises(CheckpointError, match="the content of embedder"):
            load_embedder(path, codebook_fingerprint="0a")


def test_new_items_need_the_columns_that_were_read():
    embedder = make_embedded(EmbeddingKind.TEXT).embedder
    with pytest.raises(DataError, match=r"lacks the column.* categories"):
        embed_items(embedder, ITEMS.drop("categories"))
