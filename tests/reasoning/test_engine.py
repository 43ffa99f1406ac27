"""The engine: what it samples does not depend on how it works."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.errors import ConfigError, DataError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import match_rules
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.decoding import for_decoding
from reasoning_jax.model.shardings import DECODING_RULES
from reasoning_jax.sampling.config import EngineConfig, SamplingConfig
from reasoning_jax.sampling.engine import SampleRequest, sample
from tests.reasoning.model_cases import PLAIN, make_params

NUM_PROBLEMS, NUM_SAMPLES = 7, 3
WARM = SamplingConfig(
    temperature=0.6, top_p=0.95, max_new_tokens=23, num_samples=NUM_SAMPLES, seed=11
)
EOS = (5, 17)
SMALL = EngineConfig(num_rows=3, prompts_per_prefill=2, steps_per_chunk=5, slots_multiple=16)


def decode(token_ids):
    """One letter per token: a to z, by the remainder."""
    return "".join(chr(ord("a") + token % 26) for token in token_ids)


def requests(num_samples=NUM_SAMPLES):
    found = []
    for problem in range(NUM_PROBLEMS):
        generator = np.random.default_rng(problem)
        prompt = tuple(generator.integers(0, PLAIN.vocab_size, 3 + 2 * problem).tolist())
        found += [
            SampleRequest(problem_id=f"p{problem}", sample=number, prompt=prompt)
            for number in range(num_samples)
        ]
    return found


def run(wanted, sampling=WARM, engine=SMALL, weights=None, eos_ids=EOS):
    weights = weights or for_decoding(PLAIN, make_params(PLAIN))
    found = sample(
        PLAIN, weights, wanted, sampling=sampling, engine=engine, decode=decode, eos_ids=eos_ids
    )
    return {(one.request.problem_id, one.request.sample): one for one in found}


@pytest.fixture(scope="module")
def usual():
    return run(requests())


def test_every_request_is_answered_once(usual):
    assert set(usual) == {(f"p{p}", s) for p in range(NUM_PROBLEMS) for s in range(NUM_SAMPLES)}
    finishes = {one.finish for one in usual.values()}
    assert finishes == {"stop", "length"}
    for one in usual.values():
        ended = one.token_ids[-1] in EOS
        assert one.finish == ("stop" if ended else "length")
        assert len(one.token_ids) == 23 or ended
        assert not set(one.token_ids[:-1]) & set(EOS)
        assert one.text == decode(one.token_ids[:-1] if ended else one.token_ids)
    assert len({one.token_ids for one in usual.values()}) == NUM_PROBLEMS * NUM_SAMPLES


@pytest.mark.parametrize(
    "engine",
    [
        EngineConfig(num_rows=1, prompts_per_prefill=1, steps_per_chunk=1, slots_multiple=64),
        pytest.param(
            EngineConfig(num_rows=32, prompts_per_prefill=7, steps_per_chunk=16, slots_multiple=4),
            marks=pytest.mark.long,
        ),
        EngineConfig(num_rows=5, prompts_per_prefill=3, steps_per_chunk=7, slots_multiple=16),
    ],
)
def test_rows_and_chunks_change_nothing(usual, engine):
    assert run(requests(), engine=engine) == usual


def test_what_is_left_of_a_cut_off_run_gives_what_it_would_have_given(usual):
    left = requests()[4::3]
    for key, one in run(left).items():
        assert one == usual[key]
    backwards = run(list(reversed(requests())))
    assert backwards == usual


def test_greedy_is_the_argmax_of_full_passes():
    """Each token must be the best after a pass over the whole row so far."""
    params = make_params(PLAIN)
    greedy = dataclasses.replace(WARM, temperature=0.0, num_samples=1, max_new_tokens=9)
    found = run(requests(1), sampling=greedy, eos_ids=())
    rows = np.zeros((len(found), 32), np.int32)
    for index, one in enumerate(found.values()):
        row = one.request.prompt + one.token_ids
        rows[index, : len(row)] = row
    output = decoder_lm.apply(PLAIN, params, decoder_lm.whole_rows(jnp.asarray(rows)))
    best = np.asarray(jnp.argmax(decoder_lm.logits(PLAIN, params, output.hidden), axis=-1))
    for index, one in enumerate(found.values()):
        start = len(one.request.prompt) - 1
        assert one.token_ids == tuple(best[index, start : start + 9].tolist())


def test_a_stop_string_ends_the_text_before_it(usual):
    """Stop at two letters that occur in a usual response: the text must be cut there."""
    key, one = next(
        (key, one) for key, one in usual.items() if one.finish == "length" and len(one.text) > 9
    )
    stop = one.text[6:8]
    place = one.text.find(stop)
    found = run(requests(), sampling=dataclasses.replace(WARM, stop=("never", stop)))
    assert found[key].text == one.text[:place]
    assert found[key].token_ids == one.token_ids[:place]
    assert found[key].finish == "stop"
    for other_key, other in usual.items():
        if stop not in other.text:
            assert found[other_key] == other


def test_a_token_that_reaches_into_a_stop_string_is_left_out():
    weights = for_decoding(PLAIN, make_params(PLAIN))
    wanted = requests(1)[:1]
    greedy = SamplingConfig(max_new_tokens=4)

    def three_letters(token_ids):
        return "".join(f"<{token % 10}>" for token in token_ids)

    options = {"engine": SMALL, "decode": three_letters, "eos_ids": ()}
    (free,) = sample(PLAIN, weights, wanted, sampling=greedy, **options)
    stop = free.text[4:7]  # from the middle of the second token on
    (cut,) = sample(
        PLAIN, weights, wanted, sampling=dataclasses.replace(greedy, stop=(stop,)), **options
    )
    assert free.text.find(stop) == 4
    assert (cut.token_ids, cut.text) == (free.token_ids[:1], free.text[:3])


def test_another_seed_gives_other_samples_and_the_same_greedy_text(usual):
    other = run(requests(), sampling=dataclasses.replace(WARM, seed=12))
    assert sum(other[key] != usual[key] for key in usual) > 0.9 * len(usual)


@pytest.mark.long
def test_on_a_mesh_as_on_one_device(usual):
    config = dataclasses.replace(
        PLAIN, vocab_size=264, model_dim=16, hidden_dim=24, num_kv_heads=2, num_heads=6
    )
    weights = for_decoding(config, make_params(config))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = jax.device_put(weights, match_rules(DECODING_RULES, weights, mesh))
    engine = dataclasses.replace(SMALL, num_rows=8)
    options = {"sampling": WARM, "engine": engine, "decode": decode, "eos_ids": EOS}
    alone = {one.request: one for one in sample(config, weights, requests(), **options)}
    spread = {one.request: one for one in sample(config, placed, requests(), mesh=mesh, **options)}
    assert spread == alone


def test_a_full_context_ends_a_response():
    config = dataclasses.replace(PLAIN, max_positions=16)
    weights = for_decoding(config, make_params(config))
    wanted = requests(1)[:6]  # prompts of 3 to 13 tokens
    greedy = SamplingConfig(max_new_tokens=15)
    for one in sample(
        config, weights, wanted, sampling=greedy, engine=SMALL, decode=decode, eos_ids=()
    ):
        assert len(one.token_ids) == min(15, 16 - len(one.request.prompt))
        assert one.finish == "length"


def test_bad_requests_are_refused():
    good = requests()[0]
    with pytest.raises(DataError, match="problem 'p0' has an empty prompt"):
        run([dataclasses.replace(good, prompt=())])
    with pytest.raises(DataError, match="'p0' has 1021 tokens; the model's context has 1021"):
        run([dataclasses.replace(good, prompt=(1,) * 1021)])
    with pytest.raises(DataError, match="problem 'p0' is asked for with two prompts"):
        run([good, dataclasses.replace(good, sample=1, prompt=(1, 2))])
    with pytest.raises(ConfigError, match=r"sampling\.max_new_tokens is 1021, as long as"):
        run([good], sampling=SamplingConfig(max_new_tokens=1021))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -0.1}, "sampling.temperature is -0.1"),
        ({"top_k": -1}, "sampling.top_k is -1"),
        ({"top_p": 0.0}, "sampling.top_p is 0.0"),
        ({"max_new_tokens": 0}, "sampling.max_new_tokens is 0"),
        ({"num_samples": 2}, "num_samples is 2 at temperature 0"),
        ({"stop": ("",)}, "sampling.stop has an empty string"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**fields)


def test_engine_config_errors():
    with pytest.raises(ConfigError, match=r"engine\.num_rows is 0"):
        EngineConfig(num_rows=0)
