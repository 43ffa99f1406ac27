"""Rolling out wrong solutions on the made-up tiny model: whole, cut off, resumed."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.align.critical import CriticalConfig, CriticalRule
from reasoning_jax.answers.verdict import Verdict
from reasoning_jax.config import ScoreConfig
from reasoning_jax.data.load import ProblemsConfig, load_problems
from reasoning_jax.data.own_problems import ProblemColumns
from reasoning_jax.data.token_values import read_token_values
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.model.decoding import for_decoding
from reasoning_jax.presets import evaluate_tiny
from reasoning_jax.sampling.config import SamplingConfig
from reasoning_jax.sampling.engine import SampleRequest, sample
from reasoning_jax.stages import critical
from reasoning_jax.stages.critical_results import critical_index
from reasoning_jax.weights.model_source import load_source, load_text_side

EOS = 258
CONFIG = CriticalConfig(temperature=1.0, max_new_tokens=5, num_rollouts=7, top_p=0.9, seed=3)
RESPONSES = ((*b"7 + 8 = 1", EOS), tuple(b"it is 12"), (*b"so 7", EOS))


def is_right(text):
    """Stands in for a grader: about a ninth of all texts; none of the responses above."""
    return sum(text.encode()) % 9 == 0


class FakeJudge:
    """Judges by `is_right` and keeps what it was asked."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def __init__(self, config, problems):
        self.names = {problem.problem_id for problem in problems}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def verdicts(self, answered):
        assert self.names >= {name for name, _ in answered}
        self.asked.extend(answered)
        found = [Verdict(answer="7", is_correct=is_right(text), method="") for _, text in answered]
        return [(one, one) for one in found]


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "small.jsonl"
    rows = [{"q": f"{a} + {a + 1} = ?", "a": str(2 * a + 1)} for a in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ProblemColumns(question="q", answer="a")
    return dataclasses.replace(
        evaluate_tiny(),
        problems=ProblemsConfig(task="own", path=str(path), limit=5, columns=columns),
        mesh=MeshConfig(data=1),
        score=ScoreConfig(ks=(1, 2, 7, 64), bootstrap_samples=50),
    )


@pytest.fixture(scope="module")
def solutions(sampled):
    problems = load_problems(sampled.problems)
    tokenizer, _ = load_text_side(sampled.model)
    return [
        Trajectory(
            problem_id=problem.problem_id,
            sample=5,
            task="own",
            seed=0,
            prompt=problem.question,
            response=tokenizer.decode(response),
            token_ids=(257, *problem.question.encode(), *response),
            response_start=1 + len(problem.question),
            finish="stop" if response[-1] == EOS else "length",
            answer=None,
            is_correct=False,
            official_correct=False,
            model="m",
            tokenizer=tokenizer.fingerprint,
        )
        for problem, response in zip(problems, RESPONSES, strict=False)
    ]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(critical, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))
        patch.setattr(critical, "Judge", FakeJudge)
        yield


def run(folder, sampled, solutions, config=CONFIG):
    FakeJudge.asked.clear()
    done = critical.run(str(folder), sampled=sampled, trajectories=solutions, config=config)
    assert done
    return folder / "stages/critical"


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sampled, solutions):
    folder = run(tmp_path_factory.mktemp("runs") / "whole", sampled, solutions)
    assert len(FakeJudge.asked) == len(set(FakeJudge.asked))
    return folder


def test_every_prefix_is_rolled_out_and_counted(whole, solutions):
    """T + 1 prefixes of every solution, and a replacement of each critical token."""
    units = json_lines(whole / "rollouts.jsonl")
    prefixes = [unit for unit in units if not unit["forced"]]
    expected = {
        (one.problem_id, length)
        for one, response in zip(solutions, RESPONSES, strict=True)
        for length in range(len(response) + 1)
    }
    assert {(unit["problem_id"], unit["length"]) for unit in prefixes} == expected
    assert len(prefixes) == len(expected)
    assert {unit["num_rollouts"] for unit in units} == {7}
    assert 0 < sum(unit["successes"] for unit in units) < 7 * len(units)


