"""Models with all that belongs to them, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raymotion.models.checkpoint import CheckpointInfo
    from raymotion.models.fusion.network import FusionConfig, FusionHead
    from raymotion.models.fusion_tuned.network import TunedStreams
    from raymotion.models.student.network import Student
    from raymotion.models.visualbert.network import VisualBertTeacher


@dataclass(frozen=True)
class Teacher:
    """A model with all that belongs to it."""

    model: VisualBertTeacher
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    info: CheckpointInfo

    @property
    def uses_regions(self) -> bool:
        return "regions" in self.info.modalities

    def usable(self, captions: Sequence[Sequence[str]], region_mask: np.ndarray | None = None) -> np.ndarray:
        """Which samples hold anything that this teacher was trained to read, bool (n,)."""
        from raymotion.models.visualbert import network as visualbert

        own_captions, own_mask = self._own(captions, region_mask)
        return visualbert.usable(own_captions, own_mask)

    def predict(
        self,
        captions: Sequence[Sequence[str]],
        regions: np.ndarray | None = None,
        region_mask: np.ndarray | None = None,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Probabilities (n, L) float32 in vocabulary order; see `visualbert.predict`.

        A modality that the teacher was not trained on is masked: its weights for it are as they were drawn.
        """
        from raymotion.models.visualbert import network as visualbert

        if regions is not None and self.uses_regions and regions.shape[-1] != self.model.config.visual_dim:
            raise InputError(
                f"the teacher reads regions of {self.model.config.visual_dim} numbers, these have {regions.shape[-1]}",
                path=self.info.folder,
                remedy=f"Use the extractor it was trained with: {self.info.extractor}.",
            )
        if region_mask is None and regions is not None:
            region_mask = np.ones(regions.shape[:2], dtype=bool)
        own_captions, own_mask = self._own(captions, region_mask)
        return visualbert.predict(
            self.model,
            self.tokenizer,
            own_captions,
            regions if own_mask is not None else None,
            own_mask,
            batch_size=batch_size,
        )

    def _own(
        self, captions: Sequence[Sequence[str]], region_mask: np.ndarray | None
    ) -> tuple[Sequence[Sequence[str]], np.ndarray | None]:
        return self.known_captions(captions), region_mask if self.uses_regions else None

    def known_captions(self, captions: Sequence[Sequence[str]]) -> list[list[str]]:
        """For each sample those of its captions that say something to this teacher; see `_known_captions`."""
        return _known_captions(self, captions)

    def unknown_share(self, captions: Sequence[Sequence[str]]) -> list[float | None]:
        """For each sample the share of words that this teacher does not know; see `_unknown_share`."""
        return _unknown_share(self, captions)


@dataclass(frozen=True)
class LoadedStudent:
    """A student with all that belongs to it."""

    model: Student
    tokenizer: PreTrainedTokenizerFast
    vocabulary: Vocabulary
    info: CheckpointInfo

    def usable(self, captions: Sequence[Sequence[str]], image_mask: np.ndarray | None = None) -> np.ndarray:
        """Which samples hold anything that this student was trained to read, bool (n,)."""
        from raymotion.models.visualbert import network as visualbert

        own_captions, own_mask = self._own(captions, image_mask)
        return visualbert.usable(own_captions, None if own_mask is None else own_mask[:, None])

    def predict(
        self,
        captions: Sequence[Sequence[str]],
        images: np.ndarray | None = None,
        image_mask: np.ndarray | None = None,
        *,
        batch_size: int = 32,
    ) -> np.ndarray:
        """Probabilities (n, L) float32 in vocabulary order; see `student.predict`.

        A modality that the student was not trained on is masked: its weights for it are as they were drawn.
        """
        from raymotion.models.student import network as student

        if image_mask is None and images is not None:
            image_mask = np.ones(len(images), dtype=bool)
        own_captions, own_mask = self._own(captions, image_mask)
        return student.predict(
            self.model,
            self.tokenizer,
            own_captions,
            images if own_mask is not None else None,
            own_mask,
            batch_size=batch_size,
        )

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """A decoded picture (height, width, 3) uint8 as the student reads it, (S, S, 3) uint8."""
        from raymotion.data.views.pictures import render

        return render(picture, self.model.image_size)

    def _own(
        self, captions: Sequence[Sequence[str]], image_mask: np.ndarray | None
    ) -> tuple[Sequence[Sequence[str]], np.ndarray | None]:
        return self.known_captions(captions), image_mask if "image" in self.info.modalities else None

    def known_captions(self, captions: Sequence[Sequence[str]]) -> list[list[str]]:
        """For each sample those of its captions that say something to this student; see `_known_captions`."""
        return _known_captions(self, captions)

    def unknown_share(self, captions: Sequence[Sequence[str]]) -> list[float | None]:
        """For each sample the share of words that this student does not know; see `_unknown_share`."""
        return _unknown_share(self, captions)


