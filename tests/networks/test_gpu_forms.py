"""The forms that layers have for GPUs and for one CPU, computed on the CPU: the same functions as the plain ones."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.networks import backend
from diffusion.networks.activations import gelu
from diffusion.networks.attention import attend
from diffusion.networks.norms import GroupNorm

PLAIN = "tpu"  # has no forms of its own
X = 0.5 + 2 * jax.random.normal(jax.random.key(0), (3, 4, 6, 24))
TOLD = {"alone": {}, "shift": {"shift": jax.random.normal(jax.random.key(1), (3, 24))},
        "scale and shift": {"scale_shift": jax.random.normal(jax.random.key(2), (3, 48))}}


def value_and_gradients(platform, told, dtype, x=X):
    norm = GroupNorm(num_groups=8, epsilon=1e-6, dtype=dtype)
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(3), a.shape),
                          norm.init(jax.random.key(4), x))

    def f(params, x, told):
        with backend.compiling_for(platform):
            y = norm.apply(params, x.astype(dtype), nn.swish, **jax.tree.map(lambda a: a.astype(dtype), told))
        return jnp.sum(y * jax.random.normal(jax.random.key(5), x.shape)), y
    (_, y), gradients = jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True)(params, x, told)
    return y, *jax.tree.leaves(gradients)


@pytest.mark.parametrize("x", [X, X.reshape(3, 24, 24)], ids=["images", "sequences"])
@pytest.mark.parametrize("told", TOLD)
def test_the_fused_norm_is_the_plain_one(told, x):
    """In value and all gradients, to the rounding of float32 sums."""
    for ours, plain in zip(*(value_and_gradients(p, TOLD[told], jnp.float32, x) for p in ("gpu", "cpu")), strict=True):
        assert jnp.abs(ours - plain).max() < 2e-6 * jnp.abs(plain).max()


@pytest.mark.parametrize("told", TOLD)
def test_in_bfloat16_it_is_closer_to_the_exact_one(told):
    """The plain form rounds between its steps; so that the fused form must not be further away."""
    exact = value_and_gradients("cpu", TOLD[told], jnp.float32)[0]
    errors = [jnp.abs(value_and_gradients(p, TOLD[told], jnp.bfloat16)[0] - exact).mean() for p in ("gpu", "cpu")]
    assert errors[0] < errors[1]


def test_a_forward_derivative_takes_the_plain_form():
    norm = GroupNorm(num_groups=8, dtype=jnp.float32)
    params = norm.init(jax.random.key(0), X)

    def along(platform, **how):
        with backend.compiling_for(platform, **how):
            return jax.jvp(lambda x: norm.apply(params, x, nn.swish), (X,), (jnp.ones_like(X),))[1]
    np.testing.assert_array_equal(along("gpu", jvp=True), along("cpu"))
    with pytest.raises(TypeError, match="forward-mode"):
        along("gpu")


@pytest.mark.parametrize("size, dtype, platform, chosen", [
    (72, "bfloat16", "gpu", True), (128, "float16", "gpu", True), (72, "float32", "gpu", False),
    (256, "bfloat16", "gpu", False), (36, "bfloat16", "gpu", False), (72, "bfloat16", "tpu", False)])
def test_cudnn_computes_the_attention_that_it_takes(monkeypatch, size, dtype, platform, chosen):
    asked = []
    monkeypatch.setattr(jax.nn, "dot_product_attention",
                        lambda q, k, v, implementation: asked.append(implementation) or q)
    q = jnp.ones((1, 4, 2, size), dtype)
    with backend.compiling_for(platform):
        assert attend(q, q, q).shape == q.shape
    assert asked == ["cudnn"] * chosen


@pytest.mark.parametrize("form, platform", [("attention", "gpu"), ("attention", "cpu"), ("gelu", "gpu")])
def test_what_is_computed_again_for_the_gradient_is_the_same(form, platform):
    """Attention with two heads of 24, and gelu, in value and all gradients."""
    q, k, v, w = (2 * jax.random.normal(key, (3, 10, 2, 24)) for key in jax.random.split(jax.random.key(0), 4))

    def f(q, k, v, platform):
        with backend.compiling_for(platform):
            y = attend(q, k, v) if form == "attention" else gelu(q) * k + v
        return jnp.sum(y * w), y
    ours, plain = (jax.tree.leaves(jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True), static_argnums=3)(
        q, k, v, used)) for used in (platform, PLAIN))
    for one, other in zip(ours, plain, strict=True):
        assert jnp.abs(one - other).max() < 1e-5 * jnp.abs(other).max()


@pytest.mark.parametrize("platform", ["gpu", "cpu"])
def test_attention_keeps_no_weights_for_the_gradient(platform):
    q = jnp.ones((2, 16, 1, 8))
    with backend.compiling_for(platform):
        kept = jax.tree.leaves(jax.vjp(attend, q, q, q)[1])
    assert max(x.size for x in kept) == q.size < 2 * 16 * 16


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", [(4, 256, 16, 72), (2, 64, 4, 64), (2, 256, 1, 128)])
def test_cudnns_attention_is_as_near_to_float32_as_the_plain_form(shape):
    q, k, v, w = (jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 4))

    def f(q, k, v, platform):
        with backend.compiling_for(platform):
            y = attend(q, k, v)
        return jnp.sum(y.astype(jnp.float32) * w.astype(jnp.float32)), y
    gradients = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True), static_argnums=3)
    exact = gradients(*(x.astype(jnp.float32) for x in (q, k, v)), PLAIN)
    for ours, right in zip(jax.tree.leaves(gradients(q, k, v, "gpu")), jax.tree.leaves(exact), strict=True):
        assert jnp.linalg.norm((ours - right).ravel()) < 0.005 * jnp.linalg.norm(right.ravel())
