"""Two towers into one space: the vector of a picture, and what a text tower says of a caption."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.models.joint.config import ADDED, JointConfig
from raymotion.models.norms import normed
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.text.bert import BertShape
from raymotion.models.text.encoders import BertEncoder, LstmEncoder
from raymotion.models.text.remembered import RememberedTexts, read_frozen
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.models.vision.tuned_backbone import TunedBackbone, tuned_parameters, vectors_of

# Constant number of a corrected vector (`JointNetwork._placed`): the square root of 1/2 makes the vectors shortest.
CONSTANT = math.sqrt(0.5)
# Of a new SigLIP: all but one of the pairs of a batch are negatives (Zhai et al. 2023).
BIAS = -10.0
# The largest scale, as CLIP clips it: a temperature of 0.01.
MOST_SCALE = math.log(100.0)


class Head(nn.Module):
    """The layers of one side between its tower and the joint space.

    Args:
        width: numbers that the tower says.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, hidden: Sequence[int], dim: int, *, batch_norm: bool, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.dropout = nn.Dropout(dropout)
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), *([nn.BatchNorm1d(size)] if batch_norm else []), nn.ReLU()]
            width = size
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(width, dim)

    def standardised(self, x: Tensor) -> Tensor:
        """Returns what a tower says, (n, width), as the first layer reads it."""
        return (x.float() - self.mean) / self.deviation

    def measure(self, x: Tensor, blocks: Sequence[tuple[int, float]]) -> None:
        """Takes mean and deviation from what a tower says of training samples (n, width).

        Numbers of one block share their deviation: their proportions mean something.

        Args:
            blocks: width and weight of each block, one after the other. A number of the first has a variance of 1 on
                average; of the others, all numbers together have the weight's square times the variance of the first.
        """
        mean = x.mean(dim=0)
        self.mean.copy_(mean)
        squares = (x - mean).square().mean(dim=0)
        first = blocks[0][0]
        parts = []
        for (width, weight), own in zip(blocks, squares.split([width for width, _ in blocks]), strict=True):
            total = own.sum().clamp(min=1e-12)
            parts.append((total / (weight**2 * first)).sqrt().expand(width))
        self.deviation.copy_(torch.cat(parts))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.standardised(x))
        for layer in self.hidden:
            x = normed(layer, x) if isinstance(layer, nn.BatchNorm1d) else layer(x)
        return self.last(x)


