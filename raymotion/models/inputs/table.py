"""The inputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from typing import Any

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
    return _inputs.read_each(values, where=where, folder=folder)
