"""A weighting: alpha^2 w(lambda), as a function of alpha^2 and sigma^2, w the weight of the squared error in eps."""
from diffusion.errors import require


def middle(signal, noise, *,
           sharpness: float = 1.0,  # of the peak at SNR 1
           ):
    """w = (4 alpha^2 sigma^2)^sharpness, largest where signal and noise are equal (with alpha^2 + sigma^2 = 1)."""
    require(sharpness > 0, "sharpness", sharpness, "must be positive.")
    return signal * (4 * signal * noise) ** sharpness


WEIGHTINGS = {"middle": middle}
