"""Noise schedules of the discrete papers: tables of beta_1 .. beta_T, float64 [T], made on the host.

q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), Ho et al. (2020), Eq. 2.
"""
import jax
import numpy as np

from diffusion.core.processes import Process


def linear(steps: int, *, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """T evenly spaced betas from `start` to `end`: Ho et al. (2020), Section 4 (T = 1000, 1e-4 .. 0.02).

    The end points are the paper's for T = 1000 and are not rescaled for another T.
    """
    return np.linspace(start, end, steps, dtype=np.float64)


def cosine(steps: int, *, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) pi/2), betas clipped at `max_beta`.

    Nichol & Dhariwal (2021), "Improved DDPM", Eq. 17; s = `offset`.
    """
    t = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def scaled_linear(steps: int, *, start: float, end: float) -> np.ndarray:
    """T betas whose square roots are evenly spaced: "quad" of Ho et al. (2020, code), and latent diffusion's (Rombach
    et al. 2022, code)."""
    return np.linspace(start**0.5, end**0.5, steps, dtype=np.float64) ** 2


def sigmoid(steps: int, *, start: float, end: float) -> np.ndarray:
    """T betas from about `start` to about `end` along a logistic curve over [-6, 6] (GeoDiff, Xu et al. 2022, code)."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, steps, dtype=np.float64)))


def constant(steps: int, *, end: float) -> np.ndarray:
    """beta_t = end, "const" of Ho et al. (2020, code)."""
    return np.full(steps, end, np.float64)


def jsd(steps: int) -> np.ndarray:
    """beta_t = 1 / (T - t + 1), "jsd" of Ho et al. (2020, code), after Sohl-Dickstein et al. (2015), Section 2.4.1.

    The last is 1: alpha_bar_t = 1 - t / T falls to 0.
    """
    return 1 / np.arange(steps, 0, -1, dtype=np.float64)


def warmup(steps: int, *, start: float, end: float, share: float) -> np.ndarray:
    """From `start` to `end` over the first `share` of the steps, then `end`: "warmup10" (0.1) and "warmup50" (0.5) of
    Ho et al. (2020, code)."""
    betas, rising = constant(steps, end=end), int(steps * share)
    betas[:rising] = np.linspace(start, end, rising, dtype=np.float64)
    return betas


def of_process(process: Process, steps: int) -> np.ndarray:
    """The chain with the marginals that a variance-preserving process in continuous time has at t = 1/T, 2/T .. 1."""
    with jax.enable_x64(True):
        log_alpha_bar = np.append(0.0, -np.logaddexp(0, -np.asarray(process.log_snr(np.arange(1, steps + 1) / steps))))
    return -np.expm1(np.diff(log_alpha_bar))


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled so that alpha_T = 0, with alpha_1 as before; beta_T = 1.

    Lin et al. (2024), "Common Diffusion Noise Schedules and Sample Steps Are Flawed", Algorithm 1: alpha (here
    sqrt(alpha_bar)) is shifted and scaled linearly. Raises ValueError for one step: alpha_1 cannot be both kept and 0.
    """
    if len(betas) < 2:
        raise ValueError(f"zero terminal SNR needs at least 2 steps, got {len(betas)}")
    alpha = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return 1 - (alpha / np.append(1.0, alpha[:-1])) ** 2
