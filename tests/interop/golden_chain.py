"""The cases of tests/golden/chain.npz: what the program that makes it and the test that reads it must agree on."""
import numpy as np
from random_params import unit
from unet2d_configs import settings

BATCH, STRIDE, SEED = 2, 5, 20210212  # every STRIDE-th value is stored
UNETS = {name: settings(name) for name in ("as google/ddpm-*", "defaults of the class", "as improved-diffusion",
                                           "resnet resampling of all levels", "learned variance")}
DDPM, DDIM = {"_class_name": "DDPMScheduler"}, {"_class_name": "DDIMScheduler"}
CASES = {  # name -> (network, scheduler_config.json, steps, arguments of the call)
    "published scheduler, 60 steps": ("as google/ddpm-*", DDPM | dict(variance_type="fixed_large"), 60, {}),
    "small, scaled linear, threshold": ("defaults of the class", DDPM | dict(
        beta_schedule="scaled_linear", thresholding=True, sample_max_value=1.5), 20, {}),
    "learned range, cosine": ("learned variance", DDPM | dict(variance_type="learned_range",
                                                              beta_schedule="squaredcos_cap_v2"), 20, {}),
    "zero SNR, v, trailing": ("as improved-diffusion", DDPM | dict(
        rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"), 20, {}),
    "ddim": ("resnet resampling of all levels", DDIM, 20, {}),
    "ddim, eta, linspace, end": ("as google/ddpm-*", DDIM | dict(
        timestep_spacing="linspace", set_alpha_to_one=False, beta_schedule="scaled_linear"), 12, dict(eta=0.5)),
    "ddim, v, offset": ("as google/ddpm-*", DDIM | dict(prediction_type="v_prediction", steps_offset=1), 12, {}),
}


def random_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Tensors of these names of a UNet2DModel: weights of variance 1/fan-in, norms' scales around one, biases around
    zero.

    The last convolution is small, since a chain of a random network that says much amplifies rounding.
    """
    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        u = unit(name, shape, SEED)
        if name.startswith("conv_out"):
            u = u * np.float32(0.05)
        if name.endswith("bias"):
            return np.float32(0.25) * u
        if len(shape) == 1:
            return 1 + np.float32(0.25) * u
        return u / np.float32(np.sqrt(np.prod(shape[1:])))

    return {name: draw(name, tuple(shape)) for name, shape in shapes.items()}
