"""The kinds of models by name.

A kind of somebody else's comes in by the entry point `raymotion.kinds` of an installed package, by `register`, or by
`kind: package.module:Class` in a recipe, which imports that module. A checkpoint that names a kind imports nothing: the
kind has to be known already.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from raymotion.errors import InputError
from raymotion.models.kind import Kind

KINDS: dict[str, str] = {
    "teacher-visualbert": "raymotion.models.visualbert.kind:VisualBertKind",
    "student": "raymotion.models.student.kind:StudentKind",
    "fusion": "raymotion.models.fusion.kind:FusionKind",
    "fusion-tuned": "raymotion.models.fusion_tuned.kind:FusionTunedKind",
}
GROUP = "raymotion.kinds"
_registered: dict[str, Kind] = {}


def register(kind: type[Kind]) -> type[Kind]:
    """Adds a kind of one's own; may stand above its class. A name that is taken is refused."""
    taken = _registered.get(kind.name)
    if kind.name in KINDS or (taken is not None and type(taken) is not kind):
        raise InputError(f"a kind of model is called {kind.name} already", remedy="Give it another name.")
    _registered[kind.name] = taken or kind()
    return kind


def kind_names() -> list[str]:
    """Every kind that is known: raymotion's own, installed ones, and those that were registered."""
    return list(dict.fromkeys([*KINDS, *_installed(), *_registered]))


def get_kind(name: str, *, path: object = None, may_import: bool = False) -> Kind:
    """The kind of this name.

    Args:
        path: of the file that names it, for the message.
        may_import: `name` may also be `package.module:Class`, which is imported. For a user's recipe alone.

    Raises:
        InputError: there is none, with those that there are.
    """
    if name in _registered:
        return _registered[name]
    where = KINDS.get(name) or _installed().get(name)
    if where is None and may_import and ":" in name:
        return _load(name, name, path)
    if where is None:
        raise InputError(
            f"no model is of the kind {name!r}",
            path=path,
            remedy=f"The kinds are {', '.join(kind_names())}. One of your own has to be installed (entry point {GROUP})"
            + (", registered, or named as kind: package.module:Class." if may_import else " or registered."),
        )
    return _load(name, where, path)


def of_class(kind: type[Kind]) -> Kind:
    """The kind of a class that another process sent: it may have been registered there, and not here."""
    return get_kind(kind.name) if kind.name in KINDS or kind.name in _installed() else get_kind(register(kind).name)


@cache
def _installed() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in KINDS or found.get(entry.name, entry.value) != entry.value:
            raise InputError(
                f"the installed package of {entry.value} adds a kind {entry.name}, and there is one of that name",
                remedy="Remove one of the packages.",
            )
        found[entry.name] = entry.value
    return found


def _load(name: str, where: str, path: object) -> Kind:
    module, _, attribute = where.partition(":")
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"kind {name!r} cannot be imported ({error})", path=path) from error
    if not (isinstance(kind, type) and issubclass(kind, Kind)):
        raise InputError(f"{where} is not a kind of model: no subclass of raymotion.models.kind.Kind", path=path)
    if kind.name not in _registered:
        _registered[kind.name] = kind()
    elif type(_registered[kind.name]) is not kind:
        raise InputError(f"two kinds of model are called {kind.name}", path=path)
    return _registered[kind.name]
