"""Makes adaptive_sde.npz: whole chains of the adaptive SDE solver of Jolicoeur-Martineau et al. (2021), in float64.

AlexiaJM/score_sde_fast_sampling at commit 5da8f3fe103ee5ac3c3a336f16cc06c9541f0ed9 and the SDEs of
yang-song/score_sde_pytorch at commit cb1f359f4aadf0ff9a5e122fe8fffc9451fd6e44.

    pip install torch numpy
    git clone https://github.com/AlexiaJM/score_sde_fast_sampling
    git clone https://github.com/yang-song/score_sde_pytorch
    python tests/golden/make_adaptive_sde.py score_sde_fast_sampling score_sde_pytorch

Its score is that of `eps_hat` of make_score_sde_pc.py. The noise of each step is kept with the result.
"""
import pathlib
import platform
import sys
from unittest import mock

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
EPS, BATCH = 1e-3, 3
SETTINGS = {"loose": (0.2, 2 / 256), "tight": (0.02, 0.05)}  # relative, absolute


def main() -> None:
    import torch
    for clone in sys.argv[1:]:
        sys.path.insert(0, clone)
    import sde_lib
    import sde_sampling_torch as theirs
    from make_score_sde_pc import eps_hat
    torch.set_default_dtype(torch.float64)
    arrays = {}
    for name, sde in {"vp": sde_lib.VPSDE(), "subvp": sde_lib.subVPSDE(), "ve": sde_lib.VESDE()}.items():
        def score(x, t, sde=sde):
            mean, std = sde.marginal_prob(torch.ones_like(x), t)
            std = std[:, None, None, None]
            return -torch.as_tensor(eps_hat(np, x.numpy(), mean.numpy(), std.numpy())) / std

        for setting, (relative, absolute) in SETTINGS.items():
            torch.manual_seed(0)
            noise, shape = [], (BATCH, 2, 2, 1)

            def draw(like, noise=noise):
                noise.append(torch.randn(like.shape))
                return noise[-1]

            start = torch.randn(shape) * (sde.sigma_max if name == "ve" else 1)
            sampler = theirs.get_pc_sampler(sde, shape, theirs.AdaptivePredictor, denoise=False, device="cpu", eps=EPS,
                                            abstol=absolute, reltol=relative, adaptive=True)
            with mock.patch.object(torch, "randn_like", draw):
                out, _ = sampler(score, start)
            case = f"{name}_{setting}"
            for key, value in {"x": start, "noise": torch.stack(noise), "out": out}.items():
                arrays[f"{case}_{key}"] = value.numpy()
            print(case, len(noise))
    np.savez_compressed(HERE / "adaptive_sde.npz", **arrays, made_with=(
        f"Python {platform.python_version()}, NumPy {np.__version__}, torch {torch.__version__}"))


if __name__ == "__main__":
    main()
