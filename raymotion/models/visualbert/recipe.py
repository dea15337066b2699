"""The recipe of a VisualBERT teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from raymotion.models.text.recipe import CaptionDataSettings, CaptionOptimiserSettings, CaptionRecipe


class TeacherDataSettings(CaptionDataSettings):
    """The training data of a teacher.

    Attributes:
        features: folder of region features, or None for captions only.
        region_dropout: like caption_dropout, for the regions.
    """

    features: str | None = None
    region_dropout: float = Field(0.1, ge=0, le=0.5)

    def dropout(self) -> Mapping[str, float]:
        return {"regions": self.region_dropout, **super().dropout()}


class TeacherOptimiserSettings(CaptionOptimiserSettings):
    """Additional optimiser settings of a teacher.

    Attributes:
        layer_decay: ratio of the learning rates of each transformer layer and the one above (Howard and Ruder 2018);
            the embeddings are below the first layer. The top layer has backbone_lr.
        group_by_length: batch captions of similar length to reduce padding: a third faster on a CPU.
    """

    layer_decay: float = Field(1.0, gt=0, le=1)
    group_by_length: bool = False


class TeacherRecipe(CaptionRecipe):
    """A VisualBERT with a multi-label head.

    Attributes:
        init: hub id or folder of a pretrained VisualBERT for the backbone.
        text_init: hub id or folder of a BERT for the text tower. Without either, weights are random.
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
