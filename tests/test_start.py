"""How a program starts: by `python -m`, as users start it, and without libraries that it may never need."""
import subprocess
import sys

import program


def test_as_users_start_it(tmp_path):
    """The other tests fork their programs (program.py)."""
    done = subprocess.run(program.command(f"--workdir={tmp_path}/none", "--mode=sample"), cwd=program.ROOT, text=True,
                          env=program.environment(), capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and str(tmp_path / "none") in done.stderr


LATE = ["matplotlib", "tensorboardX", "sklearn", "scipy.stats", "tensorflow_datasets", "torch", "diffusers", "diffrax"]
IMPORTS = f"""
import sys
import diffusion.compare, diffusion.edit, diffusion.evaluate, diffusion.main, diffusion.modes, diffusion.plan
import diffusion.pipeline, diffusion.verify
import diffusion.data.prepare.__main__, diffusion.interop.convert, diffusion.metrics.__main__
print(sorted(set({LATE}) & set(sys.modules)))
"""


def test_what_takes_long_to_import_is_imported_where_it_is_used():
    """Matplotlib and tensorboardX alone were half of the seconds of a start."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=program.ROOT, text=True, env=program.environment(),
                          capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
