"""An objective as a list of updates: each trains one parameter set by one loss and one optimizer."""
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion.core.losses import Bind, Inputs, Loss
from diffusion.errors import require
from diffusion.train.state import ONLINE, RAW
from diffusion.typing import Array


@dataclass(frozen=True, kw_only=True)
class Update:
    """Trains the set `trains` by `loss` in the steps 0, every, 2 every, ...; in other steps the set, its optimizer's
    state and its rate's count stay as they are. An optimizer may have `evaluated(state, params)`, the parameters that
    averages follow."""
    loss: Loss
    optimizer: optax.GradientTransformation
    trains: str = ONLINE
    every: int = 1
    learning_rate: optax.Schedule | None = None  # the optimizer's schedule, for the log


def check_updates(updates: Sequence[Update], sets: Collection[str], averages: Mapping[str, str],
                  frozen: Collection[str] = ()) -> None:
    """Raises ValueError unless the updates train different sets that exist, one of them in every step, and no two of
    the sets, averages and frozen sets share a name. averages: name -> the set that it follows."""
    require(len(updates) > 0, "updates", list(updates), "must have an update.")
    for update in updates:
        require(isinstance(update, Update), "updates", update, "is not an Update: write Update(loss=..., "
                "trains=\"online\", optimizer=...).")
        require(callable(update.loss), "loss", update.loss, "is a function of (bind, inputs): see core/losses.py.")
        require(hasattr(update.optimizer, "init") and hasattr(update.optimizer, "update"), "optimizer",
                update.optimizer, "is not an optimizer of optax, such as optax.adam(1e-3).")
    trained = [update.trains for update in updates]
    for name in trained:
        require(name in sets, "trains", name, f"is not a parameter set that is trained. Those are: "
                f"{', '.join(sorted(sets))}.")
        require(trained.count(name) == 1, "trains", name, "has two updates: add their losses, since a set has one "
                "optimizer.")
    for update in updates:
        require(isinstance(update.every, int) and update.every >= 1, "every", update.every, "must be a whole number of "
                "steps, 1 or more.")
    require(any(update.every == 1 for update in updates), "every", [update.every for update in updates], "leaves steps "
            "in which nothing is trained: give one update every=1.")
    for name in sets:
        require(name in trained, "updates", trained, f"do not train the set {name!r}: make it a frozen set.")
    names = [*sets, *averages, *frozen, RAW]
    for name in names:
        require(names.count(name) == 1, "averages", name, "is the name of two of the parameter sets, averages and "
                "frozen sets (or \"raw\", which means not averaged): give each its own.")
    for name, followed in averages.items():
        require(followed in sets, "averages", name, f"follows {followed!r}, which is not trained. Trained are: "
                f"{', '.join(sorted(sets))}.")


def loss_of(update: Update, bind: Bind, inputs: Inputs) -> tuple[Array, Any]:
    """The loss of an update and its auxiliary values. Raises ValueError, while it is traced, for a loss that returns
    something else, or that does not depend on the set which the update trains."""
    found, count = update.loss(bind, inputs), len(inputs.x0)
    if not isinstance(found, tuple) or len(found) != 2 or getattr(found[0], "shape", None) != (count,):
        shape = lambda x: list(x.shape) if hasattr(x, "shape") else type(x).__name__  # noqa: E731
        told = ", ".join(str(shape(x)) for x in found) if isinstance(found, tuple) else shape(found)
        raise ValueError(f"The loss of the update of {update.trains!r} must return (the losses [{count}], one for each "
                         f"example, and a mapping of values to log, such as {{}}), but it returned {told}.")
    if update.trains not in bind.read:
        raise ValueError(f"The update of {update.trains!r} does not use these parameters: its loss asks for "
                         f"{', '.join(sorted(bind.read)) or 'none'}. Nothing would be trained.")
    return found


def due(updates: Sequence[Update], step: int) -> tuple[bool, ...]:
    """Which of the updates are made in the step after `step` steps."""
    return tuple(step % update.every == 0 for update in updates)


def rate_of(update: Update, opt_state: optax.OptState) -> Array:
    """The learning rate that the optimizer applies next: its schedule at the count in its own state, or the rate in the
    state of `optax.inject_hyperparams`; else NaN."""
    if update.learning_rate is not None:
        counts = [x.count for x in _parts(opt_state, optax.ScaleByScheduleState)]
        if counts:
            return jnp.asarray(update.learning_rate(counts[0]), float)  # a constant schedule gives a plain number
    for part in _parts(opt_state, optax.InjectStatefulHyperparamsState):
        if "learning_rate" in part.hyperparams:
            return jnp.asarray(part.hyperparams["learning_rate"], float)
    return jnp.asarray(jnp.nan)


def _parts(opt_state: optax.OptState, kind: type) -> list:
    is_one = lambda x: isinstance(x, kind)  # noqa: E731
    return [x for x in jax.tree.leaves(opt_state, is_leaf=is_one) if is_one(x)]
