import re

import jax
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from rec_jax.generate import generate_sessions
from rec_jax.sampling import SamplingConfig
from rec_jax.session_decoding import BeamConfig
from tests.rec.generation_cases import CONFIG, SEVEN, all_sessions, make_index, make_params

HISTORIES = np.array(
    [[-1, -1, -1, -1, 2], [6, 5, 4, 3, 2], [-1, -1, -1, -1, -1], [-1, 0, 3, 1, 1], [1, 2, 3, 0, 4]]
    + [[-1, -1, -1, item, 3] for item in range(6)],
    np.int32,
)


def generate(histories=HISTORIES, **options):
    options = {"num_beams": 2, "num_items": 1, "batch_size": 8, **options}
    names = ("num_beams", "num_items", "exclude_history", "constrained")
    config = BeamConfig(**{name: options.pop(name) for name in names if name in options})
    return generate_sessions(
        CONFIG, config, make_params(5), make_index(SEVEN), SEVEN, histories, **options
    )


def test_batches_agree_with_users_in_another_order():
    together = generate(progress=False)
    assert together.items.shape == (11, 2, 1)
    assert together.codes.shape == (11, 2, 1, 3)
    # Users in another order fall into other batches.
    order = np.roll(np.arange(11), 3)
    other = generate(HISTORIES[order], progress=False)
    np.testing.assert_array_equal(other.items, together.items[order])
    np.testing.assert_allclose(other.scores, together.scores[order], rtol=1e-5)
    for user, history in enumerate(HISTORIES):
        assert not set(together.items[user].ravel()) & set(history)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_items": 2},
        {"num_items": 2, "constrained": False},
        {"num_items": 2, "sampling": SamplingConfig(), "key": jax.random.key(0)},
    ],
    ids=["first items", "sessions", "free", "sampled"],
)
def test_each_program_compiles_once(options, caplog):
    jax.clear_caches()  # Whatever other tests have compiled.
    with jax.log_compiles():
        generate(batch_size=4, progress=False, **options)
        generate(HISTORIES[::-1], batch_size=4, progress=False, **options)
    compiled = [
        record.getMessage()
        for record in caplog.records
        if re.match(r"Compiling .*\b_(search|sample_sessions)\b", record.getMessage())
    ]
    # Six batches of 4, two of them ragged.
    assert len(compiled) == 1


def test_a_mesh_changes_nothing():
    alone = generate(progress=False)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    split = generate(progress=False, mesh=mesh)
    np.testing.assert_array_equal(split.items, alone.items)
    np.testing.assert_allclose(split.scores, alone.scores, rtol=1e-4)
    with pytest.raises(ConfigError, match="multiple of 8"):
        generate(batch_size=6, mesh=mesh)


def test_sampled_sessions_are_legal_and_depend_on_the_key(capsys):
    options = {"num_beams": 23, "num_items": 2, "sampling": SamplingConfig(temperature=2.0)}
    first = generate(key=jax.random.key(0), **options)
    assert "11/11" in capsys.readouterr().err
    again = generate(key=jax.random.key(0), progress=False, **options)
    other = generate(key=jax.random.key(1), progress=False, **options)
    np.testing.assert_array_equal(first.items, again.items)
    assert (first.items != other.items).any()
    # The same history twice: different batches and rows draw different sessions.
    repeated = generate(HISTORIES[[0] * 10], key=jax.random.key(0), progress=False, **options)
    assert len({rows.tobytes() for rows in repeated.items}) == 10
    for user, history in enumerate(HISTORIES):
        legal = set(map(tuple, all_sessions(7, 2, history)))
        assert set(map(tuple, first.items[user])) <= legal


def test_no_user_gives_empty_results():
    assert generate(HISTORIES[:0]).items.shape == (0, 2, 1)


def test_errors_name_the_remedy():
    with pytest.raises(ConfigError, match=r"history of user 1 leaves 2 .* fewer than .* = 3"):
        generate(num_items=3)
    with pytest.raises(DataError, match="history 0 has item 7"):
        generate(np.array([[1, 7]]))
    with pytest.raises(ConfigError, match="belong together"):
        generate(key=jax.random.key(0))
    with pytest.raises(ConfigError, match="at most 7"):
        generate(num_beams=8)
