"""Every supported setting of diffusers' UNet2DModel: its random weights in our U-Net give its output, and go back.

Needs PyTorch and diffusers: `pip install -r requirements-parity.txt`, then `pytest -m parity`.
"""
import pathlib
import sys

import jax
import numpy as np
import pytest

from diffusion.interop import unet2d
from diffusion.networks.unet import UNet

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from unet2d_configs import CONFIGS, settings  # noqa: E402

REASON = "the parity tests need PyTorch and diffusers: pip install -r requirements-parity.txt"
torch = pytest.importorskip("torch", reason=REASON)
diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.parity
torch.set_num_threads(1)  # more only wait for each other

TIMES = np.asarray([0, 1, 250, 999], np.float32)


def output(model, x, times, labels):
    times = times.astype(np.int64) if model.config.time_embedding_type == "learned" else times
    with torch.no_grad():
        out = model(torch.from_numpy(np.array(x.transpose(0, 3, 1, 2))), torch.from_numpy(times),
                    class_labels=None if labels is None else torch.from_numpy(labels)).sample
    return out.numpy().transpose(0, 2, 3, 1)


def test_there_are_at_least_thirty():
    assert len(CONFIGS) >= 30


@pytest.mark.parametrize("name", CONFIGS)
def test_output_is_diffusers_and_all_goes_back(name):
    given = settings(name)
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**given).eval()
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}

    sections = unet2d.read_settings(given, "config.json")
    network = {key: value for key, value in sections["network"].items() if key != "name"}
    ours = UNet(**network, out_channels=given["out_channels"])
    shape, labels = (16, 16, given["in_channels"]), None
    if ours.num_classes:
        labels = np.asarray([0, 3, 6, 1], np.int64)
    cond = {} if labels is None else {"label": labels}
    x = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    times = TIMES + (ours.embedding == "fourier")  # whose logarithm is taken
    abstract = jax.eval_shape(ours.init, jax.random.key(0), x, times, cond)["params"]
    params = unet2d.read_params(abstract, state, "state dict")

    expected = output(theirs, x, times, labels)
    # Not under jit, which would compile each network anew: here they share the operations, most of the same shapes.
    out = np.asarray(ours.apply({"params": params}, x, times, cond))
    # Both in float32, sums in another order; the fourier embedding takes sines of angles of some hundreds.
    bound = 2e-4 if ours.embedding == "fourier" else 2e-5
    assert np.abs(out - expected).max() < bound * max(1, np.abs(expected).max())
    assert np.abs(expected[0] - expected[3]).max() > 1e-3  # otherwise the times would not matter

    written = unet2d.write_params(params)
    assert written.keys() == state.keys()
    assert all(np.array_equal(written[key], state[key]) for key in state)
    back = unet2d.write_settings(sections["network"], **sections["data"], learned_range=sections["learned_range"])
    assert unet2d.read_settings(back, "config.json") == sections
    again = diffusers.UNet2DModel.from_config(back).eval()
    again.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in written.items()}, strict=True)
    np.testing.assert_array_equal(output(again, x, times, labels), expected)
