"""Two networks of two numbers each: a student and a fake score, two averages of the student, and a frozen teacher.

As a program, `python two_sets.py FOLDER STEPS [KILL]`: trains in a loop with checkpoints in FOLDER, or goes on from the
last one, and prints its rows and a digest of the state; KILL: it dies after that many steps.
"""
import dataclasses
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.core import losses, parameterization, processes, schedules, time_densities, weightings
from diffusion.core.parameterization import EPS
from diffusion.data import pipeline
from diffusion.io.checkpoint import Checkpoints
from diffusion.io.writers import TIMES
from diffusion.kinds.base import preparation
from diffusion.kinds.image import ImageSpec
from diffusion.parallel import sharding
from diffusion.train import loop, step
from diffusion.train.averages import Average, Copy, Power
from diffusion.train.state import init_state
from diffusion.train.updates import Update
from diffusion.train.watchdog import Watchdog

PROCESS, BATCH = processes.DiscreteProcess(betas=schedules.linear(100)), 8
AVERAGES = {"ema": Average(rule=Power.of_width(0.1), dtype="bfloat16"), "target": Average(rule=Copy(every=3))}
TEACHER = {"w": np.float32(0.9), "b": np.float32(0.4)}
TERMS = losses.make_denoising_loss(weightings.in_space(None, EPS))


def tiny(params, x, c_noise, cond, keys):
    return params["w"] * x + params["b"] * c_noise[:, None, None, None] / 100


DENOISER = parameterization.make_denoiser(lambda params: PROCESS, EPS, tiny)


def generated(bind, inputs):
    """The student's sample from noise, in one step."""
    noise = jax.vmap(lambda key: jax.random.normal(key, inputs.x0.shape[1:]))(inputs.keys("sample"))
    return bind("online").denoise(noise, 100).x0


def student(bind, inputs):
    """Follows the teacher's prediction, seen from the fake score, at its own sample; and stays near its own target."""
    x = generated(bind, inputs)
    t = inputs.times.t
    x_t = PROCESS.diffuse(x, t, jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(inputs.keys("loss")))
    real, fake, before = (bind(name).denoise(x_t, t, None).eps for name in ("teacher", "fake", "target"))
    return jnp.mean((fake - real) ** 2 + 0.1 * (fake - before) ** 2, axis=(1, 2, 3)), {}


def fake(bind, inputs):
    """Denoises the student's samples."""
    x = generated(bind, inputs)
    return losses.of_set(TERMS, "fake")(bind, inputs._replace(x0=x))


def updates_of(every=1):
    adam = optax.adam(optax.linear_schedule(0.01, 0.02, 10))
    return [Update(loss=fake, trains="fake", optimizer=optax.sgd(0.05)),
            Update(loss=student, trains="online", every=every, optimizer=adam,
                   learning_rate=optax.linear_schedule(0.01, 0.02, 10))]


def make(updates, **settings):
    denoisers = dict.fromkeys(("online", "fake", "teacher"), DENOISER)
    return step.make_train_step(**dict(
        updates=updates, denoisers=denoisers, density=time_densities.UniformDiscrete(),
        stratified=False, averages=AVERAGES, seed=0, accumulate=1,
        prepare=preparation(ImageSpec(shape=(4, 4, 1), flip=True), {}), log_snr_edges=np.linspace(-10, 10, 4))
        | settings)


def init(key=None):
    return {"online": {"w": jnp.float32(0.3), "b": jnp.float32(-0.2)},
            "fake": {"w": jnp.float32(0.5), "b": jnp.float32(0.1)}}


def start(updates):
    return init_state(init(), {u.trains: u.optimizer for u in updates}, AVERAGES)


def created(updates, mesh):
    """The two results of `step.create_state`."""
    make_state = lambda params: init_state(params, {u.trains: u.optimizer for u in updates}, AVERAGES)  # noqa: E731
    return step.create_state(init, make_state, mesh=mesh, seed=0)


def batch(k=0):
    images = np.random.default_rng(k).integers(0, 256, (BATCH, 4, 4, 1), np.uint8)
    return {"image": images, "label": np.zeros(BATCH, np.int32), "position": np.arange(BATCH, dtype=np.int32)}


class Silent:
    """Hears what a progress bar hears."""

    def __getattr__(self, name):
        return lambda *args: None


class Never(Silent):
    """Interrupts that do not come."""

    def __call__(self):
        return False


def main(folder: Path, total: int, kill: int) -> None:
    updates, mesh = updates_of(every=2), sharding.make_mesh(-1, 1)
    images = np.random.default_rng(9).integers(0, 256, (50, 4, 4, 1), np.uint8)
    data = pipeline.index_batches(50, batch_size=BATCH, seed=0)
    on_device = jax.device_put({"image": images, "label": np.zeros(50, np.int32)}, sharding.replicated(mesh))
    create, abstract = created(updates, mesh)
    program = step.compile_train_step(make(updates), mesh=mesh, steps=1, updates=updates,
                                      state_shardings=jax.tree.map(lambda x: x.sharding, abstract))
    folder.mkdir(exist_ok=True)
    rows = []
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if (found := checkpoints.restore_newest(abstract, data)) is None:
            state, clock = create(), loop.Clock()
        else:
            state, clock = found[0], loop.restored_clock(found[1], BATCH)

        def save(at, state, clock):
            checkpoints.save(at, state, data, dataclasses.asdict(clock))
            if at == kill:
                checkpoints.wait()

        def write_row(row):
            if row["step"] > kill > 0:
                os._exit(9)
            rows.append({key: value for key, value in row.items() if key not in TIMES})

        state = loop.run_training(loop.training_steps(
            plan=loop.Durations(total=total, log_every=3, sample_every=1000, checkpoint_every=2, batch_size=BATCH),
            program=program, state=state, clock=clock, data=data, dataset=on_device, mesh=mesh,
            started=time.perf_counter(), examples_of=None, write_row=write_row, draw_samples=lambda *_: None,
            save=save, progress=Silent(), interrupts=Never(), watchdog=Watchdog(0.0),
            frozen={"teacher": jax.device_put(TEACHER, sharding.replicated(mesh))}))
    leaves = [np.asarray(x) for x in jax.tree.leaves(jax.device_get(state))]
    print(json.dumps({"rows": rows, "devices": jax.device_count(), "params": np.ravel(leaves[-4:]).tolist(),
                      "digest": hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
