"""What every network promises: each member of the family at a small size, with random parameters and classes."""
import functools
import re
from types import SimpleNamespace

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.random_params import random_params, unit

from diffusion.errors import FieldError
from diffusion.families import BY_NAME
from diffusion.networks import backend
from diffusion.networks.base import ModuleNetwork
from diffusion.parallel import sharding

UNET = dict(channels=8, multipliers=(1, 2), blocks=1, heads=2, groups=4, middle="none")
# The shape of x, and fields.
CASES = {
    "unet": ((8, 8, 2), UNET | dict(attention_resolutions=(4,), dropout=0.3)),
    "unet_1d": ((32, 2), UNET | dict(attention_resolutions=(4,), dropout=0.3, patch=2, factors=(4,))),
    "song_unet": ((8, 8, 2), dict(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), dropout=0.3,
                                  resample_filter=(1, 3, 3, 1), encoder="residual", noise_multiplier=2)),
    "dit": ((8, 4, 2), dict(channels=16, depth=4, heads=2, dropout=0.3)),
    "jit": ((8, 4, 2), dict(channels=16, depth=4, heads=2, patch=2, bottleneck=4, class_tokens=2, class_tokens_from=1,
                            dropout=0.3)),
    "diffwave": ((32, 2), dict(channels=8, depth=3, dilation_cycle=2)),
    "unet_frames": ((3, 8, 8, 2), UNET | dict(attention_resolutions=(4,), dropout=0.3)),
    "video_unet": ((3, 8, 4, 2), dict(channels=8, multipliers=(1, 2), heads=2, head_channels=8)),
    "edm2": ((8, 8, 2), dict(channels=8, multipliers=(1, 2), blocks=1, attention_resolutions=(4,), head_channels=4,
                             dropout=0.3)),
    "mlp": ((3, 2), dict(channels=16, depth=2)),
}
MEMBERS = BY_NAME["network"].members()
BATCH, CLASSES = 3, 4
TIMES, LABELS = np.array([0, 300, 999], np.float32), np.array([3, 0, 2], np.int32)
STEP = 1e-3  # of differences
UNREACHED = {"diffwave": r"block2/residual/.*",  # no output depends on it, as published
             "edm2": r"fourier/.*"}              # drawn once


def test_every_network_is_here():
    assert set(CASES) == set(MEMBERS), "give the new network a case"


@functools.cache
def case(name):
    shape, fields = CASES[name]
    network = MEMBERS[name].make(**fields, num_classes=CLASSES, out_channels=shape[-1])
    params = random_params(network, shape, seed=0)
    x, target = (unit(what, (BATCH, *shape), 1) for what in ("x", "target"))
    return SimpleNamespace(network=network, shape=shape, params=params, x=x, target=target)


@functools.cache
def computed(name):
    """Values and derivatives, by few compiled programs."""
    c, keys, order = case(name), jax.random.split(jax.random.key(1), BATCH), np.array([2, 0, 1])

    def f(x, labels, times, keys=None, params=c.params, **fields):
        return c.network.clone(**fields).apply({"params": params}, x, times, {"label": labels}, keys)

    @jax.jit
    def derivatives(params):
        gradient = jax.grad(lambda params: jnp.mean((f(c.x, LABELS, TIMES, params=params) - c.target) ** 2))(params)
        with backend.compiling_for("gpu", jvp=True):
            return gradient, jax.jvp(lambda x: f(x, LABELS, TIMES), (c.x,), (c.target,))[1]
    plain, (gradient, along) = jax.jit(f), derivatives(c.params)
    after, before = (plain(c.x + sign * STEP * c.target, LABELS, TIMES) for sign in (1, -1))
    other = np.concatenate([c.x[:2], -c.x[2:]])
    found = dict(value=plain(c.x, LABELS, TIMES), other=plain(other, LABELS, TIMES), gradient=gradient, along=along,
                 relabelled=plain(c.x, LABELS[::-1], TIMES), difference=(after - before) / (2 * STEP))
    if hasattr(c.network, "dtype"):
        found["half"] = jax.jit(functools.partial(f, dtype="bfloat16"))(c.x, LABELS, TIMES)
    if hasattr(c.network, "dropout"):
        found["keyed"] = plain(c.x, LABELS, TIMES, keys)
        found["reordered"] = plain(c.x[order], LABELS[order], TIMES[order], keys[order])[np.argsort(order)]
    return SimpleNamespace(**jax.device_get(found))


