"""The outputs by name. A kind of model of somebody else's may bring more: `register`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise InputError("names no outputs", path=where)
    found = []
    for value in values:
        kind = value.get("type") if isinstance(value, Mapping) else None
        if not isinstance(kind, str):
            raise InputError("has an output without a type", path=where)
        if not isinstance(value.get("name"), str):
            raise InputError(f"has an output of type {kind} without a name", path=where)
        found.append(_outputs.get(kind, path=where, may_import=False).from_dict(value, where=where))
    names = [own.name for own in found]
    if len(set(names)) != len(names):
        raise InputError(f"has two outputs of one name ({', '.join(names)})", path=where)
    return tuple(found)
