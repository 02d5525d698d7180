"""Proves that the tests still bite: puts one fault after the other into a copy of the checkout and runs tests on it.

  python tests/mutations                                    # all, one at a time
  python tests/mutations --only=checkpoint --jobs=2         # those with the word in their name, kind, file or tests
  python tests/mutations --root=../older --out=table.md     # the same faults in another checkout, and its tests
  python tests/mutations --out=table.md --failed-first      # what table.md has as not caught comes first
  python tests/mutations --check-clean                      # all tests that are named, once, without a fault

A mutation is `caught` where a test fails, `MISSED` where all pass, and `BROKEN` where pytest could not run the tests or
the fault could not be put in, which proves nothing. The exit code is 1 if any is not caught. The checkout itself is
never touched.
"""
import argparse
import dataclasses
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(TESTS))

from mutations.cases import CASES  # noqa: E402  (the tests' folder is not on the path when this is the program)
from mutations.mutation import Mutation  # noqa: E402

# Slow and rare tests too: some of what only they see is in the list.
PYTEST = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--color=no", "-m", "not parity and not slurm")
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+?\.py)::(.+?)(?: - .*)?$", re.M)
HEAD = "| mutation | kind | file | result | caught by | seconds |\n|---|---|---|---|---|---|\n"


@dataclasses.dataclass(frozen=True)
class Result:
    mutation: Mutation
    word: str       # caught, MISSED or BROKEN
    by: str         # the first test that failed; for BROKEN why
    seconds: float

    def row(self) -> str:
        m = self.mutation
        cells = (m.name, m.kind, m.file, self.word, self.by, f"{self.seconds:.1f}")
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


class Copy:
    """A copy of a checkout, of which one file at a time is another."""

    def __init__(self, root: Path, folder: Path, cache: Path):
        self.folder, scratch = folder / "checkout", folder / "tmp"
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
                                check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (root / name).is_file():  # git also lists one that is deleted and not committed
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, self.folder / name)
        scratch.mkdir()
        self.changed = int(time.time())
        # PYTHONPATH comes before an installed package, also for the programs that tests start.
        self.environment = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache),
                            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0", **os.environ,
                            "PYTHONPATH": str(self.folder), "TMPDIR": str(scratch), "COLUMNS": "500"}
        self.check_imports(scratch)

    def check_imports(self, elsewhere: Path) -> None:
        """Raises RuntimeError unless a program imports the copy's packages, wherever it is started: a fault that no
        test sees would else say nothing of the tests."""
        code = "import diffusion, experiments; print(diffusion.__file__, experiments.__file__)"
        for where in (self.folder, elsewhere):
            found = subprocess.run([sys.executable, "-c", code], cwd=where, env=self.environment, check=True,
                                   capture_output=True, text=True).stdout.split()
            if not all(Path(file).is_relative_to(self.folder) for file in found):
                raise RuntimeError(f"{found} are imported, and not the copy in {self.folder}")

    def write(self, file: str, text: str) -> None:
        """Gives the file a time of change of its own each time: Python takes bytecode of the same time and size."""
        self.changed += 2
        (self.folder / file).write_text(text)
        os.utime(self.folder / file, (self.changed, self.changed))

    def test(self, targets: Sequence[str], k: str, limit: float) -> tuple[int | None, str]:
        """(pytest's exit code, or None where it took more than `limit` seconds; what it printed)."""
        command = [sys.executable, *PYTEST, *(("-k", k) if k else ()), *targets]
        child = subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            said, _ = child.communicate(timeout=limit)
            return child.returncode, said
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # with the programs that its tests have started
            return None, child.communicate()[0]

    def judge(self, m: Mutation, limit: float) -> Result:
        """Puts the fault in, runs its tests and takes it out again."""
        began = time.monotonic()
        try:
            whole = (self.folder / m.file).read_text()
        except OSError as error:
            return Result(m, "BROKEN", f"{m.file} cannot be read: {error.strerror}", 0.0)
        if (count := whole.count(m.old)) != 1:
            return Result(m, "BROKEN", f"what it replaces occurs {count} times", 0.0)
        if absent := [name for name in m.tests if not (self.folder / name).is_file()]:
            return Result(m, "BROKEN", f"{absent[0]} is not there", 0.0)
        self.write(m.file, whole.replace(m.old, m.new))
        try:
            code, said = self.test(m.tests, m.k, limit)
        finally:
            self.write(m.file, whole)
        seconds, first = time.monotonic() - began, FAILED.search(said)
        if code == 0:
            return Result(m, "MISSED", "", seconds)
        if code == 1 and first:
            return Result(m, "caught", f"{first[1].removeprefix('tests/')}::{first[2]}", seconds)
        why = f"more than {limit:g} s" if code is None else f"exit code {code}: {last_line(said)}"
        return Result(m, "BROKEN", why, seconds)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing was said")[:150]


