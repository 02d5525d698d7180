"""The guidance of config.sample.guidance."""
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from diffusion import guidance
from diffusion.build.conditions import check_classes
from diffusion.build.kinds import clips
from diffusion.build.models import Model
from diffusion.build.objective import prediction
from diffusion.build.rules import require_key
from diffusion.config import override
from diffusion.core import conditions
from diffusion.core.parameterization import Diffusion, on_process
from diffusion.errors import ConfigError
from diffusion.families import BY_NAME
from diffusion.generate import ChainInputs
from diffusion.guidance.members import Guidance
from diffusion.guidance.pairs import Interval, Pair
from diffusion.guidance.rules import Rule
from diffusion.samplers.base import Solver
from diffusion.typing import NO_COND, Params


class Guide(NamedTuple):
    """A rule that combines two predictions; the chain may override its scale by chain_inputs["scale"]."""
    pair: Callable[[Diffusion, Params], Pair]
    rule: Callable[[ChainInputs], Rule]
    interval: Interval | None
    momentum: float

    def diffusion(self, diffusion: Diffusion, params: Params, chain_inputs: ChainInputs) -> Diffusion:
        return guidance.guided(diffusion, self.pair(diffusion, params), self.rule(chain_inputs), interval=self.interval)

    def solver(self, solver: Solver, params: Params, chain_inputs: ChainInputs,
               finish: Callable[[Diffusion], Diffusion]) -> Solver:
        """Wraps the solver with momentum over earlier steps; `finish` runs after guidance."""
        return guidance.Momentum(solver=solver, momentum=self.momentum, pair=lambda d: self.pair(d, params),
                                 rule=self.rule(chain_inputs), finish=finish)


def guide(config: ConfigDict, model: Model) -> Guide | None:
    """The guidance as a `Guide`, or None without guidance. Raises ConfigError if the model or solver does not fit."""
    c, found = config.sample.guidance, check_guidance(config)
    if found is None:
        return None
    pair = weak_by_conditions(c, model) if found.by_labels else model_pair(config, model)
    space = prediction(config)

    def rule_of(chain_inputs: ChainInputs) -> Rule:
        rule = found.rule(chain_inputs.get("scale", c.scale))
        return guidance.rescaled(rule, found.rescale, space) if found.rescale else rule
    return Guide(pair, rule_of, found.interval, found.momentum)


def check_guidance(config: ConfigDict) -> Guidance | None:
    """The guidance that config.sample.guidance names, checked against the solver; None without guidance."""
    s, name, key = config.sample, config.sample.guidance.name, "sample.guidance.name"
    found = BY_NAME["guidance"].make(s.guidance)
    if found is None:
        return None
    require_key(found.only_solver in (None, s.solver), key, name, "is a rule for DDIM's step (Chung et al. 2024, "
                f"Algorithm 2): use sample.solver={found.only_solver}.")
    limited = clips(config) or s.dynamic_threshold
    require_key(not found.keeps_eps or not (s.rederive_eps and limited), key, name, "keeps an eps that does not match "
                "its x_0, which rederive_eps would undo: set sample.rederive_eps=False.")
    require_key(not found.keeps_eps or s.corrector == "none", "sample.corrector", s.corrector, "needs a score, and the "
                f"eps of guidance {name} does not match its x_0: no density has both (Chung et al. 2024).")
    solver = BY_NAME["solver"].make(s, steps=max(s.steps, 1))
    require_key(not found.momentum or found.interval is None and s.corrector == "none" and solver.once_a_step,
                "sample.guidance.momentum", found.momentum, "needs apg, at all noise levels, with a solver that calls "
                "the network once a step (Sadat et al. 2024, Algorithm 1), such as ddim or dpm_solver++m, without a "
                "corrector.")
    return found


def with_scale(config: ConfigDict, scale: float) -> ConfigDict:
    """The config with its guidance at another scale: classifier-free guidance if it names none, and no guidance if the
    scale is 1 and the rule then changes nothing."""
    name = config.sample.guidance.name
    if scale == 1 and name != "cfg++":
        return override(config, {"sample.guidance.name": "none"})
    if name == "none":
        name = "classifier_free"
    return override(config, {"sample.guidance.name": name, "sample.guidance.scale": float(scale)})


