"""Frozen image encoders, which map a picture or crop to a pooled vector and optionally a grid of vectors.

Every timm model is a backbone by its name; those of the public EMOTIC study also have aliases (`ALIASES`). The study
takes Swin-L and DeiT-B from timm and the convolutional models from torchvision. The aliases are:

    swin             swin_large_patch4_window7_224.ms_in22k_ft_in1k, the study's own weights; 1,536 numbers
    deit             deit_base_patch16_224.fb_in1k, the study's own; 768
    efficientnet_b7  tf_efficientnet_b7.aa_in1k; 2,560. The closest in timm: like torchvision's IMAGENET1K_V1, a port
                     of the EfficientNet authors' weights
    mobilenet_v3     mobilenetv3_large_100.ra_in1k; 960. timm does not have torchvision's own weights
    vit, efficientnet_b3, resnet50, resnet101, vgg16, vgg19: listed by the study, but in none of its grids

The pooled vector is timm's feature before the classifier, without layers of the head (`timm_models.pool`), as in the
study: its MobileNetV3-L feature has 960 numbers, the mean over the last feature map. (Its VGG feature is the flattened
map, 25,088 numbers, which breaks its own fusion heads; here it is the mean, 512.)

**One rule for all streams**: the whole crop is resized to the backbone's square, ignoring its aspect ratio, as in the
study. timm's evaluation crops the centre instead, which cuts off the head and feet of a standing person, and removes a
person at the border from the context; `identify(..., fit="center")` does the same. Mean, deviation, size and
interpolation are always the backbone's own, so that every backbone can read every stream; the study's transformers
failed on its faces of 48 pixels.

Without trained weights, `random:SEED` builds the model as timm initialises it from that seed, and measures the
statistics of its BatchNorms once on seeded noise (with the initial statistics, signals of deep convnets vanish or
explode). Features of untrained networks distinguish only colours and textures, and are meant for trial runs.

This module imports torch and timm only when a backbone is used.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import Field, PositiveFloat

from raymotion.errors import InputError
from raymotion.models.vision.identity import Identity
from raymotion.weights import DEFAULT, find, seed_of
from raymotion.weights import identify as weights_of

ALIASES: Mapping[str, str] = {
    "swin": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "deit": "deit_base_patch16_224.fb_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.aa_in1k",
    "mobilenet_v3": "mobilenetv3_large_100.ra_in1k",
    "vit": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "efficientnet_b3": "tf_efficientnet_b3.aa_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv2_in1k",
    "vgg16": "vgg16.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
}
# Number of hex digits of a weights file's SHA-256 in an identity.
DIGITS = 16
# Limits of the input side in pixels and of feature lengths; larger values mean a damaged file.
LARGEST_SIDE, LARGEST_COUNT = 4096, 1_000_000
FITS = ("whole", "center")
FILTERS = ("nearest", "bilinear", "bicubic", "lanczos")
PRECISIONS = ("float32", "bfloat16", "float16")


class BackboneIdentity(Identity):
    """Everything that determines the features of a picture.

    Attributes:
        name: timm's name, with the tag of weights and data config if there is one.
        weights: `timm:TAG`, `random:SEED`, or `sha256:` and 16 hex digits of a weights file.
        dim: length of the pooled feature.
        size: side of the model's square input, in pixels.
        crop_pct: with fit `center`, the share of the resized picture's side that is kept. Not used by `whole`.
        mean, std: per channel, for pixels in [0, 1].
        fit: `whole` (resized to the square without cropping) or `center` (timm's evaluation).
        token_dim: channels of the spatial tokens; 0 if the model has no grid of features.
        grid: side of its square grid at this size, in tokens; 0 as above.
        pooled_stages: the pooled feature is of the maps after so many last stages (`timm_models.features_of`); 0: the
            model's own.
    """

    what: ClassVar[str] = "backbone"

    # timm also accepts addresses and folders, which an untrusted file must not name.
    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    dim: int = Field(ge=1, le=LARGEST_COUNT)
    size: int = Field(ge=1, le=LARGEST_SIDE)
    crop_pct: float = Field(gt=0, le=10)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    fit: Literal["whole", "center"] = "whole"
    token_dim: int = Field(0, ge=0, le=LARGEST_COUNT)
    grid: int = Field(0, ge=0, le=LARGEST_COUNT)
    pooled_stages: int = Field(0, ge=0, le=LARGEST_COUNT)


def full_name(name: str) -> str:
    """Returns timm's name for `name`, with aliases resolved."""
    return ALIASES.get(name, name)


def identify(
    name: str, weights: str = DEFAULT, *, size: int | None = None, fit: str = "whole", pooled_stages: int = 0
) -> BackboneIdentity:
    """Returns the identity of a backbone without loading weights: the model is built on torch's `meta` device.

    Args:
        name: an alias, or any timm name, with or without a tag.
        weights: see `raymotion.weights`; `default` are timm's published weights for the tag. A file is read for its
            digest, and downloaded first if it is on a hub.
        size: side of the input in pixels; None: as it was trained.
        fit: `whole` or `center`, see the module.
        pooled_stages: see `BackboneIdentity`.

    Raises:
        InputError: timm lacks the model or its weights, it does not accept this size, or the file is missing.
    """
    if fit not in FITS:
        raise InputError(f"no fit is called {fit!r}", remedy=f"Choose from {', '.join(FITS)}.")
    if size is not None and size < 1:
        raise InputError(f"a size of {size} pixels is too small", remedy="Give a multiple of 32.")
    found = describe(full_name(name), size, pooled_stages)
    if weights == DEFAULT and not found.weights:
        raise InputError(
            f"timm publishes no weights for {name}",
            remedy="Name a state dict, a hub id or random:SEED, or another backbone.",
        )
    told = weights_of(weights, found.weights, digits=DIGITS)
    return found.model_copy(update={"weights": told, "fit": fit})


@functools.lru_cache(maxsize=64)
def describe(name: str, size: int | None, pooled_stages: int = 0) -> BackboneIdentity:
    """Returns the identity with the tag of the published weights as `weights`, or "" without any.

    Args:
        name: the name in timm, see `full_name`.
    """
    import torch
    from timm.data import resolve_model_data_config

    from raymotion.models.vision import timm_models

    with torch.device("meta"):
        model = timm_models.create(name, size)
    config = resolve_model_data_config(model)
    side = size or int(config["input_size"][-1])
    dim, token_dim, grid = timm_models.shapes(model, name, side, pooled_stages)
    published: dict[str, Any] = model.pretrained_cfg
    tag = str(published.get("tag") or "")
    has_weights = any(published.get(key) for key in ("hf_hub_id", "url", "file"))
    return BackboneIdentity(
        name=f"{name.partition('.')[0]}.{tag}" if tag and tag != "untrained" else name,
        weights=f"timm:{tag or 'default'}" if has_weights else "",
        dim=dim,
        size=side,
        crop_pct=float(config["crop_pct"]),
        interpolation=config["interpolation"] if config["interpolation"] in FILTERS else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        token_dim=token_dim,
        grid=grid,
        pooled_stages=pooled_stages,
    )


def build(identity: BackboneIdentity, weights: str) -> Any:
    """Builds the timm model of `identity` with these weights, frozen.

    Raises:
        InputError: the weights differ from the identity, are unavailable, or do not fit.
    """
    from raymotion.models.vision import timm_models

    name, size, seed = identity.name, identity.size, seed_of(identity.weights)
    if weights == DEFAULT:
        found = identity.weights if identity.weights.startswith("timm:") else ""
    elif weights == "random" and seed is not None:
        found = identity.weights
    else:
        found = weights_of(weights, "", digits=DIGITS)
    if found != identity.weights:
        raise InputError(
            f"the weights {weights!r} are not those of the features ({name}, {identity.weights})",
            remedy="Give the weights that they were made with, or make them again.",
        )
    if seed is not None:
        return timm_models.frozen(timm_models.untrained(name, size, seed))
    if weights == DEFAULT:
        return timm_models.frozen(timm_models.published(name, size))
    model = timm_models.create(name, size)
    timm_models.load(model, name, find(weights))
    return timm_models.frozen(model)


def classifier_of(identity: BackboneIdentity, weights: str) -> tuple[Any, Any, list[str]]:
    """Returns the classifier of a backbone's weights: weight (C, dim), bias (C,), and the names of its classes.

    Raises:
        InputError: its vectors are not what its classifier reads, or the weights hold none of named classes.
    """
    from raymotion.models.vision import timm_models

    remedy = "Set model.class_names to 0."
    if identity.is_random or identity.pooled_stages:
        why = "random weights" if identity.is_random else "vectors of several stages"
        raise InputError(f"{identity.name} has {why}, by which no class can be named", remedy=remedy)
    path = None if weights == DEFAULT else find(weights)
    weight, bias = timm_models.classifier(identity.name, path)
    if weight.shape[1] != identity.dim:
        raise InputError(
            f"the classifier of {identity.name} reads {weight.shape[1]} numbers, its vectors have {identity.dim}",
            remedy=remedy,
        )
    return weight, bias, timm_models.class_names(identity.name, len(weight))


class Backbone:
    """A frozen backbone.

    Deliberately not a torch module, so that a model containing it can neither train it nor save its weights.

    Args:
        identity: from `identify`.
        weights: as given to `identify`; must match the identity. `default` includes the random weights of a random
            identity.
        device: torch device.
        precision: `float32`, or `bfloat16` or `float16` (autocast, only on CUDA; features are always float32).

    Attributes:
        dim: length of the pooled feature.
        token_dim: channels of the spatial tokens, 0 if there are none.

    Raises:
        InputError: the weights are unavailable, differ from the identity, or do not fit the model.
    """

    def __init__(
        self, identity: BackboneIdentity, weights: str = DEFAULT, *, device: str = "cpu", precision: str = "float32"
    ) -> None:
        import torch

        from raymotion.models.vision import timm_models

        self.identity, self.dim, self.token_dim = identity, identity.dim, identity.token_dim
        self.device = torch.device(device)
        if precision not in PRECISIONS:
            raise InputError(f"no precision is called {precision!r}", remedy=f"Choose from {', '.join(PRECISIONS)}.")
        # Autocast on a CPU is slower than float32, and the features of a data set should not depend on it.
        self.dtype: torch.dtype = getattr(torch, precision) if self.device.type == "cuda" else torch.float32
        if weights == DEFAULT and identity.is_random:
            weights = identity.weights
        self.model = build(identity, weights).to(self.device)
        self.memory_format = timm_models.memory_format(self.model)
        scale = np.arange(256, dtype=np.float32) / np.float32(255)
        self._levels = np.stack(
            [(scale - np.float32(m)) / np.float32(s) for m, s in zip(identity.mean, identity.std, strict=True)]
        )

    def prepare(self, crop: np.ndarray) -> np.ndarray:
        """Converts a crop (height, width, 3) uint8 RGB to the model's input, float32 (3, size, size)."""
        image = fitted(Image.fromarray(np.ascontiguousarray(crop)), self.identity)
        pixels = np.asarray(image)
        result = np.empty((3, *pixels.shape[:2]), np.float32)
        for channel in range(3):
            np.take(self._levels[channel], pixels[..., channel], out=result[channel])
        return result

    def __call__(self, pixels: np.ndarray, *, tokens: int = 0) -> tuple[np.ndarray, np.ndarray | None]:
        """Computes features in one forward pass.

        Args:
            pixels: float32 (n, 3, size, size), from `prepare`; n may be 0.
            tokens: side g of the grid that the last feature map is averaged to (`adaptive_avg_pool2d`); 0: no tokens.

        Returns:
            The pooled features, float32 (n, dim), and the tokens row by row, float32 (n, g * g, token_dim), or None.

        Raises:
            InputError: the model has no grid, or a coarser one than g x g.
        """
        import torch

        from raymotion.models.vision import timm_models

        check_tokens(self.identity, tokens)
        if not len(pixels):
            empty = np.zeros((0, tokens * tokens, self.token_dim), np.float32) if tokens else None
            return np.zeros((0, self.dim), np.float32), empty
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        with torch.inference_mode(), autocast:
            batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device, non_blocking=True)
            batch = batch.contiguous(memory_format=self.memory_format)
            features, pooled = timm_models.features_of(self.model, batch, self.identity.pooled_stages)
            grid = timm_models.token_grid(self.model, features, tokens) if tokens else None
        return pooled.float().cpu().numpy(), None if grid is None else grid.float().cpu().numpy()


