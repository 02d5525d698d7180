"""Makes diffusers' pipelines draw the noise that ours draws, so that both run the same chain."""
import contextlib
from unittest import mock

import jax
import numpy as np
import torch

from diffusion.core import numerics
from diffusion.core.streams import example_keys


def our_noise(seed: int, shape: tuple[int, int, int, int], steps: int):
    """x at the start of the chain, then what is added at each step, [B, H, W, C] each."""
    keys = example_keys(jax.random.key(seed), "sample", 0, np.arange(shape[0]))
    draw = jax.jit(lambda keys, i: numerics.normal(numerics.fold_in(keys, i), shape[1:], np.float32))
    yield np.asarray(draw(keys, 0))
    step_keys = numerics.fold_in(keys, 1)
    for i in range(steps):
        yield np.asarray(draw(step_keys, i))


@contextlib.contextmanager
def injected(seed: int, shape: tuple[int, int, int, int], steps: int, silent_last: bool = False):
    """While it lasts, diffusers' randn_tensor gives `our_noise`, one after the other. Yields the count of draws.

    silent_last: the last step's noise is zero. diffusers adds noise where its last time is not 0; ours never does.
    """
    noise, drawn = our_noise(seed, shape, steps), []

    def randn_tensor(given, **kwargs):
        x = next(noise)
        assert tuple(given) in {(x.shape[0], x.shape[3], *x.shape[1:3])}
        drawn.append(1)
        x = np.zeros_like(x) if silent_last and len(drawn) == steps + 1 else x
        return torch.from_numpy(np.array(x.transpose(0, 3, 1, 2)))

    modules = ("schedulers.scheduling_ddpm", "schedulers.scheduling_ddim", "pipelines.ddpm.pipeline_ddpm",
               "pipelines.ddim.pipeline_ddim", "pipelines.deprecated.pndm.pipeline_pndm")
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch(f"diffusers.{module}.randn_tensor", randn_tensor))
        yield drawn
