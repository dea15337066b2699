"""The Visual Genome detector behind VisualBERT's 36 x 2,048 region features.

Bottom-up attention (Anderson et al. 2018): a Faster R-CNN with a ResNet-101 C4 backbone, 1,600 object classes and 400
attributes. Results agree with the published `unc-nlp/frcnn-vg-finetuned` to 1e-3. Bottlenecks, RoIPool, box coder and
NMS are torchvision's. The parts that differ from torchvision are implemented here: the stem's pooling, strides in the
first 1x1 convolution, unrounded anchors, the proposals, a dilated res5 on every proposal, the attributes, and the
selection of boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.resnet import Bottleneck
from torchvision.ops import clip_boxes_to_image, nms, roi_pool

from raymotion.errors import InputError
from raymotion.models.vision import visual_genome_checkpoint as published
from raymotion.models.vision.regions import Architecture, Found
from raymotion.models.vision.visual_genome_checkpoint import VisualGenomeConfig
from raymotion.models.weights_file import differences, read_state_dict
from raymotion.weights import DEFAULT, seed_of

STRIDE = 16  # of res4, in pixels of the resized picture

# Proposals per pass through res5: 64 take 100 MB of activations, 300 about a GB.
CHUNK = {"cpu": 64, "cuda": 300}


class Backbone(nn.Module):
    """Maps pictures (B, 3, H, W) to res4 (B, 16 * width, about H / 16, about W / 16)."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__()
        self.caffe_pool = config.caffe_pool
        self.stem = nn.ModuleDict(
            {"conv1": nn.Conv2d(3, config.stem_width, 7, 2, 3, bias=False), "bn1": nn.BatchNorm2d(config.stem_width)}
        )
        inputs, width = config.stem_width, config.width
        first, second, third = config.blocks
        self.res2 = _stage(first, inputs, width, 1, config)
        self.res3 = _stage(second, 4 * width, 2 * width, 2, config)
        self.res4 = _stage(third, 8 * width, 4 * width, 2, config)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.stem["bn1"](self.stem["conv1"](images)))
        # Caffe's pooling: no padding, and an incomplete last window counts.
        x = F.max_pool2d(x, 3, 2, ceil_mode=True) if self.caffe_pool else F.max_pool2d(x, 3, 2, padding=1)
        return cast(Tensor, self.res4(self.res3(self.res2(x))))


def _stage(
    blocks: int, inputs: int, width: int, stride: int, config: VisualGenomeConfig, dilation: int = 1
) -> nn.Sequential:
    """Builds bottlenecks with `width` channels inside and 4 * width outside."""
    outputs = Bottleneck.expansion * width
    layers: list[nn.Module] = []
    for i in range(blocks):
        shortcut = None
        if inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        block = Bottleneck(inputs, width, downsample=shortcut, dilation=dilation)
        if i == 0:
            (block.conv1 if config.stride_in_1x1 else block.conv2).stride = (stride, stride)
        layers.append(block)
        inputs = outputs
    return nn.Sequential(*layers)


