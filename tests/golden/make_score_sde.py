"""Makes score_sde.npz: outputs of score_sde's models/ddpm.py.

    pip install jax flax ml_collections
    git clone https://github.com/yang-song/score_sde
    python tests/golden/make_score_sde.py score_sde

Weights and inputs come by the rules of tests/interop/others.py and are not stored.
"""
import importlib
import pathlib
import platform
import sys
import types

import flax
import flax.traverse_util
import jax
import ml_collections
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "interop")]
import others  # noqa: E402


def load(clone: str):
    """Their DDPM. Stand-ins for what its imports need and it does not: TensorFlow, and flax.optim, which is no more."""
    sys.path.insert(0, clone)
    importlib.import_module("flax.training.checkpoints")  # before the stand-in, which it would take for TensorFlow
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
    flax.optim = types.SimpleNamespace(Optimizer=object)
    from configs.vp.ddpm import cifar10
    from models import ddpm
    return ddpm.DDPM, cifar10.get_config


def main() -> None:
    ddpm, get_config = load(sys.argv[1])
    shapes, arrays = {}, {}
    for case, settings in others.SCORE_SDE.items():
        config = ml_collections.ConfigDict(get_config())
        config.update_from_flattened_dict(settings)
        x = others.images(config.data.image_size, config.data.num_channels)
        model, times = ddpm(config=config), np.asarray(others.TIMES, np.float32)
        abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), x, times, train=False))["params"]
        shapes[case] = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(abstract, sep="/").items()}
        params = flax.traverse_util.unflatten_dict(others.random_state(shapes[case]), sep="/")
        out = jax.jit(lambda params: model.apply({"params": params}, x, times, train=False))(params)
        arrays[case] = others.kept(np.asarray(out))
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, jax {jax.__version__}, " \
                f"flax {flax.__version__}"
    others.save("score_sde.npz", shapes, arrays, made_with)


if __name__ == "__main__":
    main()
