"""Encoders of captions, which map word pieces to one vector.

`width` is the size of the vector; `levels` returns the names of the weights by layer, from the input on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.text.bert import BertShape


class GruEncoder(nn.Module):
    """Word embeddings and a GRU; returns its state after the last piece of the caption."""

    def __init__(self, vocab_size: int, embedding_size: int, text_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.gru = nn.GRU(embedding_size, text_size, batch_first=True)
        self.width = text_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.gru(_packed(self.embedding(input_ids), attention_mask))[1][-1]

    def levels(self) -> list[list[str]]:
        return [["embedding.weight"], [f"gru.{name}" for name in self.gru.state_dict()]]


class LstmEncoder(nn.Module):
    """Word embeddings and an LSTM; returns its state after the last piece of the caption, never after padding."""

    def __init__(self, vocab_size: int, embedding_size: int, text_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_size)
        self.lstm = nn.LSTM(embedding_size, text_size, batch_first=True)
        self.width = text_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.lstm(_packed(self.embedding(input_ids), attention_mask))[1][0][-1]


class BertEncoder(nn.Module):
    """A BERT; returns the mean of its hidden states over the pieces of the caption.

    Args:
        layers: after which of its layers, from 1 on, 0 for the embeddings: the means are put side by side. None: the
            last.
    """

    def __init__(self, vocab_size: int, config: BertShape, *, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        shape = BertConfig(**config.model_dump(), vocab_size=vocab_size)
        self.model = BertModel(shape, add_pooling_layer=False)
        self.layers = None if layers is None else tuple(layers)
        count = config.num_hidden_layers
        if self.layers is not None and not (self.layers and {*self.layers} <= {*range(count + 1)}):
            raise InputError(
                f"layers {list(self.layers)} are not layers of a BERT of {count}",
                remedy=f"Choose from 0 (the embeddings) to {count}.",
            )
        self.width = int(shape.hidden_size) * (1 if self.layers is None else len(self.layers))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found = self.model(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=self.layers is not None
        )
        chosen = [found.last_hidden_state] if self.layers is None else [found.hidden_states[own] for own in self.layers]
        weight = attention_mask.unsqueeze(-1).to(chosen[0].dtype)
        return torch.cat([(states * weight).sum(1) / weight.sum(1) for states in chosen], dim=1)

    def levels(self) -> list[list[str]]:
        names = [name for name in self.state_dict()]
        count = len(self.model.encoder.layer)
        levels = [[name for name in names if name.startswith("model.embeddings.")]]
        levels += [[n for n in names if n.startswith(f"model.encoder.layer.{i}.")] for i in range(count)]
        known = {name for own in levels for name in own}
        levels[-1] += [name for name in names if name not in known]
        return levels


def _packed(embedded: Tensor, attention_mask: Tensor) -> nn.utils.rnn.PackedSequence:
    """Packs captions without their padding: a state after it would say little but how long the caption was."""
    lengths = attention_mask.sum(1).cpu()  # as pack_padded_sequence requires
    return nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
