"""Inpainting, colorisation and super-resolution with the exact denoiser of correlated Gaussian images."""
import functools

import jax
import numpy as np
import pytest
from tasks import gaussian

from diffusion import tasks
from diffusion.core import grids, numerics, schedules
from diffusion.core.continuous import VP, Flow, VarianceExploding
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import draw_prior
from diffusion.samplers.ddim import DDIM
from diffusion.tasks.replacement import renoise

SHAPE = (4, 4, 3)
CHAIN = DiscreteProcess(betas=schedules.linear(40, beta_start=0.1 / 40, beta_end=20 / 40))
PROCESSES = {
    "table": (CHAIN, grids.pairs(grids.linspace(40, 20))),
    "vp": (VP(), grids.pairs(np.arange(20, 0, -1)) / 20.0),
    "flow": (Flow(), grids.pairs(np.arange(20, 0, -1)) / 20.5),
    "edm": (VarianceExploding(), np.stack([g := np.geomspace(80, 0.01, 20), np.append(g[1:], 0)], 1))}
MASK = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(np.float32)
PROJECTIONS = {"inpaint": tasks.pixel_projection(MASK), "colorise": tasks.grey_projection,
               "upscale": tasks.block_mean_projection(2)}


@functools.cache
def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count, shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *shape)) * 0.4


@functools.cache
def of_gaussian(process, shape=SHAPE):
    size = int(np.prod(shape))
    return gaussian.diffusion(process, np.zeros(size), gaussian.covariance(size))


def prior(process, steps, keys, shape=SHAPE):
    return jax.jit(lambda t, keys: draw_prior(process, t, keys, shape).astype(float))(steps[0, 0], keys)


@functools.cache
def replacement(solver, project):
    return lambda known: tasks.Replacement(solver=solver, known=known, project=project)


def run(solver, project, known, diffusion, steps, keys, shape=SHAPE):
    x = prior(diffusion.process, steps, keys, shape)
    return gaussian.run(replacement(solver, project), diffusion, steps, x, keys, known)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_are_orthogonal(x64, name):
    """P P = P and <P x, y> = <x, P y>: then white noise stays white within its range."""
    project, (x, y) = PROJECTIONS[name], (images(3, seed=s) for s in (1, 2))
    np.testing.assert_allclose(project(project(x)), project(x), atol=1e-14)
    np.testing.assert_allclose(np.sum(project(x) * y), np.sum(x * project(y)), rtol=1e-12)


def test_projections_are_what_they_say(x64):
    x = images(2)
    basis, _ = np.linalg.qr(np.concatenate([np.ones((3, 1)), np.eye(3)[:, :2]], 1))
    np.testing.assert_allclose(tasks.grey_projection(x), (x @ basis * [1, 0, 0]) @ basis.T, atol=1e-14)
    np.testing.assert_allclose(tasks.block_mean_projection(2)(x)[:, 2:, :2], np.broadcast_to(
        x[:, 2:, :2].mean((1, 2), keepdims=True), (2, 2, 2, 3)), atol=1e-14)
    per_image = np.stack([MASK, 1 - MASK])
    np.testing.assert_array_equal(tasks.pixel_projection(per_image)(x)[1], x[1] * (1 - MASK))


@pytest.mark.parametrize("process, name, solver", [
    *((p, "inpaint", DDIM(eta=1.0)) for p in PROCESSES), ("vp", "colorise", DDIM()),
    ("table", "upscale", Ancestral(variance="small")), ("edm", "upscale", DDIM())])
def test_what_was_measured_is_kept(x64, process, name, solver):
    """At the end exactly, and row by row."""
    process, steps = PROCESSES[process]
    known, keys, project = images(5), keys_of(5), PROJECTIONS[name]
    out = np.asarray(run(solver, project, known, of_gaussian(process), steps, keys)[1])
    np.testing.assert_allclose(project(out), project(known), atol=1e-13)
    if name == "inpaint":
        np.testing.assert_array_equal(out * MASK, known * MASK)
    assert np.abs(out - known).max() > 0.1 and np.all(np.isfinite(out))
    order = np.array([4, 0, 3, 2, 1])
    other = run(solver, project, known[order], of_gaussian(process), steps, keys[order])[1]
    np.testing.assert_allclose(other, out[order], atol=1e-12)


