"""CIFAR-10, unconditional: the model and the hyperparameters of Ho et al. (2020), "Denoising Diffusion Probabilistic
Models", Appendix B.

    python -m diffusion.data.prepare cifar10 --source=cifar-10-python.tar.gz --data_dir=data
    python -m diffusion.main --config=configs/cifar10.py

35,746,307 parameters. Paper: FID 3.17, IS 9.46 on 50,000 samples of 1000 ancestral steps (Table 1, L_simple), after
800k steps of batch 128, 10.6 hours on a TPU v3-8. This run has not been done here; docs/results.md lists those done.
"""
from diffusion import config


def get_config():
    c = config.base()  # its other values are the paper's too
    c.data.flip = True
    c.data.on_device = True  # 150 MB
    c.network.dropout = 0.1
    c.ema.warmup_ratio = 0.0  # the paper's average has full length from the start
    return c
