"""DiffusionPipeline: from our own runs and from diffusers' layout, arguments of a call, saving, and bad input."""
import json
import os
import pathlib
import pickle
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import WEIGHTS, draw, pipeline

import diffusion
from diffusion import DiffusionPipeline, build, guidance, pretrained
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError
from diffusion.interop import folder

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pipe():
    return pipeline()


@pytest.fixture(scope="module")
def labelled():
    return pipeline(network__num_classes=4)


@pytest.fixture
def saved(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# ---- a call -------------------------------------------------------------------------------------------------------

def test_the_five_lines_of_the_readme_run(pipe, tmp_path, monkeypatch):
    """The lines run word for word, offline, on a tiny exported model in the folder that they name."""
    lines = re.search(r"( {4}from diffusion import DiffusionPipeline\n(?: {4}.*\n|\n)*)",
                      (ROOT / "README.md").read_text())[1]
    code = "\n".join(line[4:] for line in lines.splitlines())
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe.save_pretrained(re.search(r'from_pretrained\("([\w/]+)"\)', code)[1])
    exec(compile(code.replace("1000", "10").replace("100", "10"), "README.md", "exec"), {})
    assert Image.open(tmp_path / "out.png").size == (8, 8)


def test_pil_and_np_are_the_same_images(pipe):
    images = pipe(2, seed=1, progress_bar=False).images
    array = draw(pipe, 2, seed=1)
    assert [image.mode for image in images] == ["RGB"] * 2
    assert array.shape == (2, 8, 8, 3) and array.dtype == np.float32 and 0 <= array.min() < array.max() <= 1
    np.testing.assert_allclose(np.stack([np.asarray(image) for image in images]) / 255, array, atol=0.5001 / 255)


def test_image_i_is_a_function_of_seed_and_i_alone(pipe):
    many = draw(pipe, 3, seed=7)
    np.testing.assert_allclose(draw(pipe, 2, seed=7), many[:2], atol=2e-5)  # other shapes, other order of sums
    assert np.abs(draw(pipe, 3, seed=8) - many).max() > 0.1
    assert np.abs(many[0] - many[1]).max() > 0.1


def test_the_progress_bar_changes_nothing_and_shows_the_steps(pipe, capsys):
    quiet = draw(pipe, 2)
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(pipe(2, output_type="np").images, quiet)
    assert "step 10 of 10" in capsys.readouterr().err


def test_another_number_of_steps_compiles_nothing(pipe):
    draw(pipe, 2, 10)
    run, = {id(sampler): sampler for sampler in pipe._samplers.values()}.values()
    before = run.advance._cache_size()
    draw(pipe, 2, 5)
    draw(pipe, 2, 20)
    assert run.advance._cache_size() == before


def test_sampler_steps_and_eta_are_the_configs(pipe):
    """A call's arguments give the same images as the same keys in the model's config."""
    changed = DiffusionPipeline(config_lib.override(pipe.config, {"sample.solver": "ddim", "sample.steps": 4,
                                                                  "sample.eta": 0.5}), pipe.params)
    np.testing.assert_array_equal(draw(pipe, 2, 4, sampler="ddim", eta=0.5), draw(changed, 2))
    assert np.abs(draw(pipe, 2, 4, sampler="ddim") - draw(changed, 2)).max() > 1e-3


def test_it_draws_what_generate_draws(pipe):
    config = config_lib.override(pipe.config, {"sample.batch_size": 2})
    model = build.model(config)
    x = np.concatenate(list(build.generate(config, model)(pipe.params, 3, 0, 2)))
    np.testing.assert_array_equal(draw(pipe, 2, seed=3), (x + 1) / 2)


def test_initial_noise_is_where_a_deterministic_chain_starts(pipe):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    one, two = (draw(pipe, 2, sampler="ddim", initial_noise=noise, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one, two)
    assert np.abs(draw(pipe, 2, sampler="ddim", initial_noise=-noise) - one).max() > 0.1
    reversed_ = draw(pipe, 2, sampler="ddim", initial_noise=noise[::-1])
    np.testing.assert_allclose(reversed_[::-1], one, atol=2e-5)


def test_bfloat16_is_close_and_not_equal(pipe):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3))
    full = draw(pipe, 2, 2, sampler="ddim", initial_noise=noise)
    half = draw(pipe, 2, 2, sampler="ddim", initial_noise=noise, dtype="bfloat16")
    assert half.dtype == np.float32 and 0 < np.abs(full - half).mean() < 0.02


def test_class_labels(labelled):
    default = draw(labelled, 6)
    np.testing.assert_array_equal(draw(labelled, 6, class_labels=[0, 1, 2, 3, 0, 1]), default)
    np.testing.assert_array_equal(draw(labelled, 6, class_labels=2)[2], default[2])
    assert np.abs(draw(labelled, 6, class_labels=2)[1] - default[1]).max() > 1e-2