def check_tokens(identity: BackboneIdentity, tokens: int) -> None:
    """Raises an `InputError` unless the backbone's grid has at least `tokens` x `tokens` places.

    More tokens would be copies: the study's cross-modal transformer attends over 49 copies of one vector.
    """
    if tokens < 0:
        raise InputError(f"{tokens} spatial tokens a side are too few", remedy="Give 0 for none.")
    if tokens and not identity.grid:
        raise InputError(
            f"{identity.name} has no square grid of features, so no spatial tokens",
            remedy="Choose another backbone, or pooled features.",
        )
    if tokens > identity.grid:
        raise InputError(
            f"{identity.name} at {identity.size} pixels sees {identity.grid} x {identity.grid} places, "
            f"not {tokens} x {tokens}",
            remedy=f"Ask for at most {identity.grid} tokens a side, or for a larger size.",
        )


def fitted(image: Image.Image, identity: BackboneIdentity) -> Image.Image:
    """Resizes an RGB image to the backbone's square of `identity.size` pixels, by the rule of `identity.fit`."""
    size, resample = identity.size, Image.Resampling[identity.interpolation.upper()]
    if identity.fit == "center":
        # As timm.data.transforms_factory: resizes the short side to floor(size / crop_pct), then crops the centre.
        short = int(size / identity.crop_pct)
        width, height = image.size
        if width <= height:
            scaled = (short, int(short * height / width))
        else:
            scaled = (int(short * width / height), short)
        image = image.resize(scaled, resample)
        left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
        return image.crop((left, top, left + size, top + size))
    # Large pictures are first reduced by whole factors to at least 3 times the size: faster, with no visible change.
    return image.resize((size, size), resample, reducing_gap=3.0)
