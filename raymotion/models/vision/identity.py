"""What decides the features of a picture, as data sets and checkpoints record it."""

from __future__ import annotations

import json
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ValidationError

from raymotion.config import Settings
from raymotion.errors import InputError


class Identity(Settings):
    """A model and its weights. Features of equal identities may be mixed.

    Attributes:
        weights: as `raymotion.weights.identify` tells them: `random:SEED`, `sha256:HEX`, or what is published.
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
        """As JSON can hold it."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Any, *, where: object = None) -> Self:
        """What `to_dict` gave.

        Raises:
            InputError: it is not that; `where` is the file that says so.
        """
        try:
            return cls.model_validate_json(json.dumps(values))  # in JSON a list may stand for a tuple
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise InputError(f"is not the identity of a {cls.what} ({why})", path=where) from error
