"""Makes metrics.npz: torch-fidelity's Inception-v3 and metrics, DINOv2, clean-fid's and PyTorch's resizing.

    pip install torch; pip install --no-deps torch-fidelity==0.4.0 clean-fid==0.1.35
    git clone https://github.com/facebookresearch/dinov2      # at commit b8931f7bf91576930313be2c6d6af376033b35f0
    python tests/golden/make_metrics.py dinov2

With a mock of torchvision, which they import and none of this uses. Inception in float32; the metrics on
given features, in float64 where theirs are.
"""
import importlib
import pathlib
import platform
import sys
from unittest import mock

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent)]
from metrics import golden_metrics as case  # noqa: E402

for name in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
    sys.modules[f"torchvision{name}"] = mock.MagicMock(CIFAR10=object, CIFAR100=object, STL10=object)


def module(package: str, name: str):
    return importlib.import_module(f"{package}.{name}")


def inception():
    their = module("torch_fidelity", "feature_extractor_inceptionv3")
    load, torch.load = torch.load, lambda *args, **kwargs: {}
    torch.nn.Module.load_state_dict, real = lambda *args, **kwargs: None, torch.nn.Module.load_state_dict
    network = their.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"],
                                                feature_extractor_weights_path="none")
    torch.load, torch.nn.Module.load_state_dict = load, real
    network.load_state_dict({name: torch.from_numpy(case.tensor(name, tuple(x.shape))) if x.is_floating_point() else x
                             for name, x in network.state_dict().items()})
    return network.eval()


def main() -> None:
    out, network = {}, inception()
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items() if x.is_floating_point()}
    out["names"] = np.array(list(shapes))
    out["shapes"] = np.array([" ".join(map(str, shape)) for shape in shapes.values()])
    first = {}
    network.Mixed_6d.branch1x1.conv.register_forward_hook(lambda module, given, found: first.update(x=found))
    resize = module("torch_fidelity", "interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    clean = module("cleanfid", "resize").make_resizer("PIL", False, "bicubic", (299, 299))
    for size in case.SIZES:
        images = case.images(size)
        x = torch.from_numpy(images).permute(0, 3, 1, 2)
        pool, logits = network(x)
        out |= {f"pool_{size}": pool.numpy(), f"logits_{size}": logits.numpy(),
                # guided-diffusion's spatial features: 7 channels of mixed_6/conv, [17, 17, 7] in a row
                f"spatial_{size}": first["x"][:, :7].permute(0, 2, 3, 1).reshape(len(x), -1).numpy()}
        if size < 299 or size == 400:
            corner = np.s_[:, ::13, ::17]  # a sample of the pixels
            out[f"tensorflow_{size}"] = resize(x.float(), size=(299, 299), align_corners=False).permute(
                0, 2, 3, 1).numpy()[corner]
            out[f"clean_{size}"] = np.stack([clean(image) for image in images])[corner]
            out[f"bilinear_{size}"] = torch.nn.functional.interpolate(
                x.float(), size=(299, 299), mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()[corner]

    sys.path.insert(0, sys.argv[1])
    from dinov2.models.vision_transformer import DinoVisionTransformer  # with its attention's plain form, on the CPU
    vit = DinoVisionTransformer(img_size=518, patch_size=14, embed_dim=case.DINO["width"], depth=case.DINO["depth"],
                                num_heads=case.DINO["heads"], init_values=1.0, block_chunks=0).eval()
    shapes = {name: tuple(x.shape) for name, x in vit.state_dict().items()}
    vit.load_state_dict({name: torch.from_numpy(case.dino_tensor(name, shape)) for name, shape in shapes.items()})
    out["dino_names"] = np.array(list(shapes))
    out["dino_shapes"] = np.array([" ".join(map(str, shape)) for shape in shapes.values()])
    for size in (32, 400):
        x = torch.from_numpy(case.images(size)).permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True) / 255
        for channel, (mean, std) in enumerate(((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))):
            x[:, channel] = (x[:, channel] - mean) / std
        out[f"dino_{size}"] = vit(x).detach().numpy()

    fake, real = case.features(1, case.FAKE), case.features(2, case.REAL)
    fid = module("torch_fidelity", "metric_fid")
    a, b = (fid.fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (fake, real))
    out["fid"] = fid.fid_statistics_to_metric(a, b, False)[fid.KEY_METRIC_FID]
    kid = module("torch_fidelity", "metric_kid")
    settings = dict(kid_subsets=case.SUBSETS, kid_subset_size=case.SUBSET, rng_seed=2020, kid_kernel="poly",
                    kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1, verbose=False)
    found = kid.kid_features_to_metric(torch.from_numpy(fake.astype(np.float64)),
                                       torch.from_numpy(real.astype(np.float64)), **settings)
    out["kid"] = np.array([found[kid.KEY_METRIC_KID_MEAN], found[kid.KEY_METRIC_KID_STD]])
    score = module("torch_fidelity", "metric_isc").isc_features_to_metric(torch.from_numpy(case.logits()), 10, False)
    out["inception_score"] = np.array([score["inception_score_mean"], score["inception_score_std"]])
    prc = module("torch_fidelity", "metric_prc").prc_features_to_metric(
        torch.from_numpy(fake.astype(np.float64)), torch.from_numpy(real.astype(np.float64)), prc_neighborhood=3,
        prc_batch_size=10000, save_cpu_ram=False, verbose=False)
    out["precision_recall"] = np.array([prc["precision"], prc["recall"]])
    from importlib.metadata import version
    out["made_with"] = np.array([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in (
        "torch", "torch-fidelity", "clean-fid", "numpy", "pillow"))])
    np.savez_compressed(HERE / "metrics.npz", **out)


if __name__ == "__main__":
    main()
