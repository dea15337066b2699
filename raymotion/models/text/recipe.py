"""What the recipes of models that read captions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import Field

from raymotion import storage
from raymotion.config import Settings, load_settings
from raymotion.errors import InputError
from raymotion.models.inputs.captions import Captions
from raymotion.models.recipe import DataSettings, MultiLabelRecipe, OptimiserSettings

S = TypeVar("S", bound=Settings)


class CaptionDataSettings(DataSettings):
    """What a model that reads captions trains on.

    Attributes:
        labels: folder of `raymotion label`, in place of `samples`. With `soft_targets` the teacher's probabilities are
            learned, else the labels that its policy chose.
        val_fraction: share of the pseudo-labelled images that validate how well student and teacher agree.
        caption_dropout: how often a training sample that has a picture too is shown without its caption, so that the
            model knows what to do where it is missing.
    """

    labels: str | None = None
    val_fraction: float = Field(0.05, gt=0, lt=1)
    caption_dropout: float = Field(0.1, ge=0, le=0.5)

    def dropout(self) -> Mapping[str, float]:
        return {"captions": self.caption_dropout}


class TokenizerSettings(Settings):
    """`source`: hub id, file or folder, or `train`: learned from the training captions, `size` pieces at most."""

    source: str = "train"
    size: int = Field(4000, ge=100)


class CaptionOptimiserSettings(OptimiserSettings):
    """What the optimiser of a model that reads captions has besides.

    Attributes:
        word_dropout: share of the caption's word pieces hidden behind [UNK] in training.
    """

    word_dropout: float = Field(0.0, ge=0, lt=1)


class CaptionRecipe(MultiLabelRecipe):
    """What models that read captions share."""

    data: CaptionDataSettings = CaptionDataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    optimiser: CaptionOptimiserSettings = CaptionOptimiserSettings()

    def pretrained_text(self) -> str | None:
        """Hub id or folder of the text model that training starts from: its tokenizer is the one to use."""
        return None

    def tokenizer_source(self) -> str:
        """Where the tokenizer comes from.

        Raises:
            InputError: it would be trained here, and training starts from a pretrained model.
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
        """The input, of captions of at most `max_length` word pieces."""
        return Captions(max_length, source=self.tokenizer_source(), size=self.tokenizer.size)

    def require_data(self, path: str) -> None:
        if bool(self.data.samples) == bool(self.data.labels):
            raise InputError(
                "names both samples and labels" if self.data.samples else "names no data",
                path=path,
                remedy="Give either --samples samples.parquet or --labels FOLDER (of `raymotion label`).",
            )


def shape_of(config: type[S], recipe: CaptionRecipe, **sizes: object) -> S:
    """The recipe's `model` as the config of its network, with sizes that come from the data.

    Raises:
        InputError: it names the setting, `model.` before it.
    """
    try:
        return load_settings(config, options={**recipe.model, **sizes})
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error
