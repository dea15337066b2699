"""The shape of a student, for recipes and checkpoints. Does not import torch."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from raymotion.config import Settings
from raymotion.models.text.bert import BertShape

# Side of the public student's pictures, in pixels.
USUAL_SIZE = 224


class StudentConfig(Settings):
    """Shape of a student.

    Attributes:
        image: `cnn`, or the name of a timm model.
        image_size: side of the resized pictures, in pixels; None: the default of the timm model, else 224.
        channels: channels of the CNN's convolutions (3x3, stride 2).
        text: `gru`, or `bert`.
        embedding_size, text_size: sizes of the GRU's word embeddings and state.
        bert: shape for `text: bert`; a loaded checkpoint supplies its own.
        hidden_size: size of the layer that joins both encoders.
        image_mean, image_std: of each colour, as shares of 255; filled in from the image encoder.
    """

    image: str = "cnn"
    image_size: int | None = Field(None, ge=16, le=4096)
    channels: tuple[int, ...] = Field((16, 32, 64), min_length=1)
    text: Literal["gru", "bert"] = "gru"
    embedding_size: int = Field(128, ge=1)
    text_size: int = Field(256, ge=1)
    bert: BertShape | None = None
    hidden_size: int = Field(512, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    vocab_size: int = Field(30522, ge=5)
    # The public student padded all captions to 512.
    max_text_length: int = Field(64, ge=2, le=512)
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None

    @field_validator("image")
    @classmethod
    def _names_a_model(cls, value: str) -> str:
        # timm also accepts addresses and folders, which an untrusted checkpoint must not name.
        if not re.fullmatch(r"[A-Za-z0-9_.]+", value):
            raise ValueError(f"{value!r} is not the name of a timm model")
        return value

    @model_validator(mode="after")
    def _positions_suffice(self) -> StudentConfig:
        if self.bert is not None and self.max_text_length > self.bert.max_position_embeddings:
            raise ValueError(
                f"max_text_length {self.max_text_length} is more than the bert's "
                f"{self.bert.max_position_embeddings} positions"
            )
        return self

    @model_validator(mode="after")
    def _only_what_is_used(self) -> StudentConfig:
        given = self.model_fields_set
        for names, used, reason in (
            (("channels",), self.image == "cnn", "image: cnn"),
            (("embedding_size", "text_size"), self.text == "gru", "text: gru"),
            (("bert",), self.text == "bert" or self.bert is None, "text: bert"),
        ):
            unused = [name for name in names if name in given and getattr(self, name) != _default(name)]
            if unused and not used:
                raise ValueError(f"{', '.join(unused)} mean something only with {reason}")
        return self


def _default(name: str) -> Any:
    return StudentConfig.model_fields[name].default
