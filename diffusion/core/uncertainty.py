"""The learned uncertainty u(lambda) of the loss at each noise level: Karras et al. (2024), "EDM2", Eq. 21."""
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from diffusion.typing import Array, Params

EPSILON = 1e-4  # added to what is divided by


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """u is a linear layer on Fourier features of ln(sigma/alpha)/4; the loss L becomes L e^-u + u, least at u = ln L.

    Every noise level then contributes equally, whatever its loss. The frequencies are N(0, 1) turns and fixed. u starts
    at 0. normalised: as in the paper's network, the weights have the mean square 1, from the start (Eqs. 47 and 66): u
    is then of the order of 1, which suits weightings with L near 1 at each noise level, such as EDM's.
    """
    channels: int = 128
    normalised: bool = False

    def init(self) -> dict[str, Array]:
        """The parameters, stored next to the network's in params["uncertainty"]."""
        if not self.normalised:
            return {"weight": jnp.zeros(self.channels)}
        draw = np.random.default_rng(1).standard_normal(self.channels)
        return self.project({"weight": jnp.asarray(draw, float)})

    def project(self, params: Params) -> Params:
        """The parameters after an update."""
        return {"weight": self._weight(params)}

    @property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Frequencies and phases, [channels] each, in radians."""
        random = np.random.default_rng(0)
        return 2 * np.pi * random.standard_normal(self.channels), 2 * np.pi * random.uniform(size=self.channels)

    def __call__(self, params: Params, log_snr: Array) -> Array:
        """u [B] of lambda [B]."""
        frequencies, phases = (jnp.asarray(drawn, float)[None] for drawn in self.features)
        features = np.sqrt(2) * jnp.cos(-log_snr[:, None] / 8 * frequencies + phases)
        return features @ self._weight(params) / np.sqrt(self.channels)

    def _weight(self, params: Params) -> Array:
        w = params["weight"]
        return w / (jnp.sqrt(jnp.mean(w**2)) + EPSILON) if self.normalised else w
