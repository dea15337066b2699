"""Reading and decoding of training pictures.

A run is one sequence of portions; a portion holds the rows of one batch. The order is drawn from (seed, epoch), the
view of each picture from (seed, epoch, row). So the pixels that a worker sees do not depend on which process decodes
them or on how often the run was interrupted.

Imports neither torch nor ray, so that decoding processes start fast.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raymotion.config import digest_of
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.marks import stamps
from raymotion.folders.local_copy import default_cache, local_copy
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.inputs.reading import READ, Pictures, Reader
from raymotion.stores.local_files import reserve

CACHED = "pictures.npy"


@dataclass(frozen=True)
class Portion:
    """Rows that are read together: a training batch of one epoch, or part of a split to predict."""

    split: str
    epoch: int
    rows: np.ndarray

    @property
    def training(self) -> bool:
        """Whether the portion belongs to the training split."""
        return self.split == "train"


def read_here(
    portions: Sequence[Portion], addresses: Sequence[Any], reader: Reader, *, threads: int
) -> Iterator[tuple[Portion, Pictures]]:
    """Yields the portions in order, decoded a few portions ahead by threads of this process.

    Pillow releases the GIL while it decodes and resizes, so the threads run in parallel.
    """

    def read(portion: Portion) -> Pictures:
        return reader.read_all(
            [addresses[row] for row in portion.rows], portion.rows.tolist(), portion.epoch, portion.training
        )

    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[tuple[Portion, Future[Pictures]]] = deque()
    try:
        for portion in portions:
            waiting.append((portion, pool.submit(read, portion)))
            if len(waiting) > threads + 1:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def cache_pictures(
    uris: Sequence[str | None],
    size: int,
    *,
    threads: int,
    folder: str | None = None,
    damaged: DamagedPolicy = "quarantine",
) -> str:
    """Decodes every picture once into a memory-mapped NumPy file (n, size, size, 3) of uint8, and returns its path.

    Meant for many runs on one small set. The file is named after its sources (addresses, sizes and times of the files,
    or an object store's entity tags), so runs on the same pictures share it. An unreadable picture is all zeros.

    Args:
        folder: of the cache; default: `pictures` in `folders.local_copy.default_cache`.
    """
    place = Path(folder or os.path.join(default_cache(), "pictures")) / digest_of([size, damaged, stamps(uris)])

    def build(temporary: Path) -> dict[str, Any]:
        file = temporary / CACHED
        array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(len(uris), size, size, 3))
        reserve(file)
        rows = np.arange(len(uris))
        portions = [Portion("cache", 0, some) for some in np.array_split(rows, max(1, len(rows) // 32)) if len(some)]
        reader = PictureReader(size, damaged=damaged)
        for portion, pictures in read_here(portions, uris, reader, threads=threads):
            # All zeros mark an unreadable picture, so an entirely black one gets ones instead.
            black = (pictures.status == READ) & ~pictures.pixels.reshape(len(portion.rows), -1).any(axis=1)
            pictures.pixels[black] = 1
            array[portion.rows] = pictures.pixels
        array.flush()
        return {}

    local_copy(place, build)
    return str(place / CACHED)


def cached_pictures(settings: Any, uris: Sequence[str | None], image_size: int, *, threads: int) -> str:
    """Calls `cache_pictures` with the resolution that the smallest crop of a recipe's data settings needs."""
    crop = settings.smallest_crop if settings.augmentation != "none" else 1.0
    return cache_pictures(uris, math.ceil(image_size / math.sqrt(crop)), threads=threads, damaged=settings.damaged)
