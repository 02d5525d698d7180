"""Members of families by name, with the settings that their signatures have."""
from typing import Any

from diffusion.config_values import nearest
from diffusion.errors import FieldError, shown
from diffusion.families import BY_NAME


def part(family: str, chosen: Any, **settings: Any) -> Any:
    """The member of a family that a name stands for, made with these of its settings; any other object is returned as
    it is: part("process", "edm", sigma_max=80.0).

    Settings that the member has not are left out if they are those of a model, so that one call serves all members.
    Raises ConfigError for an unknown name, FieldError for a setting that the member refuses.
    """
    if not isinstance(chosen, str):
        return chosen
    member = BY_NAME[family].member(chosen)
    if member.constant:
        return member.make
    known = {*member.keys, *member.given}
    if strange := sorted(set(settings) - known - COMMON):
        raise FieldError(strange[0], settings[strange[0]], f"is not a setting of the {family} {shown(chosen)}."
                         f"{nearest(strange[0], known)} It has: {', '.join(sorted(known)) or 'none'}.")
    return member.make(**{name: value for name, value in settings.items() if name in known})


COMMON = {"process", "sigma_data", "steps", "learned_range"}  # settings of a model that members may take
