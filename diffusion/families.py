"""Families of parts: the choices for one config key, and the keys and abilities that each choice brings.

A module declares its members in a dict named after the family, such as SOLVERS = {"ddim": DDIM}: in a module of the
packages listed below, or in the user's module (a plugin). A member is a dataclass or a function. Its keyword arguments
that have a default are its config keys: name, type and default are read from the signature, the meaning from the
comment after it. Arguments without a default are supplied by `build`. Abilities are attributes of the member or of the
object it makes.
"""
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import pkgutil
import tokenize
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.config_values import Key, nearest
from diffusion.errors import ConfigError, FieldError, shown

_PLUGINS: dict[str, types.ModuleType] = {}  # loaded plugins by name
_TRUSTED: set[str] = set()                  # modules that the user named: their code may be run
_NOT_KEYS = {"parent", "name"}              # fields that Flax adds to a module


@dataclass(frozen=True)
class Member:
    """One choice of a family."""
    name: str
    make: Any
    keys: Mapping[str, Key]     # by their names without the section
    given: frozenset[str]       # arguments that `build` supplies
    constant: bool = False      # `make` is the chosen object itself, not its constructor

    @property
    def source(self) -> Callable:
        """The function or class whose signature has the keys."""
        return inspect.unwrap(self.make)


@dataclass(frozen=True)
class Family:
    """The choices for one config key, the selector."""
    name: str                   # in `config.base(NAME=...)` and --keys=NAME.MEMBER
    selector: str               # the dotted config key that names the member
    table: str                  # the dict of members in a module
    places: tuple[str, ...]     # packages and modules that declare members
    needs: tuple[str, ...] = ()  # attributes that the object made by a member must have
    given: tuple[str, ...] = ()  # arguments that `build` supplies, even if they have a default
    optional: bool = False      # a member may be None: the part is left out

    @property
    def section(self) -> str:
        """The section of the config that holds the members' keys, with a trailing dot, or "" for the top level."""
        return self.selector.rpartition(".")[0] + "." * ("." in self.selector)

    def members(self) -> Mapping[str, Member]:
        """All members by name. Raises ConfigError for an invalid member of a plugin."""
        return _members(self, plugin_modules())

    def member(self, name: object, where: str = "", key: str = "") -> Member:
        """The member of that name, or at MODULE:NAME. Raises ConfigError for an unknown name."""
        members = self.members()
        if isinstance(name, str) and ":" in name and name not in members:
            return _member_at(self, name)
        if not isinstance(name, str) or name not in members:
            raise ConfigError(f"{where}{': ' * bool(where)}config.{key or self.selector} = {shown(name)} is not known."
                              f"{nearest(str(name), members)} It can be one of: {', '.join(sorted(members))}.")
        return members[name]

    def keys_of(self, name: str) -> dict[str, Key]:
        """The keys that this member brings, by their dotted names."""
        return {self.section + key: spec for key, spec in self.member(name).keys.items()}

    def make(self, section: Mapping, chosen: str | None = None, *, key: str | None = None, **given: Any) -> Any:
        """Makes the chosen member from its keys in the config's section and the arguments in `given` that it takes.

        chosen: the member's name, if another `key` than the section's selector holds it. Raises ConfigError for a value
        that the member refuses.
        """
        member = self._chosen(section, chosen, key)
        if member.constant:
            return member.make
        values = {} if key else self._values(section, member)
        arguments = values | {name: value for name, value in given.items() if name in member.given or name in values}
        with naming_keys(self.section):
            try:
                made = member.make(**arguments)
            except TypeError as error:  # a missing argument, or a class with abstract methods
                if member.source.__module__.startswith("diffusion."):
                    raise
                raise ConfigError(f"The {self.name} {member.name} cannot be made: {error}.") from error
        self.check_needs(member.name, made)
        return made

    def check_needs(self, name: str, made: Any) -> None:
        """Raises ConfigError if the object that the member `name` makes lacks an attribute that it needs."""
        if lacking := [need for need in self.needs if not hasattr(made, need)]:
            raise ConfigError(f"The {self.name} {name} is incomplete: it has no {' and no '.join(lacking)}. "
                              "docs/design.md, \"Adding a part\", shows a complete one.")

    def bound(self, section: Mapping, **given: Any) -> Any:
        """The chosen member, a function, bound to the values of its keys and the arguments in `given` that it takes."""
        member = self._chosen(section, None, None)
        if member.constant:
            return member.make
        return functools.partial(member.make, **self._values(section, member),
                                 **{name: value for name, value in given.items() if name in member.given})

    def _values(self, section: Mapping, member: Member) -> dict[str, Any]:
        if lacking := [name for name in member.keys if name not in section]:
            raise ConfigError(f"config.{self.selector} = {shown(member.name)} has no keys in this config "
                              f"({', '.join(lacking)}): choose it by config.choose(c, {self.name}={member.name!r}), "
                              "which brings them.")
        return {name: section[name] for name in member.keys}

    def _chosen(self, section: Mapping, chosen: str | None, key: str | None) -> Member:
        name = section[self.selector.rpartition(".")[2]] if chosen is None else chosen
        return self.member(name, key=key or self.selector)


