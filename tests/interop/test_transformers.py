"""State dicts of DiT, SiT and JiT: their outputs by our networks, what is recognised, and what is refused."""
import pathlib

import jax
import numpy as np
import pytest
from networks import golden_dit, golden_jit
from networks.random_params import random_params

from diffusion import DiffusionPipeline, build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError
from diffusion.interop import transformers
from diffusion.interop.tensor_files import write_safetensors
from diffusion.pretrained import parse_settings

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SMALL = "hidden_size=48 num_heads=4 depth=2 patch_size=2 image_size=64 num_classes=10"
SETTINGS = {"DiT": SMALL, "SiT": SMALL, "JiT": "hidden_size=40 num_heads=2 depth=4 patch_size=4 img_size=16 "
            "class_num=10 bottleneck_dim=8 in_context_len=3 in_context_start=1 noise_scale=2.0"}


def state_of(kind: str) -> dict[str, np.ndarray]:
    """The weights of the golden file, with the fixed positions that the authors' files also have."""
    state = golden_dit.state_dict() if kind == "DiT" else golden_jit.state_dict(kind.lower())
    return state | {"pos_embed": transformers.fixed_positions(40 if kind == "JiT" else 48, 4).astype(np.float32)}


def settings_of(kind: str) -> dict:
    return parse_settings(SETTINGS[kind])


def sections(kind: str, **changes):
    found = transformers.read_settings(settings_of(kind) | changes, "settings", kind=kind)
    return config_lib.adopted(found, "settings")


def read(kind: str, state: dict, **changes) -> dict:
    abstract = build.model(sections(kind, **changes)).shapes["params"]
    return transformers.read_params(abstract, state, "model.pt", settings=settings_of(kind) | changes, kind=kind)


@pytest.mark.parametrize("kind", SETTINGS)
def test_output_is_that_of_the_original(kind):
    """Up to the sign of SiT's velocity."""
    model, params = build.model(sections(kind)), read(kind, state_of(kind))
    case = golden_dit if kind == "DiT" else golden_jit
    images = case.images() if kind == "DiT" else case.images(kind.lower())
    found = jax.jit(model.network.apply)({"params": params}, images, np.float32(case.TIMES),
                                         {"label": np.array(case.LABELS)})
    theirs = np.load(GOLDEN / f"{kind.lower()}.npz")["output"] * (-1 if kind == "SiT" else 1)
    assert np.abs(found - theirs).max() < 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_leaf_is_read_from_its_place(kind):
    network, shape = (golden_dit.NETWORK, golden_dit.IMAGE_SHAPE) if kind == "DiT" else (
        golden_jit.NETWORKS[kind.lower()], golden_jit.SHAPES[kind.lower()])
    ours = random_params(network, shape, golden_dit.SEED if kind == "DiT" else golden_jit.SEED)
    if kind == "SiT":
        ours["pixels"] = jax.tree.map(lambda x: -x, ours["pixels"])
    jax.tree.map(np.testing.assert_array_equal, read(kind, state_of(kind)), ours)


def test_what_the_names_and_shapes_tell():
    for kind, kinds in (("DiT", ("DiT", "SiT")), ("SiT", ("DiT", "SiT")), ("JiT", ("JiT",))):
        wrapped = {f"module.net.{name}": value for name, value in state_of(kind).items()}
        found, sizes = transformers.recognised(wrapped, "model.pt")
        assert found == kinds
        told = {key: value for key, value in settings_of(kind).items() if key in sizes}
        assert sizes == told | {"in_channels": 3 if kind == "JiT" else 4}
        assert set(settings_of(kind)) - set(told) <= {"num_heads", "noise_scale", "in_context_start"}
    published = {name: sizes for name, sizes in transformers.MODELS.items() if name in ("DiT-XL/2", "JiT-H/32")}
    assert published["JiT-H/32"] == dict(hidden_size=1280, depth=32, num_heads=16, bottleneck_dim=256,
                                         in_context_start=10, in_context_len=32, patch_size=32)