def null_label(c: ConfigDict, model: Model) -> int | None:
    """The label for "no class": the model's own, or the one named by the guidance `c` for a pretrained model."""
    if c.null_label < 0:
        return model.null_label
    key = "sample.guidance.null_label"
    require_key(model.num_classes > 0, key, c.null_label, "is a label, and the model has none: network.num_classes = "
                "0.")
    require_key(model.null_label in (None, c.null_label), key, c.null_label, f"is a class of this model. The label for "
                f"no class is {model.null_label}: leave the key at -1.")
    require_key(model.null_label is not None or c.null_label < model.num_classes, key, c.null_label, "is not a label "
                f"of the model, which has 0 .. {model.num_classes - 1}.")
    return c.null_label


def classes(config: ConfigDict, model: Model, chosen: Sequence[int] | None = None) -> np.ndarray | None:
    """The labels int32 [K] of the images to draw, used in turn: `chosen`, or all except the label for "no class"; None
    for an unconditional model. Raises ConfigError for a label that the model does not have."""
    null = null_label(config.sample.guidance, model)
    if not model.num_classes:
        if chosen is not None:
            raise ConfigError("Classes were chosen, but the model is unconditional: network.num_classes = 0.")
        return None
    proper = [label for label in range(model.num_classes) if label != null]
    if chosen is None:
        require_key(proper, "sample.guidance.null_label", null, "is the only label of the model: there is no class to "
                    "draw.")
        return np.array(proper, np.int32)
    return check_classes(proper, null, chosen)


def weak_by_conditions(c: ConfigDict, model: Model) -> Callable[[Diffusion, Any], Pair]:
    """The predictions with the conditions and without those that can be hidden."""
    require_key(model.conditions, "sample.guidance.name", c.name, "guides towards a label or another condition, but "
                "the model has none: network.num_classes = 0.")
    nulls, null = conditions.nulls(model.conditions), null_label(c, model)
    if null is not None:
        nulls["label"] = null
    require_key(nulls, "sample.guidance.name", c.name, "needs a model that was trained without labels too: "
                "network.label_dropout (Ho & Salimans 2022: 0.1), or sample.guidance.null_label, the label for no "
                "class of a pretrained model.")
    return lambda diffusion, params: guidance.condition_pair(diffusion, nulls)


def model_pair(config: ConfigDict, model: Model) -> Callable[[Diffusion, Any], Pair]:
    """The predictions of the model and of the worse model with the parameters params["guide"]."""
    other, key = model.guide, "sample.guidance.guide"
    require_key(other is not None, "sample.guidance.name", "autoguidance", "guides away from a second, worse model of "
                "the same data, smaller or less trained (Karras et al. 2024, \"Guiding ... with a Bad Version of "
                f"Itself\"). Name it when sampling, by {key}: a run folder, or another source of --from_pretrained. "
                "Training's previews have none.")
    source = config.sample.guidance.guide
    require_key(other.shape == model.shape, key, source, f"draws images of {other.shape}, but this model of "
                f"{model.shape}.")
    require_key(other.num_classes in (0, model.num_classes), key, source, f"knows {other.num_classes} classes, and "
                f"this model {model.num_classes}.")
    require_key(set(other.conditions) <= set(model.conditions), key, source, "takes the conditions "
                f"{', '.join(other.conditions)}, and this model {', '.join(model.conditions) or 'none'}.")
    same = other.process is model.process and config.sample.schedule == "model"
    require_key(same or not other.process.discrete or config.sample.between_times, key, source, "has another "
                "process, of whole times, and would be evaluated between them: set sample.between_times=True to allow "
                "this.")

    def pair(diffusion: Diffusion, params: Params) -> Pair:
        worse = other.denoiser(params["guide"])
        alone = worse.denoise
        worse = Diffusion(worse.process, lambda x_t, t, cond=NO_COND: alone(
            x_t, t, {name: cond[name] for name in other.conditions}))
        return guidance.model_pair(diffusion, worse if same else on_process(worse, diffusion.process))
    return pair