def test_guidance_is_that_of_guidance_py(labelled):
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
    call = dict(sampler="ddim", num_inference_steps=1, class_labels=1, initial_noise=noise)
    out = draw(labelled, 2, guidance_scale=2.0, unconditional_label=3, **call)
    model = build.model(labelled.config)
    guided = guidance.classifier_free(model.denoiser(labelled.params), 2.0, {"label": 3}).denoise
    x0 = jax.jit(guided)(noise, np.int32(20), {"label": np.full(2, 1, np.int32)}).x0
    np.testing.assert_allclose(out, (np.clip(x0, -1, 1) + 1) / 2, atol=1e-4)
    assert np.abs(out - draw(labelled, 2, **call)).max() > 1e-2


@pytest.fixture(scope="module")
def guided():
    """One of our models with label dropout, whose config guides with a scale of 3."""
    return pipeline(network__num_classes=4, network__label_dropout=0.1, sample__solver="ddim", sample__batch_size=4,
                    sample__guidance__name="classifier_free", sample__guidance__scale=3.0)


def test_guidance_of_a_run_is_what_the_programs_draw(guided):
    """--mode=sample, evaluation and previews use build.generate."""
    drawn = draw(guided, 4)
    x, = build.generate(guided.config, build.model(guided.config))(guided.params, 0, 0, 4)
    np.testing.assert_array_equal(drawn, (x + 1) / 2)
    plain, weak = draw(guided, 4, guidance_scale=1), draw(guided, 4, guidance_scale=1.5)
    assert min(np.abs(plain - drawn).max(), np.abs(weak - drawn).max(), np.abs(weak - plain).max()) > 1e-2
    assert len(guided._samplers) == 2  # scales share one, and none is the other
    np.testing.assert_array_equal(draw(guided, 4, guidance_scale=3.0, unconditional_label=4), drawn)
    unguided = DiffusionPipeline(config_lib.override(guided.config, {"sample.guidance.name": "none"}), guided.params)
    np.testing.assert_array_equal(draw(unguided, 4), plain)
    np.testing.assert_array_equal(draw(unguided, 4, guidance_scale=3.0), drawn)
    assert np.abs(draw(guided, 4, guidance_scale=1, class_labels=4) - plain).max() > 1e-2  # of no class
    with pytest.raises(ConfigError, match="= 3: is a class of this model. The label for no class is 4"):
        guided(4, guidance_scale=3.0, unconditional_label=3)


def test_the_label_for_no_class_is_no_class_that_is_drawn(labelled):
    """As in a diffusers model whose last label means no class: images cycle through the other labels."""
    call = dict(num_inference_steps=2, sampler="ddim", unconditional_label=3)
    three = draw(labelled, 4, class_labels=[0, 1, 2, 0], **call)
    np.testing.assert_array_equal(draw(labelled, 4, **call), three)
    config = config_lib.override(labelled.config, {"sample.guidance.null_label": 3})
    model = build.model(config)
    assert build.classes(config, model).tolist() == [0, 1, 2]
    assert build.classes(config, model, [3, 1]).tolist() == [3, 1]
    for chosen in ([], [4], [-1]):
        with pytest.raises(ConfigError, match=r"labels of the model, 0 .. 2, or 3 for no class; got"):
            build.classes(config, model, chosen)
    with pytest.raises(ConfigError, match="= 4: is not a label of the model, which has 0 .. 3"):
        labelled(1, unconditional_label=4)


def test_a_learned_variance_is_sampled():
    pipe = pipeline(learned_range=True, sample__variance="learned_range")
    assert np.isfinite(draw(pipe, 2)).all()


@pytest.mark.parametrize("arguments, message", [
    (dict(num_inference_steps=21), r"config.sample.steps = 21: must lie in 1 .. 20"),
    (dict(sampler="dmi"), "config.sample.solver = 'dmi' is not known. Did you mean '"),
    (dict(sampler="ddim", eta=2.0), "config.sample.eta = 2.0"),
    (dict(eta=0.5), "this call: config.sample.eta is a key of sample.solver = ddim"),
    (dict(dtype="float16"), "config.network.dtype = 'float16' is not known"),
    (dict(output_type="pt"), "output_type = 'pt' is not known"),
    (dict(initial_noise=np.zeros((1, 3, 8, 8))), r"\[1, 8, 8, 3\], got \[1, 3, 8, 8\]"),
    (dict(class_labels=1), "the model is unconditional"),
    (dict(guidance_scale=2.0), "guides towards a label or another condition, but the model has none"),
    (dict(unconditional_label=1), "is a label, and the model has none"),
])
def test_arguments_that_cannot_be(pipe, arguments, message):
    with pytest.raises(ConfigError, match=message):
        pipe(**arguments)


