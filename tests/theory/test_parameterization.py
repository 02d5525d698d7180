"""What the network predicts: inverse pairs, agreement between them, and the denoiser that binds them to a process."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import parameterization, schedules
from diffusion.core.continuous import VE, VP, Flow, VarianceExploding
from diffusion.core.parameterization import (
    EPS,
    MEAN,
    SCORE,
    VELOCITY,
    X0,
    X0_AND_EPS,
    Diffusion,
    Prediction,
    V,
    make_denoiser,
)
from diffusion.core.preconditioning import edm, iddpm, ve, vp
from diffusion.core.processes import DiscreteProcess

PAIRS = {"eps": EPS, "x0": X0, "v": V, "score": SCORE, "velocity": VELOCITY, "edm": edm(0.5),
         "edm_vp": vp(), "edm_ve": ve(), "edm_iddpm": iddpm()}
BETAS = {"linear": schedules.linear(1000), "cosine": schedules.cosine(1000), "short": schedules.linear(5, beta_end=0.9)}


@pytest.fixture(params=list(PAIRS))
def pair(request):
    return PAIRS[request.param]


class Any(VP):
    """A process whose alpha and sigma at time t are e^sin(5t) and e^cos(3t), not variance preserving."""

    def alpha(self, t):
        return jnp.exp(jnp.sin(5 * jnp.asarray(t, float)))

    def sigma(self, t):
        return jnp.exp(jnp.cos(3 * jnp.asarray(t, float)))

    def log_snr(self, t):
        return 2 * jnp.log(self.alpha(t) / self.sigma(t))


class Fixed(VP):
    """alpha = 0.6 t, sigma = 0.8 at any time."""

    def alpha(self, t):
        return 0.6 * jnp.asarray(t, float)

    def sigma(self, t):
        return 0.8 * jnp.ones_like(t, float)


@pytest.fixture
def values():
    """x_0, eps, and a time for each of 50 examples."""
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 50, 4))
    return x0, eps, np.linspace(0.02, 1, 50)


def ends(t):
    return Any().alpha(t)[:, None], Any().sigma(t)[:, None]


def test_predict_inverts_target(x64, pair, values):
    x0, eps, t = values
    alpha, sigma = ends(t)
    found = pair.predict(Any(), pair.target(Any(), x0, eps, t), alpha * x0 + sigma * eps, t)
    # The velocity is nearly a multiple of x_t where alpha sigma' = sigma alpha', and then says little.
    bound = 1e-10 if pair is VELOCITY else 2e-13
    np.testing.assert_allclose(found.x0, x0, atol=bound)
    np.testing.assert_allclose(found.eps, eps, atol=bound)


def test_target_inverts_predict(x64, pair, values):
    """Any output of the network stands for one x_0 and eps, and they make up x_t."""
    f, x_t, t = values
    alpha, sigma = ends(t)
    found = pair.predict(Any(), f, x_t, t)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x_t, atol=1e-12)
    np.testing.assert_allclose(pair.target(Any(), found.x0, found.eps, t), f, atol=2e-11)


def test_all_predictions_agree_on_one_guess(x64, pair, values):
    """A guess told as eps, x_0 or v is the same guess, also where it is not the truth."""
    f, x_t, t = values
    guess = pair.predict(Any(), f, x_t, t)
    for other in PAIRS.values():
        same = other.predict(Any(), other.target(Any(), *guess[:2], t), x_t, t)
        np.testing.assert_allclose(same.x0, guess.x0, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(same.eps, guess.eps, rtol=1e-9, atol=1e-9)


def test_targets_are_the_papers(x64, values):
    x0, eps, _ = values
    target = lambda pair: pair.target(Fixed(), x0, eps, np.ones(50))  # noqa: E731
    np.testing.assert_array_equal(target(EPS), eps)
    np.testing.assert_array_equal(target(X0), x0)
    np.testing.assert_allclose(target(V), 0.6 * eps - 0.8 * x0, rtol=1e-15)
    np.testing.assert_allclose(target(SCORE), -eps / 0.8, rtol=1e-15)
    np.testing.assert_allclose(VELOCITY.target(Flow(), x0, eps, np.full(50, 0.3)), eps - x0, atol=1e-14)


@pytest.mark.parametrize("betas", BETAS.values(), ids=BETAS)
def test_the_mean_of_the_step_before_is_a_prediction(x64, betas):
    """mu_tilde of Ho et al. (2020), Eq. 7; x_0 comes back, to the amplification 1 / (what the mean has of x_0)."""
    process = DiscreteProcess(betas=betas)
    t = np.unique(np.linspace(1, len(betas), 20).astype(int))
    x0, eps = np.random.default_rng(0).normal(size=(2, len(t), 4))

    @jax.jit
    def evaluate(t, x0, eps):
        x_t, f = process.diffuse(x0, t, eps), MEAN.target(process, x0, eps, t)
        return f, process.posterior(x_t, x0, t - 1, t).mean, MEAN.predict(process, f, x_t, t)

    f, mean, found = evaluate(t, x0, eps)
    np.testing.assert_allclose(f, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.x0, x0, atol=1e-10)
    np.testing.assert_allclose(found.eps, eps, atol=1e-9)


@pytest.mark.parametrize("name", PAIRS)
def test_the_determinant_is_the_error_ratio_of_the_prediction(x64, name, values):
    """How F moves with eps at a fixed x_t, by the inverse pair itself."""
    f, x_t, t = values
    moved = [PAIRS[name].predict(Any(), f + h, x_t, t).eps for h in (0.0, 1.0)]
    ratio = np.broadcast_to((PAIRS[name].determinant(Any(), t) / Any().alpha(t))[:, None], f.shape)
    np.testing.assert_allclose(ratio, 1 / (moved[1] - moved[0]), rtol=1e-8)


@pytest.mark.parametrize("sigma", [0.002, 0.3, 80.0])
def test_edm_is_table_1(x64, sigma):
    """D = c_skip x + c_out F(c_in x; c_noise), for sigma_data = 1/2 (Karras et al. 2022, Table 1)."""
    x, f = np.random.default_rng(0).normal(size=(2, 1, 4, 4, 3)) * [[[[[1 + sigma]]]], [[[[1]]]]]
    seen = {}

    def network(params, x, c_noise, cond, keys):
        seen.update(x=x, c_noise=c_noise)
        return f

    total = sigma**2 + 0.25
    found = make_denoiser(lambda params: VarianceExploding(), edm(0.5), network)(None).denoise(x, sigma)
    np.testing.assert_allclose(found.x0, 0.25 / total * x + sigma * 0.5 / total**0.5 * f, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(seen["x"], x / total**0.5, rtol=1e-14)
    np.testing.assert_allclose(seen["c_noise"], np.log(sigma) / 4, rtol=1e-14)


@pytest.mark.parametrize("target", [VP(), Flow(), VE(), DiscreteProcess(betas=schedules.cosine(100))])
def test_on_another_process_the_same_picture_has_the_same_denoiser(x64, target):
    """x / alpha at one noise level is the same x on every process."""
    source = VarianceExploding()
    denoise = lambda x, t, cond=None: Prediction(jnp.tanh(x), (x - jnp.tanh(x)) / source.sigma(t))  # noqa: E731
    there = parameterization.on_process(Diffusion(source, denoise), target)
    t = target.time_of_log_snr(1.5)
    alpha, sigma = target.alpha(t), target.sigma(t)
    x = np.random.default_rng(0).normal(size=(2, 3))
    found = there.denoise(alpha * x, t)
    np.testing.assert_allclose(found.x0, np.tanh(x), atol=1e-12)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, alpha * x, atol=1e-12)


def test_two_heads_are_weighed_by_their_variances(x64):
    """x_0 = sigma^2 x_0' + alpha (x_t - sigma eps') where alpha^2 + sigma^2 = 1 (Salimans & Ho 2022, Section 4)."""
    process, t = VP(), np.full(2, 0.4)
    x, x0, eps = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3))
    network = lambda *_: jnp.concatenate([x0, eps], -1)  # noqa: E731
    found = jax.jit(make_denoiser(lambda params: process, X0_AND_EPS, network)(None).denoise)(x, t)
    alpha, sigma = float(process.alpha(0.4)), float(process.sigma(0.4))
    np.testing.assert_allclose(found.x0, sigma**2 * x0 + alpha * (x - sigma * eps), atol=1e-13)
    np.testing.assert_allclose(alpha * found.x0 + sigma * found.eps, x, atol=1e-13)


def test_v_at_variance_preservation_is_salimans_and_ho(x64, values):
    """x_0 = alpha x_t - sigma v and eps = sigma x_t + alpha v, where alpha^2 + sigma^2 = 1 (Appendix D)."""
    v, x_t, _ = values
    found = V.predict(Fixed(), v, x_t, np.ones(50))
    np.testing.assert_allclose(found.x0, 0.6 * x_t - 0.8 * v, atol=1e-14)
    np.testing.assert_allclose(found.eps, 0.8 * x_t + 0.6 * v, atol=1e-14)


def test_v_is_defined_at_pure_noise():
    """Where alpha = 0 the eps prediction says nothing of x_0, and v = -x_0."""
    found = V.predict(Fixed(), jnp.full((1, 2), -0.24), jnp.full((1, 2), 0.8), jnp.zeros(1))
    np.testing.assert_allclose(found.x0, 0.3, rtol=1e-6)
    np.testing.assert_allclose(found.eps, 1.0)


@pytest.mark.parametrize("betas", BETAS)
def test_denoiser_with_the_true_target_returns_the_truth(x64, betas):
    """Every schedule x prediction at every time; what alpha or sigma near 0 hides is lost to rounding, no more."""
    process = DiscreteProcess(betas=BETAS[betas])
    x0, eps = np.random.default_rng(1).normal(size=(2, process.t_max, 2, 2, 3))

    @jax.jit
    def evaluate(t, x0, eps):
        def of(pair):
            network = lambda *_: pair.target(process, x0, eps, t)  # noqa: E731
            return make_denoiser(lambda params: process, pair, network)(params=None).denoise(
                process.diffuse(x0, t, eps), t)
        return {name: of(PAIRS[name]) for name in ("eps", "x0", "v")}, process.alpha(t), process.sigma(t)

    found, alpha, sigma = jax.tree.map(np.asarray, evaluate(np.arange(1, process.t_max + 1), x0, eps))
    for name, prediction in found.items():
        assert np.all(np.abs(prediction.x0 - x0) <= 4e-15 / alpha.reshape(-1, 1, 1, 1)), name
        assert np.all(np.abs(prediction.eps - eps) <= 4e-15 / sigma.reshape(-1, 1, 1, 1)), name


def test_denoiser_hands_everything_to_the_network():
    process = DiscreteProcess(betas=BETAS["linear"])
    seen = []
    params, keys, x = {"w": 1}, jax.random.split(jax.random.key(0), 3), jnp.ones((3, 2, 2, 1))
    cond = {"label": jnp.arange(3)}

    def network(*args):
        seen.append(args)
        return jnp.zeros_like(x)

    denoiser = make_denoiser(lambda params: process, EPS, network)
    denoiser(params, keys).denoise(x, jnp.array([1, 7, 1000]), cond)
    assert seen[0][0] is params and np.array_equal(seen[0][1], x) and seen[0][3] is cond and seen[0][4] is keys
    np.testing.assert_array_equal(seen[0][2], [0, 6, 999])
    denoiser(params).denoise(x, 7)
    np.testing.assert_array_equal(seen[1][2], [6, 6, 6])
    assert seen[1][3] == {} and seen[1][4] is None


@pytest.mark.parametrize("name", ["eps", "x0", "v", "score", "edm"])
def test_a_scalar_time_is_the_same_as_one_for_each_example(name):
    process = DiscreteProcess(betas=BETAS["linear"])
    x = jax.random.normal(jax.random.key(0), (3, 2, 2, 1))
    network = lambda p, x, c, cond, keys: jnp.sin(x + c[:, None, None, None])  # noqa: E731
    denoise = make_denoiser(lambda params: process, PAIRS[name], network)(None).denoise
    for scalar, rows in zip(denoise(x, 500)[:2], denoise(x, jnp.full(3, 500))[:2]):
        np.testing.assert_array_equal(scalar, rows)


@pytest.mark.parametrize("t", [3, np.array([1, 3, 5])])
def test_clip_x0_clips_and_keeps_x_t(x64, t):
    process = DiscreteProcess(betas=BETAS["short"])
    x_t, x0 = np.random.default_rng(0).normal(scale=2, size=(2, 3, 4, 4, 1))
    calls = []

    def denoise(x, t, cond=None):
        calls.append(cond)
        return Prediction(x0, np.full_like(x0, np.nan))  # the eps before clipping must not be used

    clipped = parameterization.clip_x0(Diffusion(process, denoise)).denoise(x_t, t, "cond")
    np.testing.assert_array_equal(clipped.x0, np.clip(x0, -1, 1))
    alpha, sigma = (np.reshape(a, (-1, 1, 1, 1)) for a in (process.alpha(t), process.sigma(t)))
    np.testing.assert_allclose(alpha * clipped.x0 + sigma * clipped.eps, x_t, atol=1e-14)
    np.testing.assert_array_equal(parameterization.clip_x0(Diffusion(process, denoise), bound=0.5).denoise(x_t, t).x0,
                                  np.clip(x0, -0.5, 0.5))
    assert calls == ["cond", {}]


def test_clip_x0_can_leave_eps_as_it_is(x64):
    process = DiscreteProcess(betas=BETAS["short"])
    x_t, x0, eps, fraction = np.random.default_rng(0).normal(scale=2, size=(4, 3, 4, 4, 1))
    denoise = lambda x, t, cond=None: Prediction(x0, eps, fraction)  # noqa: E731
    clipped = parameterization.clip_x0(Diffusion(process, denoise), rederive_eps=False).denoise(x_t, 3)
    np.testing.assert_array_equal(clipped.x0, np.clip(x0, -1, 1))
    np.testing.assert_array_equal(clipped.eps, eps)
    clipped = parameterization.clip_x0(Diffusion(process, denoise)).denoise(x_t, 3)
    np.testing.assert_array_equal(clipped.variance_fraction, fraction)


def test_dynamic_threshold_is_the_papers(x64):
    """Imagen's: by the quantile of |x_0| of each example, at least 1, and at most the largest allowed."""
    process = DiscreteProcess(betas=BETAS["short"])
    x_t = np.random.default_rng(0).normal(size=(3, 2, 5, 1))
    x0 = np.linspace(-1, 1, 10).reshape(1, 2, 5, 1) * np.array([0.5, 2.0, 9.0]).reshape(3, 1, 1, 1)
    denoise = lambda x, t, cond=None: Prediction(x0, np.full_like(x0, np.nan))  # noqa: E731
    out = parameterization.dynamic_threshold(Diffusion(process, denoise), 0.7, 4.0).denoise(x_t, 3)
    s = np.array([1.0, 2.0 * (np.quantile(np.abs(np.linspace(-1, 1, 10)), 0.7)), 4.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(out.x0, np.clip(x0, -s, s) / s, atol=1e-14)
    assert np.abs(out.x0).max() == 1.0 and 1 < s[1] < 2
    alpha, sigma = float(process.alpha(3)), float(process.sigma(3))
    np.testing.assert_allclose(alpha * out.x0 + sigma * out.eps, x_t, atol=1e-14)


def test_a_second_head_is_the_fraction_of_the_variance():
    process = DiscreteProcess(betas=BETAS["linear"])
    x, f, head = np.random.default_rng(0).normal(size=(3, 2, 4, 4, 3)).astype(np.float32)
    network = lambda *_: {"f": f, "variance": head}  # noqa: E731
    found = make_denoiser(lambda params: process, EPS, network)(None).denoise(x, 5)
    plain = make_denoiser(lambda params: process, EPS, lambda *_: f)(None).denoise(x, 5)
    np.testing.assert_array_equal(found.x0, plain.x0)
    np.testing.assert_array_equal(found.eps, f)
    np.testing.assert_array_equal(found.variance_fraction, (head + 1) / 2)
    assert plain.variance_fraction is None


@pytest.mark.parametrize("name", ["x0", "v"])
def test_where_nothing_of_the_data_is_left_x0_is_what_the_network_says(x64, name):
    """alpha = 0, sigma = 1: v is -x_0."""
    x_t, f = np.random.default_rng(0).normal(size=(2, 3, 4))
    process = DiscreteProcess(betas=schedules.with_zero_terminal_snr(schedules.linear(10)))
    x0, eps, _ = PAIRS[name].predict(process, f, x_t, jnp.full(3, 10))
    np.testing.assert_array_equal(x0, f if name == "x0" else -f)
    np.testing.assert_array_equal(eps, x_t)
