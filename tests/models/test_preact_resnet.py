"""The pre-activation ResNet against timm's, and counts by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from raymotion.models.preact_resnet.network import PreactResNet
from raymotion.models.preact_resnet.recipe import STAGES, PreactResNetConfig


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network(**settings: Any) -> PreactResNet:
    torch.manual_seed(0)
    return PreactResNet(PreactResNetConfig.model_validate(settings), 8)


def timm_twin(depth: int, own: PreactResNet) -> Any:
    """timm's network with the same weights, and the stem's batch norm before the pooling as in the authors' models."""
    import timm

    twin: Any = timm.create_model(f"resnetv2_{depth}", num_classes=8)
    first = twin.stages[0].blocks[0]
    twin.stem = nn.Sequential(twin.stem.conv, first.norm1, nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    twin.stem[1] = nn.BatchNorm2d(64)
    first.norm1 = nn.Identity()
    pairs: list[tuple[nn.Module, nn.Module]] = [
        (own.stem[0], twin.stem[0]), (own.stem[1][0], twin.stem[1]), (own.activate[0], twin.norm),  # type: ignore[index]
    ]  # fmt: skip
    blocks = iter(own.blocks)
    for stage in twin.stages:
        for theirs in stage.blocks:
            block: Any = next(blocks)
            ours = [module for module in block.convolve.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
            names = ["conv1", "norm2", "conv2", *(["norm3", "conv3"] if depth == 50 else [])]
            pairs += zip(ours, (getattr(theirs, name) for name in names), strict=True)
            if block is not own.blocks[0]:
                pairs.append((block.activate[0], theirs.norm1))
            assert (block.shortcut is None) == (theirs.downsample is None)
            if block.shortcut is not None:
                pairs.append((block.shortcut, theirs.downsample.conv))
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.load_state_dict(ours.state_dict())
        twin.head.fc.weight.copy_(own.head.weight[:, :, None, None])
        twin.head.fc.bias.copy_(own.head.bias)
    return twin


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_it_is_timms_network(depth: int) -> None:
    own = network(depth=depth, image_size=64, stem="imagenet", normalise="unit")
    generator = torch.Generator().manual_seed(3)
    for module in own.modules():  # statistics and gains that are not those of a new network
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
            ):
                assert tensor is not None
                tensor.data.uniform_(low, low + 1, generator=generator)
    twin = timm_twin(depth, own)
    images = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8, generator=generator)
    for mode in (False, True):  # with the stored statistics, and with those of the batch
        own.train(mode), twin.train(mode)
        with torch.no_grad():
            found = own(images, torch.ones(2, dtype=torch.bool))
            expected = twin(images.permute(0, 3, 1, 2) / 255)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in twin.parameters())


def test_the_number_of_parameters_is_that_of_a_calculation_by_hand() -> None:
    own = network(depth=18, image_size=32, width=8)
    convolutions = 9 * 3 * 8 + 4 * 9 * 8 * 8  # stem (3x3) and first stage
    norms = 2 * 8 * (1 + 1 + 2)  # stem; the first block has one norm, the second two
    for inputs, width in ((8, 16), (16, 32), (32, 64)):
        convolutions += 9 * inputs * width + 3 * 9 * width * width + inputs * width  # with the shortcut
        norms += 2 * (inputs + 3 * width)
    norms += 2 * 64
    assert sum(p.numel() for p in own.parameters()) == convolutions + norms + 64 * 8 + 8


def sides(own: PreactResNet) -> list[int]:
    """The sides of the maps that leave the stem and each stage."""
    found: list[int] = []
    ends = [sum(STAGES[own.config.depth][: stage + 1]) - 1 for stage in range(4)]
    for module in (own.stem, *(own.blocks[end] for end in ends)):
        module.register_forward_hook(lambda _, given, made: found.append(made.shape[-1]))
    size = own.config.image_size
    own.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8), torch.ones(1, dtype=torch.bool))
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"image_size": 32}, [32, 32, 16, 8, 4]),
        ({"image_size": 64}, [64, 64, 32, 16, 8]),
        ({"image_size": 96}, [24, 24, 12, 6, 3]),
        ({"image_size": 32, "stem": "imagenet"}, [8, 8, 4, 2, 1]),  # what was published
    ],
)
def test_bug_3_5_6_small_pictures_keep_their_size_in_the_stem(settings: Mapping[str, Any], expected: list[int]) -> None:
    own = network(width=4, **settings)
    assert sides(own) == expected
    assert own.config.first_side() == expected[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, "18, 34 or 50"),
        ({"stem": "large"}, "stem"),
        ({"depth": 50, "dropout": 0.1}, "dropout is between"),
    ],
)
def test_shapes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PreactResNetConfig.model_validate(settings)


def test_dropout_is_between_the_convolutions_of_a_block() -> None:
    own = network(width=4, dropout=0.5).train()
    drops = [type(block.convolve[place]).__name__ for block in own.blocks for place in range(4)]  # type: ignore[index]
    assert drops == ["Conv2d", "Dropout", "Sequential", "Conv2d"] * 8
