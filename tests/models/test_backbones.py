"""Backbones: names, identities, features and tokens held to timm's own, frozen whatever the loop does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config

from raymotion.errors import InputError
from raymotion.models.vision import timm_models
from raymotion.models.vision.backbones import ALIASES, Backbone, BackboneIdentity, check_tokens, identify

# One of each kind: a convnet with BatchNorm, one with LayerNorm, a transformer with a class token.
SMALL = ("test_resnet", "test_convnext", "test_vit")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # small models on a busy machine: threads would wait for each other
    yield
    torch.set_num_threads(before)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def made() -> Callable[..., Backbone]:
    known: dict[Any, Backbone] = {}

    def make(name: str, weights: str = "random:0", **options: Any) -> Backbone:
        key = (name, weights, *sorted(options.items()))
        if key not in known:
            known[key] = Backbone(identify(name, weights, **options), weights)
        return known[key]

    return make


# --- identities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "dim", "size", "grid"),
    [
        # dims and sizes of the study's section 3; 25,088 of VGG is its 7 x 7 map laid flat, here averaged to 512.
        ("swin", 1536, 224, 7),
        ("deit", 768, 224, 14),
        ("efficientnet_b7", 2560, 600, 19),
        ("mobilenet_v3", 960, 224, 7),
        ("vit", 768, 224, 14),
        ("efficientnet_b3", 1536, 300, 10),
        ("resnet50", 2048, 224, 7),
        ("resnet101", 2048, 176, 6),
        ("vgg16", 512, 224, 7),
        ("vgg19", 512, 224, 7),
    ],
)
def test_the_backbones_of_the_study_have_its_widths_without_a_download(
    alias: str, dim: int, size: int, grid: int
) -> None:
    identity = identify(alias)
    assert (identity.dim, identity.token_dim, identity.size, identity.grid) == (dim, dim, size, grid)
    assert identity.name == ALIASES[alias] and identity.weights == f"timm:{ALIASES[alias].partition('.')[2]}"
    assert timm.models.is_model(identity.name.partition(".")[0]) and identity.name in timm.list_pretrained()


def test_the_winning_three_of_the_study_have_its_5632_features() -> None:
    assert sum(identify(name).dim for name in ("swin", "swin", "efficientnet_b7")) == 5632


@pytest.mark.parametrize("name", [*SMALL, "vit", "mobilenet_v3", "mobilevit_s"])
def test_pixels_are_scaled_as_timm_scales_them_for_that_model_defect_8(name: str) -> None:
    """The study fed every backbone the pixel statistics of EMOTIC or of FER-2013."""
    found = identify(name, "random:0")
    config = timm.get_pretrained_cfg(found.name)
    assert config is not None
    assert (found.mean, found.std) == (tuple(config.mean), tuple(config.std))
    assert (found.size, found.interpolation, found.crop_pct) == (
        config.input_size[-1], config.interpolation, config.crop_pct,
    )  # fmt: skip


def test_an_identity_travels_as_json_and_needs_no_torch() -> None:
    identity = identify("test_vit", "random:7")
    assert BackboneIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity
    assert identity.is_random and identity.weights == "random:7" and identity.name == "test_vit.r160_in1k"
    assert not identify("test_vit").is_random
    with pytest.raises(InputError, match="is not the identity of a backbone"):
        BackboneIdentity.from_dict({"name": "x"})
    code = "import sys, raymotion.models.vision.backbones; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swinn", {}, "'swinn'"),
        ("owner/model", {}, "give a hub id or a file as its weights"),
        ("resnet50.no_such_tag", {}, "no_such_tag"),
        ("test_vit", {"weights": "random:x"}, "the seed is not a number"),
        ("test_vit", {"weights": "nowhere/at/all.safetensors"}, "no such weights file"),
        ("test_vit", {"weights": "owner/name"}, "could not be had from the hub"),
        ("test_vit", {"fit": "stretch"}, "whole, center"),
        ("mixer_s16_224", {}, "publishes no weights"),
        ("test_vit", {"size": 33}, "reads no pictures of 33 pixels"),
        ("test_resnet", {"size": 0}, "too small"),
    ],
)
def test_what_can_not_be_is_one_sentence(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        identify(name, **options)
    assert "\n" not in str(caught.value)


def test_published_weights_that_can_not_be_downloaded_are_one_sentence_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"could not be had.*give the path") as caught:
        Backbone(identify("test_vit"))
    assert "\n" not in str(caught.value)


# --- features ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, "test_nfnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_features_and_tokens_are_timms_out_of_one_pass(made: Callable[..., Backbone], name: str) -> None:
    backbone = made(name)
    pixels = np.stack([backbone.prepare(picture(90, 70, seed)) for seed in range(3)])
    passes: list[int] = []
    handle = backbone.model.register_forward_pre_hook(lambda *_: passes.append(1))
    features = torch.empty(0)
    with torch.no_grad():
        features = backbone.model.forward_features(torch.from_numpy(pixels))
    handle.remove()
    pooled, tokens = backbone(pixels, tokens=2)
    assert pooled.dtype == np.float32 and pooled.shape == (3, backbone.dim)
    assert tokens is not None and tokens.dtype == np.float32 and tokens.shape == (3, 4, backbone.token_dim)
    with torch.no_grad():
        if name == "mobilenetv3_small_050":  # its head widens 288 to 1,024; the study takes what goes in
            expected = features.mean((2, 3))
        else:
            expected = backbone.model(torch.from_numpy(pixels))
    np.testing.assert_allclose(pooled, expected.numpy(), rtol=1e-4, atol=1e-5)
    if features.ndim == 3:  # without the class token, on the grid of its patches
        features = features[:, 1:].reshape(3, backbone.identity.grid, backbone.identity.grid, -1).permute(0, 3, 1, 2)
    by_hand = torch.nn.functional.adaptive_avg_pool2d(features, 2).flatten(2).transpose(1, 2)
    np.testing.assert_allclose(tokens, by_hand.numpy(), rtol=1e-4, atol=1e-5)
    alone, none = backbone(pixels)
    assert none is None and np.allclose(alone, pooled, atol=1e-5)


def test_tokens_are_places_row_by_row_not_copies_defect_7(made: Callable[..., Backbone]) -> None:
    """The study's cross-modal transformer attended over 49 copies of one vector."""
    for name in ("test_resnet", "test_vit"):
        backbone = made(name)
        flat = np.full((64, 64, 3), 120, np.uint8)
        spotted = flat.copy()
        spotted[:16, 48:] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))  # top right
        _, tokens = backbone(np.stack([backbone.prepare(flat), backbone.prepare(spotted)]), tokens=2)
        assert tokens is not None
        moved = np.linalg.norm(tokens[1] - tokens[0], axis=1)
        assert moved.argmax() == 1, name  # 2 x 2, row by row: the second is top right
        with pytest.raises(InputError, match="not 40 x 40"):
            backbone(np.zeros((1, 3, 8, 8), np.float32), tokens=40)


