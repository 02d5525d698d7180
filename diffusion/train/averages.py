"""Averages of the parameters over the training: what is sampled and evaluated.

A run may keep several at once. An average's rule gives the weight of the new parameters in each update as a function of
the images seen, computed in the step. Images are counted in float32, since EDM2's lengths overflow int32, and small
weights are computed by expm1 and log1p: 1 - (1 - x) would keep one digit of x = 1e-7.
"""
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import require
from diffusion.typing import Array, Params


class Rule(ABC):
    """How an average follows the parameters. Members are frozen dataclasses of their settings."""

    @abstractmethod
    def share(self, step: Array, *, batch_size: int, images_before: int = 0) -> Array:
        """The weight of the new parameters in update number `step` (1 for the first); 1: a copy of them.

        images_before: images seen in excess of step * batch_size, as after a change of the batch size.
        """

    def update(self, average: Params, params: Params, step: Array, key: Array | None = None, *, batch_size: int,
               images_before: int = 0) -> Params:
        """The average after update number `step`, which gave `params`; `key` rounds a bfloat16 average."""
        return blend(average, params, self.share(step, batch_size=batch_size, images_before=images_before), key)


@dataclass(frozen=True, kw_only=True)
class HalfLife(Rule):
    """An exponential average: after `half_life` images, what was there before counts half.

    The half-life is at most `warmup_ratio` * images seen (Karras et al. 2022, EDM, their code's EMA ramp-up: 0.05), so
    that the average forgets the random start; 0 turns this off, as in Ho et al. (2020). A constant decay d per step is
    a half-life of batch_size * log(1/2) / log(d) images: d = 0.9999 at batch 128 is 887,184 images.
    """
    half_life: float  # images
    warmup_ratio: float = 0.05

    def share(self, step: Array, *, batch_size: int, images_before: int = 0) -> Array:
        """1 - 2^(-batch_size / half-life)."""
        half_life = self.half_life
        if self.warmup_ratio:
            half_life = jnp.minimum(half_life, _images(step, batch_size, images_before) * self.warmup_ratio)
        return -jnp.expm1(-math.log(2) * batch_size / half_life)


@dataclass(frozen=True, kw_only=True)
class Power(Rule):
    """The average over all images t seen with weight t^gamma, which forgets the start at once.

    Karras et al. (2024), "EDM2", Section 3.1: beta(t) = (1 - dt / t)^(gamma + 1) for a step of dt images that ends at
    t.
    """
    gamma: float

    @classmethod
    def of_width(cls, sigma_rel: float) -> "Power":
        """The average whose weights have the standard deviation sigma_rel, relative to the length of the training.

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for gamma (their Section 3.1 and Appendix C, and
        `std_to_exp` of their phema.py). Raises FieldError unless 0 < sigma_rel < 12^(-1/2), the width of gamma = 0.
        """
        require(0 < sigma_rel < 12**-0.5, "sigma_rel", sigma_rel, "must lie in (0, 0.2886), the widths of gamma > 0 "
                "(Karras et al. 2024, Section 3.1: 0.05 and 0.10).")
        precision = float(sigma_rel) ** -2
        return cls(gamma=float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max()))

    def share(self, step: Array, *, batch_size: int, images_before: int = 0) -> Array:
        """1 - (1 - batch_size / t)^(gamma + 1)."""
        seen = _images(step, batch_size, images_before)
        return -jnp.expm1((self.gamma + 1) * jnp.log1p(-batch_size / seen))


@dataclass(frozen=True, kw_only=True)
class Copy(Rule):
    """The parameters of the last step that `every` divides, to the last bit: a target network."""
    every: int  # steps

    def share(self, step: Array, *, batch_size: int, images_before: int = 0) -> Array:
        return jnp.where(step % self.every == 0, 1.0, 0.0)

    def update(self, average: Params, params: Params, step: Array, key: Array | None = None, **images: int) -> Params:
        due = step % self.every == 0
        return jax.tree.map(lambda a, p: jnp.where(due, p.astype(a.dtype), a), average, params)


@dataclass(frozen=True, kw_only=True)
class Average:
    """An average of a parameter set. dtype: float32, or bfloat16, which is rounded at random."""
    rule: Rule
    of: str = "online"
    dtype: str = "float32"


def _images(step: Array, batch_size: int, images_before: int) -> Array:
    return jnp.asarray(step, float) * batch_size + float(images_before)  # both overflow int32


def blend(average: Params, params: Params, share: Array, key: Array | None = None) -> Params:
    """(1 - share) * average + share * params, leaf by leaf, in float32. A bfloat16 average is rounded by `key`, at
    random."""
    leaves, tree = jax.tree.flatten(average)
    new = [e.astype(p.dtype) + share * (p - e.astype(p.dtype)) for e, p in zip(leaves, tree.flatten_up_to(params))]
    return tree.unflatten([n if e.dtype == n.dtype else stochastic_round(n, jax.random.fold_in(key, i))
                           for i, (e, n) in enumerate(zip(leaves, new))])


def stochastic_round(x: Array, key: Array) -> Array:
    """float32 to one of the two neighbouring bfloat16 numbers, so that the mean over keys is x.

    Rounding to nearest would freeze the average: at a decay of 0.9999 its steps are far below bfloat16's 2^-9.
    """
    # A bfloat16 is the upper half of a float32: adding a random lower half carries into it with the right probability.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


# Members of ema.name and of config.averages. `build` gives the functions that turn a duration into images or steps.
def half_life(*, images_of: Callable[[str, str], float],
              half_life: str = "887184 images",  # of the parameter average; decay 0.9999 a step at batch 128
              warmup_ratio: float = 0.05,  # half-life <= this * images seen (EDM's ramp-up); 0: full length at once
              ) -> HalfLife:
    """An exponential average of given half-life (Ho et al. 2020; ramp-up of Karras et al. 2022)."""
    images = images_of(half_life, "half_life")
    require(images > 0, "half_life", half_life, "must be positive.")
    require(warmup_ratio >= 0, "warmup_ratio", warmup_ratio, "must not be negative.")
    return HalfLife(half_life=images, warmup_ratio=warmup_ratio)


def power(*,
          sigma_rel: float = 0.05,  # standard deviation of the weights, relative to the length of the training
          ) -> Power:
    """The power function average (Karras et al. 2024, Section 3.1)."""
    return Power.of_width(sigma_rel)


def copy(*, steps_of: Callable[[str, str], int],
         every: str = "1000 steps",  # the interval between two copies
         ) -> Copy:
    """The parameters as they were at the last interval, as a target network."""
    steps = steps_of(every, "every")
    require(steps >= 1, "every", every, "must be one step or more.")
    return Copy(every=steps)


AVERAGES = {"half_life": half_life, "power": power, "copy": copy}
