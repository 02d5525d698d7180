"""launch.sh with a fake Python that only records its calls; and the versions that it installs."""
import ast
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
TOOLS = ["bash", "basename", "cat", "cksum", "dirname", "mkdir", "rm", "sed", "touch", "cp"]
FAKE_PYTHON = """#!/bin/bash
# FAKE_FAILS, FAKE_KILLS: the first words of a call that fails, or after which launch.sh is killed.
echo "${0%/bin/*}:$*" >>"$FAKE_LOG"
[ -z "$FAKE_FAILS" ] || [[ "$*" != "$FAKE_FAILS"* ]] || exit 3
[ -z "$FAKE_KILLS" ] || [[ "$*" != "$FAKE_KILLS"* ]] || kill -9 "$PPID"
case "$*" in
  --version) echo "Python $FAKE_VERSION" ;;
  "-c import sys"*) [[ "$FAKE_VERSION" == 3.1[1-9].* ]] ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


class Launch:
    """A copy of the files that launch.sh needs, in a folder with a space in its name, with only the fake Python."""

    def __init__(self, folder: pathlib.Path):
        self.repo, self.tools, self.log = folder / "the repo", folder / "bin", folder / "log"
        self.elsewhere = folder / "elsewhere"
        for path in (self.repo, self.tools, self.elsewhere):
            path.mkdir()
        for name in ("launch.sh", "setup.py", "constraints.txt"):
            shutil.copy(ROOT / name, self.repo)
        for name in TOOLS:
            (self.tools / name).symlink_to(shutil.which(name))
        self.system_python = self.python(folder, "python3")

    def python(self, environment: pathlib.Path, name: str = "python") -> pathlib.Path:
        path = environment / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FAKE_PYTHON)
        path.chmod(0o755)
        return path

    def __call__(self, *args: str, fails: str = "", kills: str = "", version: str = "3.11.2", code: int = 0,
                 **env: str) -> str:
        """Runs the command, and returns its output. self.calls: its calls of Python, except version checks."""
        self.log.write_text("")
        env = {"PATH": str(self.tools), "FAKE_LOG": str(self.log), "FAKE_VERSION": version, "FAKE_FAILS": fails,
               "FAKE_KILLS": kills, **env}
        done = subprocess.run(["bash", self.repo / "launch.sh", *args], cwd=self.elsewhere, env=env, text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        assert done.returncode == code, done.stdout + done.stderr
        calls = [line.split(":", 1) for line in self.log.read_text().splitlines() if ":" in line]
        self.calls = [(who, what) for who, what in calls if what.startswith("-m ") and what != "-m pip --version"]
        return done.stdout + done.stderr

    def did(self, start: str) -> list[str]:
        return [what for _, what in self.calls if what.startswith(start)]


@pytest.fixture
def launch(tmp_path):
    return Launch(tmp_path)


INSTALL = "-m pip install --quiet --disable-pip-version-check"


def test_help_names_each_use_and_changes_nothing(launch):
    for flag in ("--help", "-h", "help"):
        text = launch(flag)
        for word in ("Usage:", "[train] [CONFIG]", "sample", "test [PYTEST ARGS]", "install", "DIFFUSION_EXTRAS=cuda"):
            assert word in text
        assert "set -e" not in text and "#!" not in text
    assert not launch.calls and not (launch.repo / ".venv").exists()


def test_an_unknown_command(launch):
    text = launch("trian", code=1)
    assert "trian" in text and "train, sample, test, install" in text and "--help" in text
    assert not launch.log.read_text()


def test_a_python_that_is_too_old(launch):
    text = launch(version="3.10.13", code=1)
    assert "Python 3.11 or newer" in text and "found: Python 3.10.13" in text and "apt-get install python3" in text
    launch.system_python.unlink()
    assert "found: none" in launch(code=1)
    assert not (launch.repo / ".venv").exists()


def test_a_newer_python_beside_an_old_one_is_found(launch):
    launch.system_python.write_text("#!/bin/bash\nexit 1\n")
    launch.python(launch.tools.parent, "python3.12")
    launch()
    assert launch.did("-m diffusion.main")


def test_debian_without_python3_venv(launch):
    text = launch(fails="-c import ensurepip", code=1)
    assert "apt-get install python3-venv" in text and not (launch.repo / ".venv").exists()


def test_the_first_run_installs_and_the_second_does_not(launch):
    launch()
    assert [what for _, what in launch.calls] == [
        "-m venv .venv", f"{INSTALL} -c constraints.txt -e .[digits]",
        "-m diffusion.main --config=configs/digits.py --mode=train"]
    assert [who for who, _ in launch.calls][1:] == [".venv", ".venv"]
    launch()
    assert [what for _, what in launch.calls] == ["-m diffusion.main --config=configs/digits.py --mode=train"]


def test_only_what_is_new_makes_it_install_again(launch):
    launch()
    launch("test", "-x", "tests/data")
    assert [what for _, what in launch.calls] == [
        f"{INSTALL} -c constraints.txt -e .[digits,test]",
        "-m pytest -n auto --dist=loadfile --no-loadscope-reorder -x tests/data"]
    launch("test")
    assert not launch.did("-m pip") and launch.did("-m pytest")
    launch("train")  # the test extra is more than it needs
    assert not launch.did("-m pip")
    launch(DIFFUSION_EXTRAS="cuda")
    assert launch.did("-m pip") == [f"{INSTALL} -c constraints.txt -e .[digits,cuda]"] and not launch.did("-m venv")
    for change in ("constraints.txt", "setup.py"):
        with (launch.repo / change).open("a") as file:
            file.write("# changed\n")
        launch(DIFFUSION_EXTRAS="cuda")
        assert launch.did("-m pip") and not launch.did("-m venv"), change
    moved = launch.repo.rename(launch.repo.with_name("moved"))  # an editable install holds the path
    launch.repo = moved
    launch(DIFFUSION_EXTRAS="cuda")
    assert launch.did("-m pip")


@pytest.mark.parametrize("fails, words", [("-m pip install", "pip could not install"), ("-m venv", "")])
def test_a_half_made_environment_is_made_anew(launch, fails, words):
    assert words in launch(fails=fails, code=1 if words else 3)
    assert not launch.did("-m diffusion")
    (launch.repo / ".venv" / "half a package").touch()
    launch()
    assert [what.split()[1] for _, what in launch.calls] == ["venv", "pip", "diffusion.main"]
    assert not (launch.repo / ".venv" / "half a package").exists()


def test_a_whole_environment_outlives_a_failure_to_add_to_it_but_not_a_kill(launch):
    launch()
    assert "pip could not install" in launch("test", fails="-m pip install", code=1)  # offline, say
    launch()
    assert [what.split()[1] for _, what in launch.calls] == ["diffusion.main"]
    launch("test", kills="-m pip install", code=-signal.SIGKILL)
    launch()
    assert [what.split()[1] for _, what in launch.calls] == ["venv", "pip", "diffusion.main"]


def test_an_environment_whose_python_is_gone_is_made_anew(launch):
    launch()
    (launch.repo / ".venv" / "bin" / "python").unlink()
    launch()
    assert launch.did("-m venv")


@pytest.mark.parametrize("variable", ["VIRTUAL_ENV", "CONDA_PREFIX"])
def test_an_active_environment_is_used_and_keeps_its_versions(launch, tmp_path, variable):
    environment = tmp_path / "my env"
    launch.python(environment)
    text = launch("sample", "--seed=3", **{variable: str(environment)})
    assert launch.calls == [(str(environment), f"{INSTALL} -e .[digits]"),
                            (str(environment), "-m diffusion.main --config=configs/digits.py --mode=sample --seed=3")]
    assert "what is missing" in text and str(environment) in text
    launch("sample", **{variable: str(environment)})
    assert not launch.did("-m pip")
    assert not (launch.repo / ".venv").exists()


def test_condas_base_is_left_alone(launch, tmp_path):
    launch.python(tmp_path / "conda")
    launch(CONDA_PREFIX=str(tmp_path / "conda"), CONDA_DEFAULT_ENV="base")
    assert (launch.repo / ".venv").exists() and not any(who.endswith("conda") for who, _ in launch.calls)


def test_our_environment_made_active_is_still_ours(launch):
    launch()
    launch("test", VIRTUAL_ENV=str(launch.repo / ".venv"))
    assert launch.did("-m pip") == [f"{INSTALL} -c constraints.txt -e .[digits,test]"]


def test_a_venv_that_the_user_made_is_not_deleted(launch):
    launch.python(launch.repo / ".venv")
    (launch.repo / ".venv" / "theirs").touch()
    launch()
    assert launch.calls[0][1] == f"{INSTALL} -e .[digits]"
    assert "no pip" in launch("test", fails="-m pip --version", code=1)
    assert (launch.repo / ".venv" / "theirs").exists()


def test_an_active_environment_that_will_not_do(launch, tmp_path):
    environment = tmp_path / "env"
    assert "no bin/python" in launch(VIRTUAL_ENV=str(environment), code=1)
    launch.python(environment)
    text = launch(VIRTUAL_ENV=str(environment), version="3.9.2", code=1)
    assert "Python 3.9.2" in text and "3.11" in text and str(environment) in text
    assert "-m ensurepip" in launch(VIRTUAL_ENV=str(environment), fails="-m pip --version", code=1)


@pytest.mark.parametrize("args, expected", [
    ([], "--config=configs/digits.py --mode=train"),
    (["--workdir=a b"], "--config=configs/digits.py --mode=train --workdir=a b"),
    (["configs/mnist.py", "--workdir=x"], "--config=configs/mnist.py --mode=train --workdir=x"),
    (["train", "configs/mnist.py"], "--config=configs/mnist.py --mode=train"),
    (["train", "--config=my.py"], "--mode=train --config=my.py"),
    (["sample", "configs/mnist.py", "--num_samples=4"], "--config=configs/mnist.py --mode=sample --num_samples=4"),
])
def test_arguments_reach_the_program(launch, args, expected):
    launch(*args)
    assert launch.did("-m diffusion.main") == [f"-m diffusion.main {expected}"]


def test_after_training_it_says_how_to_sample_with_the_same_flags(launch):
    text = launch()
    assert "./launch.sh sample configs/digits.py --num_samples" in text and "\n  . .venv/bin/activate\n" in text
    assert r"sample configs/mnist.py --workdir=a\ b --num_samples" in launch("configs/mnist.py", "--workdir=a b")
    assert "./launch.sh sample --config=my.py --num_samples" in launch("--config=my.py")
    environment = launch.repo / ".venv"
    assert "activate" not in launch(VIRTUAL_ENV=str(environment))
    assert "./launch.sh sample" not in launch("train", "--help")


@pytest.mark.parametrize("word", ["it's", "$HOME/x", "$(touch made)", "`touch made`", "x\ntouch made\ny", 'a"b',
                                  "a;touch made", "~"])
def test_what_it_suggests_to_type_is_the_same_words(launch, word):
    """A shell runs the suggestion with a ./launch.sh that prints its arguments."""
    config = f"{word}/my.py".replace("\n", "-")
    suggested = next(line for line in launch(config, f"--workdir={word}").splitlines() if "./launch.sh sample" in line)
    folder = launch.elsewhere
    (folder / "launch.sh").write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    (folder / "launch.sh").chmod(0o755)
    done = subprocess.run(["bash", "-c", suggested], cwd=folder, capture_output=True, text=True)
    assert done.stdout.split("\0")[:-1] == ["sample", config, f"--workdir={word}", "--num_samples=256"], suggested
    assert sorted(path.name for path in folder.iterdir()) == ["launch.sh"]


def test_a_run_that_is_there_knows_its_config(launch):
    (launch.repo / "my run").mkdir()
    (launch.repo / "my run" / "config.json").write_text("{}")
    launch("sample", "--workdir=my run")
    assert launch.did("-m diffusion.main") == ["-m diffusion.main --mode=sample --workdir=my run"]


@pytest.mark.parametrize("words", [["slurm", "--dry_run"], ["slurm", "a.py", "--help"], ["tpu", "create", "x"],
                                   ["gke", "list", "--dry_run"]])
def test_a_launcher_that_shows_its_commands_installs_nothing(launch, words):
    launch(*words)
    assert [what for _, what in launch.calls] == [f"-m experiments.launchers.{' '.join(words)}"]
    assert not (launch.repo / ".venv").exists()
    launch("slurm", "a.py")
    assert launch.did("-m pip install")


@pytest.mark.parametrize("command, module", [("train", "diffusion.main"), ("test", "pytest")])
def test_the_exit_code_is_the_programs(launch, command, module):
    assert "launch.sh sample" not in launch(command, fails=f"-m {module}", code=3)


def test_install_shows_the_plain_use(launch):
    text = launch("install")
    assert ". .venv/bin/activate" in text and "python -m diffusion.main --config=configs/digits.py" in text
    assert not launch.did("-m diffusion")


# ---- What is installed ----------------------------------------------------------------------------------------------
def requirements() -> dict[str, list[Requirement]]:
    """The requirements of setup.py by extra; "" for those always installed."""
    call = next(node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
    given = {k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg in ("install_requires", "extras_require")}
    found = {"": given["install_requires"], **given["extras_require"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in found.items()}


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins = [re.fullmatch(r"([\w.-]+)==([\w.]+)( ; .+)?", line) for line in lines]
    assert all(pins), "exact versions only: " + ", ".join(x for x, pin in zip(lines, pins, strict=True) if not pin)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins}


def test_the_constraints_hold_every_requirement_above_its_lower_bound():
    pins = constraints()
    for extra in ("", "digits", "hub", "test"):
        for requirement in requirements()[extra]:
            assert requirement.specifier, f"no lower bound: {requirement}"
            assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_cpu_installs_stay_cpu():
    accelerators = re.compile("nvidia|cuda|rocm|tpu|plugin|triton|^torch|^tensorflow$")
    assert not [name for name in constraints() if accelerators.search(name)]
    for extra in ("", "digits", "hub", "test"):
        assert not any(r.extras or accelerators.search(r.name) for r in requirements()[extra])
    for extra in ("cuda", "tpu"):
        assert requirements()[extra][0].extras


def test_everything_that_the_package_imports_is_required():
    """Except the optional libraries that convert.py compares with, and the one of a user's own network."""
    owner = {"PIL": "pillow", "absl": "absl-py", "array_record": "array-record", "ml_collections": "ml-collections",
             "ml_dtypes": "ml-dtypes", "jaxlib": "jax",
             "imageio_ffmpeg": "imageio-ffmpeg", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn",
             "tensorflow_datasets": "tensorflow-datasets"}
    extras = ("", "audio", "digits", "hub", "ode", "tables", "video")
    required = {r.name for extra in extras for r in requirements()[extra]}
    ours = {"diffusion", "configs"}
    optional = {"diffusion/programs/convert.py": {"torch", "diffusers"}, "diffusion/networks/adapters.py": {"equinox"}}
    for path in [*(ROOT / "diffusion").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = ([a.name for a in node.names] if isinstance(node, ast.Import)
                     else [node.module] if isinstance(node, ast.ImportFrom) else [])
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names - ours - optional.get(
                    str(path.relative_to(ROOT)), set()):
                assert owner.get(top, top) in required, f"{path.relative_to(ROOT)} imports {top}"


def test_the_oldest_python_is_that_of_setup_py():
    (oldest,) = re.findall(r"sys\.version_info < \((\d+), (\d+)\)", (ROOT / "launch.sh").read_text())
    assert f"python_requires=\">={'.'.join(oldest)}\"" in (ROOT / "setup.py").read_text()
