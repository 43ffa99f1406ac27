"""Trajectories put as the trained model is asked: another prompt, an end, and what is refused."""

import dataclasses

import pytest

from core_jax.errors import DataError
from reasoning_jax.align.retokenise import ended, put_anew
from reasoning_jax.data.problems import Problem
from reasoning_jax.data.prompts import PromptConfig, PromptStyle, render_prompt
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.text.chat import ChatTemplate
from reasoning_jax.text.tokenizer import TokenPolicy
from tests.reasoning.alignment_cases import solution

TOKENIZER = ByteTokenizer()
EOS = TOKENIZER.eos_ids[0]
PROBLEM = Problem(problem_id="p1", task="sums", question="3+4=?", answer="7")
PLAIN = PromptConfig(style=PromptStyle.PLAIN)
SHOTS = PromptConfig(style=PromptStyle.WORD_SHOTS)
TEMPLATE = ChatTemplate(
    source="{% for message in messages %}<bos>{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>{% endif %}"
)


def sampled(response=" 3+4=7", finish="stop", end=True, **changes):
    """As a base model is sampled: behind worked examples."""
    prompt = render_prompt(PROBLEM, SHOTS, None).text
    before = [TOKENIZER.bos_id, *prompt.encode()]
    ids = (*before, *response.encode(), *([EOS] if end else []))
    fields = {
        "prompt": prompt,
        "response": response,
        "token_ids": ids,
        "response_start": len(before),
        "finish": finish,
        "tokenizer": TOKENIZER.fingerprint,
    }
    return solution(**fields | changes)


def put(trajectory, prompt=PLAIN, problems=None, tokenizer=TOKENIZER, template=None):
    return put_anew(
        trajectory,
        problems={"p1": PROBLEM} if problems is None else problems,
        prompt=prompt,
        tokenizer=tokenizer,
        template=template,
    )


def test_a_stop_string_becomes_an_end_of_sequence():
    """The text ends where it did, and the end is learnt; one that is there is not repeated."""
    stopped = sampled(end=False)
    assert ended(stopped, TOKENIZER).token_ids == (*stopped.token_ids, EOS)
    whole = sampled()
    assert ended(whole, TOKENIZER) is whole


def test_what_was_cut_off_has_no_end():
    cut = sampled(finish="length", end=False)
    assert ended(cut, TOKENIZER) is cut
    assert put(cut).token_ids[-1] != EOS


@pytest.mark.parametrize("end", [False, True])
def test_another_prompt_and_the_same_response(end):
    """<bos>, "Question: ...", "Answer:", a space, the response, <eos>; a single one."""
    found = put(sampled(response=" 3+4=7\n", end=end))
    prompt = "Question: 3+4=?\nAnswer:"
    assert (found.prompt, found.response) == (prompt, " 3+4=7")
    assert found.token_ids == (TOKENIZER.bos_id, *f"{prompt} 3+4=7".encode(), EOS)
    assert found.response_start == 1 + len(prompt)
    kept = ("problem_id", "sample", "answer", "is_correct", "finish", "model", "tokenizer")
    assert all(getattr(found, name) == getattr(sampled(), name) for name in kept)


def test_put_as_it_was_sampled_nothing_changes():
    assert put(sampled(), prompt=SHOTS) == sampled()


def test_put_twice_is_put_once():
    once = put(sampled())
    assert put(once) == once


def test_a_chat_begins_with_the_text_itself():
    found = put(sampled(), prompt=PromptConfig(style=PromptStyle.CHAT), template=TEMPLATE)
    assert found.prompt == "<bos>3+4=?<eos><bos>" and found.response == "3+4=7"
    bos = TOKENIZER.bos_id
    assert found.token_ids == (bos, *b"3+4=?", EOS, bos, *b"3+4=7", EOS)
    assert found.response_start == 8


def test_special_tokens_written_in_a_response_are_letters():
    found = put(sampled(response=" <eos>7"))
    assert found.token_ids[found.response_start :] == (*b" <eos>7", EOS)


def test_a_problem_that_is_not_there_is_named():
    text = r"trajectory \('p1', 0\) solves a problem that is not among the 1 given"
    with pytest.raises(DataError, match=text):
        put(sampled(), problems={"p2": PROBLEM})


@pytest.mark.parametrize("function", [ended, put])
def test_tokens_of_another_tokenizer_are_refused(function):
    other = dataclasses.replace(TOKENIZER, policy=TokenPolicy(add_bos=False, add_eos=True))
    text = (
        rf"tokens of \('p1', 0\) are of tokenizer '{TOKENIZER.fingerprint}', the model's is "
        rf"'{other.fingerprint}'; use the model that sampled"
    )
    with pytest.raises(DataError, match=text):
        function(sampled(), tokenizer=other)