def test_channels_last_maps_and_extra_tokens_are_put_right() -> None:
    """Swin gives (n, rows, columns, channels); distilled and register tokens stand for no place."""
    for name, prefix in (("deit_tiny_distilled_patch16_224", 2), ("vit_small_patch16_dinov3", 5)):
        with torch.device("meta"):
            model = timm_models.create(name)
        assert model.num_prefix_tokens == prefix
        side = identify(name, "random:0").grid
        tokens = torch.zeros(1, prefix + side * side, model.num_features)
        tokens[0, prefix + side + 2, 0] = 1.0  # second row, third column
        grid = timm_models.feature_map(model, tokens)
        assert grid.shape == (1, model.num_features, side, side) and grid[0, 0, 1, 2] == 1.0 and grid.sum() == 1.0
    with torch.device("meta"):
        swin = timm_models.create(ALIASES["swin"])
    assert timm_models.feature_map(swin, torch.zeros(1, 7, 5, 1536)).shape == (1, 1536, 7, 5)


def test_a_model_without_a_grid_says_so() -> None:
    identity = identify("coat_tiny", "random:0")  # gives a list of maps
    assert identity.grid == 0 and identity.token_dim == 0 and identity.dim == 152
    with pytest.raises(InputError, match="no square grid"):
        check_tokens(identity, 2)


def test_features_do_not_depend_on_the_batch(made: Callable[..., Backbone]) -> None:
    for name in SMALL:
        backbone = made(name)
        pixels = np.stack([backbone.prepare(picture(60, 90, seed)) for seed in range(3)])
        together, tokens = backbone(pixels, tokens=3)
        assert tokens is not None
        for i in range(3):
            pooled, own = backbone(pixels[i : i + 1], tokens=3)
            np.testing.assert_allclose(pooled[0], together[i], rtol=1e-4, atol=1e-4)
            assert own is not None
            np.testing.assert_allclose(own[0], tokens[i], rtol=1e-4, atol=1e-4)
        empty, grid = backbone(pixels[:0], tokens=3)
        assert empty.shape == (0, backbone.dim) and grid is not None and grid.shape == (0, 9, backbone.token_dim)


