"""Rows of a sample table with the labels that people kept or gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from raymotion.data.readers.reader import Report, noted, report_line
from raymotion.data.samples import OPTIONAL, attach_scale, attach_vocabulary, read_samples, scale_of, validate
from raymotion.data.splits import DEFAULT_FRACTIONS, empty_splits, split_samples
from raymotion.data.text_rows import shown
from raymotion.errors import InputError
from raymotion.vocabulary import Vocabulary


@dataclass(frozen=True)
class Mark:
    """What people say of one sample.

    Attributes:
        labels: without repeats; empty if none applies.
        kept: whether these are the labels that were shown to them.
        shares: share of the annotators in (0, 1], one for each label; None: one person, or all agree.
    """

    labels: Sequence[str]
    kept: bool
    shares: Sequence[float] | None = None


@dataclass
class MarkedReport(Report):
    """Counts of readers of marks: rows whose labels were kept and corrected, and rows of the table left out."""

    kept: int = 0
    corrected: int = 0
    few: str | None = None
    unmarked: int = noted("rows of the table have no mark, and are left out")

    def lines(self) -> list[str]:
        """Returns counts, then the notes."""
        told = f"{self.rows:,} ({self.kept:,} kept, {self.corrected:,} corrected)"
        return [report_line("rows", told), *self.note_lines()]

    def notes(self) -> list[str]:
        """See `Report.notes`."""
        return [*super().notes(), *([self.few] if self.few else [])]


def marked_rows(
    samples: str, marks: Mapping[str, Mark], vocabulary: Vocabulary, report: MarkedReport, *,
    tool: str, seed: int, where: object,
) -> pa.Table:  # fmt: skip
    """Returns the marked rows of a sample table, in its order, with their labels; fills the counts of `report`.

    The column `label_source` is TOOL/kept or TOOL/corrected. Rows without a split are split.

    Args:
        samples: path of the table that was labelled.
        marks: by sample_id.
        tool: name of the program that the people used.
        where: the file with the marks, for messages.

    Raises:
        InputError: there are no marks, or the table lacks one of their samples.
    """
    if not marks:
        notes = "; ".join(report.notes())
        raise InputError("has no marks" + (f" ({notes})" if notes else ""), path=where)
    table = read_samples(samples)
    ids = table.column("sample_id").to_pylist()
    strange = sorted(set(marks) - set(ids))
    if strange:
        raise InputError(
            f"marks {len(strange):,} samples that {samples} lacks, e.g. {shown(strange[0])!r}",
            path=where,
            remedy="Give the sample table that was labelled.",
        )
    rows = [row for row, own in enumerate(ids) if own in marks]
    found, own = table.take(pa.array(rows, pa.int64())), [marks[ids[row]] for row in rows]
    for name, values in {
        "labels": [list(mark.labels) for mark in own],
        "label_weights": [None if mark.shares is None else list(mark.shares) for mark in own],
        "label_source": [f"{tool}/{'kept' if mark.kept else 'corrected'}" for mark in own],
    }.items():
        field = OPTIONAL.field(name) if name in OPTIONAL.names else table.schema.field(name)
        column = pa.array(values, field.type)
        if name in found.column_names:
            found = found.set_column(found.schema.get_field_index(name), field, column)
        else:
            found = found.append_column(field, column)
    found = validate(attach_scale(attach_vocabulary(found, vocabulary), scale_of(table)), where=samples)
    if found.column("split").null_count:
        found = split_samples(found, seed=seed)
        report.few = empty_splits(found, DEFAULT_FRACTIONS)
    report.rows, report.unmarked = len(rows), len(ids) - len(rows)
    report.kept = sum(mark.kept for mark in own)
    report.corrected = len(own) - report.kept
    return found
