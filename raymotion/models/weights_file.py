"""Readers of weights files: headers of safetensors files (without torch), and state dicts.

Files are not trusted: headers are checked against the size of the file before memory is allocated for tensors, and
PyTorch files are loaded without executing code.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.finite import require_finite
from raymotion.weights import first_line

if TYPE_CHECKING:
    import torch

# safetensors' own limit.
LONGEST_HEADER = 100_000_000
# In front of each name of a model that was saved inside DataParallel.
WRAPPED = "module."
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
    """The header of a safetensors file."""

    tensors: Mapping[str, TensorHeader]
    metadata: Mapping[str, str]


def read_header(path: storage.PathLike, *, shown: object = None) -> Header:
    """Reads the header of a safetensors file.

    Args:
        shown: name of the file in messages; default `path`.

    Raises:
        InputError: the file is missing, truncated or not a safetensors file, or a tensor's size contradicts its shape.
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


def read_state_dict(path: storage.PathLike) -> dict[str, torch.Tensor]:
    """Reads tensors from a .safetensors file, or from a PyTorch file without executing code.

    Raises:
        InputError: the file is missing or damaged, contains anything but tensors, or has a weight that is not finite.
    """
    import torch
    from safetensors.torch import load

    remedy = "Save the state dict alone, best as .safetensors."
    data = storage.require(path)
    state: Any
    try:
        if storage.suffix(path) == ".safetensors":
            state = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader raises nearly anything on a damaged file
        raise InputError(f"is not a readable weights file ({first_line(error)})", path=path, remedy=remedy) from error
    for key in ("state_dict", "model"):  # training scripts wrap the state dict, e.g. torchvision's reference script
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise InputError("holds no state dict", path=path, remedy="Save model.state_dict().")
    require_finite(state, path)
    wrapped = bool(state) and all(name.startswith(WRAPPED) for name in state)
    return {name.removeprefix(WRAPPED) if wrapped else name: value for name, value in state.items()}


def differences(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor], listed: int = 3) -> str:
    """Describes why a state dict cannot be loaded; empty if it can.

    Adds counters of batches to `given`, or removes them, to match the model: evaluation never reads them, and files
    store them as a number or as a list of one.

    Args:
        wanted, given: name -> tensor, of the model and of the file.
        listed: how many names of each kind to list.
    """
    # BatchNorm keeps a counter of batches, FrozenBatchNorm does not: both kinds of files are accepted.
    counters = {name for name in {*wanted, *given} if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    unknown = sorted(set(given) - set(wanted) - counters)
    common = (set(wanted) & set(given)) - counters
    shapes = sorted(name for name in common if wanted[name].shape != given[name].shape)
    texts = []
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            texts.append(f"{len(names)} {what} ({', '.join(names[:listed])}{', ...' if len(names) > listed else ''})")
    for name in counters:
        if name not in wanted:
            del given[name]
        elif name not in given or given[name].numel() != 1:
            given[name] = wanted[name]
        else:
            given[name] = given[name].reshape(wanted[name].shape)
    return "; ".join(texts)
