"""improved-diffusion and guided-diffusion: their flags and state dicts give their outputs, times and chains."""
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.core import numerics, parameterization
from diffusion.errors import CheckpointError
from diffusion.interop import openai

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import others  # noqa: E402
from others import GUIDED, IMPROVED, OPENAI, SMALL  # noqa: E402


@pytest.fixture(scope="module")
def golden():
    return others.load("openai.npz")


def read(case: str) -> tuple[dict, dict, dict]:
    """(flags, sections, abstract parameters)."""
    codebase, flags = OPENAI[case]
    sections = openai.read_settings(flags, "flags", codebase=codebase)
    return flags, sections, others.abstract_of(sections)


# ---- what is theirs ------------------------------------------------------------------------------------------------

# Together these have each option of the networks; the slow ones are the others.
QUICK = ("improved, learned variance, labels", "guided, resampling blocks, new order",
         "guided, convolutions, old order by channels", "imagenet64_cond_270M_250K", "64x64_diffusion")
slow_unless_quick = lambda cases: [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow)  # noqa: E731
                                   for case in cases]


@pytest.mark.parametrize("case", slow_unless_quick(OPENAI))
def test_output_is_that_of_the_original(golden, case):
    shapes, arrays = golden
    flags, sections, abstract = read(case)
    params = openai.read_params(abstract, others.random_state(shapes[case]), "state dict", settings=flags)
    out = others.output_of(sections, params, others.TIMES)
    # Float32 on both sides, sums in another order.
    np.testing.assert_allclose(others.kept(out), arrays[case], rtol=0, atol=1e-5 * np.abs(arrays[case]).max())
    assert np.abs(out[0] - out[3]).max() > 1e-2  # the times matter


@pytest.mark.parametrize("case", OPENAI)
def test_the_sections_can_be_built(case):
    config = config_lib.adopted(read(case)[1], "flags")
    network = build.network(config.network, config.data.size, 3 * (1 + config.learned_range))
    assert network == others.network_of(read(case)[1]).clone(dtype=network.dtype)
    build.grid(config.sample, build.process(config.process))


@pytest.mark.parametrize("case", slow_unless_quick(others.PUBLISHED))
def test_the_published_models_have_their_numbers_of_parameters(golden, case):
    codebase, line = others.PUBLISHED[case]
    abstract = others.abstract_of(openai.read_settings(others.flags_of(line), case, codebase=codebase))
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == golden[1][f"parameters of {case}"]


@pytest.mark.parametrize("case", others.CHAINS)
def test_schedule_times_and_chain_are_those_of_the_original(golden, case, monkeypatch):
    flags = others.CHAINS[case] | dict(image_size=32, rescale_timesteps=False)
    config = config_lib.adopted(openai.read_settings(flags, "flags", codebase=IMPROVED), "flags")
    process = build.process(config.process)
    steps = build.grid(config.sample, process)
    np.testing.assert_array_equal(steps[::-1, 0] - 1, golden[1][f"times {case}"])

    def network(params, x, label, cond, keys):
        out = jnp.tanh(x + label[:, None, None, None] / 1000)
        return {"f": out, "variance": jnp.sin(3 * x)} if config.learned_range else out

    prediction = build.prediction(config)
    diffusion = parameterization.make_denoiser(lambda params: process, prediction, network)({})
    if config.sample.clip:
        diffusion = parameterization.clip_x0(diffusion, config.sample.clip_range,
                                             rederive_eps=config.sample.rederive_eps)
    noise = iter(others.chain_noise(len(steps)))
    x = jnp.asarray(next(noise))
    monkeypatch.setattr(numerics, "normal", lambda keys, shape, dtype: next(noise))
    solver = build.solver(config.sample)
    carry = solver.init(x)
    for t, t_next in steps:
        carry, x = solver.step(carry, x, int(t), int(t_next), diffusion, None, None)
    np.testing.assert_allclose(x, golden[1][f"chain {case}"], rtol=0, atol=2e-5)


def test_attention_has_two_orders_of_rows(golden):
    """The same weights in the other order are another network."""
    case = "guided, resampling blocks, new order"
    flags, sections, abstract = read(case)
    state = others.random_state(golden[0][case])
    new = openai.read_params(abstract, state, "state dict", settings=flags)
    old = openai.read_params(abstract, state, "state dict", settings=flags | dict(use_new_attention_order=False))
    weight = state["middle_block.1.qkv.weight"][:, :, 0]  # 64 channels, 4 heads of 16
    np.testing.assert_array_equal(new["middle_attention"]["k"]["kernel"].T, weight[64:128])
    np.testing.assert_array_equal(old["middle_attention"]["k"]["kernel"].T[16:32], weight[64:80])
    np.testing.assert_array_equal(new["middle_attention"]["norm"]["scale"], old["middle_attention"]["norm"]["scale"])


