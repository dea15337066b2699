"""Settings shared by the recipes of models that read captions."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from raymotion import storage
from raymotion.config import Settings
from raymotion.errors import InputError
from raymotion.models.inputs.captions import Captions
from raymotion.models.recipe import DataSettings, MultiLabelRecipe, OptimiserSettings, TrainRecipe


class CaptionDataSettings(DataSettings):
    """The training data of a model that reads captions.

    Attributes:
        labels: folder of `raymotion label`, instead of `samples`. With `soft_targets` the model learns the teacher's
            probabilities, else the labels chosen by the policy.
        val_fraction: share of the pseudo-labelled images for validation of the agreement with the teacher.
        caption_dropout: probability of withholding the caption of a training sample that also has a picture, so that
            the model learns to do without it.
    """

    labels: str | None = None
    val_fraction: float = Field(0.05, gt=0, lt=1)
    caption_dropout: float = Field(0.1, ge=0, le=0.5)

    def dropout(self) -> Mapping[str, float]:
        return {**super().dropout(), "captions": self.caption_dropout}


class TokenizerSettings(Settings):
    """`source`: hub id, file or folder, or `train` to learn at most `size` pieces from the training captions."""

    source: str = "train"
    size: int = Field(4000, ge=100)


class CaptionOptimiserSettings(OptimiserSettings):
    """Additional optimiser settings of a model that reads captions.

    Attributes:
        word_dropout: share of the caption's word pieces replaced by [UNK] in training.
    """

    word_dropout: float = Field(0.0, ge=0, lt=1)


class TokenizedRecipe(TrainRecipe):
    """Base of all recipes with captions as word pieces."""

    tokenizer: TokenizerSettings = TokenizerSettings()

    def pretrained_text(self) -> str | None:
        """Returns hub id or folder of the initial text model, whose tokenizer must be used; None without one."""
        return None

    def tokenizer_source(self) -> str:
        """Returns the source of the tokenizer.

        Raises:
            InputError: a new tokenizer is requested for a pretrained model.
        """
        pretrained = self.pretrained_text()
        if self.tokenizer.source != "train" or pretrained is None:
            return self.tokenizer.source
        if storage.is_dir(pretrained) and {"tokenizer.json", "vocab.txt"} & set(storage.list_names(pretrained)):
            return pretrained
        raise InputError(
            "a tokenizer trained here does not fit a pretrained model",
            remedy="Set tokenizer.source to the one that belongs to it, such as google-bert/bert-base-uncased.",
        )

    def captions(self, max_length: int) -> Captions:
        """Returns the input for captions of at most `max_length` word pieces."""
        return Captions(max_length, source=self.tokenizer_source(), size=self.tokenizer.size)


class CaptionRecipe(TokenizedRecipe, MultiLabelRecipe):
    """Base recipe of models that predict emotions from captions."""

    data: CaptionDataSettings = CaptionDataSettings()
    optimiser: CaptionOptimiserSettings = CaptionOptimiserSettings()

    def require_data(self, path: str) -> None:
        if bool(self.data.samples) == bool(self.data.labels):
            raise InputError(
                "names both samples and labels" if self.data.samples else "names no data",
                path=path,
                remedy="Give either --samples samples.parquet or --labels FOLDER (of `raymotion label`).",
            )
