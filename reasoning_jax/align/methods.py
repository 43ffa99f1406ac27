"""The preference methods of the paper's Table 3 and their relatives, as one choice.

All of them weigh tokens and differ in three things: the loss that the weighted log-ratios enter,
where the weights come from, and what training starts from. Formulas stand with the functions of
`core_jax.preference_pairs`, `core_jax.preference_likelihood` and `core_jax.preference_tokens`.
"cDPO" is contrastive DPO (Lin et al., arXiv 2411.19943) throughout, never conservative DPO.

Dimension key: none.
"""

import dataclasses
import enum
import math

from core_jax.errors import ConfigError
from core_jax.token_weights import WeightConfig, WeightControl


class Loss(enum.Enum):
    """What weighted log-ratios enter."""

    SFT = "sft"  # no preference: mean negative log-likelihood of the chosen response
    DPO = "dpo"  # one logistic per pair; with contrastive weights the paper's cDPO
    POSITION = "position"  # one logistic per position; with contrastive weights the released code
    TDPO1 = "tdpo1"  # DPO with the divergence of every token in its margin
    TDPO2 = "tdpo2"  # the same with the chosen side's divergence held fast
    RPO = "rpo"  # DPO and the mean negative log-likelihood of the chosen response


class WeightSource(enum.Enum):
    """Where the weights of tokens come from."""

    UNIFORM = "uniform"  # all one
    CONTRAST = "contrast"  # contrastive scores, through `core_jax.token_weights`
    TIS = "tis"  # importance of a token, from the positive and the negative model (TIS-DPO)
    TGDPO = "tgdpo"  # a first DPO run's log-ratios guide a second (TGDPO)
    STEP = "step"  # the first step (line) in which the responses differ (Step-DPO)


class WeightedSides(enum.Enum):
    """Which side contrastive weights stand on."""

    REJECTED = "rejected"  # the paper: the chosen response counts in full
    BOTH = "both"  # the chosen response's tokens also, by their score s (released code's option)