@pytest.mark.parametrize("labels, message", [
    ([0, 4], r"labels of the model, 0 .. 3; got 4"), (-1, "0 .. 3; got -1"),
    *((labels, "one integer or 2 of them") for labels in ([0, 1, 2], 0.5, "a", True, 10**30, {}, [], [[1, 2]],
                                                          [[1], [2, 3]]))])
def test_labels_that_cannot_be(labelled, labels, message):
    with pytest.raises(ConfigError, match=message):
        labelled(2, class_labels=labels)


def test_images_of_two_channels_are_no_pictures():
    pipe = pipeline(data__channels=2)
    with pytest.raises(ConfigError, match="Images of 2 channels are not pictures"):
        pipe()
    assert draw(pipe, 1, 2).shape == (1, 8, 8, 2)


def test_fourier_networks_are_loaded_but_not_sampled_from():
    with pytest.raises(ConfigError, match="the times of others begin at 0"):
        pipeline(network__embedding="fourier")()


def test_the_package_has_no_other_names():
    with pytest.raises(AttributeError, match="no attribute 'Pipeline'"):
        diffusion.Pipeline


# ---- there and back -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes", [
    dict(network__num_classes=4, network__scale_shift=True, network__downsample=("resblock",),
         network__head_channels=8),
    dict(learned_range=True, sample__variance="learned_range", process__name="cosine", process__offset=0.02,
         sample__spacing="trailing"),
    dict(data__channels=1, prediction="v", process__name="cosine", sample__solver="ddim", sample__steps=7),
])
def test_saved_and_loaded_it_is_the_same_model(changes, tmp_path):
    pipe = pipeline(**changes)
    pipe.save_pretrained(tmp_path / "saved")
    back = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, pipe.params, jax.tree.map(np.asarray, back.params))
    # What a DDIM call does in diffusers' models, and not in ours: docs/interop.md.
    theirs = {"sample.rederive_eps": False}
    if pipe.config.sample.solver == "ddim":
        theirs["sample.constant_stride"] = True
    same = DiffusionPipeline(config_lib.override(pipe.config, theirs), pipe.params)
    np.testing.assert_array_equal(draw(back, 2, 6), draw(same, 2, 6))


