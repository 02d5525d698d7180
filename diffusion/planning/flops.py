"""Counts the floating-point operations of a traced function from its shapes.

XLA's own count leaves out what cuDNN and cuBLAS compute, and needs a compiled program.
"""
import math
from typing import Any

import jax

# Jitted functions of networks/winograd.py -> how many convolutions of their first two arguments, images and a 3x3
# kernel, they stand for. They multiply less, but a step has the same FLOPs however it is computed.
CONVOLUTIONS = {"conv3x3_value": 1, "conv3x3_gradients": 2}


def matrix_flops(function, *arguments) -> float:
    """FLOPs of the convolutions and matrix products of function(*arguments), two for each multiplication and addition;
    the rest of a network is a few percent. Arguments may be abstract. Loops count once for each iteration; a while loop
    counts once, and of a branch the largest counts."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(v.aval, "shape", ()) for v in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    if name == "conv_general_dilated":
        return 2 * _multiplications(equation)
    if name.startswith("dot_product_attention"):  # cuDNN's: queries [B, S, heads, D], keys [B, T, heads, D]
        batch, queries, heads, size = shapes[0]
        return (8 if "bwd" in name else 4) * batch * heads * queries * shapes[1][1] * size
    if params.get("name") in CONVOLUTIONS:
        return CONVOLUTIONS[params["name"]] * 18 * math.prod(shapes[0]) * shapes[1][-1]
    inner = [_count(j) for value in params.values() for j in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _multiplications(equation: Any) -> int:
    """Of a convolution. The gradient of a strided one is dilated: the zeros between its input's values do not count."""
    numbers, params = equation.params["dimension_numbers"], equation.params
    right, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    taps = math.prod(right[i] for i in numbers.rhs_spec[2:])
    return math.prod(out) * right[numbers.rhs_spec[1]] * taps // math.prod(params["lhs_dilation"])


def _jaxprs(value: Any) -> list:
    """The traced functions in a parameter of a primitive."""
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    return [j for one in value for j in _jaxprs(one)] if isinstance(value, (tuple, list)) else []
