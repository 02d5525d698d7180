"""The output of --keys: the keys of a config, of a family or of one member, with default and meaning."""
import inspect
import re
import textwrap

from diffusion import config as config_lib
from diffusion import families
from diffusion.config_values import Key, nearest
from diffusion.errors import ConfigError, shown
from diffusion.families import Family, Member

_ALIAS = re.compile(r"\s+c\.([\w.]+) = (?:(\w) = )?ConfigDict\(\)")
_KEY = re.compile(r"\s+(\w)\.([\w.]+) = [^#]*?(?:\s+# (.*))?$")
_MORE = re.compile(r"\s+# (.*)$")
_WIDTH = 120


def describe(what: str) -> str:
    """A readable list: "" of the run-level keys and the families, FAMILY of its members, FAMILY.MEMBER of that member's
    keys. Raises ConfigError for anything else."""
    if not what:
        meanings = _run_level_meanings()
        keys = "\n".join(_line(spec, meanings.get(name, "")) for name, spec in config_lib.run_level_keys().items())
        listed = "\n".join(f"  {family.name:<12} config.{family.selector}" for family in families.FAMILIES)
        return (f"Keys that every config has:\n{keys}\n\nFamilies, whose members bring keys of their own; "
                f"--keys=FAMILY lists the members, --keys=FAMILY.MEMBER the keys of one:\n{listed}")
    family_name, _, member_name = what.partition(".")
    if family_name not in families.BY_NAME:
        raise ConfigError(f"--keys={shown(what)[1:-1]}: there is no family {shown(family_name)}."
                          f"{nearest(family_name, families.BY_NAME)} Families: {', '.join(families.BY_NAME)}.")
    family = families.BY_NAME[family_name]
    if not member_name:
        return f"Members of the family {family_name}, config.{family.selector}:\n" + "\n".join(
            f"  {name:<20} {_summary(member)}" for name, member in family.members().items())
    return _describe_member(family, family.member(member_name))


def _describe_member(family: Family, member: Member) -> str:
    meanings, shared = families.meanings(member), _meanings_of(family)
    keys = "\n".join(_line(spec, meanings[name] or shared.get(name, "")) for name, spec in member.keys.items())
    return f"config.{family.selector} = {member.name}: {_summary(member)}\n{keys or '  It has no keys of its own.'}"


def _meanings_of(family: Family) -> dict[str, str]:
    """The meanings of a family's keys; a key of several members is explained at one of them."""
    found: dict[str, str] = {}
    for member in family.members().values():
        for name, text in families.meanings(member).items():
            if text:
                found.setdefault(name, text)
    return found


def _summary(member: Member) -> str:
    if member.constant:
        return ""
    text = inspect.getdoc(member.source) or ""
    return " ".join(text.partition("\n\n")[0].split())


def _line(spec: Key, meaning: str) -> str:
    kind = f"{'one of ' + ', '.join(map(str, spec.choices)) + '; ' if spec.choices else ''}{meaning}"
    head = f"  {spec.name} = {spec.default!r}"
    return textwrap.fill(f"{head:<44} {kind}".rstrip(), _WIDTH, subsequent_indent=" " * 45)


def _run_level_meanings() -> dict[str, str]:
    """The comments of `config.run_level`, by dotted keys."""
    sections, found, last = {"c": ""}, {}, None
    for line in inspect.getsource(config_lib.run_level).splitlines():
        if match := _ALIAS.match(line):
            sections[match[2] or "c"] = f"{match[1]}." if match[2] else ""
        elif match := _KEY.match(line):
            last = sections.get(match[1], "") + match[2]
            found[last] = match[3] or ""
        elif (match := _MORE.match(line)) and last in found:
            found[last] += f" {match[1]}"
    return found