@pytest.mark.parametrize("shape", [(48, 48), (1, 1), (300, 40), (20, 500)])
def test_every_kind_of_backbone_reads_faces_of_48_pixels_and_any_other_crop_defects_8_and_11(
    made: Callable[..., Backbone], shape: tuple[int, int]
) -> None:
    for name in SMALL:
        backbone = made(name)
        pixels = backbone.prepare(picture(*shape))
        assert pixels.shape == (3, 160, 160) and pixels.dtype == np.float32
        assert np.isfinite(backbone(pixels[None])[0]).all()


# --- frozen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shaken"), [("test_resnet", torch.nn.BatchNorm2d), ("test_vit", torch.nn.Dropout)])
def test_training_a_parent_moves_nothing_defect_1(name: str, shaken: type[torch.nn.Module]) -> None:
    """The study's backbones stayed in training mode: batch statistics, drop-path, and buffers that drifted."""
    backbone = Backbone(identify(name, "random:0"))
    if name == "test_vit":  # drop-path that would drop half of the residual branches
        for block in backbone.model.blocks:
            block.drop_path1 = block.drop_path2 = timm.layers.DropPath(0.5)
        backbone.model.eval()
    pixels = np.random.default_rng(0).normal(size=(4, 3, 160, 160)).astype(np.float32)
    expected, _ = backbone(pixels)
    before = {key: value.clone() for key, value in backbone.model.state_dict().items()}
    assert any(isinstance(module, shaken) for module in backbone.model.modules())

    class Parent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = backbone, torch.nn.Linear(1, 1)

    parent = Parent()
    parent.train()
    parent.requires_grad_(True)
    assert parent.training and not any(module.training for module in backbone.model.modules())
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    optimizer = torch.optim.AdamW(parent.parameters(), lr=1.0, weight_decay=0.5)
    for _ in range(2):
        found, _ = parent.backbone(pixels)
        assert np.array_equal(found, expected)
        parent.head(torch.from_numpy(found).mean(1, keepdim=True)).sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in backbone.model.state_dict().items())


def test_the_check_above_can_fail() -> None:
    """In training mode those models do give other features, and their buffers do move."""
    backbone = Backbone(identify("test_resnet", "random:0"))
    pixels = np.random.default_rng(0).normal(size=(4, 3, 160, 160)).astype(np.float32)
    expected, _ = backbone(pixels)
    before = backbone.model.bn1.running_mean.clone()
    backbone.model.train()
    found, _ = backbone(pixels)
    assert not np.allclose(found, expected) and not torch.equal(backbone.model.bn1.running_mean, before)


# --- preparation -------------------------------------------------------------------------------------------------


def denormalised(pixels: np.ndarray, identity: BackboneIdentity) -> np.ndarray:
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (identity.mean, identity.std))
    return (pixels * std + mean) * 255


@pytest.mark.parametrize("shape", [(240, 320), (500, 333), (64, 50)])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_preparation_is_timms_own(name: str, shape: tuple[int, int], made: Callable[..., Backbone]) -> None:
    crop = picture(*shape)
    config = resolve_model_data_config(made(name).model)
    theirs = create_transform(**config, is_training=False)(Image.fromarray(crop)).numpy()
    centred = made(name, fit="center")
    off = denormalised(centred.prepare(crop), centred.identity) - denormalised(theirs, centred.identity)
    assert np.abs(off).max() < 1.01
    # The rule of the house: timm's transform with the whole picture as its crop, sides scaled on their own.
    whole = made(name)
    theirs = create_transform(**{**config, "crop_pct": 1.0, "crop_mode": "squash"}, is_training=False)(
        Image.fromarray(crop)
    ).numpy()
    off = denormalised(whole.prepare(crop), whole.identity) - denormalised(theirs, whole.identity)
    assert np.abs(off).max() < 2.01


def test_nothing_at_the_border_is_cut_off(made: Callable[..., Backbone]) -> None:
    crop = np.full((400, 100, 3), 255, np.uint8)
    crop[:60] = 0  # the head of a standing person
    whole, centre = made("test_resnet"), made("test_resnet", fit="center")
    assert denormalised(whole.prepare(crop), whole.identity)[:, :20].max() < 1
    assert denormalised(centre.prepare(crop), centre.identity).min() > 250


