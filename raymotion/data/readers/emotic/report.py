"""Report of `EmoticReader`: counts, the persons and images with each defect, and the labels of each split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raymotion.data.readers.reader import Report, report_line
from raymotion.learning.metrics.average_precision import chance_map
from raymotion.vocabulary import EMOTIC_26

# Kinds of findings on images (named FOLDER/FILENAME) or persons (named by sample_id), and how they are handled.
FINDINGS: dict[str, str] = {
    "transposed_size": "images whose annotated width and height are swapped; the picture's own size is used",
    "other_size": "images whose annotated size is neither the picture's nor its swap; their boxes are null",
    "turned_image": "images that EXIF turns or mirrors, annotated as stored; their boxes were turned with the picture",
    "missing_image": "images that are not there",
    "unreadable_image": "images that cannot be read",
    "unused_image": "pictures in the image folders that no person is annotated in",
    "no_persons": "images of the annotations that have no person",
    "leaked_image": "images in more than one split",
    "leak_with_other_labels": "of those, images whose persons are labelled otherwise in each split",
    "missing_person": "persons left out: their image is missing or cannot be read",
    "unlabelled_person": "persons left out: no annotator chose a category",
    "leaked_person": "persons left out: their image is in a later split too",
    "degenerate_box": "body boxes without an area in the picture; null",
    "suspect_box": "body boxes cut off at the swapped size's limit; null",
    "other_size_box": "body boxes in pictures of another size than annotated; null",
    "outside_box": "body boxes that lie mostly beyond the picture; null",
    "unchecked_box": "body boxes not checked, as their picture is not there",
    "clipped_box": "body boxes clipped to the picture",
    "no_vad": "persons without valence, arousal and dominance; null, the labels are kept",
    "vad_beyond_scale": "persons whose valence, arousal or dominance is not between 1 and 10; null",
    "duplicate_person": "persons that appear twice: same split, image and box",
    "odd_union": "persons whose combined labels are not the union of their annotators'; the union of both is taken",
    "clipped_face": "face boxes clipped to the picture",
    "outside_face": "face boxes that lie mostly beyond the picture; null",
    "turned_face": "face boxes in pictures that EXIF turns or mirrors, read as pixels of the upright picture",
}


KIND = "emotic-report"


def is_report(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes is such a report in JSON."""
    return re.match(rb'\{\s*"kind": "emotic-report"', head) is not None


@dataclass
class SplitReport:
    """Counts for one split of EMOTIC.

    Attributes:
        persons, images: number in the annotations.
        rows, row_images: number of rows, and of their images, in the table.
        annotators: number of annotators -> persons; 0 if the file does not list annotators separately.
        labelled: rows with labels.
        positives: rows with each label, in the order of the vocabulary.
        gender, age: persons by annotated gender and age.
    """

    persons: int = 0
    images: int = 0
    rows: int = 0
    row_images: int = 0
    annotators: Counter[int] = field(default_factory=Counter)
    labelled: int = 0
    positives: list[int] = field(default_factory=lambda: [0] * len(EMOTIC_26))
    gender: Counter[str] = field(default_factory=Counter)
    age: Counter[str] = field(default_factory=Counter)

    @property
    def prevalence(self) -> list[float]:
        """Share of the labelled rows with each label."""
        return [count / self.labelled if self.labelled else 0.0 for count in self.positives]

    @property
    def chance_map(self) -> float:
        """mAP of random scores."""
        return chance_map(self.prevalence)

    @property
    def annotated_by(self) -> str:
        """Number of annotators in words: `one annotator`, `2 to 5 annotators`, or unknown."""
        known = sorted(count for count in self.annotators if count)
        if not known:
            return "annotators not told apart"
        if known == [1]:
            return "one annotator"
        return f"{known[0]} to {known[-1]} annotators" if len(known) > 1 else f"{known[0]} annotators"

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
        return {
            "persons": self.persons,
            "images": self.images,
            "rows": self.rows,
            "row_images": self.row_images,
            "annotators": {str(count): self.annotators[count] for count in sorted(self.annotators)},
            "prevalence": dict(zip(EMOTIC_26.labels, self.prevalence, strict=True)),
            "positives": dict(zip(EMOTIC_26.labels, self.positives, strict=True)),
            "chance_map": self.chance_map,
            "gender": dict(self.gender.most_common()),
            "age": dict(self.age.most_common()),
        }


