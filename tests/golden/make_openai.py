"""Makes openai.npz: outputs, schedules, times and chains of OpenAI's improved-diffusion and guided-diffusion.

    pip install torch jax flax
    git clone https://github.com/openai/improved-diffusion; git clone https://github.com/openai/guided-diffusion
    python tests/golden/make_openai.py improved-diffusion guided-diffusion

Weights, inputs and noise come by the rules of tests/interop/others.py and are not stored. Float32 throughout, as there.
"""
import pathlib
import platform
import sys
import types
from unittest import mock

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "interop")]
import others  # noqa: E402


def load(clones: list[str]) -> dict:
    """The script_util of both; MPI, which they import for training, is a stand-in."""
    sys.path[:0] = clones
    sys.modules["mpi4py"] = types.SimpleNamespace(MPI=None)
    import guided_diffusion.script_util
    import improved_diffusion.script_util
    return {others.IMPROVED: improved_diffusion.script_util, others.GUIDED: guided_diffusion.script_util}


def build(module, flags: dict[str, str]):
    """Model and diffusion, parsed as their scripts do; flags of training are left out."""
    defaults = module.model_and_diffusion_defaults()
    kinds = {key: module.str2bool if isinstance(value, bool) else type(value) for key, value in defaults.items()}
    return module.create_model_and_diffusion(
        **defaults | {key: kinds[key](value) for key, value in flags.items() if key in defaults})


def chain(diffusion, flags: dict[str, str]) -> np.ndarray:
    """Their loop with a network that is a formula, and the noise of the rule. [B, H, W, C]."""
    torch_of = lambda x: torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))  # noqa: E731
    noise = iter(others.chain_noise(diffusion.num_timesteps))
    start = torch_of(next(noise))

    def network(x, t):
        out = torch.tanh(x + t[:, None, None, None].float() / 1000)
        return torch.cat([out, torch.sin(3 * x)], dim=1) if "learn_sigma" in flags else out

    loop = diffusion.ddim_sample_loop if "use_ddim" in flags else diffusion.p_sample_loop
    with mock.patch("torch.randn_like", lambda x: torch_of(next(noise))):
        x = loop(network, tuple(start.shape), noise=start, device="cpu",
                 clip_denoised=flags.get("clip_denoised") != "False")
    return x.numpy().transpose(0, 2, 3, 1)


def main() -> None:
    modules, shapes, arrays = load(sys.argv[1:]), {}, {}
    for case, (codebase, flags) in others.OPENAI.items():
        model, _ = build(modules[codebase], flags)
        shapes[case] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        model.load_state_dict({name: torch.from_numpy(v) for name, v in others.random_state(shapes[case]).items()})
        x = others.images(int(flags["image_size"]), 3).transpose(0, 3, 1, 2)
        labels = dict(y=torch.tensor(others.LABELS)) if "class_cond" in flags else {}
        with torch.no_grad():
            out = model.eval()(torch.from_numpy(np.ascontiguousarray(x)), torch.tensor(others.TIMES), **labels)
        arrays[case] = others.kept(out.numpy().transpose(0, 2, 3, 1))
    for case, (codebase, line) in others.PUBLISHED.items():
        with torch.device("meta"):
            model, _ = build(modules[codebase], others.flags_of(line))
        arrays[f"parameters of {case}"] = np.asarray(sum(p.numel() for p in model.parameters()))
    for case, flags in others.CHAINS.items():
        _, diffusion = build(modules[others.IMPROVED], flags | dict(image_size="32", rescale_timesteps="False"))
        arrays[f"chain {case}"] = chain(diffusion, flags).astype(np.float32)
        arrays[f"times {case}"] = np.asarray(diffusion.timestep_map, np.int32)
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    others.save("openai.npz", shapes, arrays, made_with)


if __name__ == "__main__":
    main()
