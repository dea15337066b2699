"""What is measured of a set of predictions: complete, beside its baselines, and honest about empty answers."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from raymotion.evaluation.evaluate import Labels
from raymotion.evaluation.measure import Measured, measure
from raymotion.learning.selection import fit_class_thresholds
from raymotion.learning.significance import Headline
from raymotion.report import evaluation_page
from raymotion.report.evaluation_plots import draw

LABELS = ["calm", "happy", "sad", "awe", "fear", "bored", "proud", "good"]
RATES = np.array([0.2, 0.6, 0.35, 0.1, 0.1, 0.15, 0.05, 0.3])


def sample(n: int = 200, skill: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, len(RATES))) < RATES).astype(np.float32)
    logits = np.log(RATES / (1 - RATES)) + skill * (2 * (truth - RATES) + rng.normal(size=truth.shape))
    return truth, (1 / (1 + np.exp(-logits))).astype(np.float32)


def measured(truth: np.ndarray, p: np.ndarray, **more: object) -> Measured:
    return measure(truth, p, labels=LABELS, prior=RATES, **{"bootstrap": 100, **more})  # type: ignore[arg-type]


def verdict(found: Measured, warnings: list[str]) -> Headline:
    nothing = np.zeros((0, len(LABELS)))
    return evaluation_page.verdict(Labels(found, nothing, nothing), [], warnings)


def test_every_number_has_its_baselines_and_an_interval() -> None:
    truth, p = sample()
    held_truth, held_p = sample(seed=1)
    limits = fit_class_thresholds(held_truth, held_p)
    found = measured(truth, p, thresholds=limits)
    wanted = {"bce", "micro_ap", "macro_ap", "top_1", "top_2", "top_3", "recall_at_3", "recall_at_3_public"}
    assert set(found.evaluation.metrics) == wanted | {"brier", "macro_auc", "micro_f1", "macro_f1"}
    for metric in found.evaluation.metrics.values():
        assert metric.prior is not None and metric.constant is not None
        # Recall is a mean over the samples that have labels.
        assert metric.samples == (truth.any(axis=1).sum() if metric.name == "recall_at_3" else 200)
        assert metric.low is not None and metric.value is not None and metric.high is not None
        assert metric.low <= metric.value <= metric.high
    value = {name: metric.value for name, metric in found.evaluation.metrics.items()}
    assert value["micro_f1"] == pytest.approx(f1_score(truth, p >= limits, average="micro"))
    often = np.minimum(truth.sum(axis=0), (1 - truth).sum(axis=0)) >= 10
    assert 0 < found["macro_auc"].labels == often.sum() < len(often)  # one label is too rare to be judged
    assert value["macro_auc"] == pytest.approx(roc_auc_score(truth[:, often], p[:, often], average="macro"))
    columns = [brier_score_loss(truth[:, j], p[:, j].astype(float)) for j in range(8)]
    assert value["brier"] == pytest.approx(np.mean(columns), rel=1e-6)
    own = truth.mean(axis=0)
    assert found.evaluation["brier"].constant == pytest.approx((own * (1 - own)).mean(), rel=1e-6)
    assert found.brier.score == pytest.approx(value["brier"]) and found.brier.uncertainty == pytest.approx(
        found.evaluation["brier"].constant
    )
    assert [row.label for row in found.classes] == LABELS
    assert found.classes[3].threshold == limits[3] and found.classes[3].chosen == (p[:, 3] >= limits[3]).sum()
    np.testing.assert_allclose([row.brier for row in found.classes], columns, rtol=1e-5)
    assert found.diversity.top_1 == len(np.unique(p.argmax(axis=1)))
    assert found.diversity.chosen_sets == len(np.unique(p >= limits, axis=0))
    assert verdict(found, []).state == "good" and not found.collapse.collapsed
    warned = verdict(found, ["these were trained on"])
    assert warned.state == "unsure" and warned.text.endswith("with a reservation: these were trained on")
    json.dumps(found.to_dict(), allow_nan=False)


def test_predictions_that_repeat_the_prior_are_said_to() -> None:
    truth, _ = sample()
    found = measured(truth, np.tile(RATES, (200, 1)))
    assert found.collapse.collapsed and verdict(found, []).state == "bad"
    assert any("model is no better than its prior: test BCE" in reason for reason in found.collapse.reasons)
    distinct = found.diversity
    assert (distinct.top_1, distinct.top_2, distinct.top_3, distinct.chosen_sets) == (1, 1, 1, 1)
    assert distinct.commonest == ["happy"] and distinct.commonest_share == 1.0, "alone above 0.5"
    assert all(metric.verdict != "better" for metric in found.evaluation.metrics.values())
    # The prior is calibrated: the error alone would praise it.
    assert found.calibration[0].error < 0.05 and found.brier.resolution == pytest.approx(0.0, abs=1e-12)


def test_thresholds_that_give_everybody_a_rare_label_are_said() -> None:
    truth, p = sample(skill=0.3)
    limits = np.where(np.arange(8) == 3, 0.0, 0.5)
    notes = measured(truth, p, thresholds=limits).notes
    assert any("nearly every sample awe (100 % of the samples" in note for note in notes)


def test_soft_targets_change_the_bce_alone() -> None:
    truth, p = sample()
    soft = truth * np.linspace(0.2, 1.0, 200, dtype=np.float32)[:, None]
    hard, found = measured(truth, p), measured(truth, p, soft_targets=soft, soft_prior=soft.mean(axis=0))
    q = p.astype(float)
    assert found.evaluation["bce"].value == pytest.approx(-(soft * np.log(q) + (1 - soft) * np.log(1 - q)).mean())
    assert found.evaluation["bce"].prior == pytest.approx(found.evaluation["bce"].constant)
    for name in ("macro_ap", "micro_f1", "brier"):
        assert found.evaluation[name].value == hard.evaluation[name].value


@pytest.mark.parametrize("kind", ["usual", "one sample", "no positive"])
def test_figures_are_drawn_whatever_there_is(kind: str) -> None:
    truth, p = sample(1 if kind == "one sample" else 40)
    if kind == "no positive":
        truth[:] = 0
    found = measured(truth, p, bootstrap=20)
    json.dumps(found.to_dict(), allow_nan=False)
    figures = draw(found, truth, p)
    assert set(figures) == {"reliability_width", "reliability_mass", "average_precision", "f1", "probabilities"}
    for data in figures.values():
        image = Image.open(io.BytesIO(data)).convert("L")
        assert min(image.size) > 300 and np.ptp(np.asarray(image)) > 150, "ink on a ground"
    if kind == "usual":
        assert draw(found, truth, p) == figures, "the same bytes every time"
