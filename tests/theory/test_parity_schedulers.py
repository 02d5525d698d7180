"""Our schedules, grids and solvers against diffusers' DDPMScheduler and DDIMScheduler, without a network's rounding.

First the tables, which diffusers has in float32. Then whole chains of `scheduler.step` in float64 on our float64 table,
with one cheap function as the network and the same noise: what is left is rounding at 1e-16, of which the chains make
2e-10 at most. Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import functools
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import grids, numerics, parameterization, schedules
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import sample
from diffusion.samplers.ddim import DDIM

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # more only wait for each other

CLASSES = [diffusers.DDPMScheduler, diffusers.DDIMScheduler]
SPACINGS = {"linspace": grids.linspace, "leading": grids.leading, "trailing": grids.trailing}
PREDICTIONS = {"epsilon": parameterization.EPS, "sample": parameterization.X0, "v_prediction": parameterization.V}

# ---- tables -------------------------------------------------------------------------------------------------------

RANGES = {"as Ho et al.": (1e-4, 0.02), "as latent diffusion": (0.00085, 0.012)}
SCHEDULES = {
    "linear": lambda steps, ends: schedules.linear(steps, beta_start=ends[0], beta_end=ends[1]),
    "scaled_linear": lambda steps, ends: schedules.scaled_linear(steps, beta_start=ends[0], beta_end=ends[1]),
    "sigmoid": lambda steps, ends: schedules.sigmoid(steps, beta_start=ends[0], beta_end=ends[1]),
    "squaredcos_cap_v2": lambda steps, ends: schedules.cosine(steps),
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_betas_and_their_products(kind, name):
    """Theirs are float32: 1 - beta is rounded at 6e-8, and a product of T of them at 6e-8 sqrt(T) or so, 2e-6."""
    if name == "sigmoid" and kind is diffusers.DDIMScheduler:
        with pytest.raises(NotImplementedError, match="sigmoid is not implemented"):
            kind(beta_schedule=name)
        return
    for ends, zero_snr, steps in itertools.product(RANGES, (False, True), (1000, 37)):
        start, end = RANGES[ends]
        theirs = kind(num_train_timesteps=steps, beta_start=start, beta_end=end, beta_schedule=name,
                      rescale_betas_zero_snr=zero_snr)
        betas = SCHEDULES[name](steps, RANGES[ends])
        betas = schedules.with_zero_terminal_snr(betas) if zero_snr else betas
        case = f"{ends}, {steps} steps, zero_snr = {zero_snr}"
        # Rescaled, beta is 1 minus the square of a ratio of float32 differences, which near T are small themselves: the
        # last but one of the cosine's is sqrt(alpha_bar) = 2e-3 with errors of 6e-8 in both, and so 1e-4 of that.
        np.testing.assert_allclose(theirs.betas.numpy(), betas, rtol=0, atol=1e-4 if zero_snr else 1e-7, err_msg=case)
        np.testing.assert_allclose(theirs.alphas_cumprod.numpy(), np.cumprod(1 - betas), rtol=0, atol=5e-6,
                                   err_msg=case)
        if zero_snr:
            assert theirs.betas[-1] == betas[-1] == 1, case


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("t_max", [1000, 300, 37])
def test_times_for_every_number_of_steps(kind, spacing, t_max):
    """Theirs count from 0."""
    scheduler = kind(num_train_timesteps=t_max, timestep_spacing=spacing)
    too_many = 0
    for steps in range(1, t_max + 1):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.numpy() + 1
        if spacing == "linspace" and steps == 1:  # on purpose: theirs is one step from the least noisy time
            assert theirs.tolist() == [1] and grids.linspace(t_max, 1).tolist() == [t_max]
            continue
        if len(theirs) > steps:  # a fault of theirs: a last step at timestep -1, which indexes the noisiest time
            assert spacing == "trailing" and theirs[steps:].tolist() == [0]
            too_many, theirs = too_many + 1, theirs[:steps]
        np.testing.assert_array_equal(SPACINGS[spacing](t_max, steps), theirs)
    assert (too_many > 0) == (spacing == "trailing" and t_max > 37)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_times_with_an_offset(kind, offset):
    scheduler = kind(timestep_spacing="leading", steps_offset=offset)
    for steps in (1, 3, 7, 50, 333):
        scheduler.set_timesteps(steps)
        np.testing.assert_array_equal(grids.leading(1000, steps) + offset, scheduler.timesteps.numpy() + 1)


# ---- chains -------------------------------------------------------------------------------------------------------

T, SHAPE, ROWS = 200, (2, 4, 4, 3), 64
GRIDS = [("leading", 0, 25), ("leading", 3, 7), ("linspace", 0, 30), ("linspace", 0, 7), ("trailing", 0, 25),
         ("trailing", 0, 48)]
MIX = np.random.default_rng(0).normal(size=(3, 6)) / 2
START = np.random.default_rng(1).normal(size=SHAPE)
PATTERN = np.random.default_rng(2).normal(size=(*SHAPE[1:3], 6))  # so that no limit makes the picture one flat colour
BETAS = {False: schedules.linear(T, beta_start=5e-4, beta_end=0.1)}
BETAS[True] = schedules.with_zero_terminal_snr(BETAS[False])
LIMITS = {
    "none": dict(clip_sample=False), "clip": dict(), "clip range": dict(clip_sample_range=0.4),
    "threshold": dict(thresholding=True, sample_max_value=1.5, dynamic_thresholding_ratio=0.9),
    "low threshold": dict(thresholding=True, sample_max_value=1.0)}


def network(xp, x, label, channels: int):
    """[B,H,W,3] and the label -> [B,H,W,channels], between -1.4 and 1.4, in NumPy or JAX."""
    return 1.4 * xp.tanh(x @ MIX[:, :channels] + PATTERN[None, ..., :channels] + xp.cos(label / 40))


def make_process(zero_snr: bool) -> DiscreteProcess:
    return DiscreteProcess(betas=BETAS[zero_snr])


def limited(diffusion: Diffusion, limit: str, rederive_eps: bool) -> Diffusion:
    settings = LIMITS[limit]
    if settings.get("thresholding"):
        return parameterization.dynamic_threshold(
            diffusion, settings.get("dynamic_thresholding_ratio", 0.995), settings["sample_max_value"],
            rederive_eps=rederive_eps)
    if settings.get("clip_sample", True):
        return parameterization.clip_x0(diffusion, settings.get("clip_sample_range", 1.0), rederive_eps=rederive_eps)
    return diffusion


def example_keys():
    return jax.vmap(jax.random.key)(np.arange(SHAPE[0]))


@functools.cache
def our_program(solver, zero_snr: bool, channels: int, rederive_eps: bool):
    """(steps [ROWS, 2], last, index of the prediction, index of the limit) -> x at the end, compiled once for all."""
    process = make_process(zero_snr)
    def apply(params, x, label, cond, keys):
        out = network(jnp, x, label[0], channels)
        return {"f": out[..., :3], "variance": out[..., 3:]} if channels == 6 else out

    denoisers = [parameterization.make_denoiser(lambda params: process, prediction, apply)(None).denoise
                 for prediction in PREDICTIONS.values()]

    def run(steps, last, prediction, limit):
        def denoise(x, t, cond=None):
            found = jax.lax.switch(prediction, denoisers, x, t)
            limits = [limited(Diffusion(process, lambda *_: found), name, rederive_eps).denoise for name in LIMITS]
            return jax.lax.switch(limit, limits, x, t)

        return sample(solver, Diffusion(process, denoise), steps, START, example_keys(), last=last)[1]
    return jax.jit(run)


def our_chain(solver, zero_snr: bool, prediction: str, limit: str, channels: int, rederive_eps: bool):
    """steps [S, 2] -> x at the end."""
    run = our_program(solver, zero_snr, channels, rederive_eps)
    which = list(PREDICTIONS).index(prediction), list(LIMITS).index(limit)
    return lambda steps: np.asarray(run(np.resize(steps, (ROWS, 2)), len(steps), *which))


@functools.cache
def drawn() -> np.ndarray:
    """[ROWS, *SHAPE]: what `sample` draws at each step."""
    keys = numerics.fold_in(example_keys(), 1)
    return np.asarray(jax.jit(jax.vmap(lambda i: numerics.normal(numerics.fold_in(keys, i), SHAPE[1:], float)))(
        np.arange(ROWS)))


def to_torch(x: np.ndarray):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def their_chain(scheduler, process, steps: int, channels: int, noise: np.ndarray, **call) -> np.ndarray:
    """The loop of diffusers' pipelines, on our table in float64 in place of theirs in float32."""
    scheduler.alphas_cumprod = torch.from_numpy(process._alpha[1:] ** 2)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    if isinstance(scheduler, diffusers.DDIMScheduler):
        scheduler.final_alpha_cumprod = (scheduler.one if scheduler.config.set_alpha_to_one
                                         else scheduler.alphas_cumprod[0])
    scheduler.set_timesteps(steps)
    x = to_torch(START)
    with mock.patch("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: to_torch(noise[i])):
        for i, t in enumerate(scheduler.timesteps):
            out = to_torch(network(np, x.numpy().transpose(0, 2, 3, 1), float(t), channels))
            if isinstance(scheduler, diffusers.DDIMScheduler):
                extra = dict(variance_noise=to_torch(noise[i])) if call["eta"] > 0 else {}
                x = scheduler.step(out, t, x, **call, **extra).prev_sample
            else:
                x = scheduler.step(out, int(t), x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1)


def assert_same(ours: np.ndarray, theirs: np.ndarray):
    assert np.isfinite(theirs).all() and theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-8 * np.abs(theirs).max())


