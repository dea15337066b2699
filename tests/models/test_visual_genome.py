"""The Visual Genome detector: against the published implementation's output, and, in small, each of its rules."""

from __future__ import annotations

import logging
import zlib
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from raymotion.data.images.decode import decode_rgb
from raymotion.errors import InputError
from raymotion.models.vision import visual_genome_checkpoint
from raymotion.models.vision.regions import ARCHITECTURES, Detections, RegionExtractor, identify
from raymotion.models.vision.visual_genome import VisualGenomeDetector, resized_size
from raymotion.models.vision.visual_genome_checkpoint import (
    VisualGenomeConfig,
    cell_anchors,
    published_name,
    read_config,
)
from raymotion.weights import locate

NAME = "frcnn-vg-r101-c4"
IDS = ("000000000285", "000000000785")

# The published layout with a tenth of everything, as config.yaml would say it (keys in any case, as there).
TINY = {
    "model": {"pixel_mean": [102.9801, 115.9465, 122.7717], "pixel_std": [1.0, 1.0, 1.0], "max_pool": True},
    "INPUT": {"MIN_SIZE_TEST": 96, "MAX_SIZE_TEST": 160, "FORMAT": "BGR"},
    "RESNETS": {"DEPTH": 50, "WIDTH_PER_GROUP": 4, "RES2_OUT_CHANNELS": 16, "STEM_OUT_CHANNELS": 8},
    "PROPOSAL_GENERATOR": {"HIDDEN_CHANNELS": 16, "MIN_SIZE": 0},
    "ANCHOR_GENERATOR": {"SIZES": [[16, 32, 64]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]], "OFFSET": 0.0},
    "RPN": {"PRE_NMS_TOPK_TEST": 200, "POST_NMS_TOPK_TEST": 40, "NMS_THRESH": 0.7},
    "ROI_HEADS": {"NUM_CLASSES": 12, "NMS_THRESH_TEST": [0.5, 0.6, 0.7]},
    "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 6, "NUM_ATTRS": 7, "ATTR": True, "RES5HALVE": False},
    "MIN_DETECTIONS": 5,
    "MAX_DETECTIONS": 8,
}


def rule(name: str, shape: tuple[int, ...], anchors: np.ndarray, seed: int = 0) -> np.ndarray:
    """A weight by the rule of reference/frcnn_vg.md, written from its table."""
    r = np.random.default_rng([zlib.crc32(name.encode()), seed])
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if "cell_anchors" in name:
        value = anchors
    elif name.endswith("running_mean"):
        value = 0.1 * r.standard_normal(shape)
    elif name.endswith("running_var"):
        value = r.uniform(0.5, 1.5, shape)
    elif name.endswith("norm.weight"):
        value = (0.2 if ".conv3." in name else 1) * r.uniform(0.8, 1.2, shape)
    elif name.endswith("bias"):
        value = 0.1 * r.standard_normal(shape)
    else:
        last = name.split(".")[-2]
        gain = {"cls_score": 3, "attr_score": 3, "bbox_pred": 0.2, "anchor_deltas": 0.2}.get(last, np.sqrt(2))
        value = gain / np.sqrt(np.prod(shape[1:])) * r.standard_normal(shape)
        value = value / 64 if name == "backbone.stem.conv1.weight" else value
    return np.asarray(value, np.float32)


