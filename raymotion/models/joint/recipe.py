"""The recipe of a joint space of pictures and captions."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from raymotion.config import Settings
from raymotion.models.recipe import LossSettings
from raymotion.models.text.recipe import CaptionOptimiserSettings, TokenizedRecipe
from raymotion.models.vector.recipe import VectorOptimiserSettings, VectorRecipe


class Correlations(Settings):
    """A start from regularised canonical correlation analysis (CCA) of what both towers say of the training split.

    The heads begin with its directions, each weighed by its correlation, and training goes on from there. On little
    data that is a far better start than random weights. Needs linear heads, and a text tower that has learned.

    Attributes:
        image_penalty, text_penalty: added to the covariances, as multiples of their mean eigenvalue.
        pictures: largest number of training pictures that it is computed from, with all of their captions.
    """

    image_penalty: float = Field(10.0, gt=0)
    text_penalty: float = Field(1.0, gt=0)
    pictures: int = Field(20_000, ge=2)


class JointOptimiserSettings(VectorOptimiserSettings, CaptionOptimiserSettings):
    """Optimiser settings of a joint space.

    Attributes:
        batch_size: pictures in a batch; all others of the batch are negatives of each.
    """

    batch_size: int = Field(256, ge=2)


class JointRecipe(VectorRecipe, TokenizedRecipe):
    """A joint space of pictures and captions.

    Attributes:
        text_init: hub id, folder or `bundled:NAME` of a BERT for `model.text: sentence`, such as a sentence model.
        tuned_text: whether the text tower is trained too, at `optimiser.backbone_lr`.
        start: where the heads begin; None: random weights.
        loss: any of `learning.losses.contrastive`.
        model: fields of `models.joint.config.JointConfig`.
    """

    paths: ClassVar[tuple[str, ...]] = ("weights", "text_init")

    kind: Literal["joint"] = "joint"
    text_init: str | None = None
    tuned_text: bool = False
    start: Correlations | None = None
    loss: LossSettings = LossSettings(name="infonce")
    optimiser: JointOptimiserSettings = JointOptimiserSettings()
    select_by: str | None = "mrr"

    def pretrained_text(self) -> str | None:
        return self.text_init

    @model_validator(mode="after")
    def _learns_pairs(self) -> Self:
        if self.data.soft_targets:
            raise ValueError("data.soft_targets is of labels, and a joint space learns pairs")
        if self.probe is not None:
            raise ValueError("probe fits labels or numbers, and a joint space has none; see `start`")
        return self

    @model_validator(mode="after")
    def _loss_reads(self) -> Self:
        own, name = self.model, self.loss.name
        if own.get("bias") is not None and name != "siglip":
            raise ValueError(f"model.bias is read by the loss siglip, not by {name}")
        if name == "vse++" and (given := [key for key in ("temperature", "learn_temperature") if key in own]):
            raise ValueError(f"model.{given[0]} is not read by the loss vse++, which has a margin")
        if self.workers > 1 and self.optimiser.batch_size // self.workers < 2:
            raise ValueError(
                f"optimiser.batch_size {self.optimiser.batch_size} leaves each of {self.workers} workers a single "
                "sample, of which nothing is a negative: give 2 for each worker at least"
            )
        return self

    @model_validator(mode="after")
    def _towers_fit(self) -> Self:
        lstm = self.model.get("text", "sentence") == "lstm"
        if lstm and (self.text_init or self.tuned_text):
            raise ValueError(
                "text_init and tuned_text are of model.text: sentence; an LSTM is always trained, from random"
            )
        if not lstm and not self.text_init and not self.tuned_text:
            raise ValueError(
                "the text tower would stay random: name a sentence model with text_init (bundled:all-MiniLM-L6-v2), or "
                "set tuned_text"
            )
        if self.model.get("hubs") is not None and (lstm or not self.text_init or self.tuned_text or self.tuned_blocks):
            raise ValueError(
                "model.hubs keeps what the towers say: it needs a sentence model, and towers that are frozen"
            )
        if self.start is not None:
            hidden = self.model.get("image_hidden") or self.model.get("text_hidden")
            if lstm or not self.text_init or hidden:
                raise ValueError("start needs linear heads (no hidden layers) and a sentence model (text_init)")
        return self