# ---- flags ---------------------------------------------------------------------------------------------------------

def settings_of(codebase=GUIDED, **flags):
    return openai.read_settings(flags, "flags", codebase=codebase)


def test_defaults_are_theirs():
    sections = settings_of()
    assert sections["data"] == dict(size=64, channels=3) and not sections["learned_range"]
    assert sections["network"]["norm_epsilon"] == 1e-5  # of PyTorch; outputs tell it from 1e-6 but barely
    assert sections["network"] | dict(channels=128, multipliers=(1, 2, 3, 4), blocks=2, attention_resolutions=(16, 8),
                                      heads=4, scale_shift=True, num_classes=0) == sections["network"]
    process = dict(name="linear", steps=1000, beta_start=1e-4, beta_end=0.02)
    assert sections["process"] | process == sections["process"]
    assert sections["sample"]["variance"] == "large" and sections["sample"]["clip"] and sections["prediction"] == "eps"


def test_flags_are_read_as_on_the_command_line_or_as_values():
    text = dict(image_size="64", learn_sigma="TRUE", dropout="0.1", timestep_respacing="250", class_cond="n")
    values = dict(image_size=64, learn_sigma=True, dropout=0.1, timestep_respacing=250, class_cond=False)
    assert settings_of(**text) == settings_of(**values)


def test_the_schedule_keeps_its_shape_with_the_number_of_steps():
    process = settings_of(diffusion_steps=4000)["process"]
    assert process | dict(name="linear", steps=4000, beta_start=0.25e-4, beta_end=0.005) == process
    assert settings_of(noise_schedule="cosine")["process"]["name"] == "cosine"


@pytest.mark.parametrize("flags, expected", [
    (dict(learn_sigma=True), dict(variance="learned_range", solver="ancestral", steps=1000)),
    (dict(timestep_respacing="ddim25", use_ddim="True"), dict(solver="ddim", steps=25, spacing="leading")),
    (dict(timestep_respacing="250", clip_denoised="False"), dict(steps=250, spacing="linspace", clip=False)),
])
def test_sampling_flags(flags, expected):
    sample = settings_of(**flags)["sample"]
    assert sample | expected == sample


def test_sigma_small_is_improved_diffusions():
    assert settings_of(IMPROVED, sigma_small=True)["sample"]["variance"] == "small"
    with pytest.raises(CheckpointError, match="guided-diffusion has no flag sigma_small. It is one of improved"):
        settings_of(GUIDED, sigma_small=True)


def test_attention_resolutions_become_factors_as_they_round_them():
    assert settings_of(attention_resolutions="24")["network"]["attention_resolutions"] == (32,)  # 64 // 24 = 2
    assert settings_of(attention_resolutions="4")["network"]["attention_resolutions"] == ()      # 16: no such level


@pytest.mark.parametrize("codebase, flags, message", [
    ("openai", {}, "the codebase is improved-diffusion or guided-diffusion, not 'openai'"),
    (GUIDED, dict(num_chanels=32), "has no flag num_chanels. Did you mean num_channels?"),
    (IMPROVED, dict(resblock_updown=True), "has no flag resblock_updown. It is one of guided-diffusion"),
    (GUIDED, dict(large_size=256), "the flag large_size is not supported, since super-resolution is not"),
    (GUIDED, dict(classifier_scale=1.0), "the flag classifier_scale is not supported, since guidance by a classifier"),
    (GUIDED, dict(image_size="big"), "image_size = 'big' is not supported. It can be a whole number in 1 .. 4096"),
    (GUIDED, dict(image_size=64.0), "image_size = 64.0 is not supported. It can be a whole number in 1 .. 4096"),
    (GUIDED, dict(learn_sigma="maybe"), "learn_sigma = 'maybe' is not supported. It can be true or false"),
    (GUIDED, dict(dropout="a lot"), "dropout = 'a lot' is not supported. It can be a number"),
    (GUIDED, dict(num_res_blocks=0), "num_res_blocks = 0 is not supported. It can be a whole number in 1 .. 32"),
    (GUIDED, dict(image_size=32), "no model for image_size = 32 without the flag channel_mult. It can be one of: 64"),
    (IMPROVED, dict(image_size=128), "no model for image_size = 128. It can be one of: 32, 64, 256"),
    (GUIDED, dict(image_size=512), "channel_mult begins with 0.5"),
    (GUIDED, dict(channel_mult="2,4"), "channel_mult begins with 2"),
    (GUIDED, dict(channel_mult="1,,2"), "channel_mult = '1,,2' is not a list of 1 to 10 whole numbers"),
    (GUIDED, dict(attention_resolutions="0"), "attention_resolutions = '0' is not a list"),
    (GUIDED, dict(num_heads_upsample=8), "num_heads_upsample = 8 is not supported: our U-Net has num_heads = 4 on"),
    (GUIDED, dict(noise_schedule="sqrt"), "noise_schedule = 'sqrt' is not supported. It can be one of: linear, cosine"),
    (GUIDED, dict(timestep_respacing="10,20"), "timestep_respacing = '10,20' is not supported.*not a list of sections"),
    (GUIDED, dict(timestep_respacing="ddim30"), "the number must divide diffusion_steps = 1000"),
    (GUIDED, dict(timestep_respacing="1001"), "the model has 1000 steps"),
])
def test_a_flag_that_is_wrong_is_named(codebase, flags, message):
    with pytest.raises(CheckpointError, match="^flags: .*" + message):
        settings_of(codebase, **flags)


