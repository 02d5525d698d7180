"""Convolutions by Winograd's filtering are the direct ones: on one CPU, for large arrays."""
import functools

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


# At once, in four parts, and by F(2 x 2) in the gradients, too.
@pytest.mark.parametrize("chunk, width, tolerances", [
    (winograd.CHUNK, 20, (2e-6, 4e-5, 4e-5)), (X.nbytes / 3, 20, (2e-6, 4e-5, 4e-5)),
    (winograd.CHUNK, 18, (2e-6, 2e-6, 1e-5))])
def test_value_and_gradients_are_those_of_the_direct_convolution(monkeypatch, chunk, width, tolerances):
    """To float32's rounding, the gradients to the 1e-5 of F(4 x 4); more than that would hide a fault."""
    monkeypatch.setattr(winograd, "CHUNK", chunk)
    jax.clear_caches()
    x, dy = X[:, :, :width], DY[:, :, :width]
    direct = functools.partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME",
                               dimension_numbers=("NHWC", "HWIO", "NHWC"))
    found, direct = (jax.jit(both, static_argnums=0)(f, x, KERNEL, dy) for f in (winograd.convolve, direct))
    for ours, exact, tolerance in zip(found, direct, tolerances, strict=True):
        assert 0 < jnp.abs(ours - exact).max() < tolerance * jnp.abs(exact).max()


def of_layer(platform, devices=1, jvp=False, batch=64, side=16, channels=64):
    """The gradient of a layer, and its arguments."""
    layer, x = BlockConfig().conv(64, "conv"), jax.ShapeDtypeStruct((batch, side, side, channels), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)

    def loss(params, x):
        with backend.compiling_for(platform, devices, jvp=jvp):
            return layer.apply(params, x).sum()
    return jax.grad(loss, (0, 1)), params, x


def test_they_are_used_on_one_cpu_for_large_arrays_where_no_forward_derivative_is_asked_for():
    def uses(*args, **kwargs):
        gradient, *arguments = of_layer(*args, **kwargs)
        return "conv3x3_gradients" in str(jax.make_jaxpr(gradient)(*arguments))

    assert uses("cpu") and not uses("gpu") and not uses("cpu", 2) and not uses("cpu", jvp=True)
    assert not uses("cpu", batch=8) and not uses("cpu", side=17) and not uses("cpu", batch=900, channels=16)


def test_they_count_as_what_they_stand_for():
    assert matrix_flops(*of_layer("cpu")) == matrix_flops(*of_layer("gpu")) > 1e6
