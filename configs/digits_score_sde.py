"""The digits by Song et al. (2021), "Score SDE": the VE SDE, sampled by predictor and corrector.

    python -m diffusion.main --config=configs/digits_score_sde.py

Training is as in configs/digits.py; the network gets the noise level as Fourier features, as in their NCSN++. The noise
levels are twice theirs, 0.01 to 50, since their data lie in [0, 1] and ours in [-1, 1].
"""
from configs import digits
from diffusion import config


def get_config():
    c = config.choose(digits.get_config(), process="ve", prediction="eps", weighting="simple",
                      solver="reverse_diffusion", corrector="langevin", spacing="uniform", estimator="ode")
    c.process.sigma_min, c.process.sigma_max, c.process.t_min = 0.02, 100.0, 1e-5
    c.network.embedding = "fourier"
    c.sample.steps, c.sample.clip = 250, False
    c.likelihood.steps = 100
    return c
