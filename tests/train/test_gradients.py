"""The mean gradient and its norm, plain and as a GPU's program gathers it; and the clipping that reads the norm."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion.train import gradients, optimizer

SHAPES = {"bias": (5,), "scale": (5,), "kernel": (3, 3, 4, 5), "other": (3, 3, 4, 5), "number": (), "long": (40, 60)}
TOTAL = {name: jax.random.normal(jax.random.key(i), shape) for i, (name, shape) in enumerate(SHAPES.items())}


@pytest.mark.parametrize("gather", [False, True])
def test_the_mean_and_its_norm(monkeypatch, gather):
    """Every number is divided, in the same place; one array is too large to be gathered."""
    monkeypatch.setattr(gradients, "_SMALL", 1000)
    grad, norm = jax.jit(lambda total: gradients.mean(total, 4, gather=gather))(TOTAL)
    jax.tree.map(np.testing.assert_array_equal, grad, jax.tree.map(lambda g: g / 4, TOTAL))
    np.testing.assert_allclose(norm, optax.tree.norm(grad), rtol=1e-6)


def test_gathered_parameters_are_the_same():
    """Also where a stack is full."""
    params = {f"layer{i}": {"kernel": jnp.full((3, 4), i), "bias": jnp.full(4, -i)} for i in range(gradients._MANY + 3)}
    params |= {"norm": {"scale": jnp.arange(4.0)}, "number": jnp.array(2.0)}
    jax.tree.map(np.testing.assert_array_equal, jax.jit(gradients.gathered)(params), params)


def test_clipping_takes_the_norm_only_of_the_gradient_that_it_is_of():
    """Not where a transformation before the clipping has changed the gradient."""
    grad = {"a": jnp.array([3.0, 4.0])}
    told = {"known_norm": (grad, jnp.array(10.0))}  # a wrong norm, to be seen
    for before, norm in ((optax.identity(), 10.0), (optax.scale(3.0), 15.0)):
        clip = optax.chain(before, optimizer.clip(1.0))
        clipped, _ = clip.update(grad, clip.init(grad), **told)
        np.testing.assert_allclose(clipped["a"], before.update(grad, before.init(grad))[0]["a"] / norm, rtol=1e-6)
