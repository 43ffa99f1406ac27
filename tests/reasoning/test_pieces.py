"""Text per token: together the response, whatever the tokenizer."""

import random

import pytest

from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.text.load import load_tokenizer
from reasoning_jax.text.pieces import text_pieces, token_at
from reasoning_jax.text.sentencepiece_tokenizer import train_sentencepiece
from tests.reasoning.test_tokenizers import CORPUS, merged_bpe, write_folder, write_gguf

TEXTS = (
    "",
    " ",
    "   ",
    "2 + 3 = 5.\n\nSo  the answer is 5",
    " na\u00efve \u4f60\u597d\U0001f600\U0001f600 f\u00fcnf",
    "\ufffd stands here \ufffd\ufffd\u4f60",
    "</script> <b>&amp;</b>\t\r\n",
)


@pytest.fixture(scope="module")
def tokenizers_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {
        "bytes": ByteTokenizer(),
        "json": load_tokenizer(write_folder(folder)),
        "gguf": load_tokenizer(write_gguf(folder / "model.gguf", pre="gpt-2", inner=merged_bpe())),
        "sentencepiece": train_sentencepiece(CORPUS, folder / "t.model", vocab_size=307),
    }


KINDS = ("bytes", "json", "gguf", "sentencepiece")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_together_are_the_text(tokenizers_of, kind, text):
    tokenizer = tokenizers_of[kind]
    ids = [*tokenizer.encode(text), tokenizer.eos_ids[0]]
    pieces = text_pieces(tokenizer.decode, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1] == ""  # the end of the sequence says nothing
    if kind != "sentencepiece":  # others are taught to keep every text
        assert "".join(pieces) == text


@pytest.mark.parametrize("kind", KINDS)
def test_any_ids_have_pieces(tokenizers_of, kind):
    """Ids that no text has: characters that are never completed, specials in the middle."""
    tokenizer = tokenizers_of[kind]
    rng = random.Random(0)
    for _ in range(53):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(31)]
        pieces = text_pieces(tokenizer.decode, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_has_its_own_text(tokenizers_of, kind):
    """Digits are single tokens everywhere but in the merged vocabulary: piece t is digit t."""
    tokenizer = tokenizers_of[kind]
    ids = tokenizer.encode("7 12 = 5")
    pieces = text_pieces(tokenizer.decode, ids)
    alone = [tokenizer.decode([one]) for one in ids]
    assert [piece.strip() for piece in pieces] == [piece.strip() for piece in alone]


def test_a_character_is_where_it_is_completed():
    """Bytes of one letter: all but the last of them say nothing."""
    text = "a\u00fc\u4f60\U0001f600b"
    pieces = text_pieces(ByteTokenizer().decode, list(text.encode()))
    expected = [part for char in text for part in [""] * (len(char.encode()) - 1) + [char]]
    assert list(pieces) == expected


def test_a_beginning_that_is_treated_in_its_own_way():
    """A tokenizer that drops all spaces with which a text begins, as some SentencePiece models do.

    A window that begins with spaces loses them, the whole text does not.
    """
    letters = ["x", " ", "  ", "5", " ", "y"]

    def decode(ids):
        return "".join(letters[one] for one in ids).lstrip(" ")

    pieces = text_pieces(decode, range(6))
    assert "".join(pieces) == "x   5 y"
    assert pieces[3:] == ("5", " ", "y")


def test_the_work_grows_with_the_length_alone():
    """A tokenizer that drops the space at its beginning: at most two windows of 3 tokens each."""
    decoded = []

    def decode(ids):
        decoded.append(len(ids))
        return "".join(" word" for _ in ids).removeprefix(" ")

    count = 1009
    pieces = text_pieces(decode, range(count))
    assert pieces == ("word", *(" word",) * (count - 1))
    assert sum(decoded) <= count + 2 * 3 * count


def test_token_at_is_the_token_of_a_character():
    pieces = ("12", "", " =", "\n", "5", "")
    assert [token_at(pieces, at) for at in range(7)] == [0, 0, 2, 2, 3, 4, None]


@pytest.mark.parametrize(("place", "token"), [(0, 0), (2, 0), (3, 1), (4, 3), (6, 3), (7, 4)])
def test_a_character_belongs_to_the_token_that_writes_it(place, token):
    """One token is empty (the end of a sequence says nothing): it writes no character."""
    words = ["six", "+", "", "one", "7"]
    pieces = text_pieces(lambda some: "".join(words[one] for one in some), range(5))
    assert token_at(pieces, place) == token
