"""How a program starts: by `python -m`, as users start it, and without libraries that it may never need."""
import subprocess
import sys

import program


def test_as_users_start_it(tmp_path):
    """All other tests fork their programs (program.py)."""
    done = subprocess.run(program.command(f"--workdir={tmp_path}/none", "--mode=sample"), cwd=program.ROOT, text=True,
                          env=program.environment(), capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and str(tmp_path / "none") in done.stderr


def test_a_setting_that_jax_refuses_is_named_as_one():
    """JAX reads its settings when it is imported, before the config file is read."""
    done = subprocess.run(program.command("--config=configs/digits.py"), cwd=program.ROOT, text=True,
                          env=program.environment() | {"JAX_ENABLE_X64": "maybe"}, capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "JAX does not start: invalid truth value 'maybe'" in done.stderr and "digits.py" not in done.stderr


LATE = ["matplotlib", "tensorboardX", "sklearn", "scipy.stats", "tensorflow_datasets", "torch", "diffusers", "diffrax"]
IMPORTS = f"""
import sys
import diffusion.data.prepare.__main__, diffusion.interop.convert, diffusion.metrics.__main__, diffusion.pipeline
import diffusion.programs.evaluation, diffusion.tasks, diffusion.train.loop
print(sorted(set({LATE}) & set(sys.modules)))
"""


def test_what_takes_long_to_import_is_imported_where_it_is_used():
    """Matplotlib and tensorboardX by themselves took half of the start-up time."""
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=program.ROOT, text=True, env=program.environment(),
                          capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_and_wrong_flags_need_no_jax():
    """They are answered in a fraction of a second; see diffusion/programs/__init__.py."""
    heavy = ["jax", "flax", "orbax", "grain", "optax", "PIL", *LATE]
    code = f"import sys, diffusion.main\nprint(sorted(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=program.ROOT, text=True, env=program.environment(),
                          capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def said_by_help(*words):
    return program.execute([sys.executable, "-m", "diffusion.main", *words]).stdout


def test_help_shows_the_flags_of_a_mode():
    plain, sample = said_by_help("--help"), said_by_help("--mode=sample", "--seed=3", "--config.seed=3", "--help")
    for name in ("config", "workdir", "mode", "coordinator", "process_id"):
        assert f"\n  --{name}:" in plain and f"\n  --{name}:" in sample, name
    for name in ("seed", "num_samples", "task", "strength", "from_pretrained", "checkpoint"):
        assert f"\n  --{name}:" not in plain and f"\n  --{name}:" in sample, name
    for name in ("solvers", "num_seeds", "topology", "init_from", "verify_steps"):
        assert f"\n  --{name}:" not in plain + sample, name
    assert "--init_from:" in said_by_help("-h", "--mode", "train") and "--mode=NAME --help" in plain
    for mode in ("train", "sample", "evaluate", "likelihood", "compare", "verify_resume", "plan"):
        assert f"\n  {mode} " in plain, mode
