"""Each config of the digits in the real program, with its own process, objective, solver and likelihood."""
import json

import numpy as np
import program
import pytest

pytestmark = pytest.mark.slow
# One of each process and kind of estimator.
LIKELIHOODS = ("digits_iddpm", "digits_edm", "digits_vdm")
NAMES = sorted(path.stem for path in (program.ROOT / "configs").glob("digits*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_draws_and_gives_a_likelihood(name, tmp_path):
    """The config's own kind of network, as small as TINY."""
    network = ["--config.network.channels=16"] if name == "digits_dit" else []
    run = lambda *flags: program.run(f"--workdir={tmp_path / 'run'}", *network, *flags, config=name)  # noqa: E731
    run()
    losses = [row["loss"] for row in program.rows(tmp_path / "run")]
    assert len(losses) == 3 and np.isfinite(losses).all() and losses[-1] < losses[0]
    assert (tmp_path / "run/samples/step_00000030.png").stat().st_size > 100
    assert (tmp_path / "run/effective_weight.png").stat().st_size > 100
    if name not in LIKELIHOODS:
        return
    run("--mode=likelihood", "--num_examples=4", "--config.likelihood.steps=5", f"--out={tmp_path / 'bits.json'}")
    found = json.loads((tmp_path / "bits.json").read_text())
    assert np.isfinite(found["bits_per_dim"]) and found["standard_error"] > 0
    assert (tmp_path / "bits.png").exists() == (name == "digits_iddpm")
