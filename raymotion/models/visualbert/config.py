"""The shape of a VisualBERT teacher: what a recipe and a checkpoint say of it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from raymotion.config import Settings

if TYPE_CHECKING:
    from transformers import VisualBertConfig

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "layers": 1, "heads": 2, "intermediate_size": 128},
    "small": {"hidden_size": 128, "layers": 2, "heads": 4, "intermediate_size": 256},
    "base": {"hidden_size": 768, "layers": 12, "heads": 12, "intermediate_size": 3072},
}


class TeacherConfig(Settings):
    """Shape of a teacher. `size: tiny | small | base` fills the four numbers of the transformer that are not given."""

    hidden_size: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    intermediate_size: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    vocab_size: int = Field(30522, ge=5)
    # Published: 32. One Socratis caption in ten has more than 30 words.
    max_text_length: int = Field(64, ge=2, le=512)
    visual_dim: int = Field(2048, ge=1)
    # The published model takes Visual Genome features as they are. Detectors differ in scale: LayerNorm takes that out.
    normalize_regions: bool = False
    freeze_backbone: bool = False
    # The word embeddings and this many of the lowest layers stay as they were loaded: less to forget, and faster.
    # 0: the embeddings alone; None: nothing does.
    frozen_layers: int | None = Field(None, ge=0)
    # cls: the published pooled [CLS]. mean-output: the mean of the last hidden states, for which sentence-transformers
    # models were trained. mean: the mean of the input embeddings, in place of the transformer's output, a bag of words
    # and regions. cls+mean: the first and the last, summed before the head. docs/teacher.md says what each is worth.
    pooling: Literal["cls", "mean-output", "mean", "cls+mean"] = "cls"
    # mean-output: how many of the last layers are averaged over words and regions, each by itself, side by side.
    pooled_layers: int = Field(1, ge=1)
    # Regions of another size than a pretrained model's start their projection anew: that learns, frozen or not.
    new_projection: bool = False
    # Of the transformer; filled in from a pretrained one.
    max_positions: int = Field(512, ge=2)
    layer_norm_eps: float = Field(1e-12, gt=0)
    activation: str = "gelu"

    @model_validator(mode="before")
    @classmethod
    def _fill_size(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "size" not in value:
            return value
        rest = {key: item for key, item in value.items() if key != "size"}
        if value["size"] not in SIZES:
            raise ValueError(f"size {value['size']!r} is not one of {', '.join(SIZES)}")
        return {**SIZES[value["size"]], **rest}

    @model_validator(mode="after")
    def _fits_together(self) -> TeacherConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.pooled_layers > 1 and self.pooling != "mean-output":
            raise ValueError(f"pooled_layers means something only with pooling: mean-output, not {self.pooling}")
        if self.max_text_length > self.max_positions:
            raise ValueError(f"max_text_length {self.max_text_length} is more than max_positions {self.max_positions}")
        return self

    def transformer(self) -> VisualBertConfig:
        """The same as transformers' configuration."""
        from transformers import VisualBertConfig

        return VisualBertConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            visual_embedding_dim=self.visual_dim,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.intermediate_size,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            max_position_embeddings=self.max_positions,
            layer_norm_eps=self.layer_norm_eps,
            hidden_act=self.activation,
            pad_token_id=0,
        )
