"""The whole picture, as a square of pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raymotion.data.images.marks import Picture as MarkedPicture
from raymotion.data.images.marks import fingerprints
from raymotion.data.samples import require_allowed_images
from raymotion.data.views.pictures import render
from raymotion.errors import InputError
from raymotion.models.inputs.base import Arrays, Bound, Draft, Evidence, Input, Prepared
from raymotion.models.inputs.picture_reader import PictureReader
from raymotion.models.recipe import WholePictureSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe

# Largest side in pixels: a damaged checkpoint must not cause a huge allocation.
LARGEST = 4096
# Weights of red, green and blue in brightness (ITU-R BT.601).
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class _Shown(Arrays):
    """The `Draft` of pictures. Empty if no row of the set has a picture: the network gets no images."""

    def hide(self, rows: np.ndarray) -> None:
        self.values["image_mask"] = self.values["image_mask"] & ~rows

    def tensors(self, device: str) -> dict[str, Any]:
        import torch

        # Copied, because Ray's blocks are read-only and torch warns about such tensors.
        return {name: torch.from_numpy(np.array(own)).to(device) for name, own in self.values.items()}


class PreparedPictures(Prepared, Bound):
    """Addresses of the pictures of a training set; they are decoded batch by batch."""

    streamed: ClassVar[bool] = True

    def __init__(self, uris: Sequence[str | None], size: int) -> None:
        self.addresses, self.size = list(uris), size
        self.present = np.array([uri is not None for uri in uris], dtype=bool)

    @property
    def image_uris(self) -> list[str | None]:
        """The address of each row's picture, or None."""
        return self.addresses

    def take(self, rows: np.ndarray) -> PreparedPictures:
        return PreparedPictures([self.addresses[row] for row in rows], self.size)

    def described(self, training: np.ndarray) -> PictureInput:
        return PictureInput(self.size, used=bool(self.present[training].any()))

    def reader(self, recipe: Any) -> PictureReader:
        """Returns the reader for the recipe's augmentation."""
        own = recipe.data
        return PictureReader(self.size, own.augmentation, own.smallest_crop, recipe.seed, damaged=own.damaged)

    def contents(self) -> list[Any]:
        # Names, sizes and digests of the pictures, independent of their location.
        return [fingerprints([MarkedPicture(uri) for uri in self.addresses])]

    def evidence(self, rows: np.ndarray, read: Any = None) -> Evidence:
        return self._of(rows, read)

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        return self._of(rows, read)

    def _of(self, rows: np.ndarray, read: Any) -> _Shown:
        if read is None:
            return _Shown("picture", np.zeros(len(rows), dtype=bool), {})
        there = read.readable
        return _Shown("picture", there, {"images": read.pixels, "image_mask": there})

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"images": self.addresses}, {}


class PictureInput(Input):
    """Pictures as squares. The network is called with `images` (n, size, size, 3) uint8 and `image_mask` (n,) bool.

    Args:
        size: side in pixels.
        used: see `Input`.
    """

    name: ClassVar[str] = "picture"
    data_settings = WholePictureSettings
    looks_at: ClassVar[str] = "some"
    noun = "an image"
    plural = "images"

    def __init__(self, size: int, *, used: bool = True) -> None:
        self.size, self.used = size, used

    @property
    def min_side(self) -> int | None:  # type: ignore[override]
        """The size."""
        return self.size

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "size": self.size, "used": self.used}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> PictureInput:
        size = value.get("size")
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST:
            raise InputError(f"picture: size is {size!r}, not a number from 1 to {LARGEST}", path=where)
        return cls(size, used=bool(value.get("used", True)))

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedPictures:
        require_allowed_images(table)
        return PreparedPictures(table.column("image_uri").to_pylist(), self.size)

    def bind(self, prepared: Prepared, training: np.ndarray) -> PreparedPictures:
        """Returns the pictures at this input's own size: a search prepares them once, whatever the size."""
        assert isinstance(prepared, PreparedPictures)
        return PreparedPictures(prepared.addresses, self.size)

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedPictures:
        return PreparedPictures(meta["images"], self.size)

    def collect(self, items: Sequence[Any]) -> Arrays:
        there = np.array([self.used and item.pixels is not None for item in items], dtype=bool)
        pixels = np.zeros((len(items), self.size, self.size, 3), np.uint8)
        for row in np.flatnonzero(there).tolist():
            pixels[row] = render(items[row].pixels, self.size)
        if not self.used:
            return Arrays("picture", there, {})
        return Arrays("picture", there, {"images": pixels, "image_mask": there})

    def statistics(self, evidence: Any) -> Mapping[str, np.ndarray]:
        """Returns brightness and its standard deviation (contrast), of every fourth pixel of a side."""
        values = np.full((2, len(evidence.present)), np.nan)
        for row in np.flatnonzero(evidence.present).tolist():
            grey = evidence.values["images"][row, ::4, ::4].astype(np.float32) @ LUMA
            values[:, row] = grey.mean() / 255, grey.std() / 255
        return dict(zip(("brightness", "contrast"), values, strict=True))

    def release(self, item: Any) -> None:
        item.pixels = None
