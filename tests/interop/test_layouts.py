"""Weight files of other projects through the pipeline and the convert program."""
import pathlib
import sys

import flax.serialization
import flax.traverse_util
import jax
import numpy as np
import pytest

from diffusion import DiffusionPipeline, build, pretrained
from diffusion.errors import CheckpointError, ConfigError
from diffusion.interop.tensor_files import read_tensors, write_safetensors
from diffusion.programs import convert

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import others  # noqa: E402


@pytest.fixture
def openai_file(tmp_path):
    """(file, codebase, flags) of a small network of guided-diffusion."""
    case = "guided, resampling blocks, new order"  # small, and its heads can be said in diffusers' settings
    codebase, flags = others.OPENAI[case]
    write_safetensors(tmp_path / "model.pt", others.random_state(others.load("openai.npz")[0][case]), {})
    return tmp_path / "model.pt", codebase, flags


def line(flags: dict) -> str:
    return " ".join(f"--{key} {value}" for key, value in flags.items())


@pytest.mark.slow
def test_a_model_of_guided_diffusion_is_loaded_by_its_flags_and_converted(openai_file, tmp_path, capsys):
    file, codebase, flags = openai_file
    pipe = DiffusionPipeline.from_pretrained(file, layout=codebase, settings=line(flags))
    assert convert.main([str(file), str(tmp_path / "out"), f"--layout={codebase}", f"--settings={line(flags)}"]) == 0
    assert "equal bit for bit" in capsys.readouterr().out
    back = DiffusionPipeline.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, pipe.params, back.params)
    x = others.images(pipe.config.data.size, 3)
    cond = {"label": np.arange(4)} if pipe.config.network.num_classes else {}
    networks = [build.network(p.config.network, p.config.data.size, 3 * (1 + p.config.learned_range))
                for p in (pipe, back)]
    one, two = (jax.jit(network.apply)(pipe.params, x, np.arange(4.0), cond)
                for network in networks)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
    image = pipe(1, 2, output_type="np", progress_bar=False).images
    assert image.shape == (1, *x.shape[1:]) and np.isfinite(image).all()


def test_a_checkpoint_of_score_sde_is_loaded_and_sampled(tmp_path):
    case = "two levels"
    nested = flax.traverse_util.unflatten_dict(others.random_state(others.load("score_sde.npz")[0][case]), sep="/")
    (tmp_path / "checkpoint_1").write_bytes(flax.serialization.to_bytes(dict(params_ema=nested, step=1)))
    text = " ".join(f"{key}={str(value).replace(' ', '')}" for key, value in others.SCORE_SDE[case].items())
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "checkpoint_1", layout="score_sde", settings=text)
    assert pipe(1, 2, output_type="np", progress_bar=False).images.shape == (1, 16, 16, 3)
    pipe.save_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, pipe.params, DiffusionPipeline.from_pretrained(tmp_path / "out").params)


@pytest.mark.parametrize("text, expected", [
    ("--image_size 32 --learn_sigma True --attention_resolutions 16,8",
     dict(image_size=32, learn_sigma=True, attention_resolutions="16,8")),
    ("model.nf=128 model.ch_mult=(1,2) --a=-1", {"model.nf": 128, "model.ch_mult": (1, 2), "a": -1}), ("", {})])
def test_settings_as_text(text, expected):
    assert pretrained.parse_settings(text) == expected


@pytest.mark.parametrize("arguments, error, message", [
    (dict(layout="openai"), ConfigError,
     "layout = 'openai' is not known.* It can be one of: improved-diffusion, guided-"),
    (dict(settings="--image_size 32"), ConfigError, "name one by layout = improved-diffusion or"),
    (dict(layout="guided-diffusion", settings="--image_size"), ConfigError, "are not pairs of a name and a value"),
    (dict(layout="guided-diffusion", settings="--imagesize 64"), CheckpointError, "Did you mean image_size"),
    (dict(layout="guided-diffusion", settings="--image_size 64"), CheckpointError,
     "tensors are missing: .*another shape"),
    (dict(), CheckpointError, "is a file. Name the folder of the model.*docs/interop.md"),
])
def test_what_does_not_fit(openai_file, arguments, error, message):
    with pytest.raises(error, match=message):
        DiffusionPipeline.from_pretrained(openai_file[0], **arguments)


