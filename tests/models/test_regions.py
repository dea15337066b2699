"""Region features against torchvision's own forward pass, and the ways that weights come in."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision.ops import box_iou

from raymotion.errors import InputError
from raymotion.models.vision.regions import ARCHITECTURES, RegionExtractor, Regions, identify

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """Coloured blocks: something that a detector's features differ on."""
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 20, width // 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)


@pytest.fixture(scope="module")
def extractor() -> RegionExtractor:
    torch.set_num_threads(1)
    return RegionExtractor(SMALL, "random:3", 8)


def test_shapes_ranges_and_order(extractor: RegionExtractor) -> None:
    regions = extractor([picture(1), picture(2, 200, 100)])
    assert regions.features.shape == (2, 8, 1024) and regions.features.dtype == np.float32
    assert regions.boxes.shape == (2, 8, 4) and regions.mask.shape == (2, 8)
    assert regions.mask.any(axis=1).all()
    assert (regions.boxes >= 0).all() and (regions.boxes <= 1).all()
    assert (regions.boxes[regions.mask][:, 2:] > regions.boxes[regions.mask][:, :2]).all()
    assert (np.diff(regions.scores, axis=1)[regions.mask[:, 1:]] <= 0).all()


def test_preprocessing_equals_torchvisions_transform(extractor: RegionExtractor) -> None:
    pictures = [picture(1), picture(2, 480, 640), picture(3, 1000, 200)]
    ours, sizes = extractor.prepare(pictures)
    tensors = [torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures]
    theirs, _ = extractor.model.transform(tensors)
    assert sizes == [tuple(size) for size in theirs.image_sizes]
    torch.testing.assert_close(ours, theirs.tensors, atol=1e-5, rtol=0)


