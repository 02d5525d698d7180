"""What a user may pass to Model, fit and draw by mistake: each gets one error, before anything is compiled."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import diffusion
from diffusion.core.conditions import Condition
from diffusion.core.time_densities import Uniform
from diffusion.errors import ConfigError, DataError, FieldError
from diffusion.kinds.array import array
from diffusion.kinds.image import image
from diffusion.samplers.heun import Heun

X = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
HOLED = np.where(np.arange(80).reshape(40, 2) == 11, np.nan, X)  # example 5
ADAM = optax.adam(1e-3)
PARAMS = {"params": {"w": jnp.zeros((2, 2))}}
LABELS = {"label": np.arange(40) % 3}


def model(call=lambda params, x, c_noise: x @ params["w"], **given):
    return diffusion.Model(**dict(network=(lambda key: {"w": jnp.zeros((2, 2))}, call), shape=(2,), process="flow",
                                  prediction="velocity") | given)


def told(params, x, c_noise, cond):
    return x @ params["w"]


def labelled(**given):
    return model(told, num_classes=3, **given)


def with_vector(**given):
    return model(told, conditions={"v": Condition(shape=(3,), **given)})


def pictures(spec):
    return diffusion.Model(network=(lambda key: {"w": jnp.ones(())}, lambda params, x, c_noise: x * params["w"]),
                           spec=spec, process="flow", prediction="velocity")


def mean_of(name):
    return lambda bind, inputs: (bind(name).denoise(inputs.x0, inputs.times.t, None).x0.mean(1), {})


def returning(value):
    return lambda bind, inputs: (mean_of("online")(bind, inputs), value(inputs))[1]


def updates(*given):
    return diffusion.Objective(loss=list(given), density=Uniform())


class Counting(nnx.Module):
    """Changes itself in each call, in ways that are no variables of JAX."""

    def __init__(self, how):
        self.layer, self.how, self.count = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), how, 0

    def __call__(self, x, c_noise):
        if self.how == "number":
            self.count += 1
        else:
            self.new = nnx.Variable(x)
        return self.layer(x)


@pytest.fixture
def no_compilation():
    """Fails if a program was compiled, other than of one operation each."""
    compiled = []
    listener = lambda name, seconds, **more: compiled.append(name) if name.endswith(  # noqa: E731
        "backend_compile_duration") else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listener)


FITS = [
    (dict(data=HOLED), DataError, "x of example 5 in the data is NaN"),
    (dict(data={"x0": HOLED, "mask": np.ones((40, 2), bool)}), DataError, "x of example 5"),
    (dict(data=np.full((40, 2), 1e300)), DataError, "x of example 0"),
    (dict(data=127.5 * (X + 1)), DataError, "root mean square.*0 .. 255 as uint8"),
    (dict(data=1e-4 * X), DataError, "root mean square"),
    (dict(data="x.npy"), DataError, "array of numbers, but it is 'x.npy'"),
    (dict(data=None), DataError, "array of numbers"),
    (dict(data=[[1.0, 2.0], [3.0]]), DataError, "array of numbers"),
    (dict(data=X[:0]), DataError, "an example or more"),
    (dict(data={"x0": X, "mask": np.ones((5, 2), bool)}), DataError, r"one N: x \[40, 2\], mask \[5, 2\]"),
    (dict(data={"x0": X, "mask": np.ones((40, 3), bool)}), DataError, r"mask in the data is \[40, 3\]"),
    (dict(data={"x0": X, "mask": np.ones((40, 2, 2), bool)}), DataError, "mask in the data is"),
    (dict(data={"x0": X, "mask": True}), DataError, "with one N"),
    (dict(data={"x0": X, "mask": np.arange(40) != 7}), DataError, "mask of example 7"),
    (dict(model=labelled()), ConfigError, "The model needs the condition 'label'"),
    (dict(model=labelled(), data={"x0": X, "label": LABELS["label"] + 1}), DataError, "0 .. 2, but there is 3"),
    (dict(model=with_vector(), data={"x0": X, "v": HOLED[:, 1:] * np.ones(3)}), DataError, "v of example 5"),
    (dict(model=with_vector(default=0), condition_dropout={"v": 0.1}), FieldError, "no value for it not given"),
    (dict(model=with_vector(null=0, default=0), condition_dropout={"v": "much"}), FieldError, "probabilities"),
    (dict(condition_dropout=0.1), FieldError, "by condition"),
    (dict(model=pictures(image(size=2, channels=1)), data=np.zeros((40, 2, 2, 1))), DataError, "image, takes uint8"),
    (dict(model=pictures(array(shape=(2,), mean=(0.0,), deviation=(1.0,))), data=(X > 0).astype(np.uint8)), DataError,
     "array, takes floats"),
    (dict(model=pictures(array(shape=(2,)))), FieldError, "no mean and deviation"),
    (dict(model=pictures(image(size=2, channels=1)), data={"x0": np.zeros((40, 2, 2, 1), np.uint8), "mask": X > 0}),
     DataError, "have no mask"),
    (dict(optimizer="adam"), FieldError, "optax"),
    (dict(optimizer=optax.adam), FieldError, "optax"),
    (dict(batch_size=8.0), FieldError, "batch_size = 8.0: must be a whole number"),
    (dict(steps="2 steps"), FieldError, "steps"),
    (dict(seed=-1), FieldError, "seed = -1"),
    (dict(seed=None), FieldError, "seed"),
    (dict(accumulate=0), FieldError, "accumulate"),
    (dict(report=3), FieldError, "report"),
    (dict(objective=3), FieldError, "objective = 3"),
    (dict(objective=returning(lambda inputs: jnp.zeros(8))), ValueError, r"the losses \[8\].*returned \[8\]"),
    (dict(objective=returning(lambda inputs: (inputs.x0, {}))), ValueError, r"returned \[8, 2\], dict"),
    (dict(objective=mean_of("teecher")), ValueError, "'teecher'. There are: ema, online"),
    (dict(objective=updates(mean_of("online")), optimizer=None), FieldError, "is not an Update"),
    (dict(objective=updates(diffusion.Update(loss=mean_of("online"), optimizer=None)), optimizer=None), FieldError,
     "optax"),
    (dict(model={"online": model(), "fake": model()}, optimizer=None, objective=updates(
        diffusion.Update(loss=mean_of("online"), optimizer=ADAM),
        diffusion.Update(loss=mean_of("online"), optimizer=ADAM, trains="fake"))), ValueError, "would be trained"),
    (dict(model=(told, told)), FieldError, "must be a diffusion.Model"),
    (dict(frozen={"teacher": PARAMS}), FieldError, "'teacher': has no model"),
    (dict(params={"online": {"params": {"w": jnp.zeros((3, 3))}}}), FieldError, r"w is \[3, 3\] and must be \[2, 2\]"),
    (dict(params={"online": PARAMS["params"]}), FieldError, "parameters of one set"),
    (dict(params=PARAMS), FieldError, "'params': has no model"),
    (dict(state=PARAMS), FieldError, "`fit` returned"),
    (dict(averages={"ema": 0.999}), FieldError, "diffusion.Average"),
    (dict(averages=[]), FieldError, "by name"),
    (dict(averages={"ema": diffusion.Average(rule=diffusion.HalfLife(half_life=9.0), dtype="float8")}), FieldError,
     "bfloat16"),
    *[(dict(model=model(call)), ConfigError, words) for call, words in (
        (lambda params, x, c_noise: jnp.zeros((len(x), 3)), r"floats \[8, 2\].* returned float32 \[8, 3\]"),
        (lambda params, x, c_noise: jnp.zeros((1, 2)), r"returned float32 \[1, 2\]"),
        (lambda params, x, c_noise: x[:, None], r"returned float32 \[8, 1, 2\]"),
        (lambda params, x, c_noise: jnp.zeros(x.shape, int), "returned int32"),
        (lambda params, x, c_noise: None, "returned nothing"),
        (lambda params, x, c_noise: (x, x), "returned a tuple"),
        (lambda params, x, c_noise: {"f": x[:, :1]}, r"as the head 'f'.* returned float32 \[8, 1\]"))],
    *[(dict(model=model(network=Counting(how))), ValueError, "changes its own variables") for how in ("number", "new")],
]


@pytest.mark.parametrize(("given", "kind", "words"), FITS)
def test_what_cannot_be_fitted_is_refused_before_any_compilation(given, kind, words, no_compilation):
    arguments = dict(model=model(), data=X, batch_size=8, steps=2, optimizer=ADAM) | given
    with pytest.raises(kind, match=words):
        diffusion.fit(arguments.pop("model"), arguments.pop("objective", "denoising"), **arguments)
    assert len(no_compilation) <= 8  # single operations; the step and its state are not among them


DRAWS = [
    (dict(cond=np.zeros(4, int)), ConfigError, "given by name"),
    (dict(cond={"text": np.zeros(4)}), ConfigError, "'text' was given, but the model does not declare it"),
    (dict(model=labelled(), cond={"label": [0, 1]}), ConfigError, r"int32 \[4\], but it is int64 \[2\]"),
    (dict(model=labelled(), cond={"label": ["a", "b", "c", "d"]}), ConfigError, "array of numbers"),
    (dict(model=labelled(), cond={"label": [0, 1, 2, 3]}), DataError, "0 .. 2, but there is 3"),
    (dict(model=with_vector()), ConfigError, "needs the condition 'v'"),
    (dict(model=with_vector(), cond={"v": [[1, 2, 3], [4], [5], [6]]}), ConfigError, "array of numbers"),
    (dict(model=with_vector(), cond={"v": np.full((4, 3), np.nan)}), DataError, "'v' of example 0 is not finite"),
    (dict(model=(told, told)), FieldError, "must be a diffusion.Model"),
    (dict(params=PARAMS["params"]), FieldError, r"\['w'\]: must be the parameters of one set"),
    (dict(params={"ema": PARAMS}), FieldError, r"state.averages\[.ema.\]"),
    (dict(params=None), FieldError, "parameters of one set"),
    (dict(params={"params": {"w": jnp.zeros((3, 3))}}), FieldError, r"w is \[3, 3\] and must be \[2, 2\]"),
    (dict(solver="heuns"), ConfigError, "'heuns'.*Did you mean 'heun'"),
    (dict(solver=Heun), FieldError, r"such as Heun\(\)"),
    (dict(transform=lambda d: None), FieldError, "must return a Diffusion, but it returned None"),
    (dict(seed=-1), FieldError, "seed = -1"),
    (dict(count=4.0), FieldError, "count = 4.0"),
    *[(dict(times=times), FieldError, words) for times, words in (
        (0, "1 or more"), (3.0, "whole number"), ("20", "number of steps"), (None, "number of steps"),
        ([], "number of steps"), (np.ones((2, 3)), "number of steps"), ([[1.0], [0.5, 0.2]], "number of steps"),
        ([1.0, np.nan], "finite"), ([0.1, 0.5, 1.0], "must decrease"), ([1.0, 0.5, 0.5], "must decrease"),
        ([1.0, 0.0], "above 0"), ([3.0, 1.0], "up to 1"), (np.array([[3.0, 1.0]]), "up to 1"), (True, "number"))],
]


@pytest.mark.parametrize(("given", "kind", "words"), DRAWS)
def test_what_cannot_be_drawn_is_refused(given, kind, words):
    arguments = dict(model=model(), params=PARAMS, count=4, times=3) | given
    with pytest.raises(kind, match=words):
        diffusion.draw(arguments.pop("model"), arguments.pop("params"), **arguments)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: model(shape=2), "shape = 2"), (lambda: model(shape=(2.0,)), "shape"), (lambda: model(shape=(0,)), "shape"),
    (lambda: model(spec=array(shape=(3,))), "another than the spec's"), (lambda: model(spec="image"), "spec = 'image'"),
    (lambda: model(null_label=3), "takes none"), (lambda: model(num_classes=2.5), "num_classes"),
    (lambda: model(conditions=["v"]), "by name"), (lambda: model(conditions={"x": Condition()}), "name of the data"),
    (lambda: model(mesh=3), "mesh"), (lambda: diffusion.grid("edm", "karras", 18, roh=7.0), "roh.*Did you mean 'rho'"),
    (lambda: diffusion.grid("edm", "karras", 1.5), "steps = 1.5"),
    (lambda: diffusion.grid("edm", "karras", 5, t_min=-1), "t_min"),
    (lambda: diffusion.objective(model(), densty="uniform"), "densty.*Did you mean 'density'")])
def test_what_no_model_can_be_made_of_is_refused(make, words):
    with pytest.raises(FieldError, match=words):
        make()


def test_what_is_masked_may_hold_anything_and_a_program_is_traced_once():
    traced = []

    def counted(params, x, c_noise):
        traced.append(x.shape)
        return x @ params["w"]

    state = diffusion.fit(model(counted), data={"x0": HOLED, "mask": np.isfinite(HOLED)}, batch_size=8, steps=2,
                          optimizer=ADAM)
    assert np.isfinite(state.params["online"]["params"]["w"]).all() and len(traced) == 1
    with pytest.raises(FieldError, match="does not fit this training.*averages/ema"):
        diffusion.fit(model(), data=X, batch_size=8, steps=2, optimizer=ADAM, averages={}, state=state)
