"""timm models without their classifier: creation, weights, feature shapes, and blocks.

All use of timm goes through this module. The feature of a picture is timm's output before the classifier. If a head has
layers between pooling and classifier (MobileNetV3: 960 -> 1,280, VGG: 512 -> 4,096), `pool` omits them, as the public
EMOTIC study does.
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
# Number and side of the pictures for the statistics of untrained BatchNorms; feasible for the largest model.
CALIBRATION_COUNT, CALIBRATION_SIDE = 8, 160
# Errors that timm models raise for an unsuitable picture size.
_SIZE_ERRORS = (AssertionError, RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


def create(name: str, size: int | None = None) -> Any:
    """Creates a timm model without its classifier, with timm's initial weights.

    Args:
        size: side of the pictures in pixels; None for the model's default.

    Raises:
        InputError: timm has no such model, or it does not accept RGB pictures of this size.
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
        try:  # transformers have one position per patch, so they are created for a size
            return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
        except _SIZE_ERRORS as error:
            raise _wrong_size(model, name, size, error) from error
    return model


def published(name: str, size: int | None = None) -> Any:
    """Creates a model as `create` does, with timm's published weights from its cache or the hub.

    Raises:
        InputError: the weights are unavailable.
    """
    import timm

    config = timm.get_pretrained_cfg(name)
    fixed = size is not None and config and config.fixed_input_size and config.input_size[-1] != size
    try:
        return timm.create_model(name, pretrained=True, num_classes=0, **({"img_size": size} if fixed else {}))
    except Exception as error:  # the hub's client raises various errors
        raise InputError(
            f"the published weights of {name} could not be had ({first_line(error)})",
            remedy="Download its model.safetensors from the hub, and give the path of that file as the weights.",
        ) from error


def made_for(model: Any) -> int:
    """Returns the model's default side of pictures, in pixels."""
    return int(model.pretrained_cfg["input_size"][-1])


def _wrong_size(model: Any, name: str, size: int, error: BaseException) -> InputError:
    return InputError(
        f"{name} reads no pictures of {size} pixels a side ({first_line(error)})",
        remedy=f"Leave the size at {made_for(model)}, give a multiple of 32, or choose another model.",
    )


def untrained(name: str, size: int, seed: int) -> Any:
    """Creates a model from `seed` with measured BatchNorm statistics, without changing the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = create(name, size)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if norms:
        _measure(model, norms, min(size, CALIBRATION_SIDE), seed)
    return model


def _measure(model: Any, norms: list[Any], size: int, seed: int) -> None:
    """Sets the statistics of each BatchNorm from seeded pictures of smooth and fine noise."""
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
    """Loads a weights file into the model `name`, without the file's classifier.

    Raises:
        InputError: the file is not a weights file, or does not fit; the message names the differences.
    """
    state: dict[str, Any] = read_state_dict(path)
    own = model.state_dict()
    remedy = "Name the model that they belong to."
    # timm's own conversion of published weights: original authors' names, positions for other picture sizes.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is not None:
        try:
            state = dict(rename(dict(state), model))
        except Exception as error:  # it assumes names that it knows
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


def classifier(name: str, path: str | None) -> tuple[Tensor, Tensor]:
    """Returns weight (C, dim) and bias (C,) of the last layer of published or given weights of a model.

    Args:
        path: a weights file; None: timm's published ones.

    Raises:
        InputError: the weights hold no classifier of the model's pooled feature.
    """
    import timm

    remedy = "Name weights with their classifier, or set model.class_names to 0."
    if path is None:
        try:
            state: dict[str, Any] = timm.create_model(name, pretrained=True).state_dict()
        except Exception as error:  # the hub's client raises various errors
            raise InputError(f"the published weights of {name} could not be had ({first_line(error)})") from error
    else:
        state = dict(read_state_dict(path))
    head = create(name).pretrained_cfg.get("classifier")
    weight = state.get(f"{head}.weight") if isinstance(head, str) else None
    if weight is None or weight.ndim != 2:
        raise InputError(f"holds no classifier of {name}", path=path, remedy=remedy)
    bias = state.get(f"{head}.bias")
    return weight.float(), torch.zeros(len(weight)) if bias is None else bias.float()


def class_names(name: str, count: int) -> list[str]:
    """Returns the first name of each of the `count` classes of ImageNet that a model tells apart.

    Raises:
        InputError: its classes are not those of ImageNet, as far as timm knows.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(create(name))
    info = ImageNetInfo(subset or "imagenet-1k")
    if info.num_classes() != count or (subset is None and count != 1000):
        raise InputError(f"the {count} classes of {name} have no names here", remedy="Set model.class_names to 0.")
    return [str(info.index_to_description(number)).partition(",")[0].strip() for number in range(count)]


def frozen(model: Any) -> Any:
    """Puts the model in evaluation mode, without gradients, in its best memory format.

    The public study left its backbones in training mode: stochastic depth randomised the features, batch statistics
    replaced the running ones, and those drifted on train and validation pictures.
    """
    return model.requires_grad_(False).eval().to(memory_format=memory_format(model))


def memory_format(model: nn.Module) -> torch.memory_format:
    """Returns channels-last for models with BatchNorm, 1.3 to 1.8 times as fast there; others do not benefit."""
    convnet = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return torch.channels_last if convnet else torch.contiguous_format


