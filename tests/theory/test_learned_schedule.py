"""The learned schedule: a process as any other, its ends where they are put, and what its parameters are taught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import losses, variational
from diffusion.core import time_densities as td
from diffusion.core.learned_schedule import LearnedSchedule
from diffusion.core.numerics import expand
from diffusion.core.parameterization import EPS, Diffusion, Prediction, make_denoiser

# Most of the time of these tests is the compiler's: this takes a third of it away.
SCHEDULE = LearnedSchedule(hidden=32)
ENDS = LearnedSchedule(hidden=32, learned_ends=True)


def random_params(schedule, seed=0):
    """Far from linear: hidden units with steps of both signs at all times."""
    rng = np.random.default_rng(seed)
    params = {"slope": jnp.asarray(-0.3), "in": jnp.asarray(8 * rng.normal(size=32)),
              "bias": jnp.asarray(4 * rng.normal(size=32)), "out": jnp.asarray(5 * rng.normal(size=32))}
    return params | ({"gamma_0": jnp.asarray(-12.0), "span": jnp.asarray(-16.0)} if schedule.learned_ends else {})


def test_it_starts_as_good_as_linear_between_its_ends(x64):
    members = {"fixed ends": SCHEDULE, "learned ends": ENDS, "linear": LearnedSchedule(hidden=0),
               "VDM's size": LearnedSchedule()}

    @jax.jit
    def evaluate(t):
        processes = {name: schedule.process(schedule.init(jax.random.key(0))) for name, schedule in members.items()}
        return {name: (process.log_snr(t), process.alpha(t)) for name, process in processes.items()}

    t = np.linspace(1e-6, 1, 101)
    for name, (log_snr, alpha) in evaluate(np.append(t, 0.0)).items():
        np.testing.assert_allclose(log_snr[:-1], 13.3 - 18.3 * t, atol=1e-3, err_msg=name)
        assert log_snr[-1] == np.inf and alpha[-1] == 1, name


def test_it_is_monotone_and_keeps_its_ends_whatever_the_parameters(x64):
    """Not so in the authors' code, where the network's output is added to the linear one."""
    evaluate = jax.jit(lambda params, t: [schedule.process(params).log_snr(t) for schedule in (SCHEDULE, ENDS)])
    t = np.append(np.arange(1, 1001) / 1000, 1e-12)
    for seed in range(5):
        fixed, learned = map(np.asarray, evaluate(random_params(ENDS, seed), t))
        falls = np.diff(fixed[:-1])
        assert np.all(falls < 0) and np.ptp(falls) > 1e-3
        np.testing.assert_allclose(fixed[[-1, -2]], [13.3, -5.0], atol=1e-8)
        np.testing.assert_allclose(learned[[-1, -2]], [12.0, -4.0], atol=1e-8)


def test_time_is_the_inverse_of_log_snr(x64):
    process, t = SCHEDULE.process(random_params(SCHEDULE)), np.linspace(0.01, 1, 57)
    beyond = jnp.array([jnp.inf, 99.0, -99.0])
    time = jax.jit(lambda t: process.time_of_log_snr(jnp.append(process.log_snr(t), beyond)))(t)
    np.testing.assert_allclose(time, [*t, 0, process.t_min, 1], atol=1e-8)
    assert jax.eval_shape(process.time_of_log_snr, jnp.float32(3.0)).shape == ()


def test_the_network_is_told_gamma_between_0_and_1000(x64):
    process = SCHEDULE.process(random_params(SCHEDULE))
    label, log_snr = jax.jit(lambda t: (process.c_noise(t), process.log_snr(t)))(np.linspace(1e-6, 1, 5))
    np.testing.assert_allclose(label, 1000 * (13.3 - log_snr) / 18.3, rtol=1e-10, atol=1e-9)


def test_no_gradient_reaches_the_interior_but_by_the_density(x64):
    t = np.linspace(0.05, 0.95, 7)
    functions = {"log_snr": lambda p: p.log_snr(t), "alpha": lambda p: p.alpha(t), "label": lambda p: p.c_noise(t),
                 "rate": lambda p: p.log_rates(t)[1], "density": lambda p: p.log_density(t)}

    @jax.jit
    def gradients(params):
        return {name: jax.grad(lambda params: jnp.sum(f(ENDS.process(params))))(params)  # noqa: B023
                for name, f in functions.items()}

    of_density = (found := jax.tree.map(np.asarray, gradients(random_params(ENDS)))).pop("density")
    for name, of in found.items():
        assert all(np.all(of[part] == 0) for part in ("slope", "in", "bias", "out")), name
        assert of["gamma_0"] != 0 or name == "rate"  # which does not depend on it
        assert of["span"] != 0, name
    assert of_density["gamma_0"] == 0 and of_density["span"] == 0
    assert all(np.any(of_density[part] != 0) for part in ("slope", "in", "bias", "out"))


def error(gamma):
    """Of some denoiser, over the noise levels."""
    return 0.3 * jax.nn.sigmoid(-gamma - 2) + 0.1 * jnp.exp(-(gamma + 4) ** 2) + 0.02


@pytest.mark.parametrize("schedule", [SCHEDULE, ENDS])
def test_the_surrogate_has_the_gradient_of_the_second_moment(x64, schedule):
    """d/d eta of int_0^1 L(t)^2 dt, L = 1/2 gamma' err(gamma), against the mean of -L^2 d log p(gamma)/d eta."""
    t = (jnp.arange(40_000) + 0.5) / 40_000
    params = random_params(schedule)

    def gamma(params, t):  # all of it live, unlike the process
        start, span = jax.lax.stop_gradient(schedule.ends(params))
        return jax.jvp(lambda t: start + span * schedule.share(params, t), (t,), (jnp.ones_like(t),))

    def second_moment(params):
        value, slope = gamma(params, t)
        return jnp.mean((slope * error(value) / 2) ** 2)

    def surrogate(params):
        value, slope = jax.lax.stop_gradient(gamma(params, t))
        return -jnp.mean((slope * error(value) / 2) ** 2 * schedule.process(params).log_density(t))

    exact, ours = jax.jit(lambda params: [jax.grad(f)(params) for f in (second_moment, surrogate)])(params)
    for name in ("slope", "in", "bias", "out"):
        np.testing.assert_allclose(ours[name], exact[name], rtol=1e-4, atol=1e-6 * np.abs(exact[name]).max())
        assert np.abs(exact[name]).max() > 1e-3


