"""Examples to fine-tune on: what is kept, what is left out, and that all of it is counted."""

import dataclasses

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.sft_examples import (
    TrajectoryChoice,
    Verdicts,
    examples_from_problems,
    examples_from_trajectories,
)


@dataclasses.dataclass(frozen=True)
class Tokens:
    token_ids: list[int]
    response_start: int


@dataclasses.dataclass(frozen=True)
class WrittenProblem:
    problem_id: str
    question: str
    solution: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampled:
    problem_id: str = "p"
    prompt: str = "Q"
    response: str
    is_correct: bool | None = True
    finish: str = "stop"


def encode(prompt, response):
    """Bytes after a BOS of 256, with an EOS of 257."""
    if "?!" in response:
        raise DataError("'?!' is no text")
    return Tokens([256, *prompt.encode(), *response.encode(), 257], 1 + len(prompt.encode()))


SAMPLES = (
    Sampled(response="a"),
    Sampled(response="b", is_correct=False),
    Sampled(response="c", is_correct=None),
    Sampled(response="d", finish="length"),
    Sampled(response=" \n"),
    Sampled(response="a"),
    Sampled(response="a", problem_id="q"),
    Sampled(response="e"),
)


def texts(result):
    return [bytes(e.token_ids[e.response_start : -1]).decode() for e in result.examples]


def test_problems_become_examples():
    problems = [
        WrittenProblem("p", "one?", "1"),
        WrittenProblem("q", "two?", None),
        WrittenProblem("r", "three?", "  "),
    ]
    result = examples_from_problems(problems, prompt_of=lambda p: p.question, encode=encode)
    assert [(e.token_ids, e.response_start) for e in result.examples] == [
        ([256, *b"one?1", 257], 1 + len("one?"))
    ]
    assert (result.num_read, result.num_problems) == (3, 1)
    assert dict(result.dropped) == {"without solution": 2}
    other = examples_from_problems(
        problems, prompt_of=lambda p: p.question, response_of=lambda p: "so " + p.problem_id,
        encode=encode,
    )  # fmt: skip
    assert texts(other) == ["so p"]


@pytest.mark.parametrize(
    ("choice", "kept", "dropped"),
    [
        (
            {},
            ["a", "a", "e"],
            {"incorrect": 1, "ungraded": 1, "cut off": 1, "empty": 1, "duplicate": 1},
        ),
        ({"verdicts": Verdicts.INCORRECT}, ["b"], {"correct": 6, "ungraded": 1}),
        (
            {"verdicts": Verdicts.ANY, "keep_cut_off": True, "keep_duplicates": True},
            ["a", "b", "c", "d", "a", "a", "e"],
            {"empty": 1},
        ),
        (
            {"max_per_problem": 1},
            ["a", "a"],
            {
                "incorrect": 1,
                "ungraded": 1,
                "cut off": 1,
                "empty": 1,
                "duplicate": 1,
                "over the limit per problem": 1,
            },
        ),
    ],
)
def test_trajectories_are_chosen_and_the_rest_counted(choice, kept, dropped):
    result = examples_from_trajectories(SAMPLES, choice=TrajectoryChoice(**choice), encode=encode)
    assert texts(result) == kept
    assert dict(result.dropped) == dropped
    assert result.num_read == len(SAMPLES) == len(kept) + sum(dropped.values())


def test_summary_tells_what_was_left_out():
    result = examples_from_trajectories(SAMPLES[:3], choice=TrajectoryChoice(), encode=encode)
    assert result.summary() == (
        "1 examples of 1 problems from 3 solutions; left out: 1 incorrect, 1 ungraded"
    )


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match=r"no example .* 1 ungraded\) in the trajectories; grade"):
        examples_from_trajectories(SAMPLES[2:3], choice=TrajectoryChoice(), encode=encode)
    with pytest.raises(DataError, match=r"1 without solution\) in the problems; give"):
        examples_from_problems(
            [WrittenProblem("p", "one?", None)], prompt_of=lambda p: p.question, encode=encode
        )


def test_errors_name_the_problem():
    with pytest.raises(DataError, match=r"problem 'p' cannot be tokenised: '\?!' is no text"):
        examples_from_trajectories(
            [Sampled(response="?!")], choice=TrajectoryChoice(), encode=encode
        )
    with pytest.raises(DataError, match="problem 'p' has 2 tokens with the response at 0"):
        examples_from_trajectories(
            SAMPLES[:1],
            choice=TrajectoryChoice(),
            encode=lambda prompt, response: Tokens([1, 2], 0),
        )
    with pytest.raises(ConfigError, match="max_per_problem is -1"):
        TrajectoryChoice(max_per_problem=-1)
