"""Fusions by attention, over the streams' vectors or, where they are cached, over their spatial tokens.

Each takes `features`, the streams that the ablation leaves (name -> (n, D), or (n, T, D) where tokens are read; zeros
where a sample lacks the stream), and `present` (n, streams) bool, and gives the fused vector (n, hidden). Tokens have
no positions: what counts is what is seen somewhere in the picture, in whatever order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raymotion.models.fusion.config import FusionConfig, input_size, streams_of
from raymotion.models.fusion.gated import Dropout, Tail, shares

# After Nagrani et al. 2021, who find 4 tokens enough.
BOTTLENECK_TOKENS = 4


class StreamTokens(nn.Module):
    """Features of each stream -> tokens of one width, that tell which stream they are of."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.project = nn.ModuleDict({name: nn.Linear(input_size(config, name), hidden) for name in config.dims})
        self.norm = nn.LayerNorm(hidden)
        self.kind = nn.ParameterDict({name: torch.randn(hidden) * 0.02 for name in config.dims})

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stream -> (n, T, H); T is 1 where the features are pooled. Not masked."""
        return {
            name: self.norm(self.project[name](values if values.ndim == 3 else values[:, None])) + self.kind[name]
            for name, values in features.items()
        }


class Attend(nn.Module):
    """Multi-head attention in which a query with nothing to attend to gets zeros.

    Args:
        query, key: widths of what asks and of what is read; what is read comes out `query` wide.
        inner: width of the attention itself.
    """

    def __init__(self, query: int, key: int, inner: int) -> None:
        super().__init__()
        self.heads = next(heads for heads in (8, 4, 2, 1) if inner % heads == 0)
        self.query = nn.Linear(query, inner)
        self.key_value = nn.Linear(key, 2 * inner)
        self.out = nn.Linear(inner, query)

    def forward(self, asking: Tensor, read: Tensor, there: Tensor) -> Tensor:
        """(n, q, query), (n, k, key), (n, k) bool -> (n, q, query)."""
        any_there = there.any(1)
        # All of a row masked would be 0 / 0: such a row attends to everything, and the result is dropped.
        seen = there | ~any_there[:, None]
        keys, values = self.key_value(read).chunk(2, dim=-1)
        query, keys, values = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query(asking), keys, values)
        )
        result = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen[:, None, None, :])
        return self.out(result.transpose(1, 2).flatten(2)) * any_there[:, None, None]


class Attention(nn.Module):
    """Additive attention over streams, or over all their tokens (Bahdanau et al. 2015; Ilse et al. 2018).

    The public one is a softmax over the 5,632 features of the concatenation, which shrinks them to a 5,632nd.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.tokens = StreamTokens(config)
        self.hide = nn.Linear(hidden, hidden // 2)
        self.score = nn.Linear(hidden // 2, 1, bias=False)
        self.tail = Tail(config)

    def weights(self, tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """(n, tokens of all streams): the shares of each sample's tokens, which sum to 1 where there is one."""
        scores, there = [], []
        for part, one in zip(tokens.values(), present.unbind(1)):
            score = self.score(torch.tanh(self.hide(part))).squeeze(-1)
            # Streams of equal scores get equal shares, whatever the number of their tokens.
            scores.append(score - math.log(part.shape[1]))
            there.append(one[:, None].expand(-1, part.shape[1]))
        return shares(torch.cat(scores, 1), torch.cat(there, 1))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        tokens = self.tokens(features)
        weights = self.weights(tokens, present)
        return self.tail((weights[:, None] @ torch.cat(list(tokens.values()), 1)).squeeze(1))


class Bottleneck(nn.Module):
    """Streams that know of each other only through a few narrow tokens (Nagrani et al. 2021, arXiv 2107.00135).

    Four latent tokens, H/8 wide, read each stream by itself; their mean over the streams that are there is what every
    stream then reads. Narrower than in the paper, as a pooled stream is one token and not hundreds. The public one has
    no such exchange: it is its `transformation`, weight by weight.
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
        """(n, streams, H): each stream after the exchange. Not masked."""
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
    """The context asks; body and face answer.

    Queries are the context's tokens and a learned one, which stays where there is no context; keys and values the
    tokens of body and face. A norm after the feed-forward layer too. Pooled streams are one token each; the public one
    makes 49 copies of it, which is a mix of two vectors.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.tokens = StreamTokens(config)
        self.ask = nn.Parameter(torch.randn(hidden) * 0.02)
        self.attend = Attend(hidden, hidden, hidden)
        if streams_of(config) == ("context",):
            self.attend.requires_grad_(False)  # nobody answers, so it never runs
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
            # A mean of the learned query and, where there is one, the context.
            has = there["context"].to(fused.dtype)[:, None]
            fused = (fused + has * result[:, 1:].mean(1)) / (1 + has)
        return self.drop(fused)


class FeedForward(nn.Module):
    """LayerNorm(x + Linear(ReLU(Linear(x)))), twice as wide inside."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, hidden))
        self.norm = nn.LayerNorm(hidden)

    def forward(self, values: Tensor) -> Tensor:
        return self.norm(values + self.layers(values))
