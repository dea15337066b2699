import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from raymotion.errors import InputError
from raymotion.learning.metrics.dimensions import evaluate_dimensions
from raymotion.learning.metrics.multilabel import Evaluation, metric_title

NAMES = ("valence", "arousal")


def data(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Whole numbers with ties, at a large offset; one dimension is predicted, the other is not."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(1, 11, (n, 2)).astype(float)
    values = np.stack([truth[:, 0] * 0.6 + rng.normal(3, 1, n), rng.normal(5, 1, n).round(1)], axis=1)
    truth[: n // 5, 0] = np.nan
    return truth + 1e4, values + 1e4


def ccc(y: np.ndarray, p: np.ndarray) -> float:
    return float(2 * np.cov(y, p, bias=True)[0, 1] / (y.var() + p.var() + (y.mean() - p.mean()) ** 2))


def test_the_figures_are_those_of_scikit_learn_and_scipy() -> None:
    truth, values = data()
    found = evaluate_dimensions(truth, values, training_mean=[1e4 + 5, 1e4 + 6], names=NAMES, bootstrap=100)
    for j, name in enumerate(NAMES):
        known = ~np.isnan(truth[:, j])
        y, p = truth[known, j], values[known, j]
        expected = {
            "r2": r2_score(y, p),
            "mae": mean_absolute_error(y, p),
            "rmse": root_mean_squared_error(y, p),
            "pearson": stats.pearsonr(y, p).statistic,
            "spearman": stats.spearmanr(y, p).statistic,
            "ccc": ccc(y, p),
        }
        assert {key: found[f"{name}_{key}"].value for key in expected} == pytest.approx(expected, abs=1e-7)
        mean = np.full(len(y), 1e4 + 5 + j)
        assert found[f"{name}_mae"].prior == pytest.approx(mean_absolute_error(y, mean))
        assert found[f"{name}_r2"].prior == pytest.approx(r2_score(y, mean), abs=1e-7)
        assert found[f"{name}_rmse"].constant == pytest.approx(y.std())
        assert found[f"{name}_r2"].constant == pytest.approx(0.0, abs=1e-12)
        assert found[f"{name}_ccc"].prior == found[f"{name}_pearson"].constant == 0.0
        assert found[f"{name}_ccc"].samples == known.sum()
    for key in ("r2", "mae", "ccc"):  # over the dimensions
        assert found[key].value == pytest.approx(np.mean([found[f"{name}_{key}"].value for name in NAMES]))


def test_a_resample_is_a_sample_with_repetitions() -> None:
    """The interval is that of the metrics of repeated rows, drawn by group."""
    truth, values = data(60)
    truth[:, 0] = truth[::-1, 1]
    groups = [f"image {i // 3}" for i in range(60)]
    found = evaluate_dimensions(
        truth, values, training_mean=[1e4, 1e4], names=NAMES, groups=groups, bootstrap=200, seed=4
    )
    rng, drawn = np.random.default_rng(4), []
    for picked in rng.integers(0, 20, size=(200, 20)):
        rows = np.concatenate([np.arange(3) + 3 * image for image in picked])
        y, p = truth[rows, 1], values[rows, 1]
        drawn.append([stats.spearmanr(y, p).statistic, r2_score(y, p), ccc(y, p)])
    for name, own in zip(("spearman", "r2", "ccc"), np.array(drawn).T, strict=True):
        metric = found[f"arousal_{name}"]
        assert (metric.low, metric.high) == pytest.approx(tuple(np.percentile(own, (2.5, 97.5))), abs=1e-6)


def test_what_is_predicted_beats_the_mean_and_what_is_not_does_not() -> None:
    truth, values = data()
    mean = np.nanmean(truth, axis=0)
    found = evaluate_dimensions(truth, values, training_mean=mean, names=NAMES, bootstrap=200)
    assert all(found[f"valence_{name}"].verdict == "better" for name in ("r2", "mae", "rmse", "ccc", "spearman"))
    assert found["arousal_r2"].verdict == "worse" and found["arousal_ccc"].verdict == "unclear"


def test_a_constant_answer_has_no_correlation_and_a_ccc_of_nought() -> None:
    truth = np.arange(8.0)[:, None]
    found = evaluate_dimensions(truth, np.full((8, 1), 0.1), training_mean=[3.5], names=["score"], bootstrap=20)
    assert list(found.metrics) == ["r2", "mae", "rmse", "pearson", "spearman", "ccc"]
    assert found["pearson"].value is None and found["spearman"].value is None
    assert found["ccc"].value == 0.0 and found["r2"].prior == pytest.approx(0.0, abs=1e-12)


def test_what_is_not_known_is_left_out() -> None:
    truth = np.array([[1.0, np.nan], [2.0, np.nan], [4.0, np.nan]])
    found = evaluate_dimensions(truth, np.ones((3, 2)), training_mean=[2.0, np.nan], names=NAMES, bootstrap=0)
    assert found["arousal_mae"].value is None and found["arousal_mae"].samples == 0
    assert found["mae"].value == found["valence_mae"].value == pytest.approx(4 / 3)
    assert found["mae"].low is None
    no_mean = evaluate_dimensions(
        np.ones((3, 2)) * [[1], [2], [3]], np.ones((3, 2)), training_mean=[2.0, np.nan], names=NAMES, bootstrap=5
    )
    assert no_mean["arousal_mae"].prior is None and no_mean["mae"].prior is None
    assert no_mean["mae"].constant is not None and no_mean["valence_mae"].prior is not None


def test_the_record_is_that_of_every_evaluation() -> None:
    truth, values = data()
    found = evaluate_dimensions(truth, values, training_mean=[1e4, 1e4], names=NAMES, bootstrap=50)
    assert Evaluation.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found
    assert metric_title("valence_ccc") == "valence: CCC" and metric_title("top_2") == "Top-2 accuracy"


@pytest.mark.parametrize(
    ("truth", "values", "mean"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), [0, 0]),
        (np.zeros((3, 2)), np.zeros((3, 1)), [0, 0]),
        (np.zeros((3, 2)), np.zeros((3, 2)), [0]),
        (np.zeros((3, 2)), np.full((3, 2), np.nan), [0, 0]),
    ],
)
def test_what_does_not_fit_is_refused(truth: np.ndarray, values: np.ndarray, mean: list[float]) -> None:
    with pytest.raises(InputError, match="true values"):
        evaluate_dimensions(truth, values, training_mean=mean, names=NAMES)
