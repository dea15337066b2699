"""The recipes of models that read one vector of each picture."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raymotion import storage
from raymotion.config import Settings
from raymotion.data.samples import DIMENSIONS
from raymotion.models.recipe import (
    LossSettings,
    OptimiserSettings,
    PictureDataSettings,
    SingleLabelRecipe,
    TrainRecipe,
)


class VectorDataSettings(PictureDataSettings):
    """The training data of a model that reads one vector of each picture.

    Attributes:
        embeddings: folders made by `raymotion features embeddings --context BACKBONE` from these samples; none: the
            backbone reads the pictures, in every epoch anew.
    """

    embeddings: list[str] = Field(default_factory=list)


class VectorOptimiserSettings(OptimiserSettings):
    """Optimiser settings for a small network on vectors."""

    backbone_lr: float = Field(1e-5, gt=0)
    epochs: int = Field(60, ge=1)
    patience: int = Field(10, ge=1)


class VectorRecipe(TrainRecipe):
    """Settings of the models that read one vector of each picture.

    Attributes:
        backbone: timm name or alias of the backbone that makes the vector, in `data.embeddings` or in the model.
        weights: its weights: `default` (timm's), `bundled:NAME`, `random:SEED`, a file, an address or a hub id.
        size: side of its pictures in pixels; None: as it was trained.
        pooled_stages: the vector is of the maps after so many last stages; 0: the backbone's own.
        tuned_blocks: last blocks of the backbone that are trained too, at `optimiser.backbone_lr`; reads pictures.
        model: fields of `models.vector.config.VectorConfig`.
        augmentation: of training pictures, with another view in each epoch; of cached features, one of their views.
        statistics_samples: largest number of training pictures that the vectors' mean and deviation are taken from.
    """

    places: ClassVar[tuple[str, ...]] = TrainRecipe.places
    paths: ClassVar[tuple[str, ...]] = ("weights",)

    data: VectorDataSettings = VectorDataSettings()
    backbone: str = "tf_efficientnet_lite2"
    weights: str = "default"
    size: int | None = Field(None, ge=1)
    pooled_stages: int = Field(0, ge=0)
    tuned_blocks: int = Field(0, ge=0)
    augmentation: Literal["none", "basic", "full"] = "none"
    statistics_samples: int = Field(4096, ge=2)
    optimiser: VectorOptimiserSettings = VectorOptimiserSettings()

    @model_validator(mode="after")
    def _tunes_pictures(self) -> VectorRecipe:
        if self.tuned_blocks and self.data.embeddings:
            raise ValueError("tuned_blocks trains the backbone on pictures: leave data.embeddings out")
        return self


class MlpRecipe(VectorRecipe, SingleLabelRecipe):
    """A classifier of one label on a picture's vector."""

    kind: Literal["mlp"] = "mlp"


class Balance(Settings):
    """Copies of training rows of rare values, each with another augmented view where the embeddings have any.

    Attributes:
        bins: bins of equal width over the scale. Each bin that has a row is filled up to the largest.
        growth: largest number of copies of a row.
    """

    bins: int = Field(10, ge=2)
    growth: int = Field(4, ge=1)


class RegressorRecipe(VectorRecipe):
    """A regressor of ratings on a picture's vector.

    Attributes:
        dimensions: columns to predict, on the table's scale.
        loss: any of `learning.losses.dimensions`.
        numbers: what the network predicts. standardised: the ratings less their mean in training, divided by their
            standard deviation there. raw: the ratings themselves, from a bias of 0 on, as in the public study.
        balance: fill up rare values of the first dimension; None: train on the rows as they are.
    """

    kind: Literal["regressor"] = "regressor"
    dimensions: tuple[str, ...] = ("valence",)
    loss: LossSettings = LossSettings(name="mse")
    numbers: Literal["standardised", "raw"] = "standardised"
    balance: Balance | None = None
    select_by: str | None = "r2"

    @field_validator("dimensions", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("dimensions")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in DIMENSIONS]
        if unknown or not value or len(set(value)) < len(value):
            raise ValueError(f"dimensions are one or more of {', '.join(DIMENSIONS)}")
        return value

    @model_validator(mode="after")
    def _learns_numbers(self) -> RegressorRecipe:
        if self.data.soft_targets:
            raise ValueError("data.soft_targets is of labels, and a regressor learns numbers")
        return self

    @model_validator(mode="after")
    def _balances_vectors(self) -> RegressorRecipe:
        if self.balance is not None and not self.data.embeddings:
            raise ValueError("balance copies cached features: make them, and name them with data.embeddings")
        return self


class BandSettings(Settings):
    """The intervals of ratings that a model tells apart.

    Attributes:
        edges: where one band ends and the next begins, ascending.
        labels: one more than edges.
        scale: lowest and highest rating of the scale that the edges are on; a table of another is refused.
    """

    edges: tuple[float, ...]
    scale: tuple[float, float] | None = None
    labels: tuple[str, ...] = ("negative", "neutral", "positive")


class TwoInputRecipe(VectorRecipe, SingleLabelRecipe):
    """A classifier of bands on a picture's vector and a predicted rating.

    Attributes:
        bands: intervals of the rating.
        dimension: the rating.
        first: checkpoint of the regressor that predicts it, from `raymotion crossfit`, on the same vectors. It becomes
            a part of the model, which needs no predicted rating then. None: the classifier reads the picture alone.
    """

    places: ClassVar[tuple[str, ...]] = (*VectorRecipe.places, "first")
    paths: ClassVar[tuple[str, ...]] = ("weights", "first")

    kind: Literal["two-input"] = "two-input"
    dimension: Literal["valence", "arousal", "dominance"] = "valence"
    bands: BandSettings = BandSettings(edges=(3.5, 4.5), scale=(1.0, 7.0))
    first: str | None = None
    select_by: str | None = "macro_f1"

    @model_validator(mode="after")
    def _learns_bands(self) -> TwoInputRecipe:
        if self.data.soft_targets or self.vote_weights:
            raise ValueError("data.soft_targets and vote_weights are of labels, and bands are of a number")
        return self

    def sources(self) -> dict[str, str]:
        return {} if self.first is None else {"first": self.first}

    def with_absolute_paths(self) -> TwoInputRecipe:
        recipe = super().with_absolute_paths()
        return recipe if self.first is None else recipe.model_copy(update={"first": storage.absolute(self.first)})
