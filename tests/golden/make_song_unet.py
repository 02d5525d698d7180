"""Makes song_unet.npz: outputs of EDM's SongUNet, with augmentation labels, and the parameters of its published sizes.

At commit 008a4e5316c8e3bfe61a62f874bddba254295afb.

    pip install torch jax flax
    git clone https://github.com/NVlabs/edm
    python tests/golden/make_song_unet.py edm

Weights and inputs come by the rules of tests/interop/others.py and are not stored.
"""
import json
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
    for case, settings in others.SONG.items():
        given = {key: value for key, value in settings.items() if key != "class_name"}
        model = (networks.EDMPrecond if "img_channels" in given else networks.SongUNet)(**given).eval()
        shapes[case] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        state = {name: torch.from_numpy(v) for name, v in others.random_state(shapes[case]).items()}
        for name, value in model.state_dict().items():
            assert not name.endswith("resample_filter") or torch.equal(value, state[name]), name
        model.load_state_dict(state)
        network = getattr(model, "model", model)  # the raw network of an EDMPrecond
        x = others.images(given["img_resolution"], given.get("in_channels", given.get("img_channels")))
        labels = torch.eye(given["label_dim"])[list(others.LABELS)] if "label_dim" in given else None
        augment = torch.from_numpy(others.augment_labels()) if "augment_dim" in given else None
        with torch.no_grad():
            out = network(torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))), torch.tensor(others.C_NOISE),
                          labels, augment)
        arrays[case] = others.kept(out.numpy().transpose(0, 2, 3, 1))
    counts = {}
    for name, settings in others.SONG_PUBLISHED.items():
        given = {key: value for key, value in settings.items() if key != "model_type"}
        counts[name] = sum(p.numel() for p in networks.SongUNet(**given).parameters())
        print(name, counts[name])
    arrays["counts"] = np.array(json.dumps(counts))
    made_with = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    others.save("song_unet.npz", shapes, arrays, made_with)


if __name__ == "__main__":
    main()
