"""Prompts: the papers' forms in our own words, right in every step, open where a model goes on."""

import os
import pathlib
import re

import pytest

from core_jax.errors import ConfigError
from reasoning_jax.answers.extraction import extract
from reasoning_jax.data.builders.problem_sets import read_problems
from reasoning_jax.data.leakage import LeakageConfig, OverlapMeasure, find_leakage
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.prompts import PromptConfig, PromptStyle, render_prompt, stop_strings
from reasoning_jax.data.shots import LATEX_PROBLEMS, WORD_PROBLEMS
from reasoning_jax.text.chat import ChatTemplate

PROBLEM = Problem(problem_id="p", task="own", question="What is 2 + 3?", answer="5")
TEMPLATE = ChatTemplate(
    source=(
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
    bos_token="<s>",
)


def test_plain():
    prompt = render_prompt(PROBLEM, PromptConfig(style=PromptStyle.PLAIN), None)
    assert prompt.text == "Question: What is 2 + 3?\nAnswer:" and not prompt.special


@pytest.mark.parametrize(
    ("style", "shots", "asks", "answers"),
    [
        (PromptStyle.WORD_SHOTS, WORD_PROBLEMS, "Question:", "Answer:"),
        (PromptStyle.LATEX_SHOTS, LATEX_PROBLEMS, "Problem:", "Solution:"),
    ],
)
def test_shots_come_first_and_the_prompt_ends_without_a_space(style, shots, asks, answers):
    """Blocks parted by an empty line, so that a stop string can only begin a next block."""
    prompt = render_prompt(PROBLEM, PromptConfig(style=style), None)
    blocks = prompt.text.split("\n\n")
    assert len(blocks) == len(shots) + 1
    assert blocks[-1] == f"{asks} {PROBLEM.question}\n{answers}"
    for block, (question, solution) in zip(blocks, shots, strict=False):
        assert block == f"{asks} {question}\n{answers} {solution}"
    (stop,) = stop_strings(style)
    assert prompt.text.count(stop) == len(shots)
    assert not prompt.special and prompt.text == prompt.text.strip()


def test_chat_has_the_turns_and_opens_the_assistants():
    config = PromptConfig(instruction="Box the result.", system="Be brief.")
    prompt = render_prompt(PROBLEM, config, TEMPLATE)
    expected = "<s><system>Be brief.</s><user>What is 2 + 3?\nBox the result.</s><assistant>"
    assert prompt.text == expected and prompt.special
    bare = render_prompt(PROBLEM, PromptConfig(), TEMPLATE).text
    assert bare == "<s><user>What is 2 + 3?</s><assistant>"
    assert stop_strings(PromptStyle.CHAT) == ()


def test_a_chat_needs_a_template():
    with pytest.raises(ConfigError, match=r"no chat template.*set it to plain, word_shots"):
        render_prompt(PROBLEM, PromptConfig(), None)


@pytest.mark.parametrize("name", ["instruction", "system"])
def test_what_only_a_chat_has_is_refused_elsewhere(name):
    with pytest.raises(ConfigError, match=rf"prompt.{name} is set, but prompt.style is plain"):
        PromptConfig(**{"style": PromptStyle.PLAIN, name: "x"})


def test_numbers_of_shots_and_their_endings():
    """8 and 4 as in the cDPO paper; each answer is found by the rule of its form."""
    assert (len(WORD_PROBLEMS), len(LATEX_PROBLEMS)) == (8, 4)
    for question, solution in WORD_PROBLEMS:
        assert re.search(r" The answer is -?\d+\.$", solution), question
        assert extract(solution).method == "answer_is"
    found = [extract(solution) for _, solution in LATEX_PROBLEMS]
    assert {one.method for one in found} == {"boxed"}
    assert [one.answer for one in found] == ["11", r"\frac{1}{12}", r"3\sqrt{2}", "12"]


def test_answers_of_the_word_problems():
    """Computed here from the questions' numbers."""
    expected = [
        6 * 8 - 11,
        5 * 14 + 2 * 25,
        -(-50 // 9),
        (40 - 3 * 4) / 2,
        (90 - 90 / 3) / 12,
        36 - 36 / 4 - 2 * 36 / 4,
        80 * (1 - 0.15),
        (41 - 2 * 3 - 5) / 2,
    ]
    assert [float(extract(solution).answer) for _, solution in WORD_PROBLEMS] == expected


def test_every_written_step_is_right():
    """Each "a op b op c = d" in the word problems' solutions."""
    step = re.compile(r"((?:[\d.]+ [-+*/] )+[\d.]*\d) = ([\d.]*\d)")
    steps = [found for _, solution in WORD_PROBLEMS for found in step.findall(solution)]
    assert len(steps) >= 16
    for left, right in steps:
        tokens = left.split()
        value = float(tokens[0])
        signs = set(tokens[1::2])
        assert len(signs) == 1, left  # one kind of sign: read from left to right
        for sign, number in zip(tokens[1::2], map(float, tokens[2::2]), strict=True):
            value = {
                "+": value + number,
                "-": value - number,
                "*": value * number,
                "/": value / number,
            }[sign]
        assert value == float(right), left


@pytest.mark.real_data
def test_no_shot_is_of_a_real_set():
    """Less than a fifth of the runs of six words of any shot stands in any one real text."""
    root = pathlib.Path(os.environ.get("ALIGNAX_REAL_DATA", "/nowhere"))
    if not (root / "math500").is_dir():
        pytest.skip("ALIGNAX_REAL_DATA is not set to a folder that holds 'math500'")
    ours = [
        Problem(problem_id=f"{kind}{index}", task="shots", question=text, answer="1")
        for kind, part in (("question", 0), ("solution", 1))
        for index, text in enumerate(shot[part] for shot in (*WORD_PROBLEMS, *LATEX_PROBLEMS))
    ]
    sets = [
        one
        for name, file in (("gsm8k", "gsm8k/{}.jsonl"), ("math", "math/{}.parquet"))
        for split in ("train", "test")
        for one in read_problems(name, split, root / file.format(split))
    ]
    texts = [
        *sets,
        *(
            Problem(
                problem_id=f"s-{one.problem_id}", task="s", question=one.solution or "", answer="1"
            )
            for one in sets
        ),
    ]
    config = LeakageConfig(shingle_words=6, measure=OverlapMeasure.CONTAINMENT, threshold=0.2)
    pairs = find_leakage(texts, ours, config).pairs
    assert [(pair.test.problem_id, pair.train.question, pair.overlap) for pair in pairs] == []