class PictureSide(nn.Module):
    """Maps pictures into the joint space.

    Args:
        config: the shape. names: numbers of a class name's vector, where the shape has classes.
        build: returns the timm model of an identity; None: untrained, to load weights later.
    """

    def __init__(
        self, config: JointConfig, names: int, *, build: Callable[[BackboneIdentity], Any] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone: TunedBackbone | None = None
        if config.inside:
            identity = BackboneIdentity.from_dict(dict(config.vector_identity or {}))
            model = timm_models.create(identity.name, identity.size) if build is None else build(identity)
            self.backbone = TunedBackbone(identity, model, tuned_parameters(identity, config.tuned_blocks))
        width = config.vector_dim
        if config.classes:
            self.register_buffer("class_weight", torch.zeros(config.classes, config.vector_dim))
            self.register_buffer("class_bias", torch.zeros(config.classes))
            self.register_buffer("class_texts", torch.zeros(config.classes, names))
            width += names
        self.head = Head(
            width, config.image_hidden, config.dim, batch_norm=config.batch_norm, dropout=config.image_dropout
        )

    def vectors(
        self, features: Sequence[Tensor | None] | None = None, crops: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Returns the pictures' vectors (n, vector_dim) float32, as the backbone says them."""
        return vectors_of(self.backbone, features, crops)

    def numbers(self, vectors: Tensor) -> Tensor:
        """Returns what the head reads, (n, width): the vectors, and what they say in words."""
        if not self.config.classes:
            return vectors
        logits = vectors @ self.get_buffer("class_weight").T + self.get_buffer("class_bias")
        said = (logits / self.config.class_temperature).softmax(dim=1) @ self.get_buffer("class_texts")
        # Less sure pictures are near the mean of all names; their direction is what counts.
        return torch.cat([vectors, nn.functional.normalize(said, dim=1)], dim=1)

    @property
    def blocks(self) -> list[tuple[int, float]]:
        """Width and weight of each block of `numbers`."""
        own, names = self.config, self.head.mean.numel() - self.config.vector_dim
        return [(own.vector_dim, 1.0), *([(names, own.class_names)] if own.classes else [])]

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns vectors in the joint space, (n, dim), of any length."""
        return self.head(self.numbers(vectors))


class JointNetwork(nn.Module):
    """Maps pictures and captions to the raw numbers of an `Embedding`.

    Args:
        config: the shape.
        output: the output.
        build: returns the timm model of an identity; None: untrained, to load weights later.
    """

    def __init__(
        self, config: JointConfig, output: Embedding, *, build: Callable[[BackboneIdentity], Any] | None = None
    ) -> None:
        super().__init__()
        self.config, self.output = config, output
        self.text: BertEncoder | LstmEncoder
        if config.text == "lstm":
            self.text = LstmEncoder(config.vocab_size, config.embedding_size, config.text_size)
        else:
            self.text = BertEncoder(config.vocab_size, config.bert or BertShape(), layers=config.text_layers)
            self.text.requires_grad_(config.tuned_text)
        self.frozen_text = config.text == "sentence" and not config.tuned_text
        self.pictures = PictureSide(config, self.text.width, build=build)
        self.text_head = Head(
            self.text.width, config.text_hidden, config.dim, batch_norm=config.batch_norm, dropout=config.text_dropout
        )
        if config.hubs is not None:
            self.register_buffer("kept_pictures", torch.zeros(config.kept_pictures, self.pictures.head.mean.numel()))
            self.register_buffer("kept_captions", torch.zeros(config.kept_captions, self.text.width))
        self._kept: dict[str, tuple[Any, Tensor]] = {}
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )
        reads_bias = output.loss.name == "siglip"
        bias = BIAS if config.bias is None and reads_bias else float(config.bias or 0.0)
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=reads_bias)
        self._remembered: RememberedTexts | None = None

    def train(self, mode: bool = True) -> JointNetwork:
        """Keeps a frozen text tower in evaluation mode."""
        super().train(mode)
        if self.frozen_text:
            self.text.train(False)
        if mode:  # the weights may change now, and a fused optimiser changes them without a mark
            self._kept.clear()
        return self

    def remember_texts(self, tokens: Sequence[np.ndarray | Sequence[int]]) -> None:
        """Lets a frozen text tower read captions once, for a training that shows them again and again, and the next."""
        if self.frozen_text:
            if self._remembered is None:
                self._remembered = RememberedTexts(cast(BertEncoder, self.text))
            self._remembered.add(tokens)

    def vectors(
        self, features: Sequence[Tensor | None] | None = None, crops: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """See `PictureSide.vectors`."""
        return self.pictures.vectors(features, crops)

    @property
    def text_blocks(self) -> list[tuple[int, float]]:
        """Width and weight of each block of `text_numbers`."""
        many = len(self.config.text_layers or (0,))
        return [(self.text.width // many, 1.0)] * many

    def text_numbers(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns what the text tower says of captions (n, T), (n, width)."""
        if not self.frozen_text:
            return self.text(input_ids, attention_mask).float()
        if self._remembered is None:
            return read_frozen(self.text, input_ids, attention_mask)
        lengths = attention_mask.sum(dim=1).tolist()
        tokens = [row[: int(own)] for row, own in zip(input_ids.cpu().numpy(), lengths, strict=True)]
        return self._remembered.read(tokens, input_ids.device).to(input_ids.device)

    def keep(self, pictures: Tensor, captions: Tensor) -> None:
        """Keeps what the towers say of training pictures (P, width) and captions (C, width), for `config.hubs`."""
        self.kept_pictures, self.kept_captions = pictures.clone(), captions.clone()
        self.config = self.config.model_copy(
            update={"kept_pictures": len(pictures), "kept_captions": len(captions)}
        )  # fmt: skip

    def encode_pictures(self, vectors: Tensor) -> Tensor:
        """Returns the vectors of pictures in the joint space, (n, space), of any length."""
        return self._placed(self.pictures(vectors), "captions")

    def encode_said(self, numbers: Tensor) -> Tensor:
        """Returns the vectors in the joint space, (n, space), of what the text tower says."""
        return self._placed(self.text_head(numbers), "pictures")

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Returns the captions' vectors in the joint space, (n, space), of any length."""
        return self.encode_said(self.text_numbers(input_ids, attention_mask))

    def _placed(self, vectors: Tensor, others: str) -> Tensor:
        """Adds the numbers of `config.hubs` to the vectors (n, dim) of one side.

        With unit vectors v and u, r the mean similarity of each to its nearest kept ones of the other side, and
        x = [v, -r_v / 2c, c, p, 0], y = [u, c, -r_u / 2c, 0, q], the product x . y is v . u - (r_v + r_u) / 2. p and q
        give all of them the squared length 2, so that their cosine is half of it. In training the numbers are 0, and
        the cosine is that of v and u.

        Args:
            others: `captions` for pictures, `pictures` for captions.
        """
        hubs = self.config.hubs
        if hubs is None:
            return vectors
        if self.training:
            return nn.functional.pad(vectors, (0, ADDED))
        unit = nn.functional.normalize(vectors.float(), dim=1)
        kept = self._kept_vectors(others)
        nearest = (unit @ kept.T).topk(min(hubs.neighbours, len(kept)), dim=1).values.mean(dim=1)
        own = -nearest / (2 * CONSTANT)
        # A mean similarity is from -1 to 1, so that the square is at most 1/2.
        rest = (1 - CONSTANT**2 - own.square()).clamp(min=0).sqrt()
        constant, none = torch.full_like(own, CONSTANT), torch.zeros_like(own)
        added = (own, constant, rest, none) if others == "captions" else (constant, own, none, rest)
        return torch.cat([unit, torch.stack(added, dim=1)], dim=1)

    def _kept_vectors(self, side: str) -> Tensor:
        """Returns the unit vectors (K, dim) of the kept training pictures or captions, by the weights as they are."""
        head = self.pictures.head if side == "pictures" else self.text_head
        numbers = self.get_buffer(f"kept_{side}")
        # The version of a tensor changes with every change in place, as of an optimiser or a loaded state.
        now = tuple((own.data_ptr(), own._version) for own in (*head.parameters(), *head.buffers(), numbers))
        if side not in self._kept or self._kept[side][0] != now:
            with torch.no_grad():
                # Not through the head itself: the domain check watches what its last layer reads of new pictures.
                last = head.last
                parts = [
                    nn.functional.linear(head.hidden(head.standardised(own)), last.weight, last.bias)
                    for own in numbers.split(4096)
                ]
                self._kept[side] = now, nn.functional.normalize(torch.cat(parts).float(), dim=1)
        return self._kept[side][1]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        features: Sequence[Tensor | None] | None = None,
        crops: Sequence[Tensor | None] | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Computes the raw numbers of the output, (n, raw_width).

        Args:
            input_ids, attention_mask: (n, T) int64, one caption of each sample; [CLS] [SEP] alone is a missing one.
            features: one entry, (n, vector_dim) cached vectors of the pictures.
            crops: instead, one entry, (n, size, size, 3) uint8, the pictures.
            mask: (n, 1) bool, True where there is a picture; None: everywhere.
        """
        if self.training:
            with torch.no_grad():  # as CLIP does: a clamp of the result would end its learning for good
                self.log_scale.clamp_(max=MOST_SCALE)
        vectors = self.vectors(features, crops)
        there = torch.ones(len(vectors), dtype=torch.bool, device=vectors.device) if mask is None else mask[:, 0]
        pictures = self._of_present(vectors, there, self.encode_pictures)
        told = attention_mask.sum(dim=1) > 2
        texts = self._of_present(self.text_numbers(input_ids, attention_mask), told, self.encode_said)
        return self.output.raw_of(pictures, texts, self.log_scale, self.bias)

    def _of_present(self, numbers: Tensor, there: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the vectors (n, space) of the rows that are there, which alone count in a batch norm; else zeros."""
        rows = there.nonzero()[:, 0]
        if len(rows) == len(numbers):
            return encode(numbers).float()
        none = numbers.new_zeros(len(numbers), self.config.space, dtype=torch.float32)
        if not len(rows):
            # All parameters take part: a distributed run would wait for the gradient of one that did not.
            return none + 0.0 * sum(own.sum() for own in self.parameters() if own.requires_grad)
        return none.index_copy(0, rows, encode(numbers[rows]).float())
