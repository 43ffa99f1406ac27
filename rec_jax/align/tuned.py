"""Settings of every preference method that the demo's sweep chose; see `docs/alignment.md`.

Dimension key: none.
"""

from rec_jax.align.methods import Method, MethodConfig

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
}
"""Names of the methods in tables. Conservative DPO is what the paper's Table 1 calls cDPO."""


def tuned(method: Method) -> MethodConfig:
    """A method with the settings that the demo's sweep chose for it."""
    return MethodConfig(method=method)
