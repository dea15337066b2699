"""Region features: box head features of a Faster R-CNN for the most salient boxes of a picture.

Each picture has a fixed number N of regions, each with the box head's feature of a proposal (before box regression), a
refined box and a score. Boxes are selected as in bottom-up attention (Anderson et al. 2018): every proposal keeps its
best foreground class, one class-agnostic NMS runs over the refined boxes, and the N highest scores are kept. A mask
marks padding where fewer remain.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from pydantic import Field

from raymotion import weights as own_weights
from raymotion.errors import InputError
from raymotion.models.vision.identity import Identity

if TYPE_CHECKING:
    import torch


# Limits of regions per picture and of feature lengths; a damaged file must not cause a huge allocation.
MOST_REGIONS, LONGEST_FEATURE = 10_000, 1_000_000


@dataclass(frozen=True)
class Architecture:
    """A supported detector.

    Attributes:
        detector: `module:class` of a `Detector` with a method `build`, imported on use.
        identity: `module:function` that returns the identity of its weights; None: `weights.identify`.
        published: the `default` weights: `torchvision:ENUM`, `timm:TAG`, or a hub id.
        dim: length of a region feature.
        min_side: shorter side of resized pictures in pixels (smaller if the longer side would exceed its limit).
        counts: supported numbers of regions per picture; None: any.
    """

    detector: str
    identity: str | None
    published: str
    dim: int
    min_side: int
    counts: tuple[int, ...] | None = None

    @property
    def is_published_as_file(self) -> bool:
        """Whether `default` weights are identified by the digest of a file, like a user's own."""
        return self.identity is not None


def _torchvision(name: str, min_side: int = 800) -> Architecture:
    detector = "raymotion.models.vision.torchvision_regions:TorchvisionDetector"
    return Architecture(detector, None, f"torchvision:{name}_Weights.COCO_V1", 1024, min_side)


