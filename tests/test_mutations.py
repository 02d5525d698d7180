"""The list of tests/mutations fits the code: each fault can be inserted, and the tests that must notice it exist."""
import ast
import pathlib

from mutations.cases import CASES

ROOT = pathlib.Path(__file__).parent.parent


def test_every_mutation_fits_and_every_folder_has_one():
    sources = {name: (ROOT / name).read_text() for name in {m.file for m in CASES}}
    for m in CASES:
        assert sources[m.file].count(m.old) == 1, f"{m.name}: {m.old!r} must occur once in {m.file}"
        assert m.old != m.new, m.name
        assert m.tests and all((ROOT / name).is_file() for name in m.tests), f"{m.name}: {m.tests}"
        if m.file.endswith(".py"):
            ast.parse(sources[m.file].replace(m.old, m.new), m.name)
    assert len({m.name for m in CASES}) == len(CASES) >= 70
    folders = {path.parent.relative_to(ROOT) for top in ("diffusion", "experiments")
               for path in (ROOT / top).rglob("__init__.py")}
    assert folders - {pathlib.Path(m.file).parent for m in CASES} == set()
