"""The reasoning jobs end to end on the made-up tiny model: whole, cut off, resumed, handed on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from core_jax.config import to_dict
from core_jax.errors import ConfigError, DataError
from core_jax.loop import LoopConfig
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax import jobs
from reasoning_jax.config import CompareConfig, ExportConfig, Solutions
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.own_problems import ProblemColumns
from reasoning_jax.data.packing import PackingConfig
from reasoning_jax.data.sft_examples import TrajectoryChoice, Verdicts
from reasoning_jax.jobs import run_compare, run_evaluate, run_export, run_sft
from reasoning_jax.model.config import LoraConfig
from reasoning_jax.presets import evaluate_tiny, sft_tiny
from reasoning_jax.stages import evaluate, rollout, sft
from reasoning_jax.weights.model_source import ModelConfig, load_source


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    """Problems of one's own: the tests need no further package."""
    path = tmp_path_factory.mktemp("problems") / "small.jsonl"
    rows = [{"q": f"{a} + {a + 1} = ?", "a": str(2 * a + 1)} for a in range(23)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own(path, limit):
    columns = ProblemColumns(question="q", answer="a")
    return ProblemsConfig(task="own", path=str(path), limit=limit, columns=columns)


def evaluation(folder, own_file, **changes):
    config = evaluate_tiny()
    mesh = MeshConfig(data=1)
    return dataclasses.replace(
        config, run_dir=str(folder), problems=own(own_file, 5), mesh=mesh, **changes
    )


@pytest.fixture(scope="module")
def one_device():
    """Jobs make their mesh of all devices; these tests want one."""
    with pytest.MonkeyPatch.context() as patch:
        first = jax.devices()[:1]
        for module in (rollout, sft, jobs):
            patch.setattr(module, "make_mesh", lambda config: make_mesh(config, first))
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, own_file, one_device):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_evaluate(evaluation(folder, own_file))
    return folder


def test_an_evaluation_keeps_every_solution_and_sums_up(evaluated):
    lines = rollout.trajectories_path(str(evaluated)).read_text().splitlines()
    assert len(lines) == 10
    folder = evaluate.results_folder(str(evaluated))
    results = json.loads((folder / "results.json").read_text())
    assert (results["num_problems"], results["num_samples"]) == (5, 10)
    assert set(results["pass_at_k"]) == {"1", "2"} == set(results["majority_at_k"])
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert "| pass@2 |" in (folder / "results.md").read_text()
    assert len((folder / "problems.jsonl").read_text().splitlines()) == 5


def test_a_rollout_that_was_cut_off_goes_on_without_loss(evaluated, tmp_path, own_file):
    """Half of the file and a torn line are there: the rest is sampled, all rows are equal."""
    whole = rollout.trajectories_path(str(evaluated)).read_text().splitlines(keepends=True)
    again = rollout.trajectories_path(str(tmp_path))
    again.parent.mkdir(parents=True)
    again.write_text("".join(whole[:4]) + whole[4][:30])
    run_evaluate(evaluation(tmp_path, own_file))
    assert sorted(again.read_text().splitlines(keepends=True)) == sorted(whole)


def test_results_are_made_again_with_other_intervals(evaluated, own_file):
    config = evaluation(evaluated, own_file)
    score = dataclasses.replace(config.score, ks=(2,), bootstrap_samples=50)
    run_evaluate(dataclasses.replace(config, score=score))
    folder = evaluate.results_folder(str(evaluated))
    assert set(json.loads((folder / "results.json").read_text())["pass_at_k"]) == {"2"}


def test_another_sampling_needs_another_run(evaluated, own_file):
    config = evaluation(evaluated, own_file)
    other = dataclasses.replace(config.sampling, seed=5)
    with pytest.raises(ConfigError, match=r"sampling\.seed"):
        run_evaluate(dataclasses.replace(config, sampling=other))


def test_samples_of_another_engine_are_graded(tmp_path, own_file):
    problems = load_problems(own(own_file, 3))
    rows = [
        {"problem_id": problem.problem_id, "prompt": problem.question, "response": text}
        for problem in problems
        for text in (f"The answer is {problem.answer}.", "The answer is 1000.")
    ]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    config = evaluation(tmp_path / "run", own_file, imported=str(path))
    run_evaluate(config)
    results = json.loads((evaluate.results_folder(config.run_dir) / "results.json").read_text())
    assert results["accuracy"]["mean"] == 0.5
    assert results["pass_at_k"]["2"]["mean"] == 1.0
    done = json.loads((tmp_path / "run/stages/rollout/done.json").read_text())
    assert sum(done["facts"]["rejected"].values()) == 1
    path.write_text(json.dumps(rows[0] | {"problem_id": "x"}) + "\n")
    with pytest.raises(DataError, match=r"answers 1 problems that 'own' .* does not have"):
        run_evaluate(dataclasses.replace(config, run_dir=str(tmp_path / "bad")))


