"""The recipe of a student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from raymotion import storage
from raymotion.models.recipe import PictureDataSettings, Transfer
from raymotion.models.text.recipe import CaptionDataSettings, CaptionRecipe


class StudentDataSettings(CaptionDataSettings, PictureDataSettings):
    """The training data of a student: labelled samples or pseudo-labels.

    Attributes:
        image_dropout: like caption_dropout, for the picture.
        augmentation: of training pictures. none: the whole picture. basic: a random crop, mirrored with probability
            1/2. full: colours vary too.
        smallest_crop: smallest random crop, as a share of the picture's area.
        cache_images: decode every picture once into a file of raw pixels shared by all runs on the same data; for
            small sets and many runs, with `workers: 0`.
        epoch_samples: samples between two validations (and checkpoints); None: all samples.
    """

    image_dropout: float = Field(0.1, ge=0, le=0.5)
    augmentation: Literal["none", "basic", "full"] = "basic"
    smallest_crop: float = Field(0.5, gt=0, le=1)
    cache_images: bool = False
    epoch_samples: int | None = Field(None, ge=1)

    def dropout(self) -> Mapping[str, float]:
        return {"picture": self.image_dropout, **super().dropout()}


class StudentRecipe(CaptionRecipe):
    """A student that reads picture and caption.

    Attributes:
        model: fields of `models.student.config.StudentConfig`.
        image_init: weights file of the image encoder, or `timm` for timm's published weights; None: random.
        text_init: hub id or folder of a BERT. A GRU takes its word embeddings, a BERT encoder all its weights.
        transfer: copies layers from another student.
    """

    places: ClassVar[tuple[str, ...]] = (*CaptionRecipe.places, "transfer.source")
    paths: ClassVar[tuple[str, ...]] = ("text_init", "image_init")

    kind: Literal["student"] = "student"
    data: StudentDataSettings = StudentDataSettings()
    image_init: str | None = None
    text_init: str | None = None
    transfer: Transfer | None = None

    @model_validator(mode="after")
    def _one_start(self) -> StudentRecipe:
        if self.transfer is not None and (self.model or self.image_init or self.text_init):
            raise ValueError("with transfer, shape and weights come from its source: leave model and *_init out")
        return self

    @model_validator(mode="after")
    def _caches_here(self) -> StudentRecipe:
        if self.data.cache_images and self.workers:
            raise ValueError("data.cache_images is for workers: 0; Ray Data decodes for the others")
        return self

    def pretrained_text(self) -> str | None:
        return self.text_init

    def sources(self) -> dict[str, str]:
        return {} if self.transfer is None else {"transfer": self.transfer.source}

    def with_absolute_paths(self) -> StudentRecipe:
        recipe = super().with_absolute_paths()
        if recipe.transfer is None:
            return recipe
        source = storage.absolute(recipe.transfer.source)
        return recipe.model_copy(update={"transfer": recipe.transfer.model_copy(update={"source": source})})
