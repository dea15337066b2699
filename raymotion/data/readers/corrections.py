"""Labels that people have kept or corrected on the page of `raymotion review`, as training labels."""

from __future__ import annotations

import json
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import Metavar, PathText
from raymotion.data.marked import Mark, MarkedReport, marked_rows
from raymotion.data.readers.reader import Reader
from raymotion.data.text_rows import delimited_rows, shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import Vocabulary, read_vocabulary

COLUMNS = ("sample_id", "verdict", "labels")
VERDICTS = ("keep", "correct")


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

    def read(self) -> tuple[pa.Table, MarkedReport]:
        """Returns the marked rows of the sample table, in its order, with their labels.

        Raises:
            InputError: a mark is invalid or names an unknown sample or label.
        """
        vocabulary, report = read_vocabulary(self.vocabulary), MarkedReport()
        marks = self._marks(vocabulary)
        table = marked_rows(self.samples, marks, vocabulary, report, tool="review", seed=self.seed, where=self.path)
        return table, report

    def _marks(self, vocabulary: Vocabulary) -> dict[str, Mark]:
        """Returns the marks by sample_id."""
        marks: dict[str, Mark] = {}
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
                marks[cells["sample_id"]] = Mark(list(dict.fromkeys(labels)), cells["verdict"] == "keep")
        return marks
