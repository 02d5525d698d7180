"""DiT against its authors' code, and what is said of it."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.golden_dit import IMAGE_SHAPE, LABELS, NETWORK, SEED, TIMES, images
from networks.random_params import random_params

from configs import dit
from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import ConfigError
from diffusion.networks.dit import DiT

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "dit.npz")["output"]


def output(network=NETWORK):
    params = jax.tree.map(jnp.asarray, random_params(NETWORK, IMAGE_SHAPE, SEED))
    return jax.jit(network.apply)({"params": params}, jnp.asarray(images()), jnp.asarray(TIMES, jnp.float32),
                                  {"label": jnp.asarray(LABELS)})


def test_it_is_the_authors():
    """Theirs in float64, ours in float32: rounding, of numbers up to 4."""
    np.testing.assert_allclose(output(), GOLDEN, rtol=0, atol=2e-5)


def test_it_is_the_authors_in_float64(x64):
    """Their frequencies are float32: at time 999 an angle is known to 6e-5."""
    np.testing.assert_allclose(output(NETWORK.clone(dtype=jnp.float64)), GOLDEN, rtol=0, atol=2e-5)


def test_remat_changes_no_gradient():
    params = jax.tree.map(jnp.asarray, random_params(NETWORK, IMAGE_SHAPE, SEED))

    def loss(params, network):
        return jnp.mean(network.apply({"params": params}, jnp.asarray(images()), jnp.asarray(TIMES, jnp.float32),
                                      {"label": jnp.asarray(LABELS)}) ** 2)
    one, light, full = (jax.jit(jax.grad(loss), static_argnums=1)(params, NETWORK.clone(remat=remat))
                        for remat in ("none", "light", "full"))
    for other in (light, full):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)


def test_light_remat_keeps_no_logits():
    """Nothing that grows with the square of the tokens is kept for the gradient: [B, heads, T, T] without remat."""
    def kept(network):
        x = jnp.zeros((1, 32, 32, IMAGE_SHAPE[-1]))
        params = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(1), {"label": jnp.zeros(1, jnp.int32)})
        f = lambda p: jnp.sum(network.apply(p, x, jnp.ones(1), {"label": jnp.zeros(1, jnp.int32)}))  # noqa: E731
        return [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(lambda p: jax.vjp(f, p)[1], params))]
    tokens = (32 // NETWORK.patch) ** 2
    logits = {remat: [s for s in kept(NETWORK.clone(remat=remat)) if s[-2:] == (tokens, tokens)]
              for remat in ("none", "light")}
    assert logits["none"] and not logits["light"]


@pytest.mark.parametrize("sizes, millions", [((384, 12, 6), 33), ((768, 12, 12), 130), ((1024, 24, 16), 458),
                                             ((1152, 28, 16), 675)])
def test_parameters_are_as_many_as_in_table_1(sizes, millions):
    """S/2, B/2, L/2 and XL/2 on latents of 32 x 32 x 4 with 1000 classes; the fixed positions are not counted there."""
    channels, depth, heads = sizes
    network = DiT(channels=channels, depth=depth, heads=heads, num_classes=1001, out_channels=8)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 4)), jnp.zeros(1),
                            {"label": jnp.zeros(1, jnp.int32)})
    assert round(sum(x.size for x in jax.tree.leaves(shapes)) / 1e6) == millions


def test_it_starts_as_zero_and_is_built_by_config():
    c = config_lib.override(dit.get_config(), {"network.channels": 64, "network.depth": 1, "network.heads": 2})
    model = build.model(c)
    params = jax.jit(model.init)(jax.random.key(0, impl="rbg"))
    assert float(sum(np.abs(x).sum() for name, x in params["params"]["pixels"].items())) == 0
    for key, value, words in (("network.patch", 3, "32 pixels"), ("network.heads", 5, "must divide"),
                              ("network.depth", 0, "1 or more"), ("network.channels", 66, "multiple of 4")):
        with pytest.raises(ConfigError, match=words):
            build.model(config_lib.override(c, {key: value}))
