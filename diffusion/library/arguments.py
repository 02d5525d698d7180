"""Checks of what a user passes to `fit` and `draw`, before anything is compiled."""
import operator
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from diffusion.core.conditions import complete
from diffusion.data.arrays import Records
from diffusion.errors import DataError, FieldError, require, shown
from diffusion.kinds.array import LARGEST
from diffusion.library.model import Model
from diffusion.train.averages import Average


def whole(field: str, value: Any, least: int, below: int = 2**63) -> int:
    """The value as an int. Raises FieldError unless it is a whole number of that range."""
    try:
        found = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        found = None
    require(found is not None and least <= found < below, field, value, f"must be a whole number, {least} or more"
            + (f", below {below}." if below < 2**63 else "."))
    return found


def check_models(models: Mapping[str, Model]) -> None:
    """Raises FieldError unless there is a model for each set."""
    require(len(models) > 0, "model", models, "must have a model: diffusion.Model(...).")
    for name, one in models.items():
        require(isinstance(one, Model), "model", {name: one}, "must be a diffusion.Model, or a mapping of them by set.")


def check_params(field: str, params: Any, model: Model) -> None:
    """Raises FieldError unless these are the parameters of one set of the model."""
    rule = "must be the parameters of one set, {\"params\": ...}, such as state.averages[\"ema\"]."
    if hasattr(params, "averages") or isinstance(params, Mapping) and "params" not in params:
        held = params.averages | params.params if hasattr(params, "averages") else params
        raise FieldError(field, sorted(map(str, held)), rule)
    require(isinstance(params, Mapping), field, params, rule)
    expected = dict(model.shapes) | ({"guide": params["guide"]} if model.guide and "guide" in params else {})
    if differences := differing(dict(params), expected):
        raise FieldError(field, sorted(params), f"does not fit the model: {'; '.join(differences)}.")


def differing(given: Any, expected: Any) -> list[str]:
    """Up to three arrays of two trees that differ in shape, as text."""
    given, expected = ({jax.tree_util.keystr(path, simple=True, separator="/"): list(np.shape(x)) for path, x in
                        jax.tree_util.tree_leaves_with_path(tree)} for tree in (given, expected))
    found = [f"{name} is {given.get(name, 'missing')}" + (f" and must be {expected[name]}" if name in expected else
                                                          ", which the model has not")
             for name in {**expected, **given} if given.get(name) != expected.get(name)]
    return found[:3]


def check_averages(averages: Any) -> None:
    """Raises FieldError unless they are averages by name."""
    require(isinstance(averages, Mapping), "averages", averages, "are given by name: {\"ema\": "
            "diffusion.Average(...)}.")
    for name, one in averages.items():
        require(isinstance(one, Average), "averages", {name: one}, "must be a diffusion.Average(rule=...).")
        require(one.dtype in ("float32", "bfloat16"), "averages", {name: one.dtype}, "must be float32 or bfloat16.")


def check_dropout(rates: Any, model: Model) -> None:
    """Raises FieldError unless they are probabilities of conditions that have a null."""
    field, declared = "condition_dropout", model.conditions
    require(isinstance(rates, Mapping), field, rates, "gives probabilities by condition, such as {\"label\": 0.1}.")
    for name, rate in rates.items():
        require(isinstance(rate, (int, float, np.number)) and 0 <= rate < 1, field, rates, "must be probabilities "
                "below 1.")
        require(name in declared, field, name, f"is not declared by the model. It declares: "
                f"{', '.join(declared) or 'none'} (num_classes and null_label declare \"label\").")
        require(declared[name].null is not None, field, name, "cannot be hidden: the model declares no value for it "
                "not given (null_label, or the condition's `null`).")


def check_conditions(cond: Mapping[str, Any], model: Model) -> None:
    """Raises DataError for a condition that is not finite, and labels that the model has not."""
    for name, value in cond.items():
        value = np.asarray(value)
        bad = np.flatnonzero(~np.isfinite(value.reshape(len(value), -1)).all(axis=1))
        if len(bad):
            raise DataError(f"The condition {name!r} of example {bad[0]} is not finite ({len(bad):,} of {len(value):,} "
                            "are not).")
        if name == "label" and model.num_classes:
            wrong = [n for n in np.unique(value) if not 0 <= n < model.num_classes and n != model.null_label]
            if wrong:
                raise DataError(f"The labels must be whole numbers in 0 .. {model.num_classes - 1}"
                                + (f", or {model.null_label} for no class" if model.null_label is not None else "")
                                + f", but there is {wrong[0]}.")


def dataset(data: Any, model: Model) -> dict[str, np.ndarray]:
    """The data of `fit` as the training step looks them up. Raises DataError for data that do not fit or are not
    finite, and ConfigError for conditions that the model does not take or that are missing."""
    found = dict(data) if isinstance(data, Mapping) else {"x0": data}
    if "x0" not in found:
        raise DataError(f"data has {sorted(map(str, found))}: give \"x0\", and the conditions by name.")
    x, masked = _array(found.pop("x0"), "The data"), {name: _array(found.pop(name), f"The {name}")
                                                      for name in ("mask",) if name in found}
    if x.ndim < 2 or not len(x) or x.shape[1:] != model.shape:
        raise DataError(f"The data are {list(x.shape)}, but the model's are [N, {', '.join(map(str, model.shape))}], "
                        "with an example or more.")
    if x.dtype != np.uint8:
        if not np.issubdtype(x.dtype, np.floating):
            raise DataError(f"The data are {x.dtype}: give floats, standardised, or uint8 images.")
        with np.errstate(over="ignore"):  # infinite then
            x = x.astype(np.float32)
    kind = {4: "image", 5: "video"}.get(x.ndim, "image") if x.dtype == np.uint8 else "x"
    if model.spec and kind not in model.spec.stored:
        raise DataError(f"The data are {x.dtype}, but the model's kind of data, {model.spec.called}, takes "
                        f"{'uint8' if kind == 'x' else 'floats'}.")
    if masked and kind != "x":
        raise DataError("Images have no mask, nor have clips: scale them to floats to give the data a mask.")
    given = {name: np.asarray(value) for name, value in complete(model.conditions, found, len(x), "the model").items()}
    records = dict(Records({kind: x, **given, **masked}).arrays)
    check_conditions(given, model)
    if kind == "x":
        _check_size(x, masked.get("mask"), model)
    return records


def _array(value: Any, what: str) -> np.ndarray:
    """Raises DataError for what is no array of numbers."""
    try:
        found = np.asarray(value)
    except ValueError:
        found = None
    if found is None or found.dtype.kind in "SU" or value is None:
        raise DataError(f"{what} must be an array of numbers, but it is {shown(value)}.")
    return found


def _check_size(x: np.ndarray, mask: np.ndarray | None, model: Model) -> None:
    """Raises DataError for floats that are not zero and far from both a deviation of 1 and the model's sigma_data."""
    if model.spec:
        mean, deviation = model.spec.standards()
        x = (x - mean) / deviation
    if mask is not None:
        x = np.where(mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim)).astype(bool), x, 0)
    size = float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))
    if size and all(not 1 / LARGEST <= size / usual <= LARGEST for usual in (1, model.sigma_data)):
        raise DataError(f"The root mean square of the data is {size:.3g} (values {x.min():.4g} .. {x.max():.4g}), and "
                        "not about 1: such data are not standardised. Subtract the mean and divide by the deviation; "
                        "give images of levels 0 .. 255 as uint8.")
