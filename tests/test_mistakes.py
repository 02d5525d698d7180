"""Mistakes on a command line: each gives one message with the reason, before anything is written or compiled."""
import pytest
from absl import flags

from diffusion import main
from diffusion.errors import CheckpointError, ConfigError, DataError

DIGITS = "--config=configs/digits.py"


@pytest.fixture
def mistake(monkeypatch, tmp_path):
    """Returns a function: words of a command line -> main's error message."""
    monkeypatch.setattr(main.program, "interruptible", lambda: pytest.fail("it was taken for no mistake"))

    def message(*words: str) -> str:
        with pytest.raises((ConfigError, CheckpointError, DataError)) as error:
            main.main(main.parse_flags(["main.py", f"--workdir={tmp_path}/run", *words]))
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        main.GIVEN.clear()
        text = str(error.value)
        assert "\n" not in text and len(text) < 600 and not (tmp_path / "run").exists(), text
        return text

    return message


NO_USE = {
    "--seed=3": "--seed is not for --mode=train, but for sample, evaluate, likelihood, compare. Instead: --config.seed",
    "--steps=5": "Instead: --config.sample.steps", "--num_samples=3": "--num_samples is not for --mode=train",
    "--out=x": "Instead: --workdir", "--from_pretrained=x": "Instead: --init_from", "--checkpoint=3": "is not for",
    "--mode=sample --steps=20": "--steps is not for --mode=sample, but for compare. Instead: --config.sample.steps",
    "--mode=sample --label=3": "--label is for --task=",
    "--mode=sample --strength=0.3": "--strength is for --task=vary.",
    "--strength=0.3": "--strength is not for --mode=train, but for sample. Instead: --mode=sample --task=vary.",
    "--mode=sample --task=vary --factor=2": "--factor is for --task=upscale.",
    "--task=vary": "--task is not for --mode=train", "--mode=sample --init_from=x": "Instead: --from_pretrained",
    "--mode=evaluate --num_samples=5": "--config.evaluate.images", "--mode=sample --task=vary --classes=3": "--label",
    "--mode=sample --num_seeds=2": "for evaluate. Instead: --seed", "--mode=verify_resume --seed=1": "--config.seed",
    "--mode=plan --checkpoint=3": "--checkpoint is not for --mode=plan",
    "--mode=evaluate --all_checkpoints --checkpoint=3": "not both",
}


def test_flags_that_would_do_nothing_name_the_right_one(mistake):
    for words, said in NO_USE.items():
        assert said in mistake(DIGITS, *words.split()), words


def test_programs_agree_on_the_flags_that_they_share():
    """Flags are parsed once for all modes."""
    for values in (main.COMMON, *main.READ_BY.values()):
        for name in values:
            shared, own = flags.FLAGS[name], values[name]
            assert (shared.default, shared.parser.syntactic_help) == (own.default, own.parser.syntactic_help), name
    assert set(main.INSTEAD) <= set(flags.FLAGS) and not any(set(read) & set(main.COMMON) for read in
                                                             main.READ_BY.values())


OUT_OF_RANGE = ["--seed=4294967296", "--seed=1180591620717411303424", "--seed=-1", "--seed=1.5", "--seed=x",
                "--num_samples=0", "--num_samples=1000000000000", "--verify_steps=99999999999999", "--num_seeds=0",
                "--heartbeat_seconds=inf", "--heartbeat_seconds=1e30",
                "--heartbeat_seconds=nan", "--connect_seconds=nan", "--connect_seconds=inf", "--strength=nan",
                "--repeats=100000", "--factor=0", "--iterations=1000000000"]


def test_numbers_out_of_range(mistake):
    for word in OUT_OF_RANGE:
        name = word.split("=")[0].strip("-")
        assert name in mistake(DIGITS, word), word
    assert "beyond the last seed" in mistake(DIGITS, "--mode=evaluate", "--seed=4294967290", "--num_seeds=7")


def test_lists_that_are_empty_or_not_numbers(mistake):
    compare = [DIGITS, "--mode=compare"]
    for words in ("--solvers=", "--steps=", "--scales=", "--steps=x", "--steps=1.5", "--steps=5,,6", "--scales=nan",
                  "--scales=inf", "--scales=1,x", "--steps=99999999999", "--solvers=ddim,", f"--steps={'1,' * 2000}1"):
        assert words.split("=")[0] in mistake(*compare, words), words
    for words in ("--classes=", "--classes=a", "--classes=1.5"):
        assert "--classes" in mistake(DIGITS, "--mode=sample", words)


def test_text_that_no_flag_needs(mistake, tmp_path):
    for word in ("--workdir=a\nb", "--out=a\0b", "--image=a\tb", "--config.data.dir=a\rb", "--workdir=a\u2028b",
                 "--from_pretrained=a\x1b[31m"):
        assert "control character" in mistake(DIGITS, word), word
    assert "locale" in mistake(DIGITS, "--workdir=\udcc3\udca4")
    for word in ("--workdir=", "--from_pretrained=", "--init_from=", "--config=", "--out=", "--image=",
                 "--coordinator="):
        assert f"{word[:-1]} is empty" in mistake(word)


def test_files_of_flags(mistake, tmp_path):
    file = tmp_path / "flags"
    file.write_text(f"# mine\n{DIGITS}\n\n--seed=3\n")
    assert "--seed is not for --mode=train" in mistake(f"--flagfile={file}")
    assert "--seed is not for --mode=train" in mistake("--flagfile", str(file))
    file.write_text(f"{DIGITS}\n--flagfile={file}\n")
    assert "names itself" in mistake(f"--flagfile={file}")
    for wrong in (f"{tmp_path}/none", str(tmp_path), ""):
        assert "cannot be read" in mistake(f"--flagfile={wrong}")


def test_where_a_config_may_come_from(mistake, tmp_path):
    assert "--config is missing" in mistake() and "an existing run by --workdir" in mistake()
    assert "Unknown config key" in mistake(DIGITS, "--config.lr=3") and "config.lr" not in main.GIVEN
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"seed": 0, "lr": 3}')
    assert "other/config.json: Unknown config key 'lr'" in mistake(f"--workdir={tmp_path}/other")


def test_devices_that_are_not_there(mistake, monkeypatch):
    import jax

    def devices():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", devices)
    assert "JAX finds no device of JAX_PLATFORMS=cuda" in mistake(DIGITS)
    for name, value in (("jax_enable_x64", True), ("jax_debug_nans", True), ("jax_default_prng_impl", "rbg"),
                        ("jax_numpy_dtype_promotion", "strict"), ("jax_no_tracing", True),
                        ("jax_transfer_guard", "disallow"), ("jax_transfer_guard_device_to_host", "disallow")):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            assert f"{name.upper()} is set to {value}" in mistake(DIGITS)
        finally:
            jax.config.update(name, before)


def test_home_folders_in_paths(mistake, monkeypatch, tmp_path):
    """A shell does not expand ~ after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "flags.txt").write_text("--mask=~/m.png\n")
    (tmp_path / "c.py").write_text("from diffusion import config\n\ndef get_config():\n    return config.base()\n")
    main.parse_flags(["main.py", "--config=~/c.py", "--flagfile=~/flags.txt", "--mode=sample", *(
        f"--{name}=~/{name}" for name in ("workdir", "out", "image", "from_pretrained", "init_from"))])
    for name in ("config", "workdir", "out", "image", "mask", "from_pretrained", "init_from"):
        assert flags.FLAGS[name].value.startswith(f"{tmp_path}/"), name
    assert "an unknown user" in mistake("--config=~nobody-of-that-name/c.py")
