"""What the recipe of a VisualBERT teacher may say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymotion.models.text.recipe import CaptionDataSettings, CaptionOptimiserSettings, CaptionRecipe


class TeacherDataSettings(CaptionDataSettings):
    """What a teacher trains on.

    Attributes:
        features: folder of region features, or None for captions alone.
        region_dropout: as caption_dropout, for the regions.
    """

    features: str | None = None
    region_dropout: float = Field(0.1, ge=0, le=0.5)

    def dropout(self) -> Mapping[str, float]:
        return {"regions": self.region_dropout, **super().dropout()}


class TeacherOptimiserSettings(CaptionOptimiserSettings):
    """What a teacher's optimiser has besides.

    Attributes:
        layer_decay: each layer of the transformer learns at this multiple of the rate of the one above it (Howard and
            Ruder 2018); the embeddings lie below the first. The top one has backbone_lr.
        group_by_length: captions of like length share a batch, so that less of it is padding: a third faster on a CPU.
    """

    layer_decay: float = Field(1.0, gt=0, le=1)
    group_by_length: bool = False


class TeacherRecipe(CaptionRecipe):
    """A VisualBERT with a multi-label head.

    Attributes:
        init: hub id or folder of a pretrained VisualBERT for the backbone.
        text_init: hub id or folder of a BERT for its text tower; None of the two starts from random weights.
        model: fields of `models.visualbert.config.TeacherConfig`, and `size: tiny | small | base`.
    """

    paths: ClassVar[tuple[str, ...]] = ("init", "text_init")

    kind: Literal["teacher-visualbert"] = "teacher-visualbert"
    data: TeacherDataSettings = TeacherDataSettings()
    optimiser: TeacherOptimiserSettings = TeacherOptimiserSettings()
    init: str | None = None
    text_init: str | None = None
    model: dict[str, Any] = Field(default_factory=lambda: {"size": "small"})

    def pretrained_text(self) -> str | None:
        return self.init or self.text_init
