"""The variants of a config file whose paper has several rows: --config=configs/edm.py:NAME, :tiny or :NAME,tiny."""
from collections.abc import Iterable

from diffusion.config_values import nearest
from diffusion.errors import ConfigError, shown

TINY = "tiny"


def chosen(variant: str, known: Iterable[str]) -> tuple[str, bool]:
    """(the name of the variant, whether it is tiny) of the text after the colon; without a name it is the first of
    `known`. tiny: narrow and shallow, so that a CPU trains a few steps, with the structure of the variant.

    Raises ConfigError for an unknown variant.
    """
    known = list(known)
    words = [word.strip() for word in variant.split(",") if word.strip()]
    names = [word for word in words if word != TINY]
    for name in names:
        if name not in known:
            raise ConfigError(f"The variant {shown(name)} is not known.{nearest(name, known)} It can be one of: "
                              f"{', '.join(known)}, each also as NAME,{TINY}.")
    if len(names) > 1:
        raise ConfigError(f"The variant {shown(variant)} names {len(names)}: choose one, or one and {TINY}.")
    return (names or known)[0], TINY in words
