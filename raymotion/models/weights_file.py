"""The header of a safetensors file: names, types and shapes of its tensors, read without torch, before anything else.

A file from somebody else is trusted in nothing: its header is checked against the file's size, so that a tensor which
is not there is noticed before memory for it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymotion import storage
from raymotion.errors import InputError

# safetensors' own limit.
LONGEST_HEADER = 100_000_000
# Bytes of one value.
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorHeader:
    """Type (a key of `SIZES`) and shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


def read_header(path: storage.PathLike, *, shown: object = None) -> Header:
    """The header of a safetensors file.

    Args:
        shown: how messages call the file; default `path`.

    Raises:
        InputError: no such file; it is cut off, or no safetensors; a tensor's size does not fit its shape.
    """
    with storage.open_input(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size or length > LONGEST_HEADER:
            raise _damaged(shown or path)
        text = file.read(length)
    try:
        found = json.loads(text)
        metadata = found.pop("__metadata__", None) or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise TypeError("metadata is text")
        tensors, total = {}, 0
        for name, entry in found.items():
            tensors[name] = _tensor(entry)
            total += entry["data_offsets"][1] - entry["data_offsets"][0]
        ends = [entry["data_offsets"][1] for entry in found.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise _damaged(shown or path) from error
    if 8 + length + max(ends, default=0) != size or total != max(ends, default=0):
        raise _damaged(shown or path)
    return Header(tensors, metadata)


def _tensor(entry: Mapping[str, Any]) -> TensorHeader:
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if any(type(number) is not int or number < 0 for number in (*shape, start, end)):
        raise ValueError("a shape or an offset is not a number")
    if end - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError("a tensor's size does not fit its shape")
    return TensorHeader(dtype, tuple(shape))


def _damaged(path: object) -> InputError:
    return InputError("is damaged or cut off", path=path, remedy="Copy or train it again.")
