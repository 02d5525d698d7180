"""The house rules of docs/design.md: one direction of imports, one place for each library, short files."""
import ast
import functools
import graphlib
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "diffusion"
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
         for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = sorted(FILES)

# main -> programs -> {pipeline, pretrained, build} -> library -> {train.loop, generate, likelihood} -> {train.step,
# samplers, guidance} -> core; each imports what is below it. interop.convert and metrics.__main__ only start programs.
BASE = ["diffusion.typing", "diffusion.errors", "diffusion.core.numerics"]
READING = ["diffusion.io.reading", "diffusion.io.npz", "diffusion.io.pictures"]  # of files that a user gives
MAY_IMPORT = {  # the most specific row counts; a family may import itself
    "diffusion.main": ["diffusion.parallel.hosts", "diffusion.runtime", "diffusion.programs", "diffusion.pretrained",
                       "diffusion.command_words", "diffusion.config_flags", "diffusion.config_help",
                       "diffusion.program", "diffusion.errors"],
    "diffusion.command_words": ["diffusion.errors", "diffusion.io.reading"],
    "diffusion.programs": ["diffusion"],
    "diffusion.planning": BASE,
    "diffusion.runtime": ["diffusion.errors", "diffusion.planning.gpus"],
    "diffusion.program": ["diffusion.errors"],
    "diffusion.user_file": ["diffusion.errors"],
    "diffusion.config_values": ["diffusion.errors"],
    "diffusion.config_variants": ["diffusion.config_values", "diffusion.errors"],
    "diffusion.config_flags": ["diffusion.config", "diffusion.families", "diffusion.user_file", "diffusion.errors",
                               "diffusion.io.files"],
    "diffusion.pipeline": ["diffusion"],
    "diffusion.pretrained": ["diffusion.build", "diffusion.config", "diffusion.config_values", "diffusion.errors",
                             "diffusion.interop", "diffusion.io"],
    "diffusion.guidance": [*BASE, "diffusion.core", "diffusion.samplers.base"],  # of a solver around a solver
    "diffusion.tasks": [*BASE, "diffusion.core", "diffusion.samplers.base"],
    "diffusion.likelihood": [*BASE, "diffusion.core", "diffusion.parallel.sharding"],
    "diffusion.metrics": [*BASE, "diffusion.interop.tensor_files", "diffusion.io.download", *READING,
                          "diffusion.parallel.sharding"],
    "diffusion.metrics.__main__": ["diffusion.program", "diffusion.programs.metrics"],
    "diffusion.metrics.train_classifier": ["diffusion.program", "diffusion.programs.train_classifier"],
    "diffusion.metrics.fit_classifier": [*BASE, "diffusion.metrics", "diffusion.core.streams"],
    "diffusion.interop": [*BASE, "diffusion.io.files"],
    "diffusion.interop.convert": ["diffusion.program", "diffusion.programs.convert"],
    "diffusion.library": [*BASE, "diffusion.core", "diffusion.data", "diffusion.families", "diffusion.config_values",
                          "diffusion.generate", "diffusion.kinds", "diffusion.networks", "diffusion.parallel",
                          "diffusion.samplers", "diffusion.train"],
    "diffusion.build": ["diffusion"],
    "diffusion.config": ["diffusion.families", "diffusion.config_values", "diffusion.errors", "diffusion.io.migrate"],
    "diffusion.config_help": ["diffusion.config", "diffusion.families", "diffusion.config_values",
                              "diffusion.errors"],
    "diffusion.families": ["diffusion.config_values", "diffusion.errors"],  # members' modules are found by name
    "diffusion.typing": [],
    "diffusion.errors": [],
    "diffusion.generate": [*BASE, "diffusion.core", "diffusion.samplers", "diffusion.parallel.sharding"],
    "diffusion.parallel": ["diffusion.errors"],
    "diffusion.train": [*BASE, "diffusion.core", "diffusion.parallel"],
    "diffusion.samplers": [*BASE, "diffusion.core"],
    "diffusion.core": ["diffusion.typing", "diffusion.errors"],
    "diffusion.networks": [*BASE, "diffusion.core.conditions"],
    "diffusion.kinds": [*BASE, "diffusion.core.conditions", "diffusion.data", "diffusion.io"],
    "diffusion.data": [*BASE, *READING],
    "diffusion.data.moving_digits": [*BASE, *READING, "diffusion.data", "diffusion.metrics.moving_digits"],
    "diffusion.data.prepare": [*BASE, *READING, "diffusion.data", "diffusion.io.download", "diffusion.program",
                               "diffusion.kinds", "diffusion.families"],
    "diffusion.io": BASE,
}
ONLY_IN = {  # library: where it may be imported
    "flax": ["diffusion.networks", "diffusion.metrics.networks", "diffusion.metrics.extractors",
             "diffusion.interop.score_sde"],  # which reads its file format
    "orbax": ["diffusion.io.checkpoint"],
    "grain": ["diffusion.data"],
    "tensorflow_datasets": ["diffusion.data"],
    "array_record": ["diffusion.data"],
    "optax": ["diffusion.train", "diffusion.library", "diffusion.metrics.fit_classifier"],
    "equinox": ["diffusion.networks.adapters"],  # if the user has it
    "diffrax": ["diffusion.likelihood.ode", "diffusion.samplers.adaptive"],
    "absl": ["diffusion.main", "diffusion.programs", "diffusion.io.checkpoint"],
    "ml_collections": ["diffusion.main", "diffusion.programs", "diffusion.build", "diffusion.config",
                       "diffusion.config_flags", "diffusion.pretrained", "diffusion.pipeline"],
    "safetensors": ["diffusion.interop"],
    "huggingface_hub": ["diffusion.interop"],
    "torch": ["diffusion.programs.convert"],
    "diffusers": ["diffusion.programs.convert"],
    "matplotlib": ["diffusion.io"],
    "tensorboardX": ["diffusion.io"],
    "soundfile": ["diffusion.io.sound"],
    "soxr": ["diffusion.io.sound"],
}
LONGEST = 420  # lines


