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
from configs import dit
from diffusion import config
from diffusion.config_variants import chosen


def get_config(variant: str = ""):
    name, tiny = chosen(variant, [f"{size}2" for size in dit.SIZES])
    c = config.base(data="file", kind="array", process="flow", prediction="velocity", network="dit", solver="heun",
                    spacing="uniform", estimator="ode")
    c.data.path = "latents.npz"
    c.data.shape = (32, 32, 4)
    c.data.mean, c.data.deviation = (0.0,), (1 / 0.18215,)
    c.process.network_time, c.process.t_min = "data", 1e-5
    c.loss.space = "velocity"
    c.network.patch, c.network.unread_outputs = 2, True
    c.sample.steps = 125
    c.likelihood.steps = 100
    if tiny:
        c.data.shape = (16, 16, 4)
    return dit.trained(c, name, tiny)
