"""The outputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymotion.errors import InputError
from raymotion.models.outputs.base import Output
from raymotion.registry import Registry

OUTPUTS: dict[str, str] = {
    "multilabel": "raymotion.models.outputs.multilabel:MultiLabel",
    "dimensions": "raymotion.models.outputs.dimensions:Dimensions",
}
_outputs: Registry[Output] = Registry("output", Output, "raymotion.outputs", lambda: OUTPUTS)  # type: ignore[type-abstract]


def register(output_class: type[Output]) -> type[Output]:
    """Adds an output of one's own; may stand above its class. A name that is taken is refused."""
    return _outputs.register(output_class.kind_of_output, output_class)


def read_outputs(values: Any, *, where: str) -> tuple[Output, ...]:
    """The outputs that a checkpoint's config.json describes.

    Raises:
        InputError: an output that is not known, or a value that it cannot have.
    """
    for value in values if isinstance(values, list) else ():
        if isinstance(value, Mapping) and not isinstance(value.get("name"), str):
            raise InputError(f"has an output of type {value.get('type')} without a name", path=where)
    return _outputs.read_each(values, where=where)
