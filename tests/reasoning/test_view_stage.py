"""From the files of a made-up contrastive run to what its page shows, and every error."""

import dataclasses
import json
import math
import shutil

import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.run_folder import run_stage, stage_folder
from reasoning_jax.align.answer_sets import SetsConfig
from reasoning_jax.answers.grader import GraderConfig
from reasoning_jax.data.arithmetic import make_step_problems
from reasoning_jax.data.load import ProblemsConfig
from reasoning_jax.data.own_problems import ProblemColumns
from reasoning_jax.data.token_values import TokenValues, TokenValuesWriter
from reasoning_jax.data.trajectories import TrajectoryWriter
from reasoning_jax.stages import rollout, sets, view
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.weights.model_source import ModelConfig
from tests.reasoning.alignment_cases import solution

PROMPT = "2+3=\n"
TEXTS = {True: "\u00fc: 2+3=5\nThe answer is 5.", False: "\u00fc: 2+3=7\nThe answer is 7."}
TOKENIZER = ByteTokenizer()
CRITICAL = len("\u00fc: 2+3=".encode())
"""The wrong digit, a byte."""


def trajectory(problem, sample, is_correct):
    prompt, response = TOKENIZER.encode(PROMPT), TOKENIZER.encode(TEXTS[is_correct])
    return solution(
        problem,
        sample,
        "5" if is_correct else "7",
        is_correct,
        prompt=PROMPT,
        response=TEXTS[is_correct],
        token_ids=(257, *prompt, *response, 258),
        response_start=1 + len(prompt),
        tokenizer=TOKENIZER.fingerprint,
        finish="stop" if is_correct else "length",
    )


ROWS = [
    trajectory(problem, sample, bool(sample % 2)) for problem in ("p2", "p1") for sample in range(4)
]


def values_of(one, **changes):
    """Scores as formulas of the place t: log s = -t/7, p+ = -t/11, p- = -t/13."""
    count = len(one.token_ids) - one.response_start
    values = {"log_score@1.0": -1 / 7, "log_score@0.5": -2 / 7, "positive": -1 / 11}
    values["negative"] = -1 / 13
    return TokenValues(
        problem_id=one.problem_id,
        sample=one.sample,
        model="m",
        token_ids=changes.get("token_ids", one.token_ids),
        response_start=one.response_start,
        values={name: tuple(t * slope for t in range(count)) for name, slope in values.items()},
    )


def rollouts_of(one, critical):
    count = len(one.token_ids) - one.response_start
    success = tuple(0.5 if t < CRITICAL else 0.0 for t in range(count))
    marks = tuple(float(t == critical) for t in range(count))
    return dataclasses.replace(values_of(one), values={"success": success, "critical": marks})


def write_values(folder, where, rows):
    stage, name = where

    def work(path):
        with TokenValuesWriter(path / name, model="m") as writer:
            writer.write(rows)
        return {}

    assert run_stage(folder, stage, {}, work)


def make_run(root, *, rows=ROWS, scores=True, rollouts=True, task="own"):
    """A run folder with everything, or without rollouts, scores, or those of right solutions."""
    root.mkdir()
    problems = [
        {"id": name, "question": f"{name}: what is 2 + 3?", "answer": "5"} for name in ("p1", "p2")
    ]
    source = root / "problems.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in problems))
    columns = ProblemColumns(problem_id="id")
    asked = ProblemsConfig(task=task, path=str(source), columns=columns, limit=2)
    parts = {"model": ModelConfig(source="fresh:tiny"), "problems": asked}

    def work(folder):
        with TrajectoryWriter(folder / rollout.TRAJECTORIES) as writer:
            writer.write(list(rows))
        return {}

    assert run_stage(root / view.SAMPLING, rollout.NAME, parts, work)
    assert sets.run(
        str(root / view.CONTRAST),
        rollout_dir=str(root / view.SAMPLING),
        grader=GraderConfig(num_workers=1),
        config=SetsConfig(pairs_per_problem=2, keep_cut_off=True),
    )
    if scores:
        scored = [values_of(one) for one in rows if scores is True or not one.is_correct]
        write_values(root / view.CONTRAST, view.SCORES, scored)
    if rollouts:
        wrong = [one for one in rows if not one.is_correct]
        found = [rollouts_of(one, CRITICAL if one.problem_id == "p2" else None) for one in wrong]
        write_values(root / view.ROLLED_OUT, view.CRITICAL, found)
    return view.ViewConfig(run=str(root))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "seed0")


def test_problems_stand_in_the_order_of_their_pairs_wrong_solutions_first(run):
    data = view.collect(run)
    pairs = sets.finished_pairs(f"{run.run}/{view.CONTRAST}")
    assert [one.problem_id for one in data.problems] == list(
        dict.fromkeys(pair.problem_id for pair in pairs)
    )
    for problem in data.problems:
        assert problem.question == f"{problem.problem_id}: what is 2 + 3?"
        assert problem.gold == "5"
        verdicts = [one.is_correct for one in problem.solutions]
        assert verdicts == sorted(verdicts) and set(verdicts) == {False, True}
        shown = {(problem.problem_id, one.sample) for one in problem.solutions}
        mine = [pair for pair in pairs if pair.problem_id == problem.problem_id]
        assert shown == {side.key for pair in mine for side in (pair.chosen, pair.rejected)}
        assert len(problem.solutions) == len(shown)


def test_tokens_and_numbers_are_those_of_the_response(run):
    for problem in view.collect(run).problems:
        for one in problem.solutions:
            assert "".join(one.pieces) == TEXTS[one.is_correct]
            assert one.pieces[0] == one.pieces[-1] == ""  # half a letter; the end of sequence
            count = len(TEXTS[one.is_correct].encode()) + 1
            assert len(one.pieces) == count
            assert one.log_scores == pytest.approx([-t / 7 for t in range(count)])
            assert one.positive == pytest.approx([-t / 11 for t in range(count)])
            assert one.negative == pytest.approx([-t / 13 for t in range(count)])
            assert one.is_cut_off is not one.is_correct
            assert one.answer == ("5" if one.is_correct else "7")


