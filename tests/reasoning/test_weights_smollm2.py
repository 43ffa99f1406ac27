"""The real SmolLM2 out of its wheel predicts plain English, if its rows are in the right order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from core_jax.data.fetch import cache_folder
from core_jax.mesh import MeshConfig, make_mesh
from reasoning_jax.model import decoder_lm
from reasoning_jax.model.presets import smollm2_135m
from reasoning_jax.weights.gguf_load import GgufFile, load_gguf
from reasoning_jax.weights.packaged import MEMBER, SMOLLM2, smollm2_gguf

# "Photosynthesis is the process by which plants make their own food. During photosynthesis, plants
# use energy from sunlight to turn carbon dioxide and water into glucose and oxygen. The plants use
# the glucose as a source of energy, and they release the oxygen into the air. This process takes
# place in the leaves of plants, in tiny structures called chloroplasts, which contain a green
# pigment called chlorophyll. Chlorophyll absorbs light from the sun."
TOKENS = """
33580 14870 314 260 980 411 527 2109 919 480 1038 1114 30 3897 19173 28 2109 722 1439 429 8118 288
1607 3118 7600 284 913 618 8102 284 4983 30 378 2109 722 260 8102 347 253 2257 282 1439 28 284 502
4706 260 4983 618 260 1512 30 669 980 2933 1379 281 260 3711 282 2109 28 281 5383 3626 1217 46194 99
28 527 2127 253 2654 20864 1217 29677 30 28884 21146 25502 1420 429 260 2388 30
"""


@pytest.mark.real_data
def test_the_packaged_model_predicts_plain_english():
    """Under 1.7 nats per token (1.40); with pairs for halves in queries and keys it is 3.00."""
    names = (SMOLLM2.filename, MEMBER.rpartition("/")[2])
    if not any((cache_folder() / name).exists() for name in names):
        pytest.skip(f"'{names[0]}' is not in the data cache; `smollm2_gguf()` fetches its 93 MB")
    file = GgufFile(smollm2_gguf())
    assert file.config == smollm2_135m()
    params = load_gguf(file, mesh=make_mesh(MeshConfig(), jax.devices()[:1]))
    tokens_BT = jnp.asarray([[int(token) for token in TOKENS.split()]], jnp.int32)
    inputs = decoder_lm.whole_rows(tokens_BT)
    hidden_BTD = decoder_lm.apply(file.config, params, inputs).hidden
    log_probs_BTV = jax.nn.log_softmax(decoder_lm.logits(file.config, params, hidden_BTD))
    taken_T = np.asarray(log_probs_BTV)[0, np.arange(84), np.asarray(tokens_BT)[0, 1:]]
    assert 1.3 < -taken_T.mean() < 1.5
