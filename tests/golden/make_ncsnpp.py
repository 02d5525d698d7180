"""Makes ncsnpp.npz: outputs of score_sde's models/ncsnpp.py, NCSN++ and DDPM++ in continuous time.

At commit 0acb9e0ea3b8cccd935068cd9c657318fbc6ce4c.

    pip install jax flax ml_collections
    git clone https://github.com/yang-song/score_sde
    python tests/golden/make_ncsnpp.py score_sde

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

CONFIGS = {"vesde": "ve.cifar10_ncsnpp_continuous", "vpsde": "vp.cifar10_ddpmpp_continuous",
           "subvpsde": "subvp.cifar10_ddpmpp_continuous"}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    importlib.import_module("flax.training.checkpoints")  # before the stand-in, which it would take for TensorFlow
    sys.modules["tensorflow"] = types.ModuleType("tensorflow")
    flax.optim = types.SimpleNamespace(Optimizer=object)
    from models import ncsnpp
    shapes, arrays = {}, {}
    for case, settings in others.NCSNPP.items():
        sde = settings.get("training.sde", "vesde")
        config = ml_collections.ConfigDict(importlib.import_module(f"configs.{CONFIGS[sde]}").get_config())
        config.update_from_flattened_dict(settings)
        x = others.images(config.data.image_size, config.data.num_channels)
        times = np.asarray(others.LEVELS if sde == "vesde" else others.TIMES, np.float32)
        x = x if config.data.centered else (x + 1) / 2
        model = ncsnpp.NCSNpp(config=config)
        abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), x, times, train=False))["params"]  # noqa: B023
        shapes[case] = {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(abstract, sep="/").items()}
        params = flax.traverse_util.unflatten_dict(others.random_state(shapes[case]), sep="/")
        out = jax.jit(lambda params: model.apply({"params": params}, x, times, train=False))(params)  # noqa: B023
        arrays[case] = others.kept(np.asarray(out))
        print(case, sum(np.prod(shape) for shape in shapes[case].values()), np.abs(arrays[case]).max())
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, jax {jax.__version__}, " \
                f"flax {flax.__version__}"
    others.save("ncsnpp.npz", shapes, arrays, made_with)


if __name__ == "__main__":
    main()
