"""The rules for what may be called a difference and what a headline may say, for every page, table and line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# With fewer images that carry a label, or fewer that do not, bootstrap intervals are too short: it cannot be judged.
FEWEST_IMAGES = 10
# Fewer seeds do not show the spread between them.
FEWEST_SEEDS = 3

Verdict = Literal["better", "worse", "unclear", "untested"]
State = Literal["good", "unsure", "bad"]


def seed_error(runs: Iterable[Sequence[float]]) -> float | None:
    """Returns the standard error, due to training seeds, of the difference between two configurations' means.

    It is pooled over all configurations, because three seeds of one configuration say little.

    Args:
        runs: scores of the seeds of each configuration; configurations with one seed are ignored.

    Returns:
        The error in the unit of the scores; None if no configuration has two seeds.
    """
    known = [np.asarray(own, dtype=np.float64) for own in runs if len(own) > 1]
    if not known:
        return None
    variance = math.fsum(float(own.var(ddof=1)) for own in known) / len(known)
    return math.sqrt(2 / len(known[0]) * variance)


def is_significant(difference: float, error: float | None, *, tied: bool) -> bool | None:
    """Returns whether a difference exceeds the noise of images and seeds: the rule of all studies.

    Args:
        error: `seed_error`; None if unknown.
        tied: whether the interval over images contains 0.

    Returns:
        None if the images show a difference and the noise of the seeds is unknown.
    """
    if tied:
        return False
    return None if error is None else abs(difference) > 2 * error


def verdict_of(
    interval: tuple[float | None, float | None] | None, *, level: float = 0.0, fewest: int | None = None
) -> Verdict:
    """Returns what a 95 % interval over images says about a metric with the chance level `level`.

    Args:
        interval: its two ends; None, or an end that is None, if unknown.
        fewest: size of the smaller of the two groups of images that the metric compares; None for other metrics.

    Returns:
        `better` or `worse` if the whole interval lies on one side, `unclear` if not or if it is unknown, and `untested`
        with fewer than `FEWEST_IMAGES` images in a group.
    """
    if fewest is not None and fewest < FEWEST_IMAGES:
        return "untested"
    low, high = interval or (None, None)
    if low is None or high is None:
        return "unclear"
    return "better" if low > level else "worse" if high < level else "unclear"


@dataclass(frozen=True)
class Gain:
    """The gain of one training method over another, by seed and over images; positive is better.

    Attributes:
        seeds: the gain of each seed.
        low, high: 95 % interval over images of the mean over the seeds; None if unknown.
    """

    seeds: Sequence[float]
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Verdict:
        """`better` or `worse` if every seed and the interval over images agree, else `unclear`.

        `untested` with fewer than `FEWEST_SEEDS` seeds.
        """
        if len(self.seeds) < FEWEST_SEEDS:
            return "untested"
        found = verdict_of((self.low, self.high))
        agree = all(gain > 0 for gain in self.seeds) if found == "better" else all(gain < 0 for gain in self.seeds)
        return found if agree else "unclear"


@dataclass(frozen=True)
class Headline:
    """The first line of a page or a command: its colour and its sentence."""

    state: State
    text: str


def headline(
    verdicts: Mapping[str, Verdict],
    sentences: Mapping[str, str],
    *,
    failures: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Headline:
    """Decides what a headline says. All pages and commands use it, so that they never contradict each other.

    Args:
        verdicts: verdicts of the comparisons that the headline is about, by name.
        sentences: the sentence of each state, by its name; `reserved`: the sentence before a warning (default: `good`).
        failures: faults that make the result useless, such as a collapse.
        warnings: reservations shown on the same page: samples that were trained on, random weights. With a warning the
            headline is never good, and names the first one.

    Returns:
        `bad` with a failure or a comparison that is worse; `good` if all are better and there is no warning; else
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
    """Returns whether a notice of a job makes its results meaningless, e.g. features from random weights."""
    return "RANDOM WEIGHTS" in notice
