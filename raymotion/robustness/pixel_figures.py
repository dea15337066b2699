"""The figures of a pixel attack: success, queries, and what it costs the model's main metric, beside random pixels.

All intervals are 95 % percentile bootstrap intervals over images (`group_id`), on the same resamples, so differences
are paired. Resamples that do not vary give no interval. Of a share (of misled pictures, or the metric where it is one)
that is 0 or 1 in all of them, the exact binomial interval of as many images stands in its place.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raymotion.batch.label_dataset import read_parts
from raymotion.errors import InputError
from raymotion.learning.bootstrap import finite, interval, ratio, resampled, sampling_units
from raymotion.learning.significance import Verdict, verdict_of
from raymotion.models.outputs.base import Targets
from raymotion.robustness.exact import exact_interval
from raymotion.robustness.goals import Objective
from raymotion.robustness.pixel_stage import ATTACKED, SCHEMA
from raymotion.robustness.searches import METHODS, RANDOM

# Maps the draws of each group (B, groups) to the main metric (B,).
Measure = Callable[[np.ndarray], np.ndarray]
# Values of resamples that differ by less are the same, but for the order of their sums.
SAME = 1e-12
# Sums over pictures behind the figures of a run, and these figures in order.
SUMS = 5
_OF_RUN = ("rate", "random", "spent", "until", "median", "before", "after", "after_random")


@dataclass(frozen=True)
class Figure:
    """A number with its 95 % interval; None where it is not defined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, drawn: np.ndarray, *, inflated: bool = False, images: int | None = None) -> Figure:
        """Makes it from the number and its values in the resamples, (B,).

        Args:
            inflated: the resamples' values are too high; see `learning.bootstrap.interval`.
            images: of a share, the images that it is of; see above.
        """
        known = drawn[np.isfinite(drawn)]
        if known.size and np.ptp(known) < SAME:
            share = round(float(value), 12)
            return (
                cls(finite(value), *exact_interval(share, images)) if images and share in (0, 1) else cls(finite(value))
            )
        low, high = interval(drawn, float(value) if inflated else None) or (None, None)
        return cls(finite(value), low, high)


@dataclass(frozen=True)
class Gallery:
    """The captions that pictures are compared with, the same ones in the search and in the metric.

    Attributes:
        captions: their number, of one mean direction a sample; those of pictures in quarantine are among them.
        queries: pictures that are compared with them.
        chance: the metric (R@1) of a random order.
    """

    captions: int
    queries: int
    chance: float


@dataclass(frozen=True)
class Line:
    """What one method achieves with one number of pixels.

    Attributes:
        counted: pictures that the model had right before, and on which the method ran.
        rate: share of them that mislead the model.
        gain: its difference to that of random pixels on the same pictures; None of random pixels themselves.
        verdict: of that difference.
        queries_median, queries_mean: pictures sent until the success, over the successes.
        queries: mean over all counted, where a failure counts with everything that was sent.
        metric: the main metric after the attack over the pictures on which the method ran, and those that do not count,
            as they were: over all pictures, unless it ran on some of the counted ones only.
        drop: how much worse it is than before, on the same pictures.
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
        before: its value before the attack. constant: that of the best constant answer; None of vectors, which have a
            chance (`gallery`).
        gallery: of vectors: what the pictures are compared with.
        no_gradients: why the reference that knows the gradients is missing for `without_gradients` of the counted
            pictures (the most frequent reason); None if it is there for all, or was not asked for.
    """

    pictures: int
    images: int
    counted: int
    not_counted: dict[str, int]
    metric: str
    higher_is_better: bool
    before: Figure
    constant: float | None
    gallery: Gallery | None
    lines: tuple[Line, ...]
    no_gradients: str | None
    without_gradients: int

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
class _Run:
    """One method with one number of pixels, on n pictures in order; where it did not run, 0, or as before.

    Attributes:
        ran: bool (n,). success: bool (n,). queries: (n,). after: decoded values (n, width). ranks: (n,), 0 without one.
    """

    ran: np.ndarray
    success: np.ndarray
    queries: np.ndarray
    after: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of_none(cls, values: np.ndarray, ranks: np.ndarray) -> _Run:
        """Makes one that ran on no picture, from the values and ranks before."""
        n = len(values)
        return cls(np.zeros(n, bool), np.zeros(n, bool), np.zeros(n, np.int64), values.copy(), ranks.copy())


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
    if not rows:
        raise InputError("no picture could be attacked: all are in quarantine", path=folder, remedy="See there why.")
    return figures_of(rows, samples, objective, pixels, resamples=resamples, seed=seed, where=folder)


