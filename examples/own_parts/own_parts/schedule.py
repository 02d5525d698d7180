"""A schedule: a table of betas that rises as a power of t."""
import numpy as np

from diffusion.core.schedules import chain
from diffusion.errors import require


def power(steps: int, *,
          first_beta: float = 1e-4,  # beta_1
          last_beta: float = 0.02,   # beta_T
          exponent: float = 1.5,     # 1: a line, as in Ho et al. (2020)
          ) -> np.ndarray:
    """beta_t = first + (last - first) ((t - 1) / (T - 1))^exponent, float64 [T]."""
    require(exponent > 0, "exponent", exponent, "must be positive.")
    share = np.linspace(0, 1, steps, dtype=np.float64)
    return first_beta + (last_beta - first_beta) * share**exponent


PROCESSES = {"power": chain(power)}