@contextlib.contextmanager
def naming_keys(section: str) -> Iterator[None]:
    """Turns the FieldError of a part into a ConfigError that names the key of `section`."""
    try:
        yield
    except FieldError as error:
        raise ConfigError(f"config.{section}{error.field} = {shown(error.value)}: {error.rule}") from error


_OF_PROCESS = ("alpha", "sigma", "log_snr", "time_of_log_snr", "c_noise", "t_min", "t_max")
_OF_SOLVER = ("init", "step", "evaluations")

# In the order in which a config is made: a selector may be a key of an earlier family's member.
FAMILIES = (
    Family("data", "data.name", "SOURCES", ("diffusion.data",)),
    Family("kind", "data.kind", "KINDS", ("diffusion.kinds",), ("shape", "bounds", "levels", "prepare", "finish")),
    Family("process", "process.name", "PROCESSES", ("diffusion.core",), _OF_PROCESS),
    Family("table_of", "process.table_of", "TABULATED", ("diffusion.core",), _OF_PROCESS),
    Family("prediction", "prediction", "PREDICTIONS", ("diffusion.core",), ("coefficients", "c_in", "c_noise")),
    Family("loss", "loss.name", "LOSSES", ("diffusion.core",), ("__call__",)),
    Family("weighting", "loss.weighting", "WEIGHTINGS", ("diffusion.core",), ("__call__",), ("sigma_data",),
           optional=True),
    Family("coupling", "loss.coupling", "COUPLINGS", ("diffusion.train.couplings",), ("__call__",), optional=True),
    Family("density", "loss.density", "DENSITIES", ("diffusion.core",), ("init", "draw", "update")),
    Family("network", "network.name", "NETWORKS", ("diffusion.networks",), ("init", "apply"),
           ("num_classes", "out_channels", "past", "augment")),
    Family("average", "ema.name", "AVERAGES", ("diffusion.train.averages",), ("update",)),
    Family("optimizer", "optimizer.name", "OPTIMIZERS", ("diffusion.train.optimizer",), ("init", "update")),
    Family("solver", "sample.solver", "SOLVERS", ("diffusion.samplers",), _OF_SOLVER),
    Family("corrector", "sample.corrector", "CORRECTORS", ("diffusion.samplers",), _OF_SOLVER),
    Family("spacing", "sample.spacing", "SPACINGS", ("diffusion.core",), ("__call__",)),
    Family("schedule", "sample.schedule", "SCHEDULES", ("diffusion.core",), _OF_PROCESS, optional=True),
    Family("guidance", "sample.guidance.name", "GUIDANCES", ("diffusion.guidance",)),
    Family("extractor", "evaluate.extractor", "EXTRACTORS", ("diffusion.metrics.extractors",),
           ("network", "takes", "channels", "limits")),
    Family("estimator", "likelihood.estimator", "ESTIMATORS", ("diffusion.likelihood",), (), ("levels",)),
)
BY_NAME = {family.name: family for family in FAMILIES}
BY_SELECTOR = {family.selector: family for family in FAMILIES}


