"""The driver: the order of times, the randomness of each step and row, and what a row may depend on."""
import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import grids, numerics, schedules
from diffusion.core.parameterization import X0, Diffusion, Prediction, clip_x0, make_denoiser
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import draw_prior, sample
from diffusion.samplers.ddim import DDIM

PROCESS = DiscreteProcess(betas=schedules.cosine(50))
ALL_STEPS = grids.pairs(grids.linspace(50, 50))
KEYS = jax.random.split(jax.random.key(0), 8)
SOLVERS = {"ancestral": Ancestral(), "ddim 0.7": DDIM(eta=0.7)}


@dataclass(frozen=True)
class Recorder:
    """Counts its steps in the carry, and writes what it is called with at step k into x[:, k]."""

    def init(self, x):
        return jnp.int32(0)

    def step(self, count, x, t, t_next, diffusion, keys, cond):
        z = numerics.normal(keys, (1,), x.dtype)
        row = jnp.stack([jnp.full(x.shape[0], v, x.dtype) for v in (t, t_next)] + [z[:, 0], cond.astype(x.dtype)], -1)
        return count + 1, x.at[:, count].set(row)


def test_the_grid_is_walked_in_order_with_fresh_keys():
    steps = grids.pairs(grids.trailing(50, 6))
    count, seen = sample(Recorder(), None, steps, jnp.zeros((8, 6, 4)), KEYS, jnp.arange(8))
    assert count == 6
    np.testing.assert_array_equal(seen[..., :2], np.broadcast_to(steps, (8, 6, 2)))
    np.testing.assert_array_equal(seen[..., 3], np.broadcast_to(np.arange(8)[:, None], (8, 6)))
    start = np.asarray(draw_prior(PROCESS, PROCESS.t_max, KEYS, (1,)))
    assert len(np.unique(np.concatenate([seen[..., 2], start], 1))) == 8 * 7  # no noise twice, the start's included


def test_noise_is_independent_between_steps_and_from_the_start():
    keys = jax.random.split(jax.random.key(3), 20_000)
    steps = grids.pairs(grids.linspace(50, 5))
    _, seen = sample(Recorder(), None, steps, jnp.zeros((20_000, 5, 4)), keys, jnp.zeros(20_000))
    z = np.concatenate([np.asarray(seen[..., 2]), np.asarray(draw_prior(PROCESS, PROCESS.t_max, keys, (1,)))], 1)
    np.testing.assert_allclose(np.cov(z.T), np.eye(6), rtol=0, atol=5 * (2 / 20_000) ** 0.5)


def test_the_prior_is_standard_normal_and_a_function_of_each_key():
    keys = jax.random.split(jax.random.key(1), 1000)
    x = draw_prior(PROCESS, PROCESS.t_max, keys, (4, 4, 3))
    assert x.shape == (1000, 4, 4, 3) and x.dtype == jnp.float32
    assert abs(float(x.mean())) < 5 / x.size**0.5 and abs(float(x.var()) - 1) < 5 * (2 / x.size) ** 0.5
    np.testing.assert_array_equal(draw_prior(PROCESS, PROCESS.t_max, keys[17:18], (4, 4, 3)), x[17:18])


