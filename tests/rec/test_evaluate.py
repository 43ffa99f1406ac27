"""Evaluation: rows are the pure metrics, pairs are exact, leaks and misfits are errors."""

import dataclasses

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from rec_jax import evaluate as evaluation
from rec_jax import ranking_metrics
from rec_jax.evaluation_tables import interval_text, report_tables, report_text

NUM_USERS, NUM_ITEMS, NUM_CATEGORIES, LENGTH = 19, 53, 3, 5
CONFIG = evaluation.EvaluateConfig(ks=(3, 7), bootstrap_samples=101)


def make_case(seed=0):
    """Histories, targets and lists that share no item within a user."""
    rng = np.random.default_rng(seed)
    order = np.stack([rng.permutation(NUM_ITEMS) for _ in range(NUM_USERS)])
    case = evaluation.EvaluationCase(
        targets=order[:, :LENGTH],
        history=np.concatenate([np.full((NUM_USERS, 2), -1), order[:, LENGTH:17]], axis=1),
        item_counts=rng.integers(0, 41, size=NUM_ITEMS),
        categories=rng.random((NUM_ITEMS, NUM_CATEGORIES)) < 0.5,
    )
    return case, order


def make_methods():
    case, order = make_case()
    perfect = evaluation.MethodLists(name="perfect", items=order[:, [*range(LENGTH), 17, 18]])
    wrong = evaluation.MethodLists(name="wrong", items=order[:, 17:24])
    generative = evaluation.MethodLists(
        name="OneRec session-wise",
        items=order[:, [0, 20, 2, 21, 22, 23, 24]],
        sessions=order[:, [0, 1, 30, 31, 32]],
        legality=11 / 13,
        code_entropy=(3.5, 1.25),
    )
    return case, [perfect, wrong, generative]


def test_rows_are_the_means_of_the_pure_metrics():
    case, methods = make_methods()
    report = evaluation.evaluate(methods, case, CONFIG)
    for method, row in zip(methods, report.rows, strict=True):
        for k in CONFIG.ks:
            recall = ranking_metrics.recall_at_k(method.items, case.targets, k=k)
            np.testing.assert_array_equal(report.per_user[method.name][f"recall@{k}"], recall)
            assert row.metrics[f"recall@{k}"].mean == pytest.approx(recall.mean())
    perfect, wrong, generative = report.rows
    assert perfect.metrics["ndcg@7"].mean == pytest.approx(1)
    assert wrong.metrics["hit@7"].mean == 0
    assert generative.metrics["recall@3"].mean == pytest.approx(2 / 3)
    assert generative.metrics["session_recall"].mean == pytest.approx(2 / LENGTH)
    assert report.session_length == LENGTH


def test_next_item_metrics_see_the_first_target_alone():
    case, methods = make_methods()
    second_only = evaluation.MethodLists(
        name="second", items=make_case()[1][:, [1, *range(20, 26)]]
    )
    report = evaluation.evaluate([*methods, second_only], case, CONFIG)
    assert report.rows[0].metrics["next_ndcg@7"].mean == pytest.approx(1)
    assert report.rows[-1].metrics["next_hit@7"].mean == 0
    assert report.rows[-1].metrics["hit@7"].mean == 1


def test_difference_is_paired_and_antisymmetric():
    case, methods = make_methods()
    pairs = [("perfect", "wrong"), ("wrong", "perfect"), ("wrong", "wrong")]
    there, back, itself = evaluation.evaluate(methods, case, CONFIG, compare=pairs).differences
    for metric, interval in there.metrics.items():
        assert interval.mean == pytest.approx(-back.metrics[metric].mean)
        assert interval.low == pytest.approx(-back.metrics[metric].high)
        assert itself.metrics[metric].low == itself.metrics[metric].high == 0
    assert "session_recall" not in there.metrics


def test_order_of_methods_and_users_of_the_seed_change_nothing():
    case, methods = make_methods()
    one = evaluation.evaluate(methods, case, CONFIG)
    two = evaluation.evaluate(methods[::-1], case, CONFIG, key=jax.random.key(CONFIG.seed))
    assert one.rows == two.rows[::-1]


