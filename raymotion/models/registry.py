"""The kinds of models by name.

A kind of somebody else's comes in by the entry point `raymotion.kinds` of an installed package, by `register`, or by
`kind: package.module:Class` in a recipe, which imports that module. A checkpoint that names a kind imports nothing: the
kind has to be known already.
"""

from __future__ import annotations

from functools import cache

from raymotion.models.kind import Kind
from raymotion.registry import Registry

KINDS: dict[str, str] = {
    "teacher-visualbert": "raymotion.models.visualbert.kind:VisualBertKind",
    "student": "raymotion.models.student.kind:StudentKind",
    "fusion": "raymotion.models.fusion.kind:FusionKind",
    "fusion-tuned": "raymotion.models.fusion_tuned.kind:FusionTunedKind",
}
_kinds: Registry[Kind] = Registry("kind of model", Kind, "raymotion.kinds", lambda: KINDS)  # type: ignore[type-abstract]


def register(kind: type[Kind]) -> type[Kind]:
    """Adds a kind of one's own; may stand above its class. A name that is taken is refused."""
    return _kinds.register(kind.name, kind)


def kind_names() -> list[str]:
    """Every kind that is known: raymotion's own, installed ones, and those that were registered."""
    return _kinds.names()


def get_kind(name: str, *, path: object = None, may_import: bool = False) -> Kind:
    """The kind of this name.

    Args:
        path: of the file that names it, for the message.
        may_import: `name` may also be `package.module:Class`, which is imported. For a user's recipe alone.

    Raises:
        InputError: there is none, with those that there are.
    """
    found = _kinds.get(name, path=path, may_import=may_import)
    if ":" in name and found.name not in _kinds.names():
        _kinds.register(found.name, found)
    return _instance(found)


def of_class(kind: type[Kind]) -> Kind:
    """The kind of a class that another process sent: it may have been registered there, and not here."""
    if kind.name not in _kinds.places():
        _kinds.registered[kind.name] = kind
    return _instance(_kinds.get(kind.name))


@cache
def _instance(kind: type[Kind]) -> Kind:
    return kind()