def given_error(process, e):
    """A denoiser that errs by e(gamma) in every coordinate, whatever it sees."""
    def denoise(x_t, t, cond):
        eps = (x_t - expand(process.alpha(t), x_t) * 0.5) / expand(process.sigma(t), x_t)  # x_0 is 0.5 here
        wrong = eps + expand(jnp.sqrt(e(-process.log_snr(t))), x_t)
        return Prediction((x_t - expand(process.sigma(t), x_t) * wrong) / expand(process.alpha(t), x_t), wrong)
    return Diffusion(process, denoise)


def bound(params, schedule, t, learned=True):
    x0 = jnp.full((len(t), 2), 0.5)
    keys = jax.random.split(jax.random.key(0), len(t))
    diffusion = given_error(schedule.process(params), error)
    return losses.make_continuous_vlb_loss(learned=learned)(
        {}, diffusion, x0, None, td.Times(t, jnp.ones(len(t))), keys)[0]


def diffusion_term(params, schedule, t):
    """1/2 gamma' err(gamma) in bits: of the bound what depends on t. The decoder's term adds noise of its own."""
    start, span = jax.lax.stop_gradient(schedule.ends(params))
    value, slope = jax.jvp(lambda t: start + span * schedule.share(params, t), (t,), (jnp.ones_like(t),))
    return slope * error(value) / 2 / np.log(2)


def test_the_loss_teaches_the_interior_the_variance_and_the_ends_the_bound(x64):
    t, params = (jnp.arange(500) + 0.5) / 500, random_params(ENDS)

    @jax.jit
    def evaluate(params):
        mean = lambda params, learned: (lambda value: (jnp.mean(value), value))(  # noqa: E731
            bound(params, ENDS, t, learned))
        return (*[jax.grad(mean, has_aux=True)(params, learned) for learned in (True, False)],
                jax.grad(lambda p: jnp.mean(diffusion_term(p, ENDS, t) ** 2))(params))

    (with_, value), (without, plain), exact = evaluate(params)
    np.testing.assert_allclose(value, plain, rtol=1e-12)
    for name in ("gamma_0", "span"):
        np.testing.assert_allclose(with_[name], without[name], rtol=1e-10)
        assert without[name] != 0

    for name in ("slope", "in", "bias", "out"):
        assert np.all(np.asarray(without[name]) == 0)
        np.testing.assert_allclose(with_[name], exact[name], rtol=1e-3, atol=1e-4 * np.abs(exact[name]).max())


