"""Candidates as data: contexts drawn without replacement, parts restarted, stale ones refused."""

import dataclasses
import json

import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax.align.candidates import (
    Candidates,
    Origin,
    check_num_beams,
    choose_contexts,
    read_candidates,
    write_candidates,
)

ORIGIN = Origin(model="m", catalogue="c", reward="r", search="s")
K, M, T = 5, 3, 2


def proposed(examples):
    """Candidates that say which example they are of."""
    U = len(examples)
    return Candidates(
        examples=examples,
        items=np.broadcast_to(examples[:, None, None], (U, K, M)).astype(np.int32),
        log_probs=np.zeros((U, K), np.float32),
        targets=np.zeros((U, K, T), np.float32),
        rewards=np.tile(np.arange(K, dtype=np.float32), (U, 1)),
    )


def test_contexts_are_a_sample_without_replacement_that_seed_and_round_decide():
    drawn = choose_contexts(101, 37, seed=3, round_number=1)
    assert len(set(drawn.tolist())) == 37 and drawn.min() >= 0 and drawn.max() < 101
    np.testing.assert_array_equal(drawn, choose_contexts(101, 37, seed=3, round_number=1))
    for other in ({"seed": 4, "round_number": 1}, {"seed": 3, "round_number": 2}):
        assert not np.array_equal(drawn, choose_contexts(101, 37, **other))
    np.testing.assert_array_equal(drawn[:11], choose_contexts(101, 11, seed=3, round_number=1))


def test_no_more_contexts_than_examples():
    assert sorted(choose_contexts(7, 100, seed=0, round_number=1)) == list(range(7))


def test_written_candidates_come_back_whole_and_in_order(tmp_path):
    contexts = choose_contexts(50, 17, seed=0, round_number=1)
    write_candidates(tmp_path, contexts, proposed, origin=ORIGIN, part_size=5)
    assert len(list(tmp_path.glob("part-*.npz"))) == 4
    found = read_candidates(tmp_path, origin=ORIGIN)
    for field in dataclasses.fields(Candidates):
        np.testing.assert_array_equal(
            getattr(found, field.name), getattr(proposed(contexts), field.name)
        )


def test_a_search_that_was_cut_off_goes_on_at_the_first_missing_part(tmp_path):
    contexts = np.arange(17)
    asked = []

    def until_it_breaks(examples):
        asked.append(examples.tolist())
        if len(asked) == 3:
            raise KeyboardInterrupt
        return proposed(examples)

    with pytest.raises(KeyboardInterrupt):
        write_candidates(tmp_path, contexts, until_it_breaks, origin=ORIGIN, part_size=5)
    with pytest.raises(DataError, match=r"10 of 17 contexts.*missing parts"):
        read_candidates(tmp_path, origin=ORIGIN)
    write_candidates(tmp_path, contexts, until_it_breaks, origin=ORIGIN, part_size=5)
    assert asked[3:] == [list(range(10, 15)), [15, 16]]
    np.testing.assert_array_equal(read_candidates(tmp_path, origin=ORIGIN).examples, contexts)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Origin)])
def test_stale_candidates_are_refused_by_name(tmp_path, field):
    write_candidates(tmp_path, np.arange(3), proposed, origin=ORIGIN, part_size=5)
    other = dataclasses.replace(ORIGIN, **{field: "other"})
    told = rf"stale.*{field} {getattr(ORIGIN, field)} \(now other\).*remove"
    with pytest.raises(DataError, match=told):
        read_candidates(tmp_path, origin=other)
    with pytest.raises(DataError, match="stale"):
        write_candidates(tmp_path, np.arange(3), proposed, origin=other, part_size=5)


def test_a_damaged_part_is_named(tmp_path):
    write_candidates(tmp_path, np.arange(7), proposed, origin=ORIGIN, part_size=5)
    part = tmp_path / "part-00001.npz"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"part-00001\.npz.*remove it"):
        read_candidates(tmp_path, origin=ORIGIN)


def test_absent_candidates_are_said_to_be_absent(tmp_path):
    with pytest.raises(DataError, match=r"candidates\.json.*absent"):
        read_candidates(tmp_path, origin=ORIGIN)


def test_the_manifest_holds_the_fingerprints(tmp_path):
    write_candidates(tmp_path, np.arange(3), proposed, origin=ORIGIN, part_size=5)
    manifest = json.loads((tmp_path / "candidates.json").read_text())
    assert manifest == {**dataclasses.asdict(ORIGIN), "num_contexts": 3}


def test_more_beams_than_the_catalogue_has_ids_is_an_error_that_names_the_most():
    check_num_beams(7, 7)
    with pytest.raises(ConfigError, match=r"num_beams is 8.*only 7.*at most 7"):
        check_num_beams(8, 7)
