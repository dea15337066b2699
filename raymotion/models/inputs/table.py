"""The inputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from raymotion.errors import InputError
from raymotion.models.inputs.base import Input

INPUTS: dict[str, str] = {
    "captions": "raymotion.models.inputs.captions:Captions",
    "regions": "raymotion.models.inputs.regions:RegionInput",
    "picture": "raymotion.models.inputs.picture:PictureInput",
    "streams": "raymotion.models.inputs.streams:StreamInput",
    "crops": "raymotion.models.inputs.streams:CropInput",
    "values": "raymotion.models.inputs.values:ValuesInput",
}
_registered: dict[str, type[Input]] = {}


def register(input_class: type[Input]) -> type[Input]:
    """Adds an input of one's own; a name that is taken is refused."""
    name = input_class.name
    if name in INPUTS or _registered.get(name, input_class) is not input_class:
        raise InputError(f"an input is called {name} already", remedy="Give it another name.")
    _registered[name] = input_class
    return input_class


def read_inputs(values: Any, *, where: str, folder: str) -> tuple[Input, ...]:
    """The inputs that a checkpoint's config.json describes.

    Raises:
        InputError: an input that is not known, or a value that it cannot have.
    """
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise InputError("names no inputs", path=where)
    found = []
    for value in values:
        name = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(name, str) or (name not in INPUTS and name not in _registered):
            raise InputError(f"reads an input {name!r} that is not known here", path=where)
        found.append(_class_of(name).from_dict(value, where=where, folder=folder))
    return tuple(found)


def _class_of(name: str) -> type[Input]:
    if name in _registered:
        return _registered[name]
    module, _, attribute = INPUTS[name].partition(":")
    loaded: type[Input] = getattr(import_module(module), attribute)
    return loaded
