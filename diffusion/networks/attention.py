"""Attention, in one place."""
import math

import jax
import jax.numpy as jnp

from diffusion.networks import backend
from diffusion.typing import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v of each head (Vaswani et al. 2017, Eq. 1): three [B, S, heads, D] -> [B, S, heads, D].

    The softmax is computed in float32 at least. On a GPU, in 16 bits and for heads that it takes, cuDNN computes it
    without storing the [B, heads, S, S] weights; `backend.compiling_for` says when.
    """
    if backend.on_gpu() and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    weights = jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
