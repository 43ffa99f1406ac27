"""A contrastive alignment, killed at 20 random moments, ends bit for bit as one that was not.

In a file of its own, so that it runs beside that of the other method.
"""

import pytest

from rec_jax.align.methods import Method
from tests.end_to_end.interrupted_alignment import check_kills

pytestmark = pytest.mark.long


def test_killed_at_twenty_random_moments_it_ends_as_if_it_had_not_been(tmp_path):
    check_kills(Method.CONTRASTIVE, tmp_path)
