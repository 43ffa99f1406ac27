"""Loaded models give transformers' logits, and exported ones load there: recorded, and live."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from reasoning_jax.weights.hf_export import export_model
from reasoning_jax.weights.hf_load import load_config, load_params
from reasoning_jax.weights.peft import export_adapter, load_adapter
from tests.architecture.sources import ROOT
from tests.golden_files import FOLDER, check_golden
from tests.parity.hf_record import (
    ADAPTED,
    ADAPTER_GOLDEN,
    CASES,
    GOLDEN,
    mesh,
    our_logits,
    record_text,
    tokens_of,
    write_case,
)

TOLERANCE = 1e-4
RECORDED = {"model": GOLDEN, "adapter": ADAPTER_GOLDEN}


def needs(*modules):
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(absent)} not installed: pip install '.[parity]'"
    return pytest.mark.skipif(bool(absent), reason=reason)


def recorded(kind):
    return json.loads((FOLDER / RECORDED[kind]).read_text(encoding="utf-8"))


def run_reference(steps):
    """In a process of its own: its warnings are not ours, and torch stays out of this one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.parity.hf_transformers"],
        cwd=ROOT,
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [np.asarray(logits) for logits in json.loads(done.stdout.splitlines()[-1])]


def assert_close(ours, theirs, name):
    assert ours.shape == np.shape(theirs), name
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=name)


def check_record(kind, logits):
    """The golden file stays as it is where the reference says the same to its last digits."""
    path = FOLDER / RECORDED[kind]
    text = record_text(logits)
    if path.is_file():
        old = recorded(kind)
        if all(
            case in old and np.allclose(old[case], logits[case], rtol=0, atol=1e-5)
            for case in {**old, **logits}
        ):
            text = path.read_text(encoding="utf-8")
    check_golden(RECORDED[kind], text)


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_that_transformers_gave(tmp_path, case):
    folder = write_case(tmp_path, case)
    assert_close(our_logits(folder, tokens_of(case)), recorded("model")[case], case)


@pytest.mark.parametrize("case", ADAPTED)
@pytest.mark.parametrize("is_merged", [False, True])
def test_logits_with_an_adapter_are_those_that_peft_gave(tmp_path, case, is_merged):
    folder = write_case(tmp_path, case)
    ours = our_logits(folder, tokens_of(case), folder / "adapter", is_merged)
    assert_close(ours, recorded("adapter")[case], case)


@pytest.mark.parametrize("case", ADAPTED)
def test_the_recorded_adapter_matters(case):
    """A record that the bare model also met would say nothing."""
    difference = np.abs(np.subtract(recorded("model")[case], recorded("adapter")[case]))
    assert difference.max() > 0.1


@pytest.mark.parity
@needs("torch", "transformers")
def test_models_that_transformers_saved_load_here_and_ours_there(tmp_path):
    made = run_reference(
        [
            {
                "make": CASES[case],
                "tokens": tokens_of(case),
                "save": str(tmp_path / case),
                "max_shard_size": "20KB",
            }
            for case in CASES
        ]
        + [
            {
                "load": str(write_case(tmp_path / "by_formula" / case, case)),
                "tokens": tokens_of(case),
            }
            for case in CASES
        ]
    )
    for case, theirs in zip(CASES, made, strict=False):
        assert np.std(theirs) > 0.1
        assert_close(our_logits(tmp_path / case, tokens_of(case)), theirs, case)
        config = load_config(tmp_path / case)
        params = load_params(tmp_path / case, config, mesh=mesh())
        export_model(
            tmp_path / "ours" / case,
            config,
            params,
            source_folder=tmp_path / case,
            max_shard_bytes=20_000,
        )
    reloaded = run_reference(
        [{"load": str(tmp_path / "ours" / case), "tokens": tokens_of(case)} for case in CASES]
    )
    for case, before, after in zip(CASES, made, reloaded, strict=False):
        np.testing.assert_array_equal(before, after, err_msg=case)
    check_record("model", dict(zip(CASES, made[len(CASES) :], strict=True)))


@pytest.mark.parity
@needs("torch", "transformers", "peft")
def test_adapters_that_peft_saved_load_here_and_ours_there(tmp_path):
    adapter = {"r": 5, "lora_alpha": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    folders = {case: write_case(tmp_path / case, case) for case in ADAPTED}
    steps = [{"load": str(folders[case]), "tokens": tokens_of(case)} for case in ADAPTED]
    saved = run_reference(
        [
            step | {"new_adapter": adapter, "save_adapter": str(tmp_path / "peft" / case)}
            for case, step in zip(ADAPTED, steps, strict=True)
        ]
        + [
            step | {"adapter": str(folders[case] / "adapter")}
            for case, step in zip(ADAPTED, steps, strict=True)
        ]
    )
    for case, theirs in zip(ADAPTED, saved, strict=False):
        for is_merged in (False, True):
            folder = tmp_path / "peft" / case
            ours = our_logits(folders[case], tokens_of(case), folder, is_merged)
            assert_close(ours, theirs, case)
        config = load_config(folders[case])
        loaded = load_adapter(tmp_path / "peft" / case, config, mesh=mesh())
        export_adapter(tmp_path / "ours" / case, config, loaded)
    again = [
        step | {"adapter": str(tmp_path / "ours" / case), "merge": is_merged}
        for is_merged in (False, True)
        for case, step in zip(ADAPTED, steps, strict=True)
    ]
    reloaded = run_reference(again)
    for case, before, after, merged in zip(
        ADAPTED, saved, reloaded, reloaded[len(ADAPTED) :], strict=False
    ):
        np.testing.assert_array_equal(before, after, err_msg=case)
        assert_close(merged, before, case)
    check_record("adapter", dict(zip(ADAPTED, saved[len(ADAPTED) :], strict=True)))