def test_features_and_boxes_are_those_of_torchvisions_forward_pass(extractor: RegionExtractor) -> None:
    """torchvision's own detections, with the box head's features caught by a hook, hold each of our regions."""
    image = picture(5, 240, 320)
    caught: list[torch.Tensor] = []
    handle = extractor.model.roi_heads.box_head.register_forward_hook(lambda _m, _i, out: caught.append(out))
    head = extractor.model.roi_heads
    before = head.score_thresh, head.nms_thresh, head.detections_per_img
    head.score_thresh, head.nms_thresh, head.detections_per_img = 0.0, 1.1, 100_000
    try:
        with torch.inference_mode():
            detections = extractor.model([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    finally:
        handle.remove()
        head.score_thresh, head.nms_thresh, head.detections_per_img = before
    detected = extractor.detect([image])
    regions, pixels = detected.regions, torch.from_numpy(detected.boxes[0])
    # Every region is one of torchvision's detections, with the same score ...
    overlap = box_iou(pixels, detections["boxes"])
    for i in range(int(regions.mask[0].sum())):
        same = (detections["scores"] - float(regions.scores[0, i])).abs() < 1e-4
        same &= overlap[i] > 0.99
        assert int(detected.objects[0, i]) in detections["labels"][same].tolist()
    assert detected.attributes is None
    # ... and its feature one that the box head gave for this picture.
    distances = torch.cdist(torch.from_numpy(regions.features[0, : int(regions.mask[0].sum())]), caught[0])
    assert (distances.min(dim=1).values < 1e-2 * caught[0].norm(dim=1).mean()).all()
    # Class-agnostic NMS: no two regions overlap by more than half.
    own = box_iou(pixels, pixels).fill_diagonal_(0)
    assert float(own.max()) <= 0.5 + 1e-4


def test_a_picture_gives_the_same_regions_alone_and_in_a_batch(extractor: RegionExtractor) -> None:
    pictures = [picture(1), picture(2)]
    together = extractor(pictures)
    for i, one in enumerate(pictures):
        alone = extractor([one])
        np.testing.assert_allclose(alone.boxes[0], together.boxes[i], atol=1e-3)
        np.testing.assert_allclose(alone.features[0], together.features[i], rtol=1e-2, atol=1e-2)


def test_fewer_regions_than_asked_for_are_masked() -> None:
    many = RegionExtractor(SMALL, "random:3", 2000)
    regions = many([picture(1)])
    n = int(regions.mask.sum())
    assert 0 < n < 2000 and regions.mask[0, :n].all()
    assert not regions.features[0, n:].any() and not regions.boxes[0, n:].any() and not regions.scores[0, n:].any()


def test_random_weights_are_seeded_and_their_features_tell_pictures_apart(extractor: RegionExtractor) -> None:
    pictures = [picture(seed) for seed in range(4)]
    again = RegionExtractor(SMALL, "random:3", 8)(pictures)
    first = extractor(pictures)
    np.testing.assert_array_equal(first.features, again.features)
    other = RegionExtractor(SMALL, "random:4", 8)(pictures)
    assert not np.allclose(first.features, other.features)
    means = first.features.mean(axis=1)
    spread = means.std(axis=0).mean() / np.abs(means).mean()
    assert spread > 0.05, "features of different pictures are nearly equal"


def test_it_is_frozen(extractor: RegionExtractor) -> None:
    assert not extractor.model.training and not any(p.requires_grad for p in extractor.model.parameters())


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(extractor: RegionExtractor, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = {name: tensor.contiguous() for name, tensor in extractor.model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    loaded = RegionExtractor(SMALL, str(path), 8)
    np.testing.assert_array_equal(loaded([picture(1)]).features, extractor([picture(1)]).features)
    assert loaded.identity.weights.startswith("sha256:") and loaded.identity == identify(SMALL, str(path), 8)


def test_weights_of_another_model_are_named(extractor: RegionExtractor, tmp_path: Path) -> None:
    state = dict(extractor.model.state_dict())
    state["surplus.weight"] = torch.zeros(1)
    del state["roi_heads.box_head.fc6.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"1 missing \(roi_heads.box_head.fc6.weight\); 1 unknown \(surplus.weight\)"):
        RegionExtractor(SMALL, str(tmp_path / "w.pth"), 8)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('executed')",))


def test_a_pickle_that_executes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Bomb()}))
    with pytest.raises(InputError, match="not a readable weights file"):
        RegionExtractor(SMALL, str(tmp_path / "w.pth"), 8)


@pytest.mark.parametrize(
    ("name", "weights", "count", "message"),
    [
        ("yolo", "random", 8, "no region extractor is called 'yolo'"),
        (SMALL, "random:x", 8, "the seed is not a number"),
        (SMALL, "absent.pth", 8, "absent.pth: no such weights file"),
        (SMALL, "random", 0, "0 regions per image are too few"),
    ],
)
def test_bad_settings(name: str, weights: str, count: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        identify(name, weights, count)


def test_identity_needs_no_weights() -> None:
    identity = identify("fasterrcnn_resnet50_fpn_v2", "default", 36)
    assert identity.to_dict() == {
        "name": "fasterrcnn_resnet50_fpn_v2",
        "weights": "torchvision:FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1",
        "count": 36,
        "dim": 1024,
    }


def test_every_architecture_names_weights_that_torchvision_has() -> None:
    from torchvision.models import detection

    for name, entry in ARCHITECTURES.items():
        if entry.detector.endswith(":TorchvisionDetector"):
            enum, _, member = entry.published.removeprefix("torchvision:").partition(".")
            assert callable(getattr(detection, name)) and member in getattr(detection, enum).__members__


def test_stack_masks_what_is_absent(extractor: RegionExtractor) -> None:
    one = next(iter(extractor([picture(1)])))
    batch = Regions.stack([None, one], 8, 1024)
    assert not batch.mask[0].any() and (batch.mask[1] == one.mask).all()
    np.testing.assert_array_equal(batch.features[1], one.features)