def shapes(model: Any, name: str, size: int, pooled_stages: int = 0) -> tuple[int, int, int]:
    """Returns the length of the pooled feature, the channels of a token, and the side of the grid (0, 0 without one).

    Works on the meta device, without computing anything.

    Raises:
        InputError: the model does not accept pictures of this size.
    """
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            features, pooled = features_of(model, torch.zeros(1, 3, size, size, device=device), pooled_stages)
            dim = int(pooled.shape[-1])
    except _SIZE_ERRORS as error:
        if device.type == "meta":  # a few models compute sizes from values
            return shapes(create(name, size), name, size, pooled_stages)
        raise _wrong_size(model, name, size, error) from error
    try:
        grid = feature_map(model, features)
    except InputError:
        return dim, 0, 0
    return dim, int(grid.shape[1]), min(int(grid.shape[2]), int(grid.shape[3]))


def output_width(model: Any, name: str, size: int | None = None) -> int:
    """Returns the size of the model's own output for a picture, including layers of its head.

    Raises:
        InputError: the model does not accept pictures of this size.
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
    """Computes the vector (n, dim) before the classifier from the result of `forward_features`.

    Layers of a head that change the width (MobileNetV3, VGG) are omitted: the result is the mean over the map.
    """
    if isinstance(features, Tensor) and features.ndim == 4:
        own, width = getattr(model, "head_hidden_size", None), getattr(model, "num_features", None)
        if own is not None and own != width:
            return feature_map(model, features).mean(dim=(2, 3))
    pooled = model.forward_head(features, pre_logits=True)
    if isinstance(pooled, tuple):  # two heads, of class and distillation token
        pooled = torch.stack(pooled).mean(0)
    return pooled.flatten(1)


def features_of(model: Any, pixels: Tensor, pooled_stages: int = 0) -> tuple[Any, Tensor]:
    """Returns the result of `forward_features`, and the pooled vector (n, dim) of each picture.

    Args:
        pixels: float32 (n, 3, size, size), normalised.
        pooled_stages: 0: the vector is that of `pool`. Else the mean of the maps after each of so many last stages
            (`stage_modules`), one after the other from the earliest.

    Raises:
        InputError: the model has fewer stages.
    """
    if not pooled_stages:
        features = model.forward_features(pixels)
        return features, pool(model, features)
    found: dict[str, Tensor] = {}
    last = str(getattr(model, "output_fmt", "")).endswith("NHWC")

    def keep(name: str) -> Any:
        def hook(_: Any, __: Any, given: Any) -> None:
            found.pop(name, None)  # of a module that runs more than once, the last time counts
            found[name] = _mean_of_map(model, given, last=last)

        return hook

    hooks = [model.get_submodule(name).register_forward_hook(keep(name)) for name in stage_modules(model)]
    try:
        features = model.forward_features(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    # In the order in which they ran; a module that is never called as a whole is no stage.
    if pooled_stages > len(found):
        raise InputError(
            f"{type(model).__name__} has {len(found)} stages, not {pooled_stages}",
            remedy="Ask for fewer with pooled_stages.",
        )
    return features, torch.cat(list(found.values())[-pooled_stages:], dim=1)


def _mean_of_map(model: Any, given: Any, *, last: bool) -> Tensor:
    """Returns the mean (n, channels) over the places of a stage's result."""
    own: Tensor = given[0] if isinstance(given, tuple | list) else given
    if own.ndim == 4:
        return own.mean(dim=(1, 2) if last else (2, 3))
    if own.ndim == 3:  # tokens, after those of the class and the registers
        return own[:, getattr(model, "num_prefix_tokens", None) or 0 :].mean(dim=1)
    raise InputError(
        f"the stages of {type(model).__name__} return no map of the picture", remedy="Set pooled_stages to 0."
    )


def stage_modules(model: Any) -> list[str]:
    """Returns the names of the modules after which `features_of` may take the map, from the input on.

    They are the numbered modules that contain others, as timm's models have them: `layer1`, `blocks.3`, `stages.2`.
    """
    found: dict[str, None] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")[:-1]
        number = next((i for i, part in enumerate(parts) if any(letter.isdigit() for letter in part)), len(parts))
        if number < len(parts) - 1 and parameter.ndim > 1:
            found[".".join(parts[: number + 1])] = None
    return list(found)


def feature_map(model: Any, features: Any) -> Tensor:
    """Converts the result of `forward_features` to a feature map (n, channels, rows, columns).

    Channels-last maps, such as Swin's, are permuted. A transformer's tokens are arranged in their square, without
    class, distillation and register tokens.

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
    """Averages the last feature map to side x side places (`adaptive_avg_pool2d`), row by row.

    Returns float32 (n, side ** 2, channels).
    """
    grid = nn.functional.adaptive_avg_pool2d(feature_map(model, features).float(), side)
    return grid.flatten(2).transpose(1, 2)


def stages(model: Any) -> list[list[str]]:
    """Returns the names of the parameters by stage, from the input on, as in timm's layer-wise learning rate decay.

    The stages are stem and stages of a convnet or a Swin, or patch embedding and layers of a ViT.

    Raises:
        InputError: timm does not define them.
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
    """Returns the names of the parameters by block of a backbone, from the input on.

    Blocks are its `stages`, but a final norm belongs to the block before it; otherwise the last block of a Swin would
    have only 3,072 numbers. Parameters without influence on the feature (layers of the old classifier) are omitted.

    Raises:
        InputError: timm does not define the stages.
    """
    try:
        with torch.device("meta"):
            model = create(name, size)
        used = _used(model, size)
    except (RuntimeError, NotImplementedError):  # a few models compute sizes from values, which meta tensors lack
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
    """Returns the names of the parameters that influence the feature of a picture."""
    parameters = dict(model.eval().named_parameters())
    device = next(iter(parameters.values())).device
    with torch.enable_grad():
        pooled = pool(model, model.forward_features(torch.zeros(1, 3, size, size, device=device)))
        gradients = torch.autograd.grad(pooled.sum(), list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
