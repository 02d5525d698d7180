"""The tables: every row resolves to a config that can be trained and sampled, and no two to the same one."""
import pytest

from diffusion import build
from diffusion.errors import ConfigError
from experiments import table
from experiments.sweep import expand

MADE = "from sweeps import fake\nfrom experiments.table import *\nTABLE = fake.table("
OWN = ("from experiments.table import *\nTABLE = Table(**dict(title='t', source='s', columns=[Column('FID', 'fd')], "
       "rows=[Row('a', {})], scales={'mini':")
SCALES = [(name, scale) for name in table.names() for scale in table.find(name).scales]


@pytest.mark.parametrize("name, scale", SCALES)
def test_rows_resolve_and_differ(tmp_path, name, scale):
    found = table.find(name)
    assert found.title and found.source and found.scale(scale).about
    sweep = expand(found, scale, 1, tmp_path)  # raises where two are the same
    assert len(sweep.members) == len(found.rows) - len(found.scale(scale).leaves_out)
    assert set(found.scale(scale).leaves_out) <= {row.name for row in found.rows}


def test_a_scale_may_change_single_rows():
    found = table.find("iddpm_table2")
    dropout = [[found.config(scale, row).network.dropout for row in found.rows] for scale in ("paper", "mini")]
    assert dropout == [[0.1, 0.1, 0.1, 0.3, 0.3, 0.3], [0.0] * 6]


@pytest.mark.slow
@pytest.mark.parametrize("name", table.names())
def test_rows_can_be_built(name):
    """All checks that come before a compilation, at the smallest scale; models are built once for each network."""
    found, built = table.find(name), set()
    scale = list(found.scales)[-1]
    for row in found.rows:
        if row.name not in found.scale(scale).leaves_out:
            config = found.config(scale, row)
            build.check(config)
            if (network := str((config.network, config.learned_range, config.data.size))) in built:
                continue
            built.add(network)
            model = build.model(config)
            build.sampler(config, model)
            build.training_step(config, model, 1437)
            if "likelihood" in found.modes:
                build.evaluator(config, model, 0)


@pytest.mark.parametrize("text, words", [
    ("TABLE = 3", "is not a table"),
    ("import nothing_such", "the table file cannot be run: ModuleNotFoundError"),
    ("x", "the table file cannot be run: NameError"),
    (f"{MADE}[Row('a', {{}}), Row('a', {{}})])", "two rows 'a'"),
    (f"{MADE}[Row('a', {{}}, {{'IS': 1.0}})])", "cell of 'IS', which is not a column: FID"),
    (f"{MADE}[Row('a', {{}})])", "no row '(five|ten|no cell)'"),
    ("1 / 0", "line 1: the table file cannot be run: ZeroDivisionError"), ("exit(5)", "SystemExit: 5"),
    ("open('/nope')", "FileNotFoundError"), ("def f(:", "SyntaxError"), ("TABLE = ''.x", "AttributeError"),
    (f"{MADE}[Row('a', 3)])", "row 'a': its overrides must be a dict; got 3"),
    (f"{MADE}[Row('a', {{}}, 3)])", "row 'a': its paper must be a dict; got 3"),
    (f"{MADE}[3])", "its rows must each be a Row"), (f"{MADE}3)", "its rows must each be a Row; got 3"),
    (f"{MADE}[])", "needs at least one column, row and scale"),
    (f"{MADE}[Row('a', {{}})], columns=3)", "its columns must each be a Column"),
    (f"{MADE}[Row(3, {{}})])", "row 3: its name must be text; got 3"),
    (f"{MADE}[Row('a', {{}})], columns=[Column('FID', 3)])", "a column: its ours must be text; got 3"),
    (f"{MADE}[Row('a', {{}}, {{'FID': '3'}})])", "row 'a': a cell is a number or a Cell; got '3'"),
    (f"{MADE}[Row('a', {{}}, {{'FID': Cell([3])}})])", "row 'a': a cell is a number or a Cell; got Cell"),
    (f"{OWN} Scale(3, {{}}, '')}}))", "scale 'mini': its config must be text; got 3"),
    (f"{OWN} Scale('configs/digits.py', {{}}, '', of_rows={{'a': 3}})}}))", "the of_rows of a scale are dicts; got 3"),
    (f"{OWN} Scale('configs/digits.py', {{}}, '')}}, findings=[Finding('x', 'FID', [('a',)])]))", "to unpack"),
])
def test_a_file_that_is_no_table_is_named(tmp_path, text, words):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=words):
        table.find(str(file))


def test_an_unknown_table_lists_them():
    with pytest.raises(ConfigError, match="no table 'ddim'.*Did you mean 'ddim_table1'.*iddpm_table2.*TABLE = Table"):
        table.find("ddim")