def convolution(process):
    """A denoiser that mixes the pixels and channels of an image, the label included, as a network does."""
    kernel = 0.3 * jax.random.normal(jax.random.key(5), (3, 3, 2, 2))

    def network(params, x, c_noise, cond, keys):
        y = jax.lax.conv_general_dilated(x, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(y + 0.1 * cond[:, None, None, None] - 0.01 * c_noise[:, None, None, None])

    return clip_x0(make_denoiser(lambda params: process, X0, network)(kernel))


@functools.cache
def chain(name):
    """(steps, first, last, carry, x, keys, cond) -> (carry, x), as the sampler calls it: of traced bounds and a table
    that is longer than the chain."""
    return jax.jit(lambda steps, first, last, carry, x, keys, cond: sample(
        SOLVERS[name], convolution(PROCESS), steps, x, keys, cond, first=first, last=last, carry=carry))


TWENTY = grids.pairs(grids.linspace(50, 20))
TABLE, COND = np.resize(TWENTY, (64, 2)), np.arange(8)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_is_the_same_in_any_batch(name):
    """Alone, in another place or among other rows: to the rounding of a convolution, which may go with its shape."""
    run = lambda x, keys, cond: chain(name)(TABLE, 0, 20, (), x, keys, cond)[1]  # noqa: E731
    x = draw_prior(PROCESS, PROCESS.t_max, KEYS, (6, 6, 2))
    whole = run(x, KEYS, COND)
    assert whole.shape == x.shape and whole.dtype == jnp.float32 and np.all(np.isfinite(whole))
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    np.testing.assert_array_equal(run(x[order], KEYS[order], COND[order]), whole[order])
    others = run(x.at[1:].set(0.5), jnp.roll(KEYS, 1).at[0].set(KEYS[0]), np.zeros_like(COND))
    np.testing.assert_array_equal(others[0], whole[0])
    np.testing.assert_allclose(run(x[4:7], KEYS[4:7], COND[4:7]), whole[4:7], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_is_the_same_bit_for_bit_where_the_denoiser_is(name):
    def denoise(x, t, cond=None):
        x0 = jnp.clip(x, -1, 1) * PROCESS.alpha(t)
        return Prediction(x0, (x - PROCESS.alpha(t) * x0) / PROCESS.sigma(t))

    chain = jax.jit(lambda x, keys: sample(SOLVERS[name], Diffusion(PROCESS, denoise), ALL_STEPS, x, keys)[1])
    x = draw_prior(PROCESS, PROCESS.t_max, KEYS, (4, 4, 1))
    whole = chain(x, KEYS)
    np.testing.assert_array_equal(chain(x[5:6], KEYS[5:6]), whole[5:6])


def test_the_denoiser_is_traced_once():
    """One loop, not T copies: the compile time must not grow with the number of steps."""
    calls = []

    def denoise(x, t, cond=None):
        calls.append(t)
        return Prediction(x, x)

    diffusion = Diffusion(PROCESS, denoise)
    jax.jit(lambda x: sample(SOLVERS["ancestral"], diffusion, ALL_STEPS, x, KEYS)[1])(jnp.ones((8, 2)))
    assert len(calls) == 1


@pytest.mark.parametrize("name", SOLVERS)
def test_a_chain_in_pieces_is_the_whole_bit_for_bit_by_one_program(name):
    """With traced bounds and a table that is longer than the chain, as the sampler calls it."""
    x, piece = draw_prior(PROCESS, PROCESS.t_max, KEYS, (6, 6, 2)), chain(name)
    _, whole = piece(TABLE, 0, 20, (), x, KEYS, COND)
    programs = piece._cache_size()
    carry, y = (), x
    for first, last in [(0, 1), (1, 9), (9, 20)]:
        carry, y = piece(TABLE, first, last, carry, y, KEYS, COND)
    np.testing.assert_array_equal(y, whole)
    assert piece._cache_size() == programs
    plain = jax.jit(lambda x: sample(SOLVERS[name], convolution(PROCESS), TWENTY, x, KEYS, COND)[1])(x)
    np.testing.assert_allclose(plain, whole, rtol=0, atol=2e-6)


def test_image_i_is_of_class_i_and_the_last_batch_is_cut():
    """Of 3 classes, in batches of 4, from image 2 on."""
    from types import SimpleNamespace

    from diffusion.generate import make_generate
    from diffusion.parallel.sharding import make_mesh
    asked = []

    class Sampler:
        mesh = make_mesh(-1, 1)

        def __call__(self, params, steps, seed, indices, *, cond, report):
            asked.append((list(indices), list(cond["label"])))
            return SimpleNamespace(within=lambda bounds: np.asarray(indices))

    drawn = list(make_generate(Sampler(), lambda params: np.zeros((1, 2)), batch_size=4,
                               conditions=lambda indices: {"label": indices % 3})(
        None, 0, 2, 6))
    assert asked == [([2, 3, 4, 5], [2, 0, 1, 2]), ([6, 7, 8, 9], [0, 1, 2, 0])]
    np.testing.assert_array_equal(np.concatenate(drawn), np.arange(2, 8))
