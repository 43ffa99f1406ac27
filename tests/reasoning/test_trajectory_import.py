"""Other engines' files as trajectories: columns, token ids, bad rows."""

import json

import pytest

from core_jax.errors import ConfigError, DataError
from reasoning_jax.data.trajectories import TrajectoryWriter, read_trajectories
from reasoning_jax.data.trajectory_import import ImportConfig, import_trajectories, sglang, vllm
from reasoning_jax.text.byte_tokenizer import ByteTokenizer
from reasoning_jax.text.joint import encode_pair, encode_prompt
from reasoning_jax.text.load import load_tokenizer
from reasoning_jax.text.sentencepiece_tokenizer import train_sentencepiece
from tests.reasoning.test_tokenizers import CORPUS, write_folder

TOKENIZER = ByteTokenizer()
GOOD = {"problem_id": "a", "prompt": "1", "response": "2"}
BOS, EOS = 257, 258


@pytest.fixture(scope="module")
def merging(tmp_path_factory):
    """A tokenizer in which " is" is one token."""
    return load_tokenizer(write_folder(tmp_path_factory.mktemp("t")))


def import_rows(tmp_path, rows, config=None, *, tokenizer=TOKENIZER, **columns):
    path = tmp_path / "other.jsonl"
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return import_trajectories(path, config or ImportConfig(**columns), tokenizer)


def test_rows_become_trajectories(tmp_path):
    rows = [
        {"id": 7, "in": "1+1=", "out": "2", "finish_reason": "stop"},
        {"id": 7, "in": "1+1=", "out": "3", "finish_reason": "length"},
        {"id": 9, "in": "2+2=", "out": "4", "finish_reason": None},
        {"id": 9, "in": "2+2=", "out": ""},
    ]
    found = import_rows(tmp_path, rows, problem_id="id", prompt="in", response="out")
    taken = found.trajectories
    assert [one.key for one in taken] == [("7", 0), ("7", 1), ("9", 0), ("9", 1)]
    assert [one.finish for one in taken] == ["stop", "length", "stop", "stop"]
    assert taken[0].token_ids == (BOS, *b"1+1=2")
    assert taken[0].response_start == 5
    assert (taken[3].token_ids, taken[3].response_start) == ((BOS, *b"2+2="), 5)
    assert taken[0].is_correct is None
    assert taken[0].tokenizer == TOKENIZER.fingerprint
    with TrajectoryWriter(tmp_path / "t.jsonl") as writer:
        writer.write(taken)
    assert list(read_trajectories(tmp_path / "t.jsonl")) == taken
    assert found.summary() == "4 rows taken, 0 rejected"


def test_vllms_rows_hold_several_samples(tmp_path):
    outputs = [
        {"index": 0, "text": "2", "token_ids": [50, EOS], "finish_reason": "stop"},
        {"index": 1, "text": "33", "token_ids": [51, 51], "finish_reason": "length"},
        {"index": 2, "text": "4", "token_ids": [52], "finish_reason": "abort"},
        "no object",
    ]
    row = {"problem_id": "a", "prompt": "1", "prompt_token_ids": [BOS, 49], "outputs": outputs}
    found = import_rows(tmp_path, [row, row | {"outputs": []}], vllm())
    assert [one.key for one in found.trajectories] == [("a", 0), ("a", 1)]
    assert [one.token_ids for one in found.trajectories] == [(BOS, 49, 50, EOS), (BOS, 49, 51, 51)]
    assert [one.response_start for one in found.trajectories] == [2, 2]
    assert found.rejected == {
        "with an unknown finish": 1,
        "that are no JSON objects": 1,
        "without a list 'outputs'": 1,
    }


def test_sglangs_rows_hold_objects(tmp_path):
    row = {
        "problem_id": "a",
        "prompt": "1",
        "text": "2",
        "output_ids": [50],
        "meta_info": {"finish_reason": {"type": "length"}},
    }
    found = import_rows(tmp_path, [row, row | {"meta_info": {"finish_reason": None}}], sglang())
    assert [one.finish for one in found.trajectories] == ["length", "stop"]
    assert found.trajectories[0].token_ids == (BOS, 49, 50)


def test_ids_of_the_file_are_kept_where_they_say_the_texts(tmp_path):
    good = GOOD | {"ids": [49, 50], "at": 1}
    rows = [
        good,
        good | {"ids": [BOS, 49, 50, EOS], "at": 2},
        good | {"ids": [49, 51]},
        good | {"ids": [98, 50]},
        good | {"ids": [49, 50], "at": 2},
        good | {"ids": [49, 49, 50], "at": 2},
        good | {"ids": [49, 999]},
        good | {"ids": [49, True]},
        good | {"at": 3},
        good | {"at": 0},
    ]
    found = import_rows(tmp_path, rows, token_ids="ids", response_start="at")
    assert [one.token_ids for one in found.trajectories] == [(49, 50), (BOS, 49, 50, EOS)]
    assert found.rejected == {
        "whose ids are of another text": 4,
        "with ids that the tokenizer does not have": 2,
        "whose response_start lies outside the ids": 2,
    }
    assert found.num_cut == 0