def test_one_of_several_sets_of_weights_is_named(openai_file, tmp_path):
    """As many training scripts save them: {"model": ..., "ema": ..., "step": ...}."""
    torch = pytest.importorskip("torch", reason="the parity tests' packages are not installed")
    file, codebase, flags = openai_file
    ema = {name: torch.from_numpy(value.copy()) for name, value in read_tensors(file).items()}
    torch.save({"model": {name: x + 1 for name, x in ema.items()}, "ema": ema, "step": 7}, tmp_path / "both.pt")
    arguments = dict(layout=codebase, settings=line(flags))
    with pytest.raises(CheckpointError, match="several sets of weights: model, ema. Choose one by weights='model'"):
        DiffusionPipeline.from_pretrained(tmp_path / "both.pt", **arguments)
    with pytest.raises(CheckpointError, match="has no set of weights 'emma'; it has model, ema"):
        DiffusionPipeline.from_pretrained(tmp_path / "both.pt", weights="emma", **arguments)
    jax.tree.map(np.testing.assert_array_equal,
                 DiffusionPipeline.from_pretrained(tmp_path / "both.pt", weights="ema", **arguments).params,
                 DiffusionPipeline.from_pretrained(file, **arguments).params)


@pytest.mark.parametrize("error", [RuntimeError("Failed to import:\noperator torchvision::nms does not exist"),
                                   ImportError("no torch"), AttributeError("")])
def test_a_broken_diffusers_is_not_compared_with(monkeypatch, error):
    """Such as a torchvision that does not fit torch: what was converted is all right."""
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name in ("torch", "diffusers"):
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for name in [name for name in sys.modules if name.split(".")[0] in ("torch", "diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    found = convert.compare(None, "nowhere")
    assert found == {"RuntimeError": "it cannot be imported (operator torchvision::nms does not exist)",
                     "ImportError": "torch and diffusers are not installed",
                     "AttributeError": "it cannot be imported (AttributeError)"}[type(error).__name__]


def test_a_run_is_loaded_with_its_average(tmp_path):
    import json
    from types import SimpleNamespace

    import jax.numpy as jnp

    from diffusion import config as config_lib
    from diffusion.io.checkpoint import Checkpoints
    from diffusion.train.state import State
    config = config_lib.override(config_lib.base(), {"averages": ("long: power, sigma_rel=0.1, dtype=bfloat16",)})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "environment.json").write_text("[]")
    state = State(step=jnp.zeros((), jnp.int32), params={"online": {"w": jnp.zeros(3)}},
                  averages={"ema": {"w": jnp.ones(3)}, "long": {"w": jnp.full(3, 2.0, jnp.bfloat16)}}, opt_state={})
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, state, SimpleNamespace(get_state=dict), {})
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
                            state.params["online"])
    for weights, value in ((None, 1), ("ema", 1), ("raw", 0), ("long", 2)):
        found = pretrained.load(tmp_path, weights=weights).params(abstract)["w"]
        assert found.dtype == jnp.float32 and (np.asarray(found) == value).all()
    with pytest.raises(ConfigError, match=r"'lon' \(--weights\) is not in the run.*'long'.*It keeps: raw, ema, long"):
        pretrained.load(tmp_path, weights="lon")


def test_an_export_takes_its_name_whole(tmp_path, monkeypatch):
    """Copied there file by file, a kill would leave half a model under the name."""
    import os

    from diffusion.interop import folder
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(pathlib.Path(b)), replace(a, b)))
    folder.write(tmp_path / "model", unet={}, schedule={"_class_name": "DDPMScheduler"},
                 state={"w": np.zeros(2, np.float32)}, readme="What it is.")
    assert moved[-1] == tmp_path / "model" and (tmp_path / "model" / "unet" / "config.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
