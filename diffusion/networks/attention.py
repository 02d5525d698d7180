"""Attention, in one place."""
import math

import jax
import jax.numpy as jnp

from diffusion.networks import backend
from diffusion.typing import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v of each head (Vaswani et al. 2017, Eq. 1): three [B, S, heads, D] -> [B, S, heads, D].

    The softmax is computed in float32 at least. On a GPU, in 16 bits and for heads that it takes, cuDNN computes it
    without storing the [B, heads, S, S] weights. On one CPU the heads become examples, since XLA copies arrays of four
    axes for its products. `backend.compiling_for` says when.
    """
    if backend.on_gpu() and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    if backend.on_one_cpu():
        b, _, heads, _ = q.shape
        q, k, v = (jnp.swapaxes(x, 1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in (q, k, v))
        weights = jax.nn.softmax(_scaled(jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=_wide(q)), q))
        y = jnp.einsum("bqk,bkd->bqd", weights.astype(v.dtype), v)
        return jnp.swapaxes(y.reshape(b, heads, *y.shape[1:]), 1, 2)
    weights = jax.nn.softmax(_scaled(jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=_wide(q)), q))
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)


def _wide(q: Array) -> jnp.dtype:
    return jnp.promote_types(q.dtype, jnp.float32)


def _scaled(logits: Array, q: Array) -> Array:
    return logits / math.sqrt(q.shape[-1])
