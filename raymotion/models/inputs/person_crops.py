"""A person's crops on their way into training: the picture decoded once, cut, augmented, resized to each backbone.

What leaves is uint8 at the size that each backbone reads: a quarter of what float32 would take on its way, and of a
picture of 640 x 480 with three streams of 224 pixels half of the picture itself.

Imports neither torch nor ray, as `reading`.
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
    """The `Reader` of persons. Its arrays: of each stream (n, S, S, 3) uint8, and `mask` (n, streams) bool.

    A stream that a person lacks (no box, or one of less than a pixel) is zeros there, and False in the mask.

    Attributes:
        identities: of the backbone of each stream that is looked at, in the order of the streams.
        level: of augmentation in training; the number of a view is that of the epoch. Never of other splits: the
            study augmented validation too.
        seed: of the views.
        damaged: what becomes of a picture that decodes, but not to what was stored; see `decode_rgb`.
        access: of the process that made the reader; the processes that read take it over.
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
        """The crops of some persons.

        Args:
            addresses: {"uri", "image" (the group), "person" (the sample_id), "body", "face" (boxes or None)} of each.

        Raises:
            AccessDenied, RunFailed: a permission is missing; a store does not answer.
        """
        self.access.apply()
        # Persons of one image that follow each other share its pixels: it is read once for them.
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
        last: tuple[str, np.ndarray] | None = None  # outside training, persons of one image follow each other
        failed: dict[str, str] = {}  # why, by address: it is not asked for again
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
                # At full size: boxes are its pixels, and a small face has none to spare.
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
