from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_fscore_support

from raymotion.errors import InputError
from raymotion.published.metrics import (
    PublishedMetrics,
    from_text,
    mean_over_seeds,
    published_metrics,
    to_text,
)

# Written by hand after results_stage5/.../evaluation_metrics.txt of the public study.
STAGE_5 = """Evaluation Metrics:
Mean Average Precision (mAP): 0.3200
Per-Emotion AP:
  Emotion_0: 0.4371
  Emotion_1: 0.1834
  Emotion_2: 0.1958
  Emotion_3: 0.5928
  Emotion_4: 0.0949
  Emotion_5: 0.7897
  Emotion_6: 0.1845
  Emotion_7: 0.3175
  Emotion_8: 0.2127
  Emotion_9: 0.2111
  Emotion_10: 0.0255
  Emotion_11: 0.8704
  Emotion_12: 0.1855
  Emotion_13: 0.7266
  Emotion_14: 0.1773
  Emotion_15: 0.1062
  Emotion_16: 0.7763
  Emotion_17: 0.1285
  Emotion_18: 0.2902
  Emotion_19: 0.4943
  Emotion_20: 0.4119
  Emotion_21: 0.1567
  Emotion_22: 0.4009
  Emotion_23: 0.0903
  Emotion_24: 0.1572
  Emotion_25: 0.1030
Accuracy: 0.0814
Precision: 0.4455
Recall: 0.0814
F1 Score: 0.0408
"""


def test_the_published_file_is_read_and_written_to_the_character():
    metrics = from_text(STAGE_5)
    assert metrics.mean_ap == 0.32 and len(metrics.per_class) == 26
    assert (metrics.per_class[0], metrics.per_class[25]) == (0.4371, 0.1030)
    assert (metrics.accuracy, metrics.precision, metrics.recall, metrics.f1) == (0.0814, 0.4455, 0.0814, 0.0408)
    assert np.mean(metrics.per_class) == pytest.approx(metrics.mean_ap, abs=1e-4)
    assert to_text(metrics) == STAGE_5


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 12), st.integers(2, 6)), elements=st.integers(0, 1)),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_every_number_is_scikit_learns(targets, seed):
    scores = np.random.default_rng(seed).normal(size=targets.shape).round(1)
    ours = published_metrics(targets, scores)
    true, said = targets.argmax(axis=1), scores.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(true, said, average="weighted", zero_division=0)
    assert ours.accuracy == pytest.approx(accuracy_score(true, said))
    assert (ours.precision, ours.recall, ours.f1) == pytest.approx((precision, recall, f1))
    defined = [j for j in range(targets.shape[1]) if targets[:, j].any()]
    theirs = [average_precision_score(targets[:, j], scores[:, j]) for j in defined]
    assert [ours.per_class[j] for j in defined] == pytest.approx(theirs)
    if defined:
        assert ours.mean_ap == pytest.approx(np.mean(theirs))
    assert all(math.isnan(ours.per_class[j]) for j in range(targets.shape[1]) if j not in defined)


def test_argmax_says_wrong_of_a_true_emotion_that_is_not_the_first():
    """Defect 13 (10): the last four numbers are kept for comparison only, and this is why."""
    targets = np.array([[1, 0, 1], [1, 0, 1]])
    perfect = np.array([[0.8, 0.1, 0.9], [0.8, 0.1, 0.9]])
    metrics = published_metrics(targets, perfect)
    assert metrics.accuracy == metrics.f1 == 0.0
    assert metrics.per_class[0] == metrics.per_class[2] == 1.0
    assert metrics.recall == metrics.accuracy


def test_mean_over_seeds_leaves_undefined_classes_out():
    first = PublishedMetrics(0.2, (0.1, math.nan, 0.3), 0.1, 0.2, 0.3, 0.4)
    second = PublishedMetrics(0.4, (0.3, math.nan, 0.5), 0.3, 0.4, 0.5, 0.6)
    mean = mean_over_seeds([first, second])
    assert mean.per_class[::2] == pytest.approx((0.2, 0.4)) and math.isnan(mean.per_class[1])
    assert (mean.mean_ap, mean.accuracy, mean.f1) == pytest.approx((0.3, 0.2, 0.5))
    assert "  Emotion_1: nan\n" in to_text(mean)
    assert from_text(to_text(mean)).mean_ap == pytest.approx(0.3)
    with pytest.raises(InputError, match="same classes"):
        mean_over_seeds([])


@pytest.mark.parametrize(
    "damage, row",
    [
        (lambda text: text.replace("Evaluation Metrics:", "Metrics"), 1),
        (lambda text: text.replace("Emotion_7", "Emotion_8"), 11),
        (lambda text: text.replace("F1 Score: 0.0408\n", ""), 29),
        (lambda text: text.replace("0.4455", "much"), 31),
        (lambda text: "", 1),
    ],
)
def test_another_layout_is_refused_with_its_line(damage, row):
    with pytest.raises(InputError, match=rf"metrics.txt, row {row}: .*Give the file"):
        from_text(damage(STAGE_5), path="metrics.txt")


def test_shapes_that_differ_are_refused():
    with pytest.raises(InputError, match="alike"):
        published_metrics(np.zeros((2, 3)), np.zeros((2, 2)))
