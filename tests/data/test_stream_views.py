"""Views of streams: held to torchvision's own transforms, to bounds worked out by hand, and to their seeds."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import InterpolationMode, functional

from raymotion.data.streams import STREAMS
from raymotion.data.views.render import Drawn, apply, blur, shift_hue, turn
from raymotion.data.views.streams import View, crop, draw, mirrored, render_view

MANY = range(400)


def smooth(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray:
    """A picture without sharp edges, of all colours: two right interpolations of it differ little."""
    coarse = torch.rand(1, 3, 5, 6, generator=torch.Generator().manual_seed(seed)) * 255
    picture = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return picture[0].permute(1, 2, 0).to(torch.uint8).numpy()


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)


def view_of(picture: np.ndarray, stream: str, view: View, **given: object) -> np.ndarray:
    values = {"seed": 3, "image": "a.jpg", "owner": "a.jpg", **given}
    return render_view(picture, stream, view, **values)  # type: ignore[arg-type]


def largest(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


# --- what torchvision does ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.0, 0.07, 0.1])
def test_hue_is_torchvisions(turns: float) -> None:
    picture = smooth()
    expected = functional.adjust_hue(as_tensor(picture), turns).permute(1, 2, 0).numpy()
    off = np.abs(shift_hue(picture, turns).astype(int) - expected.astype(int))
    assert off.mean() < 2.5  # 8-bit HSV, as Pillow's, against torchvision's of floats


@pytest.mark.parametrize(
    ("degrees", "shift", "scale"), [(10, (0, 0), 1), (0, (0.1, -0.05), 1), (-15, (0.15, 0.1), 0.8)]
)
def test_turning_is_torchvisions_affine(degrees: float, shift: tuple[float, float], scale: float) -> None:
    picture = smooth()
    height, width = picture.shape[:2]
    pixels = [round(shift[0] * width), round(shift[1] * height)]
    expected = (
        functional.affine(
            as_tensor(picture), degrees, pixels, scale, [0.0, 0.0], InterpolationMode.BILINEAR, fill=[-1.0]
        )
        .permute(1, 2, 0)
        .numpy()
    )
    covered = functional.affine(torch.ones(1, height, width), degrees, pixels, scale, [0.0, 0.0])
    # Two pixels away from what is filled: there the two mix fill and picture differently.
    near = torch.nn.functional.max_pool2d(torch.nn.functional.pad(1 - covered, [2] * 4, value=1.0)[None], 5, 1)
    inside = (near[0, 0] == 0).numpy()
    found = turn(picture, degrees, shift, scale)
    assert inside.mean() > 0.4
    assert largest(found[inside], expected[inside]) <= 3


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_torchvisions(sigma: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    side = 2 * int(np.ceil(3 * sigma)) + 1
    expected = functional.gaussian_blur(as_tensor(picture), [side, side], [sigma, sigma]).permute(1, 2, 0).numpy()
    assert largest(blur(picture, sigma), expected) <= 1


def test_brightness_contrast_and_saturation_come_in_the_order_that_was_drawn() -> None:
    picture = smooth()
    drawn = Drawn(mirror=True, brightness=0.7, contrast=1.3, saturation=0.6, order=(2, 3, 0, 1))
    expected = functional.horizontal_flip(as_tensor(picture))
    expected = functional.adjust_brightness(functional.adjust_saturation(expected, 0.6), 0.7)
    expected = functional.adjust_contrast(expected, 1.3).permute(1, 2, 0).numpy()
    assert largest(apply(picture, drawn), expected) <= 3  # rounded after each step, by Pillow and by torchvision


def test_noise_has_a_deviation_of_a_twentieth_of_the_range() -> None:
    grey = np.full((100, 100, 3), 128, np.uint8)
    noise = apply(grey, Drawn(noise=5)).astype(float) - 128
    # 30,000 draws: the standard error of the deviation is 12.75 / sqrt(60,000) = 0.05, rounding adds 0.003.
    assert noise.std() == pytest.approx(12.75, abs=0.25)
    assert abs(noise.mean()) < 0.3


def test_a_hidden_part_is_one_rectangle_of_one_colour() -> None:
    picture = smooth(100, 200)
    shown = apply(picture, Drawn(hidden=(0.5, 0.25, 0.2, 0.4), colour=(1, 2, 3)))
    assert (shown[25:65, 100:140] == (1, 2, 3)).all()
    untouched = np.ones((100, 200), bool)
    untouched[25:65, 100:140] = False
    assert (shown[untouched] == picture[untouched]).all()


# --- what is drawn -----------------------------------------------------------------------------------------------


def test_draws_stay_in_their_bounds_and_use_them() -> None:
    for stream in STREAMS:
        drawn = [draw(stream, View("full", k), seed=0, image="a", owner="a") for k in MANY]
        limit = 0.05 if stream == "face" else 0.15
        for values, low, high in (
            ([d.brightness for d in drawn], 0.6, 1.4),
            ([d.contrast for d in drawn], 0.6, 1.4),
            ([d.saturation for d in drawn], 0.6, 1.4),
            ([d.hue for d in drawn], -0.1, 0.1),
            ([d.degrees for d in drawn], -15, 15),
            ([d.shift[0] for d in drawn], -limit, limit),
            ([d.shift[1] for d in drawn], -limit, limit),
            ([d.scale for d in drawn], 0.8, 1.2),
            ([d.sigma for d in drawn if d.sigma is not None], 0.1, 2.0),
        ):
            found = np.array(values, dtype=float)
            assert low <= found.min() and found.max() <= high
            # Of 150 uniform draws and more, the chance that none falls into an outer tenth is below 1e-6.
            assert found.min() < low + 0.1 * (high - low) and found.max() > high - 0.1 * (high - low)
        # Half of 400, four standard deviations (4 * 10) to each side.
        for gate in ("mirror", "sigma", "noise"):
            assert 160 <= sum(bool(getattr(d, gate) not in (None, False)) for d in drawn) <= 240, gate
        hidden = [d.hidden for d in drawn if d.hidden is not None]
        if stream != "context":
            assert not hidden
            continue
        assert 160 <= len(hidden) <= 240
        for left, top, width, height in hidden:
            assert 0.1 <= width <= 0.4 and 0.1 <= height <= 0.4
            assert left >= 0 and top >= 0 and left + width <= 1 and top + height <= 1
        assert {d.order[0] for d in drawn} == {0, 1, 2, 3}


def test_the_brightness_of_a_basic_view_is_within_forty_per_cent() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)  # contrast and saturation leave an even grey as it is
    means = [view_of(grey, "body", View("basic", k)).mean() for k in range(100)]
    assert 59 <= min(means) < 70 and 130 < max(means) <= 141


def test_validation_sees_the_crop_itself_defect_4() -> None:
    picture = smooth(700, 500)
    for stream in STREAMS:
        assert view_of(picture, stream, View("none")) is picture
    assert not any(mirrored(seed, "a", View("none", seed)) for seed in range(50))


def test_streams_and_persons_of_one_image_are_mirrored_together_defect_of_independent_flips() -> None:
    """In the study each stream flipped a coin of its own: a mirrored body in a context that was not."""
    for number in range(30):
        view = View("full", number)
        expected = mirrored(1, "a.jpg", view)
        owners = [("context", "a.jpg"), ("body", "a:1"), ("body", "a:2"), ("face", "a:1")]
        assert {draw(s, view, seed=1, image="a.jpg", owner=o).mirror for s, o in owners} == {expected}
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 20:] = 200  # bright on the right
    for number in range(20):
        view = View("basic", number)
        turned = [view_of(wide, s, view, owner=s)[:, :20].mean() > 60 for s in STREAMS]
        assert turned == [mirrored(3, "a.jpg", view)] * 3


def test_half_of_the_images_are_mirrored_and_the_other_view_is_drawn_anew() -> None:
    first = [mirrored(0, f"{i}.jpg", View("basic", 0)) for i in range(1000)]
    second = [mirrored(0, f"{i}.jpg", View("basic", 1)) for i in range(1000)]
    assert 437 <= sum(first) <= 563  # 4 standard deviations of 15.8
    assert 437 <= sum(a == b for a, b in zip(first, second, strict=True)) <= 563


# --- seeds -------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_views_and_each_part_of_the_seed_matters() -> None:
    picture = smooth()
    reference = view_of(picture, "context", View("full", 0))
    assert np.array_equal(reference, view_of(picture, "context", View("full", 0)))
    others = [
        view_of(picture, "context", View("full", 1)),
        view_of(picture, "context", View("basic", 0)),
        view_of(picture, "body", View("full", 0)),
        view_of(picture, "context", View("full", 0), seed=4),
        view_of(picture, "context", View("full", 0), owner="b.jpg"),
    ]
    assert not any(np.array_equal(reference, other) for other in others)


def test_views_are_the_same_in_threads_and_touch_no_global_generator_defect_13() -> None:
    picture = smooth()
    expected = [view_of(picture, "context", View("full", k)) for k in range(12)]
    found: dict[int, np.ndarray] = {}
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def work(numbers: range) -> None:
        for k in numbers:
            found[k] = view_of(picture, "context", View("full", k))

    threads = [threading.Thread(target=work, args=(range(i, 12, 3),)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert len(found) == 12 and all(np.array_equal(found[k], expected[k]) for k in range(12))


# --- shapes ------------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 40), width=st.integers(1, 40), level=st.sampled_from(["basic", "full"]),
    stream=st.sampled_from(STREAMS), number=st.integers(0, 50), owner=st.text(max_size=8),
)  # fmt: skip
def test_crops_of_any_size_give_views_of_that_size(
    height: int, width: int, level: str, stream: str, number: int, owner: str
) -> None:
    before = np.full((height, width, 3), 90, np.uint8)
    shown = view_of(before, stream, View(level, number), owner=owner)
    assert shown.shape == before.shape and shown.dtype == np.uint8
    assert (before == 90).all()  # the crop is a view of the picture: other streams still need it


def test_large_crops_are_reduced_first_and_keep_their_shape() -> None:
    assert view_of(smooth(600, 1200), "context", View("basic")).shape == (160, 320, 3)
    assert view_of(smooth(600, 1200), "context", View("basic"), longest=600).shape == (300, 600, 3)
    assert view_of(smooth(2000, 2), "body", View("basic")).shape == (320, 1, 3)


def test_unknown_levels_and_streams_are_refused() -> None:
    with pytest.raises(ValueError, match="none, basic, full"):
        View("strong")
    with pytest.raises(ValueError, match="context, body, face"):
        view_of(smooth(), "hands", View("full"))


@given(box=st.tuples(*[st.floats(-30, 60)] * 4))
def test_boxes_are_clipped_and_empty_ones_give_nothing(box: tuple[float, float, float, float]) -> None:
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    part = crop(picture, box)
    columns = [x for x in range(30) if round(box[0]) <= x < round(box[2])]
    rows = [y for y in range(20) if round(box[1]) <= y < round(box[3])]
    if not columns or not rows:
        assert part is None
    else:
        assert part is not None and np.array_equal(part, picture[np.ix_(rows, columns)])


def test_a_missing_box_is_no_black_square_defect_8() -> None:
    picture = smooth()
    assert crop(picture, None) is None
    assert crop(picture, (0, 0, float("nan"), 5)) is None
    assert crop(picture, (200, 0, 300, 50)) is None
