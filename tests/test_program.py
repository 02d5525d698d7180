"""How programs begin and end, for any shell that starts them."""
import errno
import io
import os
import subprocess
import sys

import program as programs
import pytest

from diffusion import program
from diffusion.errors import CheckpointError, ConfigError, Interrupted


def raising(error):
    def main():
        raise error
    return main


@pytest.mark.parametrize("error, code", [
    (ConfigError("seed is wrong"), "error: seed is wrong"), (CheckpointError("gone"), "error: gone"),
    (Interrupted("stopped", 75), 75), (MemoryError(), "error: The memory is not enough"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 500), "error: 'xxxx"),
    (PermissionError(errno.EACCES, "Permission denied", "/a"), "error: '/a': Permission denied."),
])
def test_what_a_user_can_mend_is_one_message(error, code):
    with pytest.raises(SystemExit) as ended:
        program.run(raising(error))
    found = ended.value.code
    assert found == code if isinstance(code, int) else found.startswith(code) and "\n" not in found and len(found) < 300


def test_notes_are_said_and_bugs_are_not_hidden():
    error = ConfigError("first")
    error.add_note("second")
    with pytest.raises(SystemExit, match="error: first\nsecond"):
        program.run(raising(error))
    for bug in (KeyError("x"), RuntimeError("x"), ZeroDivisionError()):
        with pytest.raises(type(bug)):
            program.run(raising(bug))


@pytest.mark.parametrize("text, words", [
    ("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes", "The memory of the device is not enough"),
    ("UNKNOWN: Gloo AllGather failed: Connection closed by peer", "Another process of this run has ended"),
    ("INTERNAL: a bug of ours", None)])
def test_errors_of_the_device(text, words):
    class JaxRuntimeError(RuntimeError):
        pass

    said = program.of_the_device(JaxRuntimeError(text))
    assert said is None if words is None else said.startswith(words)
    assert program.of_the_device(RuntimeError(text)) is None


def test_a_stream_outlives_its_reader():
    read, write = os.pipe()
    stream = program.Patient(io.TextIOWrapper(os.fdopen(write, "wb", 0), write_through=True))
    assert stream.write("seen\n") == 5 and os.read(read, 9) == b"seen\n"
    os.close(read)
    assert stream.write("not seen\n") == 9
    stream.flush()
    assert not stream.isatty() and stream.write("nor this\n") == 9


BEGIN = """
import os, sys
from diffusion import program
program.begin()
import warnings
warnings.warn("of a library", DeprecationWarning)
print("\\xe4", sys.stdout is not None)
sys.exit("x" if {wrong!r} else 0)
"""


def test_streams_that_are_closed_or_know_no_umlauts(tmp_path):
    environment = {**programs.environment(), "PYTHONIOENCODING": "ascii", "PYTHONWARNINGS": "error"}
    for shell in ("{} | head -c 0", "{} >&- 2>&- <&-", "{} > out"):
        command = f"'{sys.executable}' -c \"$CODE\""
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {shell.format(command)}"], cwd=tmp_path, text=True,
                              env={**environment, "CODE": BEGIN.format(wrong=False)}, capture_output=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "out").read_text() == "\\xe4 True\n"


def test_every_program_begins_so():
    """Programs without it printed a traceback at Ctrl-C, a closed pipe, or PYTHONWARNINGS=error."""
    files = [path for folder in ("diffusion", "experiments") for path in (programs.ROOT / folder).rglob("*.py")
             if 'if __name__ == "__main__":\n' in path.read_text() and path.parent.name != "launchers"]
    assert len(files) > 5
    for path in files:
        assert "program.begin()" in (text := path.read_text()) or "    command(main)\n" in text, path
