"""Convolutions by Winograd's filtering are the direct ones: on one CPU, for large arrays."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import backend, winograd
from diffusion.networks.layers import BlockConfig
from diffusion.planning.flops import matrix_flops

NORMAL = np.random.default_rng(0).standard_normal
X, KERNEL, DY = (NORMAL(shape, np.float32) for shape in ((4, 16, 20, 64), (3, 3, 64, 96), (4, 16, 20, 96)))


@pytest.mark.parametrize("outputs, taps", [(2, 3), (4, 3), (3, 2), (3, 4)])
def test_the_transforms_filter_exactly(outputs, taps):
    """y_i = sum_k g_k d_(i + k), in float64."""
    to_output, of_taps, of_input = winograd.transforms(outputs, taps)
    g, d = NORMAL(taps), NORMAL(outputs + taps - 1)
    np.testing.assert_allclose(to_output @ ((of_taps @ g) * (of_input @ d)), np.convolve(d, g[::-1], "valid"),
                               atol=1e-13)


def both(convolve, x, kernel, dy):
    y, pull = jax.vjp(convolve, x, kernel)
    return y, *pull(dy)


@pytest.mark.parametrize("chunk", [winograd.CHUNK, X.nbytes / 3])  # at once, and in four parts
def test_value_and_gradients_are_those_of_the_direct_convolution(monkeypatch, chunk):
    """The value to float32's rounding, the gradients to the 1e-5 of F(4 x 4); more than that would hide a fault."""
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    jax.clear_caches()
    found, direct = (jax.jit(both, static_argnums=0)(f, X, KERNEL, DY) for f in (winograd.convolve, winograd.direct))
    for ours, exact, tolerance in zip(found, direct, (2e-6, 4e-5, 4e-5), strict=True):
        assert 0 < jnp.abs(ours - exact).max() < tolerance * jnp.abs(exact).max()


def of_layer(platform, devices=1, jvp=False, side=16, channels=64):
    """The gradient of a layer, and its arguments."""
    layer, x = BlockConfig().conv(64, "conv"), jnp.zeros((1, side, side, channels))
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(params, x):
        with backend.compiling_for(platform, devices, jvp=jvp):
            return layer.apply(params, x).sum()
    return jax.grad(loss, (0, 1)), params, x


def test_they_are_used_on_one_cpu_for_large_arrays_where_no_forward_derivative_is_asked_for():
    uses = lambda *args, **kwargs: "conv3x3_gradients" in str(jax.make_jaxpr(  # noqa: E731
        of_layer(*args, **kwargs)[0])(*of_layer(*args, **kwargs)[1:]))
    assert uses("cpu") and not uses("gpu") and not uses("cpu", 2) and not uses("cpu", jvp=True)
    assert not uses("cpu", side=8) and not uses("cpu", side=18) and not uses("cpu", channels=32)


def test_they_count_as_what_they_stand_for():
    assert matrix_flops(*of_layer("cpu")) == matrix_flops(*of_layer("gpu")) > 1e6


def test_without_a_gradient_the_convolution_is_xlas():
    assert "conv_general_dilated" in str(jax.make_jaxpr(winograd.convolve)(X, KERNEL))
