"""The metric record: a number with everything that it depends on, and the check that two numbers are comparable."""
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any

from diffusion.errors import ConfigError, shown
from diffusion.io.reading import ordinary, reading

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "pillow")


def versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def read_record(path: Path) -> dict:
    """The record in a JSON file. Raises DataError if it is not a record."""
    path = ordinary(path)
    with reading(f"{path} is not a metric record", "Write one by --mode=evaluate, or python -m diffusion.metrics "
                 "--json."):
        found = {"samples": {}} | json.loads(path.read_text())
        for row in found["metrics"].values():
            format(row["value"], "g"), format(row.get("error", 0.0), "g")  # the same formatting as for display
        for name in ("protocol", "samples"):
            if not isinstance(found[name], dict):
                raise ValueError(f"its {name} is {shown(found[name])}")
            flat(found[name])
    return found


def differences(a: dict, b: dict) -> dict[str, tuple]:
    """The differences between the protocols of two records: key -> (a's, b's). The sampling may differ, but not the
    measurement."""
    a, b = flat(a["protocol"]), flat(b["protocol"])
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_same_protocol(a: dict, b: dict) -> None:
    """Raises ConfigError that lists the differences between two protocols."""
    if found := differences(a, b):
        raise ConfigError("These two were not measured alike, so their numbers do not compare: " + "; ".join(
            f"{key} is {x} and {y}" for key, (x, y) in found.items()) + ". --force shows them side by side all the "
            "same.")


def side_by_side(a: dict, b: dict) -> str:
    """The metrics that both records have, one per line."""
    rows = [f"{'':<28}{'first':>14}{'second':>14}"]
    for name in [name for name in a["metrics"] if name in b["metrics"]]:
        x, y = a["metrics"][name], b["metrics"][name]
        rows.append(f"{name:<28}{x['value']:>14.6g}{y['value']:>14.6g}")
        if "error" in x and "error" in y:
            rows.append(f"{'  +/-':<28}{x['error']:>14.2g}{y['error']:>14.2g}")
    return "\n".join(rows)
