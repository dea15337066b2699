"""Reads crops of persons for training: decodes each picture once, crops, augments, and resizes for each backbone.

The crops are uint8 at the input size of each backbone, a quarter of the size in float32. Three streams of 224 pixels
take half as much as a picture of 640 x 480.

Imports neither torch nor ray, like `reading`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from raymotion.data.images import fetch_ahead
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.decode import ImageError, read_picture
from raymotion.data.streams import STREAMS
from raymotion.data.views.streams import LONGEST, View, crop, render_view
from raymotion.models.inputs.reading import ABSENT, READ, UNREADABLE, Pictures, why_unreadable
from raymotion.models.vision.backbones import BackboneIdentity, fitted
from raymotion.stores.access import Access, current

CONTEXT = STREAMS[0]
MASK = "mask"
_BOX = pa.list_(pa.float32())
ADDRESS = pa.struct(
    [("uri", pa.string()), ("image", pa.string()), ("person", pa.string()), ("body", _BOX), ("face", _BOX)]
)


@dataclass(frozen=True)
class PersonReader:
    """The `Reader` of persons. Its arrays are (n, S, S, 3) uint8 for each stream, and `mask` (n, streams) bool.

    A missing stream (no box, or one of less than a pixel) is zeros, and False in the mask.

    Attributes:
        identities: backbone of each stream in use, in the order of the streams.
        level: augmentation in training, with the epoch as the number of the view. Other splits are never augmented
            (the public study augmented validation too).
        seed: seed of the views.
        damaged: treatment of pictures that decode incorrectly; see `decode_rgb`.
        access: store settings of the creating process, applied in the reading processes.
    """

    identities: Mapping[str, BackboneIdentity]
    level: str = "none"
    seed: int = 0
    damaged: DamagedPolicy = "quarantine"
    access: Access = field(default_factory=current)

    @property
    def address_type(self) -> pa.DataType:
        return ADDRESS

    @property
    def row_bytes(self) -> int:
        return sum(3 * own.size**2 for own in self.identities.values())

    def read_all(self, addresses: Sequence[Any], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        """Reads the crops of some persons.

        Args:
            addresses: {"uri", "image" (the group), "person" (the sample_id), "body", "face" (boxes or None)} of each.

        Raises:
            AccessDenied, RunFailed: a permission is missing, or a store does not answer.
        """
        self.access.apply()
        # Consecutive persons of one image share its pixels, so it is read once.
        with fetch_ahead.shared().ahead(uri for uri, _ in groupby(address["uri"] for address in addresses)):
            return self._read_all(addresses, rows, epoch, training)

    def _read_all(self, addresses: Sequence[Any], rows: Sequence[int], epoch: int, training: bool) -> Pictures:
        n, view = len(rows), View(self.level, epoch) if training else View("none")
        arrays = {
            stream: np.zeros((n, own.size, own.size, 3), dtype=np.uint8) for stream, own in self.identities.items()
        }
        mask = np.zeros((n, len(self.identities)), dtype=bool)
        status = np.full(n, READ, dtype=np.int8)
        reasons: dict[int, str] = {}
        kept: list[ImageError] = []
        last: tuple[str, np.ndarray] | None = None  # outside training, persons of one image are consecutive
        failed: dict[str, str] = {}  # reason by address, to avoid a second attempt
        for i, address in enumerate(addresses):
            uri = address["uri"]
            if uri is None:
                status[i] = ABSENT
                continue
            if uri in failed:
                status[i] = UNREADABLE
                reasons[int(rows[i])] = failed[uri]
                continue
            try:
                # At full size, because boxes refer to its pixels, and small faces need the resolution.
                if last is not None and last[0] == uri:
                    picture = last[1]
                else:
                    kept.clear()
                    _, picture = read_picture(
                        uri, fetch=fetch_ahead.shared().fetch, damaged=self.damaged, on_kept=kept.append
                    )
            except ImageError as error:
                status[i] = UNREADABLE
                reasons[int(rows[i])] = failed[uri] = why_unreadable(uri, error)
                continue
            last = (uri, picture)
            if kept:
                reasons[int(rows[i])] = why_unreadable(uri, kept[0])
            for number, (stream, identity) in enumerate(self.identities.items()):
                part = picture if stream == CONTEXT else crop(picture, address[stream])
                if part is not None:
                    arrays[stream][i] = self._shown(part, stream, identity, view, address)
                    mask[i, number] = True
        return Pictures({**arrays, MASK: mask}, status, reasons)

    def _shown(
        self, part: np.ndarray, stream: str, identity: BackboneIdentity, view: View, address: Mapping[str, Any]
    ) -> np.ndarray:
        shown = render_view(
            part, stream, view, seed=self.seed, image=address["image"],
            owner=address["image"] if stream == CONTEXT else address["person"], longest=max(LONGEST, identity.size),
        )  # fmt: skip
        return np.asarray(fitted(Image.fromarray(np.ascontiguousarray(shown)), identity))