@dataclass
class EmoticReport(Report):
    """Counts and findings of one conversion.

    Attributes:
        files: annotation files that were read.
        images, bodies, faces: distinct images, body boxes and face boxes in the table.
        splits: reports by name, in the order train, val, test.
        found: kind (see `FINDINGS`) -> images or sample ids, in the order found.
        folders: kind -> number of findings in each image folder.
    """

    files: list[str] = field(default_factory=list)
    images: int = 0
    bodies: int = 0
    faces: int = 0
    splits: dict[str, SplitReport] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=lambda: {kind: [] for kind in FINDINGS})
    folders: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in FINDINGS})

    def add(self, kind: str, name: str, folder: str) -> None:
        """Adds a finding: the image or sample id `name` in the image folder `folder`."""
        self.found[kind].append(name)
        self.folders[kind][folder] += 1

    def count(self, kind: str) -> int:
        """Returns the number of findings of `kind`."""
        return len(self.found[kind])

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON: counts, names by kind, counts by folder, and the splits."""
        return {
            "kind": KIND,  # must be first: `is_report` reads only the beginning
            "files": self.files,
            "rows": self.rows,
            "images": self.images,
            "bodies": self.bodies,
            "faces": self.faces,
            "splits": {name: split.to_dict() for name, split in self.splits.items()},
            "counts": {kind: len(names) for kind, names in self.found.items()},
            "folders": {kind: dict(counts.most_common()) for kind, counts in self.folders.items() if counts},
            "found": self.found,
        }

    def lines(self) -> list[str]:
        """Returns lines for persons and faces, the splits, the notes and the prevalence of the labels."""
        return [
            report_line("rows", f"{self.rows:,} persons in {self.images:,} images, {self.bodies:,} with a body box"),
            report_line("faces", f"{self.faces:,}" if self.faces else "none: EMOTIC has no face boxes"),
            *(
                report_line(name, f"{split.persons:,} persons annotated ({split.annotated_by}), {split.rows:,} kept")
                for name, split in self.splits.items()
            ),
            *self.note_lines(),
            *self.prevalence_table(),
        ]

    def notes(self) -> list[str]:
        """Returns a line for each kind of finding that occurred, with the folders."""
        lines = []
        for kind, meaning in FINDINGS.items():
            if names := self.found[kind]:
                folders = ", ".join(f"{folder} {count:,}" for folder, count in self.folders[kind].most_common(4))
                lines.append(f"{len(names):,} {meaning} ({folders})")
        return lines

    def prevalence_table(self) -> list[str]:
        """Returns a table of each label's share in each split in percent, with chance mAP and advice on comparisons."""
        names = list(self.splits)
        lines = [f"{'prevalence':<18}" + "".join(f"{name:>9}" for name in names)]
        for i, label in enumerate(EMOTIC_26.labels):
            lines.append(f"  {label:<16}" + _percents([self.splits[name].prevalence[i] for name in names]))
        lines.append(f"{'chance mAP':<18}" + _percents([self.splits[name].chance_map for name in names]))
        annotated = "; ".join(f"{name}: {self.splits[name].annotated_by}" for name in names)
        lines.append(f"{annotated}.")
        if len(names) > 1:
            lines.append(
                "More annotators name more labels: where a split has their union, its labels are more frequent, and "
                "figures of different splits cannot be compared. Compare each with its own chance."
            )
        return lines


def _percents(values: Sequence[float]) -> str:
    return "".join(f"{100 * value:>8.1f}%" for value in values)
