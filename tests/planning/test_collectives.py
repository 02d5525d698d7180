"""The parser of compiled programs, on text as XLA writes it and on a real training step over 8 devices."""
import json
import sys

import program
import pytest

from diffusion.errors import ConfigError
from diffusion.planning import chips, roofline
from diffusion.planning.collectives import Collective, collectives

TEXT = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[64])) -> (s32[], bf16[64]) {
  %gather = bf16[64]{0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%async_computation (p: f32[8]) -> f32[2] {
  ROOT %scatter = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

ENTRY %main (p: f32[10]) -> f32[] {
  %r = (f32[10]{0:T(128)}, f32[]) all-reduce(%p, %q), replica_groups=mesh['x'=2,'y'=4] {'x','y'}, to_apply=%add
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%k), replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[32]{0} all-gather-done(%start)
  %while = (s32[], bf16[64]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %async = ((f32[8]), f32[2], u32[]) async-start(%p), calls=%async_computation
  %permute = (u8[16]{0}, u8[16]{0}, u32[], u32[]) collective-permute-start(%u), source_target_pairs={{0,1},{1,0}}
}
"""


def test_kinds_bytes_devices_and_loops():
    assert sorted(collectives(TEXT)) == sorted([
        Collective("all-gather", 128, 4, 5), Collective("reduce-scatter", 32, 4, 1), Collective("all-reduce", 44, 8, 1),
        Collective("all-gather", 128, 8, 1), Collective("collective-permute", 16, 2, 1)])


def test_a_ring_sends_what_the_theory_says():
    assert Collective("all-reduce", 800, 8, 1).moved == 2 * 7 / 8 * 800
    assert Collective("all-gather", 800, 8, 1).moved == Collective("reduce-scatter", 800, 8, 1).moved == 700
    assert Collective("all-reduce", 800, 1, 1).moved == 0


def test_the_roofline():
    costs = roofline.Costs(flops=197e12, bytes=819e9 / 2, arguments=5, temporaries=6,
                           collectives={"all-reduce": {"moved": 50e9}})
    assert roofline.seconds(costs, chips.CHIPS["v5e"]) == pytest.approx(
        {"compute": 1.0, "memory": 0.5, "links": 0.5, "step": 1.5, "communication": 1 / 3})
    assert costs.memory == 11


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e", "v5e:4", "v5e:4x4x4x4", "cpu"])
def test_an_unknown_topology_lists_those_there_are(topology):
    with pytest.raises(ConfigError, match="v5e:16x16.*v5p.*local"):
        chips.devices_of(topology)


PROGRAM = """
import json, sys
import jax
from diffusion import build
from diffusion import config as config_lib
from diffusion.programs import plan

report = {}
for fsdp in (1, 2, 8):
    config = config_lib.override(config_lib.base(), {
        "data.size": 8, "data.channels": 1, "network.channels": 64, "network.multipliers": (1,), "network.blocks": 1,
        "network.attention_resolutions": (), "network.groups": 8, "train.batch_size": 32, "mesh.fsdp": fsdp,
        "train.steps_per_dispatch": 1})
    model = build.model(config)
    parts = build.training_step(config, model, None)
    costs, _, _ = plan.train_costs(config, model, parts)
    report[fsdp] = {"arguments": costs.arguments, "collectives": costs.collectives,
                    "parameters": sum(x.size * 4 for x in jax.tree.leaves(parts.abstract_state.params)),
                    "state": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(parts.abstract_state))}
config = config_lib.override(config, {
    "mesh.fsdp": 1, "network.num_classes": 3, "network.label_dropout": 0.1, "sample.guidance.name": "classifier_free",
    "sample.guidance.scale": 2.0, "sample.solver": "ddim", "sample.steps": 10, "sample.batch_size": 32})
report["guided"] = plan.sample_costs(config, build.model(config))[0].collectives
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def steps():
    done = program.execute([sys.executable, "-c", PROGRAM], devices=8)
    return {fsdp if fsdp == "guided" else int(fsdp): row
            for fsdp, row in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.slow
@pytest.mark.multidevice
def test_data_parallel_reduces_the_gradient_once_and_moves_nothing_else_of_its_size(steps):
    found, parameters = steps[1]["collectives"], steps[1]["parameters"]
    reduced = found.pop("all-reduce")["bytes"]
    assert parameters <= reduced < 1.01 * parameters  # and the metrics' sums
    assert sum(row["bytes"] for row in found.values()) < 0.01 * parameters


@pytest.mark.slow
@pytest.mark.multidevice
def test_memory_of_the_state_falls_as_the_devices_that_share_it_grow(steps):
    """Of the compiled programs' arguments: state and batch, of which small arrays are copied to all."""
    for fsdp, row in ((fsdp, steps[fsdp]) for fsdp in (1, 2, 8)):
        assert row["state"] / fsdp <= row["arguments"] < 1.1 * row["state"] / fsdp


@pytest.mark.slow
@pytest.mark.multidevice
def test_guidance_moves_nothing_between_devices(steps):
    """The guided and the unguided half of the batch are interleaved; side by side they cost 7 collectives a call."""
    assert steps["guided"] == {}
