"""Keeps what was measured on the finished runs of a poisoning experiment, so that no model is opened for it again.

Each table has a key, a digest of all that it depends on, among it the fingerprint of the run's checkpoint. A table with
another key, or a damaged one, is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.config import digest_of
from raymotion.errors import AccessDenied, InputError
from raymotion.version import __version__

KEY = b"measured"


def key_of(depends_on: Mapping[str, Any], *packages: str) -> str:
    """Returns a digest of what a measurement depends on, of the version of raymotion, and of further packages."""
    return digest_of([dict(depends_on), __version__, *(version(own) for own in packages)])


def keep(path: str, key: str, make: Callable[[], pa.Table]) -> pa.Table:
    """Returns the table at `path` if it has this key; else makes it and writes it there."""
    if storage.exists(path):
        try:
            found = storage.read_table(path)
        except AccessDenied:
            raise
        except InputError:  # damaged
            pass
        else:
            if (found.schema.metadata or {}).get(KEY) == key.encode():
                return found
    made = make().replace_schema_metadata({KEY: key.encode()})
    storage.write_table(path, made)
    return made