# ---- weights that do not fit ---------------------------------------------------------------------------------------

def test_weights_of_other_flags_are_counted_and_named(golden):
    case = "guided, resampling blocks, new order"
    codebase, flags = OPENAI[case]
    state = others.random_state(golden[0][case])
    abstract = others.abstract_of(openai.read_settings(flags | dict(attention_resolutions="16"), "", codebase=codebase))
    with pytest.raises(CheckpointError) as caught:
        openai.read_params(abstract, state, "model.pt", settings=flags)
    # 3 attentions of 6 tensors, and 10 of the resampling block, which moves up by one place.
    assert re.search(r"model.pt.*28 of 144 tensors are missing: input_blocks.1.1.norm.bias, .*, \.\.\.; "
                     r"28 of 144 tensors have no place in the network: input_blocks.3.1.norm.bias, .*, \.\.\.\. Check",
                     str(caught.value)), caught.value


def test_narrower_weights_are_named_with_their_shapes(golden):
    case = "improved, defaults"
    flags = OPENAI[case][1] | dict(num_channels="64")
    abstract = others.abstract_of(openai.read_settings(flags, "", codebase=IMPROVED))
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ tensors have another shape: input_blocks.0.0.bias "
                                              r"\[32\] \(read as \[32\], needed \[64\]\), "):
        openai.read_params(abstract, others.random_state(golden[0][case]), "model.pt", settings=flags)


def test_attention_weights_that_cannot_be_split_are_named(golden):
    case = "improved, defaults"
    flags, _, abstract = read(case)
    state = others.random_state(golden[0][case]) | {"middle_block.1.qkv.weight": np.zeros((7, 3, 1), np.float32)}
    with pytest.raises(CheckpointError, match=r"3 of \d+ .* another shape: middle_block.1.qkv.weight \[7, 3, 1\]"):
        openai.read_params(abstract, state, "model.pt", settings=flags)


@pytest.mark.parametrize("state", [{}, {"conv_in.weight": np.zeros((32, 3, 3, 3))}])
def test_another_architecture_is_refused(state):
    flags, _, abstract = read("improved, defaults")
    with pytest.raises(CheckpointError, match=r"(\d+) of \1 tensors are missing: "):
        openai.read_params(abstract, state, "model.pt", settings=flags)


def test_flags_of_training_change_nothing():
    assert settings_of(IMPROVED, **SMALL, lr="1e-4", use_kl="True", batch_size="128") == settings_of(IMPROVED, **SMALL)


@pytest.mark.parametrize("codebase, scale", [(IMPROVED, 0.25), (GUIDED, 1.0)])
def test_the_network_is_told_rescaled_times_where_the_codebase_does(codebase, scale):
    """t 1000/T in `_scale_timesteps`, with the default of each codebase; their cifar10 models have T = 4000."""
    sections = openai.read_settings(dict(image_size=64, diffusion_steps=4000), "flags", codebase=codebase)
    config = config_lib.adopted(sections, "flags")
    process = build.process(config.process)
    np.testing.assert_allclose(process.c_noise(np.array([1, 2, 4000])), np.array([0, 1, 3999]) * scale)


def test_the_config_of_imagenet_64_is_that_of_its_flags():
    """Those of guided-diffusion's README for 64 x 64, without the sampler's."""
    from configs import imagenet64_adm
    theirs = openai.read_settings(dict(
        image_size=64, attention_resolutions="32,16,8", class_cond=True, diffusion_steps=1000, dropout=0.1,
        learn_sigma=True, noise_schedule="cosine", num_channels=192, num_head_channels=64, num_res_blocks=3,
        resblock_updown=True, use_new_attention_order=True, use_fp16=True, use_scale_shift_norm=True), "flags",
        codebase="guided-diffusion")
    ours = imagenet64_adm.get_config().to_dict()
    for key, value in theirs["network"].items():
        found = ours["network"][key]
        assert (tuple(found) if isinstance(found, (list, tuple)) else found) == (
            tuple(value) if isinstance(value, (list, tuple)) else value), key
    assert ours["process"]["name"] == theirs["process"]["name"] and ours["learned_range"]