def inside(module: str, families: list[str]) -> bool:
    return any(module == family or module.startswith(family + ".") for family in families)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """All imports of `module`, anywhere in it; our own imports as modules, not as the names in them."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in FILES else node.module)
    return frozenset(found)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if inside(name, ["diffusion"])}


def libraries(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - sys.stdlib_module_names - {"diffusion"}


def test_the_package_is_found():
    assert {"diffusion.main", "diffusion.core.processes", "diffusion.io.checkpoint"} <= set(MODULES)
    assert "flax" in libraries("diffusion.networks.unet") and "diffusion.programs.train" in ours("diffusion.main")


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    rows = [row for row in MAY_IMPORT if inside(module, [row])]
    if module != "diffusion" and FILES[module].stat().st_size:
        assert rows, f"{module} is in no row of MAY_IMPORT: say what it may import"
        row = max(rows, key=len)
        wrong = {name for name in ours(module) if not inside(name, [*MAY_IMPORT[row], row])}
        assert not wrong, f"{module} may import {MAY_IMPORT[row]} of ours, not {sorted(wrong)}"


def test_there_are_no_cycles():
    graphlib.TopologicalSorter({module: ours(module) - {module} for module in MODULES}).prepare()


@pytest.mark.parametrize("module", [m for m in MODULES if inside(m, ["diffusion.core"])])
def test_core_is_mathematics(module):
    assert libraries(module) <= {"jax", "numpy"}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_has_one_place(library):
    users = [module for module in MODULES if library in libraries(module)]
    assert [m for m in users if not inside(m, ONLY_IN[library])] == []


def test_only_the_programs_see_a_config():
    """Other modules have no argument or annotation called config either."""
    allowed = [*ONLY_IN["ml_collections"], "diffusion.io.run_folder"]  # which writes it down, as a dict of plain values
    for module in MODULES:
        if not inside(module, allowed):
            names = {node.arg for node in ast.walk(ast.parse(FILES[module].read_text())) if isinstance(node, ast.arg)}
            assert "config" not in names, f"{module} takes a config: pass keyword arguments"


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short_and_say_what_they_are(module):
    source = FILES[module].read_text()
    assert source.count("\n") <= LONGEST, f"{module} is long: one concept a file"
    assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{module} has no docstring"


def test_every_folder_with_code_is_a_package():
    """Otherwise setup.py's find_packages would omit the folder from an installation."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []
