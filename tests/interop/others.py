"""The small models of tests/golden/{openai,score_sde,edm}.npz: what the programs that make them and the tests that read
them must agree on. Weights and inputs are drawn by a rule (tests/networks/random_params.py), from names and shapes.
"""
import functools
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.conditions import examples
from diffusion.families import BY_NAME

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS / "networks"))
from random_params import unit  # noqa: E402

SEED = 20210218
TIMES = (0.0, 1.0, 250.5, 999.0)     # labels of the discrete models
C_NOISE = (-1.55, -0.3, 0.2, 1.09)   # of EDM: ln(sigma) / 4 for sigma = 0.002 .. 80
LABELS = (7, 0, 9, 3)
STRIDE = 41                          # every so many values of an output are kept

IMPROVED, GUIDED = "improved-diffusion", "guided-diffusion"
SMALL = dict(num_channels="32", num_res_blocks="1", diffusion_steps="1000")
OPENAI = {  # name -> (codebase, flags)
    "improved, defaults": (IMPROVED, SMALL | dict(image_size="32")),
    "improved, learned variance, labels": (IMPROVED, SMALL | dict(
        image_size="32", learn_sigma="True", class_cond="True", num_heads="1", num_res_blocks="2")),
    "improved, only shifts, attention at one level": (IMPROVED, SMALL | dict(
        image_size="32", use_scale_shift_norm="False", attention_resolutions="8", num_heads="2")),
    "guided, 64, three levels with attention": (GUIDED, SMALL | dict(
        image_size="64", attention_resolutions="32,16,8", num_head_channels="16", resblock_updown="True",
        use_new_attention_order="True", learn_sigma="True")),
    "guided, resampling blocks, old order": (GUIDED, SMALL | dict(
        image_size="16", channel_mult="1,2", attention_resolutions="16,8", num_heads="4", resblock_updown="True",
        class_cond="True", learn_sigma="True")),
    "guided, resampling blocks, new order": (GUIDED, SMALL | dict(
        image_size="16", channel_mult="1,2", attention_resolutions="8", num_heads="4", resblock_updown="True",
        use_new_attention_order="True")),
    "guided, convolutions, old order by channels": (GUIDED, SMALL | dict(
        image_size="16", channel_mult="1,1,2", attention_resolutions="8,4", num_head_channels="16",
        use_scale_shift_norm="False", num_res_blocks="2")),
}
# The flags of the published models, as their READMEs give them; only their parameters are counted.
PUBLISHED = {
    "imagenet64_cond_270M_250K": (IMPROVED, "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True "
                                  "--class_cond True --diffusion_steps 4000 --noise_schedule cosine "
                                  "--rescale_learned_sigmas False --rescale_timesteps False --lr 3e-4"),
    "lsun_uncond_100M_1200K_bs128": (IMPROVED, "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 "
                                     "--learn_sigma True --use_scale_shift_norm False --attention_resolutions 16 "
                                     "--diffusion_steps 1000 --noise_schedule linear --rescale_learned_sigmas False "
                                     "--rescale_timesteps False --lr 1e-4 --batch_size 128"),
    "64x64_diffusion": (GUIDED, "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout "
                        "0.1 --image_size 64 --learn_sigma True --noise_schedule cosine --num_channels 192 "
                        "--num_head_channels 64 --num_res_blocks 3 --resblock_updown True "
                        "--use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"),
    "128x128_diffusion": (GUIDED, "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 "
                          "--image_size 128 --learn_sigma True --noise_schedule linear --num_channels 256 "
                          "--num_heads 4 --num_res_blocks 2 --resblock_updown True --use_fp16 True "
                          "--use_scale_shift_norm True"),
    "256x256_diffusion_uncond": (GUIDED, "--attention_resolutions 32,16,8 --class_cond False --diffusion_steps 1000 "
                                 "--image_size 256 --learn_sigma True --noise_schedule linear --num_channels 256 "
                                 "--num_head_channels 64 --num_res_blocks 2 --resblock_updown True --use_fp16 True "
                                 "--use_scale_shift_norm True"),
}
CHAINS = {  # name -> flags of improved-diffusion, of a chain with a network that is a formula
    "large": dict(diffusion_steps="40"),
    "small, respaced": dict(diffusion_steps="100", sigma_small="True", timestep_respacing="8"),
    "learned range, cosine, respaced": dict(diffusion_steps="60", learn_sigma="True", noise_schedule="cosine",
                                            timestep_respacing="12"),
    "x0, not clipped": dict(diffusion_steps="40", predict_xstart="True", clip_denoised="False"),
    "ddim": dict(diffusion_steps="100", use_ddim="True", timestep_respacing="ddim10", noise_schedule="cosine"),
    "ddim, learned range": dict(diffusion_steps="100", use_ddim="True", timestep_respacing="20", learn_sigma="True"),
}
CHAIN_SHAPE = (2, 4, 4, 3)

