"""What may be called a difference, and what a first line may say above what else is on the page."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.learning.collapse import check_collapse, first_labels
from raymotion.learning.significance import Gain, headline, verdict_of, voids_results

SENTENCES = {"good": "All is well.", "unsure": "Not clear.", "bad": "Useless."}
VERDICTS = st.dictionaries(st.text(max_size=3), st.sampled_from(["better", "worse", "unclear", "untested"]), max_size=4)


@pytest.mark.parametrize(
    ("interval", "level", "fewest", "verdict"),
    [
        ((0.1, 0.2), 0.0, None, "better"),
        ((-0.2, -0.1), 0.0, None, "worse"),
        ((-0.1, 0.1), 0.0, None, "unclear"),
        ((0.0, 0.1), 0.0, None, "unclear"),
        ((0.6, 0.7), 0.5, 10, "better"),
        ((0.6, 0.7), 0.5, 9, "untested"),
        ((0.6, 0.7), 0.5, 0, "untested"),
        (None, 0.0, None, "unclear"),
        ((None, None), 0.5, 12, "unclear"),
    ],
)
def test_an_interval_says_what_lies_on_one_side(interval: object, level: float, fewest: object, verdict: str) -> None:
    assert verdict_of(interval, level=level, fewest=fewest) == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (Gain((0.02, 0.01, 0.03), 0.001, 0.04), "better"),
        (Gain((0.02, 0.01, 0.03), -0.02, 0.06), "unclear"),  # every seed gained, and eleven images say nothing
        (Gain((0.05, -0.01, 0.03), 0.001, 0.04), "unclear"),  # one seed lost
        (Gain((0.02, 0.01), 0.001, 0.04), "untested"),
        (Gain((-0.02, -0.01, -0.03), -0.04, -0.001), "worse"),
        (Gain((0.02, 0.01, 0.03), None, None), "unclear"),
    ],
)
def test_a_gain_needs_the_seeds_and_the_images(gain: Gain, verdict: str) -> None:
    assert gain.verdict == verdict


@given(VERDICTS, st.lists(st.text(max_size=5), max_size=2), st.lists(st.text(max_size=5), max_size=2))
def test_a_headline_is_good_only_where_nothing_on_the_page_says_otherwise(
    verdicts: dict[str, str], failures: list[str], warnings: list[str]
) -> None:
    found = headline(verdicts, SENTENCES, failures=failures, warnings=warnings)  # type: ignore[arg-type]
    good = not failures and not warnings and all(verdict == "better" for verdict in verdicts.values())
    assert (found.state == "good") == good
    assert (found.state == "bad") == (bool(failures) or "worse" in verdicts.values())
    assert "All is well." not in found.text or good


def test_a_warning_is_named_in_the_first_line() -> None:
    found = headline({"mAP": "better"}, {**SENTENCES, "reserved": "mAP is better"}, warnings=["trained on these", "x"])
    assert (found.state, found.text) == ("unsure", "mAP is better, with a reservation: trained on these")


def test_labels_from_random_weights_never_pass_the_collapse_check() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((200, 8)).astype(np.float32)
    mask = p > 0.6
    names = [f"e{i}" for i in range(8)]
    notice = "REGION FEATURES COME FROM RANDOM WEIGHTS (random:0): ..."
    assert voids_results(notice) and not voids_results("The teacher was trained on captions alone.")
    found = check_collapse(p, mask, names, prior=p.mean(axis=0), warnings=[notice])
    assert found.verdict.state == "unsure" and found.headline.endswith(notice)


def test_two_first_labels_are_told_whatever_the_label_sets() -> None:
    """203 distinct sets of labels, and "happy" or "curious" first on every image."""
    rng = np.random.default_rng(1)
    p = rng.uniform(0.05, 0.5, (300, 10)).astype(np.float32)
    p[:, 0], p[:, 1] = 0.8, np.where(np.arange(300) < 90, 0.9, 0.6)
    mask = np.zeros(p.shape, bool)
    np.put_along_axis(mask, np.argsort(-p, axis=1)[:, :4], True, axis=1)
    assert len(np.unique(mask, axis=0)) > 25
    labels = ["happy", "curious", *(f"e{i}" for i in range(8))]
    first, counts = first_labels(p)
    assert first.tolist() == [0, 1] and counts.tolist() == [210, 90]
    assert any("'happy' (70 %) or 'curious' (30 %)" in note for note in check_collapse(p, mask, labels).notes)
    p[:, 2] = np.where(np.arange(300) >= 290, 0.95, 0.1)  # a third one, on 3 % of the images
    assert not any("most probable label" in note for note in check_collapse(p, mask, labels).notes)
