"""timm models without their classifier: made, filled with weights, and asked what they give and what they are made of.

All that raymotion takes from timm comes through here. The feature of a picture is what timm gives before the
classifier. Where a head has layers of its own between pooling and classifier (MobileNetV3: 960 -> 1,280, VGG: 512 ->
4,096), `pool` leaves them out, as the public EMOTIC study does.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch
from torch import Tensor, nn

from raymotion.errors import InputError
from raymotion.models.weights_file import differences, read_state_dict
from raymotion.weights import first_line

LIST = "`python -c 'import timm; print(timm.list_models())'` lists what there is."
# Pictures for the statistics of untrained BatchNorms: enough of them, and small enough for the largest model.
CALIBRATION_COUNT, CALIBRATION_SIDE = 8, 160
# What timm raises where a model cannot be made for a size, or does not read pictures of it.
_SIZE_ERRORS = (AssertionError, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


def create(name: str, size: int | None = None) -> Any:
    """A timm model without its classifier, with timm's initial weights.

    Args:
        size: side of the pictures that it will read; None: what it was made for.

    Raises:
        InputError: timm has no such model, or it does not read RGB pictures of this size.
    """
    import timm

    if "/" in name or ":" in name:
        raise InputError(
            f"{name!r} is not the name of a timm model",
            remedy="Name the model, and give a hub id or a file as its weights.",
        )
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"timm has no model {name!r} ({first_line(error)})", remedy=LIST) from error
    channels = model.pretrained_cfg["input_size"][0]
    if channels != 3:
        raise InputError(f"{name} reads {channels} channels, not 3", remedy="Choose another model.")
    if size is not None and size != made_for(model) and model.pretrained_cfg.get("fixed_input_size"):
        try:  # transformers hold one position for each patch: they have to be made for the size
            return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except _SIZE_ERRORS as error:
            raise _wrong_size(model, name, size, error) from error
    return model


def published(name: str, size: int | None = None) -> Any:
    """`create`, with the weights that timm publishes under the name, in its cache or fetched.

    Raises:
        InputError: they cannot be had.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    fixed = size is not None and config and config.fixed_input_size and config.input_size[-1] != size
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **({"img_size": size} if fixed else {}))
    except Exception as error:  # whatever the hub's client raises
        raise InputError(
            f"the published weights of {name} could not be had ({first_line(error)})",
            remedy="Download its model.safetensors from the hub, and give the path of that file as the weights.",
        ) from error


def made_for(model: Any) -> int:
    """Side of the pictures that the model was made for, pixels."""
    return int(model.pretrained_cfg["input_size"][-1])


def _wrong_size(model: Any, name: str, size: int, error: BaseException) -> InputError:
    return InputError(
        f"{name} reads no pictures of {size} pixels a side ({first_line(error)})",
        remedy=f"Leave the size at {made_for(model)}, give a multiple of 32, or choose another model.",
    )


