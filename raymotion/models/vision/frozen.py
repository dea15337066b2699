"""The torch side of `models.vision.backbones`: timm models without classifier, never trained or in training mode.

The public study left its backbones in training mode: drop-path and stochastic depth shook the features, batch
statistics replaced the running ones, and those drifted on train and validation pictures.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.vision.backbones import BackboneIdentity, first_line, weights_file
from raymotion.models.vision.regions import differences, read_state_dict, seed_of

LIST = "`python -c 'import timm; print(timm.list_models())'` lists what there is."
# Pictures for the statistics of untrained BatchNorms: enough of them, and small enough for the largest model.
CALIBRATION_COUNT, CALIBRATION_SIDE = 8, 160


class FrozenBackbone(nn.Module):
    """A timm model in evaluation mode and without gradients, whatever is done to the module that holds it."""

    model: Any

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        # Convolutions with BatchNorm run 1.3 to 1.8 times as fast with the channels last; others do not.
        convnet = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        self.memory_format = torch.channels_last if convnet else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        self.training = False

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Does nothing: frozen means frozen."""
        return self

    @torch.no_grad()
    def forward(self, pixels: Tensor, tokens: int = 0) -> tuple[Tensor, Tensor | None]:
        """Pooled features (n, dim) and, for `tokens` > 0, (n, tokens ** 2, token_dim), of pixels (n, 3, s, s)."""
        features = self.model.forward_features(pixels.contiguous(memory_format=self.memory_format))
        pooled = pool(self.model, features)
        if not tokens:
            return pooled, None
        grid = nn.functional.adaptive_avg_pool2d(feature_map(self.model, features).float(), tokens)
        return pooled, grid.flatten(2).transpose(1, 2)


def create(name: str, size: int | None = None) -> Any:
    """The timm model without its classifier, with timm's initial weights; for pictures of `size`, if that is given."""
    import timm

    if "/" in name or ":" in name:
        raise InputError(
            f"{name!r} is no name of a timm model", remedy="Name the model, and give a hub id or a file as its weights."
        )
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"timm has no backbone {name!r} ({first_line(error)})", remedy=LIST) from error
    made_for = model.pretrained_cfg["input_size"]
    if made_for[0] != 3:
        raise InputError(f"{name} reads {made_for[0]} channels, not 3", remedy="Choose another backbone.")
    if size is not None and size != made_for[-1] and model.pretrained_cfg.get("fixed_input_size"):
        try:  # transformers hold one position for each patch: they have to be made for the size
            model = timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise _wrong_size(name, size, error) from error
    return model


def _wrong_size(name: str, size: int, error: BaseException) -> InputError:
    return InputError(
        f"{name} reads no pictures of {size} pixels a side ({first_line(error)})",
        remedy="Leave the size to the backbone, or give a multiple of 32.",
    )


