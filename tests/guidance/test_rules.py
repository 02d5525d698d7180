"""Each rule, interval and gradient of guidance against the density that it is exact for, or the paper's formula."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from guidance.exact import NULL, diffusion, log_classifier, log_density, score

from diffusion import guidance
from diffusion.core import grids, parameterization, schedules
from diffusion.core.continuous import VP, Flow, VarianceExploding
from diffusion.core.parameterization import clip_x0
from diffusion.core.processes import DiscreteProcess
from diffusion.samplers.base import sample
from diffusion.samplers.ddim import DDIM

PROCESSES = {"table": (DiscreteProcess(betas=schedules.cosine(50)), (1, 20, 45)), "vp": (VP(), (0.01, 0.4, 0.9)),
             "edm": (VarianceExploding(), (0.05, 0.7, 20.0)), "flow": (Flow(), (0.05, 0.5, 0.95))}
CASES = [(name, t) for name, (_, times) in PROCESSES.items() for t in times]
LABELS = np.array([0, 1, 1, 0, 1])
SPACES = {"eps": parameterization.EPS, "x0": parameterization.X0, "v": parameterization.V}


def points(process, t, count=5):
    x0 = np.random.default_rng(0).normal(size=(count, 2)) * 0.8
    return jnp.asarray(process.alpha(t) * x0 + process.sigma(t) * np.random.default_rng(1).normal(size=(count, 2)))


def close_to_score(process, prediction, x, t, expected):
    """eps = -sigma score, and x_t = alpha x_0 + sigma eps."""
    alpha, sigma = process.alpha(t), process.sigma(t)
    np.testing.assert_allclose(-prediction.eps / sigma, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-9, atol=1e-9)


def predictions(process, x, t, labels=LABELS):
    exact = diffusion(process)
    return exact.denoise(x, t, labels), exact.denoise(x, t, np.full(len(x), NULL))


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("name, t", CASES)
def test_classifier_free_guidance_is_the_score_of_the_sharpened_density(x64, name, t, scale):
    """p(x) (p(x|y) / p(x))^w, at each time (Ho & Salimans 2022, Section 3)."""
    process, x = PROCESSES[name][0], points(*(PROCESSES[name][0], t))
    sharpened = lambda x: ((1 - scale) * log_density(process, x, t, NULL)  # noqa: E731
                           + scale * log_density(process, x, t, LABELS))
    prediction = guidance.classifier_free(diffusion(process), scale, NULL).denoise(x, t, LABELS)
    close_to_score(process, prediction, x, t, score(sharpened, x))
    np.testing.assert_allclose(prediction.variance_fraction[:, 0], LABELS / 4)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("name, t", CASES)
def test_an_exact_classifier_makes_the_conditional_score(x64, name, t, scale):
    """grad log p(x) + scale grad log p(y|x): at scale 1 that of p(x|y) (Dhariwal & Nichol 2021, Eqs. 11-14)."""
    process, x = PROCESSES[name][0], points(*(PROCESSES[name][0], t))
    classifier = log_classifier(process)
    guided = guidance.classifier(diffusion(process), classifier, scale, conditional=False)
    expected = (score(lambda x: log_density(process, x, t, NULL), x)
                + scale * score(lambda x: classifier(x, t, LABELS), x))
    close_to_score(process, guided.denoise(x, t, LABELS), x, t, expected)
    if scale == 1:
        close_to_score(process, guided.denoise(x, t, LABELS), x, t,
                       score(lambda x: log_density(process, x, t, LABELS), x))
    both = guidance.classifier(diffusion(process), classifier, scale)
    expected = score(lambda x: log_density(process, x, t, LABELS) + scale * classifier(x, t, LABELS), x)
    close_to_score(process, both.denoise(x, t, LABELS), x, t, expected)


def test_a_classifier_at_zero_snr_changes_nothing(x64):
    process = DiscreteProcess(betas=schedules.zero_terminal_snr(schedules.linear(50, start=1e-3, end=0.2)))
    plain = parameterization.Diffusion(process, lambda x, t, cond=None: parameterization.Prediction(0.1 * x, x))
    out = guidance.classifier(plain, lambda x, t, y: -jnp.sum(x**2, 1), 2.0).denoise(jnp.ones((3, 2)), 50, None)
    np.testing.assert_array_equal(out.x0, np.full((3, 2), 0.1))
    np.testing.assert_array_equal(out.eps, np.ones((3, 2)))


@pytest.mark.parametrize("name, t", CASES)
def test_autoguidance_is_the_same_with_a_second_model(x64, name, t):
    process, x = PROCESSES[name][0], points(*(PROCESSES[name][0], t))
    exact = diffusion(process)
    weak = exact._replace(denoise=lambda x, t, cond=None: exact.denoise(x, t, np.full(len(x), NULL)))
    ours = guidance.autoguidance(exact, weak, 2.5).denoise(x, t, LABELS)
    theirs = guidance.classifier_free(exact, 2.5, NULL).denoise(x, t, LABELS)
    np.testing.assert_allclose(ours.x0, theirs.x0, rtol=1e-10)
    np.testing.assert_allclose(ours.eps, theirs.eps, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, t", CASES)
def test_plus_plus_steps_as_the_paper_says(x64, name, t):
    """Chung et al. (2024), Algorithm 2: from x_0 of the guided eps, back along the eps of no class."""
    process, x, scale = PROCESSES[name][0], points(*(PROCESSES[name][0], t)), 0.6
    exact = diffusion(process)
    guided = guidance.guided(exact, guidance.label_pair(exact, NULL), guidance.plus_plus(scale))
    t_next = {"table": 0 if t == 1 else t - 1}.get(name, t / 2)
    _, out = DDIM().step((), x, t, t_next, guided, jax.random.split(jax.random.key(0), 5), LABELS)
    labelled, null = (p.eps for p in predictions(process, x, t))
    x0 = (x - process.sigma(t) * (null + scale * (labelled - null))) / process.alpha(t)
    np.testing.assert_allclose(out, process.alpha(t_next) * x0 + process.sigma(t_next) * null, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_standard_deviation_back(x64, share, space):
    """Lin et al. (2024), Eqs. 14-16, in the space of the model's output."""
    process, t = PROCESSES["vp"][0], 0.5
    x, space = points(process, t), SPACES[space]
    exact = diffusion(process)
    rule = guidance.rescaled(guidance.linear(5.0), share, space)
    out = guidance.guided(exact, guidance.label_pair(exact, NULL), rule).denoise(x, t, LABELS)
    f, labelled, null = (np.asarray(space.target(process, p.x0, p.eps, t))
                         for p in (out, *predictions(process, x, t)))
    linear = null + 5 * (labelled - null)
    std = lambda f: f.std(axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(f, share * linear * std(labelled) / std(linear) + (1 - share) * linear, rtol=1e-9)
    np.testing.assert_allclose(process.alpha(t) * out.x0 + process.sigma(t) * out.eps, x, rtol=1e-9, atol=1e-10)
    if share == 1:
        np.testing.assert_allclose(std(f), std(labelled), rtol=1e-9)


@pytest.mark.parametrize("name, t", CASES)
def test_projection_splits_the_change(x64, name, t):
    """Sadat et al. (2024), Eqs. 6-8: along x_0 it is scaled by `parallel`, and never longer than the threshold."""
    process, x = PROCESSES[name][0], points(*(PROCESSES[name][0], t))
    exact = diffusion(process)
    labelled, null = predictions(process, x, t)
    run = lambda **options: guidance.guided(  # noqa: E731
        exact, guidance.label_pair(exact, NULL), guidance.projected(3.0, **options)).denoise(x, t, LABELS)
    linear = guidance.classifier_free(exact, 3.0, NULL).denoise(x, t, LABELS)
    for part in ("x0", "eps"):
        np.testing.assert_allclose(getattr(run(parallel=1.0), part), getattr(linear, part), rtol=1e-8, atol=1e-9)
    change = run().x0 - labelled.x0
    np.testing.assert_allclose(jnp.sum(change * labelled.x0, 1), 0, atol=1e-9)
    rest = (run(parallel=1.0).x0 - run().x0)
    np.testing.assert_allclose(rest[:, 0] * labelled.x0[:, 1], rest[:, 1] * labelled.x0[:, 0], atol=1e-9)
    short = run(parallel=1.0, norm_threshold=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(short.x0 - labelled.x0, axis=1),
                               2 * jnp.minimum(1e-3, jnp.linalg.norm(labelled.x0 - null.x0, axis=1)), rtol=1e-6)
    close_to_score(process, short, x, t, -short.eps / process.sigma(t))


def test_equal_predictions_are_left_alone(x64):
    """No division by a norm of 0."""
    process, t = PROCESSES["vp"][0], 0.4
    x, exact = points(process, t), diffusion(process)
    out = guidance.guided(exact, guidance.model_pair(exact, exact),
                          guidance.projected(3.0, norm_threshold=1.0)).denoise(x, t, LABELS)
    np.testing.assert_array_equal(out.x0, exact.denoise(x, t, LABELS).x0)


def test_the_interval_is_open_below_and_closed_above(x64):
    """Kynkaanniemi et al. (2024), Eq. 5: guided for noise levels in (low, high], conditional alone elsewhere."""
    process = PROCESSES["edm"][0]
    exact = diffusion(process)
    limited = guidance.classifier_free(exact, 3.0, NULL, interval=(0.5, 2.0))
    guided, alone = guidance.classifier_free(exact, 3.0, NULL), exact
    for t, expected in [(0.3, alone), (0.5, alone), (0.50001, guided), (1.0, guided), (2.0, guided), (2.001, alone)]:
        x = points(process, t)
        np.testing.assert_allclose(limited.denoise(x, jnp.asarray(t), LABELS).eps,
                                   expected.denoise(x, t, LABELS).eps, rtol=1e-12)
    times = jnp.array([0.3, 0.6, 1.0, 1.9, 3.0])
    x = points(process, 1.0)
    both = [d.denoise(x, times, LABELS).eps for d in (guided, alone)]
    np.testing.assert_allclose(limited.denoise(x, times, LABELS).eps,
                               jnp.where(np.array([0, 1, 1, 1, 0])[:, None], *both), rtol=1e-12)


def test_outside_the_interval_the_second_evaluation_is_saved(x64):
    process, rows = PROCESSES["edm"][0], []
    exact = diffusion(process)

    def denoise(x, t, cond=None):
        jax.debug.callback(lambda _: rows.append(len(x)), x)
        return exact.denoise(x, t, cond)

    limited = guidance.classifier_free(parameterization.Diffusion(process, denoise), 3.0, NULL, interval=(0.5, 2.0))
    run = jax.jit(lambda x, t: limited.denoise(x, t, LABELS))
    for t in (0.3, 1.0, 3.0):
        jax.block_until_ready(run(points(process, t), t))
    jax.effects_barrier()
    assert rows == [5, 10, 5]


def test_scales_and_bounds_are_traced(x64):
    """One program for all values of them."""
    process, traces = PROCESSES["vp"][0], []
    exact = diffusion(process)

    @jax.jit
    def run(x, scale, low, high, share, threshold):
        traces.append(1)
        rule = guidance.rescaled(guidance.projected(scale, parallel=share, norm_threshold=threshold), share,
                                 parameterization.V)
        guided = guidance.guided(exact, guidance.label_pair(exact, NULL), rule, interval=(low, high))
        guided = guidance.classifier(guided, log_classifier(process), scale)
        return clip_x0(guided).denoise(x, jnp.asarray(0.5), LABELS).x0

    x = points(process, 0.5)
    a, b = run(x, 2.0, 0.1, 9.0, 0.3, 1.0), run(x, 3.0, 0.2, 8.0, 0.4, 2.0)
    assert len(traces) == 1 and np.abs(a - b).max() > 1e-3 and np.all(np.isfinite(a))


def test_momentum_is_the_papers(x64):
    """Sadat et al. (2024), Algorithm 1, written as a loop; with momentum 0 it is the rule alone."""
    process, steps = VP(), grids.pairs(np.arange(12, 0, -1)) / 12.0
    exact, keys = diffusion(process), jax.random.split(jax.random.key(0), 5)
    pair, rule = lambda d: guidance.label_pair(d, NULL), guidance.projected(3.0, norm_threshold=0.4)  # noqa: E731
    x = start = jnp.asarray(np.random.default_rng(3).normal(size=(5, 2)))
    run = lambda m, finish=lambda d: d: sample(  # noqa: E731
        guidance.Momentum(solver=DDIM(), momentum=m, pair=pair, rule=rule, finish=finish), exact, steps, start, keys,
        LABELS)[1]
    average = 0.0
    for t, s in steps:
        labelled, null = predictions(process, x, t)
        average = labelled.x0 - null.x0 - 0.5 * average
        d = np.asarray(average)
        d = d * np.minimum(1, 0.4 / np.linalg.norm(d, axis=1, keepdims=True))
        unit = labelled.x0 / np.linalg.norm(labelled.x0, axis=1, keepdims=True)
        x0 = labelled.x0 + 2 * (d - np.sum(d * unit, axis=1, keepdims=True) * unit)
        x = process.alpha(s) * x0 + process.sigma(s) * (x - process.alpha(t) * x0) / process.sigma(t)
    np.testing.assert_allclose(run(-0.5), x, rtol=1e-7, atol=1e-8)
    alone = sample(DDIM(), guidance.guided(exact, pair(exact), rule), steps, start, keys, LABELS)[1]
    np.testing.assert_allclose(run(0.0), alone, rtol=1e-9, atol=1e-10)
    assert np.abs(run(-0.5) - alone).max() > 1e-3
    assert np.abs(run(-0.5, lambda d: clip_x0(d, 0.3))).max() <= 0.3


def test_momentum_counts_the_solvers_evaluations_and_keeps_rows_apart(x64):
    process, steps = VP(), grids.pairs(np.arange(6, 0, -1)) / 6.0
    solver = guidance.Momentum(solver=DDIM(), momentum=-0.5, pair=lambda d: guidance.label_pair(d, NULL),
                               rule=guidance.projected(3.0, norm_threshold=0.4))
    x, keys = np.random.default_rng(3).normal(size=(5, 2)), jax.random.split(jax.random.key(0), 5)
    carry, out = sample(solver, diffusion(process), steps, jnp.asarray(x), keys, LABELS)
    assert solver.evaluations(steps, carry) == 6
    _, alone = sample(solver, diffusion(process), steps, jnp.asarray(x[2:3]), keys[2:3], LABELS[2:3])
    np.testing.assert_allclose(out[2:3], alone, rtol=1e-12)
