"""Users' networks of all kinds train alike, and one that changes its own variables is refused."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffusion

DATA = np.random.default_rng(0).standard_normal((64, 2))
W, B = np.random.default_rng(1).standard_normal((2, 2)).astype(np.float32), np.zeros(2, np.float32)


class Linen(nn.Module):
    norm: bool = False

    @nn.compact
    def __call__(self, x, c_noise):
        x = nn.BatchNorm(use_running_average=False)(x) if self.norm else x
        return nn.Dense(2, kernel_init=lambda *_: jnp.asarray(W))(x) + 0.1 * c_noise[:, None]


class NNX(nnx.Module):
    def __init__(self, rngs, kind=""):
        self.layer, self.kind = nnx.Linear(2, 2, rngs=rngs), kind
        self.layer.kernel = nnx.Param(jnp.asarray(W))
        self.norm, self.dropout = nnx.BatchNorm(2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.count = nnx.Variable(jnp.zeros(()))

    def __call__(self, x, c_noise):
        if self.kind == "norm":
            x = self.norm(x)
        if self.kind == "dropout":
            x = self.dropout(x)
        if self.kind == "count":
            self.count[...] = self.count[...] + 1
        if self.kind == "parameter":
            self.layer.bias[...] = self.layer.bias[...] + 1
        return self.layer(x) + 0.1 * c_noise[:, None]


def plain_init(key):
    return {"w": jnp.asarray(W), "b": jnp.asarray(B)}


def plain(params, x, c_noise):
    return x @ params["w"] + params["b"][None] + 0.1 * c_noise[:, None]


def fitted(network):
    model = diffusion.Model(network=network, shape=(2,), process="vp", prediction="v")
    state = diffusion.fit(model, data=DATA, batch_size=16, steps=3, optimizer=optax.adam(0.1))
    return np.concatenate([np.ravel(x) for x in sorted(jax.tree.leaves(state.params["online"]), key=np.ndim)]), (
        diffusion.draw(model, state.averages["ema"], times=3, count=4))


def test_the_same_network_of_each_kind_learns_the_same():
    expected, drawn = fitted((plain_init, plain))
    for network in (Linen(), NNX(nnx.Rngs(0))):
        found, x = fitted(network)
        if isinstance(network, nnx.Module):  # its normalisation has a scale and a bias that are not used
            assert len(found) == len(expected) + 4
            found, expected = found[-4:], expected[-4:]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        np.testing.assert_allclose(x, drawn, rtol=1e-4, atol=1e-5)


def test_an_equinox_module_is_of_one_example():
    eqx = pytest.importorskip("equinox")

    class Equinox(eqx.Module):
        w: jax.Array
        b: jax.Array
        name: str = "layer"

        def __call__(self, x, c_noise):
            return x @ self.w + self.b + 0.1 * c_noise

    found, x = fitted(Equinox(jnp.asarray(W), jnp.asarray(B)))
    expected, drawn = fitted((plain_init, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(x, drawn, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("network", "words"), [
    (Linen(norm=True), "batch_stats"),
    (NNX(nnx.Rngs(0), "norm"), "norm.mean, norm.var"),
    (NNX(nnx.Rngs(0), "dropout"), "dropout.rngs.count"),
    (NNX(nnx.Rngs(0), "count"), "count"),
    (NNX(nnx.Rngs(0), "parameter"), "layer.bias")])
def test_one_whose_call_changes_its_own_variables_is_refused(network, words):
    with pytest.raises(ValueError, match=f"changes its own variables .*{words}.*would be lost"):
        fitted(network)
