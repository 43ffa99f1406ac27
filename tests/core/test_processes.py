"""What process 0 does alone, and what the others learn of it: a made-up store between two."""

import json

import jax
import pytest

from core_jax import processes, run_folder
from core_jax.errors import AlignaxError, ConfigError, DataError
from core_jax.processes import from_first, settled
from core_jax.run_folder import Workers, read_done, run_stage


class Store:
    """A key-value store that refuses a key until it is there, as JAX's does after its limit."""

    def __init__(self):
        self.values = {}
        self.asked = 0

    def key_value_set(self, key, value):
        assert key not in self.values, "a key is used once"
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        self.asked += 1
        if self.asked < 3:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: GetKeyValue() timed out")
        return self.values[key]


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process number n of two."""
    store = Store()
    monkeypatch.setattr(processes, "_client", lambda: store)
    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(run_folder, "several", lambda: True)
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)

    def become(number):
        monkeypatch.setattr(processes, "is_first", lambda: number == 0)
        monkeypatch.setattr(run_folder, "is_first", lambda: number == 0)
        processes._COUNTS.clear()
        return store

    return become


def refuse():
    raise AssertionError("only process 0 works")


def test_one_process_just_works():
    assert from_first("sum", lambda: 5) == 5
    assert settled(7) == 7


def test_the_others_get_what_process_0_returned(as_process):
    """Call by call, in order, however long it takes."""
    store = as_process(0)
    values = [{"rows": 3}, None, [1, 2]]
    assert [from_first("work", lambda value=value: value) for value in values] == values
    as_process(1)
    assert [from_first("work", refuse) for _ in values] == values
    assert store.asked == 5  # twice refused


@pytest.mark.parametrize(
    ("error", "kind"),
    [(DataError("no rows"), DataError), (ZeroDivisionError("by 0"), AlignaxError)],
)
def test_the_others_raise_what_process_0_raised(as_process, error, kind):
    as_process(0)

    def fail():
        raise error

    with pytest.raises(type(error)):
        from_first("log", fail)
    as_process(1)
    with pytest.raises(kind, match=r"process 0 failed in 'log': .*(no rows|by 0)"):
        from_first("log", refuse)


def test_a_stage_of_process_0_is_done_once(as_process, tmp_path):
    as_process(0)
    work = {"workers": Workers.FIRST}
    assert run_stage(tmp_path, "log", {"seed": 1}, lambda folder: {"rows": 3}, **work)
    as_process(1)
    assert run_stage(tmp_path, "log", {"seed": 1}, lambda folder: refuse(), **work)
    assert read_done(tmp_path, "log")["facts"] == {"rows": 3}


def test_a_stage_of_all_is_done_by_all_and_written_by_one(as_process, tmp_path):
    worked = []
    for number in (0, 1):
        as_process(number)
        assert run_stage(
            tmp_path, "train", {}, lambda folder: worked.append(1) or {}, workers=Workers.ALL
        )
    assert len(worked) == 2


def test_a_stage_that_works_alone_says_so(as_process, tmp_path):
    for number in (0, 1):
        as_process(number)
        with pytest.raises(ConfigError, match=r"stage 'look' works in one process.*launch\.local"):
            run_stage(tmp_path, "look", {}, lambda folder: refuse())


def test_results_of_a_stage_are_json(as_process, tmp_path):
    """What travels between processes is what `done.json` holds."""
    store = as_process(0)
    run_stage(tmp_path, "log", {}, lambda folder: {"rows": 3}, workers=Workers.FIRST)
    told = [json.loads(value) for value in store.values.values()]
    assert told == [{"value": False}, {"value": {"rows": 3}}, {"value": None}]
