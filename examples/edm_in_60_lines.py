"""The digits by Karras et al. (2022), "EDM", composed from parts: every choice is a line, and none is in a config.

    python examples/edm_in_60_lines.py [STEPS]

The same losses and samples, bit for bit, as `python -m diffusion.main --config=configs/digits_edm.py`.
"""
import sys

import numpy as np
import optax

import diffusion
from diffusion.core import losses, preconditioning, time_densities, weightings
from diffusion.core.continuous import edm
from diffusion.core.parameterization import X0
from diffusion.data import pipeline, sources
from diffusion.io import images
from diffusion.networks.unet import UNet
from diffusion.samplers.heun import Heun

SIGMA_DATA = 0.75  # of the digits, in [-1, 1]


def parts():
    """The model and what it minimises."""
    network = UNet(channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), groups=8, out_channels=1)
    model = diffusion.Model(
        network=network, shape=(8, 8, 1),
        process=edm(sigma_min=0.002, sigma_max=80.0),       # x_t = x_0 + t eps
        prediction=preconditioning.edm(SIGMA_DATA))         # c_skip, c_out, c_in and c_noise of Table 1
    weight = weightings.in_space(lambda signal, noise: weightings.edm(signal, noise, sigma_data=SIGMA_DATA), X0)
    objective = diffusion.Objective(
        loss=losses.of_set(losses.make_denoising_loss(weight, X0)),
        density=time_densities.LogNormal(mean=-1.2, std=1.2))  # of the noise levels
    return model, objective


def train(model, objective, steps, report):
    data = pipeline.to_arrays(sources.digits(split="train"))["image"]
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(100, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, mu_dtype="float32"))
    average = diffusion.Average(rule=diffusion.HalfLife(half_life=10_000.0, warmup_ratio=0.05))
    return diffusion.fit(model, objective, data=data, batch_size=64, steps=steps, optimizer=optimizer, seed=0,
                         averages={"ema": average}, learning_rate=rate, report=report)


def main(steps=1800):
    model, objective = parts()
    losses_of_steps = []
    state = train(model, objective, steps, lambda step, row: losses_of_steps.append(row["loss"]))
    times = diffusion.grid(model.process, "karras", 18, rho=7.0)  # Eq. 5
    x = diffusion.draw(model, state.averages["ema"], solver=Heun(), times=times, count=64, seed=0)
    images.save_png("edm_digits.png", images.grid(images.to_uint8(np.clip(x, -1.0, 1.0))))
    print(f"the mean loss of the last 50 steps is {np.mean(losses_of_steps[-50:])}; see edm_digits.png")
    return losses_of_steps, x


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