def _known_captions(loaded: Teacher | LoadedStudent, captions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Captions with a word that the model knows: any two without one would get the same answer.

    None at all for a model that was not trained on captions.
    """
    from raymotion.models.text.tokenizer import known_captions

    if "text" not in loaded.info.modalities:
        return [[] for _ in captions]
    return known_captions(loaded.tokenizer, captions, loaded.model.config.max_text_length)


def _unknown_share(loaded: Teacher | LoadedStudent, captions: Sequence[Sequence[str]]) -> list[float | None]:
    """Share of the words in the captions of each sample that the model reads as unknown; None without a word."""
    from raymotion.models.text.tokenizer import unknown_share

    if "text" not in loaded.info.modalities:
        return [None for _ in captions]
    return unknown_share(loaded.tokenizer, captions, loaded.model.config.max_text_length)


@dataclass(frozen=True)
class LoadedFusion:
    """A fusion head with what says how its inputs are made and what its outputs mean; or one with its own backbones."""

    model: FusionHead | TunedStreams
    vocabulary: Vocabulary
    info: CheckpointInfo

    @property
    def tuned(self) -> bool:
        """Whether its backbones were tuned with it: it reads crops, not features."""
        return self.info.architecture == "fusion-tuned"

    @property
    def config(self) -> FusionConfig:
        """The head's shape."""
        from raymotion.models.fusion_tuned.network import TunedStreams

        return self.model.config.fusion if isinstance(self.model, TunedStreams) else self.model.config

    def predict(
        self,
        features: Mapping[str, np.ndarray],
        mask: np.ndarray,
        *,
        batch_size: int | None = None,
        precision: str = "float32",
    ) -> np.ndarray:
        """Probabilities (n, L) float32 in vocabulary order; a head with VAD has three more columns, 0..1.

        Args:
            features: of each stream of `info.modalities`: (n, D), or (n, T, D) where the head reads spatial tokens; of
                a head with its own backbones crops (n, S, S, 3) uint8. A stream that is left out is masked.
            mask: bool (n, S), in the order of the modalities: what the sample has.
            batch_size: None: 16 persons for a head with its own backbones, whose activations are large, else 1024.
            precision: `bfloat16` or `float16` (autocast) for a head with its own backbones, on CUDA alone. A head on
                features computes in float32, as it was validated in.
        """
        import torch

        from raymotion.learning.losses.multilabel import probabilities_of

        probabilities = probabilities_of(self.info.fusion_loss["name"])
        labels = len(self.vocabulary)
        batch_size = batch_size or (16 if self.tuned else 1024)
        parts = [torch.zeros(0, labels + 3 * self.config.vad)]
        device = next(self.model.parameters()).device
        half = self.tuned and device.type == "cuda" and precision != "float32"
        dtype = getattr(torch, precision)
        with torch.no_grad():
            for start in range(0, len(mask), batch_size):
                here = slice(start, start + batch_size)
                own = [
                    torch.from_numpy(features[stream][here]).to(device) if stream in features else None
                    for stream in self.config.dims
                ]
                with torch.autocast(device.type, dtype, enabled=half):
                    output = self.model(own, torch.from_numpy(mask[here]).to(device)).float()
                parts.append(torch.cat([probabilities(output[:, :labels]), output[:, labels:]], dim=1).cpu())
        return torch.cat(parts).numpy()
