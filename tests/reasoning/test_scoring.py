"""Values of many responses: each token its own, files that are cut off, and what is refused."""

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.align.pair_file import Pair
from reasoning_jax.align.scoring import (
    RowsConfig,
    ScoringConfig,
    Sides,
    check_tokenizer,
    responses_of,
    sequence_log_probs,
    token_values,
    without_repeats,
    write_token_values,
)
from reasoning_jax.data.token_values import TokenValuesWriter, read_token_values
from reasoning_jax.model import decoder_lm
from tests.reasoning.model_cases import PLAIN, make_params
from tests.reasoning.test_token_values import values
from tests.reasoning.test_trajectories import trajectory

ROWS = RowsConfig(batch_size=2, row_length=31, chunk=7)
LENGTHS = (5, 7, 11, 13, 17, 19, 23, 29, 3)


def one_device():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def some(lengths=LENGTHS, seed=3):
    rng = np.random.default_rng(seed)
    return [
        trajectory(
            f"p{number}",
            number % 2,
            token_ids=tuple(rng.integers(0, 263, length).tolist()),
            response_start=1 + number % 2,
        )
        for number, length in enumerate(lengths)
    ]


def by_place(batch, num_predictions):
    """What a place predicts, and where it stands in its sequence."""
    most = batch.loss_mask.sum(axis=1).max()
    assert most <= num_predictions <= batch.loss_mask.shape[1]
    return {
        "target": batch.targets.astype(np.float32),
        "position": batch.positions.astype(np.float32) / 8,
    }


def computed(sequences, score=by_place, done=frozenset(), rows=ROWS):
    found = token_values(
        sequences, score, config=PLAIN, rows=rows, mesh=one_device(), model="m", done=done
    )
    return [one for batch in found for one in batch]


def write(path, sequences, score=by_place):
    return write_token_values(
        path,
        sequences,
        score,
        config=PLAIN,
        rows=ROWS,
        mesh=one_device(),
        model="m",
        title="score",
    )


def test_every_response_token_gets_the_value_of_its_own_place():
    """Token i of a sequence is predicted at place i - 1; the last one, EOS, has a value as well."""
    sequences = some()
    found = {one.key: one for one in computed(sequences)}
    assert len(found) == len(sequences)
    for one in sequences:
        places = range(one.response_start, len(one.token_ids))
        own = found[one.key]
        assert (own.token_ids, own.response_start) == (one.token_ids, one.response_start)
        assert own.named("target") == tuple(float(one.token_ids[i]) for i in places)
        assert own.named("position") == tuple((i - 1) / 8 for i in places)


def test_what_is_cut_off_anywhere_goes_on_to_the_same_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    facts = write(path, some())
    whole = path.read_bytes()
    assert (facts["num_sequences"], facts["num_tokens"]) == (9, sum(LENGTHS))
    assert facts["num_response_tokens"] == sum(LENGTHS) - 5 * 1 - 4 * 2
    timed = ("seconds", "tokens_per_second")
    for length in range(0, len(whole), 173):
        path.write_bytes(whole[:length])
        again = write(path, some())
        assert path.read_bytes() == whole
        assert {n: again[n] for n in again if n not in timed} == {
            n: facts[n] for n in facts if n not in timed
        }


def test_a_run_that_is_killed_repeats_no_batch_that_is_in_the_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    write(tmp_path / "whole.jsonl", some())
    calls = []

    def dies(batch, num_predictions):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return by_place(batch, num_predictions)

    with pytest.raises(KeyboardInterrupt):
        write(path, some(), dies)
    assert 0 < len(read_token_values(path)) < 9
    write(path, some(), dies)
    # 5 rows of 31 tokens hold them: 3 batches, and only the first one was in the file.
    assert len(calls) == 3 + 2
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_responses_without_a_token_are_counted(tmp_path):
    sequences = [*some(), trajectory("empty", 0, token_ids=(1, 2), response_start=2)]
    facts = write(tmp_path / "v.jsonl", sequences)
    assert (facts["num_sequences"], facts["num_empty"]) == (9, 1)
    assert computed(sequences[-1:]) == []


