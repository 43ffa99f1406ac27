"""The preference objective as a whole: TRL's DPO, and the contrastive cDPO paper's loss in NumPy.

Dimension key: N pairs, U tokens of a response.
"""

import functools
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasoning_jax.align.methods import MethodConfig, Row, WeightSource, row_method
from reasoning_jax.align.pair_rows import PairRows, PairRowsConfig, TokenPair
from reasoning_jax.align.objective import loss_of_log_probs
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
        np.testing.assert_allclose(
            gradient, expected, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )


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
