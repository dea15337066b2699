"""The outputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from raymotion.errors import InputError
from raymotion.models.outputs.base import Output

OUTPUTS: dict[str, str] = {
    "multilabel": "raymotion.models.outputs.multilabel:MultiLabel",
    "dimensions": "raymotion.models.outputs.dimensions:Dimensions",
}
_registered: dict[str, type[Output]] = {}


def register(output_class: type[Output]) -> type[Output]:
    """Adds an output of one's own; a name that is taken is refused."""
    name = output_class.kind_of_output
    if name in OUTPUTS or _registered.get(name, output_class) is not output_class:
        raise InputError(f"an output is called {name} already", remedy="Give it another name.")
    _registered[name] = output_class
    return output_class


def read_outputs(values: Any, *, where: str) -> tuple[Output, ...]:
    """The outputs that a checkpoint's config.json describes.

    Raises:
        InputError: an output that is not known, or a value that it cannot have.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise InputError("names no outputs", path=where)
    found = []
    for value in values:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or (kind not in OUTPUTS and kind not in _registered):
            raise InputError(f"has an output {kind!r} that is not known here", path=where)
        if not isinstance(value.get("name"), str):
            raise InputError(f"has an output of type {kind} without a name", path=where)
        found.append(_class_of(kind).from_dict(value, where=where))
    names = [own.name for own in found]
    if len(set(names)) != len(names):
        raise InputError(f"has two outputs of one name ({', '.join(names)})", path=where)
    return tuple(found)


def _class_of(kind: str) -> type[Output]:
    if kind in _registered:
        return _registered[kind]
    module, _, attribute = OUTPUTS[kind].partition(":")
    loaded: type[Output] = getattr(import_module(module), attribute)
    return loaded