def published_shapes(
    blocks: tuple[int, ...], width: int, stem: int, rpn: int, a: int, classes: int, attrs: int
) -> dict:
    """Names and shapes of the published checkpoint, written from its list of parameter names."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, outputs: int, inputs: int, side: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, side, side)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (outputs,)
        shapes[f"{name}.norm.num_batches_tracked"] = ()

    conv("backbone.stem.conv1", stem, 3, 7)
    inputs = stem
    for stage, (count, inner) in enumerate(zip((*blocks, 3), (width, 2 * width, 4 * width, 8 * width), strict=True)):
        prefix = "roi_heads.res5" if stage == 3 else f"backbone.res{stage + 2}"
        for i in range(count):
            if i == 0:
                conv(f"{prefix}.0.shortcut", 4 * inner, inputs, 1)
            conv(f"{prefix}.{i}.conv1", inner, inputs, 1)
            conv(f"{prefix}.{i}.conv2", inner, inner, 3)
            conv(f"{prefix}.{i}.conv3", 4 * inner, inner, 1)
            inputs = 4 * inner
    shapes["proposal_generator.anchor_generator.cell_anchors.0"] = (a, 4)
    dim, head, box = 32 * width, "proposal_generator.rpn_head", "roi_heads.box_predictor"
    for name, shape in {
        f"{head}.conv": (rpn, 16 * width, 3, 3), f"{head}.objectness_logits": (a, rpn, 1, 1),
        f"{head}.anchor_deltas": (4 * a, rpn, 1, 1), f"{box}.cls_score": (classes + 1, dim),
        f"{box}.bbox_pred": (4 * classes, dim), f"{box}.fc_attr": (dim // 4, dim + dim // 8),
        f"{box}.attr_score": (attrs + 1, dim // 4),
    }.items():  # fmt: skip
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    shapes[f"{box}.cls_embedding.weight"] = (classes + 1, dim // 8)
    return shapes


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.kron(rng.integers(0, 255, (height // 20, width // 20, 3)), np.ones((20, 20, 1))).astype(np.uint8)


# --- the published implementation's own output


@pytest.fixture(scope="module")
def parity(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], Detections]:
    if not (shared_data / "frcnn_vg" / "parity.npz").exists():
        pytest.skip("no parity data")
    torch.set_num_threads(2)
    sides = [(s / r**0.5, s * r**0.5) for s in (32, 64, 128, 256, 512) for r in (0.5, 1.0, 2.0)]
    anchors = np.array([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides], np.float32)
    shapes = published_shapes((3, 4, 23), 64, 64, 512, 15, 1600, 400)
    state = {name: torch.from_numpy(np.asarray(rule(name, shape, anchors))) for name, shape in shapes.items()}
    path = tmp_path_factory.mktemp("published") / "pytorch_model.bin"
    torch.save(state, path)
    extractor = RegionExtractor(NAME, str(path), 36)
    path.unlink()
    pictures = [decode_rgb((shared_data / "coco/val2017" / f"{i}.jpg").read_bytes()) for i in IDS]
    return dict(np.load(shared_data / "frcnn_vg" / "parity.npz")), extractor.detect(pictures)


@pytest.mark.slow
@pytest.mark.timeout(400)  # two teraflops a picture
@pytest.mark.parametrize("at", [0, 1], ids=IDS)
def test_parity_with_the_published_implementation(parity: tuple[dict[str, np.ndarray], Detections], at: int) -> None:
    reference, ours = {k.split("/")[1]: v for k, v in parity[0].items() if k.startswith(IDS[at])}, parity[1]
    assert ours.attributes is not None and ours.attribute_scores is not None and ours.regions.mask[at].all()
    np.testing.assert_array_equal(ours.objects[at], reference["obj_ids"])
    np.testing.assert_array_equal(ours.attributes[at], reference["attr_ids"])
    np.testing.assert_allclose(ours.boxes[at], reference["boxes"], rtol=0, atol=0.05)
    np.testing.assert_allclose(ours.regions.boxes[at], reference["normalized_boxes"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ours.regions.scores[at], reference["obj_probs"], rtol=1e-3)
    np.testing.assert_allclose(ours.attribute_scores[at], reference["attr_probs"], rtol=1e-3)
    np.testing.assert_allclose(ours.regions.features[at], reference["roi_features"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("at", [0, 1], ids=IDS)
def test_sizes_are_those_of_the_published_implementation(shared_data: Path, at: int) -> None:
    height, width, _ = decode_rgb((shared_data / "coco/val2017" / f"{IDS[at]}.jpg").read_bytes()).shape
    reference = np.load(shared_data / "frcnn_vg" / "parity.npz")[f"{IDS[at]}/resized_hw"]
    assert resized_size(height, width, 800, 1333) == tuple(reference)


# --- in small, without any data


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder as the published one, of the tiny layout."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.yaml").write_text(yaml.safe_dump(TINY))
    anchors = cell_anchors(read_config(folder / "config.yaml"))
    shapes = published_shapes((3, 4, 6), 4, 8, 16, 9, 12, 7)
    state = {name: torch.from_numpy(np.asarray(rule(name, shape, anchors))) for name, shape in shapes.items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture(autouse=True)
def tiny_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tiny` in the table of extractors: the same family, with 128 numbers a region."""
    entry = replace(ARCHITECTURES[NAME], published="nobody/tiny", dim=128, min_side=96)
    monkeypatch.setitem(ARCHITECTURES, "tiny", entry)


