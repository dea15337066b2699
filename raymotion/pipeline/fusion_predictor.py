"""A fusion head in plain Python: a picture and the boxes of a person in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from raymotion.data.views.streams import crop
from raymotion.errors import InputError
from raymotion.learning.vad import DIMENSIONS, SCALE
from raymotion.models.finite import require_finite_rows
from raymotion.models.inputs.streams import find_weights, looks, masks, needs, squares, stream_inputs
from raymotion.models.vision.backbones import Backbone
from raymotion.pipeline.predictor import Boxes, Captions, Pictures, Predictor

if TYPE_CHECKING:
    import os

    from PIL.Image import Image

    from raymotion.models.loaded import LoadedFusion

CONTEXT = "context"
BOXES = ("body", "face")


class FusionPredictor(Predictor):
    """A fusion head, with the backbones whose features it was trained on, built when the first picture comes.

    Of a picture without boxes it sees the context alone; body and face are masked, as they are for a person whose face
    was not found.
    """

    reads_images, reads_text = True, False

    def __init__(self, head: LoadedFusion, device: str, weights: Sequence[str]) -> None:
        self.head, self.info, self.device = head, head.info, device
        self.inputs = stream_inputs(head.info)
        self._weights = list(weights)
        if head.tuned and weights:
            raise InputError(
                "holds its backbones itself, and would not use --weights",
                path=self.info.folder,
                remedy="Leave them out.",
            )
        self._seen: Boxes | None = None

    @property
    def notes(self) -> list[str]:
        random = sorted({own.name for own in self.inputs if own.identity.is_random})
        notes = []
        if random and not self.head.tuned:
            notes.append(
                f"The backbones {', '.join(random)} have random weights: what the model says is for trials only."
            )
        masked = [own.stream for own in self.inputs if own.stream in BOXES and own.stream not in (self._seen or {})]
        if self._seen is not None and masked:
            left = [own.stream for own in self.inputs if own.stream not in masked]
            notes.append(
                f"No box of the {' and the '.join(masked)} was given: the model looked at the "
                f"{' and the '.join('whole picture' if stream == CONTEXT else stream for stream in left)} alone."
            )
        return notes

    @cached_property
    def backbones(self) -> dict[str, Backbone]:
        found = find_weights(self.inputs, self._weights, path=self.info.folder)
        identities = {own.name: own.identity for own in self.inputs}
        return {name: Backbone(identities[name], what, device=self.device) for name, what in found.items()}

    def label(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image | None = None,
        caption: str | Sequence[str] | None = None,
        *,
        boxes: Boxes | None = None,
    ) -> dict[str, float]:
        if image is None:
            raise InputError(f"this model reads {self._reads}, and none was given", path=self.info.folder)
        pixels = self._read(image)
        answers = self.answers([pixels], [boxes])[0]
        self._seen = dict(boxes or {})
        width = len(self.vocabulary)
        self.vad = {name: float(v) * SCALE for name, v in zip(DIMENSIONS, answers[width:], strict=False)} or None
        return self._by_probability(answers[:width])

    def answers(
        self, images: Pictures, boxes: Sequence[Boxes | None] | None = None, *, batch_size: int = 16
    ) -> np.ndarray:
        """Probabilities of n samples, and behind them valence, arousal, dominance (0..1) of a head that predicts them.

        Args:
            images: n pictures uint8 (height, width, 3), or None.
            boxes: of each, or None.

        Returns:
            float32 (n, L) or (n, L + 3).

        Raises:
            InputError: a sample has nothing that the head looks at; an unknown name of a box.
            NotFinite: the head answers with NaN or infinity.
        """
        places = [dict(own or {}) for own in boxes] if boxes is not None else [{} for _ in images]
        if len(places) != len(images):
            raise InputError(f"{len(images)} images have boxes for {len(places)}")
        unknown = sorted({name for own in places for name in own} - set(BOXES))
        if unknown:
            raise InputError(f"there is no box {unknown[0]!r}", remedy=f"Give {' and '.join(BOXES)}.")
        crops = {
            own.stream: [
                None if image is None else image if own.stream == CONTEXT else crop(image, place.get(own.stream))
                for image, place in zip(images, places, strict=True)
            ]
            for own in self.inputs
        }
        for i, image in enumerate(images):
            outside = [name for name in places[i] if image is not None and name in crops and crops[name][i] is None]
            if outside:
                raise InputError(
                    f"the {outside[0]} box of sample {i} lies outside of the picture"
                    f"{f' of {image.shape[1]} x {image.shape[0]} pixels' if image is not None else ''}",
                    remedy="Give x1, y1, x2, y2 in its pixels.",
                )
            if all(several[i] is None for several in crops.values()):
                raise InputError(f"this model needs {needs(self.inputs)}, and none was given", path=self.info.folder)
        if self.head.tuned:
            features, there = squares(self.inputs, crops)
        else:
            features, there = looks(self.inputs, self.backbones, crops, batch_size=batch_size)
        mask = masks(tuple(self.head.config.dims), there, len(images))
        return require_finite_rows(self.head.predict(features, mask, batch_size=batch_size), self.info.folder)

    def usable(self, images: Pictures | None, captions: Captions | None) -> np.ndarray:
        """Which samples hold a picture, bool (n,); of a head without context none, since it needs boxes: `answers`."""
        return super().usable(images, captions) & any(own.stream == CONTEXT for own in self.inputs)

    def _predict(self, images: Pictures, captions: Captions, batch_size: int) -> np.ndarray:
        return self.answers(images, batch_size=batch_size)[:, : len(self.vocabulary)]

    @property
    def _reads(self) -> str:
        return needs(self.inputs)
