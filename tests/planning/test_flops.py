"""FLOPs counted from shapes, against products counted by hand."""
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from diffusion.planning.flops import matrix_flops

ARRAY = jax.ShapeDtypeStruct
X, KERNEL = ARRAY((4, 8, 8, 16), jnp.float32), ARRAY((3, 3, 16, 32), jnp.float32)


def conv(x, kernel, stride=1):
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_its_gradients(stride):
    """Each of the two gradients is as many multiplications as the convolution; the loss needs its value too."""
    once = 2 * 4 * (8 // stride)**2 * 9 * 16 * 32
    assert matrix_flops(lambda x, k: conv(x, k, stride), X, KERNEL) == once
    loss = jax.grad(lambda x, k: jnp.sum(conv(x, k, stride)**2), argnums=(0, 1))
    assert matrix_flops(loss, X, KERNEL) == 3 * once


def test_loops_branches_and_compiled_functions():
    a = ARRAY((8, 8), jnp.float32)
    product = 2 * 8**3
    assert matrix_flops(lambda a: lax.scan(lambda c, _: (c @ a, None), a, None, length=5)[0], a) == 5 * product
    assert matrix_flops(lambda a: lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a), a) == 2 * product
    assert matrix_flops(jax.jit(jax.checkpoint(lambda a: a @ a)), a) == product
    assert matrix_flops(lambda a: jnp.einsum("bij,bjk->bik", a[None], a[None]), a) == product
