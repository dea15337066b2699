"""The shape of a VisualBERT teacher, for recipes and checkpoints. Does not import torch."""

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
    """Shape of a teacher. `size: tiny | small | base` gives the defaults of the transformer's four sizes."""

    hidden_size: int = Field(128, ge=1)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    intermediate_size: int = Field(256, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    vocab_size: int = Field(30522, ge=5)
    # Published: 32. One Socratis caption in ten has more than 30 words.
    max_text_length: int = Field(64, ge=2, le=512)
    visual_dim: int = Field(2048, ge=1)
    # LayerNorm for detectors of other scales. The published model reads raw Visual Genome features.
    normalize_regions: bool = False
    freeze_backbone: bool = False
    # Freezes the word embeddings and this many of the lowest layers, which forgets less and is faster.
    # 0: only the embeddings; None: nothing.
    frozen_layers: int | None = Field(None, ge=0)
    # cls: the pooled [CLS], as published. mean-output: the mean of the last hidden states, as sentence-transformers
    # models were trained. mean: the mean of the input embeddings instead of the transformer's output, a bag of words
    # and regions. cls+mean: the sum of cls and mean. docs/teacher.md compares them.
    pooling: Literal["cls", "mean-output", "mean", "cls+mean"] = "cls"
    # mean-output: number of last layers whose means over words and regions are concatenated.
    pooled_layers: int = Field(1, ge=1)
    # mean-output: scales the mean of each layer to length 1. Layers differ in scale, and a loud one would outvote the
    # others in a penalised last layer (`probe`).
    normalize_pooled: bool = False
    # Initialises the projection of regions anew, e.g. for another size than the pretrained model's; it is then trained
    # even if the backbone is frozen.
    new_projection: bool = False
    # Filled in from a pretrained transformer.
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
        if self.normalize_pooled and self.pooling != "mean-output":
            raise ValueError(f"normalize_pooled means something only with pooling: mean-output, not {self.pooling}")
        if self.max_text_length > self.max_positions:
            raise ValueError(f"max_text_length {self.max_text_length} is more than max_positions {self.max_positions}")
        return self

    def transformer(self) -> VisualBertConfig:
        """Returns the equivalent configuration of transformers."""
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
