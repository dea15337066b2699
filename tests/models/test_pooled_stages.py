"""Vectors of the maps after a backbone's last stages."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from raymotion.errors import InputError
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import Backbone, BackboneIdentity, identify


def test_vector_is_the_means_of_timms_own_maps() -> None:
    identity = identify("resnet18", "random:0", size=64, pooled_stages=2)
    backbone = Backbone(identity)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    found, _ = backbone(pixels)
    with torch.no_grad():
        maps = backbone.model.forward_intermediates(torch.from_numpy(pixels), indices=2, intermediates_only=True)
    expected = torch.cat([own.mean(dim=(2, 3)) for own in maps], dim=1).numpy()
    assert identity.dim == 256 + 512
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_transformer_are_averaged_without_the_class_token() -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0).eval()
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, found = timm_models.features_of(model, pixels, 1)
        (own,) = model.forward_intermediates(pixels, indices=[11], intermediates_only=True, norm=False)
    np.testing.assert_allclose(found.numpy(), own.mean(dim=(2, 3)).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "last"),
    [("tf_efficientnet_lite0", "blocks.6"), ("resnet18", "layer4"), ("convnext_atto", "stages.3"),
     ("swin_tiny_patch4_window7_224", "layers.3"), ("mobilenetv3_small_100", "blocks.5")],
)  # fmt: skip
def test_last_stage_by_architecture(name: str, last: str) -> None:
    assert timm_models.stage_modules(timm_models.create(name))[-1] == last


def test_stages_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="4 stages, not 9"):
        identify("resnet18", "random:0", size=64, pooled_stages=9)


def test_a_module_that_is_never_called_as_a_whole_is_no_stage() -> None:
    with pytest.raises(InputError, match="stages"):
        identify("hrnet_w18_small", "random:0", size=64, pooled_stages=40)
    # Its lists of modules are numbered, and only their members run.
    assert identify("coat_lite_tiny", "random:0", pooled_stages=1).dim > 0


def test_identity_without_the_field_reads_as_the_last_layer() -> None:
    told = identify("resnet18", "random:0", size=64).to_dict()
    del told["pooled_stages"]
    assert BackboneIdentity.from_dict(told).pooled_stages == 0
