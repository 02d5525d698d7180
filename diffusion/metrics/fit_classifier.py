"""Trains the classifier of metrics/classifier.py: AdamW with warm-up and cosine decay, dropout, random shifts.

Its draws are functions of (seed, stream, step, position of the example), so that a classifier can be trained again.
"""
import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.core.streams import example_keys
from diffusion.errors import DataError, DivergedError
from diffusion.metrics.classifier import Classifier
from diffusion.metrics.networks.classifier import Classifier as Network
from diffusion.metrics.recognition import majority
from diffusion.typing import Array, Keys

RATE, DECAY, WARMUP = 2e-3, 1e-2, 0.05  # the learning rate's peak, the decay of weights, the share of steps of warm-up
ROWS = 256   # pictures classified at a time

# a batch of pictures [b, h, w, c] and labels int [b]
Batch = tuple[np.ndarray, np.ndarray]


def fit(batches: Iterator[Batch], steps: int, *, kind: str, classes: int, seed: int, shift: tuple[int, int] = (0, 0),
        report: Callable[[int, float], None] = lambda step, loss: None) -> Classifier:
    """A classifier of `classes` classes, trained for so many steps. shift: pictures move by up to so many pixels, down
    and right or up and left, anew at each step; their edges fill the place. report: called after each step with its
    number and, now and then, the mean loss.

    The pictures' scale is measured on the first batch. Raises DataError for a label that is not in 0 .. classes - 1,
    DivergedError if the loss is not finite.
    """
    pictures, labels = next(batches)
    classifier = Classifier(kind=kind, classes=classes, shape=tuple(pictures.shape[1:]),
                            mean=float(np.mean(pictures, dtype=np.float64)),
                            deviation=float(np.std(pictures, dtype=np.float64)) or 1.0, params=None)
    key, losses = jax.random.key(seed), []
    start, update = programs(classifier.network, classifier.shape, steps, shift)
    params, state = start(key)
    for step in range(steps):
        if labels.min() < 0 or labels.max() >= classes:
            raise DataError(f"A label is {labels.min() if labels.min() < 0 else labels.max()}, but the data's classes "
                            f"are 0 .. {classes - 1}.")
        params, state, loss = update(params, state, classifier.scaled(pictures), labels, key, step)
        losses.append(loss)
        mean = float("nan")
        if step + 1 == steps or (step + 1) % 50 == 0:
            mean, losses = float(np.mean(jax.device_get(losses))), []
            if not np.isfinite(mean):
                raise DivergedError("The classifier's loss is not finite: are the pictures finite numbers?")
        report(step + 1, mean)
        if step + 1 < steps:
            pictures, labels = next(batches)
    return replace(classifier, params=jax.tree.map(np.asarray, jax.device_get(params)))


@functools.lru_cache(maxsize=2)  # of several trainings alike
def programs(network: Network, shape: tuple[int, int, int], steps: int, shift: tuple[int, int]
             ) -> tuple[Callable, Callable]:
    """key -> (parameters, the optimizer's state); and (both, pictures, labels, key, step) -> (both, loss)."""
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, max(1, int(WARMUP * steps)), max(2, steps))
    optimizer = optax.adamw(rate, weight_decay=DECAY, mask=lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree))

    @jax.jit
    def start(key):
        params = network.init(key, jnp.zeros((1, *shape)))["params"]
        return params, optimizer.init(params)

    @jax.jit
    def update(params, state, pictures, labels, key, step):
        at = jnp.arange(len(labels))
        moved = shifted(example_keys(key, "shift", step, at), pictures, shift)

        def loss_of(params):
            logits = network.apply({"params": params}, moved, example_keys(key, "dropout", step, at))[1]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state, loss

    return start, update


def shifted(keys: Keys, x: Array, shift: tuple[int, int]) -> Array:
    """Each picture of x [B, h, w, c] moved by whole pixels, uniform in -shift .. shift of each axis."""
    if not any(shift):
        return x
    (down, right), (_, h, w, c) = shift, x.shape
    padded = jnp.pad(x, ((0, 0), (down, down), (right, right), (0, 0)), mode="edge")

    def one(key, picture):
        at = jax.random.randint(key, (2,), 0, jnp.array([2 * down + 1, 2 * right + 1]))
        return jax.lax.dynamic_slice(picture, (at[0], at[1], 0), (h, w, c))
    return jax.vmap(one)(keys, padded)


def accuracy(classifier: Classifier, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[float, int]:
    """(share, number) of examples whose pictures [b, n, h, w, c] are recognised, most of them, as their label [b]."""
    apply = jax.jit(lambda params, x: jnp.argmax(classifier.apply(params, x)[1], -1))
    right, count = 0, 0
    for pictures, labels in batches:
        flat = pictures.reshape(-1, *pictures.shape[2:])
        found = []
        for first in range(0, len(flat), ROWS):
            part = flat[first:first + ROWS]
            full = np.concatenate([part, np.zeros((ROWS - len(part), *part.shape[1:]), part.dtype)])
            found.append(np.asarray(apply(classifier.params, full))[:len(part)])
        seen = majority(np.concatenate(found).reshape(pictures.shape[:2]))
        right, count = right + int((seen == labels).sum()), count + len(labels)
    return right / count, count
