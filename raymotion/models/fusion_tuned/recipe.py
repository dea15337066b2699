"""The recipe of a fusion model that is trained end to end."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.models.fusion.recipe import Backbones, FusionOptimiserSettings
from raymotion.models.recipe import LossSettings, MultiLabelRecipe, PictureDataSettings


class StreamWeights(Settings):
    """The weights of each stream's backbone: `default` (timm's), `random:SEED`, a file, an address or a hub id."""

    context: str = "default"
    body: str = "default"
    face: str = "default"


class StreamSizes(Settings):
    """The side of each backbone's input in pixels; None: as it was trained."""

    context: int | None = Field(None, ge=1)
    body: int | None = Field(None, ge=1)
    face: int | None = Field(None, ge=1)


class TunedOptimiserSettings(FusionOptimiserSettings):
    """Small batches that fit on a GPU: 26 scored better than 52 (the "TA" system's issues)."""

    backbone_lr: float = Field(1e-5, gt=0)
    batch_size: int = Field(26, ge=1)


class FusionTunedRecipe(MultiLabelRecipe):
    """Backbones and fusion head trained end to end on pictures.

    Attributes:
        backbones: backbone of each stream, by timm name or alias.
        weights, sizes: weights and input size of each stream's backbone.
        tuned_blocks: number of last blocks to train in each backbone, at `optimiser.backbone_lr`; 0: none.
        tokens: side of the grid of spatial tokens that the head reads instead of pooled features; 0: none.
        init: checkpoint of a fusion head on cached features of the same backbones to start from; None: a new head.
        model: fields of `models.fusion.config.FusionConfig`. With `init` the shape comes from there, except dropout.
        augmentation: level for training persons, with another view in each epoch.
        statistics_samples: number of training persons for the statistics that standardise a new head's inputs; 0: no
            standardisation.
        gradient_checkpointing: recompute the backbones' activations in the backward pass; slower, less memory.
        vad_weight: weight of the loss of valence, arousal and dominance, with `model.vad`.
    """

    paths: ClassVar[tuple[str, ...]] = ("init", "weights")

    kind: Literal["fusion-tuned"] = "fusion-tuned"
    data: PictureDataSettings = PictureDataSettings()
    backbones: Backbones = Backbones()
    weights: StreamWeights = StreamWeights()
    sizes: StreamSizes = StreamSizes()
    tuned_blocks: int = Field(1, ge=0)
    tokens: int = Field(0, ge=0)
    init: str | None = None
    loss: LossSettings = LossSettings(name="discrete")
    augmentation: Literal["none", "basic", "full"] = "basic"
    statistics_samples: int = Field(512, ge=0)
    gradient_checkpointing: bool = False
    optimiser: TunedOptimiserSettings = TunedOptimiserSettings()
    select_by: str | None = "macro_ap"
    vad_weight: float = Field(0.5, ge=0)

    def require_data(self, path: str) -> None:
        super().require_data(path)
        if not self.backbones.chosen():
            raise InputError("names no backbone", path=path, remedy="Set backbones.context, .body or .face.")

    def result_settings(self) -> dict[str, Any]:
        settings = super().result_settings()
        del settings["gradient_checkpointing"]
        return settings

    def sources(self) -> dict[str, str]:
        return {} if self.init is None else {"init": self.init}
