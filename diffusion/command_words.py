"""Checks and expands the arguments of a command line before they are parsed as flags."""
from diffusion.errors import ConfigError, shown, unprintable
from diffusion.io import reading


def check_text(word: str) -> None:
    """Raises ConfigError for characters that no flag needs and that files and scripts would misread."""
    if unprintable(word):
        raise ConfigError(f"{shown(word)} contains a line break or another control character. Leave it out.")
    try:
        word.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{ascii(word)} has characters that the locale of this shell cannot encode. Set "
                          "LC_ALL=C.UTF-8, or PYTHONUTF8=1.") from None


def expanded(words: list[str], within: tuple[str, ...] = ()) -> list[str]:
    """The words, with each --flagfile=FILE replaced by the lines of the file. Lines that begin with # are comments."""
    found, left = [], iter(words)
    for word in left:
        name, equals, file = word.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            found.append(word)
            continue
        file = file if equals else next(left, "")
        try:
            lines = [line.strip() for line in reading.expanded(file or ".").read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"--flagfile={file} cannot be read: {getattr(error, 'strerror', None) or error}."
                              ) from error
        if file in within or len(within) > 9:
            raise ConfigError(f"--flagfile={file} names itself: {' -> '.join([*within, file])}.")
        found += expanded([line for line in lines if line and not line.startswith("#")], (*within, file))
    return found