SCORE_SDE = {
    "two levels": {"data.image_size": 16, "model.nf": 32, "model.ch_mult": (1, 2), "model.num_res_blocks": 1,
                   "model.attn_resolutions": (8,)},
    "as cifar10": {"data.image_size": 32, "model.nf": 32, "model.ch_mult": (1, 2, 2, 2), "model.num_res_blocks": 2},
    "attention at two levels, one channel": {
        "data.image_size": 16, "data.num_channels": 1, "model.nf": 64, "model.ch_mult": (1, 1, 2),
        "model.num_res_blocks": 2, "model.attn_resolutions": (16, 4), "model.dropout": 0.0},
    "no attention but in the middle": {"data.image_size": 8, "model.nf": 32, "model.ch_mult": (2, 1),
                                       "model.num_res_blocks": 1, "model.attn_resolutions": ()},
}

NCSNPP = {  # of models/ncsnpp.py
    "NCSN++, VE": {"data.image_size": 16, "model.nf": 16, "model.ch_mult": (1, 2, 2), "model.num_res_blocks": 1,
                   "model.attn_resolutions": (8,)},
    "DDPM++, sub-VP": {"training.sde": "subvpsde", "data.image_size": 8, "model.nf": 16, "model.ch_mult": (1, 2),
                       "model.num_res_blocks": 2, "model.attn_resolutions": (4,), "model.dropout": 0.0},
    "skips, VE": {"data.image_size": 8, "data.num_channels": 1, "model.nf": 16, "model.ch_mult": (1, 1),
                  "model.num_res_blocks": 1, "model.attn_resolutions": (), "model.progressive": "output_skip",
                  "model.progressive_input": "input_skip"},
}
LEVELS = (0.01, 0.5, 3.0, 50.0)      # their noise levels

EDM = {
    "two levels, labels": dict(img_resolution=8, in_channels=3, out_channels=3, label_dim=10, model_channels=128,
                               channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8, 4]),
    "EDMPrecond": dict(img_resolution=8, img_channels=1, model_type="DhariwalUNet", model_channels=128,
                       channel_mult=[1, 1], num_blocks=2, attn_resolutions=[4], dropout=0.1, use_fp16=True),
    "augmentation, two outputs": dict(img_resolution=8, in_channels=3, out_channels=6, augment_dim=9,
                                      model_channels=128, channel_mult=[1, 1, 2], channel_mult_emb=2, num_blocks=1,
                                      attn_resolutions=[]),
}
SONG = {
    "DDPM++": dict(img_resolution=8, in_channels=3, out_channels=3, label_dim=10, augment_dim=9, model_channels=16,
                   channel_mult=[2, 2], num_blocks=2, attn_resolutions=[4], dropout=0.1),
    "NCSN++": dict(img_resolution=16, in_channels=3, out_channels=3, label_dim=10, augment_dim=9, model_channels=16,
                   channel_mult=[1, 2, 2], num_blocks=1, attn_resolutions=[8], embedding_type="fourier",
                   channel_mult_noise=2, encoder_type="residual", resample_filter=[1, 3, 3, 1]),
    "skips": dict(img_resolution=16, img_channels=1, model_type="SongUNet", class_name="EDMPrecond", model_channels=8,
                  channel_mult=[1, 3], channel_mult_emb=2, num_blocks=1, attn_resolutions=[16, 8],
                  encoder_type="skip", decoder_type="skip", resample_filter=[1, 3, 3, 1], use_fp16=True),
}
# The arguments of the network in edm_pickle.pkl.
PICKLED = dict(img_resolution=8, img_channels=3, label_dim=3, augment_dim=9, model_type="SongUNet", model_channels=8,
               channel_mult=[1, 1], channel_mult_emb=2, num_blocks=1, attn_resolutions=[4], dropout=0.13,
               use_fp16=False, embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
               resample_filter=[1, 3, 3, 1])
# The networks of EDM's README and of Song et al. (2021, the deep ones have 8 blocks), whose parameters are counted.
_DDPMPP = dict(in_channels=3, out_channels=3, model_type="SongUNet")
_NCSNPP = _DDPMPP | dict(embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
                       resample_filter=[1, 3, 3, 1])