# Theirs -> ours. fixed_small_log is fixed_small by way of a logarithm; fixed_large_log is the root of a negative one.
VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large",
             "learned_range": "learned_range"}


def two_grids(*names: tuple[str, dict | list]):
    """Two of GRIDS for one case of a product, others for the next, so that each value of each family meets all.

    names: the case's value and its family, of each.
    """
    index = 0
    for name, family in names:
        index = index * len(family) + list(family).index(name)
    return GRIDS[index % len(GRIDS)], GRIDS[(index + 3) % len(GRIDS)]


def check_ddpm(prediction: str, variance: str, limit: str, zero_snr: bool = False):
    process, channels = make_process(zero_snr), 6 if variance == "learned_range" else 3
    solver = Ancestral(variance=VARIANCES[variance])
    run = our_chain(solver, zero_snr, prediction, limit, channels, True)
    for spacing, offset, steps in two_grids((prediction, PREDICTIONS), (variance, VARIANCES), (limit, LIMITS)):
        scheduler = diffusers.DDPMScheduler(
            num_train_timesteps=T, trained_betas=BETAS[zero_snr].tolist(), prediction_type=prediction,
            variance_type=variance, timestep_spacing=spacing, steps_offset=offset, **LIMITS[limit])
        noise = drawn()[:steps].copy()
        noise[-1] = 0  # theirs adds noise at the last step too where its time is not 0 (trailing, offset); ours never
        times = SPACINGS[spacing](T, steps) + offset
        assert_same(run(grids.pairs(times)), their_chain(scheduler, process, steps, channels, noise))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_chain(x64, prediction, variance, limit):
    check_ddpm(prediction, variance, limit)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_ddpm_chain_from_zero_snr(x64, prediction, variance):
    check_ddpm(prediction, variance, "clip", zero_snr=True)