def untrained(name: str, size: int, seed: int) -> Any:
    """The model as timm initialises it from `seed`, its BatchNorms measured; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(name, size)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if norms:
        _measure(model, norms, min(size, CALIBRATION_SIDE), seed)
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


def load(model: Any, name: str, path: str) -> None:
    """Loads a weights file into the model called `name`; a classifier in the file is left out.

    Raises:
        InputError: it is no weights file, or holds other weights; names all that differ.
    """
    state: dict[str, Any] = read_state_dict(path)
    own = model.state_dict()
    remedy = "Name the model that they belong to."
    # What timm itself does to published weights: names of the original authors, positions of another picture size.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        try:
            state = dict(rename(dict(state), model))
        except Exception as error:  # it assumes the names that it knows
            raise InputError(
                f"holds other weights than {name} ({first_line(error)})", path=path, remedy=remedy
            ) from error
    head = model.pretrained_cfg.get("classifier")
    heads = tuple(f"{part}." for part in ([head] if isinstance(head, str) else head or ()))
    state = {key: value for key, value in state.items() if key in own or not (heads and key.startswith(heads))}
    wrong = differences(own, state)
    if wrong:
        raise InputError(f"does not fit {name}: {wrong}", path=path, remedy=remedy)
    model.load_state_dict(state)


def frozen(model: Any) -> Any:
    """The model in evaluation mode and without gradients, in the memory format that suits it.

    The public study left its backbones in training mode: drop-path and stochastic depth shook the features, batch
    statistics replaced the running ones, and those drifted on train and validation pictures.
    """
    return model.requires_grad_(False).eval().to(memory_format=memory_format(model))


def memory_format(model: nn.Module) -> torch.memory_format:
    """Convolutions with BatchNorm run 1.3 to 1.8 times as fast with the channels last; others do not."""
    convnet = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return torch.channels_last if convnet else torch.contiguous_format


def shapes(model: Any, name: str, size: int) -> tuple[int, int, int]:
    """Length of the pooled feature, channels of a token and side of the grid (0, 0 without one), asked of the model.

    Works on the meta device: nothing is computed there.

    Raises:
        InputError: it reads no pictures of this size.
    """
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            features = model.forward_features(torch.zeros(1, 3, size, size, device=device))
            dim = int(pool(model, features).shape[-1])
    except _SIZE_ERRORS as error:
        if device.type == "meta":  # a few models compute sizes from values
            return shapes(create(name, size), name, size)
        raise _wrong_size(model, name, size, error) from error
    try:
        grid = feature_map(model, features)
    except InputError:
        return dim, 0, 0
    return dim, int(grid.shape[1]), min(int(grid.shape[2]), int(grid.shape[3]))


def output_width(model: Any, name: str, size: int | None = None) -> int:
    """How many numbers the model itself gives of a picture, its head's own layers included.

    Raises:
        InputError: it reads no pictures of this size.
    """
    training, size = model.training, size or made_for(model)
    try:
        with torch.no_grad():  # some models have a wider head than num_features says
            return int(model.eval()(torch.zeros(1, 3, size, size)).shape[-1])
    except _SIZE_ERRORS as error:
        raise _wrong_size(model, name, size, error) from error
    finally:
        model.train(training)


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
    """The last feature map as (n, channels, rows, columns), out of what `forward_features` gave.

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


def token_grid(model: Any, features: Any, side: int) -> Tensor:
    """The last feature map averaged to side x side places (`adaptive_avg_pool2d`), float32 (n, side ** 2, channels).

    Places come row by row.
    """
    grid = nn.functional.adaptive_avg_pool2d(feature_map(model, features).float(), side)
    return grid.flatten(2).transpose(1, 2)


def stages(model: Any) -> list[list[str]]:
    """Names of the model's parameters in its stages, the input's first: those by which timm decays learning rates.

    Stem and stages of a convnet or a Swin, patch embedding and layers of a ViT.

    Raises:
        InputError: timm does not say what they are.
    """
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        raise InputError(
            f"timm does not say what the blocks of {type(model).__name__} are",
            remedy="Set tuned_blocks to 0, or choose another model.",
        )
    groups = group_parameters(model, model.group_matcher(coarse=True))
    return [groups[number] for number in sorted(groups)]


@functools.lru_cache(maxsize=64)
def blocks_of(name: str, size: int) -> tuple[tuple[str, ...], ...]:
    """The blocks of a backbone from its input on, each as the names of its parameters.

    They are its `stages`. A last norm of its own belongs to the block before it, or "the last block" of a Swin would
    be 3,072 numbers. What the feature does not depend on (layers of the old classifier) is in none.

    Raises:
        InputError: timm does not say what they are.
    """
    try:
        with torch.device("meta"):
            model = create(name, size)
        used = _used(model, size)
    except (RuntimeError, NotImplementedError):  # a few models compute sizes from values, which meta has none of
        model = create(name, size)
        used = _used(model, size)
    sizes = {own: parameter.ndim for own, parameter in model.named_parameters()}
    blocks: list[list[str]] = []
    for stage in stages(model):
        names = [own for own in stage if own in used]
        if blocks and all(sizes[own] < 2 for own in names):
            blocks[-1] += names
        elif names:
            blocks.append(names)
    return tuple(tuple(block) for block in blocks)


def _used(model: Any, size: int) -> set[str]:
    """Names of the parameters that the feature of a picture depends on."""
    parameters = dict(model.eval().named_parameters())
    device = next(iter(parameters.values())).device
    with torch.enable_grad():
        pooled = pool(model, model.forward_features(torch.zeros(1, 3, size, size, device=device)))
        gradients = torch.autograd.grad(pooled.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
