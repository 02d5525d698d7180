"""Drawing samples: one compiled call for a whole chain of a batch, image i a function of (seed, i) alone."""
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion.core.parameterization import Denoise, Denoiser
from diffusion.core.processes import Process
from diffusion.core.streams import example_keys
from diffusion.samplers import base
from diffusion.train import sharding
from diffusion.typing import Params

# generate(params, seed, first, count) -> batches [b,H,W,C] float32 in [-1,1] of the images first .. first + count - 1
Generate = Callable[[Params, int, int, int], Iterator[np.ndarray]]


def make_generate(*, process: Process, denoiser: Denoiser, guide: Callable[[Denoise], Denoise], solver: base.Solver,
                  grid: np.ndarray, shape: tuple[int, int, int], num_classes: int, batch_size: int,
                  mesh: Mesh) -> Generate:
    """A generator of images of `shape` (H, W, C), `batch_size` at a time over all devices of the mesh.

    `guide` turns the network's Denoise into the one that the solver sees (clipping, guidance). With `num_classes` > 0
    image i is of class i % num_classes. The last batch is filled up and cut, so that nothing compiles twice.
    """
    def chain(params, seed, indices):
        keys = example_keys(jax.random.key(seed), "sample", 0, indices)
        cond = indices % num_classes if num_classes else None
        x = base.draw_prior(process, keys, shape)
        x = base.sample(solver, guide(denoiser(params)), grid, x, keys, cond)
        return jnp.clip(x, -1.0, 1.0)

    # Each process gets all images: the chains are cut over the devices, the results are not.
    compiled = jax.jit(chain, out_shardings=sharding.replicated(mesh))

    def generate(params: Params, seed: int, first: int, count: int) -> Iterator[np.ndarray]:
        seed = jax.device_put(np.uint32(seed), sharding.replicated(mesh))
        for start in range(first, first + count, batch_size):
            indices = np.arange(start, start + batch_size, dtype=np.int32)
            indices = jax.make_array_from_callback(indices.shape, sharding.over_batch(mesh), lambda rows: indices[rows])
            yield np.asarray(compiled(params, seed, indices))[:first + count - start]

    return generate
