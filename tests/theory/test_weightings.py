"""Each weight of the error in eps against the papers' formulas, on x_0, v and EDM's F; the table of Kingma & Gao."""
import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import config as config_lib
from diffusion.core import continuous, losses, preconditioning, schedules, weightings
from diffusion.core import time_densities as td
from diffusion.core.parameterization import EPS, SCORE, VELOCITY, X0, Diffusion, V
from diffusion.core.processes import DiscreteProcess
from diffusion.families import BY_NAME

BETAS = {"linear": schedules.linear(1000), "cosine": schedules.cosine(1000)}

# Name -> (weighting, weight of the squared error in x_0 by the papers).
MEANINGS = {
    "snr": (weightings.snr, lambda snr: snr),
    "truncated_snr": (weightings.truncated_snr, lambda snr: np.maximum(snr, 1)),
    "snr_plus_one": (weightings.snr_plus_one, lambda snr: snr + 1),
    "min_snr": (weightings.min_snr, lambda snr: np.minimum(snr, 5)),
    "min_snr, gamma 1": (partial(weightings.min_snr, gamma=1.0), lambda snr: np.minimum(snr, 1)),
    # 1 / (sigma^2 + 1/gamma), sigma^2 = 1/SNR
    "soft_min_snr": (weightings.soft_min_snr, lambda snr: 1 / (1 / snr + 1 / 4)),
    "p2": (weightings.p2, lambda snr: snr / (1 + snr)),
    "p2, gamma 1/2": (partial(weightings.p2, p2_k=2.0, p2_gamma=0.5), lambda snr: snr / (2 + snr) ** 0.5),
    # (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    "edm": (weightings.edm, lambda snr: (1 / snr + 0.25) / (0.25 / snr)),
    "edm, sigma_data 1": (partial(weightings.edm, sigma_data=1.0), lambda snr: 1 + snr),
    "sigmoid": (weightings.sigmoid, lambda snr: snr / (1 + snr * np.exp(-2))),
    "likelihood": (weightings.likelihood, lambda snr: snr),
    # 1 / max(sigma, 0.05)^2, sigma^2 = 1 / (1 + SNR)
    "clipped_velocity": (weightings.clipped_velocity, lambda snr: np.minimum(1 + snr, 400)),
}
# And all others that a config can name, which mean the same in every space, and are finite.
MEMBERS = BY_NAME["weighting"].members()
WEIGHTINGS = {name: BY_NAME["weighting"].bound(config_lib.base(weighting=name).loss, sigma_data=0.5)
              for name, member in MEMBERS.items() if member.make is not None}
WEIGHTINGS |= {name: weighting for name, (weighting, _) in MEANINGS.items()}
PER_LOG_SNR = [name for name, member in MEMBERS.items() if getattr(member.make, "per_log_snr", False)]
SPACES = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "edm": preconditioning.edm(0.5)}


@functools.cache
def found(betas):
    """In float64, by one program: squared errors of one wrong guess at each t in every space; the weights on eps, and
    on the error in each space (of no weighting, None, too); and the SNR [T] from the betas."""
    process, alpha_bar = DiscreteProcess(betas=BETAS[betas]), np.cumprod(1 - BETAS[betas])
    pairs = list(itertools.product([*WEIGHTINGS, None], SPACES))

    def evaluate(t, x0, eps, guess):
        wrong, times = X0.predict(process, guess, process.diffuse(x0, t, eps), t), td.Times(t, jnp.full(1000, 1e-3))
        return ({name: jnp.sum((space.target(process, x0, eps, t) - space.target(process, *wrong[:2], t)) ** 2, 1)
                 for name, space in SPACES.items()},
                {name: weighting(process.alpha(t)**2, process.sigma(t)**2) / process.alpha(t)**2
                 for name, weighting in WEIGHTINGS.items()},
                [weightings.in_space(WEIGHTINGS.get(name), SPACES[space])(process, times) for name, space in pairs])

    with jax.enable_x64(True):
        error, on_eps, weights = jax.tree.map(
            np.asarray, jax.jit(evaluate)(np.arange(1, 1001), *np.random.default_rng(0).normal(size=(3, 1000, 6))))
    return error, on_eps, dict(zip(pairs, weights)), alpha_bar / (1 - alpha_bar)