def plugin_modules() -> tuple[types.ModuleType, ...]:
    """The loaded user modules."""
    return tuple(_PLUGINS.values())


def trust(chosen: Iterable[object]) -> None:
    """Notes that the user named these members; the module of MODULE:NAME may then be imported for a saved config."""
    _TRUSTED.update(name.partition(":")[0] for name in chosen if isinstance(name, str) and ":" in name)


def foreign(modules: Iterable[str]) -> list[str]:
    """Those of the modules that the user has not named, in a flag, a config file or a call."""
    return sorted(set(modules) - _TRUSTED)


def load_plugins(names: Iterable[str]) -> None:
    """Imports user modules and adds their members to the families. Raises ConfigError for a module that does not
    import, declares no members, or declares a taken name or a key with another type."""
    for name in names:
        if name in _PLUGINS:
            continue
        module = _import(name, f"config.plugins names {shown(name)}")
        if not any(isinstance(getattr(module, family.table, None), Mapping) for family in FAMILIES):
            raise ConfigError(f"The plugin {name} declares no members: give it a dict of them, such as "
                              f"{' or '.join(f.table for f in FAMILIES if f.name in ('solver', 'network'))}.")
        _PLUGINS[name] = module
        try:
            for family in FAMILIES:
                family.members()
            check_keys()
        except ConfigError:
            del _PLUGINS[name]
            raise


def user_function(place: str) -> Callable:
    """The function at PLUGIN:NAME, of a loaded plugin. Raises ConfigError for any other place."""
    module, _, name = place.partition(":")
    found = getattr(_PLUGINS.get(module), name, None)
    if not callable(found):
        raise ConfigError(f"{shown(place)} is not PLUGIN:FUNCTION, a function of a module in config.plugins. Loaded: "
                          f"{', '.join(_PLUGINS) or 'none'}.")
    return found


def check_keys() -> None:
    """Raises ConfigError if two members in one section declare the same key with different types."""
    found: dict[str, tuple[str, Key]] = {}
    for family in FAMILIES:
        for member in family.members().values():
            for name, key in member.keys.items():
                dotted, who = family.section + name, f"{family.name}.{member.name}"
                other, spec = found.setdefault(dotted, (who, key))
                if (spec.kind, spec.entry) != (key.kind, key.entry):
                    raise ConfigError(f"{other} and {who} give config.{dotted} two meanings: {spec.takes} "
                                      f"{key.takes} Rename it in one of them.")


@functools.cache
def _members(family: Family, plugins: tuple[types.ModuleType, ...]) -> Mapping[str, Member]:
    found: dict[str, Member] = {}
    modules = [*_modules(family.places), *plugins]
    for module in modules:
        for name, make in getattr(module, family.table, {}).items():
            if name in found:
                raise ConfigError(f"{module.__name__} declares the {family.name} {shown(name)}, a name that is taken. "
                                  "Choose another.")
            found[name] = _member(family, name, make, f"{module.__name__}.{family.table}[{name!r}]")
    return types.MappingProxyType(found)


@functools.cache
def _modules(places: tuple[str, ...]) -> list[types.ModuleType]:
    found = []
    for place in places:
        module = importlib.import_module(place)
        found.append(module)
        names = [entry.name for entry in pkgutil.iter_modules(getattr(module, "__path__", ())) if not entry.ispkg]
        found += [importlib.import_module(f"{place}.{name}") for name in sorted(names)]
    return found