def training(folder, own_file, **changes):
    config = dataclasses.replace(
        sft_tiny(),
        run_dir=str(folder),
        problems=own(own_file, 23),
        packing=PackingConfig(row_length=128),
        loop=LoopConfig(num_steps=8, log_every=2, evaluate_every=4, checkpoint_every=2),
        held_out=3,
        batch_size=4,
        mesh=MeshConfig(data=1),
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.parametrize("rank", [0, 3])
def test_training_lowers_the_loss_and_is_written_for_others(
    tmp_path, own_file, one_device, rank, capsys
):
    config = training(tmp_path / "run", own_file, lora=LoraConfig(rank=rank, alpha=6.0))
    run_sft(config)
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/stages/sft/metrics.jsonl").read_text().splitlines()
    ]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert losses[-1] < losses[0]
    save_config(config)
    folder = tmp_path / "exported"
    run_export(ExportConfig(run_dir=config.run_dir, folder=str(folder)))
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model, adapters = sft.load_trained(config, mesh)
    assert (adapters is not None) == bool(rank)
    if rank:
        source = dataclasses.replace(config.model, adapter=str(folder))
        loaded = load_source(source, mesh)
        merged = tmp_path / "merged"
        run_export(ExportConfig(run_dir=config.run_dir, folder=str(merged), merge=True))
        folder = merged
        again = load_source(ModelConfig(source=str(folder), tokenizer="bytes"), mesh)
        assert_close(again.params, loaded.params)
    else:
        again = load_source(ModelConfig(source=str(folder), tokenizer="bytes"), mesh)
        assert_close(again.params, model.params)
    assert again.config == model.config


def test_training_that_was_cut_off_ends_bit_for_bit_the_same(tmp_path, own_file, one_device):
    lora = LoraConfig(rank=2, dropout=0.2)
    whole = training(tmp_path / "whole", own_file, lora=lora)
    run_sft(whole)
    halves = training(tmp_path / "halves", own_file, lora=lora)
    stopped = dataclasses.replace(halves.loop, num_steps=4)
    schedule_free = dataclasses.replace(halves, loop=stopped)
    sft.run(schedule_free)
    (tmp_path / "halves/stages/sft/done.json").unlink()
    run_sft(halves)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    found = [sft.load_trained(config, mesh)[1] for config in (whole, halves)]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_solutions_of_a_rollout_can_be_learnt(evaluated, tmp_path, own_file, one_device):
    config = training(
        tmp_path / "run",
        own_file,
        solutions=Solutions.TRAJECTORIES,
        trajectories=str(rollout.trajectories_path(str(evaluated))),
        choice=TrajectoryChoice(verdicts=Verdicts.ANY, keep_cut_off=True),
        packing=PackingConfig(row_length=256),
    )
    run_sft(dataclasses.replace(config, batch_size=1, held_out=1))
    assert (tmp_path / "run/stages/sft/done.json").is_file()


def test_two_evaluations_are_compared(evaluated, tmp_path, own_file, one_device, capsys):
    config = evaluation(tmp_path / "other", own_file)
    other = dataclasses.replace(config.sampling, seed=5)
    run_evaluate(dataclasses.replace(config, sampling=other))
    run_compare(
        CompareConfig(
            first=str(evaluated), second=str(tmp_path / "other"), run_dir=str(tmp_path / "c")
        )
    )
    result = json.loads((tmp_path / "c/comparison.json").read_text())
    assert result["wins"] + result["losses"] + result["ties"] == 5


def test_errors_name_what_is_wrong(tmp_path, own_file):
    with pytest.raises(DataError, match=r"there is no model 'absent'; give smollm2, a \.gguf file"):
        load_source(ModelConfig(source="absent"), make_mesh(MeshConfig()))
    with pytest.raises(DataError, match=r"no architecture 'tinny'\. Did you mean 'tiny'"):
        load_source(ModelConfig(source="fresh:tinny"), make_mesh(MeshConfig()))
    with pytest.raises(ConfigError, match="solutions is trajectories; name their file"):
        training(tmp_path, own_file, solutions=Solutions.TRAJECTORIES)
    with pytest.raises(ConfigError, match="held_out is 0"):
        training(tmp_path, own_file, held_out=0)
    with pytest.raises(DataError, match=r"stage 'evaluate' of run '.*' is not done"):
        run_compare(CompareConfig(first=str(tmp_path), second=str(tmp_path)))
    with pytest.raises(DataError, match=r"is no run: it has no config\.json"):
        run_export(ExportConfig(run_dir=str(tmp_path)))


def save_config(config):
    """What `launch` does before it starts a job."""
    path = f"{config.run_dir}/config.json"
    with open(path, "w") as file:
        json.dump(to_dict(config), file)


def assert_close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), found, expected)