ARCHITECTURES: dict[str, Architecture] = {
    "fasterrcnn_resnet50_fpn_v2": _torchvision("FasterRCNN_ResNet50_FPN_V2"),
    "fasterrcnn_resnet50_fpn": _torchvision("FasterRCNN_ResNet50_FPN"),
    "fasterrcnn_mobilenet_v3_large_fpn": _torchvision("FasterRCNN_MobileNet_V3_Large_FPN"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _torchvision("FasterRCNN_MobileNet_V3_Large_320_FPN", 320),
    "frcnn-vg-r101-c4": Architecture(
        "raymotion.models.vision.visual_genome:VisualGenomeDetector",
        "raymotion.models.vision.visual_genome_checkpoint:identity_of",
        "unc-nlp/frcnn-vg-finetuned",
        2048,
        800,
    ),
}


# Before the name of a timm backbone whose feature map gives the regions.
GRID = "grid:"


def architecture(name: str) -> Architecture:
    """Returns the entry of `ARCHITECTURES` or of `grid:BACKBONE`; raises an `InputError` for an unknown name."""
    if name.startswith(GRID):
        found: Architecture = pkgutil.resolve_name("raymotion.models.vision.grid_regions:architecture_of")(name)
        return found
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise InputError(
            f"no region extractor is called {name!r}",
            remedy=f"Choose from {', '.join(ARCHITECTURES)}, or write grid: and the name of a timm model.",
        ) from None


class ExtractorIdentity(Identity):
    """Everything that determines the regions of a picture.

    Attributes:
        name: key of `ARCHITECTURES`.
        weights: `random:SEED`, `torchvision:ENUM`, or `sha256:HEX` of a weights file, followed by `+config:HEX` if a
            Visual Genome detector has other than the usual settings.
        count: regions per picture.
        dim: length of a feature.
    """

    what: ClassVar[str] = "region extractor"

    count: int = Field(ge=1, le=MOST_REGIONS)
    dim: int = Field(ge=1, le=LONGEST_FEATURE)


def identify(name: str, weights: str, count: int) -> ExtractorIdentity:
    """Returns the identity of an extractor without loading it (and without importing torch).

    Args:
        name: key of `ARCHITECTURES`.
        weights: see `raymotion.weights`. A file on a hub is downloaded for its digest.
        count: regions per picture, at least 1.

    Raises:
        InputError: the extractor is unknown, `count` is too small, or weights are missing.
    """
    entry = architecture(name)
    if count < 1:
        raise InputError(f"{count} regions per image are too few", remedy="Give at least 1.")
    if entry.counts is not None and count not in entry.counts:
        raise InputError(
            f"{name} has no {count} regions per image", remedy=f"Choose from {', '.join(map(str, entry.counts))}."
        )
    if entry.identity is None:
        source = own_weights.identify(weights, entry.published)
    else:
        source = pkgutil.resolve_name(entry.identity)(weights, entry.published)
    return ExtractorIdentity(name=name, weights=source, count=count, dim=entry.dim)


@dataclass(frozen=True)
class Regions:
    """Regions of B pictures.

    Attributes:
        features: float32 (B, N, D).
        boxes: float32 (B, N, 4), x1, y1, x2, y2 as shares of width and height, in [0, 1].
        scores: float32 (B, N), probability of the best foreground class, in descending order.
        mask: bool (B, N), False for padding, whose other values are 0.
    """

    features: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    mask: np.ndarray

    def __len__(self) -> int:
        return len(self.mask)

    def __iter__(self) -> Iterator[Regions]:
        for i in range(len(self)):
            yield Regions(self.features[i], self.boxes[i], self.scores[i], self.mask[i])

    @classmethod
    def stack(cls, singles: Sequence[Regions | None], count: int, dim: int) -> Regions:
        """Stacks regions of single pictures to a batch; None (no picture) becomes regions that are all masked."""
        batch = cls(
            np.zeros((len(singles), count, dim), np.float32),
            np.zeros((len(singles), count, 4), np.float32),
            np.zeros((len(singles), count), np.float32),
            np.zeros((len(singles), count), bool),
        )
        for i, one in enumerate(singles):
            if one is not None:
                batch.features[i], batch.boxes[i] = one.features, one.boxes
                batch.scores[i], batch.mask[i] = one.scores, one.mask
        return batch


@dataclass(frozen=True)
class Found:
    """Regions of one picture from a detector, best first. Tensors of n rows, float32 except ids, on its device.

    Attributes:
        features: (n, D).
        boxes: (n, 4), x1, y1, x2, y2 in pixels of the resized picture.
        scores: (n,), probability of the best foreground class.
        objects: (n,), that class, by the detector's own ids.
        attributes, attribute_scores: (n,), the best attribute and its probability; None if the detector has none.
    """

    features: torch.Tensor
    boxes: torch.Tensor
    scores: torch.Tensor
    objects: torch.Tensor
    attributes: torch.Tensor | None = None
    attribute_scores: torch.Tensor | None = None


class Detector(Protocol):
    """Interface of detectors for `RegionExtractor`."""

    model: torch.nn.Module

    @classmethod
    def build(cls, name: str, weights: str, entry: Architecture) -> Detector:
        """Builds the detector `name` with its weights, in evaluation mode.

        Raises:
            InputError: the weights are missing or do not fit.
        """

    def prepare(
        self, pictures: Sequence[np.ndarray], device: torch.device
    ) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Returns pictures as a padded, normalised batch on the device, and their sizes in it."""

    def find(
        self, images: torch.Tensor, sizes: Sequence[tuple[int, int]], count: int, dtype: torch.dtype
    ) -> list[Found]:
        """Finds at most `count` regions in each picture."""


@dataclass(frozen=True)
class Detections:
    """Regions of B pictures with objects and attributes. Padding is -1 in ids, 0 elsewhere.

    Attributes:
        regions: features, boxes as shares, scores of the objects, mask.
        boxes: float32 (B, N, 4), in pixels of the original pictures.
        objects: int64 (B, N), ids of the objects; COCO category ids for torchvision's detectors.
        attributes, attribute_scores: int64 and float32 (B, N), or None if the detector has no attributes.
    """

    regions: Regions
    boxes: np.ndarray
    objects: np.ndarray
    attributes: np.ndarray | None
    attribute_scores: np.ndarray | None


class RegionExtractor:
    """A frozen detector as a region feature extractor, always in `eval()` and `inference_mode`.

    Args:
        name: key of `ARCHITECTURES`.
        weights: as for `identify`.
        count: regions per picture, N.
        device: torch device.
        precision: `float32`, `bfloat16` or `float16` (autocast; boxes and scores stay in float32).
    """

    def __init__(self, name: str, weights: str, count: int, *, device: str = "cpu", precision: str = "float32") -> None:
        import torch

        self.identity = identify(name, weights, count)
        entry = architecture(name)
        self.min_side = entry.min_side
        self.count, self.dim = count, self.identity.dim
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, precision)
        self.detector: Detector = pkgutil.resolve_name(entry.detector).build(name, weights, entry)
        self.model = self.detector.model
        self.model.eval().requires_grad_(False).to(self.device)

    def __call__(self, pictures: Sequence[np.ndarray]) -> Regions:
        """Extracts regions of pictures, each uint8 (height, width, 3), RGB."""
        return self._look(pictures)[1]

    def prepare(self, pictures: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Returns pictures as a padded, normalised batch (B, 3, H, W) on the device, and their sizes in it."""
        return self.detector.prepare(pictures, self.device)

    def detect(self, pictures: Sequence[np.ndarray]) -> Detections:
        """Extracts regions of pictures with their objects and attributes."""
        found, regions = self._look(pictures)
        # Boxes as shares are scaled per axis, because resizing rounds each axis to whole pixels.
        raw = np.array([[p.shape[1], p.shape[0]] * 2 for p in pictures], np.float32)[:, None]

        def padded(name: str, empty: int) -> np.ndarray:
            rows = [getattr(one, name).cpu().numpy() for one in found]
            return np.stack([np.pad(row, (0, self.count - len(row)), constant_values=empty) for row in rows])

        knows = bool(found) and found[0].attributes is not None
        return Detections(
            regions,
            regions.boxes * raw,
            padded("objects", -1),
            padded("attributes", -1) if knows else None,
            padded("attribute_scores", 0) if knows else None,
        )

    def _look(self, pictures: Sequence[np.ndarray]) -> tuple[list[Found], Regions]:
        import torch

        with torch.inference_mode():
            images, sizes = self.prepare(pictures)
            found = self.detector.find(images, sizes, self.count, self.dtype)
        batch = Regions.stack([None] * len(sizes), self.count, self.dim)
        for i, (one, (height, width)) in enumerate(zip(found, sizes, strict=True)):
            n = len(one.scores)
            batch.features[i, :n] = one.features.cpu().numpy()
            batch.boxes[i, :n] = one.boxes.cpu().numpy() / np.array([width, height, width, height], np.float32)
            batch.scores[i, :n] = one.scores.cpu().numpy()
            batch.mask[i, :n] = True
        return found, batch