@pytest.fixture
def tiny(tiny_folder: Path, tiny_entry: None) -> RegionExtractor:
    return RegionExtractor("tiny", str(tiny_folder), 8)


def read_state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "pytorch_model.bin", weights_only=True)


def save_state(folder: Path, state: dict[str, Tensor], config: dict | None = None) -> str:
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.yaml").write_text(yaml.safe_dump(config or TINY))
    return str(folder)


def test_published_names_and_shapes_of_the_full_model() -> None:
    with torch.device("meta"):
        model = VisualGenomeDetector(VisualGenomeConfig(), torch.zeros(15, 4))
    own = {published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert own == published_shapes((3, 4, 23), 64, 64, 512, 15, 1600, 400)


def test_config_yaml_decides(tiny_folder: Path) -> None:
    config = read_config(tiny_folder / "config.yaml")
    assert (config.min_size, config.max_size, config.blocks, config.dim) == (96, 160, (3, 4, 6), 128)
    assert (config.proposals_before_nms, config.proposals, config.pooled) == (200, 40, 6)
    assert config.anchor_sizes == (16, 32, 64) and (config.classes, config.attributes) == (12, 7)
    assert (config.min_detections, config.max_detections) == (5, 8)
    assert config.box_weights == (10, 10, 5, 5) and config.stride_in_1x1 and config.dilate_res5  # not named: usual


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"SOLVER": {"LR": 1}}, "names no setting of the Visual Genome detector"),
        ({"INPUT": {"MIN_SIZE_TEST": "large"}}, "INPUT.MIN_SIZE_TEST is large: "),
        ({"INPUT": {"MIN_SIZE_TEST": 900, "MAX_SIZE_TEST": 600}}, "the longer side may have 600 pixels"),
        ({"min_detections": 3, "RESNETS": {"DEPTH": 18}}, "RESNETS.DEPTH is 18, not one of"),
        ({"min_detections": 3, "ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True}}, "builds the detector with False"),
        ({"ANCHOR_GENERATOR": {"SIZES": [[32], [64]]}}, "ANCHOR_GENERATOR.SIZES is for 2 feature maps"),
        ({"RPN": {"NMS_THRESH": 7}}, "RPN.NMS_THRESH is 7: "),
        ({"ROI_HEADS": {"NMS_THRESH_TEST": []}}, "not shares of overlap"),
        ("!!python/object/apply:os.system ['echo executed']", "is not YAML"),
    ],
)
def test_a_bad_config_yaml_is_explained(tmp_path: Path, change: dict | str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(change if isinstance(change, str) else yaml.safe_dump(change))
    with pytest.raises(InputError, match=message) as caught:
        read_config(tmp_path / "config.yaml")
    assert "config.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_anchors_by_hand() -> None:
    """Half as high as wide: 32 * sqrt(2) wide; nothing is rounded, and sizes run slower than ratios."""
    anchors = cell_anchors(VisualGenomeConfig())
    assert anchors.shape == (15, 4)
    np.testing.assert_allclose(anchors[0], [-22.6274, -11.3137, 22.6274, 11.3137], atol=1e-4)
    np.testing.assert_array_equal(anchors[4], [-32, -32, 32, 32])
    np.testing.assert_allclose(anchors[14], [-181.0193, -362.0387, 181.0193, 362.0387], atol=1e-4)
    grid = VisualGenomeDetector(VisualGenomeConfig(width=1, rpn_width=1), None).proposal_generator.grid(2, 3)
    assert grid.shape == (2 * 3 * 15, 4)
    np.testing.assert_array_equal(grid[15 + 4], [16 - 32, -32, 16 + 32, 32])  # row 0, column 1
    np.testing.assert_array_equal(grid[3 * 15 + 4], [-32, 16 - 32, 32, 16 + 32])  # row 1, column 0


def test_resized_sizes_by_hand() -> None:
    assert resized_size(480, 640, 800, 1333) == (800, 1067)  # 640 * 800 / 480 = 1066.7
    assert resized_size(640, 480, 800, 1333) == (1067, 800)
    assert resized_size(200, 1000, 800, 1333) == (267, 1333)  # 800 * 1333 / 4000 = 266.6
    assert resized_size(2, 5000, 800, 1333) == (3, 1333)


@given(st.integers(2, 6000), st.integers(2, 6000))
def test_resized_sizes_reach_one_limit_and_keep_the_shape(height: int, width: int) -> None:
    rows, columns = resized_size(height, width, 800, 1333)
    assert min(rows, columns) == 800 or max(rows, columns) == 1333
    assert min(rows, columns) <= 800 and max(rows, columns) <= 1333
    assert (rows, columns) == resized_size(width, height, 800, 1333)[::-1]
    # Each side is within half a pixel of what the other one asks for, but for the least of three.
    scale = max(rows, columns) / max(height, width)
    assert abs(min(rows, columns) - scale * min(height, width)) <= 1 or min(rows, columns) == 3


def test_preprocessing_is_bgr_less_means_with_black_after_it(tiny: RegionExtractor) -> None:
    red = np.zeros((96, 96, 3), np.uint8)
    red[..., 0] = 200
    images, sizes = tiny.prepare([red, picture(0, 100, 140)])
    assert sizes == [(96, 96), (96, 134)] and images.shape == (2, 3, 96, 134)
    np.testing.assert_allclose(images[0, :, 5, 5], [-102.9801, -115.9465, 200 - 122.7717], rtol=1e-6)
    assert not images[0, :, :, 96:].any()


def test_strides_pooling_and_dilation(tiny_folder: Path) -> None:
    model = VisualGenomeDetector(read_config(tiny_folder / "config.yaml"))
    block, after = model.backbone.res3[0], model.roi_heads.res5
    assert block.conv1.stride == (2, 2) and block.conv2.stride == (1, 1) and block.downsample[0].stride == (2, 2)
    assert all(b.conv2.dilation == b.conv2.padding == (2, 2) and b.conv1.stride == (1, 1) for b in after)
    # 97 pixels: 49 after the convolution, 24 windows at 0, 2 ... 46 (25 if the pool padded); then 12; 6 (and not 7).
    assert model.eval().backbone(torch.zeros(1, 3, 97, 97)).shape == (1, 64, 6, 6)
    # 100 pixels: 50, and 25 windows, of which the last is not full (else 24); then 13; 7 (and not 6).
    assert model.backbone(torch.zeros(1, 3, 100, 100)).shape == (1, 64, 7, 7)


def test_folding_the_norms_changes_nothing(tiny_folder: Path) -> None:
    model = VisualGenomeDetector(read_config(tiny_folder / "config.yaml")).eval()
    model.load_published(read_state(tiny_folder))
    images = 50 * torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model.backbone(images)
        model.fold_norms()
        torch.testing.assert_close(model.backbone(images), before, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_a_picture_does_not_depend_on_its_neighbours(tiny: RegionExtractor) -> None:
    pictures = [picture(1, 120, 160), picture(2, 400, 100), picture(3, 160, 120), picture(4, 120, 160)]
    together = tiny.detect(pictures)
    for i, one in enumerate(pictures):
        alone = tiny.detect([one])
        np.testing.assert_array_equal(alone.objects[0], together.objects[i])
        np.testing.assert_allclose(alone.boxes[0], together.boxes[i], atol=1e-2)
        np.testing.assert_allclose(alone.regions.features[0], together.regions.features[i], rtol=1e-3, atol=1e-4)


def test_boxes_go_back_by_the_scale_of_each_axis(tiny: RegionExtractor) -> None:
    """A picture of 101 x 150 becomes 96 x 143: 150 / 143 is not 101 / 96."""
    image = picture(5, 120, 160)[:101, :150]
    found = tiny.detect([image])
    (height, width) = tiny.prepare([image])[1][0]
    assert (height, width) == (96, 143)
    with torch.inference_mode():
        raw = tiny.detector.find(*tiny.prepare([image]), 8, torch.float32)[0].boxes.numpy()
    n = len(raw)
    np.testing.assert_allclose(found.boxes[0, :n], raw * np.array([150 / 143, 101 / 96] * 2), rtol=1e-5)
    np.testing.assert_allclose(found.boxes[0], found.regions.boxes[0] * np.array([150, 101] * 2), rtol=1e-5)
    assert found.boxes[0, :, 2].max() <= 150 and found.boxes[0, :, 3].max() <= 101


class Fixed(nn.Module):
    """Stands for cls_score or bbox_pred: the numbers that were given, whatever comes in."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, features: Tensor) -> Tensor:
        return self.values


def test_thresholds_are_loosened_until_enough_boxes_remain(tiny_folder: Path) -> None:
    """Boxes of width 100, each moved by d pixels, overlap by (100 - d) / (100 + d)."""
    head = VisualGenomeDetector(read_config(tiny_folder / "config.yaml")).roi_heads.eval()  # 5 are enough
    shifts = torch.tensor([0.0, 28.0, 200.0, 300.0, 400.0, 500.0])  # the first two overlap by 0.5625
    proposals = torch.stack([shifts, torch.zeros(6), shifts + 100, torch.full((6,), 50.0)], dim=1)
    logits = torch.zeros(6, 13)
    logits[:, 3] = torch.arange(6.0, 0.0, -1.0)
    logits[:, 12] = 50.0  # the background is no class, however likely
    head.box_predictor["cls_score"] = Fixed(logits)
    head.box_predictor["bbox_pred"] = Fixed(torch.zeros(6, 48))
    features = torch.arange(6.0)[:, None].expand(6, 128)

    def kept(rows: int, count: int = 8) -> list[float]:
        head.box_predictor["cls_score"].values = logits[:rows]
        head.box_predictor["bbox_pred"].values = torch.zeros(rows, 48)
        with torch.inference_mode():
            found = head.choose(features[:rows], proposals[:rows], (1000, 1000), count)
        assert found.objects.tolist() == [3] * len(found.objects)
        return found.features[:, 0].tolist()

    assert kept(6) == [0, 2, 3, 4, 5]  # 0.5 leaves five: accepted
    assert kept(5) == [0, 1, 2, 3, 4]  # 0.5 leaves four, 0.6 five
    assert kept(5, count=3) == [0, 2, 3]  # three are asked for: 0.5 is enough
    assert kept(3) == [0, 1, 2]  # never five: the loosest choice, the rest is for the mask


def test_regions_that_are_not_there_are_masked(tiny_folder: Path, tmp_path: Path) -> None:
    """One picture gives few boxes, the one before it many: nothing of the first shows up in the second."""
    many = RegionExtractor("tiny", str(tiny_folder), 60)
    found = many.detect([picture(1), picture(2)])
    for i in range(2):
        n = int(found.regions.mask[i].sum())
        assert 0 < n <= 40 and found.regions.mask[i, :n].all()
        assert not found.regions.features[i, n:].any() and not found.boxes[i, n:].any()
        assert (found.objects[i, n:] == -1).all() and (found.objects[i, :n] >= 0).all()
    nothing = {**TINY, "PROPOSAL_GENERATOR": {"HIDDEN_CHANNELS": 16, "MIN_SIZE": 10_000}}
    empty = RegionExtractor("tiny", save_state(tmp_path, read_state(tiny_folder), nothing), 8)
    assert not empty([picture(1)]).mask.any()


def test_bfloat16_is_near_float32(tiny: RegionExtractor, tiny_folder: Path) -> None:
    rough = RegionExtractor("tiny", str(tiny_folder), 8, precision="bfloat16")([picture(1)])
    exact = tiny([picture(1)])
    assert rough.features.dtype == np.float32 and rough.mask.any()
    close = np.linalg.norm(rough.features.mean(1) - exact.features.mean(1)) / np.linalg.norm(exact.features.mean(1))
    assert 0 < close < 0.1


def test_random_weights_tell_pictures_apart() -> None:
    config = read_tiny()
    model = VisualGenomeDetector.build("tiny", "random:3", ARCHITECTURES["tiny"], config)
    again = VisualGenomeDetector.build("tiny", "random:3", ARCHITECTURES["tiny"], config)
    other = VisualGenomeDetector.build("tiny", "random:4", ARCHITECTURES["tiny"], config)
    pictures = [picture(seed) for seed in range(4)]

    def means(detector: VisualGenomeDetector) -> np.ndarray:
        with torch.inference_mode():
            images, sizes = detector.prepare(pictures, torch.device("cpu"))
            return np.stack([one.features.mean(0) for one in detector.find(images, sizes, 8, torch.float32)])

    first = means(model)
    np.testing.assert_array_equal(first, means(again))
    assert not np.allclose(first, means(other))
    assert first.std(axis=0).mean() / np.abs(first).mean() > 0.05, "features of different pictures are nearly equal"


def read_tiny() -> VisualGenomeConfig:
    return VisualGenomeConfig(
        min_size=96, max_size=160, blocks=(1, 1, 2), width=4, stem_width=8, rpn_width=16, anchor_sizes=(16, 32, 64),
        proposals_before_nms=200, proposals=40, pooled=6, classes=12, attributes=7,
    )  # fmt: skip


# --- where weights come from, and what they are called


def test_folder_file_and_hub_are_one_identity(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes are the same weights; the hub's cache is laid out as huggingface_hub does, and is read offline."""
    from huggingface_hub import constants

    commit = "a" * 40
    repository = tmp_path / "models--nobody--tiny"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("config.yaml", "pytorch_model.bin"):
        (snapshot / name).write_bytes((tiny_folder / name).read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    ways = [str(tiny_folder), str(tiny_folder / "pytorch_model.bin"), "nobody/tiny", "hf://nobody/tiny", "default"]
    identities = {identify("tiny", way, 8) for way in [*ways, f"nobody/tiny@{commit}"]}
    assert len(identities) == 1 and next(iter(identities)).weights.startswith("sha256:")
    assert RegionExtractor("tiny", "nobody/tiny", 8).identity in identities
    assert locate("nobody/tiny") == "nobody/tiny" and locate(str(tiny_folder)) == str(tiny_folder)


def test_settings_other_than_the_usual_ones_are_part_of_the_identity(tiny_folder: Path, tmp_path: Path) -> None:
    state, usual = read_state(tiny_folder), identify("tiny", str(tiny_folder), 8).weights
    changed = identify("tiny", save_state(tmp_path, state, {**TINY, "MIN_DETECTIONS": 6}), 8).weights
    longer = identify("tiny", save_state(tmp_path, state, {**TINY, "MAX_DETECTIONS": 9}), 8).weights
    assert "+config:" in usual and changed != usual
    assert changed.partition("+")[0] == usual.partition("+")[0]
    assert longer == usual  # the count that is asked for takes its place
    (tmp_path / "config.yaml").unlink()
    assert "+" not in identify("tiny", str(tmp_path / "pytorch_model.bin"), 8).weights


@pytest.mark.parametrize("form", ["safetensors", "before torch 1.6"])
def test_other_file_formats_give_the_same_regions(
    tiny: RegionExtractor, tiny_folder: Path, tmp_path: Path, form: str
) -> None:
    state = read_state(tiny_folder)
    if form == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:  # the published file is of 2020
        torch.save(OrderedDict(state), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "config.yaml").write_bytes((tiny_folder / "config.yaml").read_bytes())
    ours = RegionExtractor("tiny", str(tmp_path), 8)([picture(1)])
    np.testing.assert_array_equal(ours.features, tiny([picture(1)]).features)


@pytest.mark.parametrize("shape", [(), (1,), (3,), None])
def test_counters_of_batches_fit_in_any_shape(
    tiny_folder: Path, tiny: RegionExtractor, tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    """The published helper makes them of shape (1,); FrozenBatchNorm, which the network has, keeps none."""
    state = read_state(tiny_folder)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    for name in counters:
        if shape is None:
            del state[name]
        else:
            state[name] = torch.full(shape, 7)
    (tmp_path / "config.yaml").write_text((tiny_folder / "config.yaml").read_text())
    torch.save(state, tmp_path / "pytorch_model.bin")
    picture = np.random.default_rng(0).integers(0, 255, (96, 120, 3), np.uint8)
    own, usual = RegionExtractor("tiny", str(tmp_path), 8)([picture]), tiny([picture])
    np.testing.assert_array_equal(own.features, usual.features)


def test_names_that_do_not_fit_are_listed_together(tiny_folder: Path, tmp_path: Path) -> None:
    state = read_state(tiny_folder)
    for name in [name for name in state if name.startswith("roi_heads.res5")]:
        del state[name]
    state["roi_heads.mask.weight"] = torch.zeros(1)
    state["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(5)
    with pytest.raises(InputError) as caught:
        RegionExtractor("tiny", save_state(tmp_path, state), 8)
    text = str(caught.value)
    assert "50 missing (roi_heads.res5.0.conv1.norm.bias, " in text and text.count("roi_heads.res5") == 12
    assert "1 unknown (roi_heads.mask.weight)" in text
    assert "1 of another shape (roi_heads.box_predictor.cls_score.bias)" in text


def test_counters_of_batches_may_be_absent(tiny_folder: Path, tmp_path: Path) -> None:
    state = {name: value for name, value in read_state(tiny_folder).items() if "num_batches" not in name}
    assert RegionExtractor("tiny", save_state(tmp_path, state), 8)([picture(1)]).mask.any()


def test_the_checkpoints_anchors_decide(tiny_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = read_state(tiny_folder)
    anchors = state[visual_genome_checkpoint.CELL_ANCHORS] = state[visual_genome_checkpoint.CELL_ANCHORS] * 0.5
    with caplog.at_level(logging.WARNING):
        extractor = RegionExtractor("tiny", save_state(tmp_path, state), 8)
    assert "anchors of its own" in caplog.text
    torch.testing.assert_close(extractor.model.proposal_generator.cell_anchors, anchors)
    # Fewer than config.yaml names: their number is the checkpoint's too.
    state[visual_genome_checkpoint.CELL_ANCHORS] = anchors[:6]
    for part, rows in (("objectness_logits", 6), ("anchor_deltas", 24)):
        for name in (f"proposal_generator.rpn_head.{part}.{kind}" for kind in ("weight", "bias")):
            state[name] = state[name][:rows].clone()
    assert RegionExtractor("tiny", save_state(tmp_path, state), 8)([picture(1)]).mask.any()
    state[visual_genome_checkpoint.CELL_ANCHORS] = -anchors
    with pytest.raises(InputError, match="does not hold boxes"):
        RegionExtractor("tiny", save_state(tmp_path, state), 8)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("unc-nlp/frcnn-vg-finetuned", "could not be had from the hub .*config.yaml into a folder"),
        ("default", "unc-nlp/frcnn-vg-finetuned: the weights could not be had"),
        ("absent/weights.bin", "no such weights file or folder"),
        ("a/b/c", "no such weights file or folder"),
    ],
)
def test_weights_that_can_not_be_had_are_one_line(
    weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        identify(NAME, weights, 36)
    assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_a_file_and_one_of_another_size(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds no config.yaml, and no pytorch_model.bin or model.safetensors"):
        identify(NAME, str(tmp_path), 36)
    with pytest.raises(InputError, match="its features have 128 numbers, not 2048"):
        RegionExtractor(NAME, str(tiny_folder), 36)


def test_identity_of_the_entry() -> None:
    assert identify(NAME, "random:5", 36).to_dict() == {
        "name": NAME, "weights": "random:5", "count": 36, "dim": 2048,
    }  # fmt: skip
