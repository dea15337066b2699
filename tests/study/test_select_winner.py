"""What a stage carries on, on arrays made by hand: who wins, who is tied, and why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from raymotion.errors import RunFailed
from raymotion.learning.metrics.average_precision import average_precision
from raymotion.learning.paired import paired_map_gain
from raymotion.learning.significance import is_significant, seed_error
from raymotion.study import select_winner
from raymotion.study.record import Compared, Winner
from raymotion.study.select_winner import Candidate

LABELS, IMAGES = 6, 100
RNG = np.random.default_rng(0)
TRUTH = (RNG.random((2 * IMAGES, LABELS)) < 0.3).astype(np.float32)
GROUPS = [f"g{i // 2}" for i in range(2 * IMAGES)]


def choose(candidates: Sequence[Candidate], truth: np.ndarray, *, groups: Sequence[str], **options: Any) -> Winner:
    return select_winner.choose(candidates, partial(paired_map_gain, truth, groups=groups), **options)


def candidate(key: str, skill: float, *, parameters: int = 10, seed: int = 0, seeds: int = 3) -> Candidate:
    """A predictor that is right by `skill` times more than chance; its mAP is what its probabilities say."""
    rng = np.random.default_rng(seed)
    scores = skill * TRUTH + rng.normal(size=(seeds, *TRUTH.shape))
    probabilities = 1 / (1 + np.exp(-scores))
    maps = [float(np.mean([average_precision(TRUTH[:, j], own[:, j]) for j in range(LABELS)])) for own in probabilities]
    return Candidate(key, maps, probabilities, parameters, name=key)


def test_a_clear_winner_replaces_the_incumbent() -> None:
    good, old = candidate("good", 3.0, parameters=99), candidate("old", 0.5, seed=1)
    choice = choose([old, good], TRUTH, groups=GROUPS, incumbent="old")
    assert (choice.key, choice.leader, choice.tied) == ("good", "good", [])
    (compared,) = choice.compared
    assert compared.low > 0 and compared.difference == pytest.approx(good.mean - old.mean, abs=1e-6)
    assert f"{good.mean:.4f}" in choice.reason and "which is a difference" in choice.reason


def test_a_tie_keeps_the_incumbent_even_if_it_is_larger_and_scores_less() -> None:
    """Defect 13.5: the public study's stage 2 to 5 gaps are within what a rerun changes, and it carries them on."""
    first, second = candidate("first", 1.01, parameters=5), candidate("second", 1.0, parameters=50, seed=1)
    leader, other = sorted([first, second], key=lambda own: -own.mean)
    choice = choose([first, second], TRUTH, groups=GROUPS, incumbent=other.key)
    assert (choice.key, choice.leader, choice.tied) == (other.key, leader.key, [other.key])
    assert "no evidence for a change" in choice.reason and "\n" not in choice.reason
    assert choose([first, second], TRUTH, groups=GROUPS, incumbent=other.key, ties="highest").key == leader.key


def test_a_tie_without_incumbent_goes_to_the_smallest() -> None:
    tied = [candidate(f"c{i}", 1.0, parameters=(30, 20, 40)[i], seed=i) for i in range(3)]
    bad = candidate("bad", 0.0, parameters=1, seed=9)
    choice = choose([*tied, bad], TRUTH, groups=GROUPS)
    assert choice.key == "c1" and "bad" not in choice.tied and len(choice.tied) == 2
    same = [candidate("a", 1.0, seed=1), candidate("b", 1.0, seed=2)]
    best = max(same, key=lambda own: own.mean)
    assert choose(same, TRUTH, groups=GROUPS).key == best.key  # as many weights: the higher one


def test_an_incumbent_that_is_really_worse_goes() -> None:
    choice = choose(
        [candidate("a", 2.0, parameters=9, seed=1), candidate("b", 2.0, seed=2), candidate("old", 0.2, seed=3)],
        TRUTH, groups=GROUPS, incumbent="old",
    )  # fmt: skip
    assert choice.key == "a" and set(choice.tied) < {"a", "b"}  # the smaller of two that are tied


def test_the_mean_over_seeds_decides_not_the_luckiest_seed() -> None:
    steady = Candidate("steady", [0.5, 0.5, 0.5], np.stack([TRUTH * 0.5 + 0.1] * 3), 10)
    lucky_scores = np.stack([TRUTH * 0.8 + 0.1, np.full_like(TRUTH, 0.5), np.full_like(TRUTH, 0.5)])
    lucky = Candidate("lucky", [0.9, 0.2, 0.2], lucky_scores, 50)
    choice = choose([lucky, steady], TRUTH, groups=GROUPS)
    assert choice.key == choice.leader == "steady"


