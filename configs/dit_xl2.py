"""DiT-XL/2 on ImageNet 256 x 256, in the space of latents: Peebles & Xie (2023), "Scalable Diffusion Models with
Transformers", Table 1 and Section 4.

    python -m diffusion.main --config=configs/dit_xl2.py --mode=plan --topology=v5p:2x2x4

For planning only: it trains on the 32 x 32 x 4 latents of Stable Diffusion's autoencoder, which no data source here
supports yet. 675M parameters. Paper: FID 9.62, and 2.27 with classifier-free guidance of scale 1.5, after 7M steps of
batch 256.
"""
from diffusion import config


def get_config():
    c = config.base(prediction="eps", loss="hybrid", network="dit")
    c.data.size = 32
    c.data.channels = 4
    c.data.flip = True
    c.learned_range = True
    c.network.channels = 1152
    c.network.depth = 28
    c.network.heads = 16
    c.network.patch = 2
    c.network.num_classes = 1000
    c.network.label_dropout = 0.1
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup = "0 steps"
    c.optimizer.clip_norm = 0.0
    c.ema.half_life = "1774368 images"  # decay 0.9999 a step at batch 256
    c.ema.warmup_ratio = 0.0
    c.train.batch_size = 256
    c.train.duration = "7M steps"
    c.sample.variance = c.likelihood.variance = "learned_range"
    c.sample.steps = 250
    c.sample.spacing = "linspace"
    c.sample.clip = False  # latents have no bounds
    return c
