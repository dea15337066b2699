"""Changes of a few pixels, and the searches for them, on a model of which everything is known."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion.robustness.goals import Goal
from raymotion.robustness.pixels import (
    COLOUR_BOUNDS,
    apply_change,
    bounds,
    differing_pixels,
    draw_as_published,
    draw_candidates,
    png_bytes,
    read_png,
    to_changes,
)
from raymotion.robustness.searches import Oracle, draw_at_random, evolve


@given(
    st.integers(2, 12),
    st.integers(2, 9),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 3.0]),
)
def test_a_candidate_never_changes_more_pixels_than_it_may(
    width: int, height: int, k: int, seed: int, out: float
) -> None:
    """Also one with the same pixel twice, or with numbers at or beyond the ends."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3), np.uint8)
    candidates = rng.uniform(-out * 300, (1 + out) * 300, (4, 5 * k))
    candidates[0] = np.tile(candidates[0, :5], k)
    candidates[1] = [high for _, high in bounds(width, height, k)]
    for change in to_changes(candidates, width, height):
        after = apply_change(picture, change)
        assert after.dtype == np.uint8
        changed = differing_pixels(picture, after)
        assert len(changed) <= k
        np.testing.assert_array_equal(apply_change(picture, changed), after)
        by_hand = picture.copy()
        for x, y, r, g, b in change.tolist():
            assert 0 <= x < width and 0 <= y < height
            by_hand[y, x] = (r, g, b)
        np.testing.assert_array_equal(after, by_hand)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 99))
def test_a_png_holds_each_pixel(width: int, height: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (max(2, height), max(2, width), 3), np.uint8)
    data = png_bytes(picture)
    assert Image.open(io.BytesIO(data)).format == "PNG"
    np.testing.assert_array_equal(read_png(data), picture)


def test_a_jpeg_would_not() -> None:
    """Why files are PNG: around a changed pixel a JPEG changes others."""
    picture = np.full((16, 16, 3), 90, np.uint8)
    changed = apply_change(picture, np.array([[4, 4, 255, 0, 0]]))
    buffer = io.BytesIO()
    Image.fromarray(changed).save(buffer, "JPEG", quality=95)
    assert len(differing_pixels(picture, np.asarray(Image.open(buffer)))) > 1


def test_random_pixels_have_the_strongest_colours() -> None:
    """The baseline: of 0 and 255, which mislead most often. Weaker colours would make any search look good."""
    changes = to_changes(draw_candidates(np.random.default_rng(0), 20_000, 1, 40, 30), 40, 30)[:, 0]
    assert set(np.unique(changes[:, 2:])) == {0, 255} and abs((changes[:, 2] == 0).mean() - 0.5) < 0.02
    assert abs(changes[:, 0].mean() - 19.5) < 0.3 and abs(changes[:, 1].mean() - 14.5) < 0.3


def test_first_candidates_are_drawn_as_published() -> None:
    drawn = draw_as_published(np.random.default_rng(0), 20_000, 1, 40, 30)
    assert drawn.shape == (20_000, 5) and drawn[:, 2:].min() >= COLOUR_BOUNDS[0]
    changes = to_changes(drawn, 40, 30)[:, 0]
    assert abs(changes[:, 0].mean() - 19.5) < 0.3 and abs(changes[:, 1].mean() - 14.5) < 0.3
    # Of N(128, 127), 15.7 % lie below 0 and 15.9 % above 255.
    assert abs((changes[:, 2] == 0).mean() - 0.158) < 0.01 and abs((changes[:, 2] == 255).mean() - 0.159) < 0.01


class Planted:
    """Stands in for a model: its value is how near any pixel is to a colour, and it counts what it is sent."""

    def __init__(self, best: float = 0.999, colour: tuple[int, int, int] = (255, 0, 0)) -> None:
        self.best, self.colour, self.pictures, self.batches = best, colour, 0, list[int]()

    def predict(self, row: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, None]:
        self.pictures += len(pictures)
        self.batches.append(len(pictures))
        away = [np.abs(own.astype(float) - self.colour).sum(axis=2).min() for own in pictures]
        return np.array([[1 - own / 765] for own in away], np.float32), None

    @property
    def goal(self) -> Goal:
        return Goal(lambda values: -values[:, 0].double(), lambda values: values[:, 0] >= self.best)


