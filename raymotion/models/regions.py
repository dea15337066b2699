"""Region features: what a Fast R-CNN box head sees in the most salient boxes of a picture.

Each picture gives a fixed number N of regions: the box head's feature of a proposal (taken before box regression), its
refined box and its score. Boxes are chosen as in bottom-up attention (Anderson et al. 2018): every proposal keeps
its best foreground class, one class-agnostic NMS runs over the refined boxes, and the N highest scores stay. Where
fewer remain, a mask says so; padding is never shown to a model as evidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import storage
from raymotion.errors import InputError

if TYPE_CHECKING:
    import torch
    from torchvision.models.detection import FasterRCNN

NMS_IOU = 0.5


@dataclass(frozen=True)
class Architecture:
    """One detector that features can come from.

    Attributes:
        builder: name of the function in `torchvision.models.detection`.
        published: the torchvision weights that `default` means.
        dim: length of a region feature.
        min_side: the shorter side, in pixels, that the detector resizes a picture to (the longer one permitting).
    """

    builder: str
    published: str
    dim: int
    min_side: int


# The 2,048-d Visual Genome detector (reference/frcnn_vg.md) joins this table with a builder of its own.
ARCHITECTURES: dict[str, Architecture] = {
    "fasterrcnn_resnet50_fpn_v2": Architecture(
        "fasterrcnn_resnet50_fpn_v2", "FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1", 1024, 800
    ),
    "fasterrcnn_resnet50_fpn": Architecture(
        "fasterrcnn_resnet50_fpn", "FasterRCNN_ResNet50_FPN_Weights.COCO_V1", 1024, 800
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Architecture(
        "fasterrcnn_mobilenet_v3_large_fpn", "FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1", 1024, 800
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Architecture(
        "fasterrcnn_mobilenet_v3_large_320_fpn", "FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1", 1024, 320
    ),
}


def architecture(name: str) -> Architecture:
    """The entry of `ARCHITECTURES`; an `InputError` lists the names there are."""
    try:
        return ARCHITECTURES[name]
    except KeyError:
        raise InputError(
            f"no region extractor is called {name!r}", remedy=f"Choose from {', '.join(ARCHITECTURES)}."
        ) from None


@dataclass(frozen=True)
class ExtractorIdentity:
    """What decides the features of a picture: two data sets with equal identities can be mixed.

    Attributes:
        name: key of `ARCHITECTURES`.
        weights: `random:SEED`, `torchvision:ENUM`, or `sha256:HEX` of a weights file.
        count: regions per picture.
        dim: length of a feature.
    """

    name: str
    weights: str
    count: int
    dim: int

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "weights": self.weights, "count": self.count, "dim": self.dim}

    @property
    def is_random(self) -> bool:
        return self.weights.startswith("random:")


def identify(name: str, weights: str, count: int) -> ExtractorIdentity:
    """The identity of an extractor, told without loading it (and without importing torch).

    Args:
        name: key of `ARCHITECTURES`.
        weights: `default` (torchvision's published ones), `random` or `random:SEED`, or the path of a state dict
            (.safetensors, or .pt/.pth that holds tensors only).
        count: regions per picture, at least 1.
    """
    entry = architecture(name)
    if count < 1:
        raise InputError(f"{count} regions per image are too few", remedy="Give at least 1.")
    if weights == "default":
        source = f"torchvision:{entry.published}"
    elif weights == "random" or weights.startswith("random:"):
        source = f"random:{_seed_of(weights)}"
    elif storage.exists(weights):
        source = f"sha256:{storage.sha256_file(weights)}"
    else:
        raise InputError(
            "no such weights file", path=weights, remedy="Give the path of a state dict, 'default' or 'random:SEED'."
        )
    return ExtractorIdentity(name, source, count, entry.dim)


def locate(weights: str) -> str:
    """`weights` in a form that means the same in every process: a path is made absolute, a name stays."""
    named = weights == "default" or weights == "random" or weights.startswith("random:")
    return weights if named else storage.absolute(weights)


def _seed_of(weights: str) -> int:
    seed = weights.partition(":")[2] or "0"
    if not seed.isdecimal():
        raise InputError(f"weights {weights!r}: the seed is not a number", remedy="Write random:0.")
    return int(seed)


@dataclass(frozen=True)
class Regions:
    """Regions of B pictures.

    Attributes:
        features: float32 (B, N, D).
        boxes: float32 (B, N, 4), x1, y1, x2, y2 as shares of width and height, in [0, 1].
        scores: float32 (B, N), probability of the best foreground class, falling.
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
        """Pictures one by one as a batch again; None (no picture) becomes regions that are all masked."""
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


class RegionExtractor:
    """A detector of torchvision as a region feature extractor, frozen: `eval()` and `inference_mode`, always.

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
        self.min_side = architecture(name).min_side
        self.count, self.dim = count, self.identity.dim
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, precision)
        self.model = _build(name, weights).eval().requires_grad_(False).to(self.device)

    def __call__(self, pictures: Sequence[np.ndarray]) -> Regions:
        """Regions of pictures, each uint8 of shape (height, width, 3), RGB."""
        import torch

        with torch.inference_mode():
            images, sizes = self.prepare(pictures)
            return self.extract(images, sizes)

    def prepare(self, pictures: Sequence[np.ndarray]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Pictures as one padded, normalised batch (B, 3, H, W) on the device, and their sizes within it.

        What torchvision's transform does, in a cheaper order: pixels travel as uint8, and are normalised after the
        resize (both are affine, so they commute), on a smaller picture.
        """
        import torch

        transform = self.model.transform
        mean = torch.tensor(transform.image_mean, device=self.device).view(3, 1, 1)
        scale = 1.0 / torch.tensor(transform.image_std, device=self.device).view(3, 1, 1)
        resized = []
        for picture in pictures:
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(self.device, non_blocking=True)
            # The transform computes the output size from the scale factor; so must we, to agree to the pixel.
            image, _ = transform.resize(pixels.permute(2, 0, 1).float().div_(255.0))
            resized.append(image.sub_(mean).mul_(scale))
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in resized]
        return transform.batch_images(resized, size_divisible=transform.size_divisible), sizes

    def extract(self, images: torch.Tensor, sizes: list[tuple[int, int]]) -> Regions:
        """Regions of a batch that `prepare` made."""
        import torch
        from torchvision.models.detection.image_list import ImageList

        model = self.model
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32),
        ):
            maps = model.backbone(images)
            maps = maps if isinstance(maps, dict) else {"0": maps}
            proposals, _ = model.rpn(ImageList(images, sizes), maps)
            head = model.roi_heads
            features = head.box_head(head.box_roi_pool(maps, proposals, sizes))
            logits, deltas = head.box_predictor(features)
        boxes = head.box_coder.decode(deltas.float(), proposals)
        scores = logits.float().softmax(-1)
        counts = [len(p) for p in proposals]
        batch = Regions.stack([None] * len(sizes), self.count, self.dim)
        parts = zip(features.split(counts), boxes.split(counts), scores.split(counts), sizes, strict=True)
        for i, (feature, box, score, size) in enumerate(parts):
            keep, chosen, best = self._choose(box, score, size)
            n = len(keep)
            height, width = size
            batch.features[i, :n] = feature[keep].float().cpu().numpy()
            batch.boxes[i, :n] = chosen.cpu().numpy() / np.array([width, height, width, height], np.float32)
            batch.scores[i, :n] = best.cpu().numpy()
            batch.mask[i, :n] = True
        return batch

    def _choose(
        self, boxes: torch.Tensor, scores: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Indices (n,) of the proposals kept, their boxes (n, 4) in pixels of the resized picture, and scores (n,)."""
        import torch
        from torchvision.ops import clip_boxes_to_image, nms

        best, classes = scores[:, 1:].max(dim=1)  # class 0 is the background
        own = boxes[torch.arange(len(boxes), device=boxes.device), classes + 1]
        own = clip_boxes_to_image(own, size)
        keep = nms(own, best, NMS_IOU)[: self.count]
        return keep, own[keep], best[keep]


def _build(name: str, weights: str) -> FasterRCNN:
    import torch
    from torchvision.models import detection

    entry = architecture(name)
    builder: Callable[..., FasterRCNN] = getattr(detection, entry.builder)
    if weights == "default":
        enum, _, member = entry.published.partition(".")
        try:
            return builder(weights=getattr(detection, enum)[member])
        except OSError as error:
            raise InputError(
                f"the published weights of {name} could not be had ({error})",
                remedy="Put the file into $TORCH_HOME/hub/checkpoints, or give its path as --weights.",
            ) from error
    if weights == "random" or weights.startswith("random:"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_seed_of(weights))
            model = builder(weights=None, weights_backbone=None)
            _spread(model)
            return model
    state = read_state_dict(weights)
    classes = state.get("roi_heads.box_predictor.cls_score.weight")
    model = builder(weights=None, weights_backbone=None, num_classes=91 if classes is None else len(classes))
    problems = _differences(model.state_dict(), state)
    if problems:
        raise InputError(f"does not hold weights of {name}: {problems}", path=weights)
    model.load_state_dict(state)
    return model


def _spread(model: FasterRCNN) -> None:
    """Makes the features of untrained weights differ from picture to picture.

    With the usual initialisation the signal fades layer by layer, until every picture has the same feature to nine
    digits. He's initialisation, and batch norms that have seen pictures (smooth noise here), keep it: random
    features then tell colours, contrasts and textures apart, which is enough for demos and tests.
    """
    import torch
    from torch import nn

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for part in (model.backbone, model.roi_heads.box_head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for corrections in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(corrections.weight, std=1e-4)  # untrained corrections would throw boxes out of the picture
    for norm in norms:
        norm.momentum = None  # plain averages over what is seen
        norm.train()
    with torch.no_grad():
        coarse = torch.rand(8, 3, 6, 6) * 4 - 2
        noise = nn.functional.interpolate(coarse, size=(192, 192), mode="bilinear") + 0.2 * torch.randn(8, 3, 192, 192)
        maps = model.backbone(noise)
        corner = torch.rand(8, 64, 2) * 128
        boxes = [torch.cat([c, c + 16 + torch.rand(64, 2) * 48], dim=1) for c in corner]
        model.roi_heads.box_head(model.roi_heads.box_roi_pool(maps, boxes, [(192, 192)] * 8))
    for norm in norms:
        norm.eval()


def read_state_dict(path: storage.PathLike) -> dict[str, torch.Tensor]:
    """Tensors of a .safetensors file, or of a PyTorch file of tensors alone: nothing in it is executed."""
    import io
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = storage.require(path)
    try:
        if str(path).endswith(".safetensors"):
            return load(data)
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"is not a readable weights file ({str(error).splitlines()[0]})",
            path=path,
            remedy="Save the state dict alone, best as .safetensors.",
        ) from error
    for key in ("state_dict", "model"):  # training scripts wrap it, torchvision's reference one among them
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError("holds no state dict", path=path, remedy="Save model.state_dict().")
    return dict(state)


def _differences(wanted: dict[str, torch.Tensor], given: dict[str, torch.Tensor]) -> str:
    # FrozenBatchNorm keeps no counter of batches, BatchNorm does: files of both kinds are good.
    counters = {name for name in {*wanted, *given} if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(given) - counters)
    unknown = sorted(set(given) - set(wanted) - counters)
    shapes = sorted(name for name in set(wanted) & set(given) if wanted[name].shape != given[name].shape)
    texts = []
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes)):
        if names:
            texts.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    for name in counters:
        given.pop(name, None) if name not in wanted else given.setdefault(name, wanted[name])
    return "; ".join(texts)
