"""The figures of a pixel attack, from rows made by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion.data.samples import table_from_rows
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.report.attack_page import lines as printed
from raymotion.report.attack_page import notes, verdict
from raymotion.robustness.goals import Aim, Objective, make_objective
from raymotion.robustness.pixel_figures import Figures, figures_of
from raymotion.vocabulary import VALENCE_3

N = 24


def objective_of(output: Any) -> Objective:
    info: Any = SimpleNamespace(folder="model/", outputs=[output], facts=lambda name: {})
    return make_objective(info, Aim())


def samples_of(n: int = N, **cells: Any) -> pa.Table:
    return table_from_rows(
        [
            {
                "sample_id": str(i), "group_id": f"g{i}", "source": "t", "captions": [],
                "labels": [VALENCE_3.labels[0]], **cells,
            }
            for i in range(n)
        ],
        VALENCE_3,
    )  # fmt: skip


def row(i: int, state: str = "attacked", before: Any = (0.8, 0.1, 0.1), **told: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("pixels", "method", "success", "queries", "after_values", "before_rank", "after_rank", "own_captions",
         "captions", "no_gradients")
    )  # fmt: skip
    return {**empty, "sample_id": str(i), "group_id": f"g{i}", "state": state, "before_values": list(before), **told}


def measured(rows: list[dict[str, Any]], objective: Objective, samples: pa.Table, **more: Any) -> Figures:
    chosen = {"resamples": 400, "seed": 0, "where": "t", **more}
    return figures_of(rows, samples, objective, (1,), **chosen)


def one_label_rows(without: set[int]) -> list[dict[str, Any]]:
    """24 pictures, the last 4 wrong before; evolution misleads 0-11, random pixels 0-3 and 10-15, gradients 0-9."""
    rows = [row(i, "wrong before", before=(0.1, 0.8, 0.1)) for i in range(20, N)]
    misled = {"evolution": set(range(12)), "random": {0, 1, 2, 3, *range(10, 16)}, "gradients": set(range(10))}
    for i in range(20):
        for method, those in misled.items():
            if method == "gradients" and i in without:
                rows.append(row(i, pixels=1, method=method, no_gradients="flat here"))
                continue
            rows.append(
                row(
                    i, pixels=1, method=method, success=i in those, queries=10 * (i + 1),
                    after_values=[0.1, 0.8, 0.1] if i in those else [0.6, 0.3, 0.1],
                )
            )  # fmt: skip
    return rows


def test_a_reference_that_ran_on_some_pictures_is_measured_on_these() -> None:
    """Gradients on 14 of 20 counted pictures (0 to 13): beside random pixels on the same 14."""
    without = set(range(14, 20))
    found = measured(one_label_rows(without), objective_of(SingleLabel(VALENCE_3)), samples_of())
    own, random = found.line(1, "gradients"), found.line(1, "random")
    assert (own.counted, own.successes) == (14, 10) and own.rate.value == pytest.approx(10 / 14)
    # Random pixels mislead 10 of all 20, and 8 of these 14.
    assert random.counted == 20 and random.rate.value == pytest.approx(10 / 20)
    assert own.gain is not None and own.gain.value == pytest.approx((10 - 8) / 14)
    assert own.queries.value == pytest.approx(np.mean([10 * (i + 1) for i in range(14)]))
    assert own.queries_median.value == pytest.approx(55) and own.queries_mean.value == pytest.approx(55)
    # Accuracy on these 14 and the 4 that do not count: 14 of 18 before, 4 of 18 after, 6 of 18 after random pixels.
    assert own.metric.value == pytest.approx(4 / 18) and own.drop.value == pytest.approx(10 / 18)
    assert own.drop_gain is not None and own.drop_gain.value == pytest.approx(2 / 18)
    assert found.before.value == pytest.approx(20 / 24)
    assert (found.no_gradients, found.without_gradients) == ("flat here", 6)
    evolution = found.line(1, "evolution")
    assert evolution.counted == 20 and evolution.gain is not None and evolution.gain.value == pytest.approx(2 / 20)
    assert evolution.drop.value == pytest.approx(12 / 24)
    record = record_of(found)
    (told,) = [note for note in notes(record) if "reference" in note]
    assert "ran on 14 of 20 counted pictures" in told and "flat here" in told
    (line,) = [line for line in printed(record) if "gradients (reference)" in line]
    assert "10 of 14" in line


def test_the_interval_of_the_difference_is_paired_on_the_same_pictures() -> None:
    """By plain resampling of the pictures, of which each is its own group."""
    without = set(range(14, 20))
    found = measured(one_label_rows(without), objective_of(SingleLabel(VALENCE_3)), samples_of(), resamples=4000)
    gain = found.line(1, "gradients").gain
    difference = np.full(N, np.nan)
    difference[:14] = [(i < 10) - (i in {0, 1, 2, 3, *range(10, 16)}) for i in range(14)]
    rng = np.random.default_rng(9)
    drawn = np.nanmean(difference[rng.integers(0, N, (4000, N))], axis=1)
    assert gain is not None
    assert gain.value == pytest.approx(np.nanmean(difference))
    assert (gain.low, gain.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.03)


@pytest.mark.parametrize("without", [set(), set(range(20))], ids=["all", "none"])
def test_a_reference_for_all_or_none(without: set[int]) -> None:
    found = measured(one_label_rows(without), objective_of(SingleLabel(VALENCE_3)), samples_of())
    assert found.without_gradients == len(without)
    if without:
        assert {line.method for line in found.lines} == {"evolution", "random"}
        return
    own, random = found.line(1, "gradients"), found.line(1, "random")
    assert own.counted == random.counted == 20 and found.no_gradients is None
    assert own.gain is not None and own.gain.value == pytest.approx(own.rate.value - random.rate.value)
    assert own.drop.value == pytest.approx(found.before.value - own.metric.value)


def test_fewer_than_ten_pictures_with_gradients_have_no_verdict() -> None:
    found = measured(one_label_rows(set(range(9, 20))), objective_of(SingleLabel(VALENCE_3)), samples_of())
    assert found.line(1, "gradients").verdict == "untested" != found.line(1, "evolution").verdict


def test_recall_is_that_of_the_recorded_ranks_beside_its_chance() -> None:
    """Ten pictures; two samples of one image; the gallery holds two captions more, of pictures in quarantine."""
    own = [2, 2, *[1] * 8]
    groups = ["g0", "g0", *(f"g{i}" for i in range(2, 10))]
    rows = []
    for i in range(10):
        shared = {"before_rank": 1 if i < 6 else 3, "own_captions": own[i], "captions": 12}
        state = "attacked" if i < 6 else "wrong before"
        if i >= 6:
            rows.append(row(i, state, before=[0.0] * 4, **shared))
            continue
        for method, worst in (("evolution", 4), ("random", 2)):
            rows.append(
                row(
                    i, before=[0.0] * 4, pixels=1, method=method, success=i < worst, queries=5,
                    after_values=[0.0] * 4, after_rank=2 if i < worst else 1, **shared,
                )
            )  # fmt: skip
    for each in rows:
        each["group_id"] = groups[int(each["sample_id"])]
    found = measured(rows, objective_of(Embedding(2)), samples_of(12, captions=["a day"]))
    assert found.gallery is not None and (found.gallery.captions, found.gallery.queries) == (12, 10)
    assert found.gallery.chance == pytest.approx((2 * 2 / 12 + 8 * 1 / 12) / 10)
    assert found.before.value == pytest.approx(6 / 10)
    assert found.line(1, "evolution").metric.value == pytest.approx(2 / 10)
    assert found.line(1, "random").drop.value == pytest.approx(2 / 10)


def test_the_interval_of_map_lies_around_its_value() -> None:
    """Resampled average precisions are too high: a positive that is drawn twice helps itself."""
    rng = np.random.default_rng(3)
    labels = [[VALENCE_3.labels[int(j)]] for j in rng.integers(0, 3, 30)]
    table = table_from_rows(
        [{"sample_id": str(i), "group_id": f"g{i}", "source": "t", "labels": labels[i]} for i in range(30)], VALENCE_3
    )
    rows = [row(i, "wrong before", before=rng.random(3)) for i in range(30)]
    before = measured(rows, objective_of(MultiLabel(VALENCE_3)), table).before
    assert before.value is not None and before.low is not None and before.high is not None
    assert before.low < before.value < before.high
    assert abs((before.low + before.high) / 2 - before.value) < 0.03


def test_none_or_all_misled_have_the_exact_binomial_interval() -> None:
    """Resamples of 20 failures are 20 failures; by scipy, up to 17 % may be misled all the same."""
    from scipy.stats import binomtest

    rows = [
        row(i, pixels=1, method=method, success=success, queries=9, after_values=[0.1, 0.8, 0.1] if success else None)
        for i in range(20)
        for method, success in (("evolution", True), ("random", False), ("gradients", False))
    ]
    found = measured(rows, objective_of(SingleLabel(VALENCE_3)), samples_of())
    for method, successes in (("evolution", 20), ("random", 0)):
        rate, expected = found.line(1, method).rate, binomtest(successes, 20).proportion_ci(0.95, "exact")
        assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high))
    line, none = found.line(1, "evolution"), found.line(1, "gradients").gain
    # All to none in every resample: a difference without an interval, and a gain all the same.
    assert line.gain is not None and (line.gain.value, line.gain.low, line.gain.high) == (1.0, None, None)
    assert line.verdict == "better" and (line.queries_mean.value, line.queries_mean.low) == (9.0, None)
    assert none is not None and (none.value, none.low, none.high) == (0.0, None, None)
    assert found.line(1, "gradients").verdict == "unclear"
    assert found.line(1, "random").drop.value == 0.0 and found.line(1, "random").drop.low is None
    quick = measured(rows, objective_of(SingleLabel(VALENCE_3)), samples_of(), resamples=0)
    assert quick.line(1, "random").rate.low is None, "no intervals were asked for"
    assert quick.before.low is None and quick.line(1, "evolution").verdict == "unclear"


def all_right(groups: int = 12) -> tuple[list[dict[str, Any]], pa.Table]:
    """Twelve pictures, nine of one label and three of another, all right before; evolution misleads all of them."""
    labels = [0] * 9 + [1] * 3
    before = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]]
    rows = [
        row(
            i, before=before[label], pixels=1, method=method, success=success, queries=9,
            after_values=[0.1, 0.1, 0.8] if success else None,
        )
        for i, label in enumerate(labels)
        for method, success in (("evolution", True), ("random", False))
    ]  # fmt: skip
    for each in rows:
        each["group_id"] = f"g{int(each['sample_id']) % groups}"
    cells = [
        {"sample_id": str(i), "group_id": f"g{i % groups}", "source": "t", "labels": [VALENCE_3.labels[label]]}
        for i, label in enumerate(labels)
    ]
    return rows, table_from_rows(cells, VALENCE_3)


def record_of(found: Figures) -> dict[str, Any]:
    return {
        **found.to_dict(), "notices": [], "caution": None, "settings": {"queries": 240},
        "objective": {"success": "s", "counted": "c"},
    }  # fmt: skip


def test_a_metric_of_all_or_none_has_the_exact_interval_too() -> None:
    """12 of 12 right may be 73.5 %, by scipy: not shown to beat a constant answer that has 75 %."""
    from scipy.stats import binomtest

    rows, table = all_right()
    found = measured(rows, objective_of(SingleLabel(VALENCE_3)), table)
    for figure, successes in ((found.before, 12), (found.line(1, "evolution").metric, 0)):
        expected = binomtest(successes, 12).proportion_ci(0.95, "exact")
        assert (figure.low, figure.high) == pytest.approx((expected.low, expected.high))
    drop = found.line(1, "evolution").drop
    assert found.constant == 0.75 and (drop.value, drop.low, drop.high) == (1.0, None, None)
    told = verdict(record_of(found))
    assert told.state == "unsure" and "not shown to beat the best constant answer" in told.text
    # Of as many images as there are, not pictures.
    rows, table = all_right(groups=6)
    few = measured(rows, objective_of(SingleLabel(VALENCE_3)), table)
    assert few.before.low == pytest.approx(binomtest(6, 6).proportion_ci(0.95, "exact").low)
    assert few.line(1, "evolution").verdict == "untested"
    few_told = verdict({**record_of(few), "constant": 0.1}).text
    assert few_told.endswith("They are of fewer than 10 images: too few to say more."), few_told


def test_recall_of_all_has_the_exact_interval_of_the_ranked_images() -> None:
    """Ten images have a caption in the gallery, two have none."""
    from scipy.stats import binomtest

    rows = [row(i, "wrong before", before=[0.0] * 4, before_rank=1, own_captions=1, captions=10) for i in range(10)]
    rows += [row(i, "no target", before=[0.0] * 4) for i in (10, 11)]
    found = measured(rows, objective_of(Embedding(2)), samples_of(12, captions=["a day"]))
    expected = binomtest(10, 10).proportion_ci(0.95, "exact")
    assert (found.before.low, found.before.high) == pytest.approx((expected.low, expected.high))


def test_a_metric_that_is_no_share_has_no_interval_where_resamples_do_not_vary() -> None:
    """A perfect ranking: average precisions are no trials, so no binomial interval is theirs."""
    rows = [row(i, "wrong before", before=[0.9, 0.1, 0.1]) for i in range(N)]
    before = measured(rows, objective_of(MultiLabel(VALENCE_3)), samples_of()).before
    assert (before.value, before.low, before.high) == (1.0, None, None)
