"""ResNet with pre-activation (He et al. 2016, arXiv 1603.05027): batch norm and ReLU before each convolution.

As in the authors' ImageNet models, the stem's batch norm and ReLU are the first block's, and where a block changes the
shape, its shortcut is a 1x1 convolution of the activated maps.
"""

from __future__ import annotations

from torch import Tensor, nn

from raymotion.models.picture_classifier.network import PictureClassifier, initialise
from raymotion.models.preact_resnet.recipe import STAGES, PreactResNetConfig

EXPANSION = 4  # of a bottleneck


class Block(nn.Module):
    """A residual block.

    Args:
        inputs, outputs: numbers of channels.
        stride: of the block; 2 halves the side of the maps.
        first: the maps that it gets are activated already.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.activate: nn.Module = nn.Identity() if first else _activation(inputs)
        changes = inputs != outputs or stride > 1
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None
        self.convolve = nn.Sequential()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (B, inputs, S, S) to (B, outputs, S / stride, S / stride)."""
        active = self.activate(maps)
        return (maps if self.shortcut is None else self.shortcut(active)) + self.convolve(active)


class Basic(Block):
    """Two 3x3 convolutions, with dropout between them."""

    def __init__(self, inputs: int, width: int, stride: int, dropout: float, *, first: bool) -> None:
        super().__init__(inputs, width, stride, first=first)
        self.convolve.extend(
            [_conv3(inputs, width, stride), nn.Dropout(dropout), _activation(width), _conv3(width, width)]
        )


class Bottleneck(Block):
    """A 1x1, a 3x3 and a 1x1 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, *, first: bool) -> None:
        outputs = EXPANSION * width
        super().__init__(inputs, outputs, stride, first=first)
        self.convolve.extend(
            [
                nn.Conv2d(inputs, width, 1, bias=False), _activation(width), _conv3(width, width, stride),
                _activation(width), nn.Conv2d(width, outputs, 1, bias=False),
            ]
        )  # fmt: skip


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _activation(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class PreactResNet(PictureClassifier):
    """Maps pictures to logits."""

    config: PreactResNetConfig

    def __init__(self, config: PreactResNetConfig, labels: int) -> None:
        width, expansion = config.width, EXPANSION if config.depth == 50 else 1
        last = 8 * width * expansion
        super().__init__(config, last, labels)
        large = config.chosen_stem() == "imagenet"
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, padding=3, bias=False) if large else _conv3(3, width), _activation(width)
        )
        if large:
            self.stem.append(nn.MaxPool2d(3, 2, padding=1))
        blocks: list[Block] = []
        inputs = width
        for stage, count in enumerate(STAGES[config.depth]):
            for number in range(count):
                own, stride = width << stage, 2 if stage and not number else 1
                first = not blocks
                if config.depth == 50:
                    blocks.append(Bottleneck(inputs, own, stride, first=first))
                else:
                    blocks.append(Basic(inputs, own, stride, config.dropout, first=first))
                inputs = own * expansion
        self.blocks = nn.Sequential(*blocks)
        self.activate = _activation(last)
        initialise(self)

    def features(self, pixels: Tensor) -> Tensor:
        return self.activate(self.blocks(self.stem(pixels))).mean(dim=(2, 3))
