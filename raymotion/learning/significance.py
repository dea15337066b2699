"""What may be called a difference, and what a headline may say: one set of rules for every page, table and line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Fewer images on one side make bootstrap intervals that are too short.
FEWEST_IMAGES = 5
# Fewer seeds say nothing of the spread between them.
FEWEST_SEEDS = 3

Verdict = Literal["better", "worse", "unclear", "untested"]
State = Literal["good", "unsure", "bad"]


def seed_error(runs: Iterable[Sequence[float]]) -> float | None:
    """Standard error of a difference of two configurations' means that training seeds alone make.

    From the spread between seeds pooled over the configurations: three seeds of one tell little.

    Args:
        runs: the score of each seed, for each configuration; those of one seed tell nothing.

    Returns:
        In the scores' unit; None where no configuration has two seeds.
    """
    known = [np.asarray(own, dtype=np.float64) for own in runs if len(own) > 1]
    if not known:
        return None
    variance = math.fsum(float(own.var(ddof=1)) for own in known) / len(known)
    return math.sqrt(2 / len(known[0]) * variance)


def is_significant(difference: float, error: float | None, *, tied: bool) -> bool | None:
    """Whether a difference is beyond noise: that of the images, and that of the seeds. The one rule of a study.

    Args:
        error: `seed_error`; None where it is not known.
        tied: whether the interval over images holds 0.

    Returns:
        None where the images tell the two apart and nothing is known of the seeds.
    """
    if tied:
        return False
    return None if error is None else abs(difference) > 2 * error


def verdict_of(
    interval: tuple[float | None, float | None] | None, *, level: float = 0.0, fewest: int | None = None
) -> Verdict:
    """What a 95 % interval over images says of a figure whose chance level is `level`.

    Args:
        interval: its two ends; None, or an end that is None: not known.
        fewest: the smaller of the two groups of images that the figure tells apart; None where it is no such figure.

    Returns:
        `better` or `worse` where the whole interval lies on one side, `unclear` where it does not or is not known, and
        `untested` with fewer than `FEWEST_IMAGES` images in a group, whatever the interval says.
    """
    if fewest is not None and fewest < FEWEST_IMAGES:
        return "untested"
    low, high = interval or (None, None)
    if low is None or high is None:
        return "unclear"
    return "better" if low > level else "worse" if high < level else "unclear"


@dataclass(frozen=True)
class Gain:
    """How much better one way of training is than another, over seeds and over images; positive is better.

    Attributes:
        seeds: the gain of each seed.
        low, high: 95 % interval over images of the mean over the seeds; None where it is not known.
    """

    seeds: Sequence[float]
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """`better` or `worse` only where every seed and the interval over images agree; else `unclear`.

        `untested` with fewer than `FEWEST_SEEDS` seeds.
        """
        if len(self.seeds) < FEWEST_SEEDS:
            return "untested"
        found = verdict_of((self.low, self.high))
        agree = all(gain > 0 for gain in self.seeds) if found == "better" else all(gain < 0 for gain in self.seeds)
        return found if agree else "unclear"


@dataclass(frozen=True)
class Headline:
    """The first line of a page or a command: its colour, and its sentence."""

    state: State
    text: str


def headline(
    verdicts: Mapping[str, Verdict],
    sentences: Mapping[str, str],
    *,
    failures: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Headline:
    """Decides what a headline may say. Every page and command asks here, so that no two of them say different things.

    Args:
        verdicts: of the comparisons that the headline is about, by name.
        sentences: what is said in each state, by its name; `reserved`, what a warning follows (default: `good`).
        failures: found faults that make the result useless, such as a collapse.
        warnings: what stands on the same page and takes from the result: samples that were trained on, random weights,
            a reservation. The headline is never good above one, and names the first.

    Returns:
        `bad` with a failure or where a comparison is worse; `good` where all are better and nothing is warned of;
        else `unsure`.
    """
    if failures or "worse" in verdicts.values():
        return Headline("bad", sentences["bad"])
    if any(verdict != "better" for verdict in verdicts.values()):
        return Headline("unsure", sentences["unsure"])
    if warnings:
        reserved = sentences.get("reserved", sentences["good"])
        return Headline("unsure", f"{reserved.rstrip('.')}, with a reservation: {warnings[0]}")
    return Headline("good", sentences["good"])


def voids_results(notice: str) -> bool:
    """Whether a notice of a job says that its results mean nothing, such as features from random weights."""
    return "RANDOM WEIGHTS" in notice
