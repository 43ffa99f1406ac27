"""The preference losses agree with TRL: with its recorded values, and with TRL where installed."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.architecture.sources import ROOT
from tests.golden_files import FOLDER, check_golden
from tests.parity.preference_record import GOLDEN, SETTINGS, made_up_inputs, our_values

NAMES = ["sigmoid", "hinge", "robust", "ipo", "rpo", "rpo_batch", "cpo", "cpo_smoothed", "simpo"]
NAMES += [
    f"kto_{judged}_{point}"
    for judged in ("desirable", "undesirable")
    for point in ("above", "below")
]
TOLERANCE = 1e-5
"""TRL runs in float64 here and we in float32, with sums of at most 11 numbers of size 1."""


def golden():
    return json.loads((FOLDER / GOLDEN).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_has_the_recorded_value_of_trl(name):
    record = golden()
    ours = our_values(record["inputs"], record["settings"])[name]
    np.testing.assert_allclose(ours, record["values"][name], rtol=TOLERANCE, atol=TOLERANCE)


def test_the_record_holds_every_loss_and_tells_them_apart():
    """No two agree, and hinge and clamp have examples on both sides."""
    values = golden()["values"]
    assert set(values) == set(NAMES)
    assert len({tuple(value) for value in values.values()}) == len(NAMES)
    assert 0 < np.count_nonzero(values["hinge"]) < len(values["hinge"])


@pytest.mark.parity
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not installed: pip install '.[parity]'"
)
def test_the_losses_are_those_of_the_installed_trl():
    """In a process of its own: its warnings are not ours, and torch stays out of this one."""
    record = {"inputs": made_up_inputs(), "settings": SETTINGS}
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.trl_preference"],
        cwd=ROOT,
        input=json.dumps(record),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    record |= json.loads(done.stdout.splitlines()[-1])
    ours = our_values(record["inputs"], record["settings"])
    assert set(ours) == set(record["values"])
    for name, value in ours.items():
        np.testing.assert_allclose(
            value, record["values"][name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    text = json.dumps(record, indent=1) + "\n"
    check_golden(GOLDEN, text, relative_tolerance=1e-9)
