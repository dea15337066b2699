"""Views of a training picture, against torchvision's and Pillow's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp

from raymotion.data.views.pictures import COLOUR, WHOLE, draw_view, render
from raymotion.data.views.render import Drawn


def colours_of(view: Drawn) -> tuple[float, float, float]:
    return view.brightness, view.contrast, view.saturation


@pytest.mark.parametrize(("width", "height", "smallest"), [(320, 240, 0.5), (100, 400, 0.08)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int, smallest: float) -> None:
    from torchvision.transforms import RandomResizedCrop

    rng = np.random.default_rng(0)
    n = 3000
    boxes = [draw_view(rng, width, height, "basic", smallest_crop=smallest).box for _ in range(n)]
    torch.manual_seed(0)
    picture = torch.zeros(3, height, width)
    theirs = [RandomResizedCrop.get_params(picture, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]
    # In a tall picture large crops do not fit: torchvision falls back on a central one, we on the whole picture.
    ours = np.array([box for box in boxes if box is not None])
    w, h = ours[:, 2] - ours[:, 0], ours[:, 3] - ours[:, 1]
    fallback = boxes.count(None) / n
    top, left, their_h, their_w = np.array(theirs, dtype=float).T
    central = (
        (their_w == width) & (their_h == min(height, round(width / (3 / 4)))) if height > width else np.zeros(n, bool)
    )
    assert abs(central.mean() - fallback) < 0.03
    fits = ~central
    # Torchvision's corners are whole pixels, which are spread here over the pixel.
    spread_left = (left + rng.random(n)) / (width - their_w + 1)
    spread_top = (top + rng.random(n)) / (height - their_h + 1)
    for name, mine, other in (
        ("area", w * h / (width * height), their_w * their_h / (width * height)),
        ("log ratio", np.log(w / h), np.log(their_w / their_h)),
        ("left", ours[:, 0] / (width - w), spread_left),
        ("top", ours[:, 1] / (height - h), spread_top),
    ):
        # The largest distance between the two distributions: chance gives 0.035 (one in a hundred: 0.042).
        assert ks_2samp(mine, other[fits]).statistic < 0.045, name


@given(
    st.integers(2, 700),
    st.integers(2, 700),
    st.floats(0.05, 1.0),
    st.integers(0, 2**31),
    st.sampled_from(["basic", "full"]),
)
def test_a_view_lies_in_its_picture(width: int, height: int, smallest: float, seed: int, kind: str) -> None:
    view = draw_view(np.random.default_rng(seed), width, height, kind, smallest_crop=smallest)  # type: ignore[arg-type]
    assert view == draw_view(np.random.default_rng(seed), width, height, kind, smallest_crop=smallest)  # type: ignore[arg-type]
    if view.box is not None:
        x1, y1, x2, y2 = view.box
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        assert smallest * 0.999 <= (x2 - x1) * (y2 - y1) / (width * height) <= 1.001
        assert 0.749 <= (x2 - x1) / (y2 - y1) <= 1.334
    factors = colours_of(view)
    assert all(1 - COLOUR <= c <= 1 + COLOUR for c in factors) and (kind == "full" or factors == (1, 1, 1))


def test_half_of_the_views_are_mirrored_whatever_their_crop() -> None:
    views = [draw_view(np.random.default_rng([0, i]), 64, 64, "full") for i in range(2000)]
    mirrored = np.array([view.mirror for view in views])
    assert abs(mirrored.mean() - 0.5) < 0.04
    left = np.array([view.box[0] for view in views if view.box is not None])
    assert abs(np.corrcoef(left, mirrored[[view.box is not None for view in views]])[0, 1]) < 0.08
    colours = np.array([colours_of(view) for view in views])
    np.testing.assert_allclose(colours.mean(axis=0), 1.0, atol=0.02)
    np.testing.assert_allclose(colours.std(axis=0), 0.4 / np.sqrt(12), atol=0.02)
    assert draw_view(np.random.default_rng(0), 64, 64, "none") == WHOLE


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """Smooth, with colour: 90 x 60 pixels."""
    y, x = np.mgrid[0:60, 0:90]
    return np.stack((x * 2, y * 4, (x + y)), axis=-1).astype(np.uint8)


def test_the_whole_picture_is_pillows_resize(picture: np.ndarray) -> None:
    got = render(picture, 32)
    assert got.shape == (32, 32, 3) and got.dtype == np.uint8
    expected = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(got.astype(int) - expected).max() <= 1
    # All of it: the corners are the picture's corners.
    for y, x in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert np.abs(got[y, x].astype(int) - picture[y, x]).max() < 6
    assert render(picture[:2, :2], 32).shape == (32, 32, 3)


def test_a_view_is_a_crop_then_a_mirror_then_colours(picture: np.ndarray) -> None:
    cut = render(picture[10:40, 20:80], 24).astype(int)
    boxed = render(picture, 24, Drawn(box=(20, 10, 80, 40))).astype(int)
    assert np.abs(cut - boxed)[1:-1, 1:-1].max() <= 1  # a box may borrow from beyond its border, a cut cannot
    mirrored = render(picture, 24, Drawn(box=(20, 10, 80, 40), mirror=True))
    np.testing.assert_array_equal(mirrored[:, ::-1], boxed)
    darker = render(picture, 24, Drawn(brightness=0.8)).astype(float)
    np.testing.assert_allclose(darker, render(picture, 24) * 0.8, atol=1)
    grey = render(picture, 24, Drawn(saturation=0.0)).astype(int)
    assert np.ptp(grey, axis=-1).max() == 0
    flat = render(picture, 24, Drawn(contrast=0.0)).astype(int)
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0
