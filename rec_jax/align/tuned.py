"""What the demo's sweep chose for every preference method; see `docs/alignment.md`.

Dimension key: none.
"""

from core_jax.token_weights import WeightControl
from rec_jax.align.methods import Method

TITLES = {
    Method.DPO: "DPO",
    Method.IPO: "IPO",
    Method.IPO_TOKEN_MEAN: "IPO per token",
    Method.CONSERVATIVE: "conservative DPO",
    Method.RDPO: "rDPO",
    Method.CPO: "CPO",
    Method.SIMPO: "SimPO",
    Method.SDPO: "S-DPO",
    Method.HINGE: "hinge",
    Method.RPO: "RPO",
    Method.DPOP: "DPOP",
    Method.ECPO: "ECPO",
    Method.GBPO: "GBPO",
    Method.CONTRASTIVE: "contrastive cDPO",
}
"""Names of the methods in tables. Conservative DPO is what the paper's Table 1 calls cDPO;
contrastive cDPO is that of arXiv:2411.19943."""

CONTROL_TITLES = {
    WeightControl.UNIFORM: "uniform weights",
    WeightControl.SHUFFLED: "shuffled weights",
    WeightControl.CONSTANT: "constant weight",
    WeightControl.RANDOM: "random weights",
}
"""Names of the controls of contrastive cDPO in tables."""

DEFAULT_WEIGHT = {
    Method.DPO: 30.0,
    Method.IPO: 0.5,
    Method.IPO_TOKEN_MEAN: 0.5,
    Method.CONSERVATIVE: 30.0,
    Method.RDPO: 30.0,
    Method.CPO: 30.0,
    Method.SIMPO: 10.0,
    Method.SDPO: 10.0,
    Method.HINGE: 30.0,
    Method.RPO: 30.0,
    Method.DPOP: 30.0,
    Method.ECPO: 100.0,
    Method.GBPO: 10.0,
    Method.CONTRASTIVE: 30.0,
}
"""lambda of each method where the configuration names none. The losses' slopes at the reference
differ by two orders of magnitude (IPO: 1 / tau; DPO: beta / 2), so no value fits all."""
