"""The headline of a poisoning experiment: each of its sentences, and what has to be shown for it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raymotion.learning.significance import Gain
from raymotion.report.poison import heads, table_rows, verdict
from raymotion.robustness.poison import Poisoning, Row
from raymotion.robustness.poison_scores import Compared
from raymotion.robustness.poison_settings import PoisonSettings

RATES = (0.05, 0.15)


def compared(before: float, after: float, *, groups: int = 40, seeds: int = 3, drop: bool = False) -> Compared:
    """Figures with an interval of 0.05 to both sides of their difference."""
    change = before - after if drop else after - before
    gain = Gain((change,) * seeds, change - 0.05, change + 0.05)
    return Compared((before,) * seeds, (after,) * seeds, gain, 2 * groups, groups)


def experiment(
    attack: str,
    success: Sequence[float],
    *,
    without: Sequence[float] | None = None,
    metric: Sequence[float] = (0.8, 0.8),
    groups: int = 40,
    seeds: int = 3,
    skilled: bool = True,
) -> Poisoning:
    """Poisoned models with these figures at 5 and 15 %; the clean ones have a success of 0.1 and an accuracy of 0.8."""
    settings = PoisonSettings(attack=attack, target="fear", rates=RATES, seeds=seeds)
    rows = []
    for rate, own, bare, accuracy in zip(
        (0.0, *RATES), (0.1, *success), (0.1, *(without or (0.1, 0.1))), (0.8, *metric), strict=True
    ):
        rows.append(
            Row(
                rate, int(1000 * rate), compared(0.8, accuracy, seeds=seeds, drop=True), {},
                compared(0.1, own, groups=groups, seeds=seeds),
                compared(bare, own, groups=groups, seeds=seeds) if attack == "trigger" else None, {},
            )
        )  # fmt: skip
    return Poisoning(
        "out", "fractal", settings, rows, "accuracy", 0.2, 0.125, skilled, [], 80, 1000, ("awe", "fear"), {}
    )  # fmt: skip


FLAT, FALLS = "Accuracy does not fall (+0.0000).", "Accuracy falls by 0.3000 (95 % interval"


@pytest.mark.parametrize(
    ("result", "state", "told"),
    [
        (
            experiment("trigger", (0.12, 0.9)), "bad",
            ("The attack works at 15 %: pictures with the patch get fear in 90 % of cases at a rate of 15 %, against "
             "10 % by the clean model and 10 % without the patch.", FLAT),
        ),
        (experiment("trigger", (0.5, 0.9)), "bad", ("The attack works from 5 % on: ", "in 90 % of cases")),
        (
            experiment("trigger", (0.5, 0.12)), "bad",
            ("The attack works at 5 %: ", "in 50 % of cases at a rate of 5 %"),
        ),
        # The reviewer's case: a patch that nobody sees, and a model that says fear of everything.
        (
            experiment("trigger", (0.12, 0.8), without=(0.12, 0.8)), "bad",
            ("No backdoor is shown: at 15 % fear is said more often than by the clean model, but not shown to be said "
             "more often with the patch than without it: pictures with the patch get fear in 80 % of cases at a rate "
             "of 15 %, against 10 % by the clean model and 80 % without the patch.", FLAT),
        ),
        (
            experiment("trigger", (0.5, 0.8), without=(0.1, 0.78)), "bad",
            ("The attack works at 5 %: ", "against 10 % by the clean model and 10 % without the patch."),
        ),
        # More than without the patch, but no more than the clean model says of pictures with it.
        (experiment("trigger", (0.1, 0.1), without=(0.0, 0.0)), "unsure", ("The attack is not shown to work: ",)),
        (
            experiment("flip", (0.5, 0.9), metric=(0.8, 0.5)), "bad",
            ("The attack works from 5 % on: samples of other labels get fear in 90 % of cases at a rate of 15 %, "
             "against 10 % by the clean model. ", FALLS),
        ),
        (
            experiment("flip", (0.1, 0.12), metric=(0.8, 0.5)), "bad",
            ("The attack is not shown to reach its aim, but it does harm at 15 %: ", FALLS),
        ),
        (experiment("flip", (0.1, 0.12)), "unsure", ("The attack is not shown to work: ", "in 12 % of cases", FLAT)),
        (experiment("flip", (0.5, 0.9), seeds=2), "unsure", ("With fewer than 3 seeds nothing is shown: ",)),
        # 18 rows of 9 groups.
        (
            experiment("collision", (0.5, 0.9), groups=9), "unsure",
            ("With fewer than 10 independent test samples that may be mistaken nothing is shown: attacked pictures get "
             "the label of their poisons in 90 % of cases",),
        ),
        (experiment("collision", (0.5, 0.9), groups=10), "bad", ("The attack works from 5 % on: ",)),
        (
            experiment("trigger", (0.5, 0.9), skilled=False), "unsure",
            ("Nothing is shown: the clean model is not shown to beat the best constant answer (accuracy 0.8000 against "
             "0.2000), so no difference here means anything.",),
        ),
    ],
)  # fmt: skip
def test_the_headline_says_no_more_than_is_shown(result: Poisoning, state: str, told: tuple[str, ...]) -> None:
    found = verdict(result)
    assert found.state == state and found.text.startswith(told[0]), found.text
    for part in told[1:]:
        assert part in found.text, found.text


def test_the_table_shows_the_interval_of_the_gain_over_the_same_models_without_the_patch() -> None:
    result = experiment("trigger", (0.12, 0.8), without=(0.12, 0.3))
    assert heads(result)[-3:] == ("without the patch", "gain over without", "95 % interval")
    clean, _, last = table_rows(result)
    assert last[-3].startswith("0.3000") and last[-2] == "+0.5000" and "0.45" in last[-1] and "0.55" in last[-1]
    assert len(clean) == len(last) == len(heads(result)) and clean[-2] == "+0.0000"
    assert "without the patch" not in heads(experiment("flip", (0.1, 0.1)))