def chosen(only: str, table: Path | None) -> list[Mutation]:
    """The mutations with `only` in their name, kind, file or tests; first those that a table of before has as not
    caught, if one is given."""
    found = [m for m in CASES if any(only in text for text in (m.name, m.kind, m.file, *m.tests))]
    if table is not None and table.is_file():
        rows = [[cell.strip() for cell in line.split("|")] for line in table.read_text().splitlines()]
        failed = {row[1] for row in rows if len(row) > 4 and row[4] in ("MISSED", "BROKEN")}
        found.sort(key=lambda m: m.name not in failed)
    return found


def clean(copy: Copy, mutations: Sequence[Mutation], limit: float) -> bool:
    """Whether the tests pass without a fault, which all that is said of them with one rests on."""
    groups: dict[str, list[str]] = {}
    for m in mutations:
        groups.setdefault(m.k, []).extend(m.tests)
    for k, files in groups.items():
        code, said = copy.test(tuple(dict.fromkeys(files)), k, limit * len(files))
        if code != 0:
            print(f"without a fault, -k {k!r}, pytest ends with {code}:\n{said[-3000:]}")
            return False
    print("without a fault all tests that are named pass")
    return True


def run(copies: Sequence[Copy], mutations: Sequence[Mutation], limit: float) -> list[Result]:
    """The results in the order of the mutations; a line for each as it comes, with the time that is left."""
    idle: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        idle.put(copy)

    def one(m: Mutation) -> Result:
        copy = idle.get()
        try:
            return copy.judge(m, limit)
        finally:
            idle.put(copy)

    began, results = time.monotonic(), {}
    with ThreadPoolExecutor(len(copies)) as pool:
        for number, future in enumerate(as_completed([pool.submit(one, m) for m in mutations]), 1):
            r = future.result()
            results[r.mutation.name] = r
            left = (time.monotonic() - began) / number * (len(mutations) - number)
            print(f"[{number}/{len(mutations)}, {left / 60:.0f} min left] {r.mutation.name}: {r.word} {r.by} "
                  f"({r.seconds:.1f} s)", flush=True)
    return [results[m.name] for m in mutations]


def main() -> int:
    p = argparse.ArgumentParser(prog="python tests/mutations", description=__doc__, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="", help="only those with this in their name, kind, file or tests")
    p.add_argument("--jobs", type=int, default=1, help="how many at a time (%(default)s)")
    p.add_argument("--root", type=Path, default=TESTS.parent, help="the checkout (this one)")
    p.add_argument("--out", type=Path, help="the table, as Markdown")
    p.add_argument("--failed-first", action="store_true", help="those first that --out has as not caught")
    p.add_argument("--check-clean", action="store_true", help="only run the tests, without a fault")
    p.add_argument("--limit", type=float, default=600.0, help="seconds for the tests of one (%(default)s)")
    args = p.parse_args()
    mutations = chosen(args.only, args.out if args.failed_first else None)
    if not mutations or args.jobs < 1:
        p.error(f"nothing to do: --only={args.only} --jobs={args.jobs}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-", ignore_cleanup_errors=True) as folder:
        cache = Path(tempfile.gettempdir()) / "mutations-compiled"  # kept: most of a program is the same the next time
        copies = [Copy(args.root.resolve(), Path(folder).resolve() / str(i), cache)
                  for i in range(1 if args.check_clean else args.jobs)]
        if args.check_clean:
            return 0 if clean(copies[0], mutations, args.limit) else 1
        results = run(copies, mutations, args.limit)
    words = [r.word for r in results]
    said = ", ".join(f"{words.count(word)} {word}" for word in ("caught", "MISSED", "BROKEN"))
    print(f"{said}, in {(time.monotonic() - began) / 60:.1f} minutes")
    if args.out:
        args.out.write_text(f"{said}\n\n{HEAD}" + "".join(r.row() for r in results))
    return 0 if set(words) == {"caught"} else 1


if __name__ == "__main__":
    sys.exit(main())
