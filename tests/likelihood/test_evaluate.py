"""Means and standard errors over a data set: the stream, its last batch, and what an example depends on."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core.conditions import labels
from diffusion.core.continuous import VP
from diffusion.core.parameterization import Diffusion
from diffusion.errors import DivergedError
from diffusion.kinds.base import preparation
from diffusion.kinds.image import ImageSpec
from diffusion.likelihood.base import Estimate
from diffusion.likelihood.evaluate import make_evaluator
from diffusion.parallel.sharding import make_mesh

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 2, 2, 1), dtype=np.uint8)
LABELS = np.arange(23, dtype=np.int32) % 5


def read(indices):
    return {"image": IMAGES[indices], "label": LABELS[indices]}


def estimator(keys, diffusion, x0, cond):
    """A number of everything that an example may depend on."""
    noise = jax.vmap(jax.random.normal)(keys)
    bits = x0.mean((1, 2, 3)) + noise + (10.0 * cond["label"] if cond else 0)
    return Estimate(bits, {"twice": jnp.stack([bits, 2 * bits], axis=1), "noise": noise})


def evaluator(batch_size=4, seed=0, **kwargs):
    return make_evaluator(kwargs.pop("estimator", estimator), lambda params: Diffusion(VP(), None),
                          mesh=make_mesh(-1, 1), batch_size=batch_size, seed=seed, prepare=preparation(
                              ImageSpec(shape=(2, 2, 1)), kwargs.pop("declared", {})), **kwargs)


def rows(one):
    return np.concatenate([values["bits_per_dim"] for _, values in one.batches({}, read, 23)])


def test_the_mean_and_its_error_are_numpys_whatever_the_batch():
    values = rows(evaluator(23))
    for batch_size in (1, 4, 8, 64):
        told = []
        found = evaluator(batch_size)({}, read, 23, told.append)
        assert found["examples"] == 23 == sum(told)
        np.testing.assert_allclose(found["bits_per_dim"], values.mean(), rtol=1e-6)
        np.testing.assert_allclose(found["standard_error"], values.std(ddof=1) / 23**0.5, rtol=1e-5)
        np.testing.assert_allclose(found["terms"]["twice"]["mean"], [values.mean(), 2 * values.mean()], rtol=1e-6)
        assert "bits_per_dim" not in found["terms"]


def test_an_example_has_the_noise_of_its_number_and_the_seed():
    np.testing.assert_array_equal(rows(evaluator(4)), rows(evaluator(8)))
    assert np.abs(rows(evaluator(4)) - rows(evaluator(4, seed=1))).min() > 1e-4
    plain = [values["noise"] for _, values in evaluator(23).batches({}, read, 23)][0]
    assert len(np.unique(plain)) == 23


def test_labels_reach_a_conditional_model_alone():
    apart = rows(evaluator(4, declared=labels(3))) - rows(evaluator(4))
    np.testing.assert_allclose(apart, 10 * LABELS, atol=1e-5)


def test_nothing_compiles_twice():
    traced = []

    def counting(*args):
        traced.append(1)
        return estimator(*args)
    evaluator(4, estimator=counting)({}, read, 23)
    assert len(traced) == 1


def test_what_is_not_finite_is_named():
    def bad(keys, diffusion, x0, cond):
        return Estimate(jnp.where(jnp.arange(len(x0)) == 2, jnp.nan, 1.0))
    with pytest.raises(DivergedError, match="example 2 "):
        evaluator(4, estimator=bad)({}, read, 23)


def test_one_example_has_no_error_and_none_is_refused():
    assert evaluator(4)({}, read, 1)["standard_error"] is None
    with pytest.raises(ValueError, match="needs an example"):
        evaluator(4)({}, read, 0)