SONG_PUBLISHED = {
    **{f"cifar10, {cond}, {name}": kind | dict(img_resolution=32, channel_mult=[2, 2, 2], augment_dim=9,
                                               label_dim=classes)
       for name, kind in (("vp", _DDPMPP), ("ve", _NCSNPP)) for cond, classes in (("uncond", 0), ("cond", 10))},
    **{f"64 pixels, {name}": kind | dict(img_resolution=64, channel_mult=[1, 2, 2, 2], augment_dim=9)
       for name, kind in (("vp", _DDPMPP), ("ve", _NCSNPP))},
    **{f"Song et al., {name}{deep}": kind | dict(img_resolution=32, num_blocks=blocks)
       for name, kind in (("DDPM++", _DDPMPP), ("NCSN++", _NCSNPP)) for deep, blocks in (("", 4), (", deep", 8))},
}


def flags_of(line: str) -> dict[str, str]:
    """"--image_size 64 --learn_sigma True" -> {"image_size": "64", "learn_sigma": "True"}."""
    words = line.split()
    return {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of these names: kernels of variance 1/fan-in, norms' scales around one, biases around zero."""
    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        u, kind = unit(name, shape, SEED), re.split(r"[./]", name)[-1]
        if kind == "resample_filter":  # no weight
            taps = np.array([1, 3, 3, 1] if shape[-1] == 4 else [1, 1], np.float32)
            return (np.outer(taps, taps) / taps.sum() ** 2).reshape(shape)
        if kind == "freqs" or "FourierProjection" in name:
            return u
        if kind in ("bias", "b"):
            return np.float32(0.25) * u
        if kind == "scale" or (kind == "weight" and len(shape) == 1):
            return 1 + np.float32(0.25) * u
        # PyTorch's [out, in, ...], Flax's [..., in, out]
        fan_in = shape[1:] if kind == "weight" and "/" not in name else shape[:-1]
        return u / np.float32(np.sqrt(np.prod(fan_in)))

    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}


def images(size: int, channels: int) -> np.ndarray:
    """[4, size, size, channels]."""
    return unit("images", (len(TIMES), size, size, channels), SEED)


def augment_labels() -> np.ndarray:
    """[4, 9]."""
    return unit("augment", (len(TIMES), 9), SEED)


def chain_noise(steps: int) -> np.ndarray:
    """x at the start, then the noise of each step, [1 + steps, B, H, W, C]."""
    return unit("noise", (1 + steps, *CHAIN_SHAPE), SEED)


def kept(output: np.ndarray) -> np.ndarray:
    """[B, H, W, C] -> the values that are stored."""
    return np.asarray(output, np.float32).ravel()[::STRIDE]


# ---- files ---------------------------------------------------------------------------------------------------------

def save(file: str, shapes: dict[str, dict], arrays: dict[str, np.ndarray], made_with: str) -> None:
    """shapes: {case: {name of a tensor: its shape}}."""
    path = TESTS / "golden" / file
    shapes = {case: {name: list(shape) for name, shape in tensors.items()} for case, tensors in shapes.items()}
    np.savez_compressed(path, **arrays, shapes=json.dumps(shapes), made_with=made_with)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1000:.1f} kB; {made_with}")


def load(file: str) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    with np.load(TESTS / "golden" / file) as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads(str(arrays.pop("shapes"))), arrays


# ---- our side ------------------------------------------------------------------------------------------------------

def network_of(sections: dict, **fields):
    """Our network, without its augmentation label unless it is a field."""
    keys, channels = sections["network"], sections["data"]["channels"]
    return BY_NAME["network"].member(keys["name"]).make(
        **{key: value for key, value in keys.items() if key != "name"} | fields,
        out_channels=channels * (1 + sections["learned_range"]))


def abstract_of(sections: dict, **fields) -> dict:
    return _abstract(network_of(sections, **fields), sections["data"]["size"], sections["data"]["channels"])


@functools.cache
def _abstract(network, size: int, channels: int) -> dict:
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, channels)), jnp.ones((1,)),
                          examples(network.cond, 1))["params"]


def output_of(sections: dict, params: dict, c_noise: tuple[float, ...], **fields) -> np.ndarray:
    network, data = network_of(sections, **fields), sections["data"]
    values = {"label": np.asarray(LABELS, np.int32), "augment": augment_labels()}
    run = jax.jit(network.apply)
    return np.asarray(run({"params": params}, images(data["size"], data["channels"]), np.asarray(c_noise, np.float32),
                          {name: values[name] for name in network.cond}))
