"""The search of a temperature, on functions that are known, and its stage on made-up rollouts."""

import dataclasses
import json
import math

import jax
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.run_folder import run_stage, stage_folder
from reasoning_jax.align.temperature import (
    PAPER_TEMPERATURES,
    Outcome,
    TemperatureConfig,
    paper_temperature,
    search_temperature,
)
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.own_problems import ProblemColumns
from reasoning_jax.data.trajectories import TrajectoryWriter, read_trajectories
from reasoning_jax.presets import evaluate_tiny
from reasoning_jax.stages import rollout, temperature
from tests.reasoning.alignment_cases import solution

SEARCH = TemperatureConfig(low=0.25, high=1.25, wanted_wrong=10.0, tolerance=0.5, max_tries=11)


def rising(at):
    """64 sigma((T - at) / 0.2): as wrong answers rise; 10 of them at `at` + 0.2 ln(10/54)."""
    return lambda one: 64 / (1 + math.exp(-(one - at) / 0.2))


@pytest.mark.parametrize("at", [0.7, 1.1, 1.5])
def test_the_temperature_is_found(at):
    """Its slope there is 64 s (1 - s) / 0.2 with s = 10/64: 42 per unit, within 0.5 of 10."""
    found = search_temperature(rising(at), SEARCH)
    assert found.outcome is Outcome.REACHED
    assert abs(found.nearest.wrong - 10) <= 0.5
    assert found.nearest.wrong == rising(at)(found.nearest.temperature)
    exact = at + 0.2 * math.log(10 / 54)
    assert found.nearest.temperature == pytest.approx(exact, abs=2 * 0.5 / 42)
    temperatures = [one.temperature for one in found.tried]
    assert temperatures[:3] == [0.25, 1.25, 0.75]
    assert len(set(temperatures)) == len(temperatures)


def test_every_try_halves_what_still_holds_it():
    """A step at 0.6 is never within the tolerance: the tries bracket it to 2^-n, then all end."""
    found = search_temperature(lambda one: 0.0 if one < 0.6 else 20.0, SEARCH)
    assert found.outcome is Outcome.OUT_OF_TRIES
    assert len(found.tried) == SEARCH.max_tries
    assert abs(found.tried[-1].temperature - 0.6) <= 2.0**-9 + 1e-4
    many = dataclasses.replace(SEARCH, max_tries=97)
    found = search_temperature(lambda one: 0.0 if one < 0.6 else 20.0, many)
    assert len(found.tried) < 20  # four digits are all that is told apart
    assert found.nearest.temperature < 0.6  # as near as the one above


@pytest.mark.parametrize(
    ("wrong", "outcome", "nearest", "num_tried"),
    [
        (11.0, Outcome.TOO_MANY_WRONG, 0.25, 1),
        (9.0, Outcome.TOO_FEW_WRONG, 0.25, 2),
        (10.5, Outcome.REACHED, 0.25, 1),
        (9.5, Outcome.REACHED, 0.25, 1),
    ],
)
def test_what_cannot_be_reached_is_said(wrong, outcome, nearest, num_tried):
    """A constant; of two that are equally near, the lower temperature."""
    found = search_temperature(lambda _: wrong, SEARCH)
    assert found.outcome is outcome
    assert found.nearest.temperature == nearest
    assert len(found.tried) == num_tried


def test_the_highest_is_nearest_where_all_have_too_few():
    found = search_temperature(lambda one: one, SEARCH)
    assert (found.outcome, found.nearest.temperature) == (Outcome.TOO_FEW_WRONG, 1.25)
    assert search_temperature(lambda one: 8 * one, SEARCH).outcome is Outcome.REACHED


@pytest.mark.parametrize("seed", range(7))
def test_noise_does_not_lead_astray_by_more_than_itself(seed):
    """Noise of up to 1 on a slope of at least 42 per unit: off by at most 1.5 / 42 there."""
    noisy = rising(1.1)
    noise = {}

    def wrong_at(one):
        noise[one] = math.sin(7919 * (seed + one))
        return noisy(one) + noise[one]

    found = search_temperature(wrong_at, SEARCH)
    assert found.outcome is Outcome.REACHED
    assert abs(noisy(found.nearest.temperature) - 10) <= 0.5 + 1


