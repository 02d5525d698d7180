"""The guidance of config.sample.guidance."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion import guidance
from diffusion.build.models import PREDICTIONS, Model
from diffusion.build.rules import choose, need
from diffusion.config import override
from diffusion.core.parameterization import Diffusion, on_process
from diffusion.errors import ConfigError
from diffusion.generate import Given
from diffusion.guidance.pairs import Interval, Pair
from diffusion.guidance.rules import Rule
from diffusion.samplers.base import Solver
from diffusion.typing import Params

RULES = {
    "none": None,
    "classifier_free": lambda c, scale: guidance.linear(scale),
    "cfg++": lambda c, scale: guidance.plus_plus(scale),
    "apg": lambda c, scale: guidance.projected(scale, parallel=c.parallel, norm_threshold=c.norm_threshold),
    "autoguidance": lambda c, scale: guidance.linear(scale),
}
# Solvers that ask the denoiser once a step, at the step's own x and t.
ONCE_A_STEP = ("ancestral", "ddim", "euler_ancestral", "euler", "dpm_solver++m", "dpm_solver++sde", "deis", "lms",
               "euler_maruyama", "reverse_diffusion")


class Guide(NamedTuple):
    """A rule for two predictions; its scale may be given to the chain, as given["scale"]."""
    pair: Callable[[Diffusion, Params], Pair]
    rule: Callable[[Given], Rule]
    interval: Interval | None
    momentum: float

    def diffusion(self, diffusion: Diffusion, params: Params, given: Given) -> Diffusion:
        return guidance.guided(diffusion, self.pair(diffusion, params), self.rule(given), interval=self.interval)

    def solver(self, solver: Solver, params: Params, given: Given, finish: Callable[[Diffusion], Diffusion]) -> Solver:
        """With the memory of earlier steps; `finish` is what comes after guidance."""
        return guidance.Momentum(solver=solver, momentum=self.momentum, pair=lambda d: self.pair(d, params),
                                 rule=self.rule(given), finish=finish)


def guide(config: ConfigDict, model: Model) -> Guide | None:
    """None without guidance. Raises ConfigError for what this model or solver cannot have."""
    c, s = config.sample.guidance, config.sample
    rule = choose(RULES, "sample.guidance.name", c.name)
    if rule is None:
        return None
    need(c.interval_low < c.interval_high, "sample.guidance.interval_low", c.interval_low, "must be below "
         f"interval_high = {c.interval_high!r}: noise levels between which guidance is on (Kynkaanniemi et al. 2024).")
    need(0 <= c.rescale <= 1, "sample.guidance.rescale", c.rescale, "is a share in [0, 1] (Lin et al. 2024: 0.7).")
    need(c.name != "cfg++" or s.solver == "ddim", "sample.guidance.name", c.name, "is a rule for DDIM's step (Chung et "
         "al. 2024, Algorithm 2): use sample.solver=ddim.")
    need(c.name != "cfg++" or not (s.rederive_eps and (s.clip or s.dynamic_threshold) or c.rescale),
         "sample.guidance.name", c.name, "keeps an eps that is not that of its x_0, which rederive_eps and rescale "
         "would undo: set sample.rederive_eps=False and rescale=0.")
    everywhere = (c.interval_low, c.interval_high) == (0.0, float("inf"))
    need(not c.momentum or c.name == "apg" and everywhere and s.corrector == "none" and s.solver in ONCE_A_STEP,
         "sample.guidance.momentum", c.momentum, "is of apg, at all noise levels, with a solver that asks the network "
         f"once a step (Sadat et al. 2024, Algorithm 1): one of {', '.join(ONCE_A_STEP)}, without a corrector.")
    pair = models(config, model) if c.name == "autoguidance" else labels(c, model)
    space = PREDICTIONS.get(config.prediction, PREDICTIONS["eps"])(config)

    def rule_of(given: Given) -> Rule:
        one = rule(c, given.get("scale", c.scale))
        return guidance.rescaled(one, c.rescale, space) if c.rescale else one
    return Guide(pair, rule_of, None if everywhere else (c.interval_low, c.interval_high), c.momentum)


def with_scale(config: ConfigDict, scale: float) -> ConfigDict:
    """The config with its guidance at another scale: classifier-free guidance where it names none, and none where the
    scale is 1 and its rule then changes nothing."""
    name = config.sample.guidance.name
    if scale == 1 and name != "cfg++":
        name = "none"
    elif name == "none":
        name = "classifier_free"
    return override(config, {"sample.guidance.name": name, "sample.guidance.scale": float(scale)})


def null_label(c: ConfigDict, model: Model) -> int | None:
    """The label for "no class": the model's own, or the one that the guidance `c` of a pretrained model names."""
    if c.null_label < 0:
        return model.null_label
    key = "sample.guidance.null_label"
    need(model.num_classes > 0, key, c.null_label, "is a label, and the model has none: network.num_classes = 0.")
    need(model.null_label in (None, c.null_label), key, c.null_label, f"is a class of this model. Its label for no "
         f"class is {model.null_label}: leave the key at -1.")
    need(model.null_label is not None or c.null_label < model.num_classes, key, c.null_label, "is not a label of the "
         f"model, which has 0 .. {model.num_classes - 1}.")
    return c.null_label