def test_the_gradient_of_the_ends_is_that_of_the_bound(x64):
    """d/d gamma_1 of 1/2 int err d gamma is err(gamma_1)/2, and the prior's and the decoder's own."""
    t, h = (jnp.arange(500) + 0.5) / 500, 1e-4
    params = random_params(ENDS)
    mean = jax.jit(jax.value_and_grad(lambda p: jnp.mean(bound(p, ENDS, t, False))))
    _, gradient = mean(params)
    for name in ("gamma_0", "span"):
        up, down = (mean(params | {name: params[name] + step})[0] for step in (h, -h))
        np.testing.assert_allclose(gradient[name], (up - down) / (2 * h), rtol=1e-4)


@pytest.mark.slow
def test_training_the_interior_lowers_the_variance_and_not_the_bound(x64):
    t = (np.arange(500) + 0.5) / 500
    params = SCHEDULE.init(jax.random.key(0))
    params = params | {"in": 30 * params["in"] * 20, "out": 30 * params["out"] * 20, "bias": jnp.linspace(-5, 5, 32)}

    def step(_, state):
        params, moment = state
        gradient = jax.grad(lambda p: jnp.mean(bound(p, SCHEDULE, t)))(params)
        moment = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g**2, moment, gradient)
        return jax.tree.map(lambda p, g, m: p - 0.02 * g / (jnp.sqrt(m) + 1e-8), params, gradient, moment), moment

    @jax.jit
    def train(params):
        trained, _ = jax.lax.fori_loop(0, 300, step, (params, jax.tree.map(jnp.zeros_like, params)))
        return [(diffusion_term(p, SCHEDULE, t), bound(p, SCHEDULE, t)) for p in (params, trained)]

    (term_before, before), (term, after) = jax.tree.map(np.asarray, train(params))
    assert term.std() < 0.5 * term_before.std()
    np.testing.assert_allclose(after.mean(), before.mean(), rtol=2e-3)


def test_grids_are_of_the_parameters_that_are_sampled():
    """Even steps of log-SNR of the trained schedule, not of the one it started from; and of its own ends."""
    from diffusion import build
    from diffusion import config as config_lib
    from diffusion.errors import ConfigError
    config = config_lib.override(config_lib.base(), {
        "process.name": "learned", "process.hidden": 32, "process.learned_ends": True, "loss.name": "continuous_vlb",
        "data.size": 8, "network.channels": 8, "network.groups": 4, "network.multipliers": (1,), "network.blocks": 1,
        "network.attention_resolutions": (), "network.middle": "none", "sample.spacing": "log_snr",
        "sample.steps": 10})
    model, params = build.model(config), {"schedule": random_params(ENDS)}
    times = build.grid_of(config, model)(params)[:, 0]
    log_snr = np.asarray(model.process_of(params).log_snr(times))
    np.testing.assert_allclose(log_snr[[0, -1]], [-4.0, 12.0], atol=0.02)
    np.testing.assert_allclose(np.diff(log_snr), np.ptp(log_snr) / 9, rtol=2e-2)
    along = config_lib.override(config, {"sample.schedule": "linear"})
    with pytest.raises(ConfigError, match="between the model's ends, which this model learns"):
        build.sampler(along, model)


def test_a_denoiser_with_a_learned_process_takes_its_parameters_from_the_collection():
    denoiser = make_denoiser(lambda params: SCHEDULE.process(params["schedule"]), EPS,
                             lambda params, x, c_noise, cond, keys: params["params"] * x)
    params = {"params": jnp.float32(0.1), "schedule": random_params(SCHEDULE)}

    @jax.jit
    def gradient(params):
        def mean(params):
            diffusion = denoiser(params)
            keys = jax.random.split(jax.random.key(1), 64)
            times = td.Uniform().draw(td.independent(keys), diffusion.process)
            loss = losses.make_continuous_vlb_loss(learned=True)
            return jnp.mean(loss(params, diffusion, jnp.full((64, 4, 4, 1), 1 / 255), None, times, keys)[0])
        return jax.grad(mean)(params)
    found = gradient(params)
    assert all(np.all(np.isfinite(g)) and np.any(np.asarray(g) != 0) for g in jax.tree.leaves(found))


def test_the_gradient_of_the_ends_keeps_no_level():
    """The 256 levels of a byte are computed again: 778 times the images were kept."""
    x = jnp.zeros((2, 16, 16, 3))
    f = lambda params: jnp.sum(variational.reconstruction_term(ENDS.process(params), x, x + 0.5))  # noqa: E731
    compiled = jax.jit(jax.grad(f)).lower(ENDS.init(jax.random.key(0))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 20 * x.nbytes
