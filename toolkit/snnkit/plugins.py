"""Exporters and targets are modules, found by name: those shipped here, and entry points of other packages.

This is the only module that may reach up: it imports by name, when asked, and knows nothing of what it finds.
"""

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeAlias, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from snnkit.errors import UsageError, did_you_mean
from snnkit.network import Network, Trace
from snnkit.network.ir import Array

Kind: TypeAlias = Literal["exporters", "targets"]


class Exporter(Protocol):
    """A module that writes a format; ``SUFFIX`` is what its files end with.

    Where that depends on the network, ``suffix(net, options)`` stands in its place.
    """

    SUFFIX: str
    Options: type[BaseModel]

    def check(self, net: Network, options: BaseModel) -> list[str]:
        """All reasons why the network cannot be written."""
        ...

    def export(self, net: Network, path: Path, options: BaseModel) -> list[Path]:
        """Writes the network to ``path`` and returns what was written."""
        ...


class Target(Protocol):
    """A module that runs a network.

    It may offer ``state(net, inputs, sample, t, node) -> (u, v)``, arrays [*shape] as they are compared with the
    threshold, for the first divergence from another target.
    """

    Options: type[BaseModel]

    def available(self) -> str | None:
        """What is missing on this machine and how to get it; None if nothing is."""
        ...

    def check(self, net: Network, options: BaseModel) -> list[str]:
        """All reasons why the network cannot be run."""
        ...

    def run(self, net: Network, inputs: Array, options: BaseModel) -> Trace:
        """Runs raw inputs; see ``snnkit.network.inputs`` for their shapes."""
        ...


def _entry_points(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"snnkit.{kind}")}


def _shipped(kind: Kind) -> list[str]:
    package = importlib.util.find_spec(f"snnkit_{kind}")
    folders = package.submodule_search_locations if package else None
    return [module.name for module in pkgutil.iter_modules(folders) if not module.ispkg and module.name[0] != "_"]


def names(kind: Kind) -> list[str]:
    """The names of all exporters or targets, without importing them."""
    return sorted({*_shipped(kind), *_entry_points(kind)})


def _module(kind: Kind, name: str) -> Any:
    if name in _shipped(kind):
        return importlib.import_module(f"snnkit_{kind}.{name}")
    if entry := _entry_points(kind).get(name):
        return entry.load()
    raise UsageError(f"there is no {kind[:-1]} '{name}'", did_you_mean(name, names(kind)))


def exporter(name: str) -> Exporter:
    """The exporter called ``name``; raises :class:`UsageError` naming the nearest one."""
    return cast(Exporter, _module("exporters", name))


def target(name: str) -> Target:
    """The target called ``name``; raises :class:`UsageError` naming the nearest one."""
    return cast(Target, _module("targets", name))


def options(plugin: Exporter | Target, values: dict[str, Any]) -> BaseModel:
    """The plugin's checked options; raises :class:`UsageError` naming the one that is wrong."""
    try:
        return plugin.Options(**values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            fields = plugin.Options.model_fields
            hint = did_you_mean(name, fields) if fields else "it takes no options"
            raise UsageError(f"'{_name(plugin)}' has no option '{name}'", hint) from None
        message = f"option '{name}' of '{_name(plugin)}': {problem['msg'][0].lower()}{problem['msg'][1:]}"
        raise UsageError(message, f"it was {problem['input']!r}") from None


def suffix(plugin: Exporter, net: Network, checked: BaseModel) -> str:
    """What the name of an export ends with."""
    choose = getattr(plugin, "suffix", None)
    return str(choose(net, checked)) if choose else plugin.SUFFIX


def _name(plugin: Exporter | Target) -> str:
    return getattr(plugin, "__name__", type(plugin).__name__).rpartition(".")[2]


def describe_options(plugin: Exporter | Target) -> str:
    """``form=unrolled|step|scan, trace=true|false``: the options of a plugin in one line, empty where it has none."""
    return ", ".join(f"{name}={_values(field.annotation)}" for name, field in plugin.Options.model_fields.items())


def _values(annotation: Any) -> str:
    if annotation is bool:
        return "true|false"
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    if get_origin(annotation) is Annotated:
        return _values(get_args(annotation)[0])
    if kinds := get_args(annotation):
        return "|".join(_values(kind) for kind in kinds if kind is not type(None))
    return str(annotation.__name__).upper()


def options_of(
    kind: Kind, chosen: Sequence[str], assignments: Sequence[str] = (), **values: Any
) -> dict[str, BaseModel]:
    """The checked options of each plugin in ``chosen``, from ``[NAME.]KEY=VALUE`` on top of ``values``.

    Without NAME an assignment goes to every one of them. Raises :class:`UsageError` for one that does not fit.
    """
    given: dict[str, dict[str, Any]] = {name: dict(values) for name in chosen}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        owner, dot, field = key.rpartition(".")
        if not equals or not field:
            raise UsageError(f"option '{assignment}' has no value", "write KEY=VALUE, or NAME.KEY=VALUE for one target")
        if dot and owner not in given:
            message = f"option '{assignment}' is for '{owner}', which is not among the targets"
            raise UsageError(message, did_you_mean(owner, given))
        for name in [owner] if dot else given:
            given[name][field] = value
    find = exporter if kind == "exporters" else target
    return {name: options(find(name), fields) for name, fields in given.items()}