def lacking(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("kind, change, changes, words", [
    ("DiT", lambda s: state_of("JiT"), {}, "the weights of JiT, but its layout is said to be DiT: use layout=JiT"),
    ("JiT", lambda s: state_of("DiT"), {}, "DiT or SiT, but its layout is said to be JiT"),
    ("DiT", lambda s: {"conv_in.weight": np.zeros(3)}, {}, "not a state dict of DiT, SiT or JiT.*conv_in.weight"),
    ("DiT", lambda s: s, {"depth": 3}, "no published size, and not of these settings: depth is 2, not 3"),
    ("SiT", lambda s: s, {"num_classes": 1000}, "num_classes is 10, not 1000"),
    ("JiT", lambda s: s, {"img_size": 32}, "img_size is 16, not 32"),
    ("DiT", lambda s: lacking(s, "blocks.1.mlp.fc2.bias"), {}, "1 of 31 tensors are missing: blocks.1.mlp.fc2.bias"),
    ("JiT", lambda s: s | {"blocks.1.mlp.w3.weight": np.zeros((40, 99))}, {}, "blocks.1.mlp.w3.weight .40, 99..*need"),
    ("SiT", lambda s: s | {"pos_embed": 0 * s["pos_embed"]}, {}, "pos_embed is not the table"),
    ("DiT", lambda s: s, {"model": "JiT-B/16"}, "model = JiT-B/16 is not a DiT.*DiT-XL/2"),
    ("DiT", lambda s: s, {"noise_scale": 2.0}, "DiT has no setting noise_scale. It has: model"),
    ("SiT", lambda s: s, {"path_type": "VP"}, "path_type = 'VP' is not supported"),
    ("JiT", lambda s: s, {"num_heads": 4.5}, "num_heads = 4.5")])
def test_what_does_not_fit_is_named(kind, change, changes, words):
    with pytest.raises(CheckpointError, match=words):
        read(kind, change(state_of(kind)), **changes)


def test_weights_of_a_published_size_are_called_by_its_name():
    """A JiT-L/32 given as the default, JiT-B/16."""
    sizes = transformers.MODELS["JiT-L/32"]
    state = {"x_embedder.proj1.weight": np.zeros((128, 3, 32, 32)), "final_layer.linear.weight": np.zeros((3072, 1024)),
             "y_embedder.embedding_table.weight": np.zeros((1001, 1024)), "blocks.0.attn.q_norm.weight": np.zeros(64),
             "in_context_posemb": np.zeros((1, 32, 1024))} | {f"blocks.{i}.x": np.zeros(1) for i in range(24)}
    found, told = transformers.recognised(state, "model.pt")
    assert found == ("JiT",) and {key: told[key] for key in sizes} == sizes
    with pytest.raises(CheckpointError, match="has the weights of JiT-L/32, and not of these settings: hidden_size is"):
        transformers.read_params({}, state, "model.pt", settings={}, kind="JiT")


def test_the_pipeline_samples_them(tmp_path):
    """By the authors' flags: images of JiT, latents of SiT in the autoencoder's units."""
    for kind, flags, shape in (("JiT", "--num_sampling_steps 2 --cfg 2.0 --interval-min 0.1", (16, 16, 3)),
                               ("SiT", "", (8, 8, 4))):
        write_safetensors(tmp_path / f"{kind}.pt", state_of(kind), {})
        pipe = DiffusionPipeline.from_pretrained(tmp_path / f"{kind}.pt", layout=kind,
                                                 settings=f"{SETTINGS[kind]} {flags}")
        c = pipe.config
        assert c.process.network_time == "data" and c.network.class_tokens == (3 if kind == "JiT" else 0)
        if kind == "JiT":
            assert (c.sample.guidance.scale, c.sample.least_noise) == (2.0, 0.05)
            assert c.sample.guidance.interval_high == pytest.approx(2 * 9, rel=2e-3)
            image = pipe(2, 2, output_type="np", progress_bar=False).images
            assert image.shape == (2, *shape) and np.isfinite(image).all()