def test_a_lead_that_one_lucky_seed_made_changes_nothing_defect_13_5() -> None:
    """All images say that it leads, for they were drawn of the same three runs: another seed could have made it."""
    steady = candidate("old", 0.5, seed=1)
    runs = [candidate("new", skill, seed=2 + i, seeds=1) for i, skill in enumerate((4.0, 0.5, 0.5))]
    lucky = Candidate("new", [own.scores[0] for own in runs], np.concatenate([own.probabilities for own in runs]), 10)
    choice = choose([lucky, steady], TRUTH, groups=GROUPS, incumbent="old")
    (gap,) = choice.compared
    assert choice.leader == "new" and gap.low > 0 and gap.tied and choice.key == "old"
    error = np.sqrt((np.var(lucky.scores, ddof=1) + np.var(steady.scores, ddof=1)) / 3)
    assert gap.seed_error == pytest.approx(error) and 0 < gap.difference < 2 * error
    assert f"seeds ±{2 * error:.4f}" in choice.reason and "no evidence for a change" in choice.reason
    # Of one seed nothing but the images is known.
    assert choose([runs[0], candidate("old", 0.5, seeds=1)], TRUTH, groups=GROUPS, incumbent="old").key == "new"


def test_the_noise_of_seeds_by_hand() -> None:
    assert seed_error([[0.30, 0.32], [0.40, 0.40], [0.5]]) == pytest.approx(0.01)  # sqrt(2 / 2 x mean(0.0002, 0))
    assert seed_error([[0.5], []]) is None
    assert [is_significant(gain, 0.01, tied=False) for gain in (0.021, 0.019, -0.021)] == [True, False, True]
    assert is_significant(0.9, 0.01, tied=True) is False and is_significant(0.9, None, tied=False) is None


def test_persons_of_one_image_are_drawn_together() -> None:
    """Two persons of an image with the same answers are one piece of evidence: the interval must not shrink."""
    a, b = candidate("a", 1.2, seed=1, seeds=1), candidate("b", 1.0, seed=2, seeds=1)

    def twice(own: Candidate) -> Candidate:
        return Candidate(own.key, own.scores, np.repeat(own.probabilities, 2, axis=1), own.parameters)

    single = choose([a, b], TRUTH, groups=[str(i) for i in range(len(TRUTH))]).compared[0]
    doubled_truth, groups = np.repeat(TRUTH, 2, axis=0), [str(i // 2) for i in range(2 * len(TRUTH))]
    grouped = choose([twice(a), twice(b)], doubled_truth, groups=groups).compared[0]
    apart = choose([twice(a), twice(b)], doubled_truth, groups=[str(i) for i in range(2 * len(TRUTH))]).compared[0]
    width = single.high - single.low
    assert grouped.high - grouped.low == pytest.approx(width, rel=0.1)
    assert apart.high - apart.low < 0.85 * width


def test_one_candidate_and_none() -> None:
    only = candidate("only", 1.0)
    choice = choose([only], TRUTH, groups=GROUPS)
    assert choice.key == "only" and choice.compared == [] and "only one" in choice.reason
    with pytest.raises(RunFailed):
        choose([], TRUTH, groups=GROUPS)


def test_a_winner_that_is_no_better_than_the_baseline_is_said_to_be() -> None:
    good, old = candidate("good", 3.0), candidate("old", 0.5, seed=1)
    low = choose([old, good], TRUTH, groups=GROUPS, baseline=good.mean - 0.01)
    assert "no better" not in low.reason
    high = choose([old, good], TRUTH, groups=GROUPS, baseline=good.mean + 0.01)
    assert high.key == low.key and f"no better than chance ({good.mean + 0.01:.4f})" in high.reason


def test_a_tie_by_the_seeds_alone_says_so() -> None:
    gap = Compared(key="a", difference=0.02, low=0.01, high=0.03, tied=True, seed_error=0.02)
    assert gap.noise.endswith("seeds ±0.0400, which could explain it")
    assert "explain" not in gap.model_copy(update={"tied": False}).noise
    assert "explain" not in gap.model_copy(update={"low": -0.01}).noise
