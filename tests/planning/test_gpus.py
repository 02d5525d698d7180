"""Programs for GPUs: what is counted in their text, and that they compile without a GPU."""
import importlib.util
import json
import sys

import program
import pytest

from diffusion.errors import ConfigError
from diffusion.planning import chips, gpus, roofline
from diffusion.planning.kernels import Kernel, account, kernels, part_of
from diffusion.planning.roofline import LAUNCH

TEXT = """HloModule jit_step, is_scheduled=true

%fused_add (a: f32[8], b: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %inside = f32[8]{0} add(%a, %b)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %loop_add_fusion = f32[8]{0} fusion(%x, %x), kind=kLoop, calls=%fused_add, metadata={op_name="jit(step)/jvp(UNet)/add"}
  ROOT %next = (s32[], f32[8]) tuple(%i, %loop_add_fusion)
}

ENTRY %main (p: bf16[4,4], q: f32[8]) -> f32[8] {
  %p = bf16[4,4]{1,0} parameter(0)
  %q = f32[8]{0} parameter(1)
  %gemm = (bf16[4,4]{1,0}, s8[33554432]{0}) custom-call(%p, %p), custom_call_target="__cublas$lt$matmul"
  %part = bf16[4,4]{1,0} get-tuple-element(%gemm), index=0
  %input_reduce_fusion.3 = f32[4]{0} fusion(%part), kind=kInput, calls=%fused_add, metadata={op_name="jit(step)/transpose(jvp(UNet))/up0_block2/norm1/reduce_sum"}
  %while = (s32[], f32[8]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %all-reduce-start = f32[8]{0} all-reduce-start(%q), replica_groups={{0,1}}, to_apply=%fused_add
  %all-reduce-done = f32[8]{0} all-reduce-done(%all-reduce-start)
  ROOT %copy.1 = f32[8]{0} copy(%all-reduce-done)
}
"""  # noqa: E501


def test_kernels_their_bytes_and_loops():
    """A library's workspace is neither read nor written; the inside of a fusion is no kernel; a loop's body is."""
    assert sorted(kernels(TEXT)) == sorted([
        Kernel("matrix product", "gemm", 3 * 32, 1, ""),
        Kernel("reduction", "input_reduce_fusion.3", 32 + 16, 1,
               "jit(step)/transpose(jvp(UNet))/up0_block2/norm1/reduce_sum"),
        Kernel("elementwise", "loop_add_fusion", 3 * 32, 5, "jit(step)/jvp(UNet)/add"),
        Kernel("collective", "all-reduce-start", 64, 1, ""), Kernel("copy", "copy.1", 64, 1, "")])


def test_of_an_array_that_a_kernel_slices_only_the_slices_are_read():
    text = """HloModule jit_step

%fused (a: f32[8,4], b: f32[2,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %flat = f32[32]{0} bitcast(%a)
  %part = f32[8]{0} slice(%flat), slice={[8:16]}
  %b = f32[2,4]{1,0} parameter(1)
  ROOT %sum = f32[2,4]{1,0} add(%part, %b)
}

ENTRY %main (p: f32[8,4], q: f32[2,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[2,4]{1,0} parameter(1)
  ROOT %loop_add_fusion = f32[2,4]{1,0} fusion(%p, %q), kind=kLoop, calls=%fused
}
"""
    assert [one.bytes for one in kernels(text)] == [3 * 32]


def test_the_account():
    found = account(kernels(TEXT))
    assert found.kernels == 9 and found.bytes == 96 + 48 + 480 + 64 + 64 and found.outside == found.bytes - 96
    assert found.by_part["gradient: up_block/norm"] == (1, 48) and found.largest[0].name == "loop_add_fusion"
    assert part_of("") == "by the compiler" and part_of("jit(step)/add") == "the step"


def test_the_roofline_of_kernels_that_follow_each_other():
    costs = roofline.Costs(flops=989e9, bytes=9e12, arguments=0, temporaries=0, kernels=1000, outside=3352e6)
    assert roofline.seconds(costs, chips.CHIPS["h100"])["step"] == pytest.approx(1e-3 + 1e-3 + 1000 * LAUNCH, rel=1e-3)


@pytest.mark.parametrize("topology", ["h100:0", "h100:2x", "h100:0x8", "h100:4x4x4", "b200:x"])
def test_topologies_that_are_not(topology):
    with pytest.raises(ConfigError, match="h100:8"):
        chips.devices_of(topology)


def test_without_the_plugin_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e \.\[cuda\]"):
        gpus.devices_of("h100:8")


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs JAX's CUDA wheels: .[cuda]")
def test_a_step_compiles_for_each_gpu(tmp_path):
    for gpu in gpus.GPUS:
        done = program.execute([sys.executable, "-m", "benchmarks.gpu_program", "--tiny", "--config=configs/digits.py",
                                f"--gpu={gpu}", f"--out={tmp_path / gpu}.json"])
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / f"{gpu}.json").read_text())
        assert found["kernels"] > 100 and 0 < found["outside"] < found["bytes"] and found["flops"] > 1e6


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="needs JAX's CUDA wheels: .[cuda]")
@pytest.mark.parametrize("config, batch, kernels, outside, temporaries, mfu", [
    ("cifar10", 256, 1320, 25.1e9, 4.95e9, 0.40), ("dit", 64, 1850, 77.5e9, 20.9e9, 0.49)])
def test_the_step_for_an_h100_stays_as_small(tmp_path, config, batch, kernels, outside, temporaries, mfu):
    """What docs/results.md says of the whole steps."""
    done = program.execute([sys.executable, "-m", "benchmarks.gpu_program", f"--config=configs/{config}.py",
                            f"--batch={batch}", "--gpu=h100", f"--out={tmp_path}/h100.json"])
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "h100.json").read_text())
    assert found["kernels"] <= kernels and found["outside"] <= outside
    assert found["temporaries"] <= temporaries and found["mfu"] >= mfu
