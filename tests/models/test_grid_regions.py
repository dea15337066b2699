"""Grid features: the cells of a classifier's last feature map as regions."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from raymotion.errors import InputError
from raymotion.models.vision.regions import RegionExtractor, architecture, identify

NAME, WEIGHTS = "grid:test_resnet", "random:3"


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in ((90, 140), (200, 60))]


def test_each_region_is_the_mean_of_the_feature_map_over_its_cell(pictures: list[np.ndarray]) -> None:
    """Against timm and PIL alone: the map of 5 x 5 places at 160 pixels has one region for each."""
    entry = architecture(NAME)
    side = round(max(entry.counts or ()) ** 0.5)
    extractor = RegionExtractor(NAME, WEIGHTS, side * side)
    regions = extractor(pictures)
    config = timm.get_pretrained_cfg("test_resnet")
    size = config.input_size[-1]
    assert entry.min_side == size
    for own, picture in zip(regions, pictures, strict=True):
        resample = Image.Resampling[config.interpolation.upper()]
        image = Image.fromarray(picture).resize((size, size), resample, reducing_gap=3.0)
        pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
        mean, std = torch.tensor(config.mean).view(3, 1, 1), torch.tensor(config.std).view(3, 1, 1)
        with torch.no_grad():
            found = extractor.model.forward_features(((pixels - mean) / std)[None])[0]
        assert found.shape[1:] == (side, side)
        np.testing.assert_allclose(own.features, found.flatten(1).T.numpy(), rtol=1e-3, atol=1e-3)
        assert own.mask.all() and (own.scores == 1).all()


def test_the_boxes_tile_the_picture_row_by_row(pictures: list[np.ndarray]) -> None:
    boxes = RegionExtractor(NAME, WEIGHTS, 4)(pictures).boxes
    expected = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    np.testing.assert_allclose(boxes, [expected, expected], atol=1e-6)


def test_detections_name_no_objects(pictures: list[np.ndarray]) -> None:
    found = RegionExtractor(NAME, WEIGHTS, 4).detect(pictures)
    assert (found.objects == -1).all() and found.attributes is None
    np.testing.assert_allclose(found.boxes[0, 1], [70, 0, 140, 45], atol=1e-4)


def test_the_identity_is_told_without_weights_being_loaded() -> None:
    identity = identify(NAME, WEIGHTS, 9)
    assert (identity.name, identity.weights, identity.count) == (NAME, "random:3", 9)
    assert identify(NAME, "default", 9).weights.startswith("timm:")


@pytest.mark.parametrize("count, said", [(5, "has no 5 regions per image. Choose from 1, 4, 9"), (0, "too few")])
def test_a_number_of_regions_without_a_grid_is_refused(count: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        identify(NAME, WEIGHTS, count)


def test_models_without_a_grid_and_unknown_ones_are_refused() -> None:
    with pytest.raises(InputError, match="timm has no model 'resnet_of_mine'"):
        identify("grid:resnet_of_mine", WEIGHTS, 4)
    with pytest.raises(InputError, match="or write grid: and the name of a timm model"):
        identify("detr", WEIGHTS, 4)