def test_saved_report_reads_back_equal(tmp_path):
    case, methods = make_methods()
    report = evaluation.evaluate(methods, case, CONFIG, compare=[("perfect", "wrong")])
    evaluation.save_report(report, tmp_path)
    loaded = evaluation.load_report(tmp_path)
    assert evaluation.to_dict(loaded) == evaluation.to_dict(report)
    assert loaded.rows == report.rows and loaded.differences == report.differences
    for name, metrics in report.per_user.items():
        for metric, values in metrics.items():
            np.testing.assert_array_equal(loaded.per_user[name][metric], values)


def test_reading_an_empty_folder_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"run rec\.evaluate first"):
        evaluation.load_report(tmp_path)


def test_tables_hold_every_method_and_the_numbers():
    case, methods = make_methods()
    report = evaluation.evaluate(methods, case, CONFIG, compare=[("perfect", "wrong")])
    tables = report_tables(report)
    for table in tables:
        assert all(len(row) == len(table.header) for row in table.rows)
    assert [row[0] for row in tables[0].rows] == ["perfect", "wrong", "OneRec session-wise"]
    assert tables[0].rows[2][1] == interval_text(report.rows[2].metrics["recall@7"])
    text = report_text(report)
    for part in ("perfect - wrong", "0.846", "level 2", "1.250", "head recall", "session Recall"):
        assert part in text


def test_columns_are_aligned():
    case, methods = make_methods()
    first = report_text(evaluation.evaluate(methods, case, CONFIG)).split("\n\n")[0]
    lines = first.splitlines()[1:5]
    assert len({len(line) for line in lines}) == 1


def test_case_without_categories_sessions_or_seen_strata_still_reports():
    case, methods = make_methods()
    bare = dataclasses.replace(case, categories=None, item_counts=np.zeros(NUM_ITEMS, np.int32))
    report = evaluation.evaluate(methods[:2], bare, CONFIG)
    assert report.rows[0].stratum_recall == (None, None, 1.0)
    assert "diversity" not in report.rows[0].metrics and report.session_length == 0
    assert "Entropy" not in report_text(report)


def test_an_item_of_the_history_is_an_error_that_names_method_and_count():
    case, methods = make_methods()
    leaky = methods[0].items.copy()
    leaky[[2, 5], 1] = case.history[[2, 5], -1]
    method = dataclasses.replace(methods[0], items=leaky)
    with pytest.raises(DataError, match=r"'perfect': 2 places of items .* history"):
        evaluation.evaluate([method], case, CONFIG)
    allowed = dataclasses.replace(CONFIG, mask_history=False)
    evaluation.evaluate([method], case, allowed)


def test_history_in_a_session_is_an_error_too():
    case, methods = make_methods()
    sessions = methods[2].sessions.copy()
    sessions[0, 0] = case.history[0, -1]
    with pytest.raises(DataError, match="1 places of sessions"):
        evaluation.evaluate([dataclasses.replace(methods[2], sessions=sessions)], case, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items[:-1], "items has 18 users, the case has 19"),
        (lambda items: items + NUM_ITEMS, "another catalogue"),
        (lambda items: items[:, :5], "k = 7 .* hold 5"),
    ],
)
def test_lists_that_do_not_fit_are_errors(change, message):
    case, methods = make_methods()
    method = dataclasses.replace(methods[0], items=change(methods[0].items))
    with pytest.raises((DataError, ConfigError), match=message):
        evaluation.evaluate([method], case, CONFIG)


def test_user_without_target_is_an_error():
    case, methods = make_methods()
    targets = case.targets.copy()
    targets[3] = -1
    with pytest.raises(DataError, match="1 of 19 users have no target"):
        evaluation.evaluate(methods, dataclasses.replace(case, targets=targets), CONFIG)


def test_unknown_method_in_a_pair_names_the_near_one():
    case, methods = make_methods()
    with pytest.raises(DataError, match=r"no method 'perfekt' to compare. Did you mean 'perfect'"):
        evaluation.evaluate(methods, case, CONFIG, compare=[("perfekt", "wrong")])


@pytest.mark.parametrize(
    "wrong", [{"ks": ()}, {"ks": (10, 5)}, {"ks": (0, 5)}, {"confidence": 1.0}, {"num_strata": 0}]
)
def test_impossible_configs_are_errors(wrong):
    with pytest.raises(ConfigError, match="evaluate"):
        evaluation.EvaluateConfig(**wrong)
