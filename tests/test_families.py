"""Each config of the digits through the real program, with its own network, solver and grid, for a few steps."""
import sys

import numpy as np
import program
import pytest

pytestmark = pytest.mark.slow
NAMES = sorted(path.stem for path in (program.ROOT / "configs").glob("digits*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_draws(name, tmp_path):
    program.execute([
        sys.executable, "-m", "diffusion.main", f"--config=configs/{name}.py", f"--workdir={tmp_path}",
        "--config.train.duration=30 steps", "--config.train.log_every=10 steps", "--config.train.sample_every=30 steps",
        "--config.train.checkpoint_every=30 steps", "--config.optimizer.warmup=5 steps", "--config.sample.preview=4",
        "--config.sample.batch_size=4"])
    losses = [row["loss"] for row in program.rows(tmp_path)]
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]
    assert (tmp_path / "samples" / "step_00000030.png").stat().st_size > 100
