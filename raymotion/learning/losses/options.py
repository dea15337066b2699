"""The options of a loss that a recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from raymotion.config import Settings, load_settings
from raymotion.errors import InputError

S = TypeVar("S", bound=Settings)


def read_options(kind: type[S], name: str, options: Mapping[str, Any] | None) -> S:
    """Returns the options of the loss called `name`, whose class of options is `kind`.

    Raises:
        InputError: an option is unknown or invalid; the message lists those that there are.
    """
    try:
        return load_settings(kind, options=options)
    except InputError as error:
        known = ", ".join(kind.model_fields) or "none"
        raise InputError(f"loss {name}: {error.reason}", remedy=f"Its options are: {known}.") from error
