"""Registry of the inputs. Third-party kinds of models may add their own with `register`."""

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
    "predicted": "raymotion.models.inputs.values:PredictedInput",
    "answers": "raymotion.models.inputs.answers:AnswersInput",
    "stored": "raymotion.models.stored.input:StoredInput",
}
_inputs: Registry[Input] = Registry("input", Input, "raymotion.inputs", lambda: INPUTS)  # type: ignore[type-abstract]


def register(input_class: type[Input]) -> type[Input]:
    """Registers an input; usable as a class decorator. Raises an `InputError` if the name is taken."""
    return _inputs.register(input_class.name, input_class)


def read_inputs(values: Any, *, where: str, folder: str) -> tuple[Input, ...]:
    """Builds the inputs described in config.json of a checkpoint.

    Raises:
        InputError: an input is unknown, or a value is invalid.
    """
    return _inputs.read_each(values, where=where, folder=folder)
