"""The guidance of config.sample.guidance."""
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion import guidance
from diffusion.build.models import PREDICTIONS, Model
from diffusion.build.rules import choose, need
from diffusion.core.parameterization import Diffusion, on_process
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


def labels(c: ConfigDict, model: Model) -> Callable[[Diffusion, Any], Pair]:
    """With the label, and without."""
    null = model.null_label if c.null_label < 0 else c.null_label
    need(model.num_classes > 0, "sample.guidance.name", c.name, "guides towards a label, and the model has "
         "none: network.num_classes = 0.")
    need(null is not None and null <= model.num_classes, "sample.guidance.name", c.name, "needs a model that was "
         "trained without labels too: network.label_dropout (Ho & Salimans 2022: 0.1), or sample.guidance.null_label, "
         "the label that a pretrained one has for no class.")
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
