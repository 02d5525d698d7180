"""The digits by Song et al. (2021), "Score SDE": the VE SDE, sampled by predictor and corrector.

    python -m diffusion.main --config=configs/digits_score_sde.py

Training is that of configs/digits.py; the network is told the noise level by Fourier features, as in their NCSN++. The
noise levels are theirs, 0.01 to 50, times two: their data lie in [0, 1], ours in [-1, 1].
"""
from configs import digits


def get_config():
    c = digits.get_config()
    c.process.name, c.process.sigma_min, c.process.sigma_max, c.process.t_min = "ve", 0.02, 100.0, 1e-5
    c.prediction, c.loss.weighting = "eps", "simple"
    c.network.embedding = "fourier"
    c.sample.solver, c.sample.corrector = "reverse_diffusion", "langevin"
    c.sample.spacing, c.sample.steps, c.sample.clip = "uniform", 250, False
    c.likelihood.estimator, c.likelihood.steps = "ode", 100
    return c
