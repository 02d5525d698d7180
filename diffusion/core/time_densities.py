"""Which times t are trained on: functions keys [B] -> t [B], row i a function of keys[i] alone."""
import jax

from diffusion.core.processes import Process
from diffusion.typing import Array, Keys


def uniform_discrete(keys: Keys, process: Process) -> Array:
    """Uniform over the integers 1..T (Ho et al. 2020, Algorithm 1)."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, process.t_max + 1))(keys)
