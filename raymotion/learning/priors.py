"""Class-prior correction: the class rates of a new collection, from a model's own probabilities of it.

A model learns p(label | image) for the class rates of its training split. If only the rates differ in a new collection,
and images of a label look as before, its probabilities follow from Bayes' rule once the new rates are known, and these
can be estimated without a label: Saerens, Latinne, Decaestecker, "Adjusting the outputs of a classifier to new a priori
probabilities", Neural Computation 14 (2002). Each label is a two-class problem of its own here.

The estimate takes the probabilities at their word. If they are not calibrated on the training data, or if images of a
label look different in the new collection, the rates take up the difference: a model that is too sure, or too low
throughout, drives rates to 0 or 1. So does a model that knows little: where the probabilities of a label hardly vary,
small differences between the collections are explained by large ones of the rates. Against that the rates of training
may be given a weight. Labels are treated as independent, so two names of one emotion move separately.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.errors import InputError

# Rows converted to float64 at a time.
CHUNK_ROWS = 65_536
# Changes of a rate below this end the search.
TOLERANCE = 1e-10
MOST_STEPS = 200
# Labels that a line names.
NAMED = 4


@dataclass(frozen=True)
class PriorShift:
    """The class rates of two collections, (L,) each.

    Attributes:
        training: rates of the training split.
        rates: rates of the new collection.
        errors: standard errors of `rates`, for independent rows; NaN at an edge, and for rates that were kept.
        at_edge: (L,) bool, labels for which every higher (or every lower) rate would explain the probabilities worse.
            Without a weight they get the rate of half a row, or of all rows but half a row, so that ranking by them
            still works.
        rows: number of rows that the rates were estimated from.
        weight: of the training rates; see `estimate_rates`.
    """

    training: np.ndarray
    rates: np.ndarray
    errors: np.ndarray
    at_edge: np.ndarray
    rows: int
    weight: float = 0.0

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the probabilities (n, L) in the new collection, float64."""
        return correct(probabilities, self.training, self.rates)

    def undo(self, value: float) -> np.ndarray:
        """Returns the probability of each label, (L,), that `apply` turns into `value`."""
        return correct(np.full((1, len(self.rates)), value), self.rates, self.training)[0]

    def to_dict(self) -> dict[str, Any]:
        """Returns training and estimated rates for JSON, with None for a missing standard error."""
        return {
            "training": [float(rate) for rate in self.training],
            "estimated": [float(rate) for rate in self.rates],
            "errors": [float(error) if np.isfinite(error) else None for error in self.errors],
            "at_edge": [bool(edge) for edge in self.at_edge],
            "rows": self.rows,
            "weight": self.weight,
        }


