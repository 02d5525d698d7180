"""Array and key aliases, each with its shape in a comment.

Shapes in docstrings use: B examples, H height, W width, C channels, T steps of a discrete process.
"""
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

Array = jax.Array | np.ndarray
Image = Array        # [B, H, W, C] float in [-1, 1], or x_t of the same shape
Time = Array         # [B] or scalar; for a discrete process the integers 0 (clean) .. T (noise)
Cond = Mapping[str, Array]  # conditions by name, each [B, ...], such as {"label": int32 [B]}
Keys = Array         # [B] typed PRNG keys, one per example
Params = Any         # pytree of arrays

NO_COND: Cond = {}   # no conditions

# (params, x [B,H,W,C], c_noise [B], cond, keys or None) -> the outputs by name (networks/base.py), or the prediction F
# alone; keys given means dropout is on.
NetworkApply = Callable[[Params, Image, Array, Cond, Keys | None], Mapping[str, Array] | Array]
