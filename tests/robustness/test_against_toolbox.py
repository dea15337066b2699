"""The Adversarial Robustness Toolbox's PixelAttack on the same pictures, where it is installed.

It is no dependency: `pip install --no-deps --target FOLDER adversarial-robustness-toolbox six`, and PYTHONPATH=FOLDER.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from raymotion.data.images.decode import read_picture
from raymotion.data.samples import read_samples
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.pipeline.plan import Options, make_plan
from raymotion.robustness.goals import Aim, Goal, make_objective
from raymotion.robustness.pixels import differing_pixels
from raymotion.robustness.prediction import PictureModel
from raymotion.robustness.searches import Oracle, evolve


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("pixels", [1, 3])
def test_it_misleads_as_many_pictures_as_the_toolbox(one_label: Any, pixels: int) -> None:
    """With the mean number of queries that the toolbox takes for a failure; it counts on its own."""
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification.blackbox")
    info = read_checkpoint_info(one_label.model)
    objective = make_objective(info, Aim())
    model = PictureModel(make_plan(info, Options()).make_stages("float32"), objective.output.name)
    model.setup(1, "cpu")
    table = read_samples(one_label.samples)
    truths = objective.truths(objective.output.read(table, where="t"))
    queries: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        queries.append(len(x))
        return model.predict(row, list(np.clip(np.round(x), 0, 255).astype(np.uint8)))[0]

    toolbox = evasion.PixelAttack(
        classification.BlackBoxClassifierNeuralNetwork(
            predict, (16, 16, 3), len(info.vocabulary), channels_first=False, clip_values=(0, 255)
        ),
        th=pixels, es=1, max_iter=12, verbose=False,
    )  # fmt: skip
    theirs, ours, sent = [], [], []
    chosen = [(row, truth) for row, truth in zip(table.to_pylist(), truths, strict=True) if row["split"] == "test"]
    for number, (row, truth) in enumerate(chosen[:30]):
        picture = read_picture(row["image_uri"])[1]
        goal = objective.goal(truth, model.predict(row, [picture])[0][0])
        if not isinstance(goal, Goal):
            continue
        queries.clear()
        np.random.seed(number)  # the toolbox draws from NumPy's global generator
        changed = toolbox.generate(picture[None].astype(np.float32), truth[None])[0]
        changed = np.clip(np.round(changed), 0, 255).astype(np.uint8)
        # Of a failure it returns the original.
        theirs.append(
            len(differing_pixels(picture, changed)) <= pixels
            and bool(goal.reached(model.predict(row, [changed])[0])[0])
        )
        sent.append(sum(queries))
        budget = max(sent)
        found = evolve(Oracle(model, row, picture, goal, budget, 64), pixels, 40, [number])
        ours.append(found.success)
    print(f"{pixels} pixels, {len(ours)} pictures: {np.mean(ours):.2f} here, {np.mean(theirs):.2f} by the toolbox, "
          f"with up to {max(sent)} queries")  # fmt: skip
    assert np.mean(ours) >= np.mean(theirs) - 0.05
