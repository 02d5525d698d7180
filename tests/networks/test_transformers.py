"""SiT and JiT against their authors' code, and the options that lead from DiT to JiT."""
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks.golden_jit import JIT, LABELS, NETWORKS, SEED, SHAPES, TIMES, images
from networks.random_params import random_params

from diffusion.errors import FieldError
from diffusion.networks.dit import DiT, JiT

GOLDEN = {name: np.load(pathlib.Path(__file__).parent.parent / "golden" / f"{name}.npz") for name in NETWORKS}


def output(name, network=None):
    params = random_params(NETWORKS[name], SHAPES[name], SEED)
    network = network or NETWORKS[name]
    return jax.jit(lambda params, x: network.apply({"params": params}, x, np.float32(TIMES), {
        "label": np.array(LABELS)}))(params, images(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_authors(name):
    """Both in float32."""
    theirs = GOLDEN[name]["output"]
    assert np.abs(output(name) - theirs).max() < 1e-5 * np.abs(theirs).max()


def shapes_of(network, size, channels):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, channels)), jnp.zeros(1),
                          {"label": jnp.zeros(1, jnp.int32)})["params"]


def test_dropout_is_in_the_middle_half_of_the_blocks():
    """Of four blocks, the second and the third."""
    params, keys = random_params(JIT, SHAPES["jit"], SEED), jax.random.split(jax.random.key(0), len(TIMES))

    @jax.jit
    def blocks(params):
        _, found = JIT.clone(dropout=0.5).apply({"params": params}, images("jit"), np.float32(TIMES),
                                                {"label": np.array(LABELS)}, keys, capture_intermediates=True)
        return found["intermediates"]

    found = blocks(params)
    zeros = {i: {name: float((np.asarray(found[f"block{i}"][name]["__call__"][0]) == 0).mean())
                 for name in ("out_dropout", "mlp_dropout")} for i in range(JIT.depth)}
    for i, shares in zeros.items():
        assert all((0.45 < share < 0.55) if i in (1, 2) else share < 0.01 for share in shares.values()), zeros


def test_each_option_is_one_of_its_own():
    """DiT with all options is JiT; each changes the parameters that it should, or the output."""
    fields = {"norm": "rms", "mlp": "swiglu", "qk_norm": True, "rotary": True, "bottleneck": 8, "class_tokens": 3,
              "class_tokens_from": 1}
    size = dict(channels=40, depth=4, heads=2, patch=4, num_classes=11)
    plain = shapes_of(DiT(**size), 16, 3)
    assert jax.tree.map(jnp.shape, shapes_of(DiT(**size, **fields), 16, 3)) == jax.tree.map(
        jnp.shape, shapes_of(JIT, 16, 3))
    new = {"norm": {"norm1", "norm2", "norm_out"}, "mlp": {"gate"}, "qk_norm": {"q_norm", "k_norm"}, "rotary": set(),
           "bottleneck": {"bottleneck"}, "class_tokens": {"class_positions"}}
    for field, names in new.items():
        found = shapes_of(DiT(**size, **{field: fields[field]}), 16, 3)
        more = (found.keys() | found["block1"].keys()) - (plain.keys() | plain["block1"].keys())
        assert more == names, field
    assert np.abs(output("jit", JIT.clone(rotary=False)) - GOLDEN["jit"]["output"]).max() > 0.01


@pytest.mark.parametrize("fields, words", [
    (dict(heads=5), "heads = 5: must divide network.channels = 48"),
    (dict(heads=8), "rotary = True: .* a head has 6"), (dict(heads=16), "rotary = True: .* a head has 3"),
    (dict(patch=5), "patch = 5: must divide the 16"), (dict(bottleneck=-1), "bottleneck"),
    (dict(dropout=1.0), "a probability below 1"), (dict(num_classes=0), "class_tokens = 32: are of a label"),
    (dict(class_tokens_from=4), "blocks 0 .. 3"), (dict(class_tokens=-1), "class_tokens"), (dict(depth=0), "depth")])
def test_what_cannot_be(fields, words):
    network = JiT(**dict(channels=48, depth=4, heads=4, patch=4, num_classes=5, class_tokens_from=2) | fields)
    with pytest.raises(FieldError, match=words):
        network.check((16, 16))
