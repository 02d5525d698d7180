"""EDM2: Karras et al. (2024), "Analyzing and Improving the Training Dynamics of Diffusion Models", configuration G.

With the presets of NVlabs/edm2 (train_edm2.py).

    python -m diffusion.main --config=configs/edm2.py:img64_s --config.data.dir=IMAGENET
    python -m diffusion.main --config=configs/edm2.py:img512_xs --config.data.path=latents.npz
    python -m diffusion.main --workdir=RUN --mode=evaluate --weights=posthoc:0.075 --config.evaluate.extractor=inception
    python -m diffusion.main --config=configs/edm2.py:img512_xs,tiny --config.data.path=few.npz  # two steps on a CPU

| variant | parameters | G multiply-adds | steps | FID (paper, Tables 2 and 3) with --weights |
|---|---|---|---|---|
| img512_xxs | 31M | 11 | 1,048,576 | not published |
| img512_xs | 125M | 45 | 1,048,576 | 3.53 with posthoc:0.135 |
| img512_s | 280M | 101 | 1,048,576 | 2.56 with posthoc:0.130 |
| img512_m | 498M | 179 | 1,048,576 | 2.25 with posthoc:0.100 |
| img512_l | 777M | 279 | 917,504 | 2.06 with posthoc:0.085 |
| img512_xl | 1119M | 402 | 655,360 | 1.96 with posthoc:0.085 |
| img512_xxl | 1523M | 547 | 458,752 | 1.91 with posthoc:0.070 |
| img64_xs | 125M | 45 | 524,288 | a guide, see below |
| img64_s | 280M | 101 | 524,288 | 1.58 with posthoc:0.075 |
| img64_m | 498M | 179 | 1,048,576 | 1.43 with posthoc:0.060 |
| img64_l | 777M | 279 | 524,288 | 1.33 with posthoc:0.040 |
| img64_xl | 1119M | 402 | 327,680 | 1.33 with posthoc:0.040 |

FIDs and widths are those of the comments in generate_images.py: 50,000 samples, the best of three sets, without
guidance, by Heun's method with 63 calls. With a worse model as guide, img64_s reaches 1.01 (Karras et al. 2024b):

    ... --mode=evaluate --weights=posthoc:0.045 --config.sample.guidance.name=autoguidance
        --config.sample.guidance.scale=1.7 --config.sample.guidance.guide=RUN_OF_XS@65536#posthoc:0.110

Not run here. Multiply-adds are of one image, computed from the layers' shapes; a step takes three times as many. At 40%
of an H100's 989 TFLOP/s, img512_xs would take one H100 17 days, img512_s 38, img512_xxl 90 and img64_s 19 (computed).

IMAGENET is a folder of classes; its pictures are cut and scaled as by the authors. latents.npz holds x, float32 [N, 64,
64, 4], and label: of each image of 512 x 512 one sample of Stable Diffusion's autoencoder (sd-vae-ft-mse), without its
factor 0.18215. The authors draw another sample in each epoch; nothing here encodes images or decodes latents yet, as
the FIDs of img512 need. They compute in float16 and replace gradients that are not finite by 0; here it is bfloat16,
and such a step is skipped.
"""
from diffusion import config
from diffusion.config_variants import chosen

SIZES = {  # channels, learning rate, dropout
    "xxs": (64, 170e-4, 0.0), "xs": (128, 120e-4, 0.0), "s": (192, 100e-4, 0.0), "m": (256, 90e-4, 0.1),
    "l": (320, 80e-4, 0.1), "xl": (384, 70e-4, 0.1), "xxl": (448, 65e-4, 0.1)}
STEPS = {  # of 2048 images
    "img64_s": 2**19, "img64_m": 2**20, "img64_l": 2**19, "img64_xl": 5 * 2**16, "img64_xs": 2**19,
    "img512_xxs": 2**20, "img512_xs": 2**20, "img512_s": 2**20, "img512_m": 2**20, "img512_l": 7 * 2**17,
    "img512_xl": 5 * 2**17, "img512_xxl": 7 * 2**16}


def get_config(variant: str = ""):
    name, tiny = chosen(variant, STEPS)
    latents, size = name.startswith("img512"), name.partition("_")[2]
    c = config.base(data="file" if latents else "folder", kind="array" if latents else "image", network="edm2",
                    process="edm", prediction="edm", weighting="edm", density="log_normal", average="power",
                    solver="heun", spacing="karras", estimator="ode")
    if latents:
        c.data.path, c.data.shape = "latents.npz", (64, 64, 4)
        c.data.mean = (5.81, 3.25, 0.12, -2.15)
        c.data.deviation = (8.34, 9.24, 7.42, 6.56)  # twice that of the latents: sigma_data is 0.5
    else:
        c.data.labels, c.data.size, c.data.crop = "folders", 64, "adm"
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.5
    o = c.loss
    o.space, o.uncertainty, o.uncertainty_normalised = "x0", True, True
    o.density_mean, o.density_std = (-0.4, 1.0) if latents else (-0.8, 1.6)
    n = c.network
    n.channels, c.optimizer.learning_rate, n.dropout = SIZES[size]
    n.num_classes, n.dtype = 1000, "bfloat16"
    o = c.optimizer
    o.warmup, o.decay, o.decay_from = "10M images", "inverse_sqrt", "70k steps" if latents else "35k steps"
    o.beta2, o.clip_norm = 0.99, 0.0
    o.epsilon = 1e-8 / (64 * 64 * (4 if latents else 3))  # theirs is for the sum over an image's entries
    c.ema.sigma_rel, c.averages = 0.05, ("long: power, sigma_rel=0.1",)
    t = c.train
    t.batch_size, t.duration, t.nonfinite = 2048, f"{STEPS[name]} steps", "skip"
    t.log_every, t.sample_every, t.checkpoint_every, t.snapshot_every = "64 steps", *["4096 steps"] * 3
    c.sample.steps, c.sample.clip = 32, False
    if tiny:
        n.channels, n.head_channels, n.blocks, n.num_classes, n.dtype = 8, 8, 1, 10, "float32"
        if latents:
            c.data.shape = (32, 32, 4)
        else:
            c.data.size = 32
        o.warmup = "0 steps"
        t.batch_size, t.duration = 8, "2 steps"
        t.log_every, t.sample_every, t.checkpoint_every, t.snapshot_every = "1 steps", *["2 steps"] * 2, "1 steps"
        c.sample.steps, c.sample.batch_size, c.sample.preview = 2, 4, 4
    return c