ETAS = [0.0, 0.5, 1.0]


def check_ddim(prediction: str, eta: float, limit: str, zero_snr: bool = False, clipped_eps: bool = False):
    process = make_process(zero_snr)
    run = our_chain(DDIM(eta=eta), zero_snr, prediction, limit, 3, clipped_eps)
    two = two_grids((prediction, PREDICTIONS), (eta, ETAS), (limit, LIMITS))
    for to_one, (spacing, offset, steps) in zip((True, False), two):
        scheduler = diffusers.DDIMScheduler(
            num_train_timesteps=T, trained_betas=BETAS[zero_snr].tolist(), prediction_type=prediction,
            timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=to_one, **LIMITS[limit])
        times = SPACINGS[spacing](T, steps) + offset
        theirs = their_chain(scheduler, process, steps, 3, drawn(), eta=eta, use_clipped_model_output=clipped_eps)
        assert_same(run(grids.constant_stride(times, T, 0 if to_one else 1)), theirs)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_chain(x64, prediction, eta, limit):
    check_ddim(prediction, eta, limit)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("limit", ["clip", "threshold"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_chain_with_eps_of_the_clipped_x0(x64, prediction, limit, eta):
    check_ddim(prediction, eta, limit, clipped_eps=True)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_ddim_chain_from_zero_snr(x64, prediction, eta):
    """Eta stays below 1: at 1 diffusers' std^2 = 1 - alpha_bar of the next time, and whether the root of their
    difference is that of 0 or of -6e-8 depends on the CPU's rounding. Ours at eta=1 is in
    tests/theory/test_samplers_gaussian.py."""
    check_ddim(prediction, eta, "clip", zero_snr=True)


def test_the_limits_differ(x64):
    """Otherwise the chains above could not see a wrong one."""
    steps = grids.pairs(grids.leading(T, 25))
    out = [our_chain(DDIM(), False, "v_prediction", limit, 3, False)(steps) for limit in LIMITS]
    different = [np.abs(a - b).max() > 1e-3 for i, a in enumerate(out) for b in out[:i]]
    # A largest threshold of 1 is clipping to 1.
    assert sum(different) == len(different) - 1 and np.allclose(out[1], out[4])
