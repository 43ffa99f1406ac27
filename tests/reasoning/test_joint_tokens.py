"""Prompt and response as one sequence: where the response starts."""

import random

import pytest

from core_jax.errors import DataError
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.text.joint import encode_pair, encode_prompt, first_stop
from reasoning_jax.text.load import load_tokenizer
from reasoning_jax.text.tokenizer import TokenPolicy
from tests.reasoning.test_tokenizers import every, write_folder

__all__ = ["every"]


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A tokenizer in which " answer" is one token."""
    tokenizer = load_tokenizer(write_folder(tmp_path_factory.mktemp("t")))
    assert len(tokenizer.encode(" is")) == 1
    return tokenizer


def test_bytes_meet_at_the_boundary():
    joint = encode_pair(ByteTokenizer(), "ab", "cde")
    assert joint.token_ids == [257, *b"abcde", 258]
    assert joint.response_start == 3


def test_the_policy_says_what_stands_around():
    quiet = ByteTokenizer(policy=TokenPolicy(add_bos=False, add_eos=False))
    assert encode_pair(quiet, "a", "b").token_ids == list(b"ab")
    assert encode_pair(quiet, "a", "b", add_eos=True).token_ids == [*b"ab", 258]
    assert encode_prompt(quiet, "a") == [97]
    assert encode_prompt(ByteTokenizer(), "a") == [257, 97]
    assert encode_prompt(ByteTokenizer(), "<bos>a", special=True) == [257, 97]


def test_a_token_over_the_boundary_belongs_to_the_response(merging):
    """ "it " and "is" share the token " is": the prompt keeps "it" alone."""
    joint = encode_pair(merging, "it ", "is", add_eos=False)
    assert joint.token_ids == merging.encode("it is")
    assert merging.decode(joint.token_ids[: joint.response_start]) == "it"
    assert merging.decode(joint.token_ids[joint.response_start :]) == " is"


@pytest.mark.parametrize("response", ["It is 42.", " 42", "\n42", "<|im_end|>"])
def test_a_chat_is_followed_by_the_response_as_letters(merging, response):
    prompt = "<|im_start|>user\n6 * 7<|im_end|>\n<|im_start|>assistant\n"
    joint = encode_pair(merging, prompt, response, special_prompt=True)
    alone = encode_prompt(merging, prompt, special=True)
    assert joint.token_ids[: joint.response_start] == alone[: joint.response_start]
    assert merging.decode(joint.token_ids[:-1]).endswith(f"assistant\n{response}")
    assert joint.token_ids[-1] == merging.eos_ids[0]
    assert joint.token_ids[joint.response_start :].count(merging.eos_ids[0]) == 1


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("kind", ["json", "gguf", "sentencepiece", "bytes"])
def test_where_the_response_starts(every, kind, special):
    """For any texts: the tokens before the start are the first of the prompt's own, and say only
    letters of it; all tokens say both texts; the next token is another than the prompt's, or the
    prompt has no more."""
    tokenizer = every[kind]
    generator = random.Random(11)
    alphabet = "ab is\n 01.\u00e9\U0001f600"
    for _ in range(100):
        prompt, response = ("".join(generator.choices(alphabet, k=k)) for k in (7, 5))
        joint = encode_pair(tokenizer, prompt, response, special_prompt=special, add_eos=False)
        alone = encode_prompt(tokenizer, prompt, special=special)
        start = joint.response_start
        assert tokenizer.decode(joint.token_ids) == prompt + response
        assert joint.token_ids[:start] == alone[:start]
        assert alone[start : start + 1] != joint.token_ids[start : start + 1]
        assert prompt.startswith(tokenizer.decode(joint.token_ids[:start]).rstrip("\ufffd"))


def test_a_word_of_two_texts_is_one_token(merging):
    """The issue's example, with this vocabulary's word: "Answer: " and "She" share " She"."""
    assert len(merging.encode(" sells")) == 1
    joint = encode_pair(merging, "Answer: ", "sells", add_eos=False)
    start = joint.response_start
    assert joint.token_ids[:start] == encode_prompt(merging, "Answer:")
    assert joint.token_ids[start:] == merging.encode(" sells")


def test_an_empty_response_is_refused(merging):
    with pytest.raises(DataError, match="a response without a token after the prompt"):
        encode_pair(merging, "a", "", add_eos=False)


def test_the_earliest_stop_counts():
    assert first_stop("a b c", ("c", "b")) == 2
    assert first_stop("a b c", ("d",)) is None