def test_the_papers_temperatures():
    """Two tasks, five models; all lie where the search looks by default."""
    assert paper_temperature("gsm8k", "llama3-8b") == 0.5
    assert paper_temperature("math", "deepseek-math-7b") == 0.3
    default = TemperatureConfig()
    assert (default.wanted_wrong, default.of_samples) == (10.0, 64)
    for by_model in PAPER_TEMPERATURES.values():
        assert len(by_model) == 5
        assert all(default.low <= one <= default.high for one in by_model.values())
    with pytest.raises(ConfigError, match=r"no task 'math500'. Did you mean 'math'?"):
        paper_temperature("math500", "llama3-8b")
    with pytest.raises(ConfigError, match=r"no model 'llama-8b'. Did you mean 'llama3-8b'?"):
        paper_temperature("math", "llama-8b")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"low": 0.0}, "low 0.0 to high 1.5; expected 0 < low < high"),
        ({"high": 0.1}, "low 0.1 to high 0.1"),
        ({"wanted_wrong": 64.0}, "wanted_wrong is 64.0; expected .* less than of_samples, 64"),
        ({"wanted_wrong": 0.0}, "wanted_wrong is 0.0"),
        ({"of_samples": 0}, "of_samples is 0; it must be at least 1"),
        ({"num_problems": 0}, "num_problems is 0"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"tolerance": 0.0}, "tolerance is 0.0; it must be more than 0"),
        ({"max_tries": 1}, "max_tries is 1; both ends take a try each"),
    ],
)
def test_configs_are_checked(fields, message):
    with pytest.raises(ConfigError, match=message):
        TemperatureConfig(**fields)


STAGE = TemperatureConfig(
    low=0.2,
    high=1.0,
    wanted_wrong=4.0,
    of_samples=10,
    tolerance=0.25,
    max_tries=7,
    num_problems=3,
    num_samples=5,
)


def sampled(config):
    """Of every problem's 5 solutions 5 T are wrong, one less of the first and more of the last."""
    num_wrong = round(5 * config.sampling.temperature)
    assert config.problems.limit == 3
    return [
        solution(f"p{p}", s, "5" if s < num_wrong + p - 1 else "7", s >= num_wrong + p - 1)
        for p in range(config.problems.limit)
        for s in range(config.sampling.num_samples)
    ]


@pytest.fixture
def rollouts(monkeypatch):
    """Rollouts that are made up and resumable; lists the temperatures that were sampled."""
    done = []

    def run(config):
        def work(folder):
            done.append(config.sampling.temperature)
            with TrajectoryWriter(folder / rollout.TRAJECTORIES) as writer:
                writer.write(sampled(config))
            return {}

        return run_stage(config.run_dir, rollout.NAME, {"sampling": config.sampling}, work)

    monkeypatch.setattr(rollout, "run", run)
    return done


def tiny(folder, **changes):
    return dataclasses.replace(evaluate_tiny(), run_dir=str(folder), **changes)


def results(folder):
    return json.loads((stage_folder(folder, temperature.NAME) / "temperature.json").read_text())


def test_the_stage_finds_a_temperature(tmp_path, rollouts):
    """4 of 10 wrong are 2 of 5, at 0.4: after 0.2 (2 of 10), 1.0 and 0.6 (6 of 10)."""
    assert temperature.run(tiny(tmp_path), STAGE)
    assert rollouts == [0.2, 1.0, 0.6, 0.4]
    assert temperature.found_temperature(str(tmp_path)) == 0.4
    found = results(tmp_path)
    assert (found["outcome"], found["wrong"]) == ("reached", 4.0)
    assert [row["temperature"] for row in found["tried"]] == rollouts
    row = found["tried"][-1]
    assert row["standard_error"] == pytest.approx(2 / math.sqrt(3))  # of 2, 4 and 6
    assert row["correct"] == pytest.approx(9 / 15)
    table = (stage_folder(tmp_path, temperature.NAME) / "temperature.md").read_text()
    assert "Wanted: 4 wrong answers of 10 per problem, within 0.25" in table
    assert "Temperature 0.4 gives what is wanted." in table
    assert "| 0.4 | 4.00 | 1.15 | 60.0% | 0.0% | 0.0% |" in table
    assert temperature.run(tiny(tmp_path), STAGE)
    assert len(rollouts) == 4