class ProposalNetwork(nn.Module):
    """Maps res4 to proposals: boxes that may contain an object."""

    cell_anchors: Tensor

    def __init__(self, config: VisualGenomeConfig, anchors: Tensor) -> None:
        super().__init__()
        self.config = config
        inputs = 16 * config.width
        hidden = inputs if config.rpn_width == -1 else config.rpn_width
        self.rpn_head = nn.ModuleDict(
            {
                "conv": nn.Conv2d(inputs, hidden, 3, padding=1),
                "objectness_logits": nn.Conv2d(hidden, len(anchors), 1),
                "anchor_deltas": nn.Conv2d(hidden, 4 * len(anchors), 1),
            }
        )
        self.register_buffer("cell_anchors", anchors)
        self.coder = BoxCoder(config.rpn_box_weights)

    def forward(self, maps: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """Returns at most `config.proposals` boxes (P, 4) in pixels, most likely first, for each of B pictures."""
        count, _, height, width = maps.shape
        hidden = F.relu(self.rpn_head["conv"](maps))
        logits = self.rpn_head["objectness_logits"](hidden).float().permute(0, 2, 3, 1).reshape(count, -1)
        deltas = self.rpn_head["anchor_deltas"](hidden).float().permute(0, 2, 3, 1).reshape(count, -1, 4)
        anchors = self.grid(height, width)
        results = []
        for logit, delta in zip(logits, deltas, strict=True):
            logit, order = logit.sort(descending=True, stable=True)
            logit, order = (part[: self.config.proposals_before_nms] for part in (logit, order))
            boxes = clip_boxes_to_image(self.coder.decode_single(delta[order], anchors[order]), size)
            sides = boxes[:, 2:] - boxes[:, :2]
            good = (sides > self.config.proposal_min_side).all(dim=1)
            boxes, logit = boxes[good], logit[good]
            results.append(boxes[nms(boxes, logit, self.config.proposal_iou)[: self.config.proposals]])
        return results

    def grid(self, height: int, width: int) -> Tensor:
        """Returns anchors (height * width * A, 4) of a feature map, ordered by row, column, anchor."""
        device, offset = self.cell_anchors.device, self.config.anchor_offset
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + offset) * STRIDE,
            (torch.arange(width, device=device) + offset) * STRIDE,
            indexing="ij",
        )
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        return (shifts + self.cell_anchors).reshape(-1, 4)


