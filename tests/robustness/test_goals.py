"""What an attack wants, for each form of output: what counts, what is minimised, and when it has succeeded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, average_precision_score, mean_absolute_error

from raymotion.data.samples import table_from_rows
from raymotion.errors import InputError
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.robustness.goals import NO_TARGET, WRONG, Aim, Goal, Objective, make_objective
from raymotion.vocabulary import VALENCE_3

NEGATIVE, NEUTRAL, POSITIVE = VALENCE_3.labels


def objective_of(output: Any, facts: dict[str, Any] | None = None, **aim: Any) -> Objective:
    info: Any = SimpleNamespace(folder="model/", outputs=[output], facts=lambda name: facts or {})
    return make_objective(info, Aim(**aim))


def goal_of(objective: Objective, truth: list[float], clean: list[float]) -> Goal:
    goal = objective.goal(np.array(truth, np.float32), np.array(clean, np.float32))
    assert isinstance(goal, Goal), goal
    return goal


def loss(goal: Goal, values: Any) -> np.ndarray:
    return np.asarray(goal.loss(torch.tensor(np.asarray(values, np.float32))).numpy())


# --- one label --------------------------------------------------------------------------------------------------------
def test_one_label_is_left_or_reached() -> None:
    plain, aimed = objective_of(SingleLabel(VALENCE_3)), objective_of(SingleLabel(VALENCE_3), target=POSITIVE)
    clean = [0.7, 0.2, 0.1]
    assert plain.goal(np.array([0, 1, 0], np.float32), np.array(clean, np.float32)) == WRONG
    assert plain.goal(np.full(3, np.nan, np.float32), np.array(clean, np.float32)) == NO_TARGET
    assert aimed.goal(np.array([0, 0, 1], np.float32), np.array([0, 0, 1], np.float32)) == f"it is {POSITIVE}"
    said = np.array([[0.4, 0.5, 0.1], [0.4, 0.1, 0.5], [0.5, 0.1, 0.4]], np.float32)
    any_other, this_one = goal_of(plain, [1, 0, 0], clean), goal_of(aimed, [1, 0, 0], clean)
    assert any_other.reached(said).tolist() == [True, True, False]
    assert this_one.reached(said).tolist() == [False, True, False]
    np.testing.assert_allclose(loss(any_other, said), np.log([0.4 / 0.5, 0.4 / 0.5, 0.5 / 0.4]), rtol=1e-5)
    np.testing.assert_allclose(loss(this_one, said), np.log([0.5 / 0.1, 0.4 / 0.5, 0.5 / 0.4]), rtol=1e-5)
    assert plain.says(said[0], np.zeros(3)) == f"{NEUTRAL} 0.50"


def test_a_sure_model_still_has_a_slope() -> None:
    """Probabilities of 1 and 1e-20 leave differences of 1 in float32; their logarithms do not."""
    goal = goal_of(objective_of(SingleLabel(VALENCE_3)), [1, 0, 0], [1, 1e-20, 0])
    first, second = loss(goal, [[1, 1e-20, 0], [1, 1e-18, 0]])
    assert second < first and np.isfinite([first, second]).all()


@given(arrays.arrays(np.float32, (6, 3), elements=st.floats(0.015625, 1, width=32)), st.integers(0, 2))
def test_a_negative_loss_is_a_success(said: np.ndarray, true: int) -> None:
    said = said / said.sum(axis=1, keepdims=True)
    truth, clean = np.eye(3)[true].tolist(), (np.eye(3)[true] * 0.8 + 0.1).tolist()
    for objective in (
        objective_of(SingleLabel(VALENCE_3)), objective_of(SingleLabel(VALENCE_3), target=VALENCE_3.labels[true - 1])
    ):  # fmt: skip
        goal = goal_of(objective, truth, clean)
        losses, reached = loss(goal, said), goal.reached(said)
        clear = np.abs(losses) > 1e-5
        assert ((losses < 0) == reached)[clear].all()


# --- several labels ---------------------------------------------------------------------------------------------------
THRESHOLDS = {"thresholds": [0.3, 0.5, 0.8]}


def test_a_label_that_was_given_rightly_is_no_longer_given() -> None:
    objective = objective_of(MultiLabel(VALENCE_3), THRESHOLDS)
    goal = goal_of(objective, [1, 1, 0], [0.4, 0.6, 0.9])  # the third is given wrongly, and does not count
    said = np.array([[0.31, 0.6, 0.1], [0.29, 0.9, 0.9], [0.9, 0.49, 0.9]], np.float32)
    assert goal.reached(said).tolist() == [False, True, True]
    assert (loss(goal, said) < 0).tolist() == [False, True, True]
    odds = [np.log(p / (1 - p)) for p in (0.31, 0.6, 0.3, 0.5)]
    np.testing.assert_allclose(loss(goal, said[:1]), min(odds[0] - odds[2], odds[1] - odds[3]), rtol=1e-4)
    assert objective.goal(np.array([1, 0, 0], np.float32), np.array([0.2, 0.6, 0.1], np.float32)) == WRONG
    assert (
        objective.says(said[1], np.zeros(3)) == f"{NEUTRAL} 0.90, {POSITIVE} 0.90"
        and objective.says(said[0] * 0, np.zeros(3)) == "no label"
    )


def test_one_label_of_several_is_switched_on_or_off() -> None:
    objective = objective_of(MultiLabel(VALENCE_3), THRESHOLDS, label=POSITIVE)
    off, on = goal_of(objective, [0, 0, 1], [0, 0, 0.9]), goal_of(objective, [1, 0, 0], [0.9, 0, 0.2])
    said = np.array([[0, 0, 0.75], [0, 0, 0.85]], np.float32)
    assert off.reached(said).tolist() == [True, False] and on.reached(said).tolist() == [False, True]
    assert (loss(off, said) < 0).tolist() == [True, False] and (loss(on, said) < 0).tolist() == [False, True]
    for truth, clean in (([0, 0, 1], [0, 0, 0.2]), ([1, 0, 0], [0, 0, 0.9])):
        assert objective.goal(np.array(truth, np.float32), np.array(clean, np.float32)) == WRONG
    assert objective.says(said[0], np.zeros(3)) == f"not {POSITIVE} (0.75, from 0.80)"


def test_a_label_without_a_threshold_is_refused() -> None:
    with pytest.raises(InputError, match="too few samples of it for a threshold"):
        objective_of(MultiLabel(VALENCE_3), {"thresholds": [0.3, 0.5, 2.0]}, label=POSITIVE)
    assert objective_of(MultiLabel(VALENCE_3), None, label=POSITIVE).thresholds.tolist() == [0.5] * 3  # type: ignore[attr-defined]


# --- numbers ----------------------------------------------------------------------------------------------------------
RATED = Dimensions(["valence", "arousal"], scale=(1.0, 7.0))
SDS = {"sd": [1.2, 0.8]}


def test_a_number_is_pushed() -> None:
    down, up = objective_of(RATED, SDS), objective_of(RATED, SDS, dimension="arousal", push="up", by=1.5, within=2)
    assert down.describe()["by"] == pytest.approx(0.3) and down.describe()["within"] == pytest.approx(1.2)
    goal = goal_of(down, [4, 2], [4.5, 2])
    said = np.array([[4.3, 7], [3.4, 1], [5.5, 1]], np.float32)
    assert goal.reached(said).tolist() == [False, True, False]
    assert not goal.reached(np.array([[4.1, 2]], np.float32))[0], "it came nearer to the truth, 4"
    np.testing.assert_allclose(loss(goal, said), [4.3, 3.4, 5.5], rtol=1e-6)
    goal = goal_of(up, [4, 2], [7, 3.5])
    assert goal.reached(said).tolist() == [True, False, False]
    np.testing.assert_allclose(loss(goal, said), [-7, -1, -1], rtol=1e-6)


def test_numbers_that_do_not_count() -> None:
    def counts(objective: Objective, truth: list[float], clean: list[float]) -> Any:
        return objective.goal(np.array(truth, np.float32), np.array(clean, np.float32))

    objective = objective_of(RATED, SDS, by=0.5)
    assert counts(objective, [4, 2], [5.3, 2]) == WRONG
    assert counts(objective, [np.nan, 2], [4, 2]) == NO_TARGET
    assert counts(objective, [1, 2], [1.4, 2]) == "at the end of the scale"
    assert counts(objective_of(RATED, SDS, by=0.5, push="up"), [7, 2], [6.6, 2]) == "at the end of the scale"
    without = objective_of(RATED, {"sd": [None, None]}).describe()
    assert without["by"] == pytest.approx(0.3) and without["within"] == pytest.approx(1.2)  # 5 and 20 % of 6


# --- vectors ---------------------------------------------------------------------------------------------------------
def test_a_picture_finds_the_caption_of_another_picture() -> None:
    """In a plane: captions at angles of 0, 90 and 180 degrees, of two groups; the third is the first one's too."""
    objective = objective_of(Embedding(2))
    captions = np.array([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, -1, 0], [0, 0, 0, 0]], np.float32)
    objective.gather(captions, np.array([[0], [1], [0], [2]], np.float32))

    def at(degrees: float) -> np.ndarray:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees)), 0, 0], np.float32)

    def counts(group: float, degrees: float) -> Any:
        return objective.goal(np.array([group], np.float32), at(degrees))

    assert counts(0, 50) == WRONG and counts(0, 45) == WRONG, "a tie counts against the model"
    assert counts(2, 10) == NO_TARGET, "it has no caption"
    goal = counts(0, 40)
    assert isinstance(goal, Goal)
    said = np.stack([at(30), at(45), at(60), at(150)])
    assert goal.reached(said).tolist() == [False, True, True, False]
    expected = [np.cos(np.radians(d)) - np.sin(np.radians(d)) for d in (30, 45, 60)]
    np.testing.assert_allclose(loss(goal, said)[:3], expected, atol=1e-6)
    assert objective.says(at(60), np.array([0.0])) == "own caption at rank 2 of 3 (cosine 0.50)"
    objective.gather(captions[:1], np.array([[0]], np.float32))
    assert counts(0, 40) == "no other picture"


