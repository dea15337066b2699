"""The student: one encoder for the picture, one for the caption, two layers on both.

The public system's student was a GRU and three convolutions; `StudentConfig()` is that one, without its faults: the
output is a logit (it put a sigmoid before a loss that has one), padding is not read by the GRU, and pictures are
normalised. Any image encoder of timm and any BERT take their places behind the same interface.

What is missing is masked: a sample without a picture, or without a caption, has a learned vector in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.models.student.config import USUAL_SIZE, BertShape, StudentConfig
from raymotion.models.student.encoders import BertEncoder, CnnEncoder, GruEncoder, TimmEncoder
from raymotion.models.text.predict import mean_over_captions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Student(nn.Module):
    """Picture and caption -> logits.

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
        """Logits (B, L).

        Args:
            input_ids, attention_mask: (B, T) int64; [CLS] [SEP] alone is a missing caption.
            images: (B, S, S, 3) uint8, RGB, or None where no sample has one.
            image_mask: (B,) bool, False where the picture is missing. None: all are there.
        """
        pictures = self.encode_images(images, image_mask, len(input_ids))
        return self.fuse(pictures, self.encode_texts(input_ids, attention_mask))

    def encode_images(self, images: Tensor | None, image_mask: Tensor | None, count: int) -> Tensor:
        """(count, image width); the learned vector where there is no picture."""
        if images is None:
            return self.no_image.expand(count, -1)
        # Those that are there alone: black ones in their place would count in batch norm's statistics.
        there = torch.arange(count, device=images.device) if image_mask is None else image_mask.nonzero()[:, 0]
        if not len(there):
            return self.no_image.expand(count, -1)
        pixels = (images[there].permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        if self.training and len(pixels) == 1:  # batch norm has no variance of one
            pixels = pixels.expand(2, -1, -1, -1)
        encoded = self.image(pixels)[: len(there)]
        if len(there) == count:
            return encoded
        return self.no_image.to(encoded.dtype).expand(count, -1).index_copy(0, there, encoded)

    def encode_texts(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, text width); the learned vector where there is no caption."""
        encoded = self.text(input_ids, attention_mask)
        present = attention_mask.sum(1) > 2
        return torch.where(present.unsqueeze(-1), encoded, self.no_text.to(encoded.dtype))

    def fuse(self, pictures: Tensor, texts: Tensor) -> Tensor:
        """Logits (B, L) of encoded pictures and captions."""
        return self.head(self.dropout(torch.relu(self.fusion(torch.cat((pictures, texts), dim=1)))))

    def blocks(self) -> list[list[str]]:
        """Names in the state dict, cut into layers from the input to the output.

        The encoders lie side by side: each is dealt out over as many layers as the deeper one has. Then the layer that
        reads both; then the head.
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
        """Fixes the first `depth` blocks: no gradient, and evaluation mode whatever the training loop says."""
        names = {name for block in self.blocks()[:depth] for name in block}
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in names)
        self.frozen = depth
        self.train(self.training)

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        if getattr(self, "frozen", 0):
            # Dropout and norms have no weights, or statistics: whatever lies in a module that is frozen as a whole.
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
    """Predictions (samples, L) float32: those of each caption of a sample, averaged.

    Args:
        tokens, owners: word pieces of each caption, and its sample; each sample has one at least.
        images, image_mask: (samples, S, S, 3) uint8, as `data.views.pictures.render` gives them, and
            (samples,) bool; or None.
        decode: what makes a prediction of logits.
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
