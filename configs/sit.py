"""SiT on latents of ImageNet 256 x 256: Ma et al. (2024), "SiT: Exploring Flow and Diffusion-based Generative Models
with Scalable Interpolant Transformers", Section 3 and Table 1, with the settings of their code.

    python -m diffusion.main --config=configs/sit.py:xl2 --config.data.path=latents.npz

Variants: xl2 (the default), l2, b2, s2, each also as NAME,tiny. DiT's network and parameters on straight lines, trained
to predict the velocity; it is told the data's share, 0 for noise, unscaled (`process.network_time`). Half of its
outputs are read by nothing, since the authors kept DiT's head for the variance (`network.unread_outputs`).

latents.npz holds x, float32 [N, 32, 32, 4], samples of Stable Diffusion's autoencoder (sd-vae-ft-ema) of each image and
of its mirror image, and label. They are multiplied by 0.18215 here, so that samples are in the autoencoder's units.

FID-50K (recalled) after 400k steps without guidance: S/2 57.6, B/2 33.0, L/2 18.8, XL/2 17.2; XL/2 after 7M steps: 8.3,
and with classifier-free guidance of scale 1.5, which their code applies to three of the four channels, 2.15 by the
probability flow (below: Heun's method of 249 evaluations) and 2.06 by an SDE of 250 steps. Not run here. The cost is
DiT's (configs/dit.py).
"""
from configs.dit import SIZES
from diffusion import config
from diffusion.config_variants import chosen


def get_config(variant: str = ""):
    name, tiny = chosen(variant, [f"{size}2" for size in SIZES])
    c = config.base(data="file", kind="array", process="flow", prediction="velocity", network="dit", solver="heun",
                    spacing="uniform", estimator="ode")
    c.data.path = "latents.npz"
    c.data.shape = (32, 32, 4)
    c.data.mean, c.data.deviation = (0.0,), (1 / 0.18215,)
    c.process.network_time, c.process.t_min = "data", 1e-5
    c.loss.space = "velocity"
    n = c.network
    n.channels, n.depth, n.heads = SIZES[name[:-1]]
    n.patch = 2
    n.unread_outputs = True
    n.num_classes = 1000
    n.label_dropout = 0.1
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup = "0 steps"
    c.optimizer.clip_norm = 0.0
    c.ema.half_life = "1774368 images"  # decay 0.9999 a step at batch 256
    c.ema.warmup_ratio = 0.0
    c.train.batch_size = 256
    c.train.duration = "7M steps" if name == "xl2" else "400k steps"
    c.sample.steps = 125
    c.likelihood.steps = 100
    if tiny:
        c.data.shape = (16, 16, 4)
        n.channels, n.depth, n.heads = 48, 2, 4
        n.num_classes = 10
        c.ema.half_life = "8 images"
        c.train.batch_size, c.train.duration = 8, "2 steps"
        c.sample.steps, c.sample.batch_size, c.sample.preview = 4, 8, 4
    return c
