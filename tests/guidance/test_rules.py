"""Each rule, interval and gradient of guidance against the density that it is exact for, or the paper's formula."""
import functools
from types import SimpleNamespace

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
COND, NULLS = {"label": np.array([0, 1, 1, 0, 1])}, {"label": NULL}
FREE_SCALES, SCALES = [0.0, 1.0, 3.0, 4.0], [0.0, 1.0, 3.0]  # without a classifier, and with one
# Most of the time is the compiler's, and this halves it.
SPACES = {"eps": parameterization.EPS, "x0": parameterization.X0, "v": parameterization.V}


def points(process, t, count=5):
    x0 = np.random.default_rng(0).normal(size=(count, 2)) * 0.8
    return process.alpha(t) * x0 + process.sigma(t) * np.random.default_rng(1).normal(size=(count, 2))


@functools.cache
def found(name):
    """All that the tests ask of a process, at each of its times (the first axis), by one compiled program."""
    process, times = PROCESSES[name]
    exact, classifier = diffusion(process), log_classifier(process)

    def at(t, t_next, free_scales, scales):
        x, keys = points(process, t), jax.random.split(jax.random.key(0), 5)
        ask = lambda diffusion: diffusion.denoise(x, t, COND)  # noqa: E731
        labelled, null = ask(exact), exact.denoise(x, t, {})
        # What it says once serves all rules, since a copy of the denoiser for each is most of what is compiled.
        known = exact._replace(denoise=lambda x, t, cond=None: labelled if cond else null)
        guide = exact._replace(denoise=lambda x, t, cond: null)
        pair = lambda *_: (labelled, null)  # noqa: E731
        projected = lambda **options: ask(guidance.guided(known, pair, guidance.projected(3.0, **options)))  # noqa: E731
        with_gradient = lambda conditional: jax.vmap(lambda scale: ask(guidance.classifier(  # noqa: E731
            known, classifier, scale, conditional=conditional)))(scales)
        plus_plus = guidance.guided(known, pair, guidance.plus_plus(0.6))
        return dict(
            x=x, alpha=process.alpha(t), sigma=process.sigma(t), alpha_next=process.alpha(t_next),
            sigma_next=process.sigma(t_next), labelled=labelled, null=null,
            score_labelled=score(lambda x: log_density(process, x, t, COND["label"]), x),
            score_null=score(lambda x: log_density(process, x, t, NULL), x),
            score_classifier=score(lambda x: classifier(x, t, COND), x),
            free=jax.vmap(lambda scale: ask(guidance.classifier_free(exact, scale, NULLS)))(free_scales),
            auto=ask(guidance.autoguidance(known, guide, 4.0)),
            of_null=with_gradient(False), of_labelled=with_gradient(True),
            stepped=DDIM().step((), x, t, t_next, plus_plus, keys, COND)[1],
            whole=projected(parallel=1.0), across=projected(), short=projected(parallel=1.0, norm_threshold=1e-3))

    times = np.array(times)
    t_next = np.where(times == 1, 0, times - 1) if name == "table" else times / 2
    with jax.enable_x64(True):
        evaluate = jax.jit(jax.vmap(at, (0, 0, None, None)))
        values = jax.tree.map(np.asarray, evaluate(times, t_next, np.array(FREE_SCALES), np.array(SCALES)))
    per_time = [jax.tree.map(lambda a: a[i], values) for i in range(len(times))]  # noqa: B023
    return {t: SimpleNamespace(**at_t) for t, at_t in zip(PROCESSES[name][1], per_time)}


