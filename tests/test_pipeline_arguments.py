"""The arguments of DiffusionPipeline: wrong types, out of range or missing, refused before anything is computed."""
import numpy as np
import pytest
from tiny_pipeline import draw, pipeline

from diffusion import DiffusionPipeline
from diffusion.errors import ConfigError


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.mark.parametrize("arguments, message", [
    (dict(source=None), "source = None is not a path"), (dict(source=3), "source = 3 is not a path"),
    (dict(source="x" * 5000), "source = .xxx.* is not a path: it is empty, too"), (dict(source=""), "is not a path"),
    (dict(source="a\0b"), "has a null byte"), (dict(source=b"x"), "is not a path"),
    (dict(checkpoint="x"), "checkpoint = .x. is not a step"), (dict(checkpoint=True), "checkpoint = True is not a"),
    (dict(checkpoint=-1), "checkpoint = -1 is not a step"), (dict(settings=3), "settings = 3 must be text"),
    (dict(settings={1: 2}), "must be text"), (dict(weights=3), "weights = 3 must be the name"),
    (dict(layout=["x"]), "layout = .'x'. is not known"), (dict(overrides="foo"), "overrides = 'foo' must be a dict"),
    (dict(overrides={1: 2}), "must be a dict of config keys"), (dict(overrides=[("a", 3)]), "must be a dict"),
    (dict(override={}), "from_pretrained has no argument 'override'. Did you mean 'overrides'"),
    (dict(layout="guided-diffusion", settings='"'), "cannot be split into words: No closing quotation"),
])
def test_arguments_of_from_pretrained(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionPipeline.from_pretrained(**dict(source=tmp_path) | arguments)


@pytest.mark.parametrize("arguments, message", [
    *((dict(batch_size=value), "batch_size = .* must be a whole number in 1 .. 1048576")
      for value in ("2", 2.0, 2.5, None, float("nan"), True, 0, -1, 10**12, [2])),
    *((dict(seed=value), "seed = .* must be a whole number in 0 .. 4294967295")
      for value in (-1, 2**32, 2**64, None, 1.5, "1", True, np.uint64(2**40), np.int8(-1))),
    *((dict(num_inference_steps=value), "steps") for value in ("3", 2.5, 0, -2, True, 10**9, [3])),
    *((dict(initial_noise=value), "initial_noise must be") for value in ("x", 1j * np.ones((1, 8, 8, 3)), [[1], [2, 3]],
                                                                         np.zeros((2, 8, 8, 3)), {}, 3)),
    *((dict(output_type=value), "output_type = ") for value in (None, 3, "latent", ["pil"])),
    *((dict(sampler=value), "sample.solver") for value in ("foo", 3, ["ddim"])),
    *((dict(sampler="ddim", eta=value), "eta = .* must") for value in ("x", 2.0, -1.0, float("nan"), [1.0], 10**400)),
    *((dict(guidance_scale=value), "guidance_scale = .* must be a finite number")
      for value in ("x", [2.0], 1j, True, float("nan"), float("inf"), 10**400)),
    *((dict(unconditional_label=value), "unconditional_label = .* must be a whole number")
      for value in ("x", 1.5, True, -1, 10**30, [3])),
    *((dict(dtype=value), "network.dtype") for value in ("float8", 3)),
    (dict(num_steps=3), "__call__ has no argument 'num_steps'. Did you mean 'num_inference_steps'"),
])
def test_arguments_of_a_call(pipe, arguments, message):
    with pytest.raises(ConfigError, match=message):
        pipe(**dict(num_inference_steps=2, output_type="np", progress_bar=False) | arguments)


def test_whole_numbers_of_any_type_are_seeds(pipe):
    one = draw(pipe, 1, 2, seed=2**32 - 1)
    np.testing.assert_array_equal(draw(pipe, np.int16(1), np.int32(2), seed=np.uint64(2**32 - 1)), one)


@pytest.mark.parametrize("params", [None, {}, {"params": {}}, 3, {"params": {"conv_in": {"kernel": np.zeros(3)}}}])
def test_parameters_of_another_network(pipe, params):
    with pytest.raises(ConfigError, match=r"The parameters do not fit the config: \d+ are missing or of another"):
        DiffusionPipeline(pipe.config, params)


@pytest.mark.parametrize("directory", [None, 3, "a\0b", "", "x" * 300])
def test_a_folder_that_cannot_be(pipe, directory):
    with pytest.raises(ConfigError, match="directory = .* is not a path"):
        pipe.save_pretrained(directory)