def _import(name: str, why: str) -> types.ModuleType:
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{why}, which does not import: {type(error).__name__}{': ' * bool(text)}{text}. It must be "
                          "the name of a module, such as my_package.parts, that `python -c \"import ...\"` "
                          "finds.") from error
    _TRUSTED.add(name)
    return module


def _member_at(family: Family, place: str) -> Member:
    """The member at MODULE:NAME."""
    module_name, _, name = place.partition(":")
    module = _import(module_name, f"config.{family.selector} names {shown(place)}")
    if not hasattr(module, name):
        raise ConfigError(f"config.{family.selector} = {shown(place)}: {module_name} has no {name!r}."
                          f"{nearest(name, vars(module))}")
    return _member(family, place, getattr(module, name), place)


def _member(family: Family, name: str, make: Any, where: str) -> Member:
    """A Member, read from the signature. Raises ConfigError for an object that cannot be a member of the family."""
    if not callable(make):
        if make is not None or not family.optional:
            family.check_needs(name, make)
        return Member(name, make, types.MappingProxyType({}), frozenset(), constant=True)
    keys, given = {}, set()
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError as error:  # some classes and functions in C
        raise ConfigError(f"{where} has no signature to read its config keys from: wrap it in a function.") from error
    hints = _hints(make)
    for parameter in parameters:
        if parameter.name in _NOT_KEYS and isinstance(make, type) or parameter.kind in (
                parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if (parameter.name in family.given or parameter.default is parameter.empty
                or parameter.kind is parameter.POSITIONAL_ONLY):
            given.add(parameter.name)
            continue
        default = parameter.default
        if type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            default = next(f.default_factory() for f in dataclasses.fields(make) if f.name == parameter.name)
        key = Key.from_argument(family.section + parameter.name, hints.get(parameter.name), default)
        if key is None:
            raise ConfigError(f"{where}: its argument {parameter.name} = {shown(default)} cannot be a config key, "
                              "which is True or False, a number, text, or a tuple of these. If it is not a key, remove "
                              "its default.")
        keys[parameter.name] = key
    return Member(name, make, types.MappingProxyType(keys), frozenset(given))


def _hints(make: Callable) -> dict[str, Any]:
    """The annotations of the arguments, as objects."""
    found = {name: parameter.annotation for name, parameter in inspect.signature(make).parameters.items()}
    if any(isinstance(annotation, str) for annotation in found.values()):
        try:
            found = typing.get_type_hints(inspect.unwrap(make))
        except Exception:  # unresolvable names: the defaults' types are used
            found = {}
    return found


def meanings(member: Member) -> dict[str, str]:
    """The meaning of each key of a member: the comment after its default, in the source of the member or its bases."""
    found: dict[str, str] = {}
    bases = member.source.__mro__[:-1] if isinstance(member.source, type) else (member.source,)
    for place in (*bases, *getattr(member.make, "key_sources", ())):
        for name, text in _comments(place).items():
            found.setdefault(name, text)
    return {name: found.get(name, "") for name in member.keys}


@functools.cache
def _comments(place: Any) -> Mapping[str, str]:
    """By name, the comment after `name: type = default`, continued on the comment lines that follow."""
    try:
        source = inspect.getsource(place)
        tokens = list(tokenize.generate_tokens(io.StringIO(inspect.cleandoc("\n" + source)).readline))
    except (OSError, TypeError, tokenize.TokenError, IndentationError, SyntaxError):
        return {}
    found, current, line = {}, None, 0
    for before, token in zip([None, *tokens], tokens):
        if token.type == tokenize.OP and token.string == ":" and before.type == tokenize.NAME:
            current, line = before.string, token.start[0]
        elif token.type == tokenize.COMMENT and current is not None:
            text, alone = token.string.lstrip("# ").rstrip(), token.line.lstrip().startswith("#")
            if not alone and current not in found and token.start[0] == line:
                found[current] = text
            elif alone and current in found and token.start[0] == line + 1:
                found[current] += f" {text}"
                line = token.start[0]
    return found
