"""torchvision's Faster R-CNNs as region detectors, with published, own or random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, nms

from raymotion.errors import InputError
from raymotion.models.vision.regions import Architecture, Found
from raymotion.models.weights_file import differences, read_state_dict
from raymotion.weights import DEFAULT, find, seed_of

NMS_IOU = 0.5


class TorchvisionDetector:
    """A torchvision `FasterRCNN`, with its transform, backbone, RPN and box head, but our selection of boxes."""

    def __init__(self, model: FasterRCNN) -> None:
        self.model = model

    @classmethod
    def build(cls, name: str, weights: str, entry: Architecture) -> TorchvisionDetector:
        """Builds torchvision's model of that name; see `Detector.build`."""
        builder: Callable[..., FasterRCNN] = getattr(detection, name)
        seed = seed_of(weights)
        if seed is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = builder(weights=None, weights_backbone=None)
                _spread(model)
            return cls(model)
        if weights == DEFAULT:
            enum, _, member = entry.published.removeprefix("torchvision:").partition(".")
            try:
                return cls(builder(weights=getattr(detection, enum)[member]))
            except OSError as error:
                raise InputError(
                    f"the published weights of {name} could not be had ({error})",
                    remedy="Put the file into $TORCH_HOME/hub/checkpoints, or give its path as --weights.",
                ) from error
        state = read_state_dict(find(weights))
        classes = state.get("roi_heads.box_predictor.cls_score.weight")
        model = builder(weights=None, weights_backbone=None, num_classes=91 if classes is None else len(classes))
        problems = differences(model.state_dict(), state)
        if problems:
            raise InputError(f"does not hold weights of {name}: {problems}", path=weights)
        model.load_state_dict(state)
        return cls(model)

    def prepare(self, pictures: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
        """Returns pictures as a padded, normalised batch (B, 3, H, W) on the device, and their sizes in it.

        Equivalent to torchvision's transform in a cheaper order: pixels are transferred as uint8, and normalised after
        resizing (the two steps commute), on a smaller picture.
        """
        transform = self.model.transform
        mean = torch.tensor(transform.image_mean, device=device).view(3, 1, 1)
        scale = 1.0 / torch.tensor(transform.image_std, device=device).view(3, 1, 1)
        resized = []
        for picture in pictures:
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device, non_blocking=True)
            # The transform's own resize, which computes the output size from the scale factor, to agree to the pixel.
            image, _ = transform.resize(pixels.permute(2, 0, 1).float().div_(255.0))
            resized.append(image.sub_(mean).mul_(scale))
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in resized]
        return transform.batch_images(resized, size_divisible=transform.size_divisible), sizes

    def find(self, images: Tensor, sizes: Sequence[tuple[int, int]], count: int, dtype: torch.dtype) -> list[Found]:
        """Finds regions in each picture of a batch from `prepare`; layers compute in `dtype`, boxes in float32."""
        model, head = self.model, self.model.roi_heads
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            maps = model.backbone(images)
            maps = maps if isinstance(maps, dict) else {"0": maps}
            proposals, _ = model.rpn(ImageList(images, list(sizes)), maps)
            features = head.box_head(head.box_roi_pool(maps, proposals, sizes))
            logits, deltas = head.box_predictor(features)
        boxes = head.box_coder.decode(deltas.float(), proposals)
        scores = logits.float().softmax(-1)
        counts = [len(p) for p in proposals]
        parts = zip(features.split(counts), boxes.split(counts), scores.split(counts), sizes, strict=True)
        return [self._choose(*part, count) for part in parts]

    def _choose(self, features: Tensor, boxes: Tensor, scores: Tensor, size: tuple[int, int], count: int) -> Found:
        """Selects at most `count` proposals by one class-agnostic NMS over the boxes of their best classes."""
        best, classes = scores[:, 1:].max(dim=1)  # class 0 is the background
        classes = classes + 1
        own = clip_boxes_to_image(boxes[torch.arange(len(boxes), device=boxes.device), classes], size)
        keep = nms(own, best, NMS_IOU)[:count]
        return Found(features[keep].float(), own[keep], best[keep], classes[keep])


def _spread(model: FasterRCNN) -> None:
    """Makes features of untrained weights differ between pictures.

    With the usual initialisation the signal vanishes layer by layer, until all pictures have the same features to nine
    digits. He's initialisation and batch norm statistics of smooth noise preserve it: random features then distinguish
    colours, contrasts and textures, which suffices for demos and tests.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for part in (model.backbone, model.roi_heads.box_head):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    for corrections in (model.rpn.head.bbox_pred, model.roi_heads.box_predictor.bbox_pred):
        nn.init.normal_(corrections.weight, std=1e-4)  # larger random corrections would move boxes out of the picture
    for norm in norms:
        norm.momentum = None  # cumulative average
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