@pytest.mark.parametrize("betas", BETAS)
def test_a_weight_on_eps_is_the_papers_weight_on_x0(betas):
    error, on_eps, _, snr = found(betas)
    for name, (_, on_x0) in MEANINGS.items():
        assert on_eps[name].shape == (1000,)
        np.testing.assert_allclose(on_eps[name] * error["eps"], on_x0(snr) * error["x0"], rtol=1e-8, err_msg=name)


@pytest.mark.parametrize("betas", BETAS)
def test_a_weight_means_the_same_in_every_space(betas):
    error, on_eps, weights, _ = found(betas)
    for name in WEIGHTINGS:
        for space in SPACES:
            np.testing.assert_allclose(weights[name, space] * error[space], on_eps[name] * error["eps"], rtol=1e-8,
                                       err_msg=f"{name} in {space}")


@pytest.mark.parametrize("betas", BETAS)
def test_the_plain_error_of_a_space_as_a_weight(betas):
    """SNR + 1 is the plain error in v (Salimans & Ho 2022), EDM's weight that of its F (Karras et al. 2022)."""
    error, on_eps, weights, _ = found(betas)
    for space, name in (("v", "snr_plus_one"), ("edm", "edm"), ("eps", "snr")):
        np.testing.assert_allclose(on_eps[name] * error["eps"], error[space], rtol=1e-8, err_msg=space)
        np.testing.assert_array_equal(weights[None, space], np.ones(1000), err_msg=space)


@pytest.mark.parametrize("betas", BETAS)
def test_min_snr_for_each_prediction(betas):
    """Hang et al. (2023), Section 3.4."""
    _, _, weights, snr = found(betas)
    for space, expected in (("x0", np.minimum(snr, 5)), ("eps", np.minimum(snr, 5) / snr),
                            ("v", np.minimum(snr, 5) / (snr + 1))):
        np.testing.assert_allclose(weights["min_snr", space], expected, rtol=1e-8, err_msg=space)


def test_weights_are_finite_where_there_is_noise():
    for betas in BETAS.values():
        process, t = DiscreteProcess(betas=betas), np.arange(1, 1001)
        for name, weighting in WEIGHTINGS.items():
            weight = weighting(process.alpha(t)**2, process.sigma(t)**2)
            assert weight.dtype == jnp.float32, name
            assert np.all(np.isfinite(weight)) and np.all(np.asarray(weight) > 0), name


# At alpha = 0: alpha^2 w, by hand. There v = -x_0, so this is the weight of the squared error in v and in x_0.
AT_PURE_NOISE = {"snr": 0, "truncated_snr": 1, "snr_plus_one": 1, "min_snr": 0, "min_snr, gamma 1": 0,
                 "soft_min_snr": 0, "p2": 0, "p2, gamma 1/2": 0, "edm": 4, "edm, sigma_data 1": 1, "sigmoid": 0,
                 "likelihood": 0, "clipped_velocity": 1}
ENDS = {"zero terminal SNR": DiscreteProcess(betas=schedules.with_zero_terminal_snr(schedules.linear(1000))),
        "flow": continuous.Flow()}


def test_a_loss_at_pure_noise_is_its_limit():
    """Of every process that ends there, weighting and space, against the limit of w SNR by hand. A wrong guess of x_0
    by 0.3 makes snr_plus_one 0.09, whatever the space."""
    x0, named = jnp.full((1, 1, 1, 1), 0.3), {**WEIGHTINGS, "simple": None}
    off = {"x0": 0.3**2, "v": 0.3**2, "eps": 0.0, "score": 0.0}  # the squared error in each space at alpha = 0
    cases = [(name, False, space) for name in WEIGHTINGS for space in ("eps", "edm")]
    cases += [("simple", False, space) for space in SPACES] + [(name, True, "v") for name in PER_LOG_SNR]
    for end, process in ENDS.items():
        measured = {(name, space): weightings.space_of(named[name], SPACES[space], process)
                    if space == "eps" else SPACES[space] for name, _, space in cases}

        def evaluate(t, key, process=process, measured=measured):
            denoise = lambda x_t, t, cond: X0.predict(process, jnp.zeros_like(x_t), x_t, t)  # noqa: E731
            times, found = td.Times(t[None], jnp.full(1, 1e-3)), {}
            for name, per_log_snr, space in cases:
                used = measured[name, space]
                weight = weightings.in_space(named[name], used, per_log_snr=per_log_snr)
                loss = losses.make_denoising_loss(weight, used)
                found[name, per_log_snr, space] = loss({}, Diffusion(process, denoise), x0, None, times, key[None])
            return found

        last = jax.jit(evaluate)(jnp.asarray(process.t_max), jax.random.key(0))
        for (name, per_log_snr, space), (value, aux) in last.items():
            where = f"{end}, {name}, {space}"
            assert np.isfinite(value).all() and np.isfinite(aux.weight).all(), where
            if not per_log_snr and name == "simple":
                if space in off:
                    np.testing.assert_allclose(value, off[space], atol=1e-7, err_msg=where)
            elif not per_log_snr and name in AT_PURE_NOISE:
                np.testing.assert_allclose(value, AT_PURE_NOISE[name] * 0.3**2, rtol=1e-6, atol=1e-9, err_msg=where)


