"""The documents name only tests, files and config keys that exist."""
import ast
import importlib
import pathlib
import re

import pytest

from diffusion import build
from diffusion import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "tests/golden/README.md",
                    *ROOT.glob("benchmarks/*.md")])
EQUATIONS = ROOT / "docs" / "equations.md"


def functions(path: pathlib.Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_equation_names_tests_that_exist():
    """Equations are numbered 1, 2, 3 ..., and each `tests/file.py::test` of a row is a function in that file."""
    text = EQUATIONS.read_text()
    numbers = [int(n) for n in re.findall(r"^\| \((\d+)\)", text, re.M)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 30
    for row in re.findall(r"^\| \(\d+\).*$", text, re.M):
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, f"no test: {row[:80]}"
        for file, name in named:
            path = ROOT / "tests" / file
            assert path.is_file(), f"{file} in {row[:80]}"
            assert name in functions(path), f"{file} has no {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def methods() -> dict[str, dict]:
    """The rows of methods.md: name -> config keys with their values."""
    def value(text: str):
        try:
            return ast.literal_eval(text)
        except ValueError:
            return text

    found = re.findall(r"^\| ([^|`]+?) \| `([^`]+)` \| [^|]+ \|$", (ROOT / "docs" / "methods.md").read_text(), re.M)
    assert len(found) > 15
    return {name: {key: value(text) for key, text in (item.split("=", 1) for item in keys.split())}
            for name, keys in found}


@pytest.mark.parametrize("name", methods())
def test_every_method_builds(name):
    """The method's model, objective and sampler build, on the digits."""
    config = importlib.import_module("configs.digits").get_config()
    config = config_lib.override(config, methods()[name])
    model = build.model(config)
    build.generate(config, model)
    build.training(config, model)
