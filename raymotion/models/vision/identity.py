"""Identities of feature extractors, as data sets and checkpoints record them."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ValidationError

from raymotion.config import Settings, message_of
from raymotion.errors import InputError


class Identity(Settings):
    """A model and its weights. Features of equal identities may be mixed.

    Attributes:
        weights: from `raymotion.weights.identify`: `random:SEED`, `sha256:HEX`, or the name of published weights.
    """

    model_config = ConfigDict(strict=True)
    what: ClassVar[str]

    name: str
    weights: str

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return self.weights.startswith("random:")

    def to_dict(self) -> dict[str, Any]:
        """Returns the identity as JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Any, *, where: object = None) -> Self:
        """Reads the form of `to_dict`.

        Raises:
            InputError: the values are invalid; `where` is their file, for the message.
        """
        try:
            return cls.model_validate_json(json.dumps(values))  # JSON mode accepts a list for a tuple
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {message_of(first)}".removeprefix(": ")
            raise InputError(f"is not the identity of a {cls.what} ({why})", path=where) from error
