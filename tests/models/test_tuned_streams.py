"""Backbones that learn in part: which part, and that nothing else moves, whatever the loop does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from raymotion.errors import InputError
from raymotion.models.fusion.network import FusionConfig
from raymotion.models.fusion_tuned.network import TunedConfig, TunedStreams
from raymotion.models.vision.backbones import Backbone, build, identify
from raymotion.models.vision.timm_models import blocks_of, create
from raymotion.models.vision.tuned_backbone import TunedBackbone, tuned_parameters

L = 4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model_of(
    *names: str, tuned: int = 1, size: int = 32, ablation: str = "all", fusion: str = "weighted", tokens: int = 0,
    checkpointing: bool = False,
) -> TunedStreams:  # fmt: skip
    """Backbones of random weights for context, body and face."""
    identities = {
        stream: identify(name, "random:0", size=size)
        for stream, name in zip(("context", "body", "face"), names, strict=False)
    }
    config = FusionConfig(
        fusion=fusion, dims={stream: own.dim for stream, own in identities.items()}, ablation=ablation, dropout=0.0,
        tokens=dict.fromkeys(identities, tokens**2) if tokens else {}, hidden=16,
        token_dims={stream: own.token_dim for stream, own in identities.items()} if tokens else {},
    )  # fmt: skip
    torch.manual_seed(0)
    return TunedStreams(
        TunedConfig(
            fusion=config, identities={stream: own.to_dict() for stream, own in identities.items()}, tuned_blocks=tuned
        ),
        L,
        build=lambda _, identity: build(identity, "random:0"),
        checkpointing=checkpointing,
    )


def crops_of(n: int, streams: int = 3, size: int = 32, seed: int = 0) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator) for _ in range(streams)]


def everyone(n: int, streams: int = 3) -> torch.Tensor:
    return torch.ones(n, streams, dtype=torch.bool)


# Written by hand from timm's sources.
@pytest.mark.parametrize(
    ("name", "size", "count", "last", "also"),
    [
        ("test_resnet", 32, 5, "layer4.", ()),
        ("test_vit", 160, 7, "blocks.5.", ("norm.weight", "norm.bias")),
        ("test_efficientnet", 32, 6, "blocks.4.", ("conv_head.weight", "bn2.weight", "bn2.bias")),
        # The norm at the end of a Swin or a ConvNeXt is no block of its own.
        ("swin_tiny_patch4_window7_224", 224, 5, "layers.3.", ("norm.weight", "norm.bias")),
        ("convnext_atto", 32, 5, "stages.3.", ("head.norm.weight", "head.norm.bias")),
        # The mean over the last map is the feature: what the old classifier had in front of it is not looked at.
        ("mobilenetv3_small_050", 32, 7, "blocks.5.", ()),
    ],
)
def test_the_last_block_is_the_last_that_the_feature_depends_on(
    name: str, size: int, count: int, last: str, also: tuple[str, ...]
) -> None:
    blocks = blocks_of(name, size)
    assert len(blocks) == count
    assert {own for own in blocks[-1] if not own.startswith(last)} == set(also)
    model = create(name, size)
    own = {name for name, _ in model.named_parameters() if name.startswith(last)}
    assert own <= set(blocks[-1])
    identity = identify(name, "random:0", size=size)
    assert tuned_parameters(identity, 0) == ()
    everything = [name for block in blocks for name in block]
    assert list(tuned_parameters(identity, 99)) == everything and len(everything) == len(set(everything))


@pytest.mark.parametrize("names", [("test_resnet",) * 3, ("test_efficientnet", "test_resnet")])
def test_defect_13_1_frozen_parts_stay_put_and_in_evaluation_mode_in_training(names: tuple[str, ...]) -> None:
    """The study's backbones were in training mode: drop path shook them, BatchNorm statistics drifted (13.1)."""
    model = model_of(*names, tuned=2)
    streams = len(names)
    for parent in (model, nn.Sequential(model)):
        parent.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for seed in range(3):
        output = model(crops_of(6, streams, seed=seed), everyone(6, streams))
        nn.functional.binary_cross_entropy_with_logits(output, torch.rand(6, L)).backward()
        optimiser.step()
    after = model.state_dict()
    for stream, backbone in model.backbones.items():
        assert isinstance(backbone, TunedBackbone)
        tuned = set(tuned_parameters(backbone.identity, 2))
        assert tuned
        for name, value in backbone.model.state_dict().items():
            key = f"backbones.{stream}.model.{name}"
            moved = not torch.equal(before[key], value)
            assert moved == (name in tuned), f"{key}: of BatchNorms, statistics never move; weights of tuned blocks do"
        for name, module in backbone.model.named_modules():
            own = {f"{name}.{parameter}" for parameter, _ in module.named_parameters()}
            if isinstance(module, nn.modules.batchnorm._BatchNorm) or (own and not own <= tuned):
                assert not module.training, name
        assert any(module.training for module in backbone.model.modules())
    assert not torch.equal(after["head.head.weight"], before["head.head.weight"])
    model.eval()
    assert not any(module.training for module in model.modules())


