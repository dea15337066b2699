"""The inputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymotion.errors import InputError
from raymotion.models.inputs.base import Input
from raymotion.registry import Registry

INPUTS: dict[str, str] = {
    "captions": "raymotion.models.inputs.captions:Captions",
    "regions": "raymotion.models.inputs.regions:RegionInput",
    "picture": "raymotion.models.inputs.picture:PictureInput",
    "streams": "raymotion.models.inputs.streams:StreamInput",
    "crops": "raymotion.models.inputs.streams:CropInput",
    "values": "raymotion.models.inputs.values:ValuesInput",
}
_inputs: Registry[Input] = Registry("input", Input, "raymotion.inputs", lambda: INPUTS)  # type: ignore[type-abstract]


def register(input_class: type[Input]) -> type[Input]:
    """Adds an input of one's own; may stand above its class. A name that is taken is refused."""
    return _inputs.register(input_class.name, input_class)


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
        if not isinstance(name, str):
            raise InputError("reads an input without a type", path=where)
        found.append(_inputs.get(name, path=where, may_import=False).from_dict(value, where=where, folder=folder))
    names = [own.name for own in found]
    if len(set(names)) != len(names):
        raise InputError(f"has two inputs of one name ({', '.join(names)})", path=where)
    return tuple(found)