HEAVY = ("edm2", "song_unet", "video_unet")  # to compile; the default tests have their golden passes


def of_members(having: str = "apply"):
    """A test of all networks with this attribute."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name
                                            for name in CASES if hasattr(MEMBERS[name].make, having)])


members = of_members()


def distance(x, y):
    return np.linalg.norm(x - y) / np.linalg.norm(y)


@members
def test_an_output_has_the_shape_of_x_and_one_starts_at_zero(name):
    c, value = case(name), computed(name).value
    assert value.shape == c.x.shape and value.dtype == np.float32 and np.std(value) > 0.05
    network = ModuleNetwork(module=c.network, shape=c.shape, cond=c.network.cond, heads=(("f", c.shape[-1]),))
    start = jax.jit(lambda key: network.apply(network.init(key), c.x, TIMES, {"label": LABELS})["f"])(
        jax.random.key(0, impl="rbg"))
    assert not np.any(start)


@members
def test_the_axes_are_those_that_it_declares(name):
    c = case(name)
    assert c.network.spatial in (None, len(c.shape) - 1)
    c.network.check(c.shape[:-1])
    with pytest.raises(FieldError, match="must be at least 2"):
        c.network.clone(channels=1).check(c.shape[:-1])


@members
def test_an_example_depends_on_itself_and_its_label(name):
    """And not on the others of its batch."""
    found = computed(name)
    np.testing.assert_allclose(found.other[:2], found.value[:2], atol=1e-6)
    assert np.abs(found.other[2] - found.value[2]).max() > 0.01
    changes = np.abs(found.relabelled - found.value).reshape(BATCH, -1).max(1)
    assert changes[0] > 1e-3 and changes[2] > 1e-3 and changes[1] < 1e-6


@members
def test_a_gradient_reaches_every_parameter(name):
    for path, leaf in flax.traverse_util.flatten_dict(computed(name).gradient, sep="/").items():
        idle = path.endswith("/k/bias") and not getattr(case(name).network, "qk_norm", False)
        if idle or re.fullmatch(UNREACHED.get(name, "-"), path):
            assert np.abs(leaf).max() < 1e-6, path
        else:
            assert np.abs(leaf).max() > 1e-6, path


@members
def test_it_has_a_forward_derivative(name):
    """Where one is asked for, also on a GPU; against differences."""
    found = computed(name)
    assert distance(found.along, found.difference) < 0.01


@of_members("dtype")
def test_bfloat16_comes_close(name):
    """Parameters and output stay in float32."""
    found, c = computed(name), case(name)
    assert found.half.dtype == np.float32 and 0.001 < distance(found.half, found.value) < 0.03
    half = jax.eval_shape(c.network.clone(dtype="bfloat16").init, jax.random.key(0), c.x, TIMES, {"label": LABELS})
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half))


@of_members("dropout")
def test_dropout_is_that_of_the_keys_of_each_example(name):
    found = computed(name)
    assert distance(found.keyed, found.value) > 0.01
    np.testing.assert_allclose(found.reordered, found.keyed, atol=1e-5)


@members
def test_its_rules_cut_parameters_that_it_has(name):
    c = case(name)
    sharding.check_rules(c.network.sharding, {"params": c.params}, name)


@pytest.mark.slow
@of_members("remat")
def test_remat_changes_no_gradient(name):
    c = case(name)

    def loss(params, remat):
        out = c.network.clone(remat=remat).apply({"params": params}, c.x, TIMES, {"label": LABELS})
        return jnp.mean((out - c.target) ** 2)
    plain, *others = (jax.jit(jax.grad(loss), static_argnums=1)(c.params, remat) for remat in ("none", "light", "full"))
    top = max(np.abs(g).max() for g in jax.tree.leaves(plain))
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * top), plain, other)
