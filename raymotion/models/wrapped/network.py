"""Networks around models of `transformers`. Only the calibration learns.

As it comes, a model says its own probabilities. After calibration on labelled samples, the logit of label l is
`temperature (s_l - center_l) / spread + bias_l`, where s are the model's scores, and center and spread their mean and
standard deviation over training pictures: temperature 0 says the class prior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from raymotion.config import Settings
from raymotion.errors import InputError

# Probabilities of 0 and 1 have no logit.
CLOSEST = 1e-6


class WrappedConfig(Settings):
    """The shape of a wrapped model.

    Attributes:
        source: contents of the config.json of `transformers`; its `model_type` names the class.
        named: where the model came from, for the card.
        calibrated: whether its answers were calibrated.
    """

    source: dict[str, Any]
    named: str
    calibrated: bool = False

    @field_validator("source")
    @classmethod
    def _of_a_known_class(cls, value: dict[str, Any]) -> dict[str, Any]:
        from transformers import CONFIG_MAPPING

        if value.get("model_type") not in CONFIG_MAPPING:
            raise InputError(f"source.model_type {value.get('model_type')!r} is none of transformers'")
        return value


class PictureConfig(WrappedConfig):
    """The shape of a model of pictures.

    Attributes:
        size: side of the square of pixels that it reads.
        mean, std: of its pixels, as shares of 255, by channel.
    """

    size: int = Field(ge=1, le=4096)
    mean: list[float] = Field(min_length=3, max_length=3)
    std: list[float] = Field(min_length=3, max_length=3)


class ZeroShotConfig(PictureConfig):
    """The shape of a zero-shot model. `prompts`: the texts of each label, in the order of the vocabulary."""

    prompts: list[list[str]]


class Meaning(Settings):
    """What the classes of a classifier mean.

    Attributes:
        activation: how its scores become the probabilities of its classes.
        classes: their names.
        meaning: for each label, the positions of the classes that mean it; none is empty.
    """

    activation: str = Field(pattern="^(softmax|sigmoid)$")
    classes: list[str]
    meaning: list[list[int]]

    @field_validator("meaning")
    @classmethod
    def _in_range(cls, value: list[list[int]], info: Any) -> list[list[int]]:
        count = len(info.data.get("classes", ()))
        if any(not own or not all(0 <= i < count for i in own) for own in value):
            raise InputError(f"meaning names classes that are not there ({count} classes)")
        return value


class ClassifierConfig(PictureConfig, Meaning):
    """The shape of a classifier of pictures."""


class TextClassifierConfig(WrappedConfig, Meaning):
    """The shape of a classifier of captions. `longest`: most word pieces of a caption."""

    longest: int = Field(ge=3, le=8192)


class Wrapped(nn.Module):
    """A frozen model and its calibration. Subclasses define `raw_scores`, `logits_of` and `forward`.

    Args:
        config: its shape.
        inner: the model of `transformers`.
        labels: number of emotions L.
    """

    def __init__(self, config: WrappedConfig, inner: nn.Module, labels: int) -> None:
        super().__init__()
        self.config = config
        self.inner = inner.requires_grad_(False)
        self.temperature = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.register_buffer("center", torch.zeros(labels))
        self.register_buffer("spread", torch.ones(1))
        self.inner.eval()

    def train(self, mode: bool = True) -> Wrapped:
        """Keeps the frozen model in evaluation mode: dropout would only add noise to its scores."""
        super().train(mode)
        self.inner.eval()
        return self

    def logits_of(self, scores: Tensor) -> Tensor:
        """Returns logits (n, L) of the model's own probabilities."""
        return scores

    def calibrate(self, scores: Tensor, start: Tensor | None) -> None:
        """Begins a calibration: the spread of scores (n, L) of training pictures, and the numbers of the prior (L,)."""
        self.config = self.config.model_copy(update={"calibrated": True})
        with torch.no_grad():
            center = scores.mean(dim=0)
            self.get_buffer("center").copy_(center)
            self.get_buffer("spread").fill_(max(float((scores - center).square().mean().sqrt()), CLOSEST))
            if start is not None:
                self.bias.copy_(start)

    def answer(self, scores: Tensor, present: Tensor | None = None) -> Tensor:
        """Returns logits (n, L) for scores (n, L); after calibration a row that is not present gets the bias alone."""
        if not self.config.calibrated:
            return self.logits_of(scores)
        standard = (scores - self.get_buffer("center")) / self.get_buffer("spread")
        if present is not None:
            standard = standard * present[:, None]
        return self.bias + self.temperature * standard


