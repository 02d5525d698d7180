r"""Makes k_multistep.npz: chains of k-diffusion's LMS and of consistency_models' multistep sampler, in float64.

    pip install torch scipy tqdm
    git clone https://github.com/crowsonkb/k-diffusion && \
        git -C k-diffusion checkout 4601bf085320592473f681a62808ed873d17fad5
    git clone https://github.com/openai/consistency_models && \
        git -C consistency_models checkout e32b69ee436d518377db86fb2127a3972d0d8716
    python tests/golden/make_k_multistep.py k-diffusion consistency_models

What their modules import and these functions do not use is replaced by nothing.
"""
import importlib.util
import pathlib
import platform
import sys
import types
from unittest import mock

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
COMMITS = ("crowsonkb/k-diffusion 4601bf085320592473f681a62808ed873d17fad5, "
           "openai/consistency_models e32b69ee436d518377db86fb2127a3972d0d8716")


def load(path: pathlib.Path, package: str, *unused: str):
    """One file of a package, without the package's __init__ and with the `unused` imports as mocks."""
    names = [package, *unused]
    with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in names}):
        sys.modules[package] = types.ModuleType(package)
        for name in unused:
            if name.startswith(package + "."):
                setattr(sys.modules[package], name.rsplit(".", 1)[1], sys.modules[name])
        spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


def denoise(x, sigma):
    sigma = sigma[:, None]
    return torch.tanh(0.8 * x / (1 + 0.1 * sigma)) + 0.1 * torch.sin(3 * x) / (1 + sigma)


class Noise:
    def __init__(self):
        self.rng, self.drawn = np.random.default_rng(2), []

    def randn_like(self, x):
        self.drawn.append(self.rng.normal(size=x.shape))
        return torch.from_numpy(self.drawn[-1])


def main() -> None:
    torch.set_default_dtype(torch.float64)
    k = load(pathlib.Path(sys.argv[1]) / "k_diffusion" / "sampling.py", "k_diffusion", "k_diffusion.utils",
             "torchdiffeq", "torchsde")
    k.utils = load(pathlib.Path(sys.argv[1]) / "k_diffusion" / "utils.py", "k_diffusion", "PIL", "torchvision",
                   "torchvision.transforms", "safetensors", "requests")
    cm = load(pathlib.Path(sys.argv[2]) / "cm" / "karras_diffusion.py", "cm", "cm.dist_util", "cm.nn", "cm.random_util",
              "piq", "torchvision", "torchvision.transforms")
    x = np.random.default_rng(1).normal(size=(4, 3))
    arrays = {"x": x}
    grids = {"karras": k.get_sigmas_karras(10, 0.002, 80.0), "exponential": k.get_sigmas_exponential(12, 0.01, 50.0),
             "vp": k.get_sigmas_vp(9)}
    for name, sigmas in grids.items():
        arrays[f"sigmas_{name}"] = sigmas.numpy()
        for order in (1, 2, 3, 4):
            out = k.sample_lms(denoise, sigmas[0] * torch.from_numpy(x), sigmas, order=order, disable=True)
            arrays[f"lms_{name}_{order}"] = out.numpy()
    steps = 40
    for number, ts in {1: (0, 39), 2: (0, 22, 39), 5: (0, 5, 12, 22, 30, 39)}.items():
        noise = Noise()
        out = cm.stochastic_iterative_sampler(denoise, 80.0 * torch.from_numpy(x), None, noise, ts, steps=steps)
        high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
        arrays[f"times_{number}"] = (high + np.array(ts[:-1]) / (steps - 1) * (low - high)) ** 7
        arrays[f"noise_{number}"], arrays[f"consistency_{number}"] = np.stack(noise.drawn), out.numpy()
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}; {COMMITS}"
    np.savez_compressed(HERE / "k_multistep.npz", made_with=made_with, **arrays)
    print(HERE / "k_multistep.npz", made_with)


if __name__ == "__main__":
    main()