def test_prefixes_equal_the_engine_asked_for_each_alone(whole, sampled, solutions):
    """Successes and tokens of single prefixes, in an engine that holds nothing else."""
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    model = load_source(sampled.model, mesh)
    weights = for_decoding(model.config, model.params)
    options = SamplingConfig(
        temperature=1.0, top_p=0.9, max_new_tokens=5, num_samples=7, seed=3, stop=("\n\nQuestion:",)
    )
    units = {
        (one["problem_id"], one["length"]): one
        for one in json_lines(whole / "rollouts.jsonl")
        if not one["forced"]
    }
    for solution, length in ((solutions[0], 0), (solutions[1], 3), (solutions[1], 8)):
        prompt = solution.token_ids[: solution.response_start + length]
        name = repr((*solution.key, length, False))
        found = list(
            sample(
                model.config,
                weights,
                [SampleRequest(problem_id=name, sample=k, prompt=prompt) for k in range(7)],
                sampling=options,
                engine=sampled.engine,
                decode=model.tokenizer.decode,
                eos_ids=model.tokenizer.eos_ids,
            )
        )
        kept = prompt[solution.response_start :]
        texts = [model.tokenizer.decode((*kept, *one.token_ids)) for one in found]
        unit = units[(solution.problem_id, length)]
        assert unit["successes"] == sum(map(is_right, texts))
        assert unit["sampled_tokens"] == sum(len(one.token_ids) for one in found)
        assert unit["read_tokens"] == len(prompt)


def test_a_prefix_that_has_ended_is_its_own_completion(whole, solutions):
    units = json_lines(whole / "rollouts.jsonl")
    last = {
        unit["problem_id"]: unit
        for unit in units
        for one, response in zip(solutions, RESPONSES, strict=True)
        if (unit["problem_id"], unit["length"]) == (one.problem_id, len(response))
    }
    for one, response in zip(solutions, RESPONSES, strict=True):
        unit = last[one.problem_id]
        if response[-1] == EOS:
            assert (unit["successes"], unit["sampled_tokens"], unit["read_tokens"]) == (0, 0, 0)
        else:
            assert unit["sampled_tokens"] > 7


def test_results_say_where_the_critical_tokens_are(whole, solutions):
    values = read_token_values(whole / "critical.jsonl")
    rows = json_lines(whole / "solutions.jsonl")
    units = json_lines(whole / "rollouts.jsonl")
    for solution, row in zip(solutions, rows, strict=True):
        one = values[solution.key]
        assert one.token_ids == solution.token_ids
        assert one.named("success") == tuple(count / 7 for count in row["successes"])
        assert critical_index(one) == row["critical"]
        mine = [unit for unit in units if unit["problem_id"] == solution.problem_id]
        forced = [unit for unit in mine if unit["forced"]]
        assert row["sampled_tokens"] + row["read_tokens"] + row["replacement_tokens"] == sum(
            unit["sampled_tokens"] + unit["read_tokens"] for unit in mine
        )
        if row["critical"] is None:
            assert not forced and row["replaced_successes"] is None
            continue
        (unit,) = forced
        token = solution.token_ids[solution.response_start + row["critical"]]
        assert unit["length"] == row["critical"] and len(unit["forced"]) == 7
        assert token not in unit["forced"] and len(set(unit["forced"])) > 1
        assert row["replaced_successes"] == unit["successes"]
        assert row["kept_successes"] == row["successes"][row["critical"]] == 0
    results = json.loads((whole / "critical.json").read_text())
    assert "<eos>" not in [row["token"] for row in rows]
    assert results["num_found"] == sum(row["critical"] is not None for row in rows) > 1
    assert len(results["kept"]) == len(results["replaced"]) == 7
    shares = [row["replaced_successes"] / 7 for row in rows if row["critical"] is not None]
    assert results["replaced"][0]["mean"] == pytest.approx(np.mean(shares))
    text = (whole / "critical.md").read_text()
    assert f"| 7 | 0.000 | 0.000 to 0.000 | {results['replaced'][6]['mean']:.3f} |" in text
    assert "| 64 |" not in text
    assert (whole / "pass_at_k.png").read_bytes().startswith(b"\x89PNG")
    facts = json.loads((whole / "done.json").read_text())["facts"]
    assert facts["per_solution"]["sampled_tokens"] == np.mean([r["sampled_tokens"] for r in rows])


