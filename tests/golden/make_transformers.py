"""Makes sit.npz and jit.npz, outputs of the authors' SiT and JiT, and their counts of parameters and DiT's.

willisma/SiT at commit 947f95bd3a510e9af441d38c1e9f72e0eee873c5, LTH14/JiT at
cbc743a2ada5e9762697da2c83f8c4f8379e8c17, facebookresearch/DiT at ed81ce2229091fd4ecc9a223645f95cf379d582b.

    pip install torch timm einops
    git clone https://github.com/willisma/SiT
    git clone https://github.com/LTH14/JiT
    git clone https://github.com/facebookresearch/DiT
    python tests/golden/make_transformers.py SiT JiT DiT

In float32, as the authors run them, without their compilation and not on a GPU. jit.npz also has their loss and their
chain (denoiser.py). Weights and inputs come from seeds by the rule of tests/networks/random_params.py and are not
stored. The repository has no JiT-G: it is counted with the sizes of the paper's Table 9.
"""
import argparse
import pathlib
import platform
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE)]
import timm  # noqa: E402
from networks import golden_jit as case  # noqa: E402
from networks.random_params import unit  # noqa: E402


def theirs(folder: str, *modules: str) -> list:
    """Modules of a repository; the next repository may have others of the same names."""
    sys.path.insert(0, folder)
    found = [__import__(name) for name in modules]
    sys.path.remove(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in (*modules, "util")]:
        del sys.modules[name]
    return found


def given(name: str, module) -> None:
    state = {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in case.state_dict(name).items()}
    missing, strange = module.load_state_dict(state, strict=False)
    assert missing == ["pos_embed"] and not strange, (missing, strange)  # that one is fixed


def tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def array(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


def count(make, **sizes) -> int:
    with torch.device("meta"):
        return sum(x.numel() for x in make(**sizes).parameters() if x.requires_grad)


def main(sit: str, jit: str, dit: str) -> None:
    torch._dynamo.config.disable = True
    torch.Tensor.cuda = lambda self: self
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}, " \
                f"timm {timm.__version__}"
    times, labels = torch.tensor(case.TIMES), torch.tensor(case.LABELS)

    (models,) = theirs(sit, "models")
    n = case.SIT
    network = models.SiT(input_size=case.SHAPES["sit"][0], patch_size=n.patch, in_channels=n.out_channels,
                         hidden_size=n.channels, depth=n.depth, num_heads=n.heads, num_classes=n.num_classes - 1).eval()
    given("sit", network)
    with torch.no_grad():
        out = array(network(tensor(case.images("sit")), times, labels))
    counts = {name: count(make, input_size=32) for name, make in models.SiT_models.items()}
    (models,) = theirs(dit, "models")
    counts |= {name: count(make, input_size=32) for name, make in models.DiT_models.items()}
    np.savez_compressed(HERE / "sit.npz", output=out, made_with=made_with, counted=list(counts),
                        counts=list(counts.values()))
    print(f"sit.npz: {out.shape}, standard deviation {out.std():.3f}")

    denoiser, models = theirs(jit, "denoiser", "model_jit")
    n = case.JIT

    def tiny(**fields):
        return models.JiT(**fields, patch_size=n.patch, hidden_size=n.channels, depth=n.depth, num_heads=n.heads,
                          bottleneck_dim=n.bottleneck, in_context_len=n.class_tokens,
                          in_context_start=n.class_tokens_from)

    denoiser.JiT_models["tiny"] = tiny
    whole = denoiser.Denoiser(argparse.Namespace(
        model="tiny", img_size=case.SHAPES["jit"][0], class_num=n.num_classes - 1, attn_dropout=0.0, proj_dropout=0.0,
        label_drop_prob=0.0, P_mean=-0.8, P_std=0.8, t_eps=case.T_EPS, noise_scale=case.NOISE_SCALE, ema_decay1=0.9999,
        ema_decay2=0.9996, sampling_method="heun", num_sampling_steps=case.STEPS, cfg=case.SCALE,
        interval_min=case.INTERVAL[0], interval_max=case.INTERVAL[1])).eval()
    given("jit", whole.net)
    noise = {"loss": case.images("jit", "noise"), "chain": unit("chain", (2, *case.SHAPES["jit"]), case.SEED)}
    with torch.no_grad():
        out = array(whole.net(tensor(case.images("jit")), times, labels))
        whole.sample_t = lambda n, device=None: times
        torch.randn_like = lambda x: tensor(noise["loss"])
        loss = whole(tensor(case.images("jit")), labels).item()
        torch.randn = lambda *shape, device=None: tensor(noise["chain"])
        chain = array(whole.generate(torch.tensor(case.CHAIN_LABELS)))
    sizes = {256: "16", 512: "32"}
    counts = {name: count(make, input_size=next(side for side, p in sizes.items() if name.endswith(p)))
              for name, make in models.JiT_models.items() if name != "tiny"}
    counts |= {f"JiT-G/{p}": count(models.JiT, input_size=side, patch_size=int(p), hidden_size=1664, depth=40,
                                   num_heads=16, bottleneck_dim=256, in_context_start=10) for side, p in sizes.items()}
    np.savez_compressed(HERE / "jit.npz", output=out, loss=loss, chain=chain, made_with=made_with, counted=list(counts),
                        counts=list(counts.values()))
    print(f"jit.npz: {out.shape}, standard deviation {out.std():.3f}, loss {loss:.4f}, chain {chain.std():.3f}\n"
          f"{counts}; {made_with}")


if __name__ == "__main__":
    main(*sys.argv[1:])
