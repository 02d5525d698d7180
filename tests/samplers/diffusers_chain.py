"""Chains of our solvers and of diffusers' schedulers in float64, on the same table, denoiser and noise.

Theirs keep sigma in float32; here they are given ours in float64, and what is left is rounding.
"""
import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import numerics, parameterization, schedules
from diffusion.core.parameterization import Diffusion
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import sample

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)
torch.set_num_threads(1)  # more only wait for each other

T, SHAPE, ROWS = 200, (2, 4, 4, 3), 64
BETAS = schedules.linear(T, beta_start=5e-4, beta_end=0.1)
PROCESS = DiscreteProcess(betas=BETAS)
LEVELS = PROCESS._sigma[1:] / PROCESS._alpha[1:]  # sigma / alpha
MIX = np.random.default_rng(0).normal(size=(3, 3)) / 2
PREDICTIONS = {"epsilon": parameterization.EPS, "sample": parameterization.X0, "v_prediction": parameterization.V}
# spacing, offset, steps
GRIDS = [("linspace", 0, 20), ("linspace", 0, 9), ("leading", 1, 25), ("trailing", 0, 16)]


def network(xp, x, label):
    return 1.4 * xp.tanh(x @ MIX + xp.cos(label / 40))


def keys_and_start():
    return jax.vmap(jax.random.key)(np.arange(SHAPE[0])), np.random.default_rng(1).normal(size=SHAPE)


@functools.cache
def drawn():
    """[ROWS, *SHAPE]: what `sample` draws at each step."""
    keys = numerics.fold_in(keys_and_start()[0], 1)
    return np.asarray(jax.jit(jax.vmap(lambda i: numerics.normal(numerics.fold_in(keys, i), SHAPE[1:], float)))(
        np.arange(ROWS)))


@functools.cache
def our_program(solver):
    """(steps [ROWS, 2], last, index of the prediction, settings of the solver) -> x at the end, compiled once for all.
    """
    def run(steps, last, prediction, changes):
        def denoise(x, t, cond=None):
            f = network(jnp, x, PROCESS.c_noise(t))
            return jax.lax.switch(prediction, [functools.partial(kind.predict, PROCESS)
                                               for kind in PREDICTIONS.values()], f, x, t)

        keys, x = keys_and_start()
        return sample(dataclasses.replace(solver, **changes), Diffusion(PROCESS, denoise), steps, x, keys, last=last)[1]
    return jax.jit(run)


def our_chain(solver, prediction, **changes):
    """steps [S, 2] -> x at the end. changes: settings of the solver that one program can take as numbers."""
    which = list(PREDICTIONS).index(prediction)
    return lambda steps: np.asarray(our_program(solver)(np.resize(steps, (ROWS, 2)), len(steps), which, changes))


def some_grids(case: int, count: int = 2):
    """So many of GRIDS, in turn: others for the next case."""
    return [GRIDS[(case + i) % len(GRIDS)] for i in range(count)]


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def their_chain(scheduler, steps, scale_input=False, end_level=None, scale=1.0):
    """(x at the end, the times + 1). end_level: sigma / alpha at the end, for schedulers that count in it."""
    scheduler.set_timesteps(steps)
    times = np.round(np.asarray(scheduler.timesteps)).astype(int)
    if end_level is not None:
        scheduler.sigmas = torch.from_numpy(np.append(LEVELS[times], end_level))
    x = scale * to_torch(keys_and_start()[1])
    with mock.patch(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: to_torch(drawn()[i]), create=True):
        for i, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x, t)
            out = to_torch(network(np, seen.numpy().transpose(0, 2, 3, 1), float(t)))
            x = scheduler.step(out, t, x).prev_sample
    return x.numpy().transpose(0, 2, 3, 1), times + 1


def first_time(scheduler, steps):
    """The first of the times + 1."""
    scheduler.set_timesteps(steps)
    return round(float(scheduler.timesteps[0])) + 1


def assert_same(ours, theirs, tolerance=1e-9):
    assert np.isfinite(theirs).all() and theirs.std() > 0.05
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.abs(theirs).max())


def settings(prediction, spacing, offset):
    return dict(num_train_timesteps=T, trained_betas=BETAS.tolist(), prediction_type=prediction,
                timestep_spacing=spacing, steps_offset=offset)