def test_each_step_noises_the_known_part_to_its_time(x64):
    """x' P-part ~ alpha P y + sigma P z (Song et al. 2021, Appendix I.2), the rest as the solver has it."""
    known, x, keys, exact = images(4), images(4, seed=3), keys_of(4), of_gaussian(VP())
    task = tasks.Replacement(solver=DDIM(), known=known, project=tasks.grey_projection)

    @jax.jit
    def steps(x, t, t_next, keys):
        return (task.step((), x, t, t_next, exact, keys, None)[1], DDIM().step((), x, t, t_next, exact, keys, None)[1],
                numerics.normal(numerics.fold_in(keys, 1), SHAPE, float), VP().alpha(t_next), VP().sigma(t_next))

    out, plain, noise, alpha, sigma = (np.asarray(value) for value in steps(x, 0.5, 0.4, keys))
    grey = lambda x: x.mean(-1, keepdims=True) * np.ones(3)  # noqa: E731
    np.testing.assert_allclose(grey(out), grey(alpha * known + sigma * noise), atol=1e-13)
    np.testing.assert_allclose(out - grey(out), plain - grey(plain), atol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_that_go_up_add_the_noise_between(x64, name):
    """x_t ~ q(x_t | x_s): from q(x_s | x_0) it goes to q(x_t | x_0)."""
    process, steps = PROCESSES[name]
    s, t = steps[12, 0], steps[7, 0]
    one = jax.jit(lambda x, s, t, z: renoise(process, x, s, t, z))
    at_0, at_1, std = (np.asarray(one(np.full((1, 2), x), s, t, np.full((1, 2), z)))[0, 0]
                       for x, z in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    factor = at_1 - at_0
    np.testing.assert_allclose(factor * process.alpha(s), process.alpha(t), rtol=1e-12)
    np.testing.assert_allclose(factor**2 * process.sigma(s) ** 2 + std**2, process.sigma(t) ** 2, rtol=1e-12)


def test_evaluations_are_those_of_the_rows_that_go_down(x64):
    calls = []
    exact = of_gaussian(CHAIN)

    def denoise(x, t, cond=None):
        jax.debug.callback(lambda _: calls.append(1), t)
        return exact.denoise(x, t, cond)

    steps = tasks.repaint(grids.pairs(grids.linspace(40, 10)), jump=3, repeats=3)
    known, project = images(2), PROJECTIONS["inpaint"]
    task = tasks.Replacement(solver=DDIM(eta=1.0), known=known, project=project)
    carry, _ = jax.block_until_ready(run(task.solver, project, known, exact._replace(denoise=denoise), steps,
                                         keys_of(2)))
    jax.effects_barrier()
    assert len(calls) == task.evaluations(steps, carry) == 10 + 3 * 2 * 3  # 3 places, 2 returns of 3 steps each


# ---- the law of the part that is not known ------------------------------------------------------------------------

PAIR, RHO = (1, 2, 1), 0.9  # two pixels of variance 1, the left one known
LEFT = np.array([[[1.0], [0.0]]])


CHAIN_OF_100 = DiscreteProcess(betas=schedules.linear(100, beta_start=0.1 / 100, beta_end=20 / 100))
COV = np.array([[1, RHO], [RHO, 1]])
OF_PAIR, LEFT_KNOWN = gaussian.diffusion(CHAIN_OF_100, np.zeros(2), COV), tasks.pixel_projection(LEFT)


def law_of_the_other(returns=None, y=1.2, count=4000):
    """How far the mean of the right pixel given the left is off, and its variance over the right one."""
    steps = grids.pairs(grids.linspace(100, 100))
    _, out = run(Ancestral(variance="small"), LEFT_KNOWN, np.full((count, *PAIR), y), OF_PAIR,
                 tasks.repaint(steps, **returns) if returns else steps, keys_of(count), PAIR)
    mean, variance = gaussian.conditional(np.zeros(2), COV, np.array([True, False]), np.array([y]))
    out = np.asarray(out)
    other = out[:, 0, 1, 0]
    np.testing.assert_array_equal(out[:, 0, 0, 0], np.full(count, y))
    return other.mean() - mean[0], other.var() / variance[0, 0]


def test_repaint_comes_nearer_to_the_conditional_law(x64):
    """Replacement tells the denoiser not y itself but y noised anew at each step: the law is too wide, its mean too
    near the unconditional one (of 1.08 here 0.34 less, and 1.5 times the variance). Going back and forth brings both
    near (Lugmayr et al. 2022, Section 4.2): 0.06 less, 1.01 times."""
    bias, ratio = law_of_the_other()
    near_bias, near_ratio = law_of_the_other(dict(jump=10, repeats=8))
    assert -0.4 < bias < -0.25 and 1.4 < ratio < 1.65, (bias, ratio)
    assert -0.1 < near_bias < 0 and abs(near_ratio - 1) < 0.1, (near_bias, near_ratio)


# ---- RePaint's table -----------------------------------------------------------------------------------------------

def test_repaint_by_hand():
    table = tasks.repaint(grids.pairs(np.array([5, 4, 3, 2, 1])), jump=2, repeats=2)
    np.testing.assert_array_equal(table, [(5, 4), (4, 3), (3, 5), (5, 4), (4, 3), (3, 2), (2, 1), (1, 3), (3, 2),
                                          (2, 1), (1, 0)])
    assert table.dtype == np.int32


def test_repaint_without_returns_is_the_grid():
    grid = grids.pairs(grids.linspace(40, 12))
    np.testing.assert_array_equal(tasks.repaint(grid, jump=3, repeats=1), grid)
    floats = PROCESSES["vp"][1]
    assert tasks.repaint(floats, jump=3, repeats=2).dtype == floats.dtype


@pytest.mark.parametrize("options", [dict(jump=0, repeats=1), dict(jump=1, repeats=0)])
def test_repaint_refuses_nonsense(options):
    with pytest.raises(ValueError, match="1 or more"):
        tasks.repaint(grids.pairs(np.array([3, 2, 1])), **options)
    with pytest.raises(ValueError, match="contiguous steps"):
        tasks.repaint(np.array([[9, 6], [5, 3]]), jump=1, repeats=1)
