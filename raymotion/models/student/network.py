"""The student: one encoder for the picture, one for the caption, and two layers that join them.

The public system's student was a GRU and three convolutions. `StudentConfig()` is the same without its faults: the
output is a logit (the original applied a sigmoid before a loss that includes one), the GRU does not read padding, and
pictures are normalised. Any timm image encoder and any BERT can replace them.

A missing picture or caption is replaced by a learned vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.models.student.config import USUAL_SIZE, StudentConfig
from raymotion.models.student.encoders import CnnEncoder, TimmEncoder
from raymotion.models.text.bert import BertShape
from raymotion.models.text.encoders import BertEncoder, GruEncoder
from raymotion.models.text.predict import mean_over_captions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Student(nn.Module):
    """Maps picture and caption to logits.

    Args:
        config: the shape.
        labels: number of emotions L.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: StudentConfig, labels: int) -> None:
        super().__init__()
        self.image: CnnEncoder | TimmEncoder
        if config.image == "cnn":
            self.image = CnnEncoder(config.channels)
            measured: dict[str, Any] = {
                "image_size": USUAL_SIZE, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD
            }  # fmt: skip
        else:
            self.image = TimmEncoder(config.image, config.image_size)
            own = self.image.model.default_cfg
            measured = {"image_size": own["input_size"][-1], "image_mean": own["mean"], "image_std": own["std"]}
        self.text: GruEncoder | BertEncoder
        if config.text == "gru":
            self.text = GruEncoder(config.vocab_size, config.embedding_size, config.text_size)
        else:
            self.text = BertEncoder(config.vocab_size, config.bert or BertShape())
        self.config = config.model_copy(
            update={name: value for name, value in measured.items() if getattr(config, name) is None}
        )
        assert self.config.image_size and self.config.image_mean and self.config.image_std
        self.image_size = self.config.image_size
        self.register_buffer("mean", torch.tensor(self.config.image_mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(self.config.image_std).view(1, 3, 1, 1) * 255, persistent=False)
        self.no_image = nn.Parameter(torch.zeros(self.image.width))
        self.no_text = nn.Parameter(torch.zeros(self.text.width))
        self.fusion = nn.Linear(self.image.width + self.text.width, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden_size, labels)
        self.frozen = 0

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor | None = None,
        image_mask: Tensor | None = None,
    ) -> Tensor:
        """Computes logits (B, L).

        Args:
            input_ids, attention_mask: (B, T) int64; [CLS] [SEP] alone is a missing caption.
            images: (B, S, S, 3) uint8, RGB, or None if no sample has a picture.
            image_mask: (B,) bool, False where the picture is missing; None: all are present.
        """
        pictures = self.encode_images(images, image_mask, len(input_ids))
        return self.fuse(pictures, self.encode_texts(input_ids, attention_mask))

    def encode_images(self, images: Tensor | None, image_mask: Tensor | None, count: int) -> Tensor:
        """Encodes pictures, (count, image width); a missing picture gets the learned vector."""
        if images is None:
            return self.no_image.expand(count, -1)
        # Only present pictures are encoded: black ones would distort the statistics of batch norm.
        there = torch.arange(count, device=images.device) if image_mask is None else image_mask.nonzero()[:, 0]
        if not len(there):
            return self.no_image.expand(count, -1)
        pixels = (images[there].permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        if self.training and len(pixels) == 1:  # batch norm needs at least two
            pixels = pixels.expand(2, -1, -1, -1)
        encoded = self.image(pixels)[: len(there)]
        if len(there) == count:
            return encoded
        return self.no_image.to(encoded.dtype).expand(count, -1).index_copy(0, there, encoded)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encodes captions, (B, text width); a missing caption gets the learned vector."""
        encoded = self.text(input_ids, attention_mask)
        present = attention_mask.sum(1) > 2
        return torch.where(present.unsqueeze(-1), encoded, self.no_text.to(encoded.dtype))

    def fuse(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Computes logits (B, L) from encoded pictures and captions."""
        return self.head(self.dropout(torch.relu(self.fusion(torch.cat((pictures, texts), dim=1)))))

    def blocks(self) -> list[list[str]]:
        """Returns the names in the state dict by layer, from input to output.

        The encoders are parallel: each is spread over as many layers as the deeper one has. The joining layer and the
        head follow.
        """
        towers = [
            [[f"{tower}.{name}" for name in own] for own in getattr(self, tower).levels()]
            for tower in ("image", "text")
        ]
        depth = max(len(levels) for levels in towers)
        blocks: list[list[str]] = [[] for _ in range(depth)]
        for levels in towers:
            for i, names in enumerate(levels):
                blocks[i * depth // len(levels)] += names
        fusion = ["fusion.weight", "fusion.bias", "no_image", "no_text"]
        return [*blocks, fusion, ["head.weight", "head.bias"]]

    def freeze(self, depth: int) -> None:
        """Freezes the first `depth` blocks: no gradients, and always in evaluation mode."""
        names = {name for block in self.blocks()[:depth] for name in block}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names)
        self.frozen = depth
        self.train(self.training)

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        if getattr(self, "frozen", 0):
            # Set entirely frozen modules to evaluation mode, with their dropouts and norms.
            fixed = {name for block in self.blocks()[: self.frozen] for name in block}
            for path, module in self.named_modules():
                own = [f"{path}.{name}" for name in module.state_dict()]
                if path and own and fixed.issuperset(own):
                    module.eval()
        return self


@torch.inference_mode()
def predict_tokens(
    model: Student,
    tokens: Sequence[Sequence[int] | np.ndarray],
    owners: np.ndarray,
    samples: int,
    images: np.ndarray | None,
    image_mask: np.ndarray | None,
    *,
    decode: Callable[[Tensor], Tensor],
    pad_id: int = 0,
    batch_size: int = 32,
) -> np.ndarray:
    """Predicts (samples, L) float32, averaged over the captions of each sample.

    Args:
        tokens, owners: word pieces and sample of each caption; each sample has at least one.
        images, image_mask: (samples, S, S, 3) uint8 from `data.views.pictures.render`, and (samples,) bool; or None.
        decode: maps logits to predictions.
    """
    was_training = model.training
    model.eval()
    device = model.head.weight.device
    pictures = []
    for start in range(0, samples, batch_size):
        count = min(batch_size, samples - start)
        some = None if images is None else torch.from_numpy(np.array(images[start : start + count])).to(device)
        mask = None if image_mask is None else torch.from_numpy(image_mask[start : start + count]).to(device)
        pictures.append(model.encode_images(some, mask, count))
    encoded = torch.cat(pictures)

    def logits(ids: Tensor, attention: Tensor, rows: np.ndarray) -> Tensor:
        return model.fuse(encoded[torch.from_numpy(rows).to(device)], model.encode_texts(ids, attention))

    predicted = mean_over_captions(
        model, tokens, owners, samples, width=model.head.out_features, logits=logits, decode=decode, pad_id=pad_id,
        batch_size=batch_size,
    )  # fmt: skip
    model.train(was_training)
    return predicted
