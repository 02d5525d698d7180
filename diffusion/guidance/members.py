"""The members of sample.guidance.name: a rule, the pair of predictions it combines, and their settings."""
from dataclasses import dataclass

from diffusion.errors import require
from diffusion.guidance import rules
from diffusion.guidance.pairs import Interval
from diffusion.guidance.rules import Rule
from diffusion.typing import Array


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Common settings, with the linear rule. The class attributes declare a member's abilities."""
    scale: float = 1.0                   # 1: no guidance; the papers' w is often this less 1
    interval_low: float = 0.0            # guidance is on at noise levels above this
    interval_high: float = float("inf")  # guidance is on at noise levels up to this (Kynkaanniemi et al. 2024)
    null_label: int = -1                 # the label for "no class", never drawn; -1: network.label_dropout's
    by_labels = True     # whether the weak prediction is the model's without the label, or a second model's
    only_solver = None   # the only solver that it works with
    keeps_eps = False    # whether its eps does not match its x_0
    momentum = 0.0       # weight of earlier steps' directions
    rescale = 0.0        # share of the change to the unguided standard deviation

    def __post_init__(self):
        require(self.interval_low < self.interval_high, "interval_low", self.interval_low, "must be below "
                f"interval_high = {self.interval_high!r}: noise levels between which guidance is on (Kynkaanniemi et "
                "al. 2024).")
        require(0 <= self.rescale <= 1, "rescale", self.rescale, "is a share in [0, 1] (Lin et al. 2024: 0.7).")

    @property
    def interval(self) -> Interval | None:
        """The noise levels within which guidance is on; None: everywhere."""
        found = (self.interval_low, self.interval_high)
        return None if found == (0.0, float("inf")) else found

    def rule(self, scale: Array | float) -> Rule:
        """The rule at a scale, which may be traced."""
        return rules.linear(scale)


@dataclass(frozen=True, kw_only=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance (Ho & Salimans 2022)."""
    rescale: float = 0.0   # move the standard deviation to the unguided one by this share (Lin et al. 2024)


@dataclass(frozen=True, kw_only=True)
class PlusPlus(Guidance):
    """CFG++ (Chung et al. 2024), a rule for DDIM's step."""
    only_solver = "ddim"
    keeps_eps = True

    def rule(self, scale: Array | float) -> Rule:
        return rules.plus_plus(scale)


@dataclass(frozen=True, kw_only=True)
class Projected(ClassifierFree):
    """Adaptive projected guidance, APG (Sadat et al. 2024)."""
    parallel: float = 0.0                 # weight of guidance along x0
    norm_threshold: float = float("inf")  # upper limit of the guidance's norm
    momentum: float = 0.0                 # beta, weight of earlier steps' guidance (the paper: -0.5)

    def rule(self, scale: Array | float) -> Rule:
        return rules.projected(scale, parallel=self.parallel, norm_threshold=self.norm_threshold)


@dataclass(frozen=True, kw_only=True)
class Autoguidance(Guidance):
    """Guidance by a worse version of the model (Karras et al. 2024)."""
    rescale: float = 0.0
    guide: str = ""                    # the worse model: a source as for --init_from, PATH[@STEP][#WEIGHTS]
    guide_checkpoint: int | None = None  # the checkpoint's step, if the guide is a run
    by_labels = False


def no_guidance(*, null_label: int = -1) -> None:
    """The model's own prediction."""


GUIDANCES = {"none": no_guidance, "classifier_free": ClassifierFree, "cfg++": PlusPlus, "apg": Projected,
             "autoguidance": Autoguidance}
