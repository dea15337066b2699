"""The finding below a fine-tuning table: a gain that the control has too, or that the images do not show, is none."""

from __future__ import annotations

import pytest

from raymotion.learning.significance import Gain
from raymotion.report.transfer import comparison_lines
from raymotion.train.transfer import Comparison, Row, Score

CLEAR, NOISY = (0.004, 0.03), (-0.02, 0.05)


def row(condition: str, gain: Gain | None = None, over_control: Gain | None = None, *, bce: float = 0.01) -> Row:
    score = Score((0.30, 0.31, 0.32), 0.2, 0.2, (0.01, 0.02, 0.03))
    scores = {name: score for name in ("macro_ap", "top_1", "top_3")}
    scores["bce"] = Score((0.30, 0.31, 0.32), 0.2, 0.2, (0.01, 0.02, bce))
    return Row(condition, 4 if gain else None, scores, (9, 10, 11), 0.3, gain, over_control)


def finding(over_scratch: tuple[float, float], over_control: tuple[float, float] | None, seeds: int = 3) -> str:
    gains = tuple([0.01, 0.02, 0.03][:seeds])
    control = None if over_control is None else Gain(gains, *over_control)
    rows = [row("scratch"), row("AnB+", Gain(gains, *over_scratch), control)]
    return comparison_lines(Comparison("out", "test", 11, [["a"]] * 5, rows))[-1]


def test_beating_scratch_and_the_control_is_a_finding() -> None:
    text = finding(CLEAR, CLEAR)
    assert "(AnB+, n = 4 of 5) beats training from scratch and its control BnB+" in text
    assert "mAP +0.0200 (better in 3 of 3 seeds, 95 % interval over images +0.0040 to +0.0300)" in text


@pytest.mark.parametrize(
    ("scratch", "control", "seeds", "doubt"),
    [
        (CLEAR, NOISY, 3, "better than its control BnB+"),
        (NOISY, CLEAR, 3, "better than training from scratch"),
        (NOISY, NOISY, 3, "better than training from scratch or its control BnB+"),
        (CLEAR, None, 3, "better than its control BnB+"),
        (CLEAR, CLEAR, 2, "better than training from scratch or its control BnB+"),
    ],
)
def test_without_control_images_or_seeds_it_is_none(
    scratch: tuple[float, float], control: tuple[float, float] | None, seeds: int, doubt: str
) -> None:
    text = finding(scratch, control, seeds)
    assert " beats " not in text and f"is not shown to be {doubt}:" in text


def test_a_better_ranking_with_worse_probabilities_is_none() -> None:
    gain = Gain((0.01, 0.02, 0.03), *CLEAR)
    rows = [row("scratch"), row("AnB+", gain, gain, bce=-0.02)]
    text = comparison_lines(Comparison("out", "test", 11, [["a"]] * 5, rows))[-1]
    assert "is not shown to be better than training from scratch in BCE:" in text


def test_a_loss_is_told() -> None:
    gains = (-0.01, -0.02, -0.03)
    rows = [row("scratch"), row("AnB", Gain(gains, -0.03, -0.004), Gain(gains, -0.03, 0.01))]
    text = comparison_lines(Comparison("out", "test", 200, [["a"]] * 5, rows))[-1]
    assert "(AnB, n = 4 of 5) is worse than training from scratch:" in text
