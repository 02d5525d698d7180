"""Sampling: one compiled program for the chains of a solver, image i a function of (seed, i) only."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from diffusion.core.parameterization import Diffusion
from diffusion.core.streams import example_keys
from diffusion.parallel import sharding
from diffusion.samplers import base
from diffusion.typing import NO_COND, Array, Cond, Params

ROWS = 1024  # step tables are padded to a multiple of this, so that one program serves any number of steps

# With progress reports a chain is cut into up to CHUNKS device calls, of about CHUNK_STEPS steps or more: each call
# costs some milliseconds, since it recomputes at its start whatever is constant across steps.
CHUNKS, CHUNK_STEPS = 20, 10

# generate(params, seed, first, count, report=None) -> batches [b,H,W,C] float32 in [-1,1] of the images first ..
# first + count - 1
Generate = Callable[..., Iterator[np.ndarray]]


# A chain's inputs by name, besides the parameters: scalars such as a guidance scale, and per-image arrays [B, ...]. New
# values need no compilation.
ChainInputs = dict[str, Any]
# Called under jit: (params, chain_inputs) -> the solver and the Diffusion. params is whatever the caller passes.
ChainBuilder = Callable[[Params, ChainInputs], tuple[base.Solver, Diffusion]]


class Samples(NamedTuple):
    x: np.ndarray       # float32 [B, H, W, C] at the last time: an image as the solver left it, or noise
    evaluations: float  # denoiser calls per image, the mean if the solver adapts its steps

    def within(self, bounds: tuple[float, float] | None) -> np.ndarray:
        """x cut to the bounds, if there are any."""
        return self.x if bounds is None else np.clip(self.x, *bounds)


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """The chains of one solver. It compiles once for each batch size, whatever the number of steps."""
    prior: Callable[..., Array]         # (params, chain_inputs, seed, indices, t) -> x at t
    begin: Callable[..., Any]           # (params, chain_inputs, x) -> the solver's carry
    advance: Callable[..., tuple]       # (params, chain_inputs, seed, indices, cond, steps, first, last, carry, x)
    gather: Callable[[Any], Any]        # collects all rows, in all processes
    evaluations: Callable[..., float]   # (steps, carry) -> denoiser calls per image
    complete: Callable[[Cond | None, int], Cond]  # checks conditions and adds defaults, for this number of images
    mesh: Mesh

    def __call__(self, params: Params, steps: np.ndarray, seed: int, indices: np.ndarray, *,
                 cond: Cond = NO_COND, noise: np.ndarray | None = None,
                 chain_inputs: ChainInputs | None = None,
                 report: Callable[[int], None] | None = None) -> Samples:
        """Draws the images `indices` [B] int32 of the seed with the steps [S, 2].

        B is a multiple of `sharding.batch_shards`. cond: the network's conditions by name, each [B, ...]; those left
        out have their defaults. noise: x at the first time instead of the drawn one. The chain is one device call, or
        up to CHUNKS calls with `report`, which gets the number of steps done after each. Raises ConfigError for a
        condition that the network does not declare, and one that is missing.
        """
        everywhere = lambda value: jax.device_put(value, sharding.replicated(self.mesh))  # noqa: E731
        seed = everywhere(np.uint32(seed))
        put = lambda x: None if x is None else sharding.put_rows(x, self.mesh)  # noqa: E731
        cond = {name: put(value) for name, value in self.complete(cond, len(indices)).items()}
        indices, noise = put(indices), put(noise)
        chain_inputs = {name: put(x) if np.ndim(x) else everywhere(np.float32(x))
                        for name, x in (chain_inputs or {}).items()}
        x = self.prior(params, chain_inputs, seed, indices, everywhere(steps[0, 0])) if noise is None else noise
        table = everywhere(np.resize(steps, (-(-len(steps) // ROWS) * ROWS, 2)))
        chunks = min(CHUNKS, -(-len(steps) // CHUNK_STEPS)) if report else 1
        cuts = np.linspace(0, len(steps), chunks + 1).round().astype(np.int32)
        carry = self.begin(params, chain_inputs, x)
        for first, last in zip(cuts[:-1], cuts[1:]):
            carry, x = self.advance(params, chain_inputs, seed, indices, cond, table, everywhere(first),
                                    everywhere(last), carry, x)
            if report:
                jax.block_until_ready(x)
                report(int(last - first))
        x, carry = self.gather((x, jax.tree.map(lambda a: a if a.ndim < 2 else (), carry)))
        return Samples(np.asarray(x), self.evaluations(steps, jax.device_get(carry)))


def make_sampler(chain: ChainBuilder, shape: tuple[int, ...], mesh: Mesh, evaluations: Callable[..., float],
                 complete: Callable[[Cond | None, int], Cond] = lambda cond, count: cond or NO_COND) -> Sampler:
    """A sampler of arrays of `shape`, such as images (H, W, C), over all devices of the mesh; `evaluations` is its
    solver's method. complete: such as `core.conditions.complete` of the network."""
    def keys(seed, indices):
        return example_keys(jax.random.key(seed), "sample", 0, indices)

    def prior(params, chain_inputs, seed, indices, t):
        return base.draw_prior(chain(params, chain_inputs)[1].process, t, keys(seed, indices), shape)

    def begin(params, chain_inputs, x):
        return chain(params, chain_inputs)[0].init(x)

    def advance(params, chain_inputs, seed, indices, cond, steps, first, last, carry, x):
        return base.sample(*chain(params, chain_inputs), steps, x, keys(seed, indices), cond, first=first, last=last,
                           carry=carry)

    over_batch = sharding.over_batch(mesh)
    return Sampler(
        mesh=mesh, evaluations=evaluations, complete=complete, begin=jax.jit(begin),
        prior=jax.jit(prior, out_shardings=over_batch),
        advance=jax.jit(advance, out_shardings=(None, over_batch), donate_argnames=("carry", "x")),
        gather=jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh)))


def make_generate(sampler: Sampler, steps_of: Callable[[Params], np.ndarray], *,
                  conditions: Callable[[np.ndarray], Cond], batch_size: int,
                  bounds: tuple[float, float] | None = (-1.0, 1.0)) -> Generate:
    """A generator of any number of images, or other arrays within `bounds`, `batch_size` at a time, with the conditions
    of their indices. The last batch is padded and cut, so that nothing compiles twice."""
    def generate(params: Params, seed: int, first: int, count: int,
                 report: Callable[[int], None] | None = None) -> Iterator[np.ndarray]:
        rows = min(batch_size, sharding.fill(count, sampler.mesh))
        for start in range(first, first + count, rows):
            indices = np.arange(start, start + rows, dtype=np.int32)
            drawn = sampler(params, steps_of(params), seed, indices, cond=conditions(indices), report=report)
            yield drawn.within(bounds)[:first + count - start]

    return generate
