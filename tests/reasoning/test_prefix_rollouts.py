"""Units of rolling out: what is asked of the engine, what is judged, what is drawn, the file."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import DataError
from reasoning_jax.align.prefix_rollouts import (
    RememberedVerdicts,
    Roller,
    Unit,
    draw_key,
    draw_others,
    prefix_units,
    roll_out,
)
from reasoning_jax.align.rollout_file import Rollouts, RolloutWriter
from reasoning_jax.data.trajectories import Trajectory
from reasoning_jax.sampling.engine import Completion

EOS = 0


def decode(token_ids):
    return "".join(chr(token) for token in token_ids)


def solution(response, number=0):
    """A prompt of three tokens and a response."""
    return Trajectory(
        problem_id=f"p{number}",
        sample=2,
        task="own",
        seed=0,
        prompt="q: ",
        response=response.rstrip(chr(EOS)),
        token_ids=tuple(map(ord, f"q: {response}")),
        response_start=3,
        finish="stop",
        answer=None,
        is_correct=False,
        official_correct=False,
        model="m",
        tokenizer="t",
    )


class Engine:
    """Says the same of every request, and keeps what it was asked."""

    def __init__(self, says="."):
        self.says, self.asked = says, []

    def __call__(self, requests):
        self.asked.append(list(requests))
        for request in reversed(requests):
            ids = tuple(map(ord, self.says))
            yield Completion(request=request, token_ids=ids, text=self.says, finish="stop")


def roller(engine, judge=lambda answered: [True] * len(answered), **changes):
    made = Roller(
        sample=engine,
        decode=decode,
        judge=judge,
        eos_ids=(EOS,),
        stop=("\n\nQ",),
        max_positions=101,
        num_rollouts=5,
        identity="i",
    )
    return dataclasses.replace(made, **changes)


def done(units, made):
    return {one.key: one for batch in roll_out(units, made) for one in batch}


def test_prefixes_are_asked_for_from_the_shortest_and_counted():
    """Prefixes of 3 to 5 and 3 to 4 tokens; all requests of one stand together."""
    engine = Engine("ab")
    units = [unit for one in (solution("xy"), solution("z", 1)) for unit in prefix_units(one)]
    found = done(units, roller(engine))
    lengths = [len(request.prompt) for request in engine.asked[0]]
    assert lengths == sorted(lengths) and len(lengths) == 5 * 5
    names = [request.problem_id for request in engine.asked[0]]
    assert len(set(names)) == 5 and names == [
        name for name in dict.fromkeys(names) for _ in "12345"
    ]
    assert [request.sample for request in engine.asked[0]] == list(range(5)) * 5
    assert set(found) == {unit.key for unit in units}
    for key, one in found.items():
        assert (one.successes, one.sampled_tokens, one.read_tokens) == (5, 10, 3 + key[2])


def test_what_is_judged_is_the_whole_response_up_to_a_stop_string():
    """The stop string begins in the prefix, where the engine does not look."""
    asked = []

    def judge(answered):
        asked.extend(answered)
        return [text == "six" for _, text in answered]

    unit = Unit(solution=solution("six\nseven"), length=4)
    found = done([unit], roller(Engine(f"\nQ: more{chr(EOS)}"), judge))
    assert asked == [("p0", "six")]
    assert found[unit.key].successes == 5


def test_a_prefix_after_which_nothing_can_follow_is_judged_as_it_is():
    engine, asked = Engine(), []

    def judge(answered):
        asked.extend(answered)
        return [False] * len(answered)

    ended = Unit(solution=solution(f"xy{chr(EOS)}"), length=3)
    full = Unit(solution=solution("xyz", 1), length=3)
    found = done([ended, full], roller(engine, judge, max_positions=6))
    assert not engine.asked and asked == [("p0", "xy"), ("p1", "xyz")]
    assert {(one.successes, one.sampled_tokens, one.read_tokens) for one in found.values()} == {
        (0, 0, 0)
    }


def test_forced_tokens_begin_the_completions():
    """Draws a, b, a, end, a: 'xa' and 'xb' are read once each, 'x' alone is judged once."""
    engine, asked = Engine("!"), []

    def judge(answered):
        asked.extend(answered)
        return [text in ("xa!", "x") for _, text in answered]

    unit = Unit(
        solution=solution("xyz"), length=1, forced=(ord("a"), ord("b"), ord("a"), EOS, ord("a"))
    )
    found = done([unit], roller(engine, judge))[unit.key]
    assert sorted((request.prompt[-1], request.sample) for request in engine.asked[0]) == [
        (ord("a"), 0),
        (ord("a"), 2),
        (ord("a"), 4),
        (ord("b"), 1),
    ]
    assert sorted(asked) == [("p0", "x"), ("p0", "xa!"), ("p0", "xb!")]
    assert (found.successes, found.sampled_tokens, found.read_tokens) == (4, 4, 5 + 5)
    assert len({request.problem_id for request in engine.asked[0]}) == 2


def test_many_units_come_in_batches():
    units = [unit for number in range(31) for unit in prefix_units(solution("x" * 10, number))]
    engine = Engine()
    batches = list(roll_out(units, roller(engine, num_rollouts=1)))
    assert len(engine.asked) == 2  # 341 units, 256 at a time
    assert sum(map(len, batches)) == 341 and max(map(len, batches)) == 8


def test_equal_responses_are_judged_once():
    asked = []

    def judge(answered):
        asked.append(list(answered))
        return [text == "7" for _, text in answered]

    verdicts = RememberedVerdicts(judge)
    assert verdicts([("p", "7"), ("p", "8"), ("p", "7"), ("q", "7")]) == [True, False, True, True]
    assert verdicts([("q", "8"), ("p", "8")]) == [False, False]
    assert verdicts([("p", "7")]) == [True]
    assert asked == [[("p", "7"), ("p", "8"), ("q", "7")], [("q", "8")]]
    assert verdicts.num_judged == 4


def test_draws_follow_the_distribution_without_the_token():
    """q(v) ~ p(v)^(1/t) for the others; 4001 draws, five standard errors."""
    logits = jax.random.normal(jax.random.key(1), (11,)) * 2
    token, temperature, num_draws = int(jnp.argmax(logits)), 0.7, 4001
    options = {"num_draws": num_draws, "temperature": temperature}
    drawn = draw_others(logits, jnp.int32(token), jax.random.key(2), top_p=1.0, **options)
    weights = np.exp(np.asarray(logits) / temperature)
    weights[token] = 0
    expected = weights / weights.sum()
    found = np.bincount(np.asarray(drawn), minlength=11) / num_draws
    assert found[token] == 0
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected / num_draws)).all()


def test_the_token_is_taken_out_before_the_distribution_is_cut():
    """p = 0.9, 0.06, 0.03, 0.01: of the others, 0.6 and 0.3 together reach 0.8, 0.6 alone not."""
    logits = jnp.log(jnp.asarray([0.9, 0.06, 0.03, 0.01]))
    options = {"num_draws": 200, "temperature": 1.0, "top_p": 0.8}
    drawn = draw_others(logits, jnp.int32(0), jax.random.key(0), **options)
    assert set(np.asarray(drawn).tolist()) == {1, 2}


def test_draws_depend_on_seed_and_unit_alone():
    one, other = (Unit(solution=solution("xyz"), length=length) for length in (1, 2))
    keys = [draw_key(3, one), draw_key(3, other), draw_key(4, one)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3
    again = draw_key(3, Unit(solution=solution("xyz"), length=1))
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(keys[0]))


def unit_row(**changes):
    row = Rollouts(
        problem_id="p",
        sample=0,
        length=3,
        forced=(),
        num_rollouts=7,
        successes=2,
        sampled_tokens=41,
        read_tokens=11,
        identity="i",
    )
    return dataclasses.replace(row, **changes)


def test_a_file_of_units_comes_back_and_loses_a_torn_line(tmp_path, caplog):
    path = tmp_path / "rollouts.jsonl"
    rows = [unit_row(), unit_row(forced=(3, 5)), unit_row(length=4)]
    with RolloutWriter(path, identity="i") as writer:
        writer.write(rows[:2])
    with path.open("a") as file:
        file.write('{"problem_id"')
    with caplog.at_level(logging.WARNING), RolloutWriter(path, identity="i") as writer:
        assert writer.done == {one.key: one for one in rows[:2]}
        writer.write(rows[2:])
    assert "was cut off; it is removed and rolled out again" in caplog.text
    with RolloutWriter(path, identity="i") as writer:
        assert list(writer.done.values()) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"successes": 8}, r"line 2: 'successes' is 8 of 7 completions"),
        ({"length": 3.5}, r"line 2: 'length' is 3\.5; expected int"),
        ({"length": True}, r"line 2: 'length' is True; expected int"),
        ({"forced": None}, r"line 2: 'forced' is None; expected list"),
        ({"more": 1}, r"line 2: expected a JSON object with the fields problem_id, sample"),
        ({"identity": "j"}, r"line 2: rolled out with another model or other options"),
        ({"length": 3}, r"line 2: the unit \('p', 0, 3, False\) stands there twice"),
    ],
)
def test_bad_lines_are_named(tmp_path, changes, message):
    path = tmp_path / "rollouts.jsonl"
    rows = [dataclasses.asdict(unit_row()), dataclasses.asdict(unit_row(length=4)) | changes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=message):
        RolloutWriter(path, identity="i")
