"""The learned uncertainty u(lambda) of the loss at each noise level: Karras et al. (2024), "EDM2", Eq. 21."""
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from diffusion.typing import Array


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """u is a linear layer on Fourier features of ln(sigma/alpha)/4; the loss L becomes L e^-u + u, least at u = ln L.

    Every noise level then contributes equally, whatever its loss. The frequencies are N(0, 1) and fixed, and u starts
    at 0. Unlike in the paper's network, the layer is not normalised.
    """
    channels: int = 128

    def init(self) -> dict[str, Array]:
        """The parameters, stored next to the network's in params["uncertainty"]."""
        return {"weight": jnp.zeros(self.channels)}

    def __call__(self, params: dict[str, Array], log_snr: Array) -> Array:
        """u [B] of lambda [B]."""
        random = np.random.default_rng(0)
        frequencies, phases = (jnp.asarray(2 * np.pi * draw, float)[None] for draw in (
            random.standard_normal(self.channels), random.uniform(size=self.channels)))
        features = np.sqrt(2) * jnp.cos(-log_snr[:, None] / 8 * frequencies + phases)
        return features @ params["weight"] / np.sqrt(self.channels)
