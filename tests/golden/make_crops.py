"""Makes crops.npz: the pictures that guided-diffusion, EDM and Chrabaszcz et al. make of generated ones.

guided-diffusion at commit 22e0df8183507e13a7813f8d38d51b072ca1e67c, EDM at
008a4e5316c8e3bfe61a62f874bddba254295afb, Imagenet32_Scripts at
108b12098cdd7129de0e3b1dbacab2a483b0e729.

    pip install pillow
    git clone https://github.com/openai/guided-diffusion
    git clone https://github.com/NVlabs/edm
    git clone https://github.com/PatrykChrabaszcz/Imagenet32_Scripts
    python tests/golden/make_crops.py guided-diffusion edm Imagenet32_Scripts

Their imports that these functions do not use are replaced by empty modules. The numbers that guided-diffusion draws are
stored beside the picture.
"""
import pathlib
import platform
import random
import sys
import tempfile
import types
from unittest import mock

import numpy as np
import PIL
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent
SIZE = 16
SHAPES = {"wide": (45, 70), "tall": (61, 33), "small": (14, 12), "twice": (32, 40)}


def picture(name: str) -> np.ndarray:
    """Smooth colours with noise, uint8 [H, W, 3]."""
    height, width = SHAPES[name]
    rng = np.random.default_rng(len(name))
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(0.3 * x + 0.1 * k * y) for k in range(3)], axis=-1)
    return np.clip(128 + 80 * waves + 30 * rng.standard_normal(waves.shape), 0, 255).astype(np.uint8)


def main() -> None:
    for name in ("blobfile", "mpi4py", "torch", "torch.utils", "torch.utils.data", "click"):
        sys.modules.setdefault(name, mock.MagicMock())
    sys.modules["torch.utils.data"].Dataset = object
    adm, edm, resizer = (types.ModuleType(name) for name in ("adm", "edm", "resizer"))
    for module, folder, file in zip((adm, edm, resizer), sys.argv[1:], (
            "guided_diffusion/image_datasets.py", "dataset_tool.py", "image_resizer_imagent.py")):
        exec((pathlib.Path(folder) / file).read_text(), vars(module))
    found = {}
    for name in SHAPES:
        array = picture(name)
        found[f"adm_{name}"] = adm.center_crop_arr(Image.fromarray(array), SIZE)
        drawn = []

        def randrange(*bounds):
            drawn.append(random.Random(len(drawn)).randrange(*bounds))
            return drawn[-1]
        adm.random = types.SimpleNamespace(randrange=randrange)
        found[f"adm_random_{name}"] = adm.random_crop_arr(Image.fromarray(array), SIZE)
        found[f"drawn_{name}"] = np.array(drawn)
        found[f"edm_{name}"] = edm.make_transform("center-crop", SIZE, SIZE)(array)
        with tempfile.TemporaryDirectory() as folder:
            inside, out = pathlib.Path(folder) / "in", pathlib.Path(folder) / "out"
            inside.mkdir()
            Image.fromarray(array).save(inside / "x.png")
            resizer.size = SIZE
            resizer.resize_img_folder(str(inside), str(out), "box")
            found[f"box_{name}"] = np.asarray(Image.open(out / "x.png"))
    made_with = f"Python {platform.python_version()}, Pillow {PIL.__version__}, numpy {np.__version__}"
    np.savez_compressed(HERE / "crops.npz", made_with=made_with, **found)


if __name__ == "__main__":
    main()
