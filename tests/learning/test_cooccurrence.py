from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from raymotion.errors import InputError
from raymotion.learning.metrics.cooccurrence import cooccurrence
from raymotion.vocabulary import EMOTIC_26


def test_by_hand() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]])
    chosen = np.array([[1, 0, 1], [0, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=bool)
    result = cooccurrence(targets, chosen, ["joy", "peace", "fear"])
    assert result.true.tolist() == [3, 2, 0] and result.chosen.tolist() == [2, 2, 2]
    assert result.chosen_counts.tolist() == [[2, 1, 2], [2, 1, 1], [0, 0, 0]]
    assert result.true_counts.tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 0]]
    assert result.chosen_share[0] == pytest.approx([2 / 3, 1 / 3, 2 / 3])
    assert result.true_share[1] == pytest.approx([1, 1, 0])
    assert np.isnan(result.chosen_share[2]).all()
    assert json.loads(json.dumps(result.to_dict()))["labels"] == ["joy", "peace", "fear"]


def test_every_label_counts_and_not_the_first_of_each_sample() -> None:
    """13.10: argmax of a multi-hot label is its first one, so that classes 23 to 25 never appeared, and no names."""
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 26)) < 0.15).astype(int)
    targets[:, 0] = 1  # the argmax of every row
    chosen = rng.random((300, 26)) < 0.2
    assert confusion_matrix(targets.argmax(axis=1), chosen.argmax(axis=1)).sum(axis=1)[1:].sum() == 0  # the defect
    result = cooccurrence(targets, chosen, EMOTIC_26.labels)
    assert result.labels[25] == "Yearning"
    assert (result.chosen_counts.sum(axis=1) > 0).all()
    reference = multilabel_confusion_matrix(targets, chosen)
    assert np.array_equal(np.diag(result.chosen_counts), reference[:, 1, 1])
    assert np.diag(result.chosen_share) == pytest.approx(reference[:, 1, 1] / targets.sum(axis=0))
    assert np.array_equal(cooccurrence(targets, targets).chosen_counts, result.true_counts)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="do not fit"):
        cooccurrence(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(InputError, match="Choose labels by thresholds"):
        cooccurrence(np.ones((2, 2)), np.full((2, 2), 0.7))
    with pytest.raises(InputError, match="1 labels do not fit 2"):
        cooccurrence(np.ones((2, 2)), np.ones((2, 2)), ["joy"])
