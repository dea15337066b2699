"""Reads whole pictures during training: decodes, crops at random, and resizes to the model's square."""

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
        size: side of the model's square, in pixels.
        cache: file of `cache_pictures` to read instead of the addresses.
        damaged: treatment of pictures that decode incorrectly; see `decode_rgb`.
        access: store settings of the creating process, applied in the reading processes.
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
        """Returns the picture (S, S, 3) uint8 in its view for this epoch; None if the sample has none.

        Args:
            on_kept: called with the error if the picture is damaged but kept.

        Raises:
            ImageError: the picture cannot be read.
        """
        if uri is None:
            return None
        augmented = training and self.augmentation != "none"
        if self.cache is not None:
            picture: np.ndarray = np.load(self.cache, mmap_mode="r")[row]
            if not picture.any():
                raise ImageError("it could not be read when the cache was made")
        else:
            # Enough pixels for the smallest crop; JPEGs may be decoded at a half or a quarter of their size.
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
        """Reads the pictures of some rows; see `Reader`.

        Raises:
            AccessDenied, RunFailed: a permission is missing, or a store does not answer.
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