def correct(probabilities: np.ndarray, training: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Returns the probabilities for other class rates (Saerens et al. 2002, equation 2.4, for two classes).

    p (r / t) / (p (r / t) + (1 - p) (1 - r) / (1 - t)) for the training rate t and the new rate r. It rises with p, so
    the order of the images within a label stays. A label that training had never, or always, is left as it is: nothing
    says how it looks.

    Args:
        probabilities: (n, L) in [0, 1].
        training, rates: (L,) in [0, 1].

    Returns:
        (n, L) float64 in [0, 1].
    """
    p = np.asarray(probabilities, dtype=np.float64)
    old, new = _rates(training, p), _rates(rates, p)
    known = (old > 0) & (old < 1)
    old = np.where(known, old, 0.5)
    yes, no = p * (new / old), (1.0 - p) * ((1.0 - new) / (1.0 - old))
    # 0 / 0 is a certain label of which the new collection has none: it stays certain.
    found = np.divide(yes, yes + no, out=p.copy(), where=yes + no > 0)
    return np.where(known & (new != old), found, p)


def estimate_rates(
    probabilities: np.ndarray, training: Sequence[float] | np.ndarray, *, weight: float = 0.0
) -> PriorShift:
    """Estimates the class rates of a collection from a model's probabilities of it.

    These are the rates to which the EM algorithm of Saerens et al. (2002) converges: the maximum of the likelihood of a
    mixture of positives and negatives, which is concave in the rate. EM needs thousands of passes where the
    probabilities of a label hardly vary, so the root of the slope is found instead, by Newton's method within a bracket
    that is halved otherwise.

    Args:
        probabilities: (n, L) in [0, 1]; read in blocks of rows, and not copied.
        training: (L,) class rates of the training split. A label with 0 or 1 keeps that rate.
        weight: how much the training rates count: as many rows of known label as this share of the rows (a beta prior,
            and `(mean + weight * training) / (1 + weight)` in each step of EM). 0: as published.

    Raises:
        InputError: shapes do not fit, or values lie outside of [0, 1].
    """
    p = np.asarray(probabilities)
    if p.ndim != 2:
        raise InputError(f"probabilities of shape {p.shape} are not images x labels")
    old = _rates(np.asarray(training, dtype=np.float64), p)
    if len(p) and not (p.min() >= 0 and p.max() <= 1):  # also refuses NaN
        raise InputError("probabilities are not all between 0 and 1")
    known = (old > 0) & (old < 1) & (len(p) > 0)
    base = np.where(known, old, 0.5)
    low = np.full(len(old), 0.5 / max(1, len(p)))
    high = 1.0 - low
    falling, rising = _slope(p, base, low)[0] <= 0, _slope(p, base, high)[0] >= 0
    edge = known & (falling | rising)
    free = known if weight else known & ~edge
    rates = np.clip(base, low, high) if weight else np.where(falling, low, np.where(rising, high, base))
    for _ in range(MOST_STEPS):
        slope, curvature = _slope(p, base, rates)
        pull, stiffness = _pull(base, rates, weight * len(p))
        slope, curvature = slope + pull, curvature + stiffness
        low, high = np.where(slope > 0, rates, low), np.where(slope > 0, high, rates)
        newton = rates + np.divide(slope, curvature, out=np.zeros_like(slope), where=curvature > 0)
        step = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
        moved = np.where(free, step - rates, 0.0)
        rates = rates + moved
        if np.abs(moved).max(initial=0.0) < TOLERANCE:
            break
    curvature, stiffness = _slope(p, base, rates)[1], _pull(base, rates, weight * len(p))[1]
    told = free & (curvature > 0)
    errors = np.where(told, np.sqrt(curvature) / np.maximum(curvature + stiffness, 1e-300), np.nan)
    return PriorShift(old, np.where(known, rates, old), errors, edge, len(p), weight)


def _slope(p: np.ndarray, training: np.ndarray, rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the slope of the log-likelihood of the rates, and minus its curvature, (L,) each."""
    slope, curvature = np.zeros(len(rates)), np.zeros(len(rates))
    for start in range(0, len(p), CHUNK_ROWS):
        block = p[start : start + CHUNK_ROWS].astype(np.float64)
        absent = (1.0 - block) / (1.0 - training)
        gain = block / training - absent
        gain /= absent + rates * gain
        slope += gain.sum(axis=0)
        curvature += (gain * gain).sum(axis=0)
    return slope, curvature


def _pull(training: np.ndarray, rates: np.ndarray, rows: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns slope and minus curvature of the log-likelihood of `rows` rows at the training rates, (L,) each."""
    return (
        rows * (training / rates - (1.0 - training) / (1.0 - rates)),
        rows * (training / rates**2 + (1.0 - training) / (1.0 - rates) ** 2),
    )


def _rates(values: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    rates = np.asarray(values, dtype=np.float64)
    if probabilities.ndim != 2 or rates.shape != (probabilities.shape[1],):
        raise InputError(f"class rates of shape {rates.shape} do not fit probabilities of shape {probabilities.shape}")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise InputError("class rates are not all between 0 and 1")
    return rates


def moved_line(labels: Sequence[str], rates: Mapping[str, Any]) -> str:
    """Returns one line on which labels' rates moved most, by their odds, from `PriorShift.to_dict`."""
    old, new = np.array(rates["training"], dtype=float), np.array(rates["estimated"], dtype=float)
    usable = (old > 0) & (old < 1) & ~(np.array(rates["at_edge"], dtype=bool) & (rates["weight"] == 0))
    if not usable.any():
        return "class rates estimated from this collection: none could be told from the model's probabilities"
    safe_old, safe_new = np.where(usable, old, 0.5), np.where(usable, new, 0.5)
    odds = np.abs(np.log(safe_new / (1 - safe_new)) - np.log(safe_old / (1 - safe_old)))
    order = [j for j in np.argsort(-odds, kind="stable").tolist() if usable[j]][:NAMED]
    listed = ", ".join(f"{labels[j]} {old[j]:.1%} -> {new[j]:.1%}" for j in order)
    return f"class rates, training -> estimated here: {listed} (the largest moves)"


def told_rates(labels: Sequence[str], choice: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each kind of estimated rates of a choice: which moved most, and what they decided.

    Args:
        choice: its record, with `rates`, by which labels were chosen, and `uncertainty_rates`, by which rows were.
    """
    decided = {
        "rates": "The labels were chosen from probabilities corrected to the estimated rates",
        "uncertainty_rates": "The rows were selected by the uncertainty of probabilities corrected to the estimated "
        "rates; that selection left the labels as they were",
    }
    lines = [(moved_line(labels, choice[name]), what) for name, what in decided.items() if choice.get(name)]
    return [
        f"{line[:1].upper()}{line[1:]}. {what}; the stored probabilities are the model's own." for line, what in lines
    ]


def rate_notes(labels: Sequence[str], rates: Mapping[str, Any]) -> list[str]:
    """Returns sentences on rates that should not be trusted, from `PriorShift.to_dict`."""
    notes = []
    ends = list(zip(labels, rates["at_edge"], rates["estimated"], rates["training"], strict=True))
    low = ", ".join(name for name, edge, rate, old in ends if edge and rate <= old)
    high = ", ".join(name for name, edge, rate, old in ends if edge and rate > old)
    held = f"would run to {{}} without the weight of the training rates ({rates['weight']:g})"
    ran = held if rates["weight"] else "ran to {}"
    for names, end, has, level in ((low, 0, "none", "low"), (high, 1, "nothing else", "high")):
        if names:
            notes.append(
                f"The estimated rate of {names} {ran.format(end)}: either the collection has {has}, or the model's "
                f"probabilities are too {level} throughout for these images, or know too little, and correcting them "
                "by rates is wrong. Look at such labels before you use them."
            )
    fixed = [name for name, rate in zip(labels, rates["training"], strict=True) if rate in (0.0, 1.0)]
    if fixed:
        notes.append(f"Training had {', '.join(fixed)} never or always: their probabilities were not corrected.")
    return notes
