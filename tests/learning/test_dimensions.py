import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from raymotion.errors import InputError
from raymotion.learning.metrics.dimensions import error_by_bin, evaluate_dimensions, flat_notice
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


def test_errors_by_bin_are_those_of_the_rows_in_it() -> None:
    rng = np.random.default_rng(3)
    truth, values = rng.uniform(0, 100, 400).astype(np.float32), rng.uniform(0, 100, 400).astype(np.float32)
    truth[:9], truth[9:12] = np.nan, (0.0, 10.0, 100.0)
    found = error_by_bin(truth, values, scale=(0.0, 100.0), training_mean=50.0)
    assert [(own.low, own.high) for own in found] == [(10.0 * i, 10.0 * (i + 1)) for i in range(10)]
    assert sum(own.count for own in found) == 391
    for own in found:
        inside = (truth >= own.low) & ((truth < own.high) | (own.high == 100))
        y, p = truth[inside].astype(float), values[inside].astype(float)
        assert own.count == inside.sum() > 0
        assert own.mae == pytest.approx(mean_absolute_error(y, p))
        assert own.bias == pytest.approx(p.mean() - y.mean())
        assert own.baseline_mae == pytest.approx(np.abs(y - 50).mean())


def test_bins_of_short_scales_are_whole_steps_and_empty_ones_have_no_error() -> None:
    found = error_by_bin(np.array([1.0, 7.0]), np.array([2.0, 6.5]), scale=(1.0, 7.0), training_mean=float("nan"))
    assert [own.low for own in found] == [1, 2, 3, 4, 5, 6] and [own.count for own in found] == [1, 0, 0, 0, 0, 1]
    assert (found[0].bias, found[-1].bias, found[1].mae) == (1.0, -0.5, None)
    assert found[0].baseline_mae is None
    edge = error_by_bin(np.array([4.1], np.float32), np.array([4.0]), scale=(4.0, 5.0), training_mean=4.5)
    assert [own.count for own in edge][:3] == [0, 1, 0], "4.1 of a float32 column is not below 4.1"


def test_the_public_models_39_for_every_picture_is_said() -> None:
    """GAPED: predictions cluster near 39 (systems.md 4.3)."""
    rng = np.random.default_rng(4)
    truth = rng.uniform(0, 100, (145, 1))
    flat = 39 + rng.normal(0, 0.5, (145, 1))
    assert "valence 39" in str(flat_notice(truth, flat, ["valence"]))
    assert flat_notice(truth, 0.3 * truth + 30, ["valence"]) is None
    assert flat_notice(np.full((5, 1), 50.0), np.full((5, 1), 39.0), ["valence"]) is None, "nothing to tell apart"
