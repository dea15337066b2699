"""Published checkpoints of the Visual Genome detector: location, config.yaml, and names of weights.

Does not import torch, so that the identity of a detector can be determined before any worker starts.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from raymotion import storage
from raymotion.config import Settings, digest_of, message_of, read_yaml
from raymotion.errors import InputError
from raymotion.weights import DEFAULT, digest, find, identify, seed_of

CONFIG = "config.yaml"
BLOCKS = {50: (3, 4, 6), 101: (3, 4, 23), 152: (3, 8, 36)}


Four = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]


def _key(key: str, default: Any, **limits: Any) -> Any:
    """Declares a setting with the name `key` in config.yaml."""
    return Field(default, json_schema_extra={"key": key}, **limits)


class VisualGenomeConfig(Settings):
    """The settings in the published config.yaml, with its usual values as defaults.

    Sizes are in pixels of the resized picture. `width` is the number of bottleneck channels of res2, which determines
    the others: res4 has 16 * width channels, a region feature 32 * width.
    """

    min_size: PositiveInt = _key("input.min_size_test", 800)
    max_size: PositiveInt = _key("input.max_size_test", 1333)
    # Blue, green, red.
    pixel_mean: tuple[float, float, float] = _key("model.pixel_mean", (102.9801, 115.9465, 122.7717))
    pixel_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = _key("model.pixel_std", (1.0, 1.0, 1.0))
    pad_value: float = _key("pad_value", 0.0)

    blocks: tuple[PositiveInt, PositiveInt, PositiveInt] = BLOCKS[101]  # of res2, res3 and res4; res5 has three
    stem_width: PositiveInt = _key("resnets.stem_out_channels", 64)
    width: PositiveInt = _key("resnets.width_per_group", 64)
    caffe_pool: bool = _key("model.max_pool", True)
    stride_in_1x1: bool = _key("resnets.stride_in_1x1", True)
    dilate_res5: bool = True

    rpn_width: int = _key("proposal_generator.hidden_channels", 512)  # -1: as many as res4 has
    anchor_sizes: tuple[PositiveFloat, ...] = _key("anchor_generator.sizes", (32, 64, 128, 256, 512))
    anchor_ratios: tuple[PositiveFloat, ...] = _key("anchor_generator.aspect_ratios", (0.5, 1.0, 2.0))
    anchor_offset: float = _key("anchor_generator.offset", 0.0, ge=0, lt=1)
    rpn_box_weights: Four = _key("rpn.bbox_reg_weights", (1, 1, 1, 1))
    proposals_before_nms: PositiveInt = _key("rpn.pre_nms_topk_test", 6000)
    proposals: PositiveInt = _key("rpn.post_nms_topk_test", 300)
    proposal_iou: float = _key("rpn.nms_thresh", 0.7, gt=0, le=1)
    proposal_min_side: float = _key("proposal_generator.min_size", 0.0, ge=0)

    pooled: PositiveInt = _key("roi_box_head.pooler_resolution", 14)
    box_weights: Four = _key("roi_box_head.bbox_reg_weights", (10, 10, 5, 5))
    classes: PositiveInt = _key("roi_heads.num_classes", 1600)  # without the background
    attributes: PositiveInt = _key("roi_box_head.num_attrs", 400)
    nms_iou: tuple[float, ...] = _key("roi_heads.nms_thresh_test", (0.5, 0.6, 0.7))
    min_detections: int = _key("min_detections", 36, ge=0)
    max_detections: PositiveInt = _key("max_detections", 36)

    @model_validator(mode="after")
    def _consistent(self) -> VisualGenomeConfig:
        if not self.nms_iou or not all(0 < value <= 1 for value in self.nms_iou):
            raise ValueError(f"NMS thresholds {self.nms_iou}, not shares of overlap")
        if self.max_size < self.min_size:
            raise ValueError(f"the longer side may have {self.max_size} pixels, the shorter one {self.min_size}")
        return self

    @property
    def dim(self) -> int:
        """Length of a region feature."""
        return 32 * self.width

    @property
    def mark(self) -> str:
        """Mark of these settings in an identity; empty for the usual ones.

        Does not depend on MAX_DETECTIONS, which the requested number of regions replaces.
        """
        own, usual = (c.model_dump(exclude={"max_detections"}) for c in (self, VisualGenomeConfig()))
        return "" if own == usual else f"+config:{digest_of(own)[:12]}"


# Field of VisualGenomeConfig <- key of config.yaml. The published code reads keys in any case.
KEYS: dict[str, str] = {
    name: str(field.json_schema_extra["key"])
    for name, field in VisualGenomeConfig.model_fields.items()
    if isinstance(field.json_schema_extra, dict)
}

# Settings for which raymotion supports only one value. INPUT.FORMAT is ignored: in the published code "RGB" reverses
# the channels of an RGB picture, so the network reads BGR, in agreement with the means.
FIXED: dict[str, Any] = {
    "resnets.num_groups": 1,
    "roi_box_head.attr": True,
    "roi_box_head.cls_agnostic_bbox_reg": False,
    "size_divisibility": 0,
}


def read_config(path: storage.PathLike) -> VisualGenomeConfig:
    """Reads the published config.yaml; missing settings keep their usual values.

    Raises:
        InputError: the file is not YAML, has no setting of the detector or an invalid value, or describes an
            unsupported variant.
    """
    given = _flat(read_yaml(path))
    values = {field: given[key] for field, key in KEYS.items() if key in given}
    if not values:
        raise InputError(
            "names no setting of the Visual Genome detector", path=path, remedy="Give the published config.yaml."
        )
    for key, wanted in FIXED.items():
        if key in given and given[key] != wanted:
            raise InputError(f"{key.upper()} is {given[key]}; raymotion builds the detector with {wanted}", path=path)
    for field in ("anchor_sizes", "anchor_ratios"):  # lists by feature map, of which there is one
        if (lists := values.get(field)) and isinstance(lists, list) and isinstance(lists[0], list):
            if len(lists) != 1:
                raise InputError(f"{KEYS[field].upper()} is for {len(lists)} feature maps, not for one", path=path)
            values[field] = lists[0]
    if isinstance(values.get("nms_iou"), int | float):
        values["nms_iou"] = [values["nms_iou"]]
    if "resnets.depth" in given:
        if given["resnets.depth"] not in BLOCKS:
            raise InputError(f"RESNETS.DEPTH is {given['resnets.depth']}, not one of {sorted(BLOCKS)}", path=path)
        values["blocks"] = BLOCKS[given["resnets.depth"]]
    if "roi_box_head.res5halve" in given:
        values["dilate_res5"] = not given["roi_box_head.res5halve"]
    try:
        config = VisualGenomeConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        what = f"{KEYS[field].upper()} is {given[KEYS[field]]}: " if field in KEYS else ""
        raise InputError(what + message_of(first), path=path) from error
    if given.get("resnets.res2_out_channels", 4 * config.width) != 4 * config.width:
        raise InputError("RESNETS.RES2_OUT_CHANNELS is not four times WIDTH_PER_GROUP", path=path)
    return config


def _flat(values: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}".lower()
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def published_name(own: str) -> str:
    """Returns the name of a `VisualGenomeDetector` parameter in the published checkpoint."""
    name = own.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
    name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
    return name.replace("generator.cell_anchors", "generator.anchor_generator.cell_anchors.0")


CELL_ANCHORS = published_name("proposal_generator.cell_anchors")


def cell_anchors(config: VisualGenomeConfig) -> np.ndarray:
    """Returns anchors (A, 4), x1 y1 x2 y2 about the origin, for each size and each ratio of height to width."""
    corners = []
    for size in config.anchor_sizes:
        for ratio in config.anchor_ratios:
            width = (size**2 / ratio) ** 0.5
            height = ratio * width
            corners.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(corners, np.float32)


def weights_by_rule(shapes: Iterable[tuple[str, tuple[int, ...]]], anchors: np.ndarray, seed: int) -> dict[str, Any]:
    """Generates untrained float32 weights for published names and shapes, which preserve the signal in all 101 layers.

    By the rule of the project's parity data (`reference/frcnn_vg.md`), each tensor depends only on its name and the
    seed, so that any implementation can reproduce it.
    """
    state: dict[str, Any] = {}
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros(shape, np.int64)
            continue
        if "cell_anchors" in name:
            state[name] = anchors
            continue
        random = np.random.default_rng([zlib.crc32(name.encode()), seed])
        if name.endswith("running_mean") or name.endswith("bias"):
            value = 0.1 * random.standard_normal(shape)
        elif name.endswith("running_var"):
            value = random.uniform(0.5, 1.5, shape)
        elif name.endswith("norm.weight"):
            value = (0.2 if ".conv3." in name else 1.0) * random.uniform(0.8, 1.2, shape)
        else:
            gain = 2**0.5
            if "cls_score" in name or "attr_score" in name:
                gain = 3.0
            elif "bbox_pred" in name or "anchor_deltas" in name:
                gain = 0.2
            value = gain / np.sqrt(np.prod(shape[1:])) * random.standard_normal(shape)
            if name == "backbone.stem.conv1.weight":
                value /= 64  # pixels are 0..255
        state[name] = np.asarray(value, np.float32)
    return state


def find_checkpoint(weights: str) -> tuple[str, VisualGenomeConfig]:
    """Returns the path of a checkpoint's weights file, and the settings in the config.yaml next to it, if any.

    Args:
        weights: as for `raymotion.weights.find`. A folder or repository must also contain a config.yaml.

    Raises:
        InputError: the weights are missing, or the config is invalid.
    """
    path = find(weights, beside=(CONFIG,))
    config = storage.join(storage.parent(storage.absolute(path)), CONFIG)
    return path, read_config(config) if storage.exists(config) else VisualGenomeConfig()


def identity_of(weights: str, published: str) -> str:
    """Returns the identity of a Visual Genome detector's weights, including settings other than the usual ones.

    Args:
        published: hub id of the `default` weights.
    """
    if seed_of(weights) is not None:
        return identify(weights, published)
    path, config = find_checkpoint(published if weights == DEFAULT else weights)
    return digest(path) + config.mark
