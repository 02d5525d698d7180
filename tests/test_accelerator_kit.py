"""The kit for an accelerator, with small networks on the CPU."""
import json
import sys

import jax
import pytest

from benchmarks import accelerator, measure, train_step
from diffusion import build


def test_a_part_that_fails_or_takes_too_long_costs_itself_alone(tmp_path, monkeypatch, capsys):
    row = '{{"ms": 2.0, "lowest_ms": 1.9, "highest_ms": 2.1}}'
    code = f'import json; json.dump({{{{"rows": {{{{"ours": {row}}}}}}}}}, open("{{out}}/{{name}}.json", "w"))'
    monkeypatch.setattr(accelerator, "PARTS", {
        "fails": (9, "{python} -c 'raise SystemExit(3)'"), "hangs": (1, "{python} -c 'import time; time.sleep(99)'"),
        "works": (9, f"{{python}} -c '{code}'")})
    monkeypatch.setattr(sys, "argv", ["accelerator", f"--out={tmp_path}", "--parts=fails,hangs,works", "--minutes=1"])
    accelerator.main()
    found = json.loads((tmp_path / "report.json").read_text())
    assert [found[name]["ended"] for name in ("fails", "hangs", "works")] == [3, "out of time", 0]
    assert found["works"]["found"]["rows"]["ours"]["ms"] == 2.0 and found["fails"]["found"] is None
    before = {"works": {"found": {"rows": {"ours": {"ms": 3.0, "lowest_ms": 2.9, "highest_ms": 3.1}}}}}
    assert "faster: ours, 3.00 -> 2.00 ms (1.50 times as fast)" in accelerator.changes(before, found)


def test_turns_and_their_spread():
    calls = []
    ways = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.by_turns(ways, rounds=3, steps=2)
    assert "".join(calls) == "ab" + "aabb" * 3 and {len(t) for t in times.values()} == {3}
    assert measure.spread([0.001, 0.004, 0.002]) == pytest.approx({"ms": 2, "lowest_ms": 1, "highest_ms": 4})
    assert measure.busy({"used_cores": 0.3, "cores": 2}) is None
    assert "not idle" in measure.busy({"used_cores": 1.5, "cores": 2})


@pytest.mark.slow
def test_the_parts_work(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "PARTS", {name: (600, command.replace("repeatability --", "repeatability "
                        "--settings=default --steps=2 --")) for name, (_, command) in accelerator.PARTS.items()})
    monkeypatch.setattr(sys, "argv", ["accelerator", "--tiny", f"--out={tmp_path}", "--minutes=20",
                                      "--parts=unet_ours,repeatability"])
    accelerator.main()
    found = json.loads((tmp_path / "report.json").read_text())
    assert [part["ended"] for part in found.values()] == [0, 0]
    row = found["unet_ours"]["found"]["rows"]["ours"]
    assert row["ms"] > 0 and 0 < row["mfu"] < 1 and row["temporaries_gb"] > 0 and row["peak_gb"] > 0
    assert all(found["repeatability"]["found"]["default"][way] for way in ("in one process", "loaded", "anew"))


@pytest.mark.parity
@pytest.mark.parametrize("path, dtype", [("configs/cifar10.py", "float32"), ("configs/dit.py", "bfloat16")])
def test_the_step_in_pytorch_trains_the_same_network(path, dtype):
    pytest.importorskip("diffusers", reason="the parity tests' packages are not installed")
    from benchmarks import peers
    config = train_step.prepared(path, 4, dtype, tiny=True)
    network, classes = peers.network_of(config)
    assert classes == config.network.num_classes
    if config.network.name == "unet":  # DiT embeds time and label in each block there
        ours = jax.eval_shape(build.model(config).init, jax.random.key(0))
        assert sum(p.numel() for p in network.parameters()) == sum(p.size for p in jax.tree.leaves(ours))
    step = peers.training_step(config, batch=4, dtype=dtype, compiled=False)
    losses = [float(step()) for _ in range(60)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
