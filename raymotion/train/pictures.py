"""Pictures on their way into training: what is read when, and how one becomes pixels.

A run is one sequence of portions, a portion being the rows of one batch. Its order is drawn from (seed, epoch), the
view of each picture from (seed, epoch, row): so the pixels that a worker sees do not depend on who decodes them, in
which process, or on how often the run was interrupted.

Imports neither torch nor ray: the processes that decode need not wait for them.
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
from raymotion.data.feature_store import default_cache, local_copy
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.marks import stamps
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.inputs.reading import READ, Pictures, Reader
from raymotion.stores.local_files import reserve

CACHED = "pictures.npy"


@dataclass(frozen=True)
class Portion:
    """Rows that are read together: a training batch of one epoch, or a part of a split to predict."""

    split: str
    epoch: int
    rows: np.ndarray

    @property
    def training(self) -> bool:
        """Whether the model learns from it."""
        return self.split == "train"


def read_here(
    portions: Sequence[Portion], addresses: Sequence[Any], reader: Reader, *, threads: int
) -> Iterator[tuple[Portion, Pictures]]:
    """The portions in order, decoded by threads of this process a few portions ahead.

    Pillow lets go of Python's lock while it decodes and resizes, so threads do run side by side.
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
    """Decodes every picture once, as (n, size, size, 3) uint8 in a NumPy file that is read through a memory map.

    For many runs on one small set. The copy is named after what it was made from (addresses, sizes and times of the
    files, or an object store's entity tags), so runs on the same pictures share it. A picture that cannot be read is
    all zeros there.

    Args:
        folder: of the cache; default: `pictures` beside that of the features (`data.feature_store.default_cache`).
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
            # Zeros say "not read": a picture that is black all over must not.
            black = (pictures.status == READ) & ~pictures.pixels.reshape(len(portion.rows), -1).any(axis=1)
            pictures.pixels[black] = 1
            array[portion.rows] = pictures.pixels
        array.flush()
        return {}

    local_copy(place, build)
    return str(place / CACHED)


def cached_pictures(settings: Any, uris: Sequence[str | None], image_size: int, *, threads: int) -> str:
    """`cache_pictures` with as many pixels as the smallest crop of a recipe's data settings needs."""
    crop = settings.smallest_crop if settings.augmentation != "none" else 1.0
    return cache_pictures(uris, math.ceil(image_size / math.sqrt(crop)), threads=threads, damaged=settings.damaged)
