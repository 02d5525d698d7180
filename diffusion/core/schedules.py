"""Noise schedules of the discrete papers: tables of beta_1 .. beta_T, float64 [T], made on the host.

q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), Ho et al. (2020), Eq. 2.
"""
import functools
import inspect
from collections.abc import Callable

import jax
import numpy as np

from diffusion.core.processes import DiscreteProcess, Process
from diffusion.errors import FieldError, require


def _check_ends(beta_start: float, beta_end: float) -> None:
    require(0 < beta_start <= beta_end <= 1, "beta_start", beta_start, "the schedule needs 0 < beta_start <= beta_end "
            f"<= 1 (Ho et al. 2020: 1e-4 and 0.02), and beta_end is {beta_end!r}.")


def linear(steps: int, *,
           beta_start: float = 1e-4,   # beta_1
           beta_end: float = 0.02,     # beta_T
           ) -> np.ndarray:
    """T evenly spaced betas from `beta_start` to `beta_end`: Ho et al. (2020), Section 4 (T = 1000, 1e-4 .. 0.02).

    The end points are the paper's for T = 1000 and are not rescaled for another T.
    """
    _check_ends(beta_start, beta_end)
    return np.linspace(beta_start, beta_end, steps, dtype=np.float64)


def cosine(steps: int, *,
           offset: float = 0.008,      # s
           max_beta: float = 0.999,    # upper limit of the betas
           ) -> np.ndarray:
    """alpha_bar(t) = f(t)/f(0), f(t) = cos^2((t/T + s)/(1 + s) pi/2), betas clipped at `max_beta`.

    Nichol & Dhariwal (2021), "Improved DDPM", Eq. 17; s = `offset`.
    """
    require(0 < max_beta < 1, "max_beta", max_beta, "must lie in (0, 1) (Nichol & Dhariwal 2021: 0.999).")
    require(offset >= 0, "offset", offset, "must not be negative (Nichol & Dhariwal 2021: 0.008).")
    t = np.arange(steps + 1, dtype=np.float64) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], max_beta)


def scaled_linear(steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """T betas whose square roots are evenly spaced: "quad" of Ho et al. (2020, code), and latent diffusion's (Rombach
    et al. 2022, code)."""
    _check_ends(beta_start, beta_end)
    return np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2


def sigmoid(steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """T betas from about `beta_start` to about `beta_end` along a logistic curve over [-6, 6] (GeoDiff, Xu et al. 2022,
    code)."""
    _check_ends(beta_start, beta_end)
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, steps, dtype=np.float64)))


def constant(steps: int, *, beta_end: float = 0.02) -> np.ndarray:
    """beta_t = beta_end, "const" of Ho et al. (2020, code)."""
    require(0 < beta_end <= 1, "beta_end", beta_end, "must lie in (0, 1] (Ho et al. 2020: 0.02).")
    return np.full(steps, beta_end, np.float64)


def jsd(steps: int) -> np.ndarray:
    """beta_t = 1 / (T - t + 1), "jsd" of Ho et al. (2020, code), after Sohl-Dickstein et al. (2015), Section 2.4.1.

    The last is 1: alpha_bar_t = 1 - t / T falls to 0.
    """
    return 1 / np.arange(steps, 0, -1, dtype=np.float64)


def warmup(steps: int, *, beta_start: float = 1e-4, beta_end: float = 0.02,
           warmup_share: float = 0.1,  # share of the steps that rise from beta_start to beta_end
           ) -> np.ndarray:
    """beta_t rises from `beta_start` to `beta_end` over the first share of the steps, then stays: "warmup10" (0.1) and
    "warmup50" (0.5) of Ho et al. (2020, code)."""
    _check_ends(beta_start, beta_end)
    require(0 <= warmup_share <= 1, "warmup_share", warmup_share, "is a share of the steps (Ho et al. 2020, code: 0.1 "
            "and 0.5).")
    betas, rising = constant(steps, beta_end=beta_end), int(steps * warmup_share)
    betas[:rising] = np.linspace(beta_start, beta_end, rising, dtype=np.float64)
    return betas