def close_to_score(here, prediction, expected):
    """eps = -sigma score, and x_t = alpha x_0 + sigma eps."""
    np.testing.assert_allclose(-prediction.eps / here.sigma, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(here.alpha * prediction.x0 + here.sigma * prediction.eps, here.x, rtol=1e-9, atol=1e-9)


def each(predictions, scales):
    """(scale, its prediction) of predictions whose first axis is the scales'."""
    return zip(scales, (jax.tree.map(lambda a: a[i], predictions) for i in range(len(scales))))  # noqa: B023


@pytest.mark.parametrize("name, t", CASES)
def test_classifier_free_guidance_is_the_score_of_the_sharpened_density(name, t):
    """p(x) (p(x|y) / p(x))^w, at each time (Ho & Salimans 2022, Section 3)."""
    here = found(name)[t]
    for scale, prediction in each(here.free, FREE_SCALES):
        close_to_score(here, prediction, (1 - scale) * here.score_null + scale * here.score_labelled)
        np.testing.assert_allclose(prediction.variance_fraction[:, 0], COND["label"] / 4)


@pytest.mark.parametrize("name, t", CASES)
def test_an_exact_classifier_makes_the_conditional_score(name, t):
    """grad log p(x) + scale grad log p(y|x): at scale 1 that of p(x|y) (Dhariwal & Nichol 2021, Eqs. 11-14)."""
    here = found(name)[t]
    for scale, prediction in each(here.of_null, SCALES):
        close_to_score(here, prediction, here.score_null + scale * here.score_classifier)
        if scale == 1:
            close_to_score(here, prediction, here.score_labelled)
    for scale, prediction in each(here.of_labelled, SCALES):
        close_to_score(here, prediction, here.score_labelled + scale * here.score_classifier)


def test_a_classifier_at_zero_snr_changes_nothing(x64):
    process = DiscreteProcess(betas=schedules.with_zero_terminal_snr(
        schedules.linear(50, beta_start=1e-3, beta_end=0.2)))
    plain = parameterization.Diffusion(process, lambda x, t, cond=None: parameterization.Prediction(0.1 * x, x))
    guided = guidance.classifier(plain, lambda x, t, y: -jnp.sum(x**2, 1), 2.0)
    out = jax.jit(lambda x, t: guided.denoise(x, t, None))(np.ones((3, 2)), 50)
    np.testing.assert_array_equal(out.x0, np.full((3, 2), 0.1))
    np.testing.assert_array_equal(out.eps, np.ones((3, 2)))


@pytest.mark.parametrize("name, t", CASES)
def test_autoguidance_is_the_same_with_a_second_model(name, t):
    here = found(name)[t]
    theirs = dict(each(here.free, FREE_SCALES))[4.0]
    np.testing.assert_allclose(here.auto.x0, theirs.x0, rtol=1e-10)
    np.testing.assert_allclose(here.auto.eps, theirs.eps, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, t", CASES)
def test_plus_plus_steps_as_the_paper_says(name, t):
    """Chung et al. (2024), Algorithm 2: from x_0 of the guided eps, back along the eps of no class."""
    here = found(name)[t]
    labelled, null = here.labelled.eps, here.null.eps
    x0 = (here.x - here.sigma * (null + 0.6 * (labelled - null))) / here.alpha
    np.testing.assert_allclose(here.stepped, here.alpha_next * x0 + here.sigma_next * null, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name, t", CASES)
def test_projection_splits_the_change(name, t):
    """Sadat et al. (2024), Eqs. 6-8: along x_0 it is scaled by `parallel`, and never longer than the threshold."""
    here = found(name)[t]
    labelled, null, linear = here.labelled, here.null, dict(each(here.free, FREE_SCALES))[3.0]
    for part in ("x0", "eps"):
        np.testing.assert_allclose(getattr(here.whole, part), getattr(linear, part), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(np.sum((here.across.x0 - labelled.x0) * labelled.x0, 1), 0, atol=1e-9)
    rest = here.whole.x0 - here.across.x0
    np.testing.assert_allclose(rest[:, 0] * labelled.x0[:, 1], rest[:, 1] * labelled.x0[:, 0], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(here.short.x0 - labelled.x0, axis=1),
                               2 * np.minimum(1e-3, np.linalg.norm(labelled.x0 - null.x0, axis=1)), rtol=1e-6)
    close_to_score(here, here.short, -here.short.eps / here.sigma)


def test_rescaling_brings_the_standard_deviation_back(x64):
    """Lin et al. (2024), Eqs. 14-16, in the space of the model's output."""
    process, t, shares = PROCESSES["vp"][0], 0.5, np.array([0.0, 0.7, 1.0])
    exact = diffusion(process)
    pair = guidance.condition_pair(exact, NULLS)

    @jax.jit
    def evaluate(x, t, shares):
        def in_space(space):
            ask = lambda share: guidance.guided(exact, pair, guidance.rescaled(  # noqa: E731
                guidance.linear(5.0), share, space)).denoise(x, t, COND)
            target = lambda p: space.target(process, p.x0, p.eps, t)  # noqa: E731
            out = jax.vmap(ask)(shares)
            return out, jax.vmap(target)(out), *map(target, pair(x, t, COND))
        return {name: in_space(space) for name, space in SPACES.items()}, process.alpha(t), process.sigma(t)

    x = points(process, t)
    found, alpha, sigma = jax.tree.map(np.asarray, evaluate(x, t, shares))
    std = lambda f: f.std(axis=1, keepdims=True)  # noqa: E731
    for name, (out, f, labelled, null) in found.items():
        linear = null + 5 * (labelled - null)
        for share, f in zip(shares, f):
            np.testing.assert_allclose(f, share * linear * std(labelled) / std(linear) + (1 - share) * linear,
                                       rtol=1e-9, err_msg=f"{name} {share}")
        np.testing.assert_allclose(std(f), std(labelled), rtol=1e-9)  # of share 1, the last
        np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, [x] * 3, rtol=1e-9, atol=1e-10, err_msg=name)


def test_equal_predictions_are_left_alone(x64):
    """No division by a norm of 0."""
    process, t = PROCESSES["vp"][0], 0.4
    exact = diffusion(process)
    guided = guidance.guided(exact, guidance.model_pair(exact, exact), guidance.projected(3.0, norm_threshold=1.0))
    ours, alone = jax.jit(lambda x, t: [d.denoise(x, t, COND).x0 for d in (guided, exact)])(points(process, t), t)
    np.testing.assert_array_equal(ours, alone)


def test_the_interval_is_open_below_and_closed_above(x64):
    """Kynkaanniemi et al. (2024), Eq. 5: guided for noise levels in (low, high], conditional alone elsewhere."""
    process = PROCESSES["edm"][0]
    exact = diffusion(process)
    guided = guidance.classifier_free(exact, 3.0, NULLS)
    limited = guidance.classifier_free(exact, 3.0, NULLS, interval=(0.5, 2.0))
    ask = jax.jit(lambda x, t: [d.denoise(x, t, COND).eps for d in (limited, guided, exact)])
    for t, on in [(0.3, 0), (0.5, 0), (0.50001, 1), (1.0, 1), (2.0, 1), (2.001, 0)]:
        ours, within, alone = ask(points(process, t), t)
        np.testing.assert_allclose(ours, within if on else alone, rtol=1e-12, err_msg=str(t))
        assert np.abs(within - alone).max() > 1e-6
    ours, within, alone = ask(points(process, 1.0), np.array([0.3, 0.6, 1.0, 1.9, 3.0]))
    np.testing.assert_allclose(ours, np.where(np.array([0, 1, 1, 1, 0])[:, None], within, alone), rtol=1e-12)


def test_outside_the_interval_the_second_evaluation_is_saved(x64):
    process, rows = PROCESSES["edm"][0], []
    exact = diffusion(process)

    def denoise(x, t, cond):
        jax.debug.callback(lambda _: rows.append(len(x)), x)
        return exact.denoise(x, t, cond)

    limited = guidance.classifier_free(parameterization.Diffusion(process, denoise), 3.0, NULLS, interval=(0.5, 2.0))
    run = jax.jit(lambda x, t: limited.denoise(x, t, COND))
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
        guided = guidance.guided(exact, guidance.condition_pair(exact, NULLS), rule, interval=(low, high))
        guided = guidance.classifier(guided, log_classifier(process), scale)
        return clip_x0(guided).denoise(x, jnp.asarray(0.5), COND).x0

    x = points(process, 0.5)
    a, b = run(x, 2.0, 0.1, 9.0, 0.3, 1.0), run(x, 3.0, 0.2, 8.0, 0.4, 2.0)
    assert len(traces) == 1 and np.abs(a - b).max() > 1e-3 and np.all(np.isfinite(a))


@functools.cache
def momentum_program(bound=None):
    """(x, keys, labels, momentum, steps, last) -> (carry, x) by the solver with momentum, x_0 clipped to the bound."""
    finish = (lambda d: d) if bound is None else lambda d: clip_x0(d, bound)  # noqa: E731

    def run(x, keys, labels, momentum, steps, last):
        solver = guidance.Momentum(solver=DDIM(), momentum=momentum, pair=lambda d: guidance.condition_pair(d, NULLS),
                                   rule=guidance.projected(3.0, norm_threshold=0.4), finish=finish)
        return sample(solver, diffusion(PROCESSES["vp"][0]), steps, x, keys, labels, last=last)
    return jax.jit(run)


START = np.random.default_rng(3).normal(size=(5, 2))
STEPS = grids.pairs(np.arange(12, 0, -1)) / 12.0


def test_momentum_is_the_papers(x64):
    """Sadat et al. (2024), Algorithm 1, written as a loop; with momentum 0 it is the rule alone."""
    process, keys = PROCESSES["vp"][0], jax.random.split(jax.random.key(0), 5)
    exact, rule = diffusion(process), guidance.projected(3.0, norm_threshold=0.4)
    pair = guidance.condition_pair(exact, NULLS)
    run = lambda m, bound=None: np.asarray(  # noqa: E731
        momentum_program(bound)(START, keys, COND, m, STEPS, 12)[1])
    ask = jax.jit(lambda x, t, s: [*(p.x0 for p in pair(x, t, COND)), process.alpha(t), process.sigma(t),
                                   process.alpha(s), process.sigma(s)])
    x, average = START, 0.0
    for t, s in STEPS:
        labelled, null, alpha, sigma, alpha_next, sigma_next = map(np.asarray, ask(x, t, s))
        average = labelled - null - 0.5 * average
        d = average * np.minimum(1, 0.4 / np.linalg.norm(average, axis=1, keepdims=True))
        unit = labelled / np.linalg.norm(labelled, axis=1, keepdims=True)
        x0 = labelled + 2 * (d - np.sum(d * unit, axis=1, keepdims=True) * unit)
        x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
    np.testing.assert_allclose(run(-0.5), x, rtol=1e-7, atol=1e-8)
    alone = jax.jit(lambda x: sample(DDIM(), guidance.guided(exact, pair, rule), STEPS, x, keys, COND)[1])(START)
    np.testing.assert_allclose(run(0.0), alone, rtol=1e-9, atol=1e-10)
    assert np.abs(run(-0.5) - alone).max() > 1e-3
    assert np.abs(run(-0.5, 0.3)).max() <= 0.3


def test_momentum_counts_the_solvers_evaluations_and_keeps_rows_apart(x64):
    keys, run = jax.random.split(jax.random.key(0), 5), momentum_program()
    steps = np.resize(STEPS[6:], (12, 2))  # a chain of 6 steps, and rows that are not reached
    carry, out = run(START, keys, COND, -0.5, steps, 6)
    solver = guidance.Momentum(solver=DDIM(), momentum=-0.5, pair=None, rule=None)
    assert solver.evaluations(steps[:6], carry) == 6
    _, alone = run(START[2:3], keys[2:3], {"label": COND["label"][2:3]}, -0.5, steps, 6)
    np.testing.assert_allclose(out[2:3], alone, rtol=1e-12)
