"""Our rules against diffusers' guiders, on the same pairs of predictions in float64."""
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import guidance
from diffusion.core.continuous import VP
from diffusion.core.parameterization import EPS, X0, Diffusion, Prediction
from diffusion.samplers.ddim import DDIM

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
guiders = pytest.importorskip("diffusers.guiders", reason=REASON)

pytestmark = pytest.mark.parity

PROCESS, T, SHAPE = VP(), 0.4, (3, 4, 4, 2)
X, F, NULL = np.random.default_rng(0).normal(size=(3, *SHAPE))


def prediction(space, f):
    return space.predict(PROCESS, jnp.asarray(f), jnp.asarray(X), T)


def guide(rule, space):
    return np.asarray(space.target(PROCESS, *rule(PROCESS, prediction(space, F), prediction(space, NULL), X, T)[:2], T))


def theirs(guider, *pair):
    return guider.forward(*(torch.from_numpy(f.copy()) for f in pair or (F, NULL))).pred.numpy()


@pytest.mark.parametrize("kind", ["ClassifierFreeGuidance", "AutoGuidance"])
@pytest.mark.parametrize("share", [0.0, 0.7])
@pytest.mark.parametrize("space", [EPS, X0])
@pytest.mark.parametrize("scale", [0.0, 3.5])
def test_linear_and_rescaled(x64, kind, share, space, scale):
    options = {"auto_guidance_layers": "blocks"} if kind == "AutoGuidance" else {}
    if kind == "AutoGuidance":
        options = {"auto_guidance_layers": [0], "dropout": 0.1}
    guider = getattr(guiders, kind)(guidance_scale=scale, guidance_rescale=share, **options)
    rule = guidance.rescaled(guidance.linear(scale), share, space)
    np.testing.assert_allclose(guide(rule, space), theirs(guider), rtol=0, atol=1e-9)


@pytest.mark.parametrize("threshold", [2.0, 1e3])
@pytest.mark.parametrize("parallel", [0.0, 0.3, 1.0])
def test_projected(x64, parallel, threshold):
    """Their original formulation counts the scale from the conditional prediction, as the paper does, less 1."""
    guider = guiders.AdaptiveProjectedGuidance(guidance_scale=3.0, eta=parallel, use_original_formulation=True,
                                               adaptive_projected_guidance_rescale=threshold)
    rule = guidance.projected(4.0, parallel=parallel, norm_threshold=threshold)
    np.testing.assert_allclose(guide(rule, X0), theirs(guider), rtol=0, atol=1e-9)


def test_momentum_over_steps(x64):
    """The x_0 that each step goes by, over steps with their own pairs of predictions."""
    guider = guiders.AdaptiveProjectedGuidance(guidance_scale=3.0, eta=0.2, use_original_formulation=True,
                                               adaptive_projected_guidance_momentum=-0.6,
                                               adaptive_projected_guidance_rescale=5.0)
    guider.set_state(step=0, num_inference_steps=5, timestep=torch.tensor(0))
    guider.prepare_inputs({"x": (torch.zeros(1), torch.zeros(1))})  # where it makes its buffer
    pairs = np.random.default_rng(1).normal(size=(5, 2, *SHAPE))
    expected = [theirs(guider, *pair) for pair in pairs]

    times, seen = np.linspace(1, 0, 6), []
    table = jnp.asarray(pairs)
    index = lambda t: jnp.round((1 - t) * 5).astype(int)  # noqa: E731

    def denoise(x, t, cond=None):
        x0 = table[index(t.ravel()[0])].swapaxes(0, 1).reshape(-1, *SHAPE[1:])  # the two of an image are neighbours
        return Prediction(x0, X0.predict(PROCESS, x0, x, t).eps)

    solver = guidance.Momentum(solver=DDIM(), momentum=-0.6, pair=lambda d: guidance.condition_pair(d, {"label": 1}),
                               rule=guidance.projected(4.0, parallel=0.2, norm_threshold=5.0))
    carry, x = solver.init(jnp.asarray(X)), jnp.asarray(X)
    for t, s in zip(times[:-1], times[1:]):
        _, x0 = solver.step(carry, x, jnp.asarray(t), jnp.asarray(0.0), Diffusion(PROCESS, denoise), None,
                            {"label": np.zeros(3, int)})
        carry, x = solver.step(carry, x, jnp.asarray(t), jnp.asarray(s), Diffusion(PROCESS, denoise), None,
                               {"label": np.zeros(3, int)})
        seen.append(x0)
    np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-9)