def test_the_main_metric_of_vectors_is_recall_at_1() -> None:
    objective, rng = objective_of(Embedding(3)), np.random.default_rng(0)
    values = rng.normal(size=(12, 6)).astype(np.float32)
    table = table_from_rows(
        [{"sample_id": str(i), "group_id": str(i), "source": "t", "captions": ["a"]} for i in range(12)]
    )
    targets = objective.output.read(table, where="t")
    pictures, texts = values[:, :3], values[:, 3:]
    hits = (pictures @ texts.T).argmax(axis=1) == np.arange(12)
    weights = rng.integers(0, 3, (2, 12)).astype(float)
    truths = objective.truths(targets)
    objective.gather(values, truths)
    places = [objective.rank(values[i], truths[i]) for i in range(12)]
    assert all(own is not None and (own.own, own.pool) == (1, 12) for own in places)
    ranks = np.array([0 if own is None else own.rank for own in places])
    found = objective.weighed(targets, values, ranks, np.arange(12))(np.stack([np.ones(12), *weights]))
    np.testing.assert_allclose(found, [hits.mean(), *(weights @ hits / weights.sum(axis=1))])
    # Of some of the pictures, still in the gallery of all: the others' captions stay competitors.
    few = np.where(np.arange(12) % 3 > 0, ranks, 0)
    found = objective.weighed(targets, values, few, np.arange(12))(np.ones((1, 12)))
    np.testing.assert_allclose(found, hits[few > 0].mean())
    assert objective.rank(values[0], np.array([99.0])) is None, "it has no caption"