def test_log_probs_are_those_of_each_sequence_alone():
    params = make_params(PLAIN)
    sequences = some((5, 13, 7))
    found = sequence_log_probs(PLAIN, params, sequences, rows=ROWS, mesh=one_device(), model="m")
    rows = np.zeros((3, 13), np.int32)
    for row, one in zip(rows, sequences, strict=True):
        row[: len(one.token_ids)] = one.token_ids
    inputs = decoder_lm.whole_rows(jax.numpy.asarray(rows), jax.numpy.asarray([5, 13, 7]))
    apply = jax.jit(decoder_lm.apply, static_argnums=0)
    logits = decoder_lm.logits(PLAIN, params, apply(PLAIN, params, inputs).hidden)
    for table, one in zip(jax.nn.log_softmax(logits), sequences, strict=True):
        places = range(one.response_start, len(one.token_ids))
        expected = [table[i - 1, one.token_ids[i]] for i in places]
        np.testing.assert_allclose(found[one.key].named("log_prob"), expected, rtol=0, atol=1e-5)


def pair(index, chosen, rejected):
    made = [
        trajectory("p1", sample, token_ids=(1, 2, 3 + sample), is_correct=verdict)
        for sample, verdict in ((chosen, True), (rejected, False))
    ]
    return Pair(problem_id="p1", index=index, chosen=made[0], rejected=made[1])


def test_a_response_of_several_pairs_is_scored_once():
    pairs = [pair(0, 0, 1), pair(1, 0, 2)]
    samples = {side: [one.sample for one in responses_of(pairs, side)] for side in Sides}
    assert samples == {Sides.BOTH: [0, 1, 2], Sides.CHOSEN: [0], Sides.REJECTED: [1, 2]}
    other = trajectory("p1", 1, token_ids=(1, 2, 11))
    with pytest.raises(DataError, match=r"\('p1', 1\) stands for two responses of other tokens"):
        without_repeats([*responses_of(pairs), other])


def test_what_cannot_be_scored_is_refused():
    sequences = some()
    long = trajectory("long", 0, token_ids=tuple(range(37)))
    with pytest.raises(
        DataError, match=r"\('long', 0\) has 37 tokens, .*row_length 31; set it to 37"
    ):
        computed([*sequences, long])
    with pytest.raises(
        DataError, match=r"\('p', 0\) has token id 263, but the model has 263 tokens"
    ):
        computed([trajectory("p", 0, token_ids=(1, 2, 263))])
    with pytest.raises(DataError, match=r"\('p0', 0\) is to be scored twice"):
        computed([*sequences, sequences[0]])
    found = token_values(
        sequences,
        by_place,
        config=PLAIN,
        rows=ROWS,
        mesh=make_mesh(MeshConfig(data=8)),
        model="m",
    )
    with pytest.raises(ConfigError, match="batch_size 2 is not a positive multiple of 8"):
        next(found)
    check_tokenizer(sequences, "t")
    with pytest.raises(
        DataError, match=r"tokens of \('p0', 0\) are of tokenizer 't', the model's is 'u'"
    ):
        check_tokenizer(sequences, "u")


def test_a_file_of_other_responses_is_not_gone_on_with(tmp_path):
    path = tmp_path / "v.jsonl"
    with TokenValuesWriter(path, model="m") as writer:
        writer.write([values("p0", 0)])
    with pytest.raises(DataError, match=r"values of \('p0', 0\) belong to other tokens"):
        write(path, some())
    with pytest.raises(DataError, match=r"values of \('p0', 0\), which is not to be scored"):
        write(path, some()[1:])


def test_values_that_are_not_finite_are_refused():
    def broken(batch, num_predictions):
        return {"a": jax.numpy.full(batch.targets.shape, jax.numpy.nan)}

    with pytest.raises(DataError, match="'a' holds a number that is not finite"):
        computed(some(), broken)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowsConfig(batch_size=0), r"rows\.batch_size is 0"),
        (lambda: RowsConfig(chunk=0), r"rows\.chunk is 0"),
        (lambda: ScoringConfig(betas=()), r"betas is \(\); give at least one strength"),
        (lambda: ScoringConfig(betas=(1.0, 1.0)), "none twice"),
        (lambda: ScoringConfig(betas=(-0.5,)), "beta of the contrastive scores is -0.5"),
    ],
)
def test_configs_are_checked(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