def classes(config: ConfigDict, model: Model, chosen: Sequence[int] | None = None) -> np.ndarray | None:
    """The labels int32 [K] that images are drawn of, in turn: `chosen`, or all but the one for "no class"; None for an
    unconditional model. Raises ConfigError for a label that the model has not."""
    null = null_label(config.sample.guidance, model)
    if not model.num_classes:
        if chosen is not None:
            raise ConfigError("Classes were chosen, but the model is unconditional: network.num_classes = 0.")
        return None
    proper = [label for label in range(model.num_classes) if label != null]
    if chosen is None:
        need(proper, "sample.guidance.null_label", null, "is the only label of the model: there is no class to draw.")
        return np.array(proper, np.int32)
    allowed = {*proper, *(() if null is None else (null,))}
    if not len(chosen) or (wrong := sorted({*chosen} - allowed)):
        raise ConfigError(f"Classes must be labels of the model, 0 .. {max(proper, default=0)}"
                          + ("" if null is None else f", or {null} for no class")
                          + (f"; got {wrong[0]}." if len(chosen) else "; got none."))
    return np.array(chosen, np.int32)


def labels(c: ConfigDict, model: Model) -> Callable[[Diffusion, Any], Pair]:
    """With the label, and without."""
    need(model.num_classes > 0, "sample.guidance.name", c.name, "guides towards a label, and the model has "
         "none: network.num_classes = 0.")
    null = null_label(c, model)
    need(null is not None, "sample.guidance.name", c.name, "needs a model that was trained without labels too: "
         "network.label_dropout (Ho & Salimans 2022: 0.1), or sample.guidance.null_label, the label that a pretrained "
         "one has for no class.")
    return lambda diffusion, params: guidance.label_pair(diffusion, null)


def models(config: ConfigDict, model: Model) -> Callable[[Diffusion, Any], Pair]:
    """The model, and the worse one whose parameters are params["guide"]."""
    other, key = model.guide, "sample.guidance.guide"
    need(other is not None, "sample.guidance.name", "autoguidance", "guides away from a second, worse model of the "
         "same data, smaller or less trained (Karras et al. 2024, \"Guiding ... with a Bad Version of Itself\"). Name "
         f"it when sampling, by {key}: a run folder, or what else --from_pretrained takes. Training's previews have "
         "none.")
    source = config.sample.guidance.guide
    need(other.shape == model.shape, key, source, f"draws images of {other.shape}, and this model of {model.shape}.")
    need(other.num_classes in (0, model.num_classes), key, source, f"knows {other.num_classes} classes, and this model "
         f"{model.num_classes}.")
    same = other.process is model.process and config.sample.schedule == "model"
    need(same or not isinstance(other.process.t_max, int) or config.sample.between_times, key, source, "has another "
         "process, of whole times, and would be asked between them: say sample.between_times=True if that is meant.")

    def pair(diffusion: Diffusion, params: Params) -> Pair:
        worse = other.denoiser(params["guide"])
        if not other.num_classes:
            alone = worse.denoise
            worse = worse._replace(denoise=lambda x_t, t, cond=None: alone(x_t, t))
        return guidance.model_pair(diffusion, worse if same else on_process(worse, diffusion.process))
    return pair
