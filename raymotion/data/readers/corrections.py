"""Labels that people have kept or corrected on the page of `raymotion review`, as training labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import Metavar, PathText
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.samples import attach_scale, attach_vocabulary, read_samples, scale_of, validate
from raymotion.data.splits import DEFAULT_FRACTIONS, empty_splits, split_samples
from raymotion.data.text_rows import delimited_rows, shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import Vocabulary, read_vocabulary

COLUMNS = ("sample_id", "verdict", "labels")
VERDICTS = ("keep", "correct")


@dataclass
class CorrectionsReport(Report):
    """Counts of `CorrectionsReader`: rows whose labels were kept and corrected, and rows of the table left out."""

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


class CorrectionsReader(Reader):
    """The marks of `raymotion review`: rows of a sample table with the labels that people kept or corrected.

    VOCABULARY is vocabulary.json of the review, a name, or a file of labels. Rows without a mark are left out. Rows
    without a split are split by --seed.

    \b
    Example:
      raymotion data prepare corrections corrections.csv coco.parquet review/vocabulary.json \\
          --out corrected.parquet
    """

    path: Annotated[PathText, Metavar("CORRECTIONS")]
    samples: Annotated[PathText, Metavar("SAMPLES")]
    vocabulary: Annotated[str, Metavar("VOCABULARY")]
    seed: int = Field(0, description="Same seed, same splits.")

    def read(self) -> tuple[pa.Table, CorrectionsReport]:
        """Returns the marked rows of the sample table, in its order, with their labels.

        Raises:
            InputError: a mark is invalid or names an unknown sample or label.
        """
        vocabulary, table = read_vocabulary(self.vocabulary), read_samples(self.samples)
        marks, report = self._marks(vocabulary), CorrectionsReport()
        ids = table.column("sample_id").to_pylist()
        strange = sorted(set(marks) - set(ids))
        if strange:
            raise InputError(
                f"marks {len(strange):,} samples that {self.samples} lacks, e.g. {shown(strange[0])!r}",
                path=self.path,
                remedy="Give the sample table that was labelled.",
            )
        rows = [row for row, own in enumerate(ids) if own in marks]
        found = table.take(pa.array(rows, pa.int64()))
        labels = pa.array([marks[ids[row]][1] for row in rows], table.schema.field("labels").type)
        weights = pa.nulls(len(rows), table.schema.field("label_weights").type)
        for name, column in (("labels", labels), ("label_weights", weights)):
            found = found.set_column(found.schema.get_field_index(name), table.schema.field(name), column)
        found = validate(attach_scale(attach_vocabulary(found, vocabulary), scale_of(table)), where=self.samples)
        if found.column("split").null_count:
            found = split_samples(found, seed=self.seed)
            report.few = empty_splits(found, DEFAULT_FRACTIONS)
        report.rows, report.unmarked = len(rows), len(ids) - len(rows)
        report.kept = sum(verdict == "keep" for verdict, _ in marks.values())
        report.corrected = len(marks) - report.kept
        return found, report

    def _marks(self, vocabulary: Vocabulary) -> dict[str, tuple[str, list[str]]]:
        """Returns verdict and labels by sample_id."""
        marks: dict[str, tuple[str, list[str]]] = {}
        for line, cells in delimited_rows(storage.read_text(self.path), self.path, COLUMNS):
            with located(self.path, line=line):
                if cells["verdict"] not in VERDICTS:
                    raise InputError(f"verdict is {cells['verdict']!r}, not {' or '.join(VERDICTS)}")
                if cells["sample_id"] in marks:
                    raise InputError(f"{shown(cells['sample_id'])!r} is marked twice")
                try:
                    labels = json.loads(cells["labels"])
                except ValueError as error:
                    raise InputError(f"labels are not a JSON list ({error})") from error
                if not isinstance(labels, list) or not all(isinstance(own, str) for own in labels):
                    raise InputError("labels are not a list of texts", remedy='Write ["joy", "awe"], or [] for none.')
                unknown = [own for own in labels if own not in vocabulary]
                if unknown:
                    raise InputError(f"the label {shown(unknown[0])!r} is not in the vocabulary {vocabulary.name}")
                marks[cells["sample_id"]] = (cells["verdict"], list(dict.fromkeys(labels)))
        if not marks:
            raise InputError("has no marks", path=self.path)
        return marks