# --- which, and with which settings ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("output", "aim", "told"),
    [
        (SingleLabel(VALENCE_3), {"label": POSITIVE}, "--label does not apply.*or use --target"),
        (MultiLabel(VALENCE_3), {"push": "up"}, "--push does not apply"),
        (RATED, {"target": POSITIVE}, "--target does not apply"),
        (Embedding(2), {"push": "up"}, "vectors in a joint space. Leave it out"),
        (Embedding(2, sides=("audio", "text")), {}, "a space of audio and text"),
        (SingleLabel(VALENCE_3), {"target": "positiv"}, "no label of valence-3. Did you mean 'positive'"),
        (RATED, {"dimension": "valenz"}, "Did you mean 'valence'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(output: Any, aim: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        objective_of(output, **aim)


def test_an_output_is_chosen_by_its_name() -> None:
    outputs = [MultiLabel(VALENCE_3), RATED]
    info: Any = SimpleNamespace(folder="model/", outputs=outputs, facts=lambda name: SDS if name == "vad" else {})
    assert make_objective(info, Aim()).output is outputs[0]
    assert make_objective(info, Aim(push="up"), "vad").output is RATED
    with pytest.raises(InputError, match=r"no output 'vda'\. Did you mean 'vad'"):
        make_objective(info, Aim(), "vda")


# --- the main metric --------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def table() -> pa.Table:
    rng = np.random.default_rng(0)
    return table_from_rows(
        [
            {
                "sample_id": str(i), "group_id": str(i // 2), "source": "t", "labels": [VALENCE_3.labels[i % 3]],
                "valence": float(rng.uniform(1, 7)), "arousal": 3.0,
            }
            for i in range(30)
        ],
        VALENCE_3, scale=(1.0, 7.0),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["one", "several", "numbers"])
def test_the_main_metric_is_scikit_learns(table: pa.Table, name: str) -> None:
    rng = np.random.default_rng(1)
    objective = objective_of({"one": SingleLabel(VALENCE_3), "several": MultiLabel(VALENCE_3), "numbers": RATED}[name])
    targets = objective.output.read(table, where="t")
    truth, values = objective.truths(targets), rng.random((30, objective.output.width)).astype(np.float32)
    units = np.arange(30) // 2
    counts = np.stack([np.ones(15), np.eye(15)[3] * 2 + np.eye(15)[7]])
    found = objective.weighed(targets, values, np.zeros(30, int), units)(counts)
    drawn = np.concatenate([np.flatnonzero(units == 3)] * 2 + [np.flatnonzero(units == 7)])
    for value, rows in zip(found, (np.arange(30), drawn), strict=True):
        y, p = truth[rows], values[rows]
        if name == "one":
            expected = accuracy_score(y.argmax(axis=1), p.argmax(axis=1))
        elif name == "several":
            expected = np.mean([average_precision_score(y[:, j], p[:, j]) for j in np.flatnonzero(y.any(axis=0))])
        else:
            expected = mean_absolute_error(y[:, 0], p[:, 0])
        assert value == pytest.approx(expected, rel=1e-5), objective.metric
    # The best constant answer, by trying them.
    if name == "one":
        best = max(accuracy_score(truth.argmax(axis=1), np.full(30, j)) for j in range(3))
    elif name == "several":
        best = np.mean([average_precision_score(truth[:, j], np.ones(30)) for j in range(3)])
    else:
        best = min(mean_absolute_error(truth[:, 0], np.full(30, v)) for v in truth[:, 0])
    assert objective.constant(truth) == pytest.approx(best, rel=1e-5)
    unknown = np.concatenate([truth, np.full((4, truth.shape[1]), np.nan, np.float32)])
    assert objective.constant(unknown) == pytest.approx(best, rel=1e-5), "samples without a target are left out"
    assert objective.constant(np.full((4, truth.shape[1]), np.nan, np.float32)) is None
