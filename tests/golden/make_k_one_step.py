r"""Makes k_one_step.npz: chains of k-diffusion's Euler, Heun, ancestral and DPM-Solver samplers, in float64.

As make_k_multistep.py, with the same commit, denoiser and grids:

    python tests/golden/make_k_one_step.py k-diffusion

noise [S, 4, 3] is what each chain was given at its steps.
"""
import pathlib
import platform
import sys
from unittest import mock

import numpy as np
import torch
from make_k_multistep import COMMITS, HERE, denoise, load

CHURN = dict(s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)


def main() -> None:
    torch.set_default_dtype(torch.float64)
    k = load(pathlib.Path(sys.argv[1]) / "k_diffusion" / "sampling.py", "k_diffusion", "k_diffusion.utils",
             "torchdiffeq", "torchsde")
    k.utils = load(pathlib.Path(sys.argv[1]) / "k_diffusion" / "utils.py", "k_diffusion", "PIL", "torchvision",
                   "torchvision.transforms", "safetensors", "requests")
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(4, 3)), rng.normal(size=(12, 4, 3))
    arrays = {"x": x, "noise": noise}
    grids = {"karras": k.get_sigmas_karras(10, 0.002, 80.0), "exponential": k.get_sigmas_exponential(12, 0.01, 50.0),
             "vp": k.get_sigmas_vp(9)}
    chains = {
        "euler": (k.sample_euler, {}), "euler_churn": (k.sample_euler, CHURN), "heun": (k.sample_heun, {}),
        "heun_churn": (k.sample_heun, CHURN), "euler_ancestral": (k.sample_euler_ancestral, {}),
        "dpmpp_2s": (k.sample_dpmpp_2s_ancestral, dict(eta=0.0)), "dpmpp_2m": (k.sample_dpmpp_2m, {}),
        "dpmpp_3m": (k.sample_dpmpp_3m_sde, dict(eta=0.0)), "dpmpp_3m_sde": (k.sample_dpmpp_3m_sde, {}),
        "dpmpp_3m_sde_half": (k.sample_dpmpp_3m_sde, dict(eta=0.5))}
    for kind in ("midpoint", "heun"):
        chains[f"dpmpp_2m_sde_{kind}"] = k.sample_dpmpp_2m_sde, dict(solver_type=kind)
        chains[f"dpmpp_2m_sde_{kind}_half"] = k.sample_dpmpp_2m_sde, dict(solver_type=kind, eta=0.5)
    for name, sigmas in grids.items():
        arrays[f"sigmas_{name}"] = sigmas.numpy()
        start = sigmas[0] * torch.from_numpy(x)
        for chain, (function, settings) in chains.items():
            draws = iter(torch.from_numpy(noise))
            given = {} if function in (k.sample_euler, k.sample_heun, k.sample_dpmpp_2m) else dict(
                noise_sampler=lambda *_: next(draws))
            with mock.patch("torch.randn_like", lambda _: next(draws)):
                arrays[f"{chain}_{name}"] = function(denoise, start, sigmas, disable=True, **settings, **given).numpy()
        solver = k.DPMSolver(denoise)
        for order in (1, 2, 3):  # without the step to 0
            out, step = start, getattr(solver, f"dpm_solver_{order}_step")
            for a, b in zip(sigmas[:-2], sigmas[1:-1]):
                out = step(out, solver.t(a), solver.t(b))[0]
            arrays[f"dpm_solver_{order}_{name}"] = out.numpy()
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}; {COMMITS}"
    np.savez_compressed(HERE / "k_one_step.npz", made_with=made_with, **arrays)
    print(HERE / "k_one_step.npz", made_with)


if __name__ == "__main__":
    main()