def test_a_search_that_was_cut_off_goes_on(tmp_path, rollouts, monkeypatch):
    """What was sampled is not sampled again."""
    whole = rollout.run

    def dies(config):
        if config.sampling.temperature == 0.6:
            raise KeyboardInterrupt
        return whole(config)

    monkeypatch.setattr(rollout, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        temperature.run(tiny(tmp_path), STAGE)
    with pytest.raises(DataError, match=r"stage 'temperature' of run .* is not done"):
        temperature.found_temperature(str(tmp_path))
    monkeypatch.setattr(rollout, "run", whole)
    assert temperature.run(tiny(tmp_path), STAGE)
    assert rollouts == [0.2, 1.0, 0.6, 0.4]
    assert results(tmp_path)["temperature"] == 0.4


@pytest.mark.parametrize(
    ("changes", "nearest", "sentence"),
    [
        ({"wanted_wrong": 1.0}, 0.2, "even the lowest gives too many wrong answers"),
        ({"wanted_wrong": 9.9, "high": 0.6}, 0.6, "even the highest gives too few wrong answers"),
        ({"wanted_wrong": 5.0}, 0.4, "the nearest of those tried; raise max_tries"),
    ],
)
def test_the_nearest_is_reported_where_none_will_do(
    tmp_path, rollouts, caplog, changes, nearest, sentence
):
    assert temperature.run(tiny(tmp_path), dataclasses.replace(STAGE, **changes))
    assert temperature.found_temperature(str(tmp_path)) == nearest
    assert sentence in (stage_folder(tmp_path, temperature.NAME) / "temperature.md").read_text()
    assert sentence in caplog.text
    assert results(tmp_path)["outcome"] != "reached"


def test_wrong_answers_are_what_the_sets_would_take():
    """Of five, three are wrong: one without an answer, one cut off."""
    rows = [
        solution(sample=0),
        solution(sample=1, answer="5", is_correct=False),
        solution(sample=2, answer=" ", is_correct=False),
        solution(sample=3, answer="5", is_correct=False, finish="length"),
        solution(sample=4),
    ]
    found = temperature.summarise(rows, STAGE)
    assert found == {
        "wrong": pytest.approx(10 * 1 / 5),
        "standard_error": 0.0,
        "correct": 2 / 5,
        "without_answer": 1 / 5,
        "cut_off": 1 / 5,
    }
    kept = temperature.summarise(rows, dataclasses.replace(STAGE, keep_cut_off=True))
    assert kept["wrong"] == pytest.approx(10 * 2 / 5)


def test_other_settings_need_another_run_and_imports_are_refused(tmp_path, rollouts):
    temperature.run(tiny(tmp_path), STAGE)
    sampling = dataclasses.replace(evaluate_tiny().sampling, temperature=0.7, num_samples=97)
    assert temperature.run(tiny(tmp_path, sampling=sampling), STAGE)  # both are the search's own
    with pytest.raises(ConfigError, match=r"search\.tolerance"):
        temperature.run(tiny(tmp_path), dataclasses.replace(STAGE, tolerance=0.5))
    with pytest.raises(ConfigError, match=r"imported is 'x.jsonl'; a temperature is looked for by"):
        temperature.run(tiny(tmp_path, imported="x.jsonl"), STAGE)


def test_a_model_is_sampled(tmp_path, monkeypatch):
    """One try, as all will do; its rollout is a true one, of random weights."""
    first = jax.devices()[:1]
    monkeypatch.setattr(rollout, "make_mesh", lambda config: make_mesh(config, first))
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"q": f"{n}+1=", "a": str(n + 1)}) + "\n" for n in range(5)))
    columns = ProblemColumns(question="q", answer="a")
    problems = ProblemsConfig(task="own", path=str(path), columns=columns)
    config = tiny(tmp_path / "run", problems=problems, mesh=MeshConfig(data=1))
    search = dataclasses.replace(STAGE, wanted_wrong=5.0, tolerance=5.0, keep_cut_off=True)
    assert temperature.run(config, search)
    (row,) = results(tmp_path / "run")["tried"]
    tried = stage_folder(tmp_path / "run", temperature.NAME) / "tries" / "0.2000"
    rows = list(read_trajectories(rollout.trajectories_path(str(tried))))
    assert len(rows) == 3 * 5
    assert row["wrong"] == pytest.approx(10 * (1 - row["without_answer"] - row["correct"]))
