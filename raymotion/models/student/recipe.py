"""The recipe of a student."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from raymotion import storage
from raymotion.models.recipe import Transfer, WholePictureSettings
from raymotion.models.text.recipe import CaptionDataSettings, CaptionRecipe


class StudentDataSettings(CaptionDataSettings, WholePictureSettings):
    """The training data of a student: labelled samples or pseudo-labels."""


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
