"""The ledger of a sweep: one line per event, appended and never changed, so that a kill loses nothing."""
import datetime
import json
import os
from dataclasses import dataclass
from pathlib import Path

from diffusion.io.files import json_value

NEEDS = {"started": {"pid": int}, "done": {"commit": str, "seconds": (int, float)},
         "failed": {"error": str, "seconds": (int, float)}, "stopped": {"seconds": (int, float)}}


@dataclass(frozen=True, kw_only=True)
class State:
    """The state of a job, from its lines."""
    done: bool = False
    attempts: int = 0         # failed since it was last done
    error: str = ""           # of the last failed attempt
    seconds: float = 0.0      # over all attempts
    commit: str = ""          # of the code of the finished job
    pid: int | None = None    # of the program started last, if it has not ended


class Ledger:
    def __init__(self, file: Path):
        self.file = file

    def add(self, key: str, event: str, **more) -> None:
        """Appends an event: started (pid), done (seconds, commit), failed (seconds, error), stopped (seconds)."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        line = json.dumps({"time": now, "job": key, "event": event, **more}) + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:  # in one write: several programs of an array of jobs may append
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def rows(self) -> list[dict]:
        """The rows, without a line that a kill cut off."""
        if not self.file.exists():
            return []
        found = []
        for line in self.file.read_text(errors="replace").splitlines():
            try:
                found.append(checked(json_value(line)))
            except ValueError:
                continue
        return found

    def states(self) -> dict[str, State]:
        found: dict[str, State] = {}
        for row in self.rows():
            old = found.get(row["job"], State())
            seconds = old.seconds + row.get("seconds", 0.0)
            match row["event"]:
                case "started":
                    new = State(done=old.done, attempts=old.attempts, error=old.error, seconds=seconds,
                                commit=old.commit, pid=row["pid"])
                case "done":
                    new = State(done=True, seconds=seconds, commit=row["commit"])
                case "failed":
                    new = State(attempts=old.attempts + 1, error=row["error"], seconds=seconds)
                case _:
                    new = State(done=old.done, attempts=old.attempts, error=old.error, seconds=seconds,
                                commit=old.commit)
            found[row["job"]] = new
        return found


def checked(row: dict) -> dict:
    """The row of a ledger. Raises ValueError if it is not valid."""
    needs = NEEDS.get(str(row.get("event")))
    if needs is None or not isinstance(row.get("job"), str) or not all(
            isinstance(row.get(name), kind) for name, kind in needs.items()):
        raise ValueError("not a row of a ledger")
    return row