def figures_of(
    rows: Sequence[Mapping[str, Any]],
    samples: pa.Table,
    objective: Objective,
    pixels: Sequence[int],
    *,
    resamples: int,
    seed: int,
    where: str,
) -> Figures:
    """Measures an attack from its rows, of `SCHEMA`; see `measure`."""
    first: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        first.setdefault(row["sample_id"], row)
    place = {sample_id: i for i, sample_id in enumerate(samples.column("sample_id").to_pylist())}
    ids = sorted(first, key=place.__getitem__)
    number = {sample_id: i for i, sample_id in enumerate(ids)}
    units = sampling_units([first[sample_id]["group_id"] for sample_id in ids], len(ids))
    clean = np.array([first[sample_id]["before_values"] for sample_id in ids], np.float32)
    ranks = np.array([first[sample_id]["before_rank"] or 0 for sample_id in ids], np.int64)
    counted = np.array([first[sample_id]["state"] == ATTACKED for sample_id in ids])
    targets = objective.output.read(samples.take([place[sample_id] for sample_id in ids]), where=where)

    runs: dict[tuple[int, str], _Run] = {}
    without: dict[str, str] = {}
    for k in pixels:
        for method in METHODS:
            own = [row for row in rows if (row["pixels"], row["method"]) == (k, method)]
            run = _Run.of_none(clean, ranks)
            for row in own:
                i = number[row["sample_id"]]
                if row["success"] is None:
                    without[row["sample_id"]] = row["no_gradients"]
                    continue
                run.ran[i], run.success[i], run.queries[i] = True, row["success"], row["queries"]
                if row["after_values"] is not None:
                    run.after[i], run.ranks[i] = row["after_values"], row["after_rank"] or 0
            if run.ran.any():
                runs[k, method] = run
    before, lines = _lines(objective, targets, _Run.of_none(clean, ranks), counted, units, runs, resamples, seed)
    states = Counter(own["state"] for own in first.values() if own["state"] != ATTACKED)
    reasons = Counter(without.values()).most_common(1)
    return Figures(
        len(ids), len(set(units.tolist())), int(counted.sum()), dict(sorted(states.items())), objective.metric,
        objective.higher_is_better, before, objective.constant(objective.truths(targets)), _gallery(first.values()),
        tuple(lines),
        reasons[0][0] if reasons else None, len(without),
    )  # fmt: skip


def _gallery(pictures: Iterable[Mapping[str, Any]]) -> Gallery | None:
    """Returns what the pictures, of which each has a row, are compared with."""
    ranked = [own for own in pictures if own["before_rank"]]
    if not ranked:
        return None
    # The first place goes to each caption as often as to any other.
    chance = float(np.mean([own["own_captions"] / own["captions"] for own in ranked]))
    return Gallery(ranked[0]["captions"], len(ranked), chance)


