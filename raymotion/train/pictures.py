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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raymotion.config import digest_of
from raymotion.data.feature_store import default_cache, local_copy
from raymotion.data.images import fetch_ahead
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.decode import ImageError, read_picture
from raymotion.data.images.marks import stamps
from raymotion.data.streams import Level
from raymotion.data.views.pictures import WHOLE, draw_view, render
from raymotion.stores.access import Access, current
from raymotion.stores.local_files import reserve
from raymotion.train.recipe import StudentRecipe

READ, ABSENT, UNREADABLE = 0, 1, 2
PIXELS = "pixels"
CACHED = "pictures.npy"


@dataclass(frozen=True)
class Portion:
    """Rows that are read together: a training batch of one epoch, or a part of a split to predict."""

    split: str
    epoch: int
    rows: np.ndarray

    @property
    def training(self) -> bool:
        return self.split == "train"


@dataclass(frozen=True)
class Pictures:
    """Pictures of a portion.

    Attributes:
        arrays: what was made of them, by name: each (n, ...); zeros where there is nothing.
        status: (n,) READ, ABSENT (the sample has no picture) or UNREADABLE.
        reasons: row -> why its picture could not be read; or, of one that was READ, what is damaged in it.
    """

    arrays: dict[str, np.ndarray]
    status: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """(n, S, S, 3) uint8, where each row is one picture."""
        return self.arrays[PIXELS]


class Reader(Protocol):
    """Turns addresses into pictures. Small: it travels to the processes that decode."""

    @property
    def address_type(self) -> pa.DataType:
        """Of the addresses that it reads, in Arrow."""

    @property
    def row_bytes(self) -> int:
        """Of what it makes of one row."""

    def read_all(self, addresses: Sequence[Any], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        """One portion, or a part of one.

        Raises:
            AccessDenied, RunFailed: a permission is missing; a store does not answer. Neither is a picture's fault.
        """


@dataclass(frozen=True)
class PictureReader:
    """The `Reader` of whole pictures.

    Attributes:
        size: side of the square that the model reads.
        cache: file of `cache_pictures`, in place of the addresses.
        damaged: what becomes of a picture that decodes, but not to what was stored; see `decode_rgb`.
        access: of the process that made the reader; the processes that read take it over.
    """

    size: int
    augmentation: Level = "none"
    smallest_crop: float = 0.5
    seed: int = 0
    cache: str | None = None
    damaged: DamagedPolicy = "quarantine"
    access: Access = field(default_factory=current)

    @property
    def address_type(self) -> pa.DataType:
        return pa.string()

    @property
    def row_bytes(self) -> int:
        return 3 * self.size**2

    def read(
        self,
        uri: str | None,
        row: int,
        epoch: int,
        training: bool,
        on_kept: Callable[[ImageError], None] | None = None,
    ) -> np.ndarray | None:
        """The picture (S, S, 3) uint8 as it is shown in this epoch, or None where the sample has none.

        Args:
            on_kept: called with what is wrong with a picture that is damaged and kept.

        Raises:
            ImageError: it cannot be read.
        """
        if uri is None:
            return None
        augmented = training and self.augmentation != "none"
        if self.cache is not None:
            picture: np.ndarray = np.load(self.cache, mmap_mode="r")[row]
            if not picture.any():
                raise ImageError("it could not be read when the cache was made")
        else:
            # Enough pixels for the smallest crop: a JPEG is decoded at a half or a quarter where that will do.
            side = math.ceil(self.size / math.sqrt(self.smallest_crop)) if augmented else self.size
            _, picture = read_picture(
                uri, fetch=fetch_ahead.shared().fetch, min_side=side, damaged=self.damaged, on_kept=on_kept
            )
        view = WHOLE
        if augmented:
            rng = np.random.default_rng([self.seed, epoch, row])
            view = draw_view(
                rng, picture.shape[1], picture.shape[0], self.augmentation, smallest_crop=self.smallest_crop
            )
        return render(picture, self.size, view)

    def read_all(self, uris: Sequence[str | None], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        """One portion, or a part of one.

        Raises:
            AccessDenied, RunFailed: a permission is missing; a store does not answer. Neither is a picture's fault.
        """
        pixels = np.zeros((len(rows), self.size, self.size, 3), dtype=np.uint8)
        status = np.full(len(rows), READ, dtype=np.int8)
        reasons: dict[int, str] = {}
        self.access.apply()
        with fetch_ahead.shared().ahead(() if self.cache is not None else uris):
            for i, (uri, row) in enumerate(zip(uris, rows, strict=True)):
                kept: list[ImageError] = []
                try:
                    picture = self.read(uri, int(row), epoch, training, kept.append)
                except ImageError as error:
                    status[i] = UNREADABLE
                    reasons[int(row)] = why_unreadable(uri, error)
                    continue
                if picture is None:
                    status[i] = ABSENT
                else:
                    pixels[i] = picture
                if kept:
                    reasons[int(row)] = why_unreadable(uri, kept[0])
        return Pictures({PIXELS: pixels}, status, reasons)


def why_unreadable(uri: str | None, error: ImageError) -> str:
    """The reason for the record. (A store that is down is no `ImageError`: it ends the run, and masks no picture.)"""
    return f"{uri}: {error.reason}: {error}"


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


def cached_pictures(recipe: StudentRecipe, uris: Sequence[str | None], image_size: int, *, threads: int) -> str:
    """`cache_pictures` with as many pixels as the recipe's smallest crop needs."""
    settings = recipe.data
    crop = settings.smallest_crop if settings.augmentation != "none" else 1.0
    return cache_pictures(uris, math.ceil(image_size / math.sqrt(crop)), threads=threads, damaged=settings.damaged)