def test_rollouts_belong_to_the_solutions_that_were_rolled_out(run):
    """Wrong ones: those of p2 have a critical token, those of p1 have none. Right ones were not."""
    for problem in view.collect(run).problems:
        for one in problem.solutions:
            if one.is_correct:
                assert one.success is one.critical is None
                continue
            assert one.success[CRITICAL - 1 : CRITICAL + 1] == (0.5, 0.0)
            assert one.pieces[CRITICAL] == "7"
            assert one.critical == (CRITICAL if problem.problem_id == "p2" else None)


def test_another_beta_is_another_score(run):
    data = view.collect(dataclasses.replace(run, beta=0.5, limit=1, top_share=0.3))
    assert len(data.problems) == 1 and data.top_share == 0.3
    assert data.problems[0].solutions[0].log_scores[7] == pytest.approx(-2.0)
    assert data.facts["Beta"] == "0.5" and data.facts["Task"] == "own, test"
    with pytest.raises(DataError, match=r"no 'log_score@2\.0'"):
        view.collect(dataclasses.replace(run, beta=2.0))


def test_a_page_is_written_where_it_is_wanted(run, tmp_path):
    path = view.run_view(run)
    assert path.as_posix() == f"{run.run}/view/index.html"
    other = view.run_view(dataclasses.replace(run, run_dir=str(tmp_path / "a" / "b")))
    assert other.read_bytes() == path.read_bytes()


def test_scores_and_rollouts_may_be_absent_and_that_is_told(tmp_path, caplog):
    run = make_run(tmp_path / "seed0", scores=False, rollouts=False)
    with caplog.at_level("INFO"):
        data = view.collect(run)
    assert "scores.jsonl': the page does without" in caplog.text
    assert "critical.jsonl': the page does without" in caplog.text
    for one in data.problems[0].solutions:
        assert one.log_scores is one.positive is one.success is one.critical is None


def test_one_side_alone_may_be_scored(tmp_path, caplog):
    with caplog.at_level("INFO"):
        data = view.collect(make_run(tmp_path / "seed0", scores="of wrong ones"))
    made = [one for problem in data.problems for one in problem.solutions]
    assert all((one.log_scores is None) == one.is_correct for one in made)
    count = sum(one.is_correct for one in made)
    assert f"{count} of {len(made)} solutions have no contrastive score" in caplog.text


def test_files_that_do_not_belong_together_are_refused(run, tmp_path):
    root = tmp_path / "seed0"

    def fresh():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(run.run, root)
        return dataclasses.replace(run, run=str(root))

    broken = fresh()
    path = stage_folder(root / view.CONTRAST, "score") / "scores.jsonl"
    path.write_text(path.read_text().replace('"token_ids": [257,', '"token_ids": [258,'))
    with pytest.raises(DataError, match="belong to other tokens: token 0 is 258"):
        view.collect(broken)

    broken = fresh()
    (path.parent / "done.json").unlink()
    with pytest.raises(DataError, match=r"stage 'score' of run .* is not done"):
        view.collect(broken)

    broken = fresh()
    path = sets.file_path(str(root / view.CONTRAST), sets.PAIRS)
    path.write_text(path.read_text().replace(TOKENIZER.fingerprint, TOKENIZER.fingerprint[::-1]))
    with pytest.raises(DataError, match="written by another tokenizer"):
        view.collect(broken)

    broken = fresh()
    path.write_text(path.read_text().replace('"p1"', '"p11"'))
    with pytest.raises(DataError, match="solve 'p11', which is no problem of"):
        view.collect(broken)

    with pytest.raises(DataError, match=r"stage 'rollout' of run .* is not done"):
        view.collect(dataclasses.replace(run, run=str(tmp_path / "nothing")))


def step_run(root, change):
    """A run on written sums whose wrong solution is the written one, changed."""
    problem = make_step_problems("steps", "test", num_problems=2)[0]
    texts = (change(problem.solution), problem.solution)
    rows = [
        dataclasses.replace(
            trajectory(problem.problem_id, sample, sample == 1),
            response=text,
            token_ids=(257, *TOKENIZER.encode(f"x{text}"), 258),
            response_start=2,
        )
        for sample, text in enumerate(texts)
    ]
    run = make_run(root, rows=rows, scores=False, rollouts=False, task="steps")
    return problem.solution, view.collect(run).problems[0].solutions


def test_first_errors_are_marked_where_the_task_tells_them(run, tmp_path):
    """A changed digit; a solution that ends too early errs by its end. Other tasks tell none."""

    def slip(text):
        at = text.index("=") + 1
        return text[:at] + ("8" if text[at] == "7" else "7") + text[at + 1 :]

    written, (wrong, right) = step_run(tmp_path / "a", slip)
    assert wrong.first_error == written.index("=") + 1
    assert right.first_error is None
    written, (wrong, _) = step_run(tmp_path / "b", lambda text: text[: text.rindex(" ")])
    assert wrong.first_error == written.rindex(" ") == len(wrong.pieces) - 1
    assert wrong.pieces[-1] == ""
    others = [one for problem in view.collect(run).problems for one in problem.solutions]
    assert [one.first_error for one in others] == [None] * len(others)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"limit": -1}, "limit is -1"), ({"top_share": math.nan}, "top_share is nan")],
)
def test_configs_are_checked(change, message):
    with pytest.raises(ConfigError, match=message):
        view.ViewConfig(**change)
