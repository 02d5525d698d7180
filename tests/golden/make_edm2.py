"""Makes edm2.npz, what NVlabs/edm2 computes, that the plain suite compares ours with.

At commit 4bf8162f601bcc09472ce8a32dd0cbe8889dc8fc.

    pip install torch numpy
    git clone https://github.com/NVlabs/edm2
    python tests/golden/make_edm2.py edm2

In float32, as theirs is written. Weights and inputs come from seeds by the rule of tests/networks/random_params.py and
are not stored; of each gradient, its norm and its product with a random direction.
"""
import pathlib
import platform
import sys

import jax
import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), sys.argv[1]]
from networks import golden_edm2 as case  # noqa: E402
from train_edm2 import config_presets  # noqa: E402
from training import networks_edm2, phema, training_loop  # noqa: E402

from diffusion.core.uncertainty import Uncertainty  # noqa: E402


def network() -> dict[str, np.ndarray]:
    n, (side, _, channels) = case.NETWORK, case.IMAGE_SHAPE
    theirs = networks_edm2.Precond(
        side, channels, n.num_classes, model_channels=n.channels, channel_mult=n.multipliers, num_blocks=n.blocks,
        channel_mult_noise=n.noise_features // n.channels, channel_mult_emb=n.embedding_width // n.channels,
        clip_act=n.clip_activations,
        attn_resolutions=n.attention_resolutions, label_balance=n.label_balance, concat_balance=n.concat_balance,
        res_balance=n.residual_balance, attn_balance=n.attention_balance, channels_per_head=n.head_channels,
        logvar_channels=case.LOGVAR_CHANNELS, sigma_data=0.5)
    given = {f"unet.{name}": x for name, x in case.in_their_form(case.params()).items()}
    u = Uncertainty(normalised=True)
    frequencies, phases = u.features
    given |= {"logvar_fourier.freqs": frequencies, "logvar_fourier.phases": phases,
              "logvar_linear.weight": case.direction("logvar", (1, u.channels))}
    theirs.load_state_dict({name: torch.tensor(np.ascontiguousarray(x, np.float32)) for name, x in given.items()})
    sigma, labels = torch.tensor(case.SIGMAS), torch.eye(n.num_classes)[list(case.LABELS)]
    x, target = (torch.tensor(np.ascontiguousarray(a.transpose(0, 3, 1, 2))) for a in (case.images(), case.target()))
    found, clipped = {}, []

    def count(module, inputs, output):
        clipped.append((output.abs() == n.clip_activations).float().mean().item())

    with torch.no_grad():
        hooks = [m.register_forward_hook(count) for m in theirs.modules() if isinstance(m, networks_edm2.Block)]
        theirs.eval()
        denoised, logvar = theirs(x, sigma, labels, return_logvar=True)
        for hook in hooks:
            hook.remove()
        found["output"] = theirs.unet(x, sigma.log() / 4, labels).numpy().transpose(0, 2, 3, 1)
        found |= {"denoised": denoised.numpy().transpose(0, 2, 3, 1), "logvar": logvar.numpy().reshape(-1)}
    print(f"clipped: {np.mean(clipped):.3f} of the activations")
    theirs.train()
    (theirs.unet(x, sigma.log() / 4, labels) * target).sum().backward()  # the first line normalises the weights
    weights, gradients = {}, {}
    for name, p in theirs.unet.named_parameters():
        d = torch.tensor(np.asarray(case.direction(name, tuple(p.shape))))
        weights[name] = p.detach().double().norm().item(), (p.detach() * d).double().sum().item()
        gradients[name] = p.grad.double().norm().item(), (p.grad * d).double().sum().item()
    names = sorted(weights)
    return found | {"names": np.array(names), "weights": np.array([weights[name] for name in names]),
                    "gradients": np.array([gradients[name] for name in names])}


def counts() -> dict[str, np.ndarray]:
    """The numbers of trained parameters, with the uncertainty's."""
    names, found = [], []
    with torch.device("meta"):
        for name, preset in config_presets.items():
            size, channels = (64, 4) if "img512" in name else (64, 3)
            theirs = networks_edm2.Precond(size, channels, 1000, model_channels=preset.channels)
            names.append(name)
            found.append(sum(p.numel() for p in theirs.parameters()))
    keys = ("duration", "batch", "channels", "lr", "decay", "dropout", "P_mean", "P_std")
    return {"presets": np.array(names), "parameters": np.array(found), "preset_keys": np.array(keys),
            "preset_values": np.array([[config_presets[name][key] for key in keys] for name in names], np.float64)}


def averages() -> dict[str, np.ndarray]:
    """The coefficients of the snapshots of two averages, in images, for several lengths and places."""
    times = np.arange(1, 9) * (8 << 20)
    stds = np.array([0.05, 0.10])
    in_ofs, in_std = (a.ravel() for a in np.meshgrid(times, stds))
    out_std = np.array([0.03, 0.05, 0.08, 0.1, 0.15, 0.2])
    whole = phema.solve_posthoc_coefficients(in_ofs, in_std, times[-1], out_std)
    earlier = phema.solve_posthoc_coefficients(in_ofs[in_ofs <= times[4]], in_std[in_ofs <= times[4]], times[4], 0.08)
    return {"in_images": in_ofs, "in_sigma_rel": in_std, "out_sigma_rel": out_std, "coefficients": whole,
            "coefficients_at_5": earlier, "exponents": phema.std_to_exp(out_std),
            "beta": phema.power_function_beta(0.05, times, 2048)}


def rates() -> dict[str, np.ndarray]:
    """The rate of EDM2-S in ImageNet-512's preset."""
    steps = np.array([0, 1, 1000, 4882, 4883, 69_999, 70_000, 70_001, 140_000, 1_000_000])
    return {"rate_steps": steps, "rates": np.array([training_loop.learning_rate_schedule(
        int(step) * 2048, 2048, 100e-4, 70e3, 10) for step in steps])}


def main() -> None:
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    found = network() | counts() | averages() | rates()
    np.savez_compressed(HERE / "edm2.npz", made_with=made_with, **found)
    print(f"edm2.npz: output {found['output'].shape}, standard deviation {found['output'].std():.3f}; {made_with}, "
          f"jax {jax.__version__}")


if __name__ == "__main__":
    main()
