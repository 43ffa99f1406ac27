"""Rules give every leaf one sharding; what no rule covers or no mesh can hold is an error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from core_jax.errors import ConfigError
from core_jax.mesh import MeshConfig, make_mesh
from core_jax.sharding import describe, gathered_layer, match_rules


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1, fsdp=2, expert=2, tensor=2))


def _leaf(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


RULES = (
    (r"moe/(up|down)$", P("expert", "fsdp", "tensor")),
    (r"embed$", P(("fsdp", "tensor"))),
    (r"bias$", P()),
    (r"kernel$", P(None, "tensor")),
)


def _params():
    return {
        "decoder": {"moe": {"up": _leaf(2, 6, 10)}, "kernel": _leaf(7, 14), "bias": _leaf(3)},
        "embed": _leaf(20, 3),
    }


def test_first_match_wins_and_short_specs_leave_the_rest_whole(mesh):
    specs = jax.tree.map(lambda sharding: sharding.spec, match_rules(RULES, _params(), mesh))
    assert specs == {
        "decoder": {
            "moe": {"up": P("expert", "fsdp", "tensor")},
            "kernel": P(None, "tensor"),
            "bias": P(),
        },
        "embed": P(("fsdp", "tensor")),
    }
    first = match_rules(((r".", P()), *RULES), _params(), mesh)
    assert {sharding.spec for sharding in jax.tree.leaves(first)} == {P()}


def test_optimizer_state_follows_the_parameters_and_scalars_need_no_rule(mesh):
    params = _params()
    shardings = match_rules(RULES, params, mesh)
    state = jax.eval_shape(optax.adam(1.0).init, params)
    state_shardings = match_rules(RULES, state, mesh)
    assert state_shardings[0].mu == state_shardings[0].nu == shardings
    assert state_shardings[0].count == NamedSharding(mesh, P())
    empty = match_rules(RULES, {"nothing": _leaf(0, 3), "number": _leaf()}, mesh)
    assert {sharding.spec for sharding in jax.tree.leaves(empty)} == {P()}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, r"'decoder/moe/up' of shape \(6, 7\) matches none of the 4 sharding rules; add a"),
        (P("expert", None, None), r"'decoder/moe/up': its sharding rule \[expert, -, -\] has 3 "
         r"entries, but its shape \(6, 7\) has 2 dimensions; shorten the rule"),
        (P("expert", "fsdp", "tensor"), r"\[expert, fsdp, tensor\] has 3 entries"),
        (P("experts"), r"'decoder/moe/up': its sharding rule \[experts\] names the mesh axis "
         r"'experts', which does not exist. Did you mean 'expert'\?"),
        (P("x"), r"'x', which does not exist. Known: data, expert, fsdp, tensor."),
        (P("fsdp", "fsdp"), r"'decoder/moe/up': its sharding rule \[fsdp, fsdp\] uses mesh axis "
         r"'fsdp' twice; split each axis over one dimension only"),
        (P("expert", "tensor"), r"'decoder/moe/up': dim 1 of size 7 is not divisible by mesh axis "
         r"'tensor' of size 2; make the dimension a multiple of 2, or give that axis a size that "
         r"divides 7"),
        (P(("fsdp", "tensor")), r"dim 0 of size 6 is not divisible by mesh axis 'fsdp\+tensor' of "
         r"size 4"),
    ],
)  # fmt: skip
def test_errors_name_the_leaf_the_rule_and_the_remedy(mesh, spec, message):
    rules = (("nowhere$", P()),) * 4 if spec is None else (("up$", spec),)
    with pytest.raises(ConfigError, match=message):
        match_rules(rules, {"decoder": {"moe": {"up": _leaf(6, 7)}}}, mesh)


def test_describe_counts_bytes_per_device(mesh):
    """up: 2 x 6 x 10 floats over 8 devices; kernel: halved; embed in bf16: 20 x 3 over 4."""
    params = _params() | {"embed": _leaf(20, 3, dtype=jnp.bfloat16), "step": _leaf(dtype=jnp.int32)}
    text = describe(params, match_rules(RULES, params, mesh))
    assert text == "\n".join([
        "path            shape   dtype     spec                    bytes/device",
        "decoder/bias    3       float32   replicated                        12",
        "decoder/kernel  7x14    float32   [-, tensor]                      196",
        "decoder/moe/up  2x6x10  float32   [expert, fsdp, tensor]            60",
        "embed           20x3    bfloat16  [fsdp+tensor]                     30",
        "step            scalar  int32     replicated                         4",
        "total: 5 leaves, 282 elements, 1,008 bytes, 302 bytes/device",
    ])  # fmt: skip


def test_a_layer_gathers_the_named_weights_along_fsdp_in_the_compute_dtype():
    """Of rules for a stack; what is not named, and what `fsdp` does not split, stays as it is."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    rules = (
        ("up/kernel$", P(None, "fsdp", "tensor")),
        ("down/kernel$", P(None, "tensor", None)),
        ("up/lora_a$", P(None, "fsdp")),
        ("out/kernel$", P(None, ("fsdp", "tensor"))),
    )
    layer = {
        "up": {"kernel": jnp.ones((8, 6)), "lora_a": jnp.ones((8, 3))},
        "down": {"kernel": jnp.ones((6, 8))},
        "out": {"kernel": jnp.ones((8, 6))},
    }

    def gather(layer):
        return gathered_layer(rules, layer, mesh, leaves="kernel$", dtype=jnp.dtype("bfloat16"))

    gathered = jax.jit(gather)(layer)
    up = gathered["up"]["kernel"]
    assert (up.dtype, up.sharding.spec) == (jnp.bfloat16, P(None, "tensor"))
    assert gathered["out"]["kernel"].sharding.spec == P("tensor")
    assert gathered["up"]["lora_a"].dtype == gathered["down"]["kernel"].dtype == jnp.float32
    gradient = jax.grad(lambda layer: jnp.sum(gather(layer)["up"]["kernel"] ** 2))(layer)
    assert gradient["up"]["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(gradient["up"]["kernel"], 2.0)
    alone = make_mesh(MeshConfig(data=8))
    assert (
        gathered_layer(rules, layer, alone, leaves="kernel$", dtype=jnp.dtype("float16")) is layer
    )
