"""Registry of the outputs. Third-party kinds of models may add their own with `register`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymotion.errors import InputError
from raymotion.models.outputs.base import Output
from raymotion.registry import Registry

OUTPUTS: dict[str, str] = {
    "multilabel": "raymotion.models.outputs.multilabel:MultiLabel",
    "single_label": "raymotion.models.outputs.single_label:SingleLabel",
    "bands": "raymotion.models.outputs.bands:Bands",
    "dimensions": "raymotion.models.outputs.dimensions:Dimensions",
    "multilabel_paths": "raymotion.models.outputs.paths:PathLabels",
    "dimensions_paths": "raymotion.models.outputs.paths:PathNumbers",
    "embedding": "raymotion.models.outputs.embedding:Embedding",
}
_outputs: Registry[Output] = Registry("output", Output, "raymotion.outputs", lambda: OUTPUTS)  # type: ignore[type-abstract]


def register(output_class: type[Output]) -> type[Output]:
    """Registers an output; usable as a class decorator. Raises an `InputError` if the name is taken."""
    return _outputs.register(output_class.kind_of_output, output_class)


def read_outputs(values: Any, *, where: str) -> tuple[Output, ...]:
    """Builds the outputs described in config.json of a checkpoint.

    Raises:
        InputError: an output is unknown, or a value is invalid.
    """
    for value in values if isinstance(values, list) else ():
        if isinstance(value, Mapping) and not isinstance(value.get("name"), str):
            raise InputError(f"has an output of type {value.get('type')} without a name", path=where)
    return _outputs.read_each(values, where=where)
