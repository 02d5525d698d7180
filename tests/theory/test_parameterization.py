"""What the network predicts: inverse pairs, agreement between them, and the denoiser that binds them to a process."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import parameterization, schedules
from diffusion.core.parameterization import EPS, X0, Prediction, V, make_denoiser
from diffusion.core.processes import DiscreteProcess

PAIRS = {"eps": EPS, "x0": X0, "v": V}
BETAS = {"linear": schedules.linear(1000), "cosine": schedules.cosine(1000), "short": schedules.linear(5, end=0.9)}


@pytest.fixture(params=list(PAIRS))
def pair(request):
    return PAIRS[request.param]


@pytest.fixture
def values():
    """x_0, eps, and alpha and sigma for each of 50 examples, not variance preserving."""
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 50, 4))
    alpha, sigma = np.exp(rng.uniform(-2, 2, size=(2, 50, 1)))
    return x0, eps, alpha, sigma


def test_predict_inverts_target(x64, pair, values):
    x0, eps, alpha, sigma = values
    found = pair.predict(pair.target(x0, eps, alpha, sigma), alpha * x0 + sigma * eps, alpha, sigma)
    np.testing.assert_allclose(found.x0, x0, atol=2e-13)
    np.testing.assert_allclose(found.eps, eps, atol=2e-13)


def test_target_inverts_predict(x64, pair, values):
    """Any output of the network stands for one x_0 and eps, and they make up x_t."""
    f, x_t, alpha, sigma = values
    found = pair.predict(f, x_t, alpha, sigma)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x_t, atol=1e-12)
    np.testing.assert_allclose(pair.target(found.x0, found.eps, alpha, sigma), f, atol=2e-12)


def test_all_predictions_agree_on_one_guess(x64, pair, values):
    """A guess told as eps, x_0 or v is the same guess, also where it is not the truth."""
    f, x_t, alpha, sigma = values
    guess = pair.predict(f, x_t, alpha, sigma)
    for other in PAIRS.values():
        same = other.predict(other.target(*guess[:2], alpha, sigma), x_t, alpha, sigma)
        np.testing.assert_allclose(same.x0, guess.x0, atol=1e-11)
        np.testing.assert_allclose(same.eps, guess.eps, atol=1e-11)


def test_targets_are_the_papers(values):
    x0, eps, _, _ = values
    alpha, sigma = 0.6, 0.8
    np.testing.assert_array_equal(EPS.target(x0, eps, alpha, sigma), eps)
    np.testing.assert_array_equal(X0.target(x0, eps, alpha, sigma), x0)
    np.testing.assert_array_equal(V.target(x0, eps, alpha, sigma), 0.6 * eps - 0.8 * x0)


def test_v_at_variance_preservation_is_salimans_and_ho(values):
    """x_0 = alpha x_t - sigma v and eps = sigma x_t + alpha v, where alpha^2 + sigma^2 = 1 (Appendix D)."""
    v, x_t, _, _ = values
    found = V.predict(v, x_t, 0.6, 0.8)
    np.testing.assert_allclose(found.x0, 0.6 * x_t - 0.8 * v, atol=1e-14)
    np.testing.assert_allclose(found.eps, 0.8 * x_t + 0.6 * v, atol=1e-14)


def test_v_is_defined_at_pure_noise():
    """Where alpha = 0 the eps prediction says nothing of x_0, and v = -x_0."""
    found = V.predict(jnp.full((1, 2), -0.3), jnp.ones((1, 2)), 0.0, 1.0)
    np.testing.assert_allclose(found.x0, 0.3, rtol=1e-6)
    np.testing.assert_allclose(found.eps, 1.0)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("betas", BETAS)
def test_denoiser_with_the_true_target_returns_the_truth(x64, betas, name):
    """Every schedule x prediction at every time; what alpha or sigma near 0 hides is lost to rounding, no more."""
    process, pair = DiscreteProcess(betas=BETAS[betas]), PAIRS[name]
    t = jnp.arange(1, process.t_max + 1)
    x0, eps = np.random.default_rng(1).normal(size=(2, process.t_max, 2, 2, 3))
    alpha, sigma = (a.reshape(-1, 1, 1, 1) for a in (process.alpha(t), process.sigma(t)))
    denoise = make_denoiser(process, pair, lambda *_: pair.target(x0, eps, alpha, sigma))(params=None)
    found = denoise(process.diffuse(x0, t, eps), t)
    assert np.all(np.abs(found.x0 - x0) <= 4e-15 / alpha)
    assert np.all(np.abs(found.eps - eps) <= 4e-15 / sigma)


def test_denoiser_hands_everything_to_the_network():
    process = DiscreteProcess(betas=BETAS["linear"])
    seen = []
    params, keys, cond, x = {"w": 1}, jax.random.split(jax.random.key(0), 3), jnp.arange(3), jnp.ones((3, 2, 2, 1))

    def network(*args):
        seen.append(args)
        return jnp.zeros_like(x)

    denoiser = make_denoiser(process, EPS, network)
    denoiser(params, keys)(x, jnp.array([1, 7, 1000]), cond)
    assert seen[0][0] is params and seen[0][1] is x and seen[0][3] is cond and seen[0][4] is keys
    np.testing.assert_array_equal(seen[0][2], [0, 6, 999])
    denoiser(params)(x, 7)
    np.testing.assert_array_equal(seen[1][2], [6, 6, 6])
    assert seen[1][3] is None and seen[1][4] is None


@pytest.mark.parametrize("name", PAIRS)
def test_a_scalar_time_is_the_same_as_one_for_each_example(name):
    process = DiscreteProcess(betas=BETAS["linear"])
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    denoise = make_denoiser(process, PAIRS[name], lambda p, x, c, cond, keys: jnp.sin(x + c[:, None, None, None]))(None)
    for scalar, rows in zip(denoise(x, 500), denoise(x, jnp.full(3, 500))):
        np.testing.assert_array_equal(scalar, rows)


@pytest.mark.parametrize("t", [3, np.array([1, 3, 5])])
def test_clip_x0_clips_and_keeps_x_t(x64, t):
    process = DiscreteProcess(betas=BETAS["short"])
    x_t, x0 = np.random.default_rng(0).normal(scale=2, size=(2, 3, 4, 4, 1))
    calls = []

    def denoise(x, t, cond=None):
        calls.append(cond)
        return Prediction(x0, np.full_like(x0, np.nan))  # the eps before clipping must not be used

    clipped = parameterization.clip_x0(denoise, process)(x_t, t, "cond")
    np.testing.assert_array_equal(clipped.x0, np.clip(x0, -1, 1))
    alpha, sigma = (np.reshape(a, (-1, 1, 1, 1)) for a in (process.alpha(t), process.sigma(t)))
    np.testing.assert_allclose(alpha * clipped.x0 + sigma * clipped.eps, x_t, atol=1e-14)
    np.testing.assert_array_equal(parameterization.clip_x0(denoise, process, bound=0.5)(x_t, t).x0,
                                  np.clip(x0, -0.5, 0.5))
    assert calls == ["cond", None]


def test_clip_x0_can_leave_eps_as_it_is(x64):
    process = DiscreteProcess(betas=BETAS["short"])
    x_t, x0, eps, fraction = np.random.default_rng(0).normal(scale=2, size=(4, 3, 4, 4, 1))
    denoise = lambda x, t, cond=None: Prediction(x0, eps, fraction)  # noqa: E731
    clipped = parameterization.clip_x0(denoise, process, rederive_eps=False)(x_t, 3)
    np.testing.assert_array_equal(clipped.x0, np.clip(x0, -1, 1))
    np.testing.assert_array_equal(clipped.eps, eps)
    np.testing.assert_array_equal(parameterization.clip_x0(denoise, process)(x_t, 3).variance_fraction, fraction)


def test_dynamic_threshold_is_the_papers(x64):
    """Imagen's: by the quantile of |x_0| of each example, at least 1, and at most the largest allowed."""
    process = DiscreteProcess(betas=BETAS["short"])
    x_t = np.random.default_rng(0).normal(size=(3, 2, 5, 1))
    x0 = np.linspace(-1, 1, 10).reshape(1, 2, 5, 1) * np.array([0.5, 2.0, 9.0]).reshape(3, 1, 1, 1)
    denoise = lambda x, t, cond=None: Prediction(x0, np.full_like(x0, np.nan))  # noqa: E731
    out = parameterization.dynamic_threshold(denoise, process, 0.7, 4.0)(x_t, 3)
    s = np.array([1.0, 2.0 * (np.quantile(np.abs(np.linspace(-1, 1, 10)), 0.7)), 4.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(out.x0, np.clip(x0, -s, s) / s, atol=1e-14)
    assert np.abs(out.x0).max() == 1.0 and 1 < s[1] < 2
    alpha, sigma = float(process.alpha(3)), float(process.sigma(3))
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-14)


def test_a_second_head_is_the_fraction_of_the_variance():
    process = DiscreteProcess(betas=BETAS["linear"])
    x, f, head = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3)).astype(np.float32)
    network = lambda *_: jnp.concatenate([f, head], axis=-1)  # noqa: E731
    found = make_denoiser(process, EPS, network, learned_range=True)(None)(x, 5)
    plain = make_denoiser(process, EPS, lambda *_: f)(None)(x, 5)
    np.testing.assert_array_equal(found.x0, plain.x0)
    np.testing.assert_array_equal(found.eps, f)
    np.testing.assert_array_equal(found.variance_fraction, (head + 1) / 2)
    assert plain.variance_fraction is None


@pytest.mark.parametrize("name", ["x0", "v"])
def test_where_nothing_of_the_data_is_left_x0_is_what_the_network_says(x64, name):
    """alpha = 0, sigma = 1: v is -x_0."""
    x_t, f = np.random.default_rng(0).normal(size=(2, 3, 4))
    x0, eps, _ = PAIRS[name].predict(f, x_t, 0.0, 1.0)
    np.testing.assert_array_equal(x0, f if name == "x0" else -f)
    np.testing.assert_array_equal(eps, x_t)
