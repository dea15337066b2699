"""Splits samples into train, validation and test: seeded, grouped, and stratified by labels and by valence.

The method is iterative stratification (Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data",
ECML PKDD 2011): the label with the fewest remaining samples is distributed first, and each sample goes to the split
that lacks most of this label. With a label of 20 images, a random split puts 0 to 5 of them into validation; this
method puts 2.

There are five additions:

- A group (an image with its persons) is assigned as a whole, with the union of its labels.
- The source of a group, and whether it is annotated, count as labels: in Socratis, 40 % of the news images are labelled
  sad, but 20 % of the others.
- The valence of a group counts as a label too: which tenth of the scale its mean is in.
- Groups are processed in the order of a seeded hash of their ids, so the result does not depend on the order of rows.
- No split stays empty if there are enough groups.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import pyarrow as pa

from raymotion.data.samples import SCHEMA, SPLITS, scale_of, validate
from raymotion.errors import InputError

VALENCE_BINS = 10
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_samples(table: pa.Table, *, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0) -> pa.Table:
    """Returns `table` with a new `split` column; the order of rows is kept.

    Args:
        table: a sample table; rows without labels and valence are split at random (by the seed) within their source.
        fractions: share of the groups in `train`, `val` and `test`; not negative, with sum 1. A split with a positive
            share gets at least one group, unless there are fewer groups than such splits.
        seed: seed of the order of groups.

    Raises:
        InputError: `fractions` names another split or does not sum to 1.
    """
    names, shares = _checked(fractions)
    groups: dict[str, set[tuple[str, ...]]] = {}
    group_ids = table.column("group_id").to_pylist()
    for group, labels, source in zip(
        group_ids, table.column("labels").to_pylist(), table.column("source").to_pylist(), strict=True
    ):
        marks = groups.setdefault(group, set())
        marks.add(("source", source, "bare" if labels is None else "labelled"))
        marks.update(("label", label) for label in labels or [])
    for group, tenth in _valence_bins(table).items():
        groups[group].add(("valence", str(tenth)))
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    assigned = _deal([(group, sorted(groups[group])) for group in order], shares)
    _fill_empty_splits(assigned, {group: _worth(groups[group]) for group in order}, len(names))
    column = pa.array([names[assigned[group]] for group in group_ids], pa.string())
    index = SCHEMA.get_field_index("split")
    return validate(table).set_column(index, SCHEMA.field("split"), column)


def _valence_bins(table: pa.Table) -> dict[str, int]:
    """Returns for each group with a valence which tenth of the scale (without one: of the values) its mean is in."""
    values: dict[str, list[float]] = {}
    if "valence" in table.column_names:
        pairs = zip(table.column("group_id").to_pylist(), table.column("valence").to_pylist(), strict=True)
        for group, value in pairs:
            if value is not None and math.isfinite(value):
                values.setdefault(group, []).append(value)
    means = {group: sum(own) / len(own) for group, own in values.items()}
    low, high = scale_of(table) or (min(means.values(), default=0.0), max(means.values(), default=0.0))
    width = (high - low) / VALENCE_BINS
    if width <= 0:
        return dict.fromkeys(means, 0)
    return {group: min(max(int((mean - low) / width), 0), VALENCE_BINS - 1) for group, mean in means.items()}


def _checked(fractions: Mapping[str, float]) -> tuple[list[str], list[float]]:
    foreign = sorted(set(fractions) - set(SPLITS))
    if foreign:
        raise InputError(f"{foreign[0]!r} is not one of the splits {', '.join(SPLITS)}")
    told = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
    if any(not math.isfinite(share) or share < 0 for share in fractions.values()):
        raise InputError(f"the shares of the splits are {told}", remedy="None may be less than 0.")
    if not math.isclose(sum(fractions.values()), 1.0, abs_tol=1e-6):
        raise InputError(f"the shares of the splits are {told}", remedy="They must sum to 1.")
    names = [name for name in SPLITS if fractions.get(name, 0.0) > 0]
    return names, [fractions[name] for name in names]


def split_by_shares(
    table: pa.Table, *, val_fraction: float, test_fraction: float, seed: int
) -> tuple[pa.Table, str | None]:
    """Returns the table of `split_samples`, with the rest for training, and the message of `empty_splits`."""
    train = round(1.0 - val_fraction - test_fraction, 9)
    fractions = {"train": train, "val": val_fraction, "test": test_fraction}
    table = split_samples(table, fractions=fractions, seed=seed)
    return table, empty_splits(table, fractions)


def empty_splits(table: pa.Table, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str | None:
    """Returns a message about splits that `split_samples` left empty, or None if there are none."""
    there = set(table.column("split").to_pylist())
    empty = [name for name in _checked(fractions)[0] if name not in there]
    if not empty:
        return None
    rated = {"labels", "valence"} <= set(table.column_names) and (
        table["labels"].null_count == table.num_rows > table["valence"].null_count
    )
    groups = len(set(table.column("group_id").to_pylist()))
    return (
        f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty: {groups:,} images are too few for "
        f"{len(_checked(fractions)[0])} splits; training needs train and val, evaluation test. Add "
        f"{'rated' if rated else 'labelled'} images"
    )


def _deal(groups: list[tuple[str, list[tuple[str, ...]]]], shares: list[float]) -> dict[str, int]:
    """Assigns a split index to each group id; `groups` are in random order, each with its distinct marks."""
    carriers: dict[tuple[str, ...], list[int]] = {}
    for number, (_, marks) in enumerate(groups):
        for mark in marks:
            carriers.setdefault(mark, []).append(number)
    left = {mark: len(numbers) for mark, numbers in carriers.items()}
    wanted = {mark: [share * count for share in shares] for mark, count in left.items()}
    room = [share * len(groups) for share in shares]
    assigned: dict[str, int] = {}
    while left:
        # The rarest label first: later, its groups would already have been assigned by more common labels.
        mark = min(left, key=lambda key: (left[key], key))
        for number in carriers[mark]:
            group, marks = groups[number]
            if group in assigned:
                continue
            choice = max(range(len(shares)), key=lambda j: (wanted[mark][j], room[j]))
            assigned[group] = choice
            room[choice] -= 1
            for own in marks:
                wanted[own][choice] -= 1
                if own in left:
                    left[own] -= 1
        del left[mark]
    return assigned


def _worth(marks: set[tuple[str, ...]]) -> int:
    """Returns 2 for a group with a label or a valence, 1 for an annotated one without, 0 for one not annotated."""
    kinds = {mark[0] for mark in marks}
    annotated = any(mark[0] == "source" and mark[2] == "labelled" for mark in marks)
    return 2 if kinds & {"label", "valence"} else int(annotated)


def _fill_empty_splits(assigned: dict[str, int], worth: Mapping[str, int], splits: int) -> None:
    """Moves a group of the best kind into each split without one, from a split that keeps at least one.

    With few groups, small shares round to zero: all of three samples would go to training.
    """
    best = max(worth.values(), default=0)
    for split in range(splits):
        holders: dict[int, list[str]] = {}
        for group, own in assigned.items():
            if worth[group] == best:
                holders.setdefault(own, []).append(group)
        if split in holders or not holders:
            continue
        giver = max(holders, key=lambda own: (len(holders[own]), -own))
        if len(holders[giver]) > 1:
            assigned[holders[giver][-1]] = split
