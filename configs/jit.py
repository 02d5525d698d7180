"""JiT on the pixels of ImageNet: Li & He (2025), "Back to Basics: Let Denoising Generative Models Denoise", Section 4
and Table 9, with the settings of their code (LTH14/JiT).

    python -m diffusion.main --config=configs/jit.py:b16 --config.data.dir=IMAGENET

Variants: a size and a patch, b16 (the default), l16, h16, g16 at 256 pixels, b32, l32, h32, g32 at 512 and b64 at
1024, each also as NAME,tiny. IMAGENET has a folder train of class folders, or the class folders themselves.

The network predicts x_0, the loss is of the velocity with its denominator clipped at 0.05, which sampling does too
(`sample.least_noise`): their chain ends with 60 % of the last step's noise. The paper's t is our 1 - t. The noise has a
standard deviation of the resolution / 256; the loss is then smaller than theirs by its square, which Adam does not see.

FID-50K (Tables 5 and 6; the best of guidance scale and average), parameters by their code (G: by Table 9):

| variant | parameters    | 200 epochs | 600 epochs |     | variant | parameters    | 200 epochs | 600 epochs |
|---------|---------------|------------|------------|-----|---------|---------------|------------|------------|
| b16     |   131,123,712 | 4.37       | 3.66       |     | b32     |   133,190,400 | 4.64       | 4.02       |
| l16     |   458,877,664 | 2.79       | 2.36       |     | l32     |   461,534,176 | 3.06       | 2.53       |
| h16     |   952,514,368 | 2.29       | 1.86       |     | h32     |   956,055,616 | 2.51       | 1.94       |
| g16     | 2,007,130,000 | 2.15       | 1.82       |     | g32     | 2,011,555,984 | 2.11       | 1.78       |

b64: 4.82 after 200 epochs. G stops early, at about 320 epochs (Appendix A). The scales of guidance are of the README's
evaluations (none for G, which has H's). The averages of decay 0.9998 and 0.9996, which the paper compares with
0.9999, are kept as `shorter` and `shortest`: --weights.

Not run here. Cost of 600 epochs on 8 H100, computed from the multiply-adds of Table 7 (25, 88, 182, 383 G) at 25 % of
the peak in bfloat16: B 16 hours, L 57, H 118; 320 epochs of G 132.
"""
from diffusion import config
from diffusion.config_variants import chosen

# channels, depth, heads, width of the bottleneck, first block with class tokens, dropout
SIZES = {"b": (768, 12, 12, 128, 4, 0.0), "l": (1024, 24, 16, 128, 8, 0.0), "h": (1280, 32, 16, 256, 10, 0.2),
         "g": (1664, 40, 16, 256, 10, 0.2)}
GUIDANCE = {"b16": 3.0, "l16": 2.4, "h16": 2.2, "g16": 2.2, "b32": 3.0, "l32": 2.5, "h32": 2.3, "g32": 2.3, "b64": 3.0}


def get_config(variant: str = ""):
    name, tiny = chosen(variant, GUIDANCE)
    size, patch = name[0], int(name[1:])
    c = config.base(data="folder", process="flow", prediction="x0", weighting="clipped_velocity",
                    density="logit_normal", network="jit", solver="heun", spacing="uniform",
                    guidance="classifier_free", estimator="ode")
    c.data.dir, c.data.labels, c.data.crop, c.data.flip = "data/imagenet", "folders", "adm", True
    c.data.size = 16 * patch
    noise = patch / 16
    c.process.noise_scale, c.process.network_time, c.process.t_min = noise, "data", 1e-5
    c.loss.space, c.loss.least_sigma = "velocity", 0.05 * noise
    c.loss.density_mean, c.loss.density_std = 0.8, 0.8
    n = c.network
    n.channels, n.depth, n.heads, n.bottleneck, n.class_tokens_from, n.dropout = SIZES[size]
    n.patch = patch
    n.num_classes = 1000
    n.label_dropout = 0.1
    n.dtype = "bfloat16"
    c.optimizer.learning_rate = 2e-4
    c.optimizer.beta2 = 0.95
    c.optimizer.warmup = "5 epochs"
    c.optimizer.clip_norm = 0.0
    c.ema.half_life, c.ema.warmup_ratio = "7097472 images", 0.0  # decay 0.9999 a step at batch 1024
    shorter, shortest = 3548559, 1774102  # 0.9998 and 0.9996
    c.train.batch_size = 1024
    c.train.duration = "320 epochs" if size == "g" else "600 epochs"
    c.sample.steps, c.sample.clip, c.sample.least_noise = 50, False, 0.05
    c.sample.guidance.scale = GUIDANCE[name]
    c.sample.guidance.interval_high = 8.99 * noise  # their t above 0.1: sigma / alpha below 9 of the noise's scale
    c.likelihood.steps = 100
    if tiny:
        c.data.size = 4 * patch  # 16 patches
        n.channels, n.depth, n.heads, n.bottleneck, n.class_tokens, n.class_tokens_from = 48, 4, 4, 16, 4, 1
        n.num_classes = 10
        c.optimizer.warmup = "1 steps"
        c.ema.half_life, shorter, shortest = "8 images", 4, 2
        c.train.batch_size, c.train.duration = 8, "2 steps"
        c.sample.steps, c.sample.batch_size, c.sample.preview = 4, 8, 4
    c.averages = tuple(f"{average}: half_life, half_life={images} images, warmup_ratio=0.0" for average, images in (
        ("shorter", shorter), ("shortest", shortest)))
    return c
