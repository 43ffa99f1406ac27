"""The preference objective as a whole: TRL's DPO, and the contrastive cDPO paper's loss in NumPy.

Dimension key: B rows, P response tokens of a row.
"""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.align.methods import Row, row_method
from reasoning_jax.align.objective import token_loss
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair
from reasoning_jax.data.packing import Layout
from tests.architecture.sources import ROOT
from tests.golden_files import FOLDER, check_golden
from tests.parity.dpo_record import (
    BETA,
    GOLDEN,
    LAYOUTS,
    LORA,
    our_values,
    record_text,
    token_ids,
    write_model,
)

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


def assert_agree(ours, theirs):
    """Loss and every adapter's gradient, to 1e-5 of the number and of 1 (gradients are larger)."""
    np.testing.assert_allclose(ours["loss"], theirs["loss"], rtol=TOLERANCE)
    assert set(ours["gradients"]) == set(theirs["gradients"])
    for name, gradient in ours["gradients"].items():
        expected = np.asarray(theirs["gradients"][name])
        assert np.abs(expected).max() > 1e-3, f"{name}: nothing to compare"
        np.testing.assert_allclose(gradient, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dpo_has_the_recorded_loss_and_gradients_of_trl(folder, layout):
    record = json.loads((FOLDER / GOLDEN).read_text(encoding="utf-8"))
    assert_agree(our_values(folder, layout), record)


@pytest.mark.parity
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("trl", "peft")),
    reason="TRL and PEFT are not installed: pip install '.[parity]'",
)
def test_dpo_has_the_loss_and_gradients_of_the_installed_trl(folder):
    """In a process of its own: its warnings are not ours, and torch stays out of this one."""
    step = {"folder": str(folder), "rank": LORA.rank, "alpha": LORA.alpha, "beta": BETA}
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.trl_dpo"],
        cwd=ROOT,
        input=json.dumps(step | {"pairs": token_ids()}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    live = folder / "live"
    assert_agree(our_values(write_model(live), Layout.PACKED), theirs)
    check_golden(GOLDEN, record_text(theirs["trl"], theirs), relative_tolerance=TOLERANCE)


def test_contrastive_cdpo_is_the_papers_loss_in_numpy():
    """Loss and gradient in the log-probabilities, pair by pair in float64.

    l = -log sigma(gamma (sum_t d^w_t - sum_u (1 - s_u) d^l_u)), so dl/d log p is -gamma sigma(-m)
    for a chosen token and gamma (1 - s_u) sigma(-m) for a rejected one.
    """
    method = row_method(Row.CDPO)
    draw = np.random.default_rng(3)
    pairs, log_probs, expected_loss = [], [], 0.0
    for sizes in ((5, 7), (2, 3), (11, 5)):
        critical = draw.uniform(0, 1, sizes[1])  # 1 - s
        weights = (np.ones(sizes[0]), critical)
        under = tuple(-draw.uniform(0, 3, size) for size in sizes)
        ours = tuple(-draw.uniform(0, 3, size) for size in sizes)
        sums = [np.sum(w * (o - u)) for w, o, u in zip(weights, ours, under, strict=True)]
        margin = method.beta * (sums[0] - sums[1])
        expected_loss += np.log1p(np.exp(-margin))
        slope = method.beta / (1 + np.exp(margin))
        log_probs.append((ours, (-slope * weights[0], slope * weights[1])))
        pairs.append(
            TokenPair(
                token_ids=tuple(list(range(1, size + 3)) for size in sizes),
                response_starts=(2, 2),
                reference=tuple(one.astype(np.float32) for one in under),
                weights=tuple(one.astype(np.float32) for one in weights),
            )
        )
    rows = PairRows(pairs, PairRowsConfig(row_length=61))
    batch = jax.tree.map(jnp.asarray, next(rows.in_order(1)))
    given, expected = (np.zeros(batch.predictions.shape) for _ in range(2))
    places, is_token = np.asarray(batch.places)[0], np.asarray(batch.is_token)[0]
    # Which slot a pair has is found by its sizes, which are all different.
    slots = {tuple(mask.sum(axis=-1)): slot for slot, mask in enumerate(is_token)}
    for ours, slopes in log_probs:
        slot = slots[tuple(map(len, ours))]
        for side in (0, 1):
            where = places[slot, side][is_token[slot, side]]
            given[0, where], expected[0, where] = ours[side], slopes[side]

    def total(values):
        return token_loss(values, batch, method=method)[0].total

    loss, pull = jax.vjp(total, jnp.asarray(given, jnp.float32))
    np.testing.assert_allclose(loss, expected_loss, rtol=TOLERANCE)
    (gradient,) = pull(jnp.ones_like(loss))
    np.testing.assert_allclose(gradient, expected, rtol=TOLERANCE, atol=TOLERANCE)