def test_dropout_of_tuned_blocks_is_at_work_and_that_of_frozen_ones_is_not() -> None:
    model = model_of("test_vit", size=160, tuned=1)
    backbone: Any = model.backbones["context"]
    rates = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, nn.Dropout):
            rates[name] = module
    model.train()
    assert (
        {name for name, module in rates.items() if module.training}
        == {name for name in rates if name.startswith("blocks.5.")}
        != set()
    )


def test_below_the_first_tuned_block_no_gradient_is_kept() -> None:
    model = model_of("test_resnet", tuned=1)
    backbone: Any = model.backbones["context"].train()
    seen: dict[str, bool] = {}
    for name in ("layer3", "layer4"):
        getattr(backbone.model, name).register_forward_hook(
            lambda *given, name=name: seen.update({name: given[2].requires_grad})
        )
    assert backbone(crops_of(2)[0]).requires_grad
    assert seen == {"layer3": False, "layer4": True}
    frozen_model = model_of("test_resnet", tuned=0)
    assert not frozen_model.backbones["context"](crops_of(2)[0]).requires_grad
    assert not any(p.requires_grad for p in frozen_model.backbones.parameters())


@pytest.mark.parametrize(("name", "size", "tokens"), [("test_resnet", 48, 0), ("test_vit", 160, 4)])
def test_features_are_those_of_the_embedding_jobs_backbone(name: str, size: int, tokens: int) -> None:
    """So a head that was trained on cached features finds here what it knows."""
    identity = identify(name, "random:0", size=size)
    backbone = Backbone(identity)
    model = build(identity, "random:0")
    crops = crops_of(3, 1, size)[0]
    assert crops is not None
    pooled, grid = backbone(np.stack([backbone.prepare(own.numpy()) for own in crops]), tokens=tokens)
    with torch.no_grad():
        ours = TunedBackbone(identity, model, tuned_parameters(identity, 1), tokens=tokens).train()(crops)
    np.testing.assert_allclose(ours.numpy(), grid if tokens else pooled, rtol=1e-4, atol=1e-4)


def test_a_missing_face_is_not_looked_at() -> None:
    """The study feeds black squares for missing faces."""
    model = model_of("test_resnet", "test_resnet", "test_resnet").eval()
    crops, mask = crops_of(5), everyone(5)
    mask[[1, 3], 2] = False
    looked: list[int] = []
    model.backbones["face"].register_forward_hook(lambda _, given, __: looked.append(len(given[0])))
    with torch.no_grad():
        first = model(crops, mask)
        assert crops[2] is not None
        crops[2][[1, 3]] = 255
        second = model(crops, mask)
        everyones = model(crops, everyone(5))
        nobodys = model([crops[0], crops[1], None], torch.tensor([[True, True, False]]).expand(5, 3))
    assert looked == [3, 3, 5]
    assert torch.equal(first, second) and torch.isfinite(first).all()
    changed = (first - everyones).abs().amax(dim=1) > 1e-6
    assert changed.tolist() == [False, True, False, True, False]
    torch.testing.assert_close(nobodys[[1, 3]], first[[1, 3]])


def test_a_stream_that_an_ablation_leaves_out_has_no_backbone() -> None:
    model = model_of("test_resnet", "test_resnet", "test_resnet", ablation="face_body")
    assert set(model.backbones) == {"body", "face"}
    crops = crops_of(2)
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model([None, *crops[1:]], everyone(2)), model(crops, everyone(2)))


@pytest.mark.parametrize(("name", "size"), [("test_resnet", 32), ("test_vit", 160)])
def test_computing_activations_again_changes_no_gradient(name: str, size: int) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = model_of(name, tuned=2, size=size, checkpointing=checkpointing).train()
        model(crops_of(3, 1, size), everyone(3, 1)).square().sum().backward()
        gradients.append({own: p.grad for own, p in model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and all(value is not None for value in gradients[0].values())
    for own, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][own], value)


def test_tokens_that_a_backbone_does_not_have_are_refused() -> None:
    with pytest.raises(InputError, match="places"):
        model_of("test_resnet", "test_resnet", fusion="attention", tokens=7)
    model = model_of("test_resnet", "test_resnet", fusion="attention", tokens=1)
    assert model(crops_of(2, 2), everyone(2, 2)).shape == (2, L)
