"""DiT on ImageNet 256 x 256, in the space of latents: Peebles & Xie (2023), "Scalable Diffusion Models with
Transformers", Table 4 and Section 4, with the settings of their code.

    python -m diffusion.main --config=configs/dit.py:xl2 --mode=plan --topology=v5p:2x2x4

Variants: a size and a patch, xl2 (the default), xl4, xl8, l2 .. s8, each also as NAME,tiny. For planning only: it
trains on the 32 x 32 x 4 latents of Stable Diffusion's autoencoder, and L_vlb, as in their code, on levels of a byte,
while latents of a file are arrays of floats (configs/sit.py trains on those).

FID-50K after 400k steps of batch 256 without guidance (recalled), parameters by their code, and billions of
multiply-adds of an evaluation (Table 4, recalled):

| size | /8: FID, parameters, GMAC    | /4                           | /2                            |
|------|------------------------------|------------------------------|-------------------------------|
| S    | 153.60   33,142,016    0.36  | 100.41   32,920,448    1.41  | 68.40   32,865,056     6.06   |
| B    | 122.74  130,869,248    1.42  |  68.38  130,426,496    5.56  | 43.47  130,315,808    23.01   |
| L    | 118.87  458,578,432    5.01  |  45.64  457,988,224   19.70  | 23.33  457,840,672    80.71   |
| XL   | 106.41  675,664,640    7.39  |  43.01  675,000,704   29.05  | 19.47  674,834,720   118.64   |

XL/2 after 7M steps: 9.62, and 2.27 with classifier-free guidance of scale 1.5, which their code applies to three of
the four channels. Not run here. Cost of 400k steps of XL/2, computed at 25 % of the peak in bfloat16: 6 x 119 GMAC x
102M images, 32 hours on 8 A100.
"""
from diffusion import config
from diffusion.config_variants import chosen

SIZES = {"xl": (1152, 28, 16), "l": (1024, 24, 16), "b": (768, 12, 12), "s": (384, 12, 6)}  # channels, depth, heads
PATCHES = (2, 4, 8)


def trained(c, name: str, tiny: bool):
    """The config with the training of the size `name`, which is also SiT's; tiny: two steps on a CPU."""
    n = c.network
    n.channels, n.depth, n.heads = SIZES[name[:-1]]
    n.num_classes, n.label_dropout = 1000, 0.1
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.clip_norm = 1e-4, "0 steps", 0.0
    c.ema.half_life, c.ema.warmup_ratio = "1774368 images", 0.0  # decay 0.9999 a step at batch 256
    c.train.batch_size, c.train.duration = 256, "7M steps" if name == "xl2" else "400k steps"
    if tiny:
        n.channels, n.depth, n.heads, n.num_classes = 48, 2, 4, 10
        c.ema.half_life = "8 images"
        c.train.batch_size, c.train.duration = 8, "2 steps"
        c.sample.steps, c.sample.batch_size, c.sample.preview = 4, 8, 4
    return c


def get_config(variant: str = ""):
    name, tiny = chosen(variant, [f"{size}{patch}" for size in SIZES for patch in PATCHES])
    c = config.base(prediction="eps", loss="hybrid", network="dit")
    c.data.size = 32
    c.data.channels = 4
    c.data.flip = True
    c.learned_range = True
    c.network.patch = int(name[-1])
    c.sample.variance = c.likelihood.variance = "learned_range"
    c.sample.steps = 250
    c.sample.spacing = "linspace"
    c.sample.clip = False  # latents have no bounds
    if tiny:
        c.data.size = 16
    return trained(c, name, tiny)
