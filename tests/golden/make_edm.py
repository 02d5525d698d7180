"""Makes edm.npz: outputs of EDM's DhariwalUNet.

    pip install torch jax flax
    git clone https://github.com/NVlabs/edm
    python tests/golden/make_edm.py edm

Weights and inputs come by the rules of tests/interop/others.py and are not stored.
"""
import pathlib
import platform
import sys

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent / "interop")]
import others  # noqa: E402


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    from training import networks
    shapes, arrays = {}, {}
    for case, settings in others.EDM.items():
        model = (networks.EDMPrecond if "img_channels" in settings else networks.DhariwalUNet)(**settings).eval()
        shapes[case] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        model.load_state_dict({name: torch.from_numpy(v) for name, v in others.random_state(shapes[case]).items()})
        network = getattr(model, "model", model)  # the raw network of an EDMPrecond
        x = others.images(settings["img_resolution"], settings.get("in_channels", settings.get("img_channels")))
        labels = torch.eye(settings["label_dim"])[list(others.LABELS)] if "label_dim" in settings else None
        with torch.no_grad():
            out = network(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), torch.tensor(others.C_NOISE),
                          labels)
        arrays[case] = others.kept(out.numpy().transpose(0, 2, 3, 1))
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    others.save("edm.npz", shapes, arrays, made_with)


if __name__ == "__main__":
    main()
