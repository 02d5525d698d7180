"""Points in the plane: own data, a network of plain functions and no config. python examples/toy_2d.py"""
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import diffusion

rng = np.random.default_rng(0)
angle = 2 * np.pi * rng.integers(0, 8, 20_000) / 8
data = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.07 * rng.standard_normal((20_000, 2))
sizes = [(2 + 8, 128), (129, 128), (129, 128), (129, 2)]
def init(key):
    return [jax.random.normal(k, s) * (2 / s[0])**0.5 for k, s in zip(jax.random.split(key, 4), sizes)]
def apply(params, x, c_noise):
    h = jnp.concatenate([x, jnp.cos(c_noise[:, None] / 1000 * jnp.arange(8) * np.pi)], 1) @ params[0]
    for w in params[1:]:
        h = jnp.pad(jax.nn.silu(h), ((0, 0), (0, 1)), constant_values=1.0) @ w
    return h
model = diffusion.Model(network=(init, apply), shape=(2,), process="flow", prediction="velocity")
state = diffusion.fit(model, data=data, batch_size=512, steps=4000, optimizer=optax.adam(2e-3))
x = diffusion.draw(model, state.averages["ema"], solver="heun", times=20, count=2000)
plt.scatter(*x.T, s=2)
plt.savefig("toy_2d.png")