class BoxHead(nn.Module):
    """Maps res4 and proposals to features, classes, boxes and attributes."""

    def __init__(self, config: VisualGenomeConfig) -> None:
        super().__init__()
        self.config = config
        dim, embedding = config.dim, config.dim // 8
        dilation, stride = (2, 1) if config.dilate_res5 else (1, 2)
        self.res5 = _stage(3, dim // 2, 8 * config.width, stride, config, dilation)
        self.box_predictor = nn.ModuleDict(
            {
                "cls_score": nn.Linear(dim, config.classes + 1),  # the background comes last
                "bbox_pred": nn.Linear(dim, config.classes * 4),
                "cls_embedding": nn.Embedding(config.classes + 1, embedding),
                "fc_attr": nn.Linear(dim + embedding, dim // 4),
                "attr_score": nn.Linear(dim // 4, config.attributes + 1),
            }
        )
        self.coder = BoxCoder(config.box_weights)

    def features(self, maps: Tensor, proposals: Sequence[Tensor]) -> Tensor:
        """Computes features (sum of P, dim), float32, of the proposals of all pictures, in order."""
        index = torch.cat([torch.full((len(p), 1), float(i), device=p.device) for i, p in enumerate(proposals)])
        boxes = torch.cat([index, torch.cat(list(proposals))], dim=1)
        maps = maps.float().contiguous()  # RoIPool supports neither half precision nor other memory layouts
        parts = []
        for chunk in boxes.split(CHUNK.get(maps.device.type, 64)):
            pooled = roi_pool(maps, chunk, self.config.pooled, 1 / STRIDE)
            pooled = pooled.contiguous(memory_format=torch.channels_last)
            parts.append(self.res5(pooled).float().mean(dim=(2, 3)))
        return torch.cat(parts)

    def choose(self, features: Tensor, proposals: Tensor, size: tuple[int, int], count: int) -> Found:
        """Selects at most `count` proposals of one picture by one NMS over the boxes of their best classes.

        Thresholds are tried in order until one leaves MIN_DETECTIONS boxes (or `count`, if less). If none does, the
        boxes of the last threshold are used; the published code would return those of the previous picture.
        """
        logits = self.box_predictor["cls_score"](features)
        scores, classes = logits.softmax(dim=-1)[:, :-1].max(dim=1)
        deltas = self.box_predictor["bbox_pred"](features).view(len(features), self.config.classes, 4)
        own = deltas[torch.arange(len(deltas), device=deltas.device), classes]
        boxes = clip_boxes_to_image(self.coder.decode_single(own, proposals), size)
        for threshold in self.config.nms_iou:
            keep = nms(boxes, scores, threshold)[:count]
            if len(keep) >= min(self.config.min_detections, count):
                break
        attributes = self._attributes(features[keep], logits[keep])
        return Found(features[keep], boxes[keep], scores[keep], classes[keep], *attributes)

    def _attributes(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the best attribute of each region, and its probability."""
        layers = self.box_predictor
        # The embedded class may be the background, as in training.
        joined = torch.cat([features, layers["cls_embedding"](logits.argmax(dim=-1))], dim=1)
        scores = layers["attr_score"](F.relu(layers["fc_attr"](joined)))
        best, attributes = scores[:, :-1].softmax(dim=-1).max(dim=1)  # the last one means "none"
        return attributes, best


class VisualGenomeDetector(nn.Module):
    """The published detector.

    Args:
        config: settings from config.yaml.
        anchors: (A, 4) anchors of the checkpoint; None: those of the config.
    """

    def __init__(self, config: VisualGenomeConfig, anchors: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        own = torch.from_numpy(published.cell_anchors(config)) if anchors is None else anchors.float()
        self.backbone = Backbone(config)
        self.proposal_generator = ProposalNetwork(config, own)
        self.roi_heads = BoxHead(config)

    @property
    def model(self) -> nn.Module:
        """The detector itself; see `Detector`."""
        return self

    @classmethod
    def build(
        cls, name: str, weights: str, entry: Architecture, config: VisualGenomeConfig | None = None
    ) -> VisualGenomeDetector:
        """Builds the detector; see `Detector.build`.

        Args:
            config: settings for random weights; None: the usual ones.
        """
        seed = seed_of(weights)
        if seed is not None:
            config = config or VisualGenomeConfig()
            model = cls(config)
            shapes = [(published.published_name(own), tuple(t.shape)) for own, t in model.state_dict().items()]
            made = published.weights_by_rule(shapes, published.cell_anchors(config), seed)
            model.load_published({own: torch.from_numpy(np.asarray(value)) for own, value in made.items()})
        else:
            path, config = published.find_checkpoint(entry.published if weights == DEFAULT else weights)
            state = read_state_dict(path)
            anchors = _anchors_of(state, config, path)
            if config.dim != entry.dim:
                raise InputError(f"its features have {config.dim} numbers, not {entry.dim}", path=path)
            model = cls(config, anchors)
            model.load_published(state, path)
        model.eval().fold_norms()
        return model.to(memory_format=torch.channels_last)

    def prepare(self, pictures: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, list[tuple[int, int]]]:
        """Returns pictures (uint8 RGB) as a padded, normalised batch (B, 3, H, W) in BGR, and their sizes in it."""
        config = self.config
        mean = torch.tensor(config.pixel_mean, device=device).view(3, 1, 1)
        std = torch.tensor(config.pixel_std, device=device).view(3, 1, 1)
        resized = []
        for picture in pictures:
            pixels = torch.from_numpy(np.ascontiguousarray(picture)).to(device, non_blocking=True)
            bgr = pixels.permute(2, 0, 1).flip(0).float()
            size = resized_size(picture.shape[0], picture.shape[1], config.min_size, config.max_size)
            resized.append((F.interpolate(bgr[None], size, mode="bilinear", align_corners=False)[0] - mean) / std)
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in resized]
        height, width = (max(sides) for sides in zip(*sizes, strict=True))
        batch = torch.full((len(resized), 3, height, width), config.pad_value, device=device)
        for i, image in enumerate(resized):
            batch[i, :, : image.shape[1], : image.shape[2]] = image
        return batch, sizes

    def find(self, images: Tensor, sizes: Sequence[tuple[int, int]], count: int, dtype: torch.dtype) -> list[Found]:
        """Finds regions in each picture of a batch from `prepare`; convolutions compute in `dtype`.

        Only pictures of the same size are processed together: padding is black only before the first convolution, and
        would then change the borders, and so the proposals, of smaller pictures.
        """
        together: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            together.setdefault(size, []).append(i)
        found: dict[int, Found] = {}
        for size, members in together.items():
            batch = images[members, :, : size[0], : size[1]].contiguous(memory_format=torch.channels_last)
            with torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
                maps = self.backbone(batch)
                proposals = self.proposal_generator(maps, size)
                features = self.roi_heads.features(maps, proposals)
            # The final layers are cheap and decisive, so they always compute in float32.
            for i, feature, boxes in zip(members, features.split([len(p) for p in proposals]), proposals, strict=True):
                found[i] = self.roi_heads.choose(feature, boxes, size, count)
        return [found[i] for i in range(len(sizes))]

    def load_published(self, state: dict[str, Tensor], path: object = None) -> None:
        """Loads a state dict with the published names.

        Raises:
            InputError: names are missing or unknown, or shapes differ; the message lists them.
        """
        own = {published.published_name(name): (name, tensor) for name, tensor in self.state_dict().items()}
        problems = differences({name: tensor for name, (_, tensor) in own.items()}, state, listed=12)
        if problems:
            raise InputError(f"does not hold weights of frcnn-vg-r101-c4: {problems}", path=path)
        self.load_state_dict({name: state[key] for key, (name, _) in own.items()})

    def fold_norms(self) -> None:
        """Folds each batch norm into the convolution before it, as the network is frozen."""
        for block in self.modules():
            if isinstance(block, Bottleneck):
                for number in "123":
                    conv, norm = getattr(block, f"conv{number}"), getattr(block, f"bn{number}")
                    setattr(block, f"conv{number}", fuse_conv_bn_eval(conv, norm))
                    setattr(block, f"bn{number}", nn.Identity())
                if block.downsample is not None:
                    conv, norm = block.downsample
                    block.downsample = nn.Sequential(fuse_conv_bn_eval(conv, norm))
        stem: Any = self.backbone.stem
        stem["conv1"], stem["bn1"] = fuse_conv_bn_eval(stem["conv1"], stem["bn1"]), nn.Identity()


def resized_size(height: int, width: int, shorter: int, longer: int) -> tuple[int, int]:
    """Returns height and width scaled so that the shorter side is `shorter`, or the longer `longer` if that is less."""
    scale = shorter / min(height, width)
    rows, columns = (shorter, scale * width) if height < width else (scale * height, shorter)
    if max(rows, columns) > longer:
        shrink = longer / max(rows, columns)
        rows, columns = rows * shrink, columns * shrink
    # At least three pixels, or an extremely narrow picture would vanish in the stem.
    return max(int(rows + 0.5), 3), max(int(columns + 0.5), 3)


def _anchors_of(state: dict[str, Tensor], config: VisualGenomeConfig, path: str) -> Tensor | None:
    """Returns the anchors in the checkpoint, or None; logs a warning if the config's differ."""
    anchors = state.get(published.CELL_ANCHORS)
    if anchors is None:
        return None
    anchors = anchors.float()
    if anchors.ndim != 2 or anchors.shape[1] != 4 or not bool((anchors[:, 2:] > anchors[:, :2]).all()):
        raise InputError(f"{published.CELL_ANCHORS} does not hold boxes, one in a row", path=path)
    named = torch.from_numpy(published.cell_anchors(config))
    if anchors.shape != named.shape or not torch.allclose(anchors, named, rtol=0, atol=0.01):
        logging.getLogger(__name__).warning(
            "%s has %d anchors of its own, other than the %d that config.yaml names: the checkpoint's are used",
            path, len(anchors), len(named),
        )  # fmt: skip
    return anchors