@pytest.mark.parametrize(("name", "size", "grid"), [("test_resnet", 96, 3), ("test_vit", 96, 6)])
def test_another_size_can_be_asked_for(made: Callable[..., Backbone], name: str, size: int, grid: int) -> None:
    backbone = made(name, size=size)
    assert (backbone.identity.size, backbone.identity.grid) == (size, grid)
    pooled, tokens = backbone(backbone.prepare(picture(50, 50))[None], tokens=grid)
    assert pooled.shape == (1, backbone.dim) and tokens is not None and tokens.shape == (1, grid**2, backbone.dim)


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, "test_byobnet", "test_nfnet", "test_efficientnet", "mobilenetv3_small_050"])
def test_random_weights_are_reproducible_and_tell_pictures_apart(name: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = Backbone(identify(name, "random:1"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again, other = Backbone(identify(name, "random:1"), "random:1"), Backbone(identify(name, "random:2"))
    pixels = np.stack([first.prepare(picture(80, 80, seed)) for seed in range(4)])
    features, _ = first(pixels)
    assert np.array_equal(features, again(pixels)[0]) and not np.allclose(features, other(pixels)[0])
    # Kept as float16 (relative steps of 1/2,048), the differences between pictures must remain.
    largest = np.abs(features).max(0)
    alive = largest > 1e-3
    assert alive.mean() > 0.7 and 0.01 < np.abs(features).mean() < 100
    assert np.median(features.std(0)[alive] / largest[alive]) > 0.02


@pytest.mark.parametrize("form", ["safetensors", "pth", "training-script"])
def test_a_state_dict_is_loaded_with_or_without_its_classifier(tmp_path: Path, form: str) -> None:
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", pretrained=False, num_classes=10 if form != "pth" else 0).eval()
    path = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}"
    if form == "safetensors":
        save_file(source.state_dict(), path)
    else:
        torch.save(source.state_dict() if form == "pth" else {"epoch": 3, "state_dict": source.state_dict()}, path)
    identity = identify("test_resnet", str(path))
    assert identity.weights.startswith("sha256:") and len(identity.weights) == len("sha256:") + 16
    backbone = Backbone(identity, str(path))
    pixels = backbone.prepare(picture(70, 70))[None]
    with torch.no_grad():
        expected = source.forward_head(source.forward_features(torch.from_numpy(pixels)), pre_logits=True)
    np.testing.assert_allclose(backbone(pixels)[0], expected.numpy(), rtol=1e-5, atol=1e-6)


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "vit.safetensors")
    identity = identify("test_vit", str(tmp_path / "vit.safetensors"), size=96)
    backbone = Backbone(identity, str(tmp_path / "vit.safetensors"))
    assert backbone.model.pos_embed.shape[1] == 6 * 6 + 1
    assert np.isfinite(backbone(backbone.prepare(picture(40, 40))[None])[0]).all()


def test_weights_that_do_not_fit_are_one_error_that_names_all(tmp_path: Path) -> None:
    state = timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict()
    state["conv1.0.weight"] = torch.zeros(1)
    state["surplus.weight"] = torch.zeros(2)
    del state["layer1.0.conv1.weight"]
    path = tmp_path / "wrong.safetensors"
    save_file(state, path)
    with pytest.raises(InputError) as caught:
        Backbone(identify("test_resnet", str(path)), str(path))
    text = str(caught.value)
    assert all(
        name in text for name in ("wrong.safetensors", "conv1.0.weight", "surplus.weight", "layer1.0.conv1.weight")
    )
    assert "\n" not in text
    with pytest.raises(InputError, match="vit"):
        Backbone(identify("test_vit", str(path)), str(path))


def test_weights_other_than_those_of_the_features_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict(), path)
    file, random_one = identify("test_resnet", str(path)), identify("test_resnet", "random:1")
    for identity, weights in ((random_one, "random:2"), (random_one, str(path)), (file, "random:1"), (file, "default")):
        with pytest.raises(InputError, match="are not those of the features"):
            Backbone(identity, weights)
    save_file(timm.create_model("test_resnet", pretrained=False, num_classes=0).state_dict(), path)  # written anew
    with pytest.raises(InputError, match="are not those of the features"):
        Backbone(file, str(path))


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_in_a_weights_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Code()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a readable weights file"):
        Backbone(identify("test_resnet", str(tmp_path / "evil.pth")), str(tmp_path / "evil.pth"))
    assert not (tmp_path / "executed").exists()
