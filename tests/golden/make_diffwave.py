"""Makes diffwave.npz, the outputs of albertfgu/diffwave-sashimi's `WaveNet` that the plain suite compares ours with.

At commit d35c153b43246b4dd82a8ad7ba031493399aa112.

    pip install torch
    git clone https://github.com/albertfgu/diffwave-sashimi
    python tests/golden/make_diffwave.py diffwave-sashimi

In float64, but for its embeddings of time, which it takes in float32. Weights and inputs come from seeds by the rule of
tests/networks/random_params.py and are not stored.
"""
import importlib.util
import pathlib
import platform
import sys
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]
from networks.golden_diffwave import NETWORK, TIMES, clips, state_dict  # noqa: E402


def module(folder: pathlib.Path, name: str):
    """models/NAME.py alone: the package's __init__ also imports Sashimi, which needs compiled kernels."""
    spec = importlib.util.spec_from_file_location(f"models.{name}", folder / "models" / f"{name}.py")
    found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def main() -> None:
    sys.modules["models"] = types.ModuleType("models")
    torch.Tensor.cuda = lambda self: self  # the embedding of time is made on a GPU
    folder = pathlib.Path(sys.argv[1])
    module(folder, "utils")
    wavenet = module(folder, "wavenet")

    sc09 = dict(res_channels=256, skip_channels=256, num_res_layers=36, dilation_cycle=12, unconditional=True)
    theirs = wavenet.WaveNet(**sc09)
    block = theirs.residual_layer.residual_blocks[0]
    block(tuple(torch.zeros(1, *shape) for shape in ((256, 8), (512,))))  # a call computes the kernels anew
    largest = block.dilated_conv_layer.conv.weight.abs().max().item() * 768**0.5
    parameters = sum(p.numel() for p in theirs.parameters())

    theirs = wavenet.WaveNet(**sc09 | dict(res_channels=NETWORK.channels, skip_channels=NETWORK.channels,
                                           num_res_layers=NETWORK.depth, dilation_cycle=NETWORK.dilation_cycle))
    theirs.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in state_dict().items()})
    theirs = theirs.eval().double()
    embedding = wavenet.calc_diffusion_step_embedding
    wavenet.calc_diffusion_step_embedding = lambda *args: embedding(*args).double()
    x = torch.from_numpy(np.ascontiguousarray(clips().transpose(0, 2, 1))).double()
    with torch.no_grad():
        out = theirs((x, torch.tensor(TIMES)[:, None])).numpy().transpose(0, 2, 1)
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    np.savez_compressed(HERE / "diffwave.npz", output=out, parameters=parameters, made_with=made_with)
    print(f"diffwave.npz: output {out.shape}, standard deviation {out.std():.3f}; {parameters:,} parameters for SC09, "
          f"whose kernels start within {largest:.3f} / sqrt(fan-in); {made_with}")


if __name__ == "__main__":
    main()
