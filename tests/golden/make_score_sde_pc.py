"""Makes score_sde_pc.npz: steps of score_sde's predictors and correctors, and its likelihoods, in float64.

At commit 0acb9e0ea3b8cccd935068cd9c657318fbc6ce4c.

    pip install jax flax ml_collections scipy
    git clone https://github.com/yang-song/score_sde
    python tests/golden/make_score_sde_pc.py score_sde

Its score is that of `eps_hat` below. One example a step, where a norm and its mean over the batch are the same.
"""
import importlib
import pathlib
import platform
import sys
import types
from typing import Any, NamedTuple
from unittest import mock

import flax
import jax
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
N, SNR = 20, 0.16
MIX = np.random.default_rng(5).normal(size=(4, 4)) / 2
INDEX = (19, 12, 5, 2)  # of the times linspace(1, N) / N whose steps are kept


def eps_hat(xp, x, alpha, sigma):
    """[B, 2, 2, 1] and numbers -> what the network says of the noise: near that of data N(0, 0.3), not linear."""
    turned = (x.reshape(len(x), 4) @ MIX).reshape(x.shape)
    return sigma * (x + 0.3 * xp.sin(2 * turned)) / (0.3 * alpha**2 + sigma**2)


class State(NamedTuple):
    """What their functions ask for; nothing of it is used."""
    params_ema: Any
    model_state: Any


def load(clone: str):
    """Their sampling, likelihood and sde_lib, with stand-ins for what these import and do not use."""
    sys.path.insert(0, clone)
    importlib.import_module("flax.training.checkpoints")
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
    flax.optim = types.SimpleNamespace(Optimizer=object)
    return [importlib.import_module(name) for name in ("sampling", "likelihood", "sde_lib")]


def main() -> None:
    sampling, likelihood, sde_lib = load(sys.argv[1])
    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    rng = np.random.default_rng(0)
    arrays = {}
    sdes = {"vp": sde_lib.VPSDE(N=N), "subvp": sde_lib.subVPSDE(N=N), "ve": sde_lib.VESDE(N=N)}

    def score_of(sde, table):
        """Of the continuous marginals, or of those of the chain's tables at round(t (N - 1))."""
        def score(x, t):
            if table and isinstance(sde, sde_lib.VPSDE):
                index = jnp.round(t * (N - 1)).astype(int)
                alpha, std = sde.sqrt_alphas_cumprod[index], sde.sqrt_1m_alphas_cumprod[index]
            else:
                mean, std = sde.marginal_prob(jnp.ones_like(x), t)
                alpha = mean[:, 0, 0, 0]
            alpha, std = (a.reshape(-1, 1, 1, 1) for a in (alpha, std))
            return -eps_hat(jnp, x, alpha, std) / std
        return score

    predictors = {"euler_maruyama": ("vp", "subvp", "ve"), "reverse_diffusion": ("vp", "ve"),
                  "ancestral_sampling": ("vp", "ve")}
    with mock.patch("jax.lax.pmean", lambda x, axis_name: x):
        for predictor, names in predictors.items():
            for name in names:
                sde, table = sdes[name], predictor != "euler_maruyama"
                score = score_of(sde, table)
                for corrector in ("none", "langevin", "ald") if table else ("none",):
                    for index in INDEX:
                        t = jnp.asarray([index / (N - 1) + 1e-9 if table else (index + 1) / N])
                        x = jnp.asarray(rng.normal(size=(1, 2, 2, 1)) * float(sde.marginal_prob(t * 0 + 1, t)[1][0]))
                        keys = jax.random.split(jax.random.key(index), 2)
                        noise, key = [jax.random.normal(keys[1], x.shape)], keys[0]
                        for _ in range(2):
                            key, step = jax.random.split(key)
                            noise.append(jax.random.normal(step, x.shape))
                        # "ald" takes the continuous VP SDE's std with a chain's score: here the chain's own.
                        std = lambda x, t, sde=sde, i=index: (x, sde.sqrt_1m_alphas_cumprod[jnp.asarray([i])])  # noqa: E731
                        with mock.patch.object(sde, "marginal_prob", std if name == "vp" else sde.marginal_prob):
                            middle = sampling.get_corrector(corrector)(sde, score, SNR, 2).update_fn(keys[0], x, t)[0]
                        out = sampling.get_predictor(predictor)(sde, score).update_fn(keys[1], middle, t)[0]
                        case = f"{name}_{predictor}_{corrector}_{index}"
                        for key, value in {"x": x, "noise": jnp.stack(noise), "out": out}.items():
                            arrays[f"{case}_{key}"] = np.asarray(value)

    data = rng.normal(size=(1, 3, 2, 2, 1)) * 0.5
    arrays["data"] = data[0]
    for name, sde in sdes.items():
        for kind in ("Rademacher", "Gaussian"):
            with mock.patch.object(likelihood.mutils, "get_score_fn", lambda sde, *_, **__: score_of(sde, False)):
                likelihood_of = likelihood.get_likelihood_fn(sde, None, lambda x: (x + 1) / 2, kind, rtol=1e-10,
                                                             atol=1e-10, eps=1e-5)
                keys = jax.random.split(jax.random.PRNGKey(3), 1)
                bits, _, _ = likelihood_of(keys, State(jnp.zeros(1), jnp.zeros(1)), jnp.asarray(data))
            step = jax.random.split(keys[0])[1]
            probe = (jax.random.normal(step, data.shape) if kind == "Gaussian"
                     else jax.random.randint(step, data.shape, minval=0, maxval=2) * 2 - 1)
            arrays[f"{name}_{kind}_probe"], arrays[f"{name}_{kind}_bits"] = np.asarray(probe[0]), np.asarray(bits[0])
    np.savez_compressed(HERE / "score_sde_pc.npz", **arrays, made_with=(
        f"Python {platform.python_version()}, NumPy {np.__version__}, jax {jax.__version__}, flax {flax.__version__}; "
        "yang-song/score_sde 0acb9e0ea3b8cccd935068cd9c657318fbc6ce4c"))


if __name__ == "__main__":
    main()
