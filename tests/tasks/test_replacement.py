"""Inpainting, colorisation and super-resolution with the exact denoiser of correlated Gaussian images."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import gaussian

from diffusion import tasks
from diffusion.core import grids, numerics, schedules
from diffusion.core.continuous import VP, Flow, VarianceExploding
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.ancestral import Ancestral
from diffusion.samplers.base import draw_prior, sample
from diffusion.samplers.ddim import DDIM
from diffusion.tasks.replacement import renoise

SHAPE = (4, 4, 3)
CHAIN = DiscreteProcess(betas=schedules.linear(40, start=0.1 / 40, end=20 / 40))
PROCESSES = {
    "table": (CHAIN, grids.pairs(grids.linspace(40, 20))),
    "vp": (VP(), grids.pairs(np.arange(20, 0, -1)) / 20.0),
    "flow": (Flow(), grids.pairs(np.arange(20, 0, -1)) / 20.5),
    "edm": (VarianceExploding(), np.stack([g := np.geomspace(80, 0.01, 20), np.append(g[1:], 0)], 1))}
MASK = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(np.float32)
PROJECTIONS = {"inpaint": tasks.pixels(MASK), "colorise": tasks.grey, "upscale": tasks.blocks(2)}


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def images(count, shape=SHAPE, seed=1):
    return np.random.default_rng(seed).normal(size=(count, *shape)) * 0.4


def of_gaussian(process, shape=SHAPE):
    size = int(np.prod(shape))
    return gaussian.diffusion(process, np.zeros(size), gaussian.covariance(size))


def run(solver, diffusion, steps, keys, shape=SHAPE):
    start = draw_prior(diffusion.process, steps[0, 0], keys, shape)
    return jax.jit(lambda x, keys: sample(solver, diffusion, steps, x, keys))(start.astype(float), keys)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_projections_are_orthogonal(x64, name):
    """P P = P and <P x, y> = <x, P y>: then white noise stays white within its range."""
    project, (x, y) = PROJECTIONS[name], (images(3, seed=s) for s in (1, 2))
    np.testing.assert_allclose(project(project(x)), project(x), atol=1e-14)
    np.testing.assert_allclose(np.sum(project(x) * y), np.sum(x * project(y)), rtol=1e-12)


def test_projections_are_what_they_say(x64):
    x = images(2)
    basis, _ = np.linalg.qr(np.concatenate([np.ones((3, 1)), np.eye(3)[:, :2]], 1))
    np.testing.assert_allclose(tasks.grey(x), (x @ basis * [1, 0, 0]) @ basis.T, atol=1e-14)
    np.testing.assert_allclose(tasks.blocks(2)(x)[:, 2:, :2], np.broadcast_to(
        x[:, 2:, :2].mean((1, 2), keepdims=True), (2, 2, 2, 3)), atol=1e-14)
    per_image = np.stack([MASK, 1 - MASK])
    np.testing.assert_array_equal(tasks.pixels(per_image)(x)[1], x[1] * (1 - MASK))


@pytest.mark.parametrize("process, name, solver", [
    *((p, "inpaint", DDIM(eta=1.0)) for p in PROCESSES), ("vp", "colorise", DDIM()),
    ("table", "upscale", Ancestral(variance="small")), ("edm", "upscale", DDIM())])
def test_what_was_measured_is_kept(x64, process, name, solver):
    """At the end exactly, and row by row."""
    process, steps = PROCESSES[process]
    known, keys, project = images(5), keys_of(5), PROJECTIONS[name]
    out = run(tasks.Replacement(solver=solver, known=known, project=project), of_gaussian(process), steps, keys)[1]
    np.testing.assert_allclose(project(out), project(known), atol=1e-13)
    if name == "inpaint":
        np.testing.assert_array_equal(out * MASK, known * MASK)
    assert np.abs(out - known).max() > 0.1 and np.all(np.isfinite(out))
    one = tasks.Replacement(solver=solver, known=known[3:4], project=project)
    np.testing.assert_allclose(run(one, of_gaussian(process), steps, keys[3:4])[1][0], out[3], atol=1e-12)


def test_each_step_noises_the_known_part_to_its_time(x64):
    """x' P-part ~ alpha P y + sigma P z (Song et al. 2021, Appendix I.2), the rest as the solver has it."""
    known, x, keys = images(4), images(4, seed=3), keys_of(4)
    task, exact = tasks.Replacement(solver=DDIM(), known=known, project=tasks.grey), of_gaussian(VP())
    _, out = task.step((), jnp.asarray(x), jnp.asarray(0.5), jnp.asarray(0.4), exact, keys, None)
    _, plain = DDIM().step((), x, 0.5, 0.4, exact, keys, None)
    noise = numerics.normal(numerics.fold_in(keys, 1), SHAPE, float)
    np.testing.assert_allclose(tasks.grey(out), tasks.grey(VP().alpha(0.4) * known + VP().sigma(0.4) * noise),
                               atol=1e-13)
    np.testing.assert_allclose(out - tasks.grey(out), plain - tasks.grey(plain), atol=1e-13)


@pytest.mark.parametrize("name", PROCESSES)
def test_rows_that_go_up_add_the_noise_between(x64, name):
    """x_t ~ q(x_t | x_s): from q(x_s | x_0) it goes to q(x_t | x_0)."""
    process, steps = PROCESSES[name]
    s, t = jnp.asarray(steps[12, 0]), jnp.asarray(steps[7, 0])
    at_0, at_1 = (renoise(process, jnp.full((1, 2), v), s, t, jnp.zeros((1, 2)))[0, 0] for v in (0.0, 1.0))
    std = renoise(process, jnp.zeros((1, 2)), s, t, jnp.ones((1, 2)))[0, 0]
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
    task = tasks.Replacement(solver=DDIM(eta=1.0), known=images(2), project=tasks.pixels(MASK))
    carry, _ = jax.block_until_ready(run(task, exact._replace(denoise=denoise), steps, keys_of(2)))
    jax.effects_barrier()
    assert len(calls) == task.evaluations(steps, carry) == 10 + 3 * 2 * 3  # 3 places, 2 returns of 3 steps each


# ---- the law of the part that is not known ------------------------------------------------------------------------

PAIR, RHO = (1, 2, 1), 0.9  # two pixels of variance 1, the left one known
LEFT = np.array([[[1.0], [0.0]]])


def law_of_the_other(returns=None, y=1.2, count=20_000):
    """How far the mean of the right pixel given the left is off, and its variance over the right one."""
    process = DiscreteProcess(betas=schedules.linear(100, start=0.1 / 100, end=20 / 100))
    steps = grids.pairs(grids.linspace(100, 100))
    cov = np.array([[1, RHO], [RHO, 1]])
    task = tasks.Replacement(solver=Ancestral(variance="small"), known=np.full((count, *PAIR), y),
                             project=tasks.pixels(LEFT))
    _, out = run(task, gaussian.diffusion(process, np.zeros(2), cov), tasks.repaint(steps, **returns) if returns
                 else steps, keys_of(count), PAIR)
    mean, variance = gaussian.conditional(np.zeros(2), cov, np.array([True, False]), np.array([y]))
    other = np.asarray(out)[:, 0, 1, 0]
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
    with pytest.raises(ValueError, match="steps that meet"):
        tasks.repaint(np.array([[9, 6], [5, 3]]), jump=1, repeats=1)
