"""The documents name tests and files that are there."""
import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "tests/golden/README.md"])
EQUATIONS = ROOT / "docs" / "equations.md"


def functions(path: pathlib.Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_equation_names_tests_that_exist():
    """Numbered 1, 2, 3 ...; each line `tests/file.py::test` under them is a function there."""
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target
