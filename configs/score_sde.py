"""NCSN++ and DDPM++ on CIFAR-10 in continuous time: Song et al. (2021), "Score-Based Generative Modeling through SDEs",
Tables 2 and 3, with the values of score_sde's configs.

    python -m diffusion.data.prepare cifar10 --source=cifar-10-python.tar.gz --data_dir=data
    python -m diffusion.main --config=configs/score_sde.py:ve
    python -m diffusion.main --config=configs/score_sde.py:sub_vp_deep,tiny              # a CPU trains two steps

| variant | network | parameters | steps | FID, IS | FID, bits/dim by the ODE |
|---|---|---|---|---|---|
| ve | NCSN++ cont. | 62,758,787 | 1.3M | 2.38, 9.83 | |
| ve_deep | NCSN++ cont. (deep) | 107,586,947 | 950k | 2.20, 9.89 | |
| vp | DDPM++ cont. (VP) | 61,804,419 | 1.3M | 2.55, 9.58 | 3.93, 3.16 |
| vp_deep | DDPM++ cont. (deep, VP) | 106,632,579 | 950k | 2.41, 9.68 | 3.08, 3.13 |
| sub_vp | DDPM++ cont. (sub-VP) | 61,804,419 | 1.3M | 2.61, 9.56 | 3.16, 3.02 |
| sub_vp_deep | DDPM++ cont. (deep, sub-VP) | 106,632,579 | 950k | 2.41, 9.57 | 2.92, 2.99 |

The numbers are those of its README; FID and IS are the best checkpoint's. It gives 0.2 to 0.3 s a step. Training 1.3M
steps of batch 128 is 166M images. These runs have not been done here.
"""
from configs import edm
from diffusion import config
from diffusion.config_variants import chosen

VARIANTS = ("ve", "ve_deep", "vp", "vp_deep", "sub_vp", "sub_vp_deep")
VALUES = 32 * 32 * 3  # of an image


def get_config(variant: str = ""):
    name, tiny = chosen(variant, VARIANTS)
    process = name.removesuffix("_deep")
    is_ve = process == "ve"
    c = config.base(network="song_unet", process=process, prediction="edm_ve" if is_ve else "eps",
                    solver="reverse_diffusion" if is_ve else "euler_maruyama",
                    corrector="langevin" if is_ve else "none", spacing="uniform", estimator="ode")
    c.data.flip = True
    c.data.on_device = True  # 150 MB
    c.network.blocks, c.network.dropout = 8 if name.endswith("_deep") else 4, 0.1
    c.process.t_min = 1e-5
    c.optimizer.learning_rate, c.optimizer.warmup = 2e-4, "5000 steps"
    if is_ve:
        c = edm.ncsnpp(c)
        c.process.sigma_min, c.process.sigma_max = 0.02, 100.0  # theirs are for data in [0, 1]
        c.ema.half_life = "88678 images"  # decay 0.999 a step
        # Their loss of VE is half the sum over an image, ours the mean, and they clip its gradient at 1.
        c.optimizer.clip_norm, c.optimizer.epsilon = 2 / VALUES, 1e-8 * 2 / VALUES
    c.ema.warmup_ratio = 0.0
    c.train.batch_size, c.train.duration = 128, "950k steps" if name.endswith("_deep") else "1300k steps"
    c.sample.steps, c.sample.clip = 1000, False
    return edm.shrunk(c) if tiny else c