def test_a_boundary_token_early_is_another_boundary(tmp_path):
    row = GOOD | {"prompt": "ab", "ids": [*b"ab2"]}
    rows = [row | {"at": start} for start in (1, 2)]
    found = import_rows(tmp_path, rows, token_ids="ids", response_start="at")
    assert [one.response_start for one in found.trajectories] == [2]


def test_ids_past_a_stop_string_are_cut_and_counted(tmp_path):
    row = GOOD | {"ids": [*b"2\n\nQ"]}
    emoji = GOOD | {"response": "\u00e9", "ids": [*"\u00e9\n".encode()]}
    found = import_rows(tmp_path, [row, emoji], response_ids="ids")
    assert [one.token_ids for one in found.trajectories] == [(BOS, 49, 50), (BOS, 49, 195, 169)]
    assert found.num_cut == 2
    assert "2 taken without ids past the response" in found.summary()


def test_a_stop_string_inside_a_token_leaves_no_place_to_cut(tmp_path, merging):
    ids = merging.encode("it is")
    row = GOOD | {"prompt": "it", "response": " i", "ids": ids[1:]}
    with pytest.raises(DataError, match="1 whose ids are of another text"):
        import_rows(tmp_path, [row], response_ids="ids", tokenizer=merging)


def test_a_character_that_was_cut_off_may_be_missing(tmp_path):
    row = GOOD | {"response": "2\ufffd", "ids": [50, 195], "finish_reason": "length"}
    found = import_rows(tmp_path, [row, row | {"response": "2"}], response_ids="ids")
    assert [one.token_ids for one in found.trajectories] == [(BOS, 49, 50, 195)] * 2


def test_what_is_tokenised_here_is_accepted_again(tmp_path, merging):
    """Also where prompt and response share a token, and behind a chat template's tokens."""
    chat = "<|im_start|>user\n6 * 7<|im_end|>\n<|im_start|>assistant\n"
    texts = [("it ", "is"), ("The answer", " is 42."), (chat, "42 \u00e9"), ("  a\t", "\n\nb")]
    model = train_sentencepiece(CORPUS, tmp_path / "t.model", vocab_size=307)
    for tokenizer in (merging, model, TOKENIZER):
        rows = []
        for prompt, response in texts:
            joint = encode_pair(tokenizer, prompt, response, special_prompt=True)
            rows.append(
                GOOD
                | {"prompt": prompt, "response": response}
                | {"ids": joint.token_ids, "at": joint.response_start}
            )
        found = import_rows(
            tmp_path, rows, token_ids="ids", response_start="at", tokenizer=tokenizer
        )
        assert [list(one.token_ids) for one in found.trajectories] == [row["ids"] for row in rows]


def test_chat_prompts_are_tokenised_as_such(tmp_path, merging):
    prompt = "<|im_start|>user\n1<|im_end|>\n"
    found = import_rows(
        tmp_path, [GOOD | {"prompt": prompt}], special_prompt=True, tokenizer=merging
    )
    (one,) = found.trajectories
    special = encode_prompt(merging, prompt, special=True)
    assert list(one.token_ids[: one.response_start]) == special
    assert special.count(1) == 1


def test_bad_rows_are_counted_by_reason(tmp_path, merging):
    good = GOOD | {"n": 4}
    rows = [
        good,
        good,
        b"{",
        b'{"problem_id": "\xff"}',
        b"[" * 200_000,
        [1],
        {"problem_id": "a", "prompt": "1", "n": 9},
        good | {"response": 2},
        good | {"response": "\ud800"},
        good | {"prompt": 3, "n": 5},
        good | {"prompt": "", "n": 5},
        good | {"finish_reason": "abort", "n": 6},
        good | {"n": "x"},
        good | {"n": True},
        good | {"n": -1},
        good | {"problem_id": [1]},
        good | {"problem_id": True},
        good | {"problem_id": None},
    ]
    found = import_rows(tmp_path, rows, sample="n")
    assert [one.key for one in found.trajectories] == [("a", 4)]
    assert found.rejected == {
        "of a problem and sample that came before": 1,
        "that are no JSON in UTF-8": 3,
        "that are no JSON objects": 1,
        "without 'response'": 1,
        "whose response is no text": 2,
        "whose prompt is no text": 2,
        "with an unknown finish": 1,
        "whose sample is no number from 0": 3,
        "whose problem_id is no text or integer": 2,
        "without 'problem_id'": 1,
    }
    assert "of a problem and sample that came before, first line 2: ('a', 4)" in found.summary()
    with pytest.raises(DataError, match="has no row that can be taken"):
        import_rows(tmp_path, [b"{"])
    with pytest.raises(DataError, match="1 whose prompt has no token of its own"):
        import_rows(tmp_path, [GOOD | {"prompt": " ", "response": "is"}], tokenizer=merging)
    with pytest.raises(DataError, match="there is no file"):
        import_trajectories(tmp_path / "absent", ImportConfig(), TOKENIZER)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": ""}, r"import\.prompt is empty"),
        ({"token_ids": "ids"}, "belong together"),
        ({"prompt_ids": "ids"}, r"import\.prompt_ids needs import\.response_ids"),
        ({"token_ids": "a", "response_start": "b", "response_ids": "c"}, "say the same"),
    ],
)
def test_import_config_errors(columns, message):
    with pytest.raises(ConfigError, match=message):
        ImportConfig(**columns)
