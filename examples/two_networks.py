"""Two networks that train each other: a student draws in one step, a fake score follows what the student draws.

    python examples/two_networks.py

Distribution matching (Yin et al. 2024, "DMD", Eqs. 6-7) on a mixture in the plane, whose exact denoiser is the teacher.
The student follows E[real - fake] at its own samples, the fake score denoises them; the student is updated in every
second step. At the fixed point both scores agree, and the student draws the mixture.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax

import diffusion
from diffusion.core import losses, weightings
from diffusion.core.parameterization import X0
from diffusion.core.time_densities import Uniform

CENTERS = np.array([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])
STD = 0.35


def make_mlp(key, width=128):
    sizes = [(2 + 8, width), (width + 1, width), (width + 1, width), (width + 1, 2)]
    return [jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(jax.random.split(key, 4), sizes)]


def mlp(params, x, c_noise):
    h = jnp.concatenate([x, jnp.cos(c_noise[:, None] / 1000 * jnp.arange(8) * np.pi)], 1) @ params[0]
    for w in params[1:]:
        h = jnp.pad(jax.nn.silu(h), ((0, 0), (0, 1)), constant_values=1.0) @ w
    return h


def exact(centers, x, c_noise):
    """E[x_0 | x_t] of the mixture on the process x_t = (1 - t) x_0 + t eps, where c_noise is 1000 t."""
    t = c_noise[:, None] / 1000
    alpha, variance = 1 - t, (1 - t) ** 2 * STD**2 + t**2
    error = x[:, None] - alpha[:, :, None] * centers
    share = jax.nn.softmax(-(error**2).sum(-1) / 2 / variance, axis=1)
    return (share[:, :, None] * (centers + (alpha * STD**2 / variance)[:, :, None] * error)).sum(1)


def generated(bind, inputs):
    """The student's samples: its x_0 at pure noise."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(inputs.keys("generator"))
    return bind("online").denoise(noise, 1.0).x0


def student_loss(bind, inputs):
    x = generated(bind, inputs)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(inputs.keys("loss"))
    x_t = bind("teacher").process.diffuse(x, inputs.times.t, noise)
    real, fake = (bind(name).denoise(x_t, inputs.times.t).x0 for name in ("teacher", "fake"))
    return (x * jax.lax.stop_gradient(fake - real)).sum(axis=1), {}


def main(steps=10_000):
    of = lambda network: diffusion.Model(network=network, shape=(2,), process="flow", prediction="x0")  # noqa: E731
    models = {"online": of((make_mlp, mlp)), "fake": of((make_mlp, mlp)),
              "teacher": of((lambda key: jnp.asarray(CENTERS), exact))}
    denoising = losses.of_set(losses.make_denoising_loss(weightings.in_space(None, X0), X0), "fake")

    def fake_loss(bind, inputs):
        return denoising(bind, inputs._replace(x0=generated(bind, inputs)))

    falling = optax.cosine_decay_schedule(2e-3, steps, 0.1), optax.cosine_decay_schedule(2e-3, steps // 2)
    updates = [diffusion.Update(loss=fake_loss, trains="fake", optimizer=optax.adam(falling[0])),
               diffusion.Update(loss=student_loss, trains="online", every=2, optimizer=optax.adam(falling[1], b1=0.5))]
    state = diffusion.fit(models, diffusion.Objective(loss=updates, density=Uniform()), steps=steps, batch_size=256,
                          data=np.zeros((256, 2)), frozen={"teacher": {"params": jnp.asarray(CENTERS)}})
    x = diffusion.draw(models["online"], state.averages["ema"], solver="ddim", times=np.array([1.0]), count=4000)
    distance = np.sqrt(((x[:, None] - CENTERS) ** 2).sum(-1))
    shares, spread = np.bincount(distance.argmin(1), minlength=3) / len(x), np.sqrt((distance.min(1) ** 2).mean() / 2)
    print(f"shares of the three parts {shares.round(3)} (1/3 each); their spread {spread:.3f} ({STD})")
    return x, shares, spread


if __name__ == "__main__":
    main()
