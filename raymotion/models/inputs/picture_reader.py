"""How a whole picture is read while a model trains: decoded, cropped at random, resized to the model's square."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raymotion.data.images import fetch_ahead
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.decode import ImageError, read_picture
from raymotion.data.streams import Level
from raymotion.data.views.pictures import WHOLE, draw_view, render
from raymotion.models.inputs.reading import ABSENT, PIXELS, READ, UNREADABLE, Pictures, why_unreadable
from raymotion.stores.access import Access, current


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