class Start(enum.Enum):
    """What training starts from, which is also the reference."""

    BASE = "base"
    SFT = "sft"  # fine-tuned on the chosen responses


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A preference method; it reads the numbers that its loss and its source name."""

    loss: Loss = Loss.DPO
    """What weighted log-ratios enter."""
    source: WeightSource = WeightSource.UNIFORM
    """Where the weights of tokens come from."""
    start: Start = Start.BASE
    """What training starts from."""
    beta: float = 1.0
    """All but sft: inverse temperature; gamma of the contrastive cDPO paper."""
    nll_weight: float = 1.0
    """rpo: weight of the chosen response's mean negative log-likelihood."""
    alpha: float = 0.5
    """tdpo2: weight of the divergences; tgdpo: strength of the guide (0.5 in both papers)."""
    contrast_beta: float = 1.0
    """contrast: strength of the contrast whose scores are read (the paper: 1)."""
    weights: WeightConfig = dataclasses.field(default_factory=WeightConfig)
    """contrast: how a score becomes a weight, and what is put in its place for comparison."""
    sides: WeightedSides = WeightedSides.REJECTED
    """contrast: which side is weighted."""
    eos_weight: float | None = None
    """contrast: weight of the end of sequence; None: by its score, like any token."""
    tis_scale: float = 1.0
    """tis: k, a factor of all weights."""
    tis_mu: float = 1.0
    """tis: mu, how strongly the models' log-ratio counts."""
    tis_low: float = -0.5
    """tis: L, where the log-ratio is cut off below."""
    tis_high: float = 1.5
    """tis: U, where it is cut off above."""

    def __post_init__(self) -> None:
        """Checks ranges, and what belongs together."""
        if not 0 < self.beta < math.inf:
            raise ConfigError(f"method.beta is {self.beta:g}; it must be positive and finite")
        for name in ("nll_weight", "alpha", "contrast_beta", "eos_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"method.{name} is {value:g}; it must be 0 or more")
        if self.tis_low > self.tis_high:
            raise ConfigError(
                f"method.tis_low is {self.tis_low:g} and tis_high {self.tis_high:g}; swap them"
            )
        if self.loss is Loss.SFT and self.source is not WeightSource.UNIFORM:
            raise ConfigError(
                f"method.loss is sft, which has no pairs to weigh, but source is "
                f"{self.source.value}; set it to uniform"
            )

    @property
    def needs_scores(self) -> bool:
        """Whether the positive and the negative model's judgement is read."""
        return self.source in (WeightSource.CONTRAST, WeightSource.TIS)

    @property
    def needs_reference_pass(self) -> bool:
        """Whether the reference itself runs while training, and not its log-probabilities alone."""
        return self.loss in (Loss.TDPO1, Loss.TDPO2)


class Row(enum.Enum):
    """A row of the table."""

    BASELINE = "baseline"
    SFT = "sft"
    DPO_SFT = "dpo_sft"
    TDPO1 = "tdpo1"
    TDPO2 = "tdpo2"
    DPO = "dpo"
    RPO = "rpo"
    CDPO = "cdpo"
    CDPO_SHUFFLED = "cdpo_shuffled"
    CDPO_CONSTANT = "cdpo_constant"
    CDPO_RANDOM = "cdpo_random"
    CDPO_BOTH = "cdpo_both"
    CDPO_CODE = "cdpo_code"
    CDPO_CODE_SHUFFLED = "cdpo_code_shuffled"
    TIS_DPO = "tis_dpo"
    TGDPO = "tgdpo"
    STEP_DPO = "step_dpo"


TITLES = {
    Row.BASELINE: "Baseline",
    Row.SFT: "SFT",
    Row.DPO_SFT: "DPO (from SFT)",
    Row.TDPO1: "TDPO1 (from SFT)",
    Row.TDPO2: "TDPO2 (from SFT)",
    Row.DPO: "DPO (from base)",
    Row.RPO: "RPO",
    Row.CDPO: "contrastive cDPO (paper)",
    Row.CDPO_SHUFFLED: "- weights shuffled",
    Row.CDPO_CONSTANT: "- mean weight",
    Row.CDPO_RANDOM: "- random weights",
    Row.CDPO_BOTH: "- both sides weighted",
    Row.CDPO_CODE: "contrastive cDPO (released code)",
    Row.CDPO_CODE_SHUFFLED: "- weights shuffled (code)",
    Row.TIS_DPO: "TIS-DPO",
    Row.TGDPO: "TGDPO",
    Row.STEP_DPO: "Step-DPO mask",
}
"""Names of the rows; one that begins with a dash is a control or variant of the row above."""


NEEDED_ROWS = {
    Row.DPO_SFT: (Row.SFT,),
    Row.TDPO1: (Row.SFT,),
    Row.TDPO2: (Row.SFT,),
    Row.TGDPO: (Row.DPO,),
}
"""Rows that start from others' models, or are guided by them."""


def row_method(row: Row) -> MethodConfig | None:
    """What a row trains, with the numbers of its paper; None for the baseline.

    Starts are those of the cDPO paper's Table 3: DPO and TDPO from the fine-tuned model, a second
    DPO, RPO and cDPO from the base. Relatives start from the base.
    """
    contrast = MethodConfig(source=WeightSource.CONTRAST, beta=1.0)  # gamma 1, section 3
    # The released code: a logistic per position, beta 0.1, the end of sequence in full.
    code = dataclasses.replace(contrast, loss=Loss.POSITION, beta=0.1, eos_weight=1.0)
    methods = {
        Row.BASELINE: None,
        Row.SFT: MethodConfig(loss=Loss.SFT),
        Row.DPO_SFT: MethodConfig(start=Start.SFT, beta=0.1),
        Row.TDPO1: MethodConfig(loss=Loss.TDPO1, start=Start.SFT, beta=0.1),
        Row.TDPO2: MethodConfig(loss=Loss.TDPO2, start=Start.SFT, beta=0.1),
        Row.DPO: MethodConfig(beta=0.1),
        Row.RPO: MethodConfig(loss=Loss.RPO, beta=0.1),
        Row.CDPO: contrast,
        Row.CDPO_SHUFFLED: _controlled(contrast, WeightControl.SHUFFLED),
        Row.CDPO_CONSTANT: _controlled(contrast, WeightControl.CONSTANT),
        Row.CDPO_RANDOM: _controlled(contrast, WeightControl.RANDOM),
        Row.CDPO_BOTH: dataclasses.replace(contrast, sides=WeightedSides.BOTH),
        Row.CDPO_CODE: code,
        Row.CDPO_CODE_SHUFFLED: _controlled(code, WeightControl.SHUFFLED),
        Row.TIS_DPO: MethodConfig(source=WeightSource.TIS, beta=0.1),
        Row.TGDPO: MethodConfig(source=WeightSource.TGDPO, beta=0.1),
        Row.STEP_DPO: MethodConfig(source=WeightSource.STEP, beta=0.4),
    }
    return methods[row]


def _controlled(method: MethodConfig, control: WeightControl) -> MethodConfig:
    """The method with something else in the place of its weights."""
    return dataclasses.replace(method, weights=dataclasses.replace(method.weights, control=control))
