"""Errors that a user can correct. `main` prints each as one message, without a traceback, and exits with code 1.

Each message names the mistake, its place, the allowed values and the remedy. Bugs raise other exceptions.
"""
import unicodedata


class DiffusionError(Exception):
    """Base of the errors that a user can correct."""


class ConfigError(DiffusionError):
    """A key, a choice, a type or a combination in the config that cannot be run."""


class DataError(DiffusionError):
    """A data set that is missing, truncated, corrupted, or of another shape than in the config."""


class NoSplit(DataError):
    """The data have no split of that name."""


class CheckpointError(DiffusionError):
    """A checkpoint or run folder that cannot be read, does not fit, or cannot be written."""


class Interrupted(DiffusionError):
    """A training run that stopped on request after saving its state; `exit_code` asks a scheduler to start it again."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class DivergedError(DiffusionError):
    """The loss or the gradient became NaN or infinite."""


class FieldError(ValueError):
    """An invalid value for a field of a part. Library code raises it; `build` turns it into a ConfigError with the
    config key."""

    def __init__(self, field: str, value: object, rule: str):
        super().__init__(f"{field} = {shown(value)}: {rule}")
        self.field, self.value, self.rule = field, value, rule


def require(condition: object, field: str, value: object, rule: str) -> None:
    """Raises FieldError with the rule that field = value breaks, unless the condition holds."""
    if not condition:
        raise FieldError(field, value, rule)


def shown(value: object) -> str:
    """A value as text for a message: short and on one line."""
    try:
        text = " ".join(line.strip() for line in repr(value).split("\n"))  # an array has several lines
    except Exception:  # nested too deep; more digits than Python prints; a user's class
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def unprintable(text: str) -> bool:
    """Whether the text has line breaks or other control characters, which no path, name or command needs."""
    return any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text)
