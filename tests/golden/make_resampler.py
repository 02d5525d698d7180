"""Makes resampler.npz: guided-diffusion's LossSecondMomentResampler, fed with losses.

At commit 22e0df8183507e13a7813f8d38d51b072ca1e67c.

    pip install torch
    git clone https://github.com/openai/guided-diffusion
    python tests/golden/make_resampler.py guided-diffusion

The losses fed are stored too: rows (t, loss) in batches of BATCH, t counted from 0 as there.
"""
import pathlib
import platform
import sys
import types

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
STEPS, HISTORY, UNIFORM, BATCH, BATCHES = 20, 10, 0.001, 32, 40


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    if not hasattr(np, "int"):
        np.int = int  # the code is older than its removal
    import torch
    from guided_diffusion import resample
    sampler = resample.LossSecondMomentResampler(types.SimpleNamespace(num_timesteps=STEPS), HISTORY, UNIFORM)
    rng = np.random.default_rng(0)
    # Some batches have one t more often than the history is long; one loss is 0 for all t = 3.
    t = rng.choice(STEPS, (BATCHES, BATCH), p=(p := 0.8 ** np.arange(STEPS) + 0.2) / p.sum())
    loss = np.where(t == 3, 0.0, rng.exponential(size=t.shape) * (0.01 + 0.9**t)).astype(np.float32)
    probabilities, weights = [], []
    for ts, losses in zip(t, loss):
        sampler.update_with_all_losses(ts.tolist(), losses.tolist())
        w = sampler.weights()
        probabilities.append(w / w.sum())
        np.random.seed(0)
        drawn, importance = sampler.sample(200, torch.device("cpu"))
        weights.append(np.bincount(drawn.numpy(), weights=importance.numpy(), minlength=STEPS)
                       / np.maximum(np.bincount(drawn.numpy(), minlength=STEPS), 1))
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    np.savez_compressed(HERE / "resampler.npz", t=t, loss=loss, probabilities=probabilities, weights=weights,
                        settings=np.array([STEPS, HISTORY, UNIFORM]), made_with=made_with)


if __name__ == "__main__":
    main()