def shapes(model: Any, name: str, size: int) -> tuple[int, int, int]:
    """Length of the pooled feature, channels of a token and side of the grid (0, 0 without one), asked of the model.

    Works on the meta device: nothing is computed there.
    """
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(torch.zeros(1, 3, size, size, device=device))
            dim = int(pool(model, features).shape[-1])
    except (AssertionError, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
        if device.type == "meta":  # a few models compute sizes from values
            return shapes(create(name, size), name, size)
        raise _wrong_size(name, size, error) from error
    try:
        grid = feature_map(model, features)
    except InputError:
        return dim, 0, 0
    return dim, int(grid.shape[1]), min(int(grid.shape[2]), int(grid.shape[3]))


def pool(model: Any, features: Any) -> Tensor:
    """The vector (n, dim) before the classifier, out of what `forward_features` gave.

    A head's own layers are left out where they change the width (MobileNetV3, VGG): the mean over the map remains.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        own, width = getattr(model, "head_hidden_size", None), getattr(model, "num_features", None)
        if own is not None and own != width:
            return feature_map(model, features).mean(dim=(2, 3))
    pooled = model.forward_head(features, pre_logits=True)
    if isinstance(pooled, tuple):  # two heads, of class and distillation token
        pooled = torch.stack(pooled).mean(0)
    return pooled.flatten(1)


def feature_map(model: Any, features: Any) -> Tensor:
    """The last feature map as (n, channels, rows, columns).

    Maps of convnets and of Swin (channels last) are turned so; a transformer's tokens lose those that stand for no
    place (class, distillation and register tokens) and go back to their square.

    Raises:
        InputError: there is no square grid.
    """
    width = getattr(model, "num_features", None)
    if isinstance(features, Tensor) and features.ndim == 4:
        # `output_fmt` is an enum whose text ends in the order of the axes.
        last = str(getattr(model, "output_fmt", "")).endswith("NHWC")
        last = last or (features.shape[1] != width and features.shape[3] == width)
        return features.permute(0, 3, 1, 2) if last else features
    if isinstance(features, Tensor) and features.ndim == 3 and features.shape[2] == width:
        places = features[:, getattr(model, "num_prefix_tokens", None) or 0 :]
        side = round(places.shape[1] ** 0.5)
        if side and side * side == places.shape[1]:
            return places.transpose(1, 2).unflatten(2, (side, side))
    raise InputError(
        f"{type(model).__name__} has no square grid of features", remedy="Choose another backbone, or pooled features."
    )


def build(identity: BackboneIdentity, weights: str) -> FrozenBackbone:
    """The frozen model of `identity` with these weights.

    Raises:
        InputError: the weights are not what the identity says, cannot be had, or do not fit.
    """
    if identity.is_random:
        if weights not in ("random", identity.weights):
            raise _other(identity, weights)
        return FrozenBackbone(_random(identity))
    if weights.startswith("random"):
        raise _other(identity, weights)
    if weights == "default":
        if not identity.weights.startswith("timm:"):
            raise _other(identity, weights)
        return FrozenBackbone(_published(identity))
    path = weights_file(weights)
    if f"sha256:{storage.sha256_file(path)[:16]}" != identity.weights:
        raise _other(identity, weights)
    model = create(identity.name, identity.size)
    _load(model, identity, path)
    return FrozenBackbone(model)


def _other(identity: BackboneIdentity, weights: str) -> InputError:
    return InputError(
        f"the weights {weights!r} are not those of the features ({identity.name}, {identity.weights})",
        remedy="Give the weights that they were made with, or make them again.",
    )


def _published(identity: BackboneIdentity) -> Any:
    import timm

    options = {}
    if create_fixed(identity):
        options["img_size"] = identity.size
    try:
        return timm.create_model(identity.name, pretrained=True, num_classes=0, **options)
    except Exception as error:  # whatever the hub's client raises
        raise InputError(
            f"the published weights of {identity.name} could not be had ({first_line(error)})",
            remedy="Download its model.safetensors from the hub, and give the path of that file as the weights.",
        ) from error


def create_fixed(identity: BackboneIdentity) -> bool:
    """Whether the model has to be made for its size, which is not the one it was trained on."""
    import timm

    config = timm.get_pretrained_cfg(identity.name)
    return bool(config and config.fixed_input_size and config.input_size[-1] != identity.size)


def _load(model: Any, identity: BackboneIdentity, path: str) -> None:
    state: dict[str, Any] = read_state_dict(path)
    own = model.state_dict()
    # What timm itself does to published weights: names of the original authors, positions of another picture size.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        try:
            state = dict(rename(dict(state), model))
        except Exception as error:  # it assumes the names that it knows
            raise InputError(
                f"holds other weights than {identity.name} ({first_line(error)})",
                path=path,
                remedy="Name the backbone that they belong to.",
            ) from error
    head = model.pretrained_cfg.get("classifier")
    heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head or ()))
    state = {name: value for name, value in state.items() if name in own or not (heads and name.startswith(heads))}
    wrong = differences(own, state)
    if wrong:
        raise InputError(
            f"does not fit {identity.name}: {wrong}", path=path, remedy="Name the backbone that they belong to."
        )
    model.load_state_dict(state)


def _random(identity: BackboneIdentity) -> Any:
    seed = seed_of(identity.weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(identity.name, identity.size)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if norms:
        _measure(model, norms, min(identity.size, CALIBRATION_SIDE), seed)
    return model


def _measure(model: Any, norms: list[Any], size: int, seed: int) -> None:
    """Gives each BatchNorm the statistics of seeded pictures: smooth and fine noise, of several contrasts."""
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.zeros(CALIBRATION_COUNT, 3, size, size)
    for side in (1, 3, 9, size):
        noise = torch.randn(CALIBRATION_COUNT, 3, side, side, generator=generator)
        pictures += nn.functional.interpolate(noise, size=(size, size), mode="bilinear") / 2
    before = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # the statistics of this one batch
    with torch.no_grad():
        model.forward_features(pictures)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval()