def table(steps: int, *,
          betas: tuple[float, ...] = (),  # beta_1 .. beta_T
          ) -> np.ndarray:
    """A user-given table of betas."""
    require(len(betas) == steps and all(0 < beta < 1 for beta in betas), "betas", f"{len(betas)} numbers",
            f"a table needs process.steps = {steps} numbers in (0, 1).")
    return np.asarray(betas, np.float64)


def of_process(process: Process, steps: int) -> np.ndarray:
    """Betas of the chain with the marginals of a continuous variance-preserving process at t = 1/T, 2/T .. 1."""
    with jax.enable_x64(True):
        log_alpha_bar = np.append(0.0, -np.logaddexp(0, -np.asarray(process.log_snr(np.arange(1, steps + 1) / steps))))
    return -np.expm1(np.diff(log_alpha_bar))


def with_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled so that alpha_T = 0, with alpha_1 as before; beta_T = 1.

    Lin et al. (2024), "Common Diffusion Noise Schedules and Sample Steps Are Flawed", Algorithm 1: alpha (here
    sqrt(alpha_bar)) is shifted and scaled linearly. Raises FieldError for one step: alpha_1 cannot be both kept and 0.
    """
    require(len(betas) >= 2, "steps", len(betas), "zero terminal SNR needs at least 2 steps.")
    alpha = np.sqrt(np.cumprod(1 - np.asarray(betas, np.float64)))
    alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return 1 - (alpha / np.append(1.0, alpha[:-1])) ** 2


def chain(schedule: Callable[..., np.ndarray]) -> Callable[..., DiscreteProcess]:
    """A member of the processes, made from a schedule (T, *, keys) -> beta_1 .. beta_T.

    The member's `schedule` takes the same keys and returns the betas before `zero_terminal_snr`. Both raise FieldError
    for betas outside (0, 1), of which only the last may be 1.
    """
    def betas_of(*, steps: int, **keys) -> np.ndarray:
        require(steps >= 1, "steps", steps, "the number of noising steps T must be 1 or more (the papers: 1000).")
        betas = schedule(steps, **keys)
        if not (np.all((0 < betas) & (betas <= 1)) and np.all(betas[:-1] < 1)):
            raise FieldError("name", schedule.__name__, "its betas must lie in (0, 1), and only the last may be 1, but "
                             f"with these keys they lie in [{np.min(betas):g}, {np.max(betas):g}].")
        return betas

    def process(*,
                steps: int = 1000,              # T
                rescale_times: bool = False,    # c_noise is (t - 1) 1000 / T, as in improved-diffusion, not t - 1
                zero_terminal_snr: bool = False,  # rescale so that alpha is 0 at T (Lin et al. 2024)
                **keys) -> DiscreteProcess:
        betas = betas_of(steps=steps, **keys)
        return DiscreteProcess(betas=with_zero_terminal_snr(betas) if zero_terminal_snr else betas,
                               c_noise_scale=1000 / len(betas) if rescale_times else 1.0)

    own = [p for p in inspect.signature(process).parameters.values() if p.kind is p.KEYWORD_ONLY]
    theirs = [p for p in inspect.signature(schedule).parameters.values() if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    made = functools.wraps(schedule)(process)
    made.__signature__ = inspect.Signature([own[0], *(p for p in theirs if p.kind is p.KEYWORD_ONLY), *own[1:]])
    made.schedule, made.key_sources = betas_of, (process.__code__,)  # the code: `wraps` hides the function itself
    return made


def table_of(steps: int, *, process: Process,
             table_of: str = "shifted_cosine",  # the continuous process whose marginals it has at t = 1/T .. 1
             ) -> np.ndarray:
    """A chain with the marginals of a variance-preserving process: `process`, which `build` makes from the name."""
    return of_process(process, steps)


PROCESSES = {name: chain(schedule) for name, schedule in {
    "linear": linear, "cosine": cosine, "scaled_linear": scaled_linear, "sigmoid": sigmoid, "constant": constant,
    "jsd": jsd, "warmup": warmup, "table": table, "table_of": table_of}.items()}
