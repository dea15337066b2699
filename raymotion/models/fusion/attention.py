"""Fusions by attention, over the streams' vectors or, if cached, over their spatial tokens.

Each maps `features`, the streams kept by the ablation (name -> (n, D), or (n, T, D) for tokens; zeros for a missing
stream), and `present` (n, streams) bool to the fused vector (n, hidden). Tokens have no positions, so the result does
not depend on their order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymotion.models.fusion.config import FusionConfig, input_size
from raymotion.models.fusion.gated import Dropout, Tail, shares

# After Nagrani et al. 2021, who find 4 tokens enough.
BOTTLENECK_TOKENS = 4


class StreamTokens(nn.Module):
    """Projects the features of each stream to tokens of one width, and adds a learned embedding of the stream."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.project = nn.ModuleDict({name: nn.Linear(input_size(config, name), hidden) for name in config.dims})
        self.norm = nn.LayerNorm(hidden)
        self.kind = nn.ParameterDict({name: torch.randn(hidden) * 0.02 for name in config.dims})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns stream -> (n, T, H), with T = 1 for pooled features. Not masked."""
        return {
            name: self.norm(self.project[name](values if values.ndim == 3 else values[:, None])) + self.kind[name]
            for name, values in features.items()
        }


class Attend(nn.Module):
    """Multi-head attention that returns zeros for a query without any key.

    Args:
        query, key: widths of queries and keys; the result has the width `query`.
        inner: width of the attention.
    """

    def __init__(self, query: int, key: int, inner: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in (8, 4, 2, 1) if inner % heads == 0)
        self.query = nn.Linear(query, inner)
        self.key_value = nn.Linear(key, 2 * inner)
        self.out = nn.Linear(inner, query)

    def forward(self, asking: Tensor, read: Tensor, there: Tensor) -> Tensor:
        """Maps (n, q, query), (n, k, key), (n, k) bool to (n, q, query)."""
        any_there = there.any(1)
        # An entirely masked row would give 0 / 0: it attends to everything instead, and the result is dropped.
        seen = there | ~any_there[:, None]
        keys, values = self.key_value(read).chunk(2, dim=-1)
        query, keys, values = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query(asking), keys, values)
        )
        result = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None, None, :])
        return self.out(result.transpose(1, 2).flatten(2)) * any_there[:, None, None]


class Attention(nn.Module):
    """Additive attention over streams, or over all their tokens (Bahdanau et al. 2015; Ilse et al. 2018).

    The public study applies a softmax over the 5,632 concatenated features, which scales them by 1 / 5,632.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.tokens = StreamTokens(config)
        self.hide = nn.Linear(hidden, hidden // 2)
        self.score = nn.Linear(hidden // 2, 1, bias=False)
        self.tail = Tail(config)

    def weights(self, tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Returns the weight of each token, (n, tokens of all streams); they sum to 1 if a sample has any stream."""
        scores, there = [], []
        for part, one in zip(tokens.values(), present.unbind(1)):
            score = self.score(torch.tanh(self.hide(part))).squeeze(-1)
            # Streams with equal scores get equal weights, independent of their number of tokens.
            scores.append(score - math.log(part.shape[1]))
            there.append(one[:, None].expand(-1, part.shape[1]))
        return shares(torch.cat(scores, 1), torch.cat(there, 1))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        tokens = self.tokens(features)
        weights = self.weights(tokens, present)
        return self.tail((weights[:, None] @ torch.cat(list(tokens.values()), 1)).squeeze(1))


class Bottleneck(nn.Module):
    """Streams that exchange information only through a few narrow tokens (Nagrani et al. 2021, arXiv 2107.00135).

    Four latent tokens of width H/8 read each stream separately; every stream then reads their mean over the present
    streams. They are narrower than in the paper because a pooled stream is one token and not hundreds. The public study
    has no such exchange: its `bottleneck` equals its `transformation`.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden, narrow = config.hidden, config.hidden // 8
        self.tokens = StreamTokens(config)
        self.latent = nn.Parameter(torch.randn(BOTTLENECK_TOKENS, narrow) * 0.02)
        self.collect = Attend(narrow, hidden, narrow)
        self.spread = Attend(hidden, narrow, narrow)
        self.norm = nn.LayerNorm(hidden)
        self.feed = FeedForward(hidden)
        self.drop = Dropout(config.dropout)

    def streams(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Returns each stream after the exchange, (n, streams, H). Not masked."""
        tokens = self.tokens(features)
        latent = self.latent.expand(len(present), -1, -1)
        count = present.sum(1).clamp(min=1)[:, None, None]
        read = [
            self.collect(latent, part, one[:, None].expand(-1, part.shape[1]))
            for part, one in zip(tokens.values(), present.unbind(1))
        ]
        latent = latent + torch.stack(read).sum(0) / count
        everything = present.new_ones(len(present), BOTTLENECK_TOKENS)
        done = [self.feed(self.norm(part + self.spread(part, latent, everything))) for part in tokens.values()]
        return torch.stack([part.mean(1) for part in done], 1)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        share = present / present.sum(1, keepdim=True).clamp(min=1)
        return self.drop((self.streams(features, present) * share[..., None]).sum(1))


class CrossModalTransformer(nn.Module):
    """Cross-attention from the context to body and face.

    Queries are the tokens of the context and a learned one, which remains if there is no context; keys and values are
    the tokens of body and face. The feed-forward layer is followed by a norm. A pooled stream is one token; the public
    study makes 49 copies of it, which amounts to mixing two vectors.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.tokens = StreamTokens(config)
        self.ask = nn.Parameter(torch.randn(hidden) * 0.02)
        self.attend = Attend(hidden, hidden, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.feed = FeedForward(hidden)
        self.drop = Dropout(config.dropout)

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        tokens = self.tokens(features)
        there = dict(zip(tokens, present.unbind(1)))
        query = self.ask.expand(len(present), 1, -1)
        context = tokens.pop("context", None)
        if context is not None:
            query = torch.cat([query, context], 1)
        if tokens:
            seen = [there[name][:, None].expand(-1, part.shape[1]) for name, part in tokens.items()]
            query = query + self.attend(query, torch.cat(list(tokens.values()), 1), torch.cat(seen, 1))
        result = self.feed(self.norm(query))
        fused = result[:, 0]
        if context is not None:
            # The mean of the learned query and, if present, the context.
            has = there["context"].to(fused.dtype)[:, None]
            fused = (fused + has * result[:, 1:].mean(1)) / (1 + has)
        return self.drop(fused)


class FeedForward(nn.Module):
    """LayerNorm(x + Linear(ReLU(Linear(x)))), with twice the width inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, values: Tensor) -> Tensor:
        return self.norm(values + self.layers(values))
