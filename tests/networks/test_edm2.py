"""EDM2's network against its authors' code, and what its paper says of it."""
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import golden_edm2 as case

from diffusion.core.uncertainty import Uncertainty
from diffusion.errors import FieldError
from diffusion.networks.edm2 import EDM2UNet, joined, mix, silu

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "edm2.npz")
COND = {"label": jnp.asarray(case.LABELS)}


@functools.partial(jax.jit, static_argnums=1)
def output(params, network=case.NETWORK):
    return network.apply({"params": params}, jnp.asarray(case.images()), jnp.log(case.SIGMAS) / 4, COND)


def test_it_is_the_authors():
    """Both in float32: rounding."""
    found = output(case.params())
    assert np.abs(found - GOLDEN["output"]).max() < 3e-6 * np.abs(GOLDEN["output"]).max()


def test_gradients_and_projected_weights_are_the_authors():
    """Of all parameters: the norm, and the product with a random direction, whose error is that of the norm."""
    params = jax.jit(case.NETWORK.project)(case.params())
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(output(params) * case.target())))(params)
    trained = set(GOLDEN["names"])
    for what, tree in (("weights", params), ("gradients", gradient)):
        ours = {name: x for name, x in case.in_their_form(tree).items() if name in trained}
        assert set(ours) == trained
        for name, (norm, along) in zip(GOLDEN["names"], GOLDEN[what]):
            x = ours[name].astype(np.float64)
            np.testing.assert_allclose(np.linalg.norm(x), norm, rtol=3e-4, err_msg=name)
            np.testing.assert_allclose(np.sum(x * case.direction(name, x.shape)), along, rtol=0, atol=1e-4 * norm,
                                       err_msg=name)


def test_the_uncertainty_is_the_authors():
    """Held by their linear layer's weights, which they too normalise."""
    u = Uncertainty(normalised=True)
    weight = case.direction("logvar", (1, u.channels))[0]
    found = u({"weight": jnp.asarray(weight)}, -2 * jnp.log(case.SIGMAS))
    np.testing.assert_allclose(found, GOLDEN["logvar"], rtol=0, atol=2e-6)
    for params in (u.init(), u.project({"weight": jnp.asarray(3 * weight)})):
        np.testing.assert_allclose(jnp.mean(params["weight"]**2), 1, atol=3e-4)


def shapes(channels, out_channels):
    network = EDM2UNet(channels=channels, num_classes=1000, out_channels=out_channels)
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 64, 64, out_channels)), jnp.zeros(1),
                          {"label": jnp.zeros(1, jnp.int32)})["params"]


def count(channels, out_channels):
    """The trained parameters, with the uncertainty's."""
    found = shapes(channels, out_channels)
    return sum(x.size for x in jax.tree.leaves({name: x for name, x in found.items() if name != "fourier"})) + 128


def test_each_preset_has_as_many_parameters_as_the_authors():
    """XXS, M and XXL on latents, S on ImageNet-64. The number is a quadratic polynomial of the channels, which three
    values fix for all sizes; the first and the last layer are smaller for pictures."""
    of_preset = dict(zip(GOLDEN["presets"], GOLDEN["parameters"]))
    for size, channels in (("xxs", 64), ("m", 256), ("xxl", 448)):
        assert count(channels, 4) == of_preset[f"edm2-img512-{size}"], size
    assert count(192, 3) == of_preset["edm2-img64-s"]
    millions = [round(of_preset[f"edm2-img512-{size}"] / 1e6) for size in ("xs", "s", "m", "l", "xl", "xxl")]
    assert millions == [125, 280, 498, 777, 1119, 1523]  # Table 2


def test_activations_weights_and_updates_keep_their_magnitude():
    """On random inputs each layer's output has the mean square 1, as have the weights after every update."""
    network = EDM2UNet(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), head_channels=16,
                       num_classes=3)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    cond, c_noise = {"label": jnp.array([0, 2, 1, 1])}, jnp.linspace(-1, 1, 4)
    params = jax.jit(network.init)(jax.random.key(0), x, c_noise, cond)["params"]
    _, kept = jax.jit(lambda params: network.apply({"params": params}, x, c_noise, cond, capture_intermediates=True,
                                                   mutable=["intermediates"]))(params)
    outputs = {path: leaf for path, leaf in jax.tree.leaves_with_path(kept["intermediates"])
               if "block" in str(path[0]) and len(path) == 3}
    assert len(outputs) == 2 * 1 + 2 + 2 * 2
    for path, leaf in outputs.items():
        assert 0.7 < np.mean(leaf**2) ** 0.5 < 1.3, path

    def magnitudes(params):
        return [np.mean(np.square(x), tuple(range(x.ndim - 1))) for path, x in jax.tree.leaves_with_path(params)
                if path[-1].key == "kernel"]
    noisy = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(2), x.shape), params)
    for before, after in zip(magnitudes(params), magnitudes(jax.jit(network.project)(noisy)), strict=True):
        np.testing.assert_allclose(before, 1, atol=5e-3)
        np.testing.assert_allclose(after, 1, atol=5e-3)
    a, b = jax.random.normal(jax.random.key(3), (2, 10_000))
    for value in (silu(a), mix(a, b, 0.3), joined(a[None, :2000], b[None], 0.2)):
        np.testing.assert_allclose(np.mean(value**2), 1, atol=0.05)
    halves = joined(a[None, :2000], b[None], 0.2)[0]
    np.testing.assert_allclose(np.sum(halves[2000:]**2) / np.sum(halves[:2000]**2), (0.2 / 0.8) ** 2, rtol=0.1)


@pytest.mark.parametrize("changes, words", [
    ({"head_channels": 5}, "head_channels.*must divide"), ({"attention_resolutions": (7,)}, "heights are"),
    ({"multipliers": (1, 2, 2, 2, 2, 2)}, "6 levels"), ({"multipliers": (0.3, 1, 2)}, "whole numbers"),
    ({"noise_features": -1}, "not be negative"), ({"concat_balance": 1.0}, "between 0 and 1"),
    ({"clip_activations": -1.0}, "256"), ({"dropout": 1.0}, "below 1"), ({"blocks": 0}, "at least one")])
def test_fields_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(FieldError, match=words):
        case.NETWORK.clone(**changes).check(case.IMAGE_SHAPE[:2])
