"""What a frozen text tower says of captions, read once for all trainings on this machine.

The numbers lie in local copies (`folders.local_copy`) of some captions each, which are named after the tower and
these captions, and are memory-mapped. A hash of a caption says in which copy it is, so that one more caption changes
one copy. An interrupted run loses the copy that it was making, and no other. Where the cache cannot be written, they
stay in memory for the run: they are few, and no training stops for want of a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymotion import storage
from raymotion.config import digest_of
from raymotion.errors import AccessDenied, DiskFull
from raymotion.folders.local_copy import default_cache, local_copy
from raymotion.models.inputs.captions import pad
from raymotion.models.text.encoders import BertEncoder
from raymotion.stores.local_files import reserve

FILE = "numbers.npy"
# Captions in a copy on average, at most: 5 MB of the recipe `joint`. Of many captions there are more in each of `MOST`
# copies, because a copy holds a file open for the whole training.
BLOCK, MOST = 1024, 64
# Captions that go through the tower at a time.
CAPTIONS = 128

# Word pieces of a caption.
Tokens = np.ndarray | Sequence[int]


class RememberedTexts:
    """What a frozen text tower says of some captions.

    Args:
        tower: in evaluation mode, on the device that it reads on.
        cache: local folder for the copies; default: `texts` in `default_cache()`.
    """

    def __init__(self, tower: BertEncoder, *, cache: str | None = None) -> None:
        self._tower = tower
        self._device = next(tower.parameters()).device
        self._folder = Path(cache or storage.join(default_cache(), "texts"))
        # Another device or version computes sums in another order: a run must not depend on who was first.
        shape = {**tower.model.config.to_dict(), "transformers_version": None}
        self._identity = [shape, tower.layers, _weights_digest(tower), *_computed_by(self._device), torch.__version__]
        self._arrays: list[np.ndarray] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        self._cached = True

    def add(self, tokens: Sequence[Tokens]) -> None:
        """Lets the tower read captions, unless a copy has what it says of them."""
        for keys in _blocks({_key_of(own) for own in tokens}):
            # Short captions together, so that little is padded.
            block = sorted(keys, key=lambda key: (len(key), key))
            content = sha256(b"".join(len(key).to_bytes(4, "little") + key for key in block)).hexdigest()
            place = self._folder / digest_of([*self._identity, content])
            array = self._copy(place, block)
            self._place |= {key: (len(self._arrays), row) for row, key in enumerate(block)}
            self._arrays.append(array)

    def _copy(self, place: Path, keys: Sequence[bytes]) -> np.ndarray:
        if self._cached:
            try:
                local_copy(place, partial(self._write, keys=keys))
                return np.load(place / FILE, mmap_mode="r")
            except (AccessDenied, DiskFull, OSError) as error:
                self._cached = False
                why = getattr(error, "reason", None) or str(error)
                logging.getLogger(__name__).warning(
                    "%s: what the text tower says of captions stays in memory, for this run alone (%s). To keep it, "
                    "set XDG_CACHE_HOME to a folder that can be written.", self._folder, why,
                )  # fmt: skip
        array = np.empty((len(keys), self._tower.width), dtype=np.float32)
        self._fill(array, keys)
        return array

    def _write(self, folder: Path, keys: Sequence[bytes]) -> dict[str, Any]:
        shape = (len(keys), self._tower.width)
        array = np.lib.format.open_memmap(folder / FILE, mode="w+", dtype=np.float32, shape=shape)
        reserve(folder / FILE)
        self._fill(array, keys)
        array.flush()
        return {"captions": len(keys)}

    def _fill(self, array: np.ndarray, keys: Sequence[bytes]) -> None:
        tokens = [np.frombuffer(key, np.int32) for key in keys]
        for start in range(0, len(keys), CAPTIONS):
            said = self._said(tokens[start : start + CAPTIONS], self._device)
            array[start : start + len(said)] = said.numpy()

    def _said(self, tokens: Sequence[Tokens], device: torch.device) -> Tensor:
        # The piece that pads does not matter: padding is masked.
        ids, mask = (torch.from_numpy(own).to(device) for own in pad(tokens))
        return read_frozen(self._tower, ids, mask).cpu()

    def read(self, tokens: Sequence[Tokens], device: torch.device) -> Tensor:
        """Returns what the tower says of captions, (n, width) on the CPU; it reads those that were not added now.

        Args:
            device: where the tower is now.
        """
        numbers = torch.empty(len(tokens), self._tower.width)
        others = []
        for row, own in enumerate(tokens):
            place = self._place.get(_key_of(own))
            if place is None:
                others.append(row)
            else:
                numbers[row] = torch.from_numpy(self._arrays[place[0]][place[1]].copy())
        if others:
            numbers[others] = self._said([tokens[row] for row in others], device)
        return numbers


def read_frozen(tower: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Returns what a frozen tower says of captions, (n, width) float32, without a gradient.

    In full precision, in training too: what is remembered there is what it says later.
    """
    with torch.no_grad(), torch.autocast(input_ids.device.type, enabled=False):
        return tower(input_ids, attention_mask).float()


def _key_of(tokens: Tokens) -> bytes:
    return np.asarray(tokens, dtype=np.int32).tobytes()


def _blocks(keys: Set[bytes]) -> list[list[bytes]]:
    """Divides captions by a prefix of their hash.

    The number of blocks is a power of four, which hardly ever changes with a few captions more.
    """
    count = 1
    while count < MOST and len(keys) > BLOCK * count:
        count *= 4
    blocks: list[list[bytes]] = [[] for _ in range(count)]
    for key in keys:
        blocks[int.from_bytes(sha256(key).digest()[:4]) * count >> 32].append(key)
    return [block for block in blocks if block]


def _computed_by(device: torch.device) -> list[str]:
    """Returns what decides the order of a device's sums: the type of the GPU, or the CPU's vector instructions."""
    if device.type == "cuda":
        return [device.type, torch.cuda.get_device_name(device)]
    return [device.type, torch.backends.cpu.get_cpu_capability()]


def _weights_digest(network: nn.Module) -> str:
    """Returns the SHA-256 of a network's parameters and buffers."""
    found = sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        found.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
    return found.hexdigest()
