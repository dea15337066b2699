"""The recipe of a fusion head."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from raymotion.config import Settings
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.learning.resample import ResamplingSettings
from raymotion.models.recipe import DataSettings, LossSettings, MultiLabelRecipe, OptimiserSettings


class FusionDataSettings(DataSettings):
    """The training data of a fusion head.

    Attributes:
        embeddings: folders made by `raymotion features embeddings` from these samples.
    """

    embeddings: list[str] = Field(default_factory=list)


class Backbones(Settings):
    """The backbone of each stream, by its name in `features embeddings`; None: the head does not use the stream."""

    context: str | None = None
    body: str | None = None
    face: str | None = None

    @field_validator("context", "body", "face", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Any) -> Any:
        """Converts an empty value, as in `--set backbones.face=`, to None."""
        return value or None

    def chosen(self) -> dict[str, str]:
        """Returns stream -> backbone, in the order of the streams."""
        return {stream: name for stream in STREAMS if (name := getattr(self, stream)) is not None}


class FusionOptimiserSettings(OptimiserSettings):
    """The public study's 20 epochs, in larger batches."""

    kind: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = Field(5e-4, ge=0)
    batch_size: int = Field(256, ge=1)
    epochs: int = Field(20, ge=1)


class HeadOptimiserSettings(FusionOptimiserSettings):
    """Optimiser settings for a head on frozen backbones, which have no learning rate."""

    @field_validator("backbone_lr")
    @classmethod
    def _has_no_use(cls, value: float) -> float:
        """Rejects `backbone_lr`; otherwise a search over it would repeat identical runs."""
        if value != OptimiserSettings.model_fields["backbone_lr"].default:
            raise ValueError("the backbones are frozen and learn nothing, set optimiser.lr")
        return value


class StreamRecipe(MultiLabelRecipe):
    """Base of the recipes that learn from cached features of a person's streams.

    Attributes:
        backbones: backbones of the features.
        augmentation: level of the cached training views, one of which is drawn in each epoch.
        vad_weight: weight of the loss of valence, arousal and dominance, with `model.vad`.
    """

    data: FusionDataSettings = FusionDataSettings()
    backbones: Backbones = Backbones()
    augmentation: Literal["none", "basic", "full"] = "none"
    optimiser: HeadOptimiserSettings = HeadOptimiserSettings()
    select_by: str | None = "macro_ap"
    vad_weight: float = Field(0.5, ge=0)

    def require_data(self, path: str) -> None:
        super().require_data(path)
        if not self.data.embeddings:
            raise InputError(
                "names no embeddings",
                path=path,
                remedy="Give them: --embeddings DIR (see `raymotion features embeddings`).",
            )
        if not self.backbones.chosen():
            raise InputError("names no backbone", path=path, remedy="Set backbones.context, .body or .face.")


class FusionRecipe(StreamRecipe):
    """A fusion head on cached features of the three streams, after the public EMOTIC study.

    Attributes:
        model: fields of `models.fusion.config.FusionConfig`; sizes and tokens are filled in from the features.
        resampling: synthetic training persons for rare emotions, made once from clean features.
    """

    kind: Literal["fusion"] = "fusion"
    loss: LossSettings = LossSettings(name="discrete")
    resampling: ResamplingSettings = ResamplingSettings()
