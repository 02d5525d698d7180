"""examples/own_parts: a schedule, a weighting, a network and a solver of a user's package, selected by config."""
import json
import sys
import types

import numpy as np
import program
import pytest

from diffusion import DiffusionPipeline, build, config_flags, families
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError

FOLDER = program.ROOT / "examples" / "own_parts"


@pytest.fixture
def own_parts(monkeypatch):
    """Makes the package importable, and removes it after the test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(families, "_PLUGINS", {})
    monkeypatch.setattr(families, "_TRUSTED", set())
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_parts", "mine")]:
        del sys.modules[name]


@pytest.mark.slow
def test_they_train_and_sample_and_a_run_of_them_asks_before_it_runs_their_code(own_parts, tmp_path):
    run = tmp_path / "run"
    flags = ["--config.train.duration=4 steps", "--config.optimizer.warmup=1 steps", "--config.train.log_every=2 steps",
             "--config.train.sample_every=4 steps", "--config.train.checkpoint_every=4 steps",
             "--config.sample.preview=2", "--config.network.channels=8", "--config.network.layers=1"]
    said = program.execute([sys.executable, "-m", "diffusion.main", f"--config={FOLDER}/config.py", f"--workdir={run}",
                            *flags]).stdout
    assert "--config.plugins=own_parts --mode=sample" in said  # the next command
    assert "--config.plugins=own_parts" in (run / "README.md").read_text()
    assert all(np.isfinite(row["loss"]) for row in program.rows(run))
    with pytest.raises(ConfigError, match="names own_parts, whose code would be run.*--config.plugins=own_parts"):
        config_flags.load(str(run / "config.json"))
    pipe = DiffusionPipeline.from_pretrained(run, overrides={"plugins": ("own_parts",)})
    assert pipe.config == config_flags.load(str(run / "config.json"), {"plugins": "own_parts"})
    assert np.isfinite(pipe(2, 3, output_type="np", progress_bar=False).images).all()


def test_one_member_can_be_named_by_its_module(own_parts):
    config = config_lib.override(config_lib.base(), {"sample.solver": "own_parts.solver:Midpoint", "sample.share": 0.4,
                                                     "sample.between_times": True})
    assert build.solver(config.sample).share == 0.4
    with pytest.raises(ConfigError, match="has no 'Mid'. Did you mean 'Midpoint'"):
        config_lib.override(config_lib.base(), {"sample.solver": "own_parts.solver:Mid"})
    with pytest.raises(ConfigError, match="config.sample.share = 2.0: must lie in"):
        build.solver(config_lib.override(config, {"sample.share": 2.0}).sample)


def test_a_run_of_a_member_named_by_its_module_asks_before_it_runs_its_code(own_parts, tmp_path, monkeypatch):
    name, file = "own_parts.solver:Midpoint", tmp_path / "config.json"
    config = config_lib.override(config_lib.base(), {"sample.solver": name})
    file.write_text(json.dumps(config.to_dict()))
    (tmp_path / "environment.json").write_text("[]")
    monkeypatch.setattr(families, "_TRUSTED", set())
    with pytest.raises(ConfigError, match=f"names own_parts.solver, .*name it too: --config.sample.solver={name}"):
        config_flags.load(str(file))
    with pytest.raises(ConfigError, match="names own_parts.solver, whose code would be run"):
        DiffusionPipeline.from_pretrained(tmp_path)
    assert config_flags.load(str(file), {"sample.solver": name}) == config
    assert config_lib.adopt_dict(config.to_dict(), "the run") == config.to_dict()  # as programs open the run's folder
    monkeypatch.setattr(families, "_TRUSTED", set())
    with pytest.raises(CheckpointError, match="no checkpoint"):  # the config was read
        DiffusionPipeline.from_pretrained(tmp_path, overrides={"sample.solver": name})


@pytest.mark.parametrize("members, words", [
    ({}, "declares no members"),
    ({"SOLVERS": {"ddim": lambda: None}}, "declares the solver 'ddim', a name that is taken"),
    ({"NETWORKS": {"mine": lambda *, patch=0.5: None}},
     "network.dit and network.mine give config.network.patch two meanings"),
    ({"SOLVERS": {"mine": 3}}, "The solver mine is incomplete: it has no init and no step and no evaluations"),
    ({"SOLVERS": {"mine": None}}, "The solver mine is incomplete"),
    ({"PREDICTIONS": {"mine": (1, 0)}}, "The prediction mine is incomplete: it has no coefficients"),
    ({"SPACINGS": {"mine": [9, 5]}}, "The spacing mine is incomplete: it has no __call__"),
    ({"OPTIMIZERS": {"mine": dict}}, r"mine.OPTIMIZERS\['mine'\] has no signature"),
    ({"SOLVERS": {"mine": lambda *, order=object(): None}}, "its argument order = .* cannot be a config key"),
])
def test_a_plugin_that_cannot_be(own_parts, monkeypatch, members, words):
    module = types.ModuleType("mine")
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, "mine", module)
    with pytest.raises(ConfigError, match=words):
        families.load_plugins(["mine"])
    assert families.plugin_modules() == ()


def test_a_member_without_what_its_family_needs(own_parts, monkeypatch):
    module = types.ModuleType("mine")
    module.SOLVERS = {"mine": type("Mine", (), {"init": lambda self, x: ()})}
    monkeypatch.setitem(sys.modules, "mine", module)
    config = config_lib.base(plugins=("mine",), solver="mine")
    with pytest.raises(ConfigError, match="The solver mine is incomplete: it has no step and no evaluations"):
        build.check(config)
    with pytest.raises(ConfigError, match="'nowhere_at_all', which does not import: ModuleNotFoundError"):
        families.load_plugins(["nowhere_at_all"])