def oracle_of(model: Planted, budget: int, batch_size: int = 32) -> Oracle:
    picture = np.full((12, 10, 3), 128, np.uint8)
    return Oracle(model, {"sample_id": "s"}, picture, model.goal, budget, batch_size)  # type: ignore[arg-type]


@pytest.mark.parametrize("search", [evolve, draw_at_random])
@pytest.mark.parametrize("budget", [5, 33, 100, 317])
def test_the_budget_is_spent_exactly_where_nothing_succeeds(search: Any, budget: int) -> None:
    model = Planted(best=2.0)
    found = search(oracle_of(model, budget), 2, 10, [0])
    assert not found.success and found.sent == found.queries == budget
    # One more, alone, is the measurement of the best one.
    assert model.pictures == budget + 1 and model.batches[-1] == 1 and max(model.batches) <= 32
    assert len(found.changed) <= 2
    np.testing.assert_array_equal(found.after, model.predict({}, [read_png(found.png)])[0][0])


@pytest.mark.parametrize("search", [evolve, draw_at_random])
def test_a_search_ends_at_its_first_success(search: Any) -> None:
    model = Planted(best=0.93)
    found = search(oracle_of(model, 5000, batch_size=16), 1, 40, [1])
    assert found.success and len(found.changed) == 1 and found.after[0] >= 0.93
    assert found.sent - 16 < found.queries <= found.sent < 5000 and found.sent % 8 == 0
    assert model.pictures == found.sent + 1, "pictures were sent after the success"


def test_evolution_needs_fewer_queries_than_random_pixels() -> None:
    """On a smooth loss whose best colour is between the ends, over 20 seeds."""
    needed = {}
    for search in (evolve, draw_at_random):
        found = [search(oracle_of(Planted(0.97, (180, 70, 120)), 3000), 1, 20, [seed]) for seed in range(20)]
        needed[search] = np.mean([own.queries for own in found])
    assert needed[evolve] < needed[draw_at_random]


@pytest.mark.parametrize("strategy", ["best1bin", "rand1bin"])
def test_the_same_seed_gives_the_same_search(strategy: str) -> None:
    found = [evolve(oracle_of(Planted(2.0), 300), 3, 20, [4, 2], strategy) for _ in range(2)]
    other = evolve(oracle_of(Planted(2.0), 300), 3, 20, [4, 3], strategy)
    np.testing.assert_array_equal(found[0].changed, found[1].changed)
    assert found[0].png == found[1].png != other.png


def test_the_result_does_not_depend_on_the_batches() -> None:
    one, other = (evolve(oracle_of(Planted(0.97), 2000, size), 2, 20, [7]) for size in (1, 64))
    np.testing.assert_array_equal(one.changed, other.changed)
    assert one.queries == other.queries == one.sent <= other.sent


class Wobbly(Planted):
    """Says of a batch what it does not say of a picture alone."""

    def predict(self, row: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, None]:
        values, _ = super().predict(row, pictures)
        return values if len(pictures) > 1 else np.minimum(values, self.best - 1e-3), None


def test_only_a_picture_that_succeeds_alone_counts() -> None:
    found = draw_at_random(oracle_of(Wobbly(best=0.6), 64), 1, 32, [0])
    assert not found.success and found.sent == 64 and found.after[0] < 0.6


class Silent(Planted):
    """Has no finite prediction for pictures with a dark pixel."""

    def predict(self, row: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, None]:
        values, _ = super().predict(row, pictures)
        dark = np.array([own.sum(axis=2).min() < 200 for own in pictures])
        return np.where(dark[:, None], np.nan, values).astype(np.float32), None


def test_pictures_without_a_prediction_are_no_success() -> None:
    oracle = oracle_of(Silent(best=2.0), 200)
    losses = oracle.losses(np.array([[[0, 0, 0, 0, 0]], [[0, 0, 255, 255, 255]]]))
    assert np.isinf(losses[0]) and np.isfinite(losses[1])
    assert np.isfinite(evolve(oracle, 1, 10, [0]).after).all()


def test_losses_are_differentiable_where_gradients_are_wanted() -> None:
    values = torch.tensor([[0.2]], requires_grad=True)
    Planted().goal.loss(values).sum().backward()
    assert values.grad is not None and float(values.grad) == -1.0
