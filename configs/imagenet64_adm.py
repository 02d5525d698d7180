"""ImageNet 64 x 64 by class: ADM, the model of Dhariwal & Nichol (2021), "Diffusion Models Beat GANs on Image
Synthesis", Appendix I, with guided-diffusion's flags.

    python -m diffusion.main --config=configs/imagenet64_adm.py --mode=plan --topology=v5e:16x16

296M parameters. Paper: FID 2.07 with 250 steps (Table 5, without guidance), after 540k steps of batch 2048. Training
needs a data set named imagenet64 in TFDS's layout (array_record) in config.data.dir; nothing here prepares one yet, and
this run has not been done.
"""
from diffusion import config


def get_config():
    c = config.base(process="cosine", loss="hybrid")
    c.data.dataset = "imagenet64"
    c.data.size = 64
    c.data.flip = True
    c.learned_range = True
    n = c.network
    n.channels = 192
    n.multipliers = (1, 2, 3, 4)
    n.blocks = 3
    n.attention_resolutions = (32, 16, 8)
    n.head_channels = 64
    n.dropout = 0.1
    n.scale_shift = True
    n.downsample = ("resblock",)
    n.upsample = ("resblock",)
    n.pad_around = True
    n.norm_epsilon = 1e-5
    n.freq_shift = 0.0
    n.cos_first = True
    n.num_classes = 1000
    c.optimizer.learning_rate = 3e-4
    c.optimizer.warmup = "0 steps"
    c.optimizer.clip_norm = 0.0
    c.ema.half_life = "14194945 images"  # decay 0.9999 a step at batch 2048
    c.ema.warmup_ratio = 0.0
    c.train.batch_size = 2048
    c.train.duration = "540k steps"
    c.sample.variance = c.likelihood.variance = "learned_range"
    c.sample.steps = 250
    return c
