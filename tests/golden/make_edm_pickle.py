"""Makes edm_pickle.pkl: a small network pickled by EDM's code as its training does, but without the text of that code.

At commit 008a4e5316c8e3bfe61a62f874bddba254295afb.

    pip install torch jax flax
    git clone https://github.com/NVlabs/edm
    python tests/golden/make_edm_pickle.py edm

Weights come by the rules of tests/interop/others.py, so that a test knows them.
"""
import pathlib
import pickle
import sys

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "interop")]
import others  # noqa: E402


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    import dnnlib
    from torch_utils import persistence
    from training import augment, loss, networks
    for module in (networks, augment, loss):
        for thing in vars(module).values():
            if isinstance(thing, type) and thing in persistence._decorators:
                thing._orig_module_src = ""
    net = dnnlib.util.construct_class_by_name(**dnnlib.EasyDict(others.PICKLED | dict(
        class_name="training.networks.EDMPrecond"))).eval().requires_grad_(False)
    net.load_state_dict({name: torch.from_numpy(x) for name, x in others.random_state(
        {name: tuple(x.shape) for name, x in net.state_dict().items()}).items()})
    data = dict(ema=net, loss_fn=loss.EDMLoss(), dataset_kwargs=dict(path="cifar10.zip", use_labels=True),
                augment_pipe=augment.AugmentPipe(p=0.12, xflip=1e8, yflip=1, scale=1))
    path = HERE / "edm_pickle.pkl"
    path.write_bytes(pickle.dumps(data))
    print(f"{path}: {path.stat().st_size / 1000:.1f} kB, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
