"""The packaged SmolLM2's tokenizer and chat template; skipped where its file cannot be had."""

import pytest

from core_jax.data.fetch import cache_folder
from reasoning_jax.text.chat import Message
from reasoning_jax.text.joint import encode_pair, encode_prompt
from reasoning_jax.text.load import load_chat, load_tokenizer
from reasoning_jax.weights.packaged import MEMBER, SMOLLM2, smollm2_gguf

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def path():
    names = (SMOLLM2.filename, MEMBER.rpartition("/")[2])
    if not any((cache_folder() / name).exists() for name in names):
        pytest.skip(f"'{names[0]}' is not in the data cache; `smollm2_gguf()` fetches its 93 MB")
    return smollm2_gguf()


@pytest.fixture(scope="module")
def tokenizer(path):
    return load_tokenizer(path)


def test_she_shares_a_token_with_the_space_before_it(tokenizer):
    joint = encode_pair(tokenizer, "Answer: ", "She", add_eos=False)
    pieces = [tokenizer.decode([token_id]) for token_id in joint.token_ids]
    assert (pieces, joint.response_start) == (["Answer", ":", " She"], 2)


def test_every_digit_is_a_token(tokenizer):
    pieces = [tokenizer.decode([token_id]) for token_id in tokenizer.encode("x12345")]
    assert pieces == ["x", *"12345"]


def test_a_chat_opens_and_closes_turns(path, tokenizer):
    """Ids 1 and 2 open and close a turn, and 2 ends the model's: three are opened here."""
    template = load_chat(path)
    assert template is not None
    question = Message(role="user", content="6 * 7?")
    text = template.render([question], add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\n6 * 7?<|im_end|>\n<|im_start|>assistant\n")
    ids = encode_prompt(tokenizer, text, special=True)
    assert (ids.count(1), ids.count(2)) == (3, 2)
    assert tokenizer.decode(ids, keep_special=True) == text
    assert (tokenizer.eos_ids[0], tokenizer.policy.add_bos) == (2, False)
