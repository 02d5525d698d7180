"""SDEdit: Meng et al. (2022), "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations"."""
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.processes import Process
from diffusion.typing import Array, Image, Keys, Time


def truncate_grid(steps: np.ndarray, strength: float) -> np.ndarray:
    """The last round(strength S) of the steps [S, 2]: at 1 all of them, at 0 none, which leaves the image as it is."""
    return steps[len(steps) - round(strength * len(steps)):]


def start(process: Process, image: Image, t: Time, keys: Keys) -> Array:
    """alpha x + sigma eps at t (Meng et al. 2022, Algorithm 1), with the same noise as `draw_prior`."""
    noise = numerics.normal(numerics.fold_in(keys, 0), image.shape[1:], jnp.float32)
    return process.diffuse(jnp.asarray(image), t, noise)