def sech(x):
    return 1 / np.cosh(x)


LAMBDA_EDM = 2.4  # of EDM's noise levels, ln(sigma) ~ N(-1.2, 1.2^2): lambda = -2 ln(sigma) ~ N(2.4, 2.4^2)
# Kingma & Gao (2023), Table 1: objective -> (process, density, weighting, space, per log-SNR, w(lambda) but for a
# factor). The cosine schedule is cut far out here, at +-40.
COSINE = continuous.Cosine(log_snr_min=-40.0, log_snr_max=40.0)
TABLE = {
    "elbo (VDM)": (COSINE, td.Uniform(), weightings.likelihood, EPS, True, lambda x: np.ones_like(x)),
    "elbo, log-normal": (COSINE, td.LogNormal(), weightings.likelihood, X0, True, lambda x: np.ones_like(x)),
    "iddpm (eps, cosine)": (COSINE, td.Uniform(), None, EPS, False, lambda x: sech(x / 2)),
    "sd (eps, cosine of log-SNR)": (continuous.VP(t_min=1e-6), td.CosineLogSnr(), None, EPS, False,
                                    lambda x: sech(x / 2)),
    "v, cosine": (COSINE, td.Uniform(), None, V, False, lambda x: np.exp(-x / 2)),
    "fm-ot": (continuous.Flow(t_min=1e-6), td.Uniform(), None, VELOCITY, False, lambda x: np.exp(-x / 2)),
    "indi": (continuous.Flow(t_min=1e-6), td.Uniform(), None, X0, False,
             lambda x: np.exp(-x) * sech(x / 4) ** 2),
    "edm": (continuous.VarianceExploding(sigma_min=1e-4, sigma_max=1e4), td.LogNormal(), weightings.edm,
            preconditioning.edm(0.5), False,
            lambda x: np.exp(-((x - LAMBDA_EDM) / 2.4) ** 2 / 2) * (np.exp(-x) + 0.5**2)),
    "edm, plain F": (continuous.VarianceExploding(sigma_min=1e-4, sigma_max=1e4), td.LogNormal(), None,
                     preconditioning.edm(0.5), False,
                     lambda x: np.exp(-((x - LAMBDA_EDM) / 2.4) ** 2 / 2) * (np.exp(-x) + 0.5**2)),
    "min-snr, cosine": (COSINE, td.Uniform(), weightings.min_snr, X0, False,
                        lambda x: sech(x / 2) * np.minimum(1, 5 * np.exp(-x))),
    "p2, cosine": (COSINE, td.Uniform(), weightings.p2, EPS, False, lambda x: sech(x / 2) / (1 + np.exp(x))),
    "sigmoid": (COSINE, td.Uniform(), weightings.sigmoid, EPS, True, lambda x: 1 / (1 + np.exp(x - 2))),
    "sigmoid on EDM's times": (continuous.VarianceExploding(), td.LogNormal(), weightings.sigmoid, X0, True,
                               lambda x: 1 / (1 + np.exp(x - 2))),
}


@pytest.mark.parametrize("name", TABLE)
def test_effective_weights_are_those_of_kingma_and_gao(x64, name):
    process, density, weighting, space, per_log_snr, expected = TABLE[name]
    weight = weightings.in_space(weighting, space, per_log_snr=per_log_snr)
    curve = losses.effective_weight(weight, density, process, space=space, points=4001)
    assert np.all(np.diff(curve["log_snr"]) > 0) and len(curve["log_snr"]) == 4001
    inner = (np.abs(curve["log_snr"]) < 9)
    assert inner.sum() > 1500
    ratio = curve["effective_weight"][inner] / expected(curve["log_snr"][inner])
    np.testing.assert_allclose(ratio / np.median(ratio), 1, rtol=1e-4)
