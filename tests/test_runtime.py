"""The settings that programs make for the whole process."""
import subprocess
import sys

import program
import pytest

from diffusion import runtime

FAULTS = """
import resource, sys
import numpy as np
from diffusion import runtime
if sys.argv[1] == "keep":
    runtime.keep_memory()
for _ in range(3):  # what is kept is there after the first
    np.ones(10_000_000, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(10_000_000, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_kept():
    """40 MB are 10,000 pages, or 20 huge ones, which the system clears again for each array unless they are kept."""
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    keep, leave = faults("keep"), faults("leave")
    assert 4 * keep < leave, (keep, leave)


@pytest.mark.parametrize("given, there, expected", [
    ("", True, "--xla_gpu_exclude_nondeterministic_ops=true"), ("", False, ""),
    ("--xla_a=1", True, "--xla_a=1 --xla_gpu_exclude_nondeterministic_ops=true"),
    *((f"--{name}=false", True, f"--{name}=false") for name in runtime.REPEATABLE)])
def test_gpus_repeat_their_bits_unless_told_otherwise(monkeypatch, given, there, expected):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(runtime.gpus, "has_plugin", lambda: there)
    runtime.repeat_bits()
    assert runtime.os.environ["XLA_FLAGS"] == expected


def test_flags_of_xla_that_would_end_the_process(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    runtime.check_flags()
    code = ("from diffusion import runtime\nfrom diffusion.errors import ConfigError\nimport os\n"
            "for flags in ('--xla_force_host_platform_device_count=1', '--nonsense', '/nope'):\n"
            "    os.environ['XLA_FLAGS'] = flags\n    try:\n        runtime.check_flags()\n        print('taken')\n"
            "    except ConfigError as error:\n        print(error)\n")
    done = program.execute([sys.executable, "-c", code])
    taken, unknown, file = done.stdout.splitlines()
    assert taken == "taken" and "XLA_FLAGS=--nonsense: Unknown flag in XLA_FLAGS: --nonsense. Correct" in unknown
    assert "XLA rejects XLA_FLAGS=/nope" in file and done.stderr == ""
