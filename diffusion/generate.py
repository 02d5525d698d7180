"""Drawing samples: one compiled program for the chains of a solver, image i a function of (seed, i) alone."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion.core.parameterization import Denoise, Denoiser
from diffusion.core.processes import Process
from diffusion.core.streams import example_keys
from diffusion.samplers import base
from diffusion.train import sharding
from diffusion.typing import Array, Params

ROWS = 1024  # step tables are filled up to a multiple of this, so that any number of steps is the same program

# A chain that is reported on is cut into so many calls of the device, of so many steps at least: each call costs some
# milliseconds, since what does not change from step to step is computed at its start.
CHUNKS, CHUNK_STEPS = 20, 10

# generate(params, seed, first, count, report=None) -> batches [b,H,W,C] float32 in [-1,1] of the images first ..
# first + count - 1
Generate = Callable[..., Iterator[np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The chains of one solver. It compiles once for each batch size, whatever the number of steps."""
    prior: Callable[..., Array]         # (seed, indices) -> x at t_max
    begin: Callable[[Array], Any]       # x -> the solver's carry
    advance: Callable[..., tuple]       # (params, seed, indices, cond, steps, first, last, carry, x) -> (carry, x)
    gather: Callable[[Array], Array]    # all rows, in all processes
    mesh: Mesh

    def __call__(self, params: Params, steps: np.ndarray, seed: int, indices: np.ndarray, *,
                 cond: np.ndarray | None = None, noise: np.ndarray | None = None,
                 report: Callable[[int], None] | None = None) -> np.ndarray:
        """The images `indices` [B] int32 of the seed, float32 [B,H,W,C] in [-1,1], by the steps int32 [S, 2].

        B is a multiple of the devices. cond: labels int32 [B]. noise: x at t_max instead of the drawn one. The chain is
        one call of the device, or up to CHUNKS of them if `report` is to hear after each how many more steps are done.
        """
        everywhere = lambda value: jax.device_put(value, sharding.replicated(self.mesh))  # noqa: E731
        seed = everywhere(np.uint32(seed))
        indices, cond, noise = (None if x is None else self.over_batch(x) for x in (indices, cond, noise))
        x = self.prior(seed, indices) if noise is None else noise
        table = everywhere(np.resize(steps, (-(-len(steps) // ROWS) * ROWS, 2)))
        chunks = min(CHUNKS, -(-len(steps) // CHUNK_STEPS)) if report else 1
        cuts = np.linspace(0, len(steps), chunks + 1).round().astype(np.int32)
        carry = self.begin(x)
        for first, last in zip(cuts[:-1], cuts[1:]):
            carry, x = self.advance(params, seed, indices, cond, table, everywhere(first), everywhere(last),
                                    carry, x)
            if report:
                jax.block_until_ready(x)
                report(int(last - first))
        return np.clip(np.asarray(self.gather(x)), -1.0, 1.0)

    def over_batch(self, x: np.ndarray) -> jax.Array:
        """Each process puts its devices' rows there."""
        return jax.make_array_from_callback(x.shape, sharding.over_batch(self.mesh), lambda rows: x[rows])


def make_sampler(*, process: Process, denoiser: Denoiser, guide: Callable[[Denoise], Denoise], solver: base.Solver,
                 shape: tuple[int, int, int], mesh: Mesh) -> Sampler:
    """A sampler of images of `shape` (H, W, C) over all devices of the mesh.

    `guide` turns the network's Denoise into the one that the solver sees (clipping, guidance).
    """
    def keys(seed, indices):
        return example_keys(jax.random.key(seed), "sample", 0, indices)

    def prior(seed, indices):
        return base.draw_prior(process, keys(seed, indices), shape)

    def advance(params, seed, indices, cond, steps, first, last, carry, x):
        return base.sample(solver, guide(denoiser(params)), steps, x, keys(seed, indices), cond, first=first, last=last,
                           carry=carry)

    over_batch = sharding.over_batch(mesh)
    return Sampler(
        mesh=mesh, begin=solver.init, prior=jax.jit(prior, out_shardings=over_batch),
        advance=jax.jit(advance, out_shardings=(None, over_batch), donate_argnames=("carry", "x")),
        gather=jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh)))


def make_generate(sampler: Sampler, steps: np.ndarray, *, num_classes: int, batch_size: int) -> Generate:
    """A generator of any number of images, `batch_size` at a time; with `num_classes` > 0 image i is of class
    i % num_classes. The last batch is filled up and cut, so that nothing compiles twice."""
    def generate(params: Params, seed: int, first: int, count: int,
                 report: Callable[[int], None] | None = None) -> Iterator[np.ndarray]:
        rows = min(batch_size, -(-count // jax.device_count()) * jax.device_count())
        for start in range(first, first + count, rows):
            indices = np.arange(start, start + rows, dtype=np.int32)
            cond = indices % num_classes if num_classes else None
            yield sampler(params, steps, seed, indices, cond=cond, report=report)[:first + count - start]

    return generate
