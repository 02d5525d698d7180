"""RePaint's table and its steps, and DDIM's inversion, against diffusers' schedulers in float64."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import tasks
from diffusion.core import grids, numerics, schedules
from diffusion.core.parameterization import EPS, Diffusion
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import sample
from diffusion.samplers.ddim import DDIM

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.parity

STEPS, SHAPE = 20, (4, 4, 1)
PROCESS = DiscreteProcess(betas=schedules.linear(STEPS, beta_start=5e-3, beta_end=0.4))
MASK = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(float)


def eps(x, t, np):
    """Stands for a network; t counts from 1."""
    return np.tanh(x) * (0.5 + t / 40)


def diffusion():
    return Diffusion(PROCESS, lambda x, t, cond=None: EPS.predict(PROCESS, eps(x, jnp.asarray(t, float), jnp), x, t))


def scheduler(kind, **options):
    """With our float64 tables."""
    found = kind(num_train_timesteps=STEPS, clip_sample=False, **options)
    found.betas = torch.from_numpy(np.asarray(PROCESS.betas))
    found.alphas_cumprod = torch.cumprod(1 - found.betas, 0)
    return found


@pytest.mark.parametrize("steps, jump, repeats", [(20, 5, 3), (10, 1, 2), (25, 10, 10), (20, 7, 4), (250, 10, 10)])
def test_the_times_visited_are_theirs(steps, jump, repeats):
    """The list is that of the paper's code, which reads it as where x is, as we do; diffusers' pipeline as what to ask
    the network next, so that it goes up one step later."""
    theirs = diffusers.RePaintScheduler(num_train_timesteps=250)
    theirs.set_timesteps(steps, jump_length=jump, jump_n_sample=repeats)
    stride, visited = 250 // steps, []
    for t, t_next in tasks.repaint(grids.pairs(grids.leading(250, steps)), jump=jump, repeats=repeats):
        visited += [t] if t_next < t else list(range(t, t_next, stride))  # they go up in single steps
    np.testing.assert_array_equal(np.array(visited) - 1, theirs.timesteps.numpy())


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_whole_chains(x64, eta):
    """Their functions along our table, with their one draw for both parts, which lie apart."""
    table = tasks.repaint(grids.pairs(np.arange(STEPS, 0, -1)), jump=1, repeats=3)
    known, x = np.random.default_rng(0).normal(size=(2, 3, *SHAPE))
    keys = jax.random.split(jax.random.key(0), 3)
    task = tasks.Replacement(solver=DDIM(eta=eta), known=known, project=tasks.pixel_projection(MASK))
    _, ours = sample(task, diffusion(), table, jnp.asarray(x), keys)

    theirs = scheduler(diffusers.RePaintScheduler, eta=eta)
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(STEPS, jump_length=1, jump_n_sample=3)
    draw = "diffusers.schedulers.scheduling_repaint.randn_tensor"
    x, noise_keys = torch.from_numpy(x), numerics.fold_in(keys, 1)
    for index, (t, t_next) in enumerate(table):
        row = numerics.fold_in(noise_keys, index)
        own, inner = (np.asarray(numerics.normal(numerics.fold_in(row, j), SHAPE, float)) for j in (1, 0))
        noise = torch.tensor(own if t_next > t else MASK * own + (1 - MASK) * inner)
        with mock.patch(draw, lambda *args, **kwargs: noise):
            if t_next > t:
                x = theirs.undo_step(x, int(t))  # by the beta of the step from t to t + 1
            else:
                x = theirs.step(eps(x, int(t), torch), int(t) - 1, x, torch.from_numpy(known),
                                torch.from_numpy(MASK)).prev_sample
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-9)


def test_inversion(x64):
    """One iteration is diffusers' DDIMInverseScheduler, its steps from the clean image on."""
    x = np.random.default_rng(0).normal(size=(3, *SHAPE))
    grid = grids.pairs(np.arange(STEPS, 0, -1))
    ours = sample(tasks.Inversion(), diffusion(), tasks.reverse_grid(grid), jnp.asarray(x),
                  jax.random.split(jax.random.key(0), 3))[1]
    theirs = scheduler(diffusers.DDIMInverseScheduler)
    theirs.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(STEPS)
    x = torch.from_numpy(x)
    for t in theirs.timesteps.tolist():
        x = theirs.step(eps(x, t + 1, torch), t, x).prev_sample
    np.testing.assert_allclose(ours, x, rtol=0, atol=1e-9)
