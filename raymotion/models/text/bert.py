"""The shape and the weights of a BERT as an encoder of captions. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError, model_validator

from raymotion.config import Settings, message_of
from raymotion.errors import InputError
from raymotion.models.text.tower import POOLER, read_text_tower

if TYPE_CHECKING:
    from torch import Tensor


class BertShape(Settings):
    """The fields of transformers' `BertConfig` that define the network. Others are excluded: some name code to load."""

    hidden_size: int = Field(768, ge=1)
    num_hidden_layers: int = Field(12, ge=1)
    num_attention_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    hidden_act: Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish", "tanh"] = "gelu"
    max_position_embeddings: int = Field(512, ge=2)
    type_vocab_size: int = Field(2, ge=1)
    layer_norm_eps: float = Field(1e-12, gt=0)
    hidden_dropout_prob: float = Field(0.1, ge=0, lt=1)
    attention_probs_dropout_prob: float = Field(0.1, ge=0, lt=1)
    pad_token_id: int | None = 0

    @model_validator(mode="after")
    def _heads_divide(self) -> BertShape:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        return self


def read_bert(source: str, vocab_size: int) -> tuple[BertShape, dict[str, Tensor]]:
    """Returns the shape and the weights of a BERT, without its pooler, from a hub id or a folder.

    Raises:
        InputError: there is none, it has another vocabulary, or its shape is not known here.
    """
    tower = read_text_tower(source)
    if tower.config.vocab_size != vocab_size:
        raise InputError(
            f"was trained with {tower.config.vocab_size} word pieces, the tokenizer has {vocab_size}",
            path=source,
            remedy="Use the tokenizer that belongs to it: --set tokenizer.source=...",
        )
    shape = tower.config.to_dict()
    # Hidden states are averaged, so the pooler is not needed.
    weights = {name: value for name, value in tower.weights.items() if not name.startswith(POOLER)}
    known = {name: shape[name] for name in BertShape.model_fields if shape.get(name) is not None}
    try:
        return BertShape.model_validate(known), weights
    except ValidationError as error:
        raise InputError(
            f"has a shape that is not known here ({message_of(error.errors()[0])})", path=source
        ) from error
