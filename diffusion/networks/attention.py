"""Attention, in one place."""
import math

import jax
import jax.numpy as jnp

from diffusion.networks import backend
from diffusion.typing import Array


def attend(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v of each head (Vaswani et al. 2017, Eq. 1): three [B, S, heads, D] -> [B, S, heads, D].

    The softmax is computed in float32 at least. On a GPU and on one CPU no [B, heads, S, S] weights are kept for the
    gradient; on a GPU, in 16 bits and for heads that it takes, cuDNN computes it without storing them.
    `backend.compiling_for` says when.
    """
    if not backend.on_gpu() and not backend.on_one_cpu():
        weights = jax.nn.softmax(_logits("bqhd,bkhd->bhqk", q, k), axis=-1).astype(v.dtype)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
    if backend.on_gpu() and q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] <= 128 and q.shape[-1] % 8 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    by_head = (x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in (q, k, v))
    return recomputed_attention(*by_head).reshape(q.swapaxes(1, 2).shape).swapaxes(1, 2)


def _logits(axes: str, q: Array, k: Array) -> Array:
    logits = jnp.einsum(axes, q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    return logits / math.sqrt(q.shape[-1])


@jax.custom_vjp
def recomputed_attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(D)) v: three [N, S, D] -> [N, S, D]. The gradient computes the weights again, and its matrix
    products read 16 bits where q, k and v have them (as Dao et al. 2022, "FlashAttention"). Without forward-mode
    derivative."""
    return _forward(q, k, v)[0]


def _forward(q, k, v):
    logits = _logits("nqd,nkd->nqk", q, k)
    log_sum = jax.nn.logsumexp(logits, axis=-1)
    y = jnp.einsum("nqk,nkd->nqd", _weights(logits, log_sum).astype(v.dtype), v)
    return y, (q, k, v, y, log_sum)


def _weights(logits: Array, log_sum: Array) -> Array:
    return jnp.exp(logits - log_sum[:, :, None])


def _backward(saved, dy):
    # The barrier has the weights computed again: else XLA keeps the forward pass's.
    q, k, v, y, log_sum, dy = jax.lax.optimization_barrier((*saved, dy))
    weights = _weights(_logits("nqd,nkd->nqk", q, k), log_sum)
    dweights = jnp.einsum("nqd,nkd->nqk", dy, v, preferred_element_type=weights.dtype)
    mean = jnp.sum(dy.astype(weights.dtype) * y, axis=-1, keepdims=True)  # of dweights, by the weights
    dlogits = (weights * (dweights - mean) / math.sqrt(q.shape[-1])).astype(q.dtype)
    return (jnp.einsum("nqk,nkd->nqd", dlogits, k), jnp.einsum("nqk,nqd->nkd", dlogits, q),
            jnp.einsum("nqk,nqd->nkd", weights.astype(v.dtype), dy))


recomputed_attention.defvjp(_forward, _backward)