@pytest.mark.parametrize("num_batches", [1, 3])
def test_a_run_that_was_cut_off_goes_on_to_the_same_result(
    whole, tmp_path, sampled, solutions, num_batches, monkeypatch
):
    """Stopped after some batches, with a torn line at the end; nothing is lost or done twice."""
    written = []

    class Cut(critical.RolloutWriter):
        def write(self, batch):
            if len(written) == num_batches:
                raise KeyboardInterrupt
            super().write(batch)
            written.extend([batch])

    with monkeypatch.context() as patch:
        patch.setattr(critical, "RolloutWriter", Cut)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, sampled, solutions)
    path = tmp_path / "stages/critical/rollouts.jsonl"
    kept = path.read_text()
    assert kept.count("\n") == sum(map(len, written)) > 0
    with path.open("a") as file:
        file.write('{"problem_id": "x", "len')
    folder = run(tmp_path, sampled, solutions)
    assert path.read_text().startswith(kept)
    for name in ("critical.jsonl", "solutions.jsonl", "critical.json", "critical.md"):
        assert (folder / name).read_text() == (whole / name).read_text()
    lines = [sorted((one / "rollouts.jsonl").read_text().splitlines()) for one in (folder, whole)]
    assert lines[0] == lines[1]


def test_what_was_rolled_out_with_other_options_is_refused(whole, tmp_path, sampled, solutions):
    folder = tmp_path / "stages/critical"
    folder.mkdir(parents=True)
    first = (whole / "rollouts.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "rollouts.jsonl").write_text(first)
    other = dataclasses.replace(CONFIG, seed=4)
    with pytest.raises(DataError, match=r"line 1: rolled out with another model or other options"):
        run(tmp_path, sampled, solutions, other)
    with pytest.raises(ConfigError, match=r"critical\.seed: 3 -> 4"):
        run(whole.parents[1], sampled, solutions, other)


def test_another_rule_without_replacement_and_fewer_solutions(tmp_path, sampled, solutions):
    config = dataclasses.replace(
        CONFIG, num_solutions=2, rule=CriticalRule.FIRST_DROP, alpha=1e-9, replacement=False
    )
    folder = run(tmp_path, sampled, [solutions[2], solutions[2], *solutions], config)
    rows = json_lines(folder / "solutions.jsonl")
    assert [row["problem_id"] for row in rows] == [
        one.problem_id for one in (solutions[2], solutions[0])
    ]
    assert [row["critical"] for row in rows] == [None, None]
    assert not (folder / "pass_at_k.png").exists()
    assert "Pass@k" not in (folder / "critical.md").read_text()


def test_the_end_of_a_sequence_is_not_critical(tmp_path, sampled, solutions):
    """Of a solution that says nothing, only the prompt is rolled out."""
    start = solutions[0].response_start
    ids = (*solutions[0].token_ids[:start], EOS)
    silent = dataclasses.replace(solutions[0], token_ids=ids, response="")
    config = dataclasses.replace(CONFIG, num_rollouts=2, max_new_tokens=3)
    folder = run(tmp_path, sampled, [silent], config)
    (row,) = json_lines(folder / "solutions.jsonl")
    assert (row["num_tokens"], row["critical"]) == (1, None)
    assert row["successes"] == [2 * is_right("")]
    assert row["read_tokens"] == start
    assert critical_index(next(iter(read_token_values(folder / "critical.jsonl").values()))) is None


def test_the_usual_judge_is_asked(tmp_path, sampled, solutions, monkeypatch):
    from reasoning_jax.stages.judge import Judge

    monkeypatch.setattr(critical, "Judge", Judge)
    config = dataclasses.replace(CONFIG, num_rollouts=2, num_solutions=1, max_new_tokens=3)
    folder = run(tmp_path, sampled, solutions[2:], config)
    assert not FakeJudge.asked
    assert len(json_lines(folder / "rollouts.jsonl")) == len(RESPONSES[2]) + 1 + 1


def test_solutions_that_cannot_be_rolled_out_are_named(tmp_path, sampled, solutions):
    one = solutions[0]
    for changes, message in (
        (
            {"is_correct": True},
            r"solution \('.*', 5\) is right; critical tokens are those of wrong",
        ),
        ({"is_correct": None}, r"solution \('.*', 5\) is not graded"),
        ({"tokenizer": "t"}, r"tokens of solution \('.*', 5\) are of another tokenizer"),
        ({"problem_id": "x"}, r"solution \('x', 5\) solves no problem of the 5 that are loaded"),
        ({"token_ids": one.token_ids[: one.response_start]}, "there is no wrong solution with a"),
    ):
        with pytest.raises(DataError, match=message):
            run(tmp_path, sampled, [dataclasses.replace(one, **changes)])
