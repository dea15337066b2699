"""Recipes of models of somebody else's: where they come from, and what their answers mean."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from raymotion.config import Metavar, Settings
from raymotion.models.recipe import MultiLabelRecipe, OptimiserSettings, WholePictureSettings
from raymotion.models.text.prompts import PromptedSource
from raymotion.models.text.recipe import CaptionDataSettings
from raymotion.vocabulary import VOCABULARIES


class CalibrationDataSettings(WholePictureSettings):
    """The labelled samples that a model is calibrated on."""

    image_dropout: float = Field(0.0, ge=0, le=0.5)
    augmentation: Literal["none", "basic", "full"] = "none"


class CalibrationOptimiserSettings(OptimiserSettings):
    """One number for all labels and one for each are learned, which takes large steps and few epochs."""

    lr: float = Field(0.05, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    epochs: int = Field(10, ge=1)


class ZeroShotSource(PromptedSource):
    """A CLIP, SigLIP or similar model of `transformers`, and the words for each emotion."""

    source: Annotated[str, Metavar("MODEL")] = Field(description="Hub id (owner/name), or folder of save_pretrained.")


class ZeroShotRecipe(ZeroShotSource, MultiLabelRecipe):
    """Calibrates a zero-shot model on labelled samples; the towers stay as they are."""

    paths: ClassVar[tuple[str, ...]] = ("source", "vocabulary", "prompts")

    kind: Literal["zero-shot"] = "zero-shot"
    data: CalibrationDataSettings = CalibrationDataSettings()
    optimiser: CalibrationOptimiserSettings = CalibrationOptimiserSettings()


class ClassifierSource(Settings):
    """An image classifier of `transformers`, and the meaning of its classes."""

    source: Annotated[str, Metavar("MODEL")] = Field(description="Hub id (owner/name), or folder of save_pretrained.")
    vocabulary: Annotated[str, Metavar("NAME|FILE")] | None = Field(
        None, description=f"{', '.join(VOCABULARIES)}, or a file of labels. Default: the classes of the model."
    )
    mapping: Annotated[str, Metavar("FILE")] | None = Field(
        None,
        description="YAML of what each class means: from: classes, to: the vocabulary, map: {class: [label], ...}. "
        "Default: classes mean the labels of the same name.",
    )


class ClassifierRecipe(ClassifierSource, MultiLabelRecipe):
    """Calibrates an image classifier on labelled samples; its layers stay as they are."""

    paths: ClassVar[tuple[str, ...]] = ("source", "vocabulary", "mapping")

    kind: Literal["hf-classifier"] = "hf-classifier"
    data: CalibrationDataSettings = CalibrationDataSettings()
    optimiser: CalibrationOptimiserSettings = CalibrationOptimiserSettings()


class TextClassifierSource(ClassifierSource):
    """A text classifier of `transformers` on BERT's word pieces, and the meaning of its classes; it reads captions."""

    longest: int = Field(128, ge=3, le=8192, description="Most word pieces of a caption.")


class TextClassifierRecipe(TextClassifierSource, MultiLabelRecipe):
    """Calibrates a text classifier on labelled captions; its layers stay as they are."""

    paths: ClassVar[tuple[str, ...]] = ("source", "vocabulary", "mapping")

    kind: Literal["hf-text-classifier"] = "hf-text-classifier"
    data: CaptionDataSettings = CaptionDataSettings()
    optimiser: CalibrationOptimiserSettings = CalibrationOptimiserSettings()
