"""Recommendations in words: requests, marks of hits, and errors that name the near thing."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest

from core_jax.errors import DataError
from rec_jax import recommend
from rec_jax.catalogue import category_matrix, find_items, find_user, make_catalogue
from rec_jax.data.interactions import clean_log
from rec_jax.data.sessions import SessionConfig, build_sessions

TITLES = ["Alien (1979)", "Heat (1995)", "Toy Story (1995)", "Vertigo (1958)", "Fargo (1996)"]
CATEGORIES = [["Horror", "Sci-Fi"], ["Action"], ["Comedy"], [], ["Crime", "Drama"]]


def make_words(item_ids=("10", "11", "12", "13", "14")):
    table = pl.DataFrame(
        {
            "item_id": ["14", "13", "12", "11", "10"],
            "title": TITLES[::-1],
            "categories": CATEGORIES[::-1],
        },
        schema_overrides={"categories": pl.List(pl.String)},
    )
    return make_catalogue(item_ids, table)


def make_sessions():
    """User a: 11 items, of which 3 are test and 3 validation. User b: 2 items, no test."""
    events = pl.DataFrame(
        {
            "user_id": ["a"] * 11 + ["b"] * 2,
            "item_id": [str(20 + number) for number in range(11)] + ["22", "29"],
            "timestamp": range(13),
        }
    )
    return build_sessions(
        clean_log(events, source="test"), SessionConfig(session_items=3, history_items=2)
    )


def ids_of(data, items):
    return [data.item_ids[item] for item in items]


def test_catalogue_follows_the_dense_order():
    words = make_words(("12", "10"))
    assert words.titles == (TITLES[2], TITLES[0])
    assert words.categories == (("Comedy",), ("Horror", "Sci-Fi"))


def test_absent_title_becomes_the_id():
    table = pl.DataFrame({"item_id": ["7"], "title": [None], "categories": [None]})
    words = make_catalogue(["7"], table)
    assert words.titles == ("7",) and words.categories == ((),)


def test_item_without_words_is_an_error():
    with pytest.raises(DataError, match=r"1 of 2 items are not in the item table .* '99'"):
        make_words(("10", "99"))


def test_category_matrix_has_every_membership_and_no_other():
    words = make_words()
    belongs = category_matrix(words)
    names = sorted({name for names in CATEGORIES for name in names})
    for item, categories in enumerate(words.categories):
        assert [names[c] for c in np.flatnonzero(belongs[item])] == sorted(categories)


def test_user_with_a_test_session_is_asked_before_it():
    data = make_sessions()
    request = recommend.request_of_user(data, "a")
    assert ids_of(data, request.history) == [str(20 + number) for number in range(8)]
    assert ids_of(data, request.targets) == ["28", "29", "30"]


def test_user_without_a_test_session_brings_everything():
    data = make_sessions()
    request = recommend.request_of_user(data, "b")
    assert ids_of(data, request.history) == ["22", "29"] and not len(request.targets)


def test_user_without_any_positive_is_an_error():
    data = make_sessions()
    emptied = dataclasses.replace(
        data, user_ids=[*data.user_ids, "c"], user_starts=np.append(data.user_starts, 13)
    )
    with pytest.raises(DataError, match="user 'c' has no positive item"):
        recommend.request_of_user(emptied, "c")


def test_unknown_user_names_near_ids():
    with pytest.raises(DataError, match=r"user '1961' is not among the 3 users .* Near ids: 196,"):
        find_user(["196", "7", "22"], "1961")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10,toy story", r"'toy story' .* '12' \(Toy Story \(1995\)\)"),
        ("vertigoo (1958)", r"'13' \(Vertigo \(1958\)\)"),
        ("10, 144", r"item '144' is not in the catalogue of 5 items.*'14' \(Fargo \(1996\)\)"),
    ],
)
def test_unknown_item_names_near_ids_and_titles(text, hint):
    with pytest.raises(DataError, match=hint):
        recommend.request_of_history(make_words(), text)


def test_history_keeps_order_and_repeats():
    words = make_words()
    request = recommend.request_of_history(words, " 14,10 , 14,")
    assert request.history.tolist() == [4, 0, 4] == find_items(words, ["14", "10", "14"])
    assert request.heading == "a history of 3 items"


def test_empty_history_is_an_error_with_an_example():
    with pytest.raises(DataError, match="parted by commas, as in '10,11'"):
        recommend.request_of_history(make_words(), " , ")


def make_sample(**overrides):
    request = recommend.Request(
        heading="user 7",
        history=np.array([1, 3], np.int32),
        targets=np.array([2, 4], np.int32),
    )
    arguments = {
        "sessions": np.array([[2, 0], [0, -1], [-1, -1]]),
        "scores": np.array([-1.5, -2.25, -np.inf]),
        "item_scores": np.array([[-0.5, -1.0], [-2.25, 0.0], [0.0, 0.0]]),
    }
    return recommend.make_sample(make_words(), request, **(arguments | overrides))


def test_hits_are_marked_on_both_sides():
    sample = make_sample()
    assert [words.is_hit for words in sample.sessions[0].items] == [True, False]
    assert [words.is_hit for words in sample.targets] == [True, False]


def test_dead_sessions_and_padding_are_left_out():
    sample = make_sample()
    assert [len(session.items) for session in sample.sessions] == [2, 1]
    none = make_sample(scores=np.full(3, -np.inf))
    assert not none.sessions and "No session could be generated" in recommend.sample_text(none)


def test_item_scores_are_optional_and_add_up_to_the_session():
    for session in make_sample().sessions:
        assert sum(words.score for words in session.items) == session.score
    assert make_sample(item_scores=None).sessions[0].items[0].score is None


def test_text_has_history_sessions_truth_and_fits_the_terminal():
    text = recommend.sample_text(make_sample())
    assert text.splitlines()[0] == "Recommendations for user 7"
    assert "History (all, the most recent at the bottom)" in text
    assert "Generated session 2 (log-probability -2.25)" in text
    hits = [line for line in text.splitlines() if " * " in line]
    assert len(hits) == 2 and all("Toy Story (1995)" in line for line in hits)
    assert max(map(len, text.splitlines())) <= 100


def test_shortened_history_says_so():
    text = recommend.sample_text(make_sample(num_history=1))
    assert "History (last 1 of 2, the most recent at the bottom)" in text
    assert "Vertigo" in text and "Heat" not in text


def test_long_titles_are_cut_in_text_alone():
    words = dataclasses.replace(make_words(), titles=("x" * 300,) * 5)
    request = recommend.request_of_history(words, "10")
    sample = recommend.make_sample(
        words, request, sessions=np.array([[1]]), scores=np.array([-1.0])
    )
    assert sample.sessions[0].items[0].title == "x" * 300
    assert max(map(len, recommend.sample_text(sample).splitlines())) <= 100


def test_sample_survives_json():
    sample = make_sample()
    assert recommend.sample_from_dict(json.loads(json.dumps(recommend.sample_to_dict(sample)))) == (
        sample
    )
