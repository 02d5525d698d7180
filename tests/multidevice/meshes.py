"""A program for test_meshes.py: the training step of a network on meshes of 8 devices, beside one device."""
import functools
import json
import math
import sys

import jax
import numpy as np
import optax

from diffusion import build
from diffusion import config as config_lib
from diffusion.build.conditions import dropout_rates
from diffusion.core import losses, time_densities, weightings
from diffusion.core.parameterization import EPS
from diffusion.kinds.base import preparation
from diffusion.kinds.image import ImageSpec
from diffusion.parallel import sharding
from diffusion.train import step
from diffusion.train.averages import Average, HalfLife
from diffusion.train.state import init_state
from diffusion.train.updates import Update

MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 8), "data x fsdp": (2, 4, 1),
          "data x tensor": (4, 1, 2), "all": (2, 2, 2)}
UNET = {"network.channels": 32, "network.multipliers": (1, 2), "network.blocks": 1,
        "network.attention_resolutions": (4,), "network.groups": 8}
NETWORKS = {
    "unet": UNET | {"network.dropout": 0.1},
    "unet of ADM": UNET | {"network.scale_shift": True, "network.head_channels": 8,
                           "network.downsample": ("resblock",), "network.upsample": ("resblock",),
                           "network.num_classes": 10, "network.label_dropout": 0.1},
    "dit": {"network.name": "dit", "network.depth": 2, "network.heads": 8, "network.num_classes": 10,
            "network.label_dropout": 0.1, "network.channels": 64},
    "jit": {"network.name": "jit", "network.depth": 2, "network.heads": 8, "network.num_classes": 10,
            "network.label_dropout": 0.1, "network.channels": 96, "network.patch": 2, "network.mlp_ratio": 6.0,
            "network.bottleneck": 32, "network.class_tokens": 4, "network.class_tokens_from": 1},
    "unet_1d": UNET | {"network.name": "unet_1d", "network.patch": 2, "network.factors": (4,),
                       "network.channels": 64},
    "diffwave": {"network.name": "diffwave", "network.channels": 64, "network.depth": 3, "network.dilation_cycle": 2,
                 "network.num_classes": 10, "network.label_dropout": 0.1},
    "unet_frames": UNET | {"network.name": "unet_frames"},
    "video_unet": {"network.name": "video_unet", "network.channels": 64, "network.multipliers": (1, 2),
                   "network.head_channels": 8, "network.single_frames": 0.5},
}
# Each axis cuts each network, alone or with others; test_same_curve.py trains on data and on data x fsdp.
RUN = {"unet": ("all", "fsdp"), "unet of ADM": ("all", "data x tensor"), "dit": ("all", "tensor"), "jit": ("all",),
       "unet_1d": ("all",), "diffwave": ("all",), "unet_frames": ("fsdp",), "video_unet": ("all",)}
BATCH, SIZE = 16, 8  # images of 8 x 8 x 3
ARRAYS = {"unet_1d": (32, 3), "diffwave": (32, 3), "unet_frames": (2, 8, 8, 3), "video_unet": (2, 8, 8, 3)}
AVERAGES = {"ema": Average(rule=HalfLife(half_life=100.0, warmup_ratio=0.0))}


def config_of(network, mesh):
    if network in ARRAYS:
        config = config_lib.override(config_lib.base(data="file", kind="array"), {
            "data.shape": ARRAYS[network], "data.mean": (0.0,), "data.deviation": (1.0,)})
    else:
        config = config_lib.override(config_lib.base(), {"data.size": SIZE})
    return config_lib.override(config, {
        "process.steps": 100,
        **dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh)), **NETWORKS[network]})


def pieces(network, mesh, optimizer):
    config = config_of(network, mesh)
    model = build.model(config)
    spec = build.spec(config) if network in ARRAYS else ImageSpec(shape=model.shape, flip=True)
    train_step = step.make_train_step(
        updates=[Update(loss=losses.of_set(losses.make_denoising_loss(weightings.in_space(None, EPS))),
                        optimizer=optimizer)],
        denoisers={"online": model.denoiser}, density=time_densities.UniformDiscrete(), stratified=False,
        averages=AVERAGES, seed=0, accumulate=1,
        prepare=preparation(spec, model.conditions, dropout_rates(config, model.conditions)),
        log_snr_edges=np.linspace(-10, 10, 6))

    def init(key):  # no zeros: every parameter then has a gradient
        return {"online": jax.tree.map(lambda x: x + 0.02 * jax.random.normal(key, x.shape), model.init(key))}
    return model, train_step, init


def batch(network):
    rng = np.random.default_rng(0)
    x = ({"x": rng.standard_normal((BATCH, *ARRAYS[network]), np.float32)} if network in ARRAYS else
         {"image": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8)})
    return {**x, "label": rng.integers(0, 10, BATCH).astype(np.int32), "position": np.arange(BATCH, dtype=np.int32)}


def largest(a, b, floor=1e-2):
    """The largest difference of two trees' leaves, each relative to the largest number of the leaf.

    Or to `floor` of the largest of all: some gradients, such as that of the bias of attention's keys, are zero but for
    rounding.
    """
    top = max(np.abs(x).max() for x in jax.tree.leaves(b))
    return max(jax.tree.leaves(jax.tree.map(
        lambda x, y: float(np.abs(x - y).max() / max(np.abs(y).max(), floor * top)), a, b)))


def main():
    # Steps so long that the rounding of the parameters does not count; and short where a gradient is zero but for it.
    report, optimizer = {}, optax.adam(1.0, eps=0.03)
    for network in sys.argv[2:]:
        _, train_step, init = pieces(network, (-1, 1, 1), optimizer)
        make_state = functools.partial(init_state, optimizers={"online": optimizer}, averages=AVERAGES)
        start = jax.device_get(jax.jit(lambda key: make_state(init(key)))(jax.random.key(0)))
        alone, told = jax.device_get(jax.jit(train_step)(start, batch(network)))
        for name, mesh in MESHES.items():
            model, train_step, init = pieces(network, mesh, optimizer)
            abstract = step.create_state(init, make_state, mesh=model.mesh, seed=0, rules=model.rules)[1]
            shardings = jax.tree.map(lambda x: x.sharding, abstract)
            parts = [(part, sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
                                for x in jax.tree.leaves(part)))
                     for part in (abstract.params, abstract.averages, abstract.opt_state)]
            report[f"{network}, {name}"] = row = {
                "held": [held / sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part)) for part, held in parts]}
            if name not in RUN[network]:
                continue
            compiled = step.compile_train_step(train_step, mesh=model.mesh, steps=1, state_shardings=shardings)(0)
            placed = sharding.place_batch(jax.tree.map(lambda x: x[None], batch(network)), model.mesh, leading=1)
            state, metrics = compiled(jax.device_put(start, shardings), placed, None)
            assert [held for _, held in parts] == [
                sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(part))
                for part in (state.params, state.averages, state.opt_state)]
            state = jax.device_get(state)
            moved = [jax.tree.map(np.subtract, s.params, start.params) for s in (state, alone)]
            row |= {
                "loss": abs(float(metrics.loss[0] / told.loss) - 1),
                # 0.1 of it, after one step
                "gradient": largest(*(s.opt_state["online"][0].mu for s in (state, alone))),
                "update": largest(*moved)}
    with open(sys.argv[1], "w") as file:
        json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
