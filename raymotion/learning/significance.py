"""Rules for significant differences and for headlines, shared by all pages, tables and commands."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# With fewer images on one side, bootstrap intervals are too short.
FEWEST_IMAGES = 5
# With fewer seeds, the spread between seeds is not estimated.
FEWEST_SEEDS = 3

Verdict = Literal["better", "worse", "unclear", "untested"]
State = Literal["good", "unsure", "bad"]


def seed_error(runs: Iterable[Sequence[float]]) -> float | None:
    """Computes the standard error of a difference of two configurations' means that is due to training seeds.

    The spread between seeds is pooled over the configurations, since three seeds of one are a poor estimate.

    Args:
        runs: the score of each seed, for each configuration; configurations with one seed are ignored.

    Returns:
        In the scores' unit; None if no configuration has two seeds.
    """
    known = [np.asarray(own, dtype=np.float64) for own in runs if len(own) > 1]
    if not known:
        return None
    variance = math.fsum(float(own.var(ddof=1)) for own in known) / len(known)
    return math.sqrt(2 / len(known[0]) * variance)


def is_significant(difference: float, error: float | None, *, tied: bool) -> bool | None:
    """Tests whether a difference exceeds the noise of both images and seeds. Studies use only this rule.

    Args:
        error: `seed_error`; None if unknown.
        tied: whether the interval over images contains 0.

    Returns:
        None if the difference is significant over images and the seed error is unknown.
    """
    if tied:
        return False
    return None if error is None else abs(difference) > 2 * error


def verdict_of(
    interval: tuple[float | None, float | None] | None, *, level: float = 0.0, fewest: int | None = None
) -> Verdict:
    """Compares a metric's 95 % interval over images with its chance level.

    Args:
        interval: its two ends; unknown if None or if an end is None.
        level: the chance level.
        fewest: size of the smaller group of images, for metrics that separate two groups; else None.

    Returns:
        `better` or `worse` if the whole interval lies on one side of `level`, `unclear` if it does not or is unknown,
        and `untested` with fewer than `FEWEST_IMAGES` images in a group, whatever the interval.
    """
    if fewest is not None and fewest < FEWEST_IMAGES:
        return "untested"
    low, high = interval or (None, None)
    if low is None or high is None:
        return "unclear"
    return "better" if low > level else "worse" if high < level else "unclear"


@dataclass(frozen=True)
class Gain:
    """Gain of one training method over another, over seeds and images; positive is better.

    Attributes:
        seeds: the gain of each seed.
        low, high: 95 % interval over images of the mean over the seeds; None if unknown.
    """

    seeds: Sequence[float]
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """Is `better` or `worse` only if all seeds and the interval over images agree; else `unclear`.

        `untested` with fewer than `FEWEST_SEEDS` seeds.
        """
        if len(self.seeds) < FEWEST_SEEDS:
            return "untested"
        found = verdict_of((self.low, self.high))
        agree = all(gain > 0 for gain in self.seeds) if found == "better" else all(gain < 0 for gain in self.seeds)
        return found if agree else "unclear"


@dataclass(frozen=True)
class Headline:
    """The first line of a page or command: its colour (`state`) and sentence."""

    state: State
    text: str


def headline(
    verdicts: Mapping[str, Verdict],
    sentences: Mapping[str, str],
    *,
    failures: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Headline:
    """Chooses the headline. All pages and commands use this function, so that their headlines are consistent.

    Args:
        verdicts: of the comparisons behind the headline, by name.
        sentences: the sentence for each state; `reserved` is the one before a warning (default: `good`).
        failures: faults that make the result useless, such as a collapse.
        warnings: limitations of the result: samples used in training, random weights, a reservation. With a warning
            the state is never `good`, and the headline gives the first.

    Returns:
        `bad` with a failure or if a comparison is worse; `good` if all are better and there is no warning; else
        `unsure`.
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
    """Tests whether a job's notice makes its results meaningless, as for features from random weights."""
    return "RANDOM WEIGHTS" in notice