def test_what_was_saved_is_diffusers_layout(saved):
    files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    assert files == ["README.md", "model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
    assert json.loads((saved / "model_index.json").read_text()) == {
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"]}
    assert "DDPMPipeline.from_pretrained" in (saved / "README.md").read_text()


def test_a_flat_folder_is_read(saved, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in ("unet/config.json", "scheduler/scheduler_config.json", WEIGHTS):
        shutil.copy(saved / name, flat)
    one, two = (DiffusionPipeline.from_pretrained(path) for path in (saved, flat))
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert one.config == two.config


def test_the_average_of_a_training_is_read(saved, tmp_path):
    """unet_ema/ of diffusers' training scripts, whose config.json also has the average's own keys."""
    shutil.copytree(saved / "unet", saved / "unet_ema")
    edit(saved / "unet_ema/config.json", decay=0.9999, optimization_step=100, _class_name="UNet2DModel", dropout=0.5)
    with pytest.warns(UserWarning, match="also has unet_ema/, .* weights='unet_ema' loads the average"):
        assert pretrained.load(saved).config.network.dropout == 0
    with pytest.warns(UserWarning, match="ignored, as .* since a UNet2DModel has no .*decay, optimization_step"):
        assert pretrained.load(saved, weights="unet_ema").config.network.dropout == 0.5
        shutil.rmtree(saved / "unet")
        pipe = DiffusionPipeline.from_pretrained(saved)
    assert pipe.config.network.dropout == 0.5
    with pytest.raises(CheckpointError, match="has no 'unet' to take weights from. It has: unet_ema"):
        pretrained.load(saved, weights="unet")


def test_overrides(saved):
    pipe = DiffusionPipeline.from_pretrained(saved, overrides={"sample.steps": 3, "network.heads": 2})
    assert (pipe.config.sample.steps, pipe.config.network.heads) == (3, 2)
    with pytest.raises(ConfigError, match="Unknown config key 'sample.step'. Did you mean 'sample.steps'"):
        DiffusionPipeline.from_pretrained(saved, overrides={"sample.step": 3})


def test_heads_that_a_file_does_not_give_are_diffusers_with_a_warning(saved):
    settings = json.loads((saved / "unet/config.json").read_text())
    del settings["attention_head_dim"]
    (saved / "unet/config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match="no attention_head_dim. diffusers then takes heads of 8 channels.*null"):
        assert DiffusionPipeline.from_pretrained(saved).config.network.head_channels == 8


# ---- bad input ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("source", ["no/such/folder/here", "../../no/etc", "/no/such", "nothing", "a/..",
                                    "owner/na me"])
def test_no_folder_and_no_name_on_the_hub(source):
    with pytest.raises(CheckpointError, match=re.escape(f"There is no folder {pathlib.Path(source)}, and it is no "
                                                        "name")):
        DiffusionPipeline.from_pretrained(source)


def test_a_name_on_the_hub_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"install the extra: pip install diffusion\[hub\]"):
        DiffusionPipeline.from_pretrained("google/ddpm-cifar10-32")


def test_offline_the_error_says_how_to_pass_a_folder(monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="hf download google/ddpm-nowhere --local-dir DIR"):
        DiffusionPipeline.from_pretrained("google/ddpm-nowhere")


def test_what_the_hub_has_cached_is_used_offline(saved, tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")
    repo = tmp_path / "cache" / "models--google--ddpm-tiny"
    shutil.copytree(saved, repo / "snapshots" / ("0" * 40))
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert DiffusionPipeline.from_pretrained("google/ddpm-tiny").config.data.size == 8


def edit(file: pathlib.Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def remove(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize("damage, message", [
    (remove(WEIGHTS),
     "has no weights: diffusion_pytorch_model.safetensors or .*bin is needed, but it has: config.json"),
    (remove("unet/config.json"), "unet/config.json is missing. A model in diffusers' layout has"),
    (remove("scheduler/scheduler_config.json"), "scheduler_config.json is missing"),
    (lambda f: edit(f / "model_index.json", _class_name="StableDiffusionPipeline"),
     "model_index.json: _class_name = 'StableDiffusionPipeline' is not supported. It can be one of: DDPMPipeline"),
    (lambda f: edit(f / "model_index.json", _class_name=["DDPMPipeline"]), "_class_name = .'DDPMPipeline'. is not"),
    (lambda f: edit(f / "unet/config.json", _class_name="UNet2DConditionModel"), "describes a UNet2DConditionModel"),
    (lambda f: edit(f / "scheduler/scheduler_config.json", _class_name="VQDiffusionScheduler"),
     "describes a VQDiffusionScheduler, which is not supported. The schedulers are"),
    (lambda f: edit(f / "unet/config.json", block_out_channels=[16]), "do not fit the network.*another shape"),
    (lambda f: edit(f / "unet/config.json", layers_per_block=2), "of .* tensors are missing: down_blocks.0.resnets.1"),
    (lambda f: edit(f / "unet/config.json", norm_num_groups=3), r"network.groups = 3: must divide the channels"),
    (lambda f: edit(f / "unet/config.json", block_out_channels=[0, 8]), r"block_out_channels = \[0, 8\] is not supp"),
    (lambda f: (f / "unet/config.json").write_text("{"), "unet/config.json cannot be read: "),
    (lambda f: (f / "unet/config.json").write_text("[1]"), "it holds .1., but an object is needed"),
    (lambda f: (f / "scheduler/scheduler_config.json").write_text("[" * 10**5), "nested more than 50 deep"),
    (lambda f: (f / "model_index.json").write_text('{"a":' * 10**5), "nested more than 50 deep"),
    (lambda f: os.truncate(f / WEIGHTS, 5000), "diffusion_pytorch_model.safetensors"),
])
def test_a_damaged_folder_is_one_clear_error(saved, damage, message):
    damage(saved)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        DiffusionPipeline.from_pretrained(saved)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_bin_is_not_executed(saved, tmp_path):
    (saved / WEIGHTS).unlink()
    (saved / "unet/diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm"), protocol=2))
    with pytest.raises(CheckpointError, match="diffusion_pytorch_model.bin"):
        DiffusionPipeline.from_pretrained(saved)
    assert not (tmp_path / "harm").exists()


def test_a_file_is_no_folder(saved):
    with pytest.raises(CheckpointError, match="is a file. Name the folder of the model"):
        DiffusionPipeline.from_pretrained(saved / WEIGHTS)


def test_a_checkpoint_of_what_has_none(saved):
    with pytest.raises(ConfigError, match="it has no checkpoint 5, but one set of weights"):
        DiffusionPipeline.from_pretrained(saved, checkpoint=5)


def test_a_full_folder_is_not_written_to(pipe, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already. Nothing was changed"):
        pipe.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_save_leaves_nothing(pipe, tmp_path, monkeypatch):
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write_safetensors", fails)
    with pytest.raises(CheckpointError, match="could not be written: the disk is full"):
        pipe.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_what_diffusers_cannot_express_is_named_and_nothing_is_written(tmp_path):
    pipe = pipeline(network__heads=2, network__multipliers=(1, 2),
                    network__attention_resolutions=(8, 4))
    with pytest.raises(CheckpointError, match="heads = 2 fixes their number"):
        pipe.save_pretrained(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
