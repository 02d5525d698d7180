"""EDM's networks and training: Karras et al. (2022), "Elucidating the Design Space of Diffusion-Based Generative
Models", config F of Table 2, Table 7, with the options that its README gives for each published model.

    python -m diffusion.data.prepare cifar10 --source=cifar-10-python.tar.gz --data_dir=data
    python -m diffusion.main --config=configs/edm.py:vp
    python -m diffusion.main --config=configs/edm.py:ffhq_ve --config.data.dir=FFHQ      # a folder of pictures
    python -m diffusion.main --config=configs/edm.py:vp_cond,tiny                        # a CPU trains two steps

| variant | data | network | parameters | FID, network calls (Table 2, F) |
|---|---|---|---|---|
| vp, ve | CIFAR-10 | DDPM++, NCSN++ | 55.7M, 56.4M | 1.97, 1.98 with 35 |
| vp_cond, ve_cond | CIFAR-10 by class | the same | 55.7M, 56.4M | 1.79, 1.79 with 35 |
| ffhq_vp, ffhq_ve | FFHQ 64 x 64 | the same, narrower at 64 | 61.8M, 62.8M | 2.39, 2.53 with 79 |
| afhqv2_vp, afhqv2_ve | AFHQv2 64 x 64 | the same | 61.8M, 62.8M | 1.96, 2.16 with 79 |

The FIDs are recalled, but for 1.97 and 1.79, which the abstract gives; each is the best of three sets of 50,000
samples. 200M images are about 2 days on 8 V100 for CIFAR-10 and 4 for 64 x 64 (README). These runs have not been done
here.
"""
from diffusion import config
from diffusion.config_variants import chosen

CIFAR10 = dict(multipliers=(2, 2, 2), dropout=0.13, augment=0.12, batch_size=512, learning_rate=1e-3)
FACES = dict(multipliers=(1, 2, 2, 2), dropout=0.05, augment=0.15, batch_size=256, learning_rate=2e-4)
DATA = {"": CIFAR10, "ffhq_": FACES, "afhqv2_": FACES | dict(dropout=0.25)}
VARIANTS = ("vp", "ve", "vp_cond", "ve_cond", "ffhq_vp", "ffhq_ve", "afhqv2_vp", "afhqv2_ve")


def get_config(variant: str = ""):
    name, tiny = chosen(variant, VARIANTS)
    where = next(where for where in reversed(DATA) if name.startswith(where))
    recipe = DATA[where]
    c = config.base(data="folder" if where else "tfds", network="song_unet", process="edm", prediction="edm",
                    weighting="edm", density="log_normal", solver="heun", spacing="karras", estimator="ode")
    c.data.augment = recipe["augment"]
    if where:
        c.data.size, c.data.crop = 64, "edm"
    else:
        c.data.on_device = True  # 150 MB
    c.process.sigma_min, c.process.sigma_max, c.sigma_data = 0.002, 80.0, 0.5
    c.loss.space, c.loss.density_mean, c.loss.density_std = "x0", -1.2, 1.2
    c.network.multipliers, c.network.dropout = recipe["multipliers"], recipe["dropout"]
    c.network.num_classes = 10 if name.endswith("_cond") else 0
    if "ve" in name.removeprefix(where):
        c = ncsnpp(c)
    c.optimizer.learning_rate, c.optimizer.warmup, c.optimizer.clip_norm = recipe["learning_rate"], "10M images", 0.0
    c.ema.half_life, c.ema.warmup_ratio = "500k images", 0.05
    c.train.batch_size, c.train.duration = recipe["batch_size"], "200M images"
    c.sample.steps, c.sample.clip = 40 if where else 18, False
    return shrunk(c) if tiny else c


def ncsnpp(c):
    """The config with NCSN++ in place of DDPM++."""
    n = c.network
    n.encoder, n.resample_filter, n.noise_embedding, n.noise_multiplier = "residual", (1, 3, 3, 1), "fourier", 2
    return c


def shrunk(c):
    """The config with a narrow and shallow SongUNet of the same structure, for two steps on a CPU."""
    c.network.channels, c.network.blocks, c.optimizer.warmup, c.ema.half_life = 16, 1, "0 steps", "8 images"
    t = c.train
    t.batch_size, t.duration, t.log_every, t.sample_every, t.checkpoint_every = 8, "2 steps", *["2 steps"] * 3
    c.sample.steps, c.sample.batch_size, c.sample.preview = 2, 4, 4
    return c
