"""Makes edm_sampler.npz: NVlabs/edm's ablation_sampler over all its choices, in float64, and its preconditionings.

At commit 008a4e5316c8e3bfe61a62f874bddba254295afb.

    pip install torch
    git clone https://github.com/NVlabs/edm
    python tests/golden/make_edm_sampler.py edm

The sampler's network is the denoiser `denoise` below; the preconditionings' is `network`. noise [S, 4, 3] is what a
chain with churn was given.
"""
import importlib
import itertools
import pathlib
import platform
import sys
import types
from unittest import mock

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
STEPS = 6
SIGMA_MIN, SIGMA_MAX = 0.02, 60.0
CHURN = dict(S_churn=2.0, S_min=0.05, S_max=20.0, S_noise=1.003)
LEVELS = np.array([0.03, 0.4, 1.0, 7.0, 50.0])
PRECONDITIONINGS = {"edm_vp": "VPPrecond", "edm_ve": "VEPrecond", "edm_iddpm": "iDDPMPrecond", "edm": "EDMPrecond"}
CHOICES = [dict(solver=solver, discretization=discretization, schedule=schedule, scaling=scaling, alpha=alpha)
           for solver, discretization, schedule, scaling in itertools.product(
               ("euler", "heun"), ("vp", "ve", "iddpm", "edm"), ("vp", "ve", "linear"), ("vp", "none"))
           for alpha in ((1.0,) if solver == "euler" or discretization != "edm" else (1.0, 0.5, 2 / 3))]


def name_of(choice: dict, churn: bool) -> str:
    return "_".join([*(f"{value:.3g}" if isinstance(value, float) else value for value in choice.values()),
                     *(["churn"] if churn else [])])


def denoise(xp, x, sigma):
    """x_0 of x = x_0 + sigma eps."""
    return xp.tanh(0.8 * x / (1 + 0.1 * sigma)) + 0.1 * xp.sin(3 * x) / (1 + sigma)


def network(xp, x, c_noise):
    """[B, 3], [B] -> [B, 3]."""
    return xp.tanh(x + xp.cos(c_noise / 50)[:, None])


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import torch
    for name in ("click", "tqdm", "PIL", "PIL.Image", "dnnlib", "torch_utils", "torch_utils.distributed"):
        sys.modules[name] = mock.MagicMock()
    persistence = types.SimpleNamespace(persistent_class=lambda kind: kind)
    sys.modules["torch_utils"].persistence = sys.modules["torch_utils.persistence"] = persistence
    generate = importlib.import_module("generate")
    networks = importlib.import_module("training.networks")
    torch.set_default_dtype(torch.float64)  # else iDDPM's levels come from whole numbers by way of float32
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(4, 3)), rng.normal(size=(STEPS, 4, 3))
    arrays = {"x": x, "noise": noise}

    def net(x, sigma, labels):
        return denoise(torch, x, torch.as_tensor(sigma))
    net.sigma_min, net.sigma_max, net.round_sigma = 0.0, float("inf"), torch.as_tensor
    for choice, churn in itertools.product(CHOICES, (False, True)):
        if churn and choice["alpha"] != 1:
            continue
        # Without churn its noise has the root of a difference that is 0 but for rounding: 1e-7 and not 1e-15.
        draws = iter(torch.from_numpy(noise if churn else 0 * noise))
        out = generate.ablation_sampler(net, torch.from_numpy(x), randn_like=lambda _: next(draws), num_steps=STEPS,
                                        sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, **choice, **(CHURN if churn else {}))
        arrays[name_of(choice, churn)] = out.numpy()
    for churn in (False, True):
        draws = iter(torch.from_numpy(noise if churn else 0 * noise))
        out = generate.edm_sampler(net, torch.from_numpy(x), randn_like=lambda _: next(draws), num_steps=STEPS,
                                   sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, **(CHURN if churn else {}))
        arrays["edm_sampler" + ("_churn" if churn else "")] = out.numpy()

    torch.set_default_dtype(torch.float32)  # which these compute in
    noisy = (rng.normal(size=(len(LEVELS), 3)) * np.sqrt(0.3 + LEVELS[:, None] ** 2)).astype(np.float32)
    arrays["noisy"], told = noisy, []

    def model(x, c_noise, **_):
        told.append(c_noise.numpy())
        out = network(np, x.numpy().reshape(-1, 3), told[-1]).astype(np.float32)
        return torch.from_numpy(np.concatenate([out, out], 1)[:, :, None, None])  # iDDPM's has a second head
    networks.ToyNet = lambda **_: model
    for name, kind in PRECONDITIONINGS.items():
        precond = getattr(networks, kind)(1, 3, model_type="ToyNet")
        cut = model if name == "edm_iddpm" else lambda *args, **kwargs: model(*args, **kwargs)[:, :3]
        precond.model = cut
        out = precond(torch.from_numpy(noisy)[:, :, None, None], torch.from_numpy(LEVELS))
        arrays[f"{name}_denoised"], arrays[f"{name}_c_noise"] = out.numpy().reshape(-1, 3), told[-1]
    np.savez_compressed(HERE / "edm_sampler.npz", **arrays, made_with=(
        f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}; NVlabs/edm "
        "008a4e5316c8e3bfe61a62f874bddba254295afb"))


if __name__ == "__main__":
    main()
