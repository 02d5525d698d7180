"""Predictors of the reverse-time SDE and Langevin correctors: Song et al. (2021), "Score SDE", Appendices D to G."""
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core import numerics
from diffusion.core.numerics import expand
from diffusion.core.parameterization import Diffusion
from diffusion.errors import require
from diffusion.samplers.base import Carry, Solver
from diffusion.typing import Array, Cond, Image, Keys, Time


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama steps of the reverse SDE (Song et al. 2021, Eq. 6).

    dx = (f x - g^2 score) dt + g dw backwards; x_0 at the end.
    """
    once_a_step = correctable = True
    from_pure_noise = False

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        t, h = jnp.asarray(t, float), jnp.asarray(t - t_next, float)
        x0, eps, _ = denoise(x, t, cond)
        drift, diffusion_coefficient = process.drift_and_diffusion(t)
        mean = x - h * (drift * x + diffusion_coefficient**2 / process.sigma(t) * eps)
        noise = diffusion_coefficient * jnp.sqrt(h) * numerics.normal(keys, x.shape[1:], x.dtype)
        return carry, jnp.where(t_next > 0, mean + noise, x0)


@dataclass(frozen=True, kw_only=True)
class ReverseDiffusion(Solver):
    """The forward step's own discretisation run backwards (Song et al. 2021, Appendix E, Eqs. 45-46).

    x_0 at the end. With a = alpha_t / alpha_s and v = sigma_t^2 (1 - SNR_t / SNR_s), x_s = (2 - a) x + v score +
    sqrt(v) z: for their VP chain a = sqrt(1 - beta) and v = beta, for VE a = 1 and v the difference of the variances.
    """
    once_a_step = correctable = True
    from_pure_noise = False

    def step(self, carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        x0, eps, _ = denoise(x, t, cond)
        sigma = process.sigma(t)
        variance = sigma**2 * process.noise_added_fraction(t_next, t)
        mean = (2 - process.alpha(t) / process.alpha(t_next)) * x - variance / sigma * eps
        noise = jnp.sqrt(variance) * numerics.normal(keys, x.shape[1:], x.dtype)
        return carry, jnp.where(t_next > 0, mean + noise, x0)


@dataclass(frozen=True, kw_only=True)
class PredictorCorrector(Solver):
    """At each t `corrections` steps of Langevin dynamics, then the predictor's step (Song et al. 2021, Algorithms 2-3).

    A correction is x + e score + sqrt(2 e) z. Its size e is 2 a (snr |z| / |score|)^2 (Algorithms 4-5), or 2 a (snr
    sigma)^2 if `annealed` (their "ald"); a is alpha_t^2 / alpha_s^2, their alpha_i, which is 1 for VE. Norms are per
    example, whereas their code averages them over the batch, so that an example does not depend on the others.
    """
    predictor: Solver
    snr: float = 0.16
    corrections: int = 1
    annealed: bool = False

    def init(self, x: Image) -> Carry:
        return self.predictor.init(x)

    def step(self, carry: Carry, x: Image, t: Time, t_next: Time, diffusion: Diffusion, keys: Keys, cond: Cond):
        process, denoise = diffusion.process, diffusion.denoise
        sigma = process.sigma(t)
        kept = jnp.where(t_next > 0, (process.alpha(t) / process.alpha(t_next)) ** 2, 1.0)

        def correct(index: Array, x: Image) -> Image:
            score = -denoise(x, t, cond).eps / sigma
            z = numerics.normal(numerics.fold_in(keys, index + 1), x.shape[1:], x.dtype)
            ratio = sigma if self.annealed else expand(_norm(z) / jnp.maximum(_norm(score), 1e-12), x)
            size = 2 * kept * (self.snr * ratio) ** 2
            return x + size * score + jnp.sqrt(2 * size) * z

        x = jax.lax.fori_loop(0, self.corrections, correct, x)
        return self.predictor.step(carry, x, t, t_next, diffusion, numerics.fold_in(keys, 0), cond)

    def evaluations(self, steps: np.ndarray, carry: Carry) -> float:
        return self.predictor.evaluations(steps, carry) + len(steps) * self.corrections


def _norm(x: Image) -> Array:
    return jnp.sqrt(jnp.sum(x.reshape(len(x), -1) ** 2, axis=1))


def _corrector(annealed: bool) -> Callable[..., PredictorCorrector]:
    def member(*, predictor: Solver,
               corrector_snr: float = 0.16,  # sets the corrector's step size (Song et al. 2021)
               corrector_steps: int = 1) -> PredictorCorrector:
        """Langevin steps at each time, before the solver's own (Song et al. 2021, Algorithms 2-5)."""
        require(corrector_snr > 0, "corrector_snr", corrector_snr, "must be positive (Song et al. 2021: 0.16).")
        require(corrector_steps >= 1, "corrector_steps", corrector_steps, "must be 1 or more.")
        return PredictorCorrector(predictor=predictor, snr=corrector_snr, corrections=corrector_steps,
                                  annealed=annealed)
    return member


def no_corrector(*, predictor: Solver) -> Solver:
    """No corrector, only the solver's own steps."""
    return predictor


SOLVERS = {"euler_maruyama": EulerMaruyama, "reverse_diffusion": ReverseDiffusion}
CORRECTORS = {"none": no_corrector, "langevin": _corrector(False), "annealed_langevin": _corrector(True)}
