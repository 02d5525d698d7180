"""Your own network, an NNX module, trained on points of a spiral. python examples/own_network.py"""
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import diffusion


class ResidualMLP(nnx.Module):
    """F(x [B, 2], c_noise [B]) -> [B, 2]: residual blocks, each told the noise level."""

    def __init__(self, width: int, depth: int, rngs: nnx.Rngs):
        self.first = nnx.Linear(2, width, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(depth)])
        self.noise = nnx.List([nnx.Linear(16, width, rngs=rngs) for _ in range(depth)])
        self.blocks = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(depth)])
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x: jax.Array, c_noise: jax.Array) -> jax.Array:
        waves = c_noise[:, None] * 2.0 ** jnp.arange(8)  # c_noise is ln(sigma) / 4 for the process "edm"
        noise, h = jnp.concatenate([jnp.cos(waves), jnp.sin(waves)], axis=1), self.first(x)
        for norm, told, block in zip(self.norms, self.noise, self.blocks):
            h = h + block(nnx.silu(norm(h) + told(noise)))
        return self.last(nnx.silu(h))


def spiral(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    angle = 3 * np.pi * np.sqrt(rng.uniform(0.05, 1, count))
    return angle[:, None] / 10 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.01 * rng.standard_normal((count, 2))


def main(steps: int = 3000) -> np.ndarray:
    model = diffusion.Model(network=ResidualMLP(128, 3, nnx.Rngs(0)), shape=(2,), process="edm", prediction="edm")
    goal = diffusion.objective(model, weighting="edm", space="x0", density="log_normal")
    state = diffusion.fit(model, goal, data=spiral(20_000), batch_size=512, steps=steps, optimizer=optax.adam(1e-3))
    times = diffusion.grid(model.process, "karras", 18)
    x = diffusion.draw(model, state.averages["ema"], solver="heun", times=times, count=2000)
    distance = np.sqrt(((x[:, None] - spiral(5000, seed=1)[None]) ** 2).sum(-1)).min(1)
    print(f"the median distance of a sample from the spiral is {np.median(distance):.4f}; its turns are 0.6 apart")
    return distance


if __name__ == "__main__":
    main()
