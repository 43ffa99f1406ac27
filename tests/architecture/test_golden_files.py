"""The comparison with golden files: what it accepts, what it says, what it rewrites."""

import pytest

from tests.golden_files import FOLDER, UPDATE_VARIABLE, check_golden
from tests.parity import dpo_record, hf_record, preference_record, tokenizer_record
from tests.reasoning import test_presets as reasoning_presets
from tests.rec import test_golden as rec_golden

TEXT = "step loss\n1 2.3026\n2 -1.7e-03\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With one golden file, compared and not refreshed."""
    monkeypatch.delenv(UPDATE_VARIABLE, raising=False)
    (tmp_path / "curve.txt").write_text(TEXT)
    return tmp_path


def test_an_equal_text_passes(folder):
    check_golden("curve.txt", TEXT, folder=folder)


def test_a_mismatch_shows_a_diff_and_when_to_refresh(folder):
    with pytest.raises(AssertionError) as caught:
        check_golden("curve.txt", TEXT.replace("2.3026", "2.3027"), folder=folder)
    message = str(caught.value)
    assert "--- golden/curve.txt\n+++ now\n" in message
    assert "\n-1 2.3026\n+1 2.3027\n 2 -1.7e-03\n" in message
    assert "UPDATE_GOLDEN=1 only if the change is meant to alter results" in message
    assert "say why in CHANGELOG.md" in message
    assert (folder / "curve.txt").read_text() == TEXT


@pytest.mark.parametrize(
    ("now", "matches"),
    [
        (TEXT.replace("2.3026", "2.3048"), True),  # 2.3026 * (1 + 1e-3) = 2.30490
        (TEXT.replace("2.3026", "2.3050"), False),
        (TEXT.replace("2.3026", "2.3004"), True),  # 2.3026 * (1 - 1e-3) = 2.30030
        (TEXT.replace("2.3026", "2.3002"), False),
        (TEXT.replace("-1.7e-03", "-1.701e-03"), True),
        (TEXT.replace("-1.7e-03", "1.7e-03"), False),
        (TEXT.replace("-1.7e-03", "-1.7e-02"), False),
        (TEXT.replace("-1.7e-03", "nan"), False),
        (TEXT.replace("loss", "cost"), False),
        (TEXT + "3 1.0\n", False),
        (TEXT.replace("\n2 ", "  2 "), False),
    ],
)
def test_numbers_may_differ_by_the_tolerance_and_nothing_else(folder, now, matches):
    if matches:
        check_golden("curve.txt", now, relative_tolerance=1e-3, folder=folder)
    else:
        with pytest.raises(AssertionError, match=r"differs by more than 0\.001 of"):
            check_golden("curve.txt", now, relative_tolerance=1e-3, folder=folder)
    with pytest.raises(AssertionError, match=r"'curve.txt' differs:"):
        check_golden("curve.txt", now, folder=folder)


def test_a_refresh_rewrites_what_differs_and_makes_what_is_absent(folder, monkeypatch):
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    for name in ("curve.txt", "new.txt"):
        check_golden(name, "step loss\n", folder=folder)
        assert (folder / name).read_text() == "step loss\n"


def test_a_refresh_leaves_what_matches_within_the_tolerance(folder, monkeypatch):
    monkeypatch.setenv(UPDATE_VARIABLE, "1")
    now = TEXT.replace("2.3026", "2.3027")
    check_golden("curve.txt", now, relative_tolerance=1e-3, folder=folder)
    assert (folder / "curve.txt").read_text() == TEXT


@pytest.mark.parametrize("value", ["", "0"])
def test_only_1_refreshes(folder, monkeypatch, value):
    monkeypatch.setenv(UPDATE_VARIABLE, value)
    with pytest.raises(AssertionError, match="differs"):
        check_golden("curve.txt", "step\n", folder=folder)


def test_an_absent_file_is_an_error_that_says_how_to_make_it(folder):
    with pytest.raises(AssertionError, match=r"no golden file '.*new.txt'; UPDATE_GOLDEN=1 makes"):
        check_golden("new.txt", "step\n", folder=folder)


def test_every_golden_file_is_compared():
    """A preset that goes takes its files along."""
    expected = {f"config_{name}.json" for name in rec_golden.PRESETS}
    expected |= {f"sharding_{name}.txt" for name in rec_golden.PRESETS}
    expected |= {f"config_reasoning_{name}.json" for name in reasoning_presets.EVERY}
    expected |= {rec_golden.CURVE, "shardings_llama3_70b.txt", preference_record.GOLDEN}
    expected |= {
        hf_record.GOLDEN,
        hf_record.ADAPTER_GOLDEN,
        tokenizer_record.GOLDEN,
        dpo_record.GOLDEN,
    }
    assert {path.name for path in FOLDER.iterdir()} == expected
