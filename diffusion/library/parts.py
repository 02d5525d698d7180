"""Members of families by name, with the settings that their signatures have."""
from collections.abc import Mapping
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
    check_settings(family, member, settings)
    return member.make(**{name: value for name, value in settings.items() if name in {*member.keys, *member.given}})


def check_settings(family: str, member: Any, settings: Mapping[str, Any]) -> None:
    """Raises FieldError for a setting that is neither one of the member nor one of a model."""
    if strange := sorted(set(settings) - {*member.keys, *member.given} - COMMON):
        raise FieldError(strange[0], settings[strange[0]], f"is not a setting of the {family} {shown(member.name)}."
                         f"{nearest(strange[0], member.keys)} It has: {', '.join(sorted(member.keys)) or 'none'}.")


COMMON = {"process", "sigma_data", "steps", "learned_range", "levels"}  # settings of a model that members may take
