"""Points of the plane: a mixture of eight Gaussians on a circle, by a small MLP. About a minute on two CPU cores.

    python -m diffusion.main --config=configs/toy_2d.py --workdir=/tmp/toy
    python -m diffusion.main --workdir=/tmp/toy --mode=sample --num_samples=5000
    python -m diffusion.main --workdir=/tmp/toy --mode=likelihood --config.data.split=test --num_examples=1000

Not from a paper. With your own points, from a .npy file of floats [N, 2]:

    ... --config.data.name=file --config.data.path=points.npy
"""
from diffusion import config


def get_config():
    c = config.base(data="mixture", kind="array", network="mlp", process="vp", solver="heun",
                    spacing="uniform", estimator="ode")
    c.data.shape, c.data.on_device = (2,), True
    c.prediction = "v"
    c.network.channels, c.network.depth = 64, 3
    c.optimizer.learning_rate, c.optimizer.decay, c.optimizer.warmup = 2e-3, "cosine", "100 steps"
    c.ema.half_life = "50k images"
    c.train.batch_size, c.train.duration, c.train.steps_per_dispatch = 512, "4000 steps", 4
    c.train.log_every, c.train.sample_every, c.train.checkpoint_every = "200 steps", "2000 steps", "2000 steps"
    c.sample.steps, c.sample.batch_size, c.sample.preview = 40, 1000, 2000
    c.likelihood.steps, c.likelihood.probes, c.likelihood.batch_size = 100, "exact", 250
    return c