class WrappedPictures(Wrapped, ABC):
    """A model of pictures."""

    def __init__(self, config: PictureConfig, inner: nn.Module, labels: int) -> None:
        super().__init__(config, inner, labels)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @abstractmethod
    def scores(self, pixels: Tensor) -> Tensor:
        """Returns the scores of the labels (n, L) for normalised pixels (n, 3, size, size)."""

    def raw_scores(self, images: Tensor) -> Tensor:
        """Returns the scores (n, L) of images (n, size, size, 3) uint8."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            return self.scores((pixels - self.get_buffer("mean")) / self.get_buffer("std")).float()

    def forward(self, images: Tensor, image_mask: Tensor) -> Tensor:
        """Returns logits (n, L)."""
        return self.answer(self.raw_scores(images), image_mask)


class ZeroShot(WrappedPictures):
    """The cosine between a picture's embedding and that of each emotion's texts."""

    def __init__(self, config: ZeroShotConfig, inner: nn.Module, labels: int, width: int) -> None:
        super().__init__(config, inner, labels)
        self.register_buffer("texts", torch.zeros(labels, width))

    def scores(self, pixels: Tensor) -> Tensor:
        inner = cast(Any, self.inner)
        return nn.functional.normalize(features_of(inner.get_image_features(pixel_values=pixels)), dim=-1) @ (
            self.get_buffer("texts").T
        )

    def logits_of(self, scores: Tensor) -> Tensor:
        """As the model was trained: a softmax over the emotions for CLIP, a sigmoid of each for SigLIP."""
        inner = cast(Any, self.inner)
        scaled = inner.logit_scale.exp() * scores
        bias = getattr(inner, "logit_bias", None)
        return scaled + bias if bias is not None else logit(scaled.softmax(dim=-1))


class Classifier(WrappedPictures):
    """The probabilities of a classifier's classes, gathered by label."""

    def scores(self, pixels: Tensor) -> Tensor:
        found = cast(Any, self.inner)(pixel_values=pixels).logits.float()
        return logit(gathered(found, cast(ClassifierConfig, self.config)))


class TextClassifier(Wrapped):
    """The probabilities of a classifier of texts, gathered by label and averaged over the captions of a sample."""

    def raw_scores(self, input_ids: Tensor, attention_mask: Tensor, owners: Tensor | None = None) -> Tensor:
        """Returns the scores (n, L) of captions (captions, T); `owners` are their samples, None for one of each."""
        with torch.no_grad():
            found = cast(Any, self.inner)(input_ids=input_ids, attention_mask=attention_mask).logits.float()
            shares = gathered(found, cast(TextClassifierConfig, self.config))
            if owners is not None:
                count = torch.bincount(owners)
                shares = shares.new_zeros(len(count), shares.shape[1]).index_add_(0, owners, shares) / count[:, None]
            return logit(shares)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, owners: Tensor | None = None) -> Tensor:
        """Returns logits (n, L)."""
        return self.answer(self.raw_scores(input_ids, attention_mask, owners))


def gathered(found: Tensor, meaning: Meaning) -> Tensor:
    """Returns the probabilities (n, L) of labels from the numbers (n, C) of classes."""
    if meaning.activation == "sigmoid":
        shares = [found.sigmoid()[:, own].amax(dim=1) for own in meaning.meaning]
    else:  # of classes that exclude each other
        shares = [found.softmax(dim=-1)[:, own].sum(dim=1) for own in meaning.meaning]
    return torch.stack(shares, dim=1)


def logit(probabilities: Tensor) -> Tensor:
    """Returns the logits of probabilities, finite for 0 and 1 too."""
    return probabilities.clamp(CLOSEST, 1 - CLOSEST).logit()


def features_of(found: Any) -> Tensor:
    """Returns the embeddings (n, D) in a result of `get_image_features` or `get_text_features`."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features.float()
