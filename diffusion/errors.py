"""What a user can mend. `main` prints these as one message, without a traceback, and exits with code 1.

Each message says what was wrong, where, what is allowed, and what to do. A bug raises anything else.
"""
import unicodedata


class DiffusionError(Exception):
    """Base of the errors that a user can mend."""


class ConfigError(DiffusionError):
    """A key, a choice, a type or a combination in the config that cannot be run."""


class DataError(DiffusionError):
    """A data set that is missing, truncated, corrupted, or not of the shape the config says."""


class CheckpointError(DiffusionError):
    """A checkpoint or run folder that cannot be read, does not fit, or cannot be written."""


class Interrupted(DiffusionError):
    """A training that was asked to stop, and has saved what it had; `exit_code` tells a scheduler to start it again."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class DivergedError(DiffusionError):
    """The loss or the gradient became NaN or infinite."""


class FieldError(ValueError):
    """A part was given a value that one of its fields cannot have. Library code raises it; `build` names the config
    key."""

    def __init__(self, field: str, value: object, rule: str):
        super().__init__(f"{field} = {shown(value)}: {rule}")
        self.field, self.value, self.rule = field, value, rule


def require(condition: object, field: str, value: object, rule: str) -> None:
    """Raises FieldError with the rule that field = value breaks, unless the condition holds."""
    if not condition:
        raise FieldError(field, value, rule)


def shown(value: object) -> str:
    """A value in a message: on one line, and not long."""
    try:
        text = repr(value)
    except Exception:  # nested too deep; more digits than Python prints; a class of the user's
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def unprintable(text: str) -> bool:
    """Whether it has line breaks or other control characters in it, which no path, name or command needs."""
    return any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in text)
