"""Makes guided_vlb.npz: the variational bound's terms by guided-diffusion's GaussianDiffusion.calc_bpd_loop.

At commit 22e0df8183507e13a7813f8d38d51b072ca1e67c.

    pip install torch
    git clone https://github.com/openai/guided-diffusion
    python tests/golden/make_guided_vlb.py guided-diffusion

In float64: its tables are kept so, where they would be rounded to float32. Its network is `network` below.
"""
import itertools
import pathlib
import platform
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
STEPS, SPACED = 30, [0, 1, 4, 11, 29]


def network(xp, x, t):
    """[B, ..., C] and times [B] counted from 0 -> 2C channels, or the first C of them."""
    phase = (t / 10.0).reshape(-1, *[1] * (x.ndim - 1))
    return xp.concatenate([1.1 * xp.tanh(1.3 * x + xp.cos(phase)), xp.sin(2 * x + phase)], -1)


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import torch
    from guided_diffusion import gaussian_diffusion as gd
    from guided_diffusion.respace import SpacedDiffusion
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, 256, (3, 2, 2, 2)) / 127.5 - 1  # [B, H, W, C]
    x0[0, 0] = -1, 1  # levels with tails
    noise = rng.normal(size=(STEPS, *x0.shape))
    arrays = {"x0": x0, "noise": noise}
    to = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))  # noqa: E731
    back = lambda x: x.numpy().transpose(0, 2, 3, 1)  # noqa: E731
    kinds = {"small": gd.ModelVarType.FIXED_SMALL, "large": gd.ModelVarType.FIXED_LARGE,
             "learned_range": gd.ModelVarType.LEARNED_RANGE}
    for schedule, kind, clip, spaced in itertools.product(("linear", "cosine"), kinds, (True, False), (False, True)):
        diffusion = SpacedDiffusion(
            use_timesteps=SPACED if spaced else range(STEPS), betas=gd.get_named_beta_schedule(schedule, STEPS),
            model_mean_type=gd.ModelMeanType.EPSILON, model_var_type=kinds[kind], loss_type=gd.LossType.MSE)

        def model(x, t):
            out = network(np, back(x), t.numpy())
            return to(out if kind == "learned_range" else out[..., :2])
        draws = iter(noise)
        randn_like, torch.randn_like = torch.randn_like, lambda x: to(next(draws))
        found = diffusion.calc_bpd_loop(model, to(x0), clip_denoised=clip)
        torch.randn_like = randn_like
        for name, value in found.items():
            arrays[f"{schedule}_{kind}_{'clip' if clip else 'plain'}_{'spaced' if spaced else 'all'}_{name}"] = (
                value.numpy())
    np.savez_compressed(HERE / "guided_vlb.npz", **arrays, made_with=(
        f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}; openai/"
        "guided-diffusion 22e0df8183507e13a7813f8d38d51b072ca1e67c"))


if __name__ == "__main__":
    main()
