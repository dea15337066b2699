"""The gradients behind the reference attack, against finite differences of the real prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.models.vision.tuned_backbone import TunedBackbone
from raymotion.pipeline.plan import Options, make_plan
from raymotion.robustness.goals import Aim, Goal, make_objective
from raymotion.robustness.pixels import apply_change, differing_pixels
from raymotion.robustness.prediction import PictureModel
from raymotion.robustness.searches import Oracle, draw_at_random, follow_gradients
from raymotion.robustness.white_box import FROZEN, OUTSIDE, InputGradients

ROW: dict[str, Any] = {
    "sample_id": "s", "group_id": "s", "image_uri": "x.png", "captions": [], "split": None, "body_box": None,
    "face_box": None,
}  # fmt: skip


def opened(folder: str) -> tuple[PictureModel, Any]:
    info = read_checkpoint_info(folder)
    objective = make_objective(info, Aim())
    model = PictureModel(make_plan(info, Options()).make_stages("float32"), objective.output.name)
    model.setup(1, "cpu")
    return model, objective


def goal_of(model: PictureModel, row: dict[str, Any], picture: np.ndarray) -> Goal:
    """A goal that no picture reaches: the first value of the output is to fall."""
    return Goal(lambda values: values[:, 0].double(), lambda values: np.zeros(len(values), bool))


def loss(model: PictureModel, goal: Goal, row: dict[str, Any], picture: np.ndarray) -> float:
    with torch.no_grad():
        return float(goal.loss(torch.from_numpy(model.predict(row, [picture])[0])))


@pytest.mark.parametrize("name", ["one_label", "several_labels"])
def test_the_gradient_is_that_of_finite_differences(name: str, request: pytest.FixtureRequest) -> None:
    """On a picture of the network's own size, where nothing is resized: the slope of each colour of some pixels."""
    model, _ = opened(request.getfixturevalue(name).model)
    row = {**ROW, "captions": ["a day at sea", "boats"]}
    picture = np.random.default_rng(0).integers(60, 200, (16, 16, 3), np.uint8)
    goal = goal_of(model, row, picture)
    slope = InputGradients(model).try_on(row, picture, goal)
    assert slope is not None and slope.shape == (16, 16, 3)
    measured = []
    for x, y, c in np.random.default_rng(1).integers(0, (16, 16, 3), (60, 3)).tolist():
        ends = []
        for step in (-2, 2):
            changed = picture.copy()
            changed[y, x, c] = int(picture[y, x, c]) + step
            ends.append(loss(model, goal, row, changed))
        measured.append(((ends[1] - ends[0]) / 4, slope[y, x, c]))
    found, expected = np.array(measured).T
    # Within four levels some units switch, so single slopes may differ; all of them together hardly do.
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > 0.97 and np.linalg.norm(expected) / np.linalg.norm(found) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("shape", [(48, 32), (8, 8)])
def test_a_resized_pixel_is_carried_back_to_its_place(one_label: Any, shape: tuple[int, int]) -> None:
    """The pixel of the largest gradient matters, more than most others do, in the real prediction."""
    model, _ = opened(one_label.model)
    picture = np.random.default_rng(1).integers(60, 200, (*shape, 3), np.uint8)
    goal = goal_of(model, ROW, picture)
    slope = InputGradients(model).try_on(ROW, picture, goal)
    assert slope is not None and slope.shape == (*shape, 3)
    order = np.argsort(-np.abs(slope).sum(axis=2), axis=None)
    before = loss(model, goal, ROW, picture)

    def effect(place: int) -> float:
        y, x = np.unravel_index(place, shape)
        colour = picture[y, x].astype(int) - 25 * np.sign(slope[y, x]).astype(int)  # far enough for the rounding
        return before - loss(model, goal, ROW, apply_change(picture, np.array([[x, y, *colour]])))

    strongest = np.mean([effect(place) for place in order[:8].tolist()])
    usual = np.mean([effect(place) for place in np.random.default_rng(2).permutation(order)[:40].tolist()])
    assert strongest > 0 and strongest > usual


def test_the_place_of_a_pixel_is_exact_up_to_256_pixels(one_label: Any) -> None:
    model, _ = opened(one_label.model)
    gradients = InputGradients(model)
    picture = np.zeros((160, 240, 3), np.uint8)
    ((rows, columns),) = gradients._carried_back(ROW, picture)
    # Pixel i of 16 covers the original from 10 i to 10 (i + 1), and 15 i to 15 (i + 1); its centre is between two.
    assert np.abs(rows - (10 * np.arange(16) + 4.5)[:, None]).max() <= 1.5
    assert np.abs(columns - (15 * np.arange(16) + 7.0)).max() <= 1.5


def test_frozen_and_outside_backbones_are_told(
    ratings: str, regressor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = regressor(ratings, tmp_path / "frozen")
    model, _ = opened(trained.model)
    picture = np.random.default_rng(0).integers(100, 160, (16, 16, 3), np.uint8)
    gradients = InputGradients(model)
    slope = gradients.try_on(ROW, picture, goal_of(model, ROW, picture))
    assert slope is not None and slope.any(), "weights that are frozen pass the gradient on to the picture"
    monkeypatch.setattr(TunedBackbone, "forward", torch.no_grad()(TunedBackbone.forward))
    assert gradients.try_on(ROW, picture, goal_of(model, ROW, picture)) is None and gradients.why_not == FROZEN
    model.stages.insert(0, model.stages[0])
    assert InputGradients(model).why_not == OUTSIDE


def test_the_reference_changes_k_pixels_and_only_real_pictures_succeed(one_label: Any) -> None:
    model, objective = opened(one_label.model)
    rng, reached = np.random.default_rng(3), list[tuple[float, float]]()
    for _ in range(12):
        picture = rng.integers(0, 256, (16, 16, 3), np.uint8)
        clean = model.predict(ROW, [picture])[0][0]
        goal = objective.goal(np.eye(8, dtype=np.float32)[clean.argmax()], clean)
        assert isinstance(goal, Goal)
        gradients = InputGradients(model)
        original = gradients.try_on(ROW, picture, goal)
        assert original is not None
        one = follow_gradients(Oracle(model, ROW, picture, goal, 60, 32), 8, [0], gradients, original)
        assert len(one.changed) <= 8 and one.sent <= 60 and one.gradients <= 80
        changed = apply_change(picture, one.changed)
        assert len(differing_pixels(picture, changed)) == len(one.changed)
        assert one.success == bool(goal.reached(model.predict(ROW, [changed])[0])[0])
        # How far either gets with all of its pictures.
        never = replace(goal, reached=lambda values: np.zeros(len(values), bool))
        known = follow_gradients(Oracle(model, ROW, picture, never, 60, 32), 8, [0], gradients, original)
        drawn = draw_at_random(Oracle(model, ROW, picture, never, 60, 32), 8, 20, [0])
        reached.append(tuple(float(goal.loss(torch.from_numpy(own.after)[None])) for own in (known, drawn)))
    by_gradients, by_chance = np.mean(reached, axis=0)
    assert by_gradients < by_chance