def _lines(
    objective: Objective, targets: Targets, clean: _Run, counted: np.ndarray, units: np.ndarray,
    runs: dict[tuple[int, str], _Run], resamples: int, seed: int,
) -> tuple[Figure, list[Line]]:  # fmt: skip
    """Returns the main metric before the attack, and the figures of each run.

    A method that ran on some of the counted pictures only is measured on these, and random pixels beside it on the same
    ones; of its metric, the pictures that do not count are there too.
    """
    groups, everyone = int(units.max()) + 1, np.ones(len(units), dtype=bool)
    bases = {(k, method): runs.get((k, RANDOM)) for k, method in runs}
    # Sums over the pictures of a group, (groups, numbers), for each run SUMS of them.
    columns = []
    for key, own in runs.items():
        base = bases[key]
        random = np.zeros(len(units)) if base is None else base.success & own.ran
        columns += [own.ran, own.success, own.queries, own.queries * own.success, random]
    sums = np.zeros((groups, len(columns)))
    if columns:
        np.add.at(sums, units, np.column_stack(columns).astype(np.float64))

    measures: dict[tuple[int, bytes], Measure] = {}

    def measure_of(run: _Run, among: np.ndarray) -> Measure:
        key = id(run), among.tobytes()
        if key not in measures:
            measures[key] = _metric(objective, targets, run, among, units)
        return measures[key]

    known = ~np.isnan(objective.truths(targets)).any(axis=1)

    def images_of(run: _Run, among: np.ndarray) -> int | None:
        """Returns how many images the metric is a share of; None of another metric."""
        if not objective.metric_is_share:
            return None
        ranked = run.ranks > 0 if objective.needs_gallery else known
        return len(np.unique(units[among & ranked]))

    whole = measure_of(clean, everyone)
    metrics = []
    for key, own in runs.items():
        base, among = bases[key], own.ran | ~counted
        metrics.append([measure_of(one, among) for one in (clean, own, own if base is None else base)])

    def figures(counts: np.ndarray) -> np.ndarray:
        """Returns for the resamples the metric before, and of each run what `_OF_RUN` names."""
        total = counts @ sums
        found = [whole(counts)]
        for j, own in enumerate(runs.values()):
            ran, successes, spent, until, random = (total[:, SUMS * j + i] for i in range(SUMS))
            found += [
                ratio(successes, ran), ratio(random, ran), ratio(spent, ran), ratio(until, successes),
                _medians(own, units, counts), *(one(counts) for one in metrics[j]),
            ]  # fmt: skip
        return np.stack(found, axis=1)

    point, drawn = resampled(figures, groups, resamples=resamples, seed=seed, numbers=len(runs) + 1)
    sign, inflated = 1.0 if objective.higher_is_better else -1.0, objective.resampling_inflates
    lines = []
    for j, ((k, method), own) in enumerate(runs.items()):
        at = {name: 1 + len(_OF_RUN) * j + i for i, name in enumerate(_OF_RUN)}

        def figure(name: str, at: dict[str, int] = at, inflated: bool = False, images: int | None = None) -> Figure:
            return Figure.of(point[at[name]], drawn[:, at[name]], inflated=inflated, images=images)

        def less(one: str, other: str, factor: float = 1.0, at: dict[str, int] = at) -> Figure:
            a, b = at[one], at[other]
            return Figure.of(factor * (point[a] - point[b]), factor * (drawn[:, a] - drawn[:, b]))

        images = len(np.unique(units[own.ran]))
        beside = method != RANDOM and bases[k, method] is not None
        # Also of a gain that is the same in every resample, all pictures to none say: on enough images it is one.
        gains = interval(drawn[:, at["rate"]] - drawn[:, at["random"]])
        lines.append(
            Line(
                k, method, int(own.ran.sum()), int(own.success.sum()), figure("rate", images=images),
                less("rate", "random") if beside else None, verdict_of(gains, fewest=images) if beside else None,
                figure("median"), figure("until"), figure("spent"),
                figure("after", inflated=inflated, images=images_of(own, own.ran | ~counted)),
                less("before", "after", sign), less("after_random", "after", sign) if beside else None,
            )
        )  # fmt: skip
    return Figure.of(point[0], drawn[:, 0], inflated=inflated, images=images_of(clean, everyone)), lines


def _metric(objective: Objective, targets: Targets, run: _Run, among: np.ndarray, units: np.ndarray) -> Measure:
    """Prepares the main metric of the pictures marked in `among` (n,)."""
    rows = np.flatnonzero(among)
    if not len(rows):
        return lambda counts: np.full(len(counts), np.nan)
    own = objective.weighed(targets.take(rows), run.after[rows], run.ranks[rows], units[rows])
    many = int(units[rows].max()) + 1
    return lambda counts: own(counts[:, :many])


def _medians(own: _Run, units: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the median number of queries of the successes in each resample, (B,); NaN without any."""
    some = np.flatnonzero(own.success)
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
