"""The figures of a pixel attack: success, queries, and what it costs the model's main metric, beside random pixels.

All intervals are 95 % percentile bootstrap intervals over images (`group_id`), on the same resamples, so differences
are paired.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.batch.label_dataset import read_parts
from raymotion.errors import InputError
from raymotion.learning.bootstrap import finite, interval, ratio, resampled, sampling_units
from raymotion.learning.significance import Verdict, verdict_of
from raymotion.robustness.goals import Objective
from raymotion.robustness.pixel_stage import ATTACKED, SCHEMA
from raymotion.robustness.searches import METHODS, RANDOM


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, drawn: np.ndarray) -> Figure:
        """Makes it from the number and its values in the resamples, (B,)."""
        low, high = interval(drawn) or (None, None)
        return cls(finite(value), low, high)


@dataclass(frozen=True)
class Line:
    """What one method achieves with one number of pixels.

    Attributes:
        counted: pictures that the model had right before, and that were attacked.
        rate: share of them that mislead the model.
        gain: its difference to that of random pixels; None of random pixels themselves.
        verdict: of that difference.
        queries_median, queries_mean: pictures sent until the success, over the successes.
        queries: mean over all counted, where a failure counts with everything that was sent.
        metric: the main metric over all pictures after the attack, those that did not count as they were.
        drop: how much worse it is than before.
        drop_gain: the difference of the drop to that of random pixels.
    """

    pixels: int
    method: str
    counted: int
    successes: int
    rate: Figure
    gain: Figure | None
    verdict: Verdict | None
    queries_median: Figure
    queries_mean: Figure
    queries: Figure
    metric: Figure
    drop: Figure
    drop_gain: Figure | None


@dataclass(frozen=True)
class Figures:
    """All figures of an attack.

    Attributes:
        pictures: pictures with a prediction. images: images that they are of.
        counted: pictures that the model had right before.
        not_counted: number of the others by reason.
        metric: name of the main metric.
        before: its value before the attack.
        no_gradients: why the reference that knows the gradients is missing; None if it is there, or was not asked for.
    """

    pictures: int
    images: int
    counted: int
    not_counted: dict[str, int]
    metric: str
    higher_is_better: bool
    before: Figure
    lines: tuple[Line, ...]
    no_gradients: str | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        return {**asdict(self), "lines": [asdict(line) for line in self.lines]}

    def line(self, pixels: int, method: str) -> Line:
        """Returns the figures of a method with a number of pixels; raises a `KeyError` without such."""
        for line in self.lines:
            if (line.pixels, line.method) == (pixels, method):
                return line
        raise KeyError(f"{method} with {pixels} pixels")


@dataclass(frozen=True)
class _Runs:
    """One method with one number of pixels, on n pictures in order; 0, or as before, where a picture does not count."""

    success: np.ndarray
    queries: np.ndarray
    after: np.ndarray


def read_attacks(folder: str) -> pa.Table:
    """Reads the rows of an attack, without the pictures."""
    columns = [name for name in SCHEMA.names if name != "png"]
    parts = [part for _, part in read_parts(folder, columns)]
    return pa.concat_tables([SCHEMA.empty_table().select(columns), *parts])


def measure(
    folder: str, samples: pa.Table, objective: Objective, pixels: Sequence[int], *, resamples: int, seed: int
) -> Figures:
    """Measures an attack.

    Args:
        folder: the job's output folder.
        samples: the attacked sample table.
        pixels: the numbers of changed pixels.

    Raises:
        InputError: no picture could be predicted.
    """
    rows = read_attacks(folder).to_pylist()
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(row["sample_id"], row)
    if not first:
        raise InputError("no picture could be attacked: all are in quarantine", path=folder, remedy="See there why.")
    place = {sample_id: i for i, sample_id in enumerate(samples.column("sample_id").to_pylist())}
    ids = sorted(first, key=place.__getitem__)
    number = {sample_id: i for i, sample_id in enumerate(ids)}
    units = sampling_units([first[sample_id]["group_id"] for sample_id in ids], len(ids))
    clean = np.array([first[sample_id]["before_values"] for sample_id in ids], np.float32)
    counted = np.array([first[sample_id]["state"] == ATTACKED for sample_id in ids])
    targets = objective.output.read(samples.take([place[sample_id] for sample_id in ids]), where=folder)

    runs: dict[tuple[int, str], _Runs] = {}
    for k in pixels:
        for method in METHODS:
            own = [r for r in rows if (r["pixels"], r["method"]) == (k, method) and r["success"] is not None]
            if not own:
                continue
            run = _Runs(np.zeros(len(ids), bool), np.zeros(len(ids), np.int64), clean.copy())
            for row in own:
                i = number[row["sample_id"]]
                run.success[i], run.queries[i] = row["success"], row["queries"]
                if row["after_values"] is not None:
                    run.after[i] = row["after_values"]
            runs[k, method] = run
    before, lines = _lines(objective, targets, clean, counted, units, runs, resamples, seed)
    states = Counter(own["state"] for own in first.values() if own["state"] != ATTACKED)
    missing = [row["no_gradients"] for row in rows if row["no_gradients"]]
    return Figures(
        len(ids), len(set(units.tolist())), int(counted.sum()), dict(sorted(states.items())), objective.metric,
        objective.higher_is_better, before, tuple(lines), missing[0] if missing else None,
    )  # fmt: skip


def _lines(
    objective: Objective, targets: Any, clean: np.ndarray, counted: np.ndarray, units: np.ndarray,
    runs: dict[tuple[int, str], _Runs], resamples: int, seed: int,
) -> tuple[Figure, list[Line]]:  # fmt: skip
    """Returns the main metric before the attack, and the figures of each run."""
    groups, keys = int(units.max()) + 1, list(runs)
    # Sums over the pictures of a group, (groups, numbers).
    sums = np.zeros((groups, 3 * len(keys) + 1))
    columns = [counted.astype(np.float64)]
    for own in runs.values():
        columns += [own.success * counted, own.queries * counted, own.queries * own.success * counted]
    np.add.at(sums, units, np.column_stack(columns))
    metrics = [objective.weighed(targets, values, units) for values in (clean, *(own.after for own in runs.values()))]
    sign = 1.0 if objective.higher_is_better else -1.0

    def figures(counts: np.ndarray) -> np.ndarray:
        """Returns for the resamples: the metric before, and of each run rate, queries, of successes, median, metric."""
        total = counts @ sums
        found = [metrics[0](counts)]
        for j, own in enumerate(runs.values()):
            successes, spent, until = (total[:, 3 * j + i] for i in (1, 2, 3))
            found += [
                ratio(successes, total[:, 0]), ratio(spent, total[:, 0]), ratio(until, successes),
                _medians(own, counted, units, counts), metrics[j + 1](counts),
            ]  # fmt: skip
        return np.stack(found, axis=1)

    point, drawn = resampled(figures, groups, resamples=resamples, seed=seed, numbers=len(keys) + 1)
    place = {key: 1 + 5 * j for j, key in enumerate(keys)}
    lines = []
    for (k, method), at in place.items():
        base = None if method == RANDOM else place.get((k, RANDOM))

        def beside(offset: int, at: int = at, base: int | None = base, factor: float = 1.0) -> Figure | None:
            if base is None:
                return None
            one, other = at + offset, base + offset
            return Figure.of(factor * (point[one] - point[other]), factor * (drawn[:, one] - drawn[:, other]))

        gain = beside(0)
        total, groups_counted = int(counted.sum()), len(np.unique(units[counted]))
        rate, spent, until, median, metric = (Figure.of(point[i], drawn[:, i]) for i in range(at, at + 5))
        drop = Figure.of(sign * (point[0] - point[at + 4]), sign * (drawn[:, 0] - drawn[:, at + 4]))
        lines.append(
            Line(
                k, method, total, int((runs[k, method].success & counted).sum()), rate, gain,
                None if gain is None else verdict_of((gain.low, gain.high), fewest=groups_counted), median, until,
                spent, metric, drop, beside(4, factor=-sign),
            )
        )  # fmt: skip
    return Figure.of(point[0], drawn[:, 0]), lines


def _medians(own: _Runs, counted: np.ndarray, units: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the median number of queries of the successes in each resample, (B,); NaN without any."""
    some = np.flatnonzero(own.success & counted)
    if not len(some):
        return np.full(len(counts), np.nan)
    order = some[np.argsort(own.queries[some], kind="stable")]
    weights = counts[:, units[order]]
    sums, queries = np.cumsum(weights, axis=1), own.queries[order].astype(np.float64)
    total = sums[:, -1]
    # The mean of the two in the middle, of an even number.
    lower, upper = (
        np.argmax(sums >= wanted[:, None], axis=1) for wanted in (np.floor((total + 1) / 2), np.floor(total / 2) + 1)
    )
    upper = np.where(total > 0, upper, 0)
    return np.where(total > 0, (queries[lower] + queries[upper]) / 2, np.nan)


def figures_csv(figures: Figures) -> str:
    """Returns the figures as CSV, one line a number of pixels and method."""
    buffer = io.StringIO()
    rows = []
    for line in figures.lines:
        row: dict[str, Any] = {}
        for name, value in asdict(line).items():
            if isinstance(value, dict):
                row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
            elif name in ("gain", "drop_gain"):
                row |= {name: None, f"{name}_low": None, f"{name}_high": None}
            else:
                row[name] = value
        rows.append(row)
    writer = csv.DictWriter(buffer, list(rows[0]) if rows else ["pixels", "method"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
