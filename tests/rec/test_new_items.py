"""Codes of new items, and the items of the catalogue beside them."""

import numpy as np
import pytest

from core_jax.errors import DataError
from rec_jax.semantic_ids.codebook import Codebook
from rec_jax.semantic_ids.new_items import encode_new_items
from rec_jax.semantic_ids.residual import encode_nearest


def grid_codebook():
    """Level 1 moves along x by 10, level 2 along y by 1: 3 x 5 exact points."""
    first = np.stack([10.0 * np.arange(3), np.zeros(3)], axis=-1).astype(np.float32)
    second = np.stack([np.zeros(5), np.arange(5)], axis=-1).astype(np.float32)
    return Codebook(centroids=(first, second), settings={})


CODES = np.array([[0, 0], [0, 3], [1, 2], [1, 2], [2, 4], [1, 4], [1, 0]], np.int32)
"""Items 2 and 3 share an ID."""


def encode(embeddings, num_nearest=3):
    return encode_new_items(
        grid_codebook(),
        np.asarray(embeddings, np.float32),
        catalogue_embeddings=(CODES * np.array([10, 1])).astype(np.float32),
        catalogue_codes=CODES,
        num_nearest=num_nearest,
    )


def test_codes_and_errors_on_a_grid():
    """(10.3, 2.4) is nearest to (10, 2): the error is 0.3^2 + 0.4^2 = 1/4."""
    new_items = encode([[10.3, 2.4], [20.0, 1.0]])
    assert new_items.codes.tolist() == [[1, 2], [2, 1]]
    np.testing.assert_allclose(new_items.errors, [0.25, 0.0], atol=1e-5)
    assert new_items.num_sharing.tolist() == [2, 0]


def test_near_items_share_most_leading_codes_then_are_nearest():
    """(10, 2.4): items 2 and 3 share both codes; 5 and 6 the first, at distances 1.6 and 2.4.

    (9, 3.4) has the code 1 of (10, .) and 3: the equal second code of item 1 does not count.
    """
    assert encode([[10.0, 2.4]], 5).nearest.tolist()[0][:4] == [2, 3, 5, 6]
    assert encode([[10.0, 2.4]], 5).shared_levels.tolist() == [[2, 2, 1, 1, 0]]
    assert encode([[9.0, 3.4]], 1).nearest.tolist() == [[5]]
    assert encode([[9.0, 3.4]], 7).shared_levels.tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert encode([[9.0, 3.4]], 1000).nearest.shape == (1, 7)


def test_codes_are_those_of_nearest_centroids():
    rows = np.random.default_rng(0).normal(size=(13, 2)).astype(np.float32) * 9
    np.testing.assert_array_equal(encode(rows).codes, encode_nearest(grid_codebook(), rows))
    rows[5, 1] = np.nan
    with pytest.raises(DataError, match="1 of 13 item embeddings hold NaN"):
        encode(rows)
