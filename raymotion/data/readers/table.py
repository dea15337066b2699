"""Any table of the user's own (`data.records`), with columns, labels and a vocabulary."""

from __future__ import annotations

import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder, Metavar
from raymotion.data.captions import is_readable, one_line
from raymotion.data.hugging_face import is_hugging_face, short_name
from raymotion.data.images.files import extension_of
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.records import KEY, SPLIT_WORDS, records_of
from raymotion.data.samples import DIMENSIONS, table_from_rows
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import VOCABULARIES, Vocabulary, read_vocabulary

# Names by which a column is found if the user names none, in this order.
IMAGE_NAMES = ("image_uri", "image", "image_path", "file_name", "filename", "file", "path", "url", "uri")
CAPTION_NAMES = ("captions", "caption", "text", "description")
LABEL_NAMES = ("labels", "label", "emotions", "emotion", "feelings")
SPLIT_NAMES = ("split", "partition", "subset", "fold")
SEPARATORS = ",;|/"
YES, NO = {"1", "1.0", "true", "yes", "x"}, {"", "0", "0.0", "false", "no"}


@dataclass
class TableReport(Report):
    """Counts of `TableReader`.

    Attributes:
        columns: what each column was taken for.
        labels: number of rows with each label of the vocabulary.
        doubts: sentences about labels that may be misspelt, or wrongly separated.
        few: the splits that stayed empty, and why.
    """

    columns: dict[str, str] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    few: str | None = None
    without_image: int = noted("rows have no image")
    empty_captions: int = noted("captions have no words")
    unlabelled: int = noted("rows have no labels: they are not annotated")
    rare: int = noted("labels in the file are on too few rows (--min-count), and left out")
    merged: int = noted("rows are further annotators of an image that has a row already")
    captioned: int = noted("rows are further captions of an image that has a row already")
    repeated: int = noted("rows name the picture of an earlier row: their ids end in #2, #3 ...; they share its split")
    not_there: int = noted("pictures are not there: labelling will put these rows into quarantine")
    doubts: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Rows, columns and labels, then the notes."""
        used = ", ".join(f"{name} = {what}" for name, what in self.columns.items())
        lines = [report_line("rows", self.rows), report_line("columns", used)]
        if self.labels:
            lines.append(report_line("labels", ", ".join(f"{name} {count:,}" for name, count in self.labels.items())))
        return [*lines, *self.note_lines()]

    def notes(self) -> list[str]:
        """See `Report.notes`."""
        return [*super().notes(), *self.doubts, *([self.few] if self.few else [])]


class TableReader(Reader):
    """Any table with a row for each picture: csv, tsv, JSON, Parquet, ImageFolder, WebDataset or Hugging Face.

    PATH is a file, a folder with metadata.csv or one folder for each label, a pattern ('shards/*.tar'), or a data set
    of Hugging Face: hf:owner/name, hf:owner/name:CONFIG or hf:FOLDER (pip install 'raymotion[datasets]').

    Columns are found by their usual names, and named where they have others. Labels are a list, a text with separators,
    columns of 0 and 1 (--label-columns), or one row for each annotator of a picture (--annotators). Without a column of
    splits, images are split by --seed so that each split has its part of the rare labels. Rows of one picture in a
    table of captions alone are one sample, with all of them.

    \b
    Example:
      raymotion data prepare table feelings.csv --image-column path --caption-column text --label-column feelings \\
          --vocabulary-from-data --out mine.parquet
      raymotion data prepare table ratings.parquet --label-columns happy,sad --vocabulary mine.txt --out mine.parquet
      raymotion data prepare table 'shards/*.tar' --vocabulary mikels-8 --out mine.parquet
      raymotion data prepare table hf:owner/name --pictures pictures/ --vocabulary-from-data --out mine.parquet
    """

    path: File
    image_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of picture files or addresses. Default: by name (image, file, path ...), or none."
    )
    caption_column: Annotated[str, Metavar("NAME")] | None = Field(
        None,
        description="Column of captions: a text, or a list of texts. Default: by name (caption, text ...), or none.",
    )
    label_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of labels. Default: by name (labels, emotion ...), or none."
    )
    label_columns: Annotated[str, Metavar("NAMES")] | None = Field(
        None, description="Columns of 0 and 1, or of shares of annotators, one for each label; separated by commas."
    )
    split_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of train, val and test. Default: by name (split ...), else images are split."
    )
    id_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of ids. Default: the picture's address, or the number of the row."
    )
    group_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="Column of groups that no split divides, such as a scene. Default: the picture."
    )
    scale: Annotated[str, Metavar("LOW,HIGH")] | None = Field(
        None, description="Lowest and highest value of the columns valence, arousal and dominance, which are read then."
    )
    separator: str = Field(";", min_length=1, description="Between labels of one text.")
    annotators: bool = Field(
        False, description="Rows of one picture are its annotators: a label counts by the share of those who chose it."
    )
    vocabulary: Annotated[str, Metavar("NAME|FILE")] | None = Field(
        None, description=f"{', '.join(VOCABULARIES)}, or a file with a label in each line. Other labels are an error."
    )
    vocabulary_from_data: bool = Field(False, description="Take the labels of the file, sorted.")
    min_count: int = Field(1, ge=1, description="With --vocabulary-from-data: leave out labels on fewer rows.")
    images: Folder | None = Field(
        None, description="Folder that picture files are relative to. Default: the folder of the table."
    )
    pictures: Folder | None = Field(
        None, description="Folder to write pictures to that are in the table itself (Parquet, Hugging Face)."
    )
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of images for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of images for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, TableReport]:
        """The rows in the order of the file, with the vocabulary attached.

        Raises:
            InputError: names the file, the row or line, and the reason.
        """
        report = TableReport()
        columns, records = records_of(self.path, verbatim=[self.image_column or "", *IMAGE_NAMES])
        used = self._columns(columns)
        report.columns = {what: name for name, what in used.items()}
        one_hot = self._one_hot(columns)
        if one_hot:
            report.columns["labels"] = ", ".join(one_hot)
        scale = None if self.scale is None else parse_scale(self.scale)
        if scale is not None and not any(name in columns for name in DIMENSIONS):
            raise InputError(f"has no column {', '.join(DIMENSIONS)}, and --scale is given", path=self.path)
        rows: list[dict[str, Any]] = []
        for place, record in records:
            with located(**place):
                rows.append({**self._row(record, used, one_hot, report, len(rows)), "place": place})
                if scale is not None:
                    most = max(map(abs, scale))
                    rows[-1] |= {name: parse_number(record[name], name, most) for name in DIMENSIONS if name in record}
        if not rows:
            raise InputError("has no rows", path=self.path)
        labelled = "labels" in used.values() or bool(one_hot)
        if self.annotators:
            rows, report.merged = _merged(rows, one_of={"split": "splits"})
        elif not labelled and scale is None and "sample_id" not in used.values():
            rows, report.captioned = _merged(rows, one_of={"split": "splits", "group_id": "groups"})
        elif "sample_id" in used.values():
            _refuse_repeats(rows)
        report.repeated = _number_repeats(rows)
        report.not_there = sum(_is_not_there(uri) for uri in {row["image_uri"] for row in rows})
        vocabulary = self._vocabulary(rows, one_hot, report) if labelled else None
        for row in rows:
            row.pop("place")
        table = table_from_rows(rows, vocabulary, scale=scale, where=self.path)
        report.rows = table.num_rows
        if "split" not in used.values() and not self.no_split and labelled:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        return table, report

    def _columns(self, names: Sequence[str]) -> dict[str, str]:
        """Column -> what it is taken for: image, captions, labels, split, sample_id, group_id."""
        wanted = {
            "image": (self.image_column, IMAGE_NAMES), "captions": (self.caption_column, CAPTION_NAMES),
            "labels": (self.label_column, () if self.label_columns else LABEL_NAMES),
            "split": (self.split_column, SPLIT_NAMES), "sample_id": (self.id_column, (KEY,)),
            "group_id": (self.group_column, ()),
        }  # fmt: skip
        if self.label_column and self.label_columns:
            raise InputError("--label-column and --label-columns are given", remedy="Give one of them.")
        folded = {name.strip().casefold(): name for name in names}
        used: dict[str, str] = {}
        for what, (given, usual) in wanted.items():
            if given is not None and given not in names:
                raise InputError(
                    f"has no column {given!r}",
                    path=self.path,
                    remedy=f"Its columns are {', '.join(map(shown, names))}.",
                )
            found = given or next((folded[name] for name in usual if name in folded), None)
            if found is not None and found not in used:
                used[found] = what
        if not {"image", "captions"} & set(used.values()):
            raise InputError(
                "has no column of pictures or captions that is known by its name",
                path=self.path,
                remedy=f"Give --image-column or --caption-column; its columns are {', '.join(map(shown, names))}.",
            )
        return used

    def _one_hot(self, names: Sequence[str]) -> list[str]:
        chosen = [name.strip() for name in (self.label_columns or "").split(",") if name.strip()]
        missing = [name for name in chosen if name not in names]
        if missing:
            raise InputError(
                f"has no column {missing[0]!r}",
                path=self.path,
                remedy=f"Its columns are {', '.join(map(shown, names))}.",
            )
        return chosen

    def _row(
        self,
        record: Mapping[str, Any],
        used: Mapping[str, str],
        one_hot: Sequence[str],
        report: TableReport,
        number: int,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {"captions": [], "source": "table", "image_uri": None}
        cells = {what: record.get(name) for name, what in used.items()}
        image, own_name = cells.get("image"), cells.get("image")
        if isinstance(image, Mapping | bytes):
            image, own_name = self._picture(image)
        if image is not None and str(image).strip():
            row["image_uri"] = self._address(str(image).strip())
        elif "image" in cells:
            report.without_image += 1
        for text in _listed(cells.get("captions")):
            if not isinstance(text, str):
                raise InputError(f"a caption is not text ({text!r})", remedy="Give text or a list of texts.")
            if is_readable(text):
                row["captions"].append(one_line(text))
            else:
                report.empty_captions += 1
        given = cells.get("sample_id")
        row["sample_id"] = f"table:{given}" if given not in (None, "") else f"table:{own_name or number}"
        group = cells.get("group_id")
        row["group_id"] = f"table:{group}" if group not in (None, "") else row["image_uri"] or row["sample_id"]
        if (split := cells.get("split")) not in (None, ""):
            word = SPLIT_WORDS.get(str(split).strip().casefold())
            if word is None:
                raise InputError(f"the split {split!r} is not train, val or test")
            row["split"] = word
        if one_hot:
            shares = {name: _share(record.get(name), name) for name in one_hot}
            row["labels"] = [name for name in one_hot if shares[name] > 0]
            if any(0 < share < 1 for share in shares.values()):
                row["label_weights"] = [shares[name] for name in row["labels"]]
        elif "labels" in cells:
            row["labels"] = self._labels(cells["labels"])
            report.unlabelled += row["labels"] is None
        return row

    def _picture(self, cell: Mapping[str, Any] | bytes) -> tuple[str | None, str | None]:
        """Writes a picture that a cell holds, in the form of Hugging Face or as bytes; returns its address and name."""
        data, name = (cell, None) if isinstance(cell, bytes) else (cell.get("bytes"), cell.get("path"))
        if data is None:
            return name, name
        if not isinstance(data, bytes):
            raise InputError(f"the image column holds {cell!r:.80}", remedy="Name files, or give bytes and path.")
        if self.pictures is None:
            raise InputError(
                "the image column holds pictures, not their files",
                remedy="Give --pictures FOLDER: they are written there.",
            )
        digest = sha256(data).hexdigest()[:20]
        path = storage.join(storage.absolute(self.pictures), digest[:2], digest + extension_of(data, str(name or "")))
        if not storage.exists(path):
            storage.write_bytes(path, data, durable=False)
        return path, posixpath.basename(str(name)) if name else digest

    def _address(self, name: str) -> str:
        if storage.is_remote(name) or posixpath.isabs(name):
            return name
        return storage.join(storage.absolute(self.images or storage.parent(storage.absolute(self.path))), name)

    def _labels(self, value: Any) -> list[str] | None:
        """Labels of one cell; None for an empty one: the row is not annotated."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        parts = value.split(self.separator) if isinstance(value, str) else _listed(value)
        if not all(isinstance(part, str) for part in parts):
            raise InputError(f"the labels {value!r} are not texts", remedy="Give words, or use --label-columns.")
        return list(dict.fromkeys(part.strip() for part in parts if part.strip()))

    def _vocabulary(self, rows: Sequence[dict[str, Any]], one_hot: Sequence[str], report: TableReport) -> Vocabulary:
        counts = Counter(label for row in rows for label in row.get("labels") or ())
        stem = short_name(self.path) if is_hugging_face(self.path) else PurePosixPath(self.path).stem
        if self.vocabulary is not None and self.vocabulary_from_data:
            raise InputError("--vocabulary and --vocabulary-from-data are given", remedy="Give one of them.")
        if self.vocabulary is not None:
            vocabulary = read_vocabulary(self.vocabulary)
        elif self.vocabulary_from_data:
            kept = [label for label in (one_hot or sorted(counts)) if counts[label] >= self.min_count]
            if not kept:
                raise InputError(
                    f"no label is on {self.min_count} rows or more", path=self.path, remedy="Lower --min-count."
                )
            vocabulary = Vocabulary(f"{stem}-{len(kept)}", tuple(kept))
            report.rare = len(set(counts) - set(kept))
            report.doubts = _doubts_about(kept, self.separator)
            for row in rows:
                if row.get("labels"):
                    weights = row.get("label_weights") or [None] * len(row["labels"])
                    pairs = [(own, w) for own, w in zip(row["labels"], weights, strict=True) if own in vocabulary]
                    row["labels"] = [own for own, _ in pairs]
                    if row.get("label_weights"):
                        row["label_weights"] = [w for _, w in pairs]
        else:
            raise InputError(
                f"has labels ({', '.join(map(shown, sorted(counts)[:5]))} ...), and no vocabulary is given",
                path=self.path,
                remedy="Give --vocabulary NAME or FILE, or --vocabulary-from-data.",
            )
        for row in rows:
            unknown = [label for label in row.get("labels") or () if label not in vocabulary]
            if unknown:
                raise InputError(
                    f"the label {shown(unknown[0])!r} is not in the vocabulary {vocabulary.name}",
                    **row["place"],
                    remedy="Correct it, or add it to the vocabulary's file.",
                )
        report.labels = {label: counts[label] for label in vocabulary.labels}
        return vocabulary


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _share(value: Any, name: str) -> float:
    """A cell of a label's column: 0, 1, or the share of annotators."""
    text = "" if value is None else str(value).strip().casefold()
    if text in YES:
        return 1.0
    if text in NO:
        return 0.0
    number = parse_number(value, name, 1.0)
    if number is None or not 0 <= number <= 1:
        raise InputError(f"{name} is {value!r}, neither 0 nor 1 nor a share between")
    return number


def parse_scale(text: str) -> tuple[float, float]:
    """Returns the lowest and the highest value that `--scale LOW,HIGH` names; raises an `InputError` otherwise."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"--scale {text} is not a lowest and a highest value", remedy="Write --scale 1,9.")
    return low, high


def parse_number(value: Any, name: str, most: float = math.inf) -> float | None:
    """Returns the number in a cell, or None for an empty one; a decimal comma is read as a point.

    Args:
        most: the largest size that a number here can have: 3,125 is read where 3125 cannot be meant.

    Raises:
        InputError: it is no number, or not finite, or its comma may be one of thousands.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, str) and re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", value.strip()):
        point, whole = value.strip().replace(",", "."), value.strip().replace(",", "")
        if abs(float(whole)) <= most:
            raise InputError(
                f"{name} is {value!r}, which could be {point} or {whole}",
                remedy="Write decimals with a point, and thousands without a mark.",
            )
    try:
        number = float(value.replace(",", ".") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}, not a number", remedy="Correct or empty the cell.") from None
    if not math.isfinite(number):
        raise InputError(f"{name} is {value!r}, not a finite number", remedy="Correct or empty the cell.")
    return number


def _merged(rows: Sequence[dict[str, Any]], one_of: Mapping[str, str]) -> tuple[list[dict[str, Any]], int]:
    """One row for each picture (or id): captions of all its rows, and each label with the share of annotators.

    Also returns how many rows are in another one now. Rows of a picture must agree in the columns `one_of`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["sample_id"], []).append(row)
    merged = []
    for own in found.values():
        first = dict(own[0])
        for column, what in one_of.items():
            several = {row.get(column) for row in own}
            if len(several) > 1:
                raise InputError(f"{first['sample_id']} is in the {what} {', '.join(sorted(map(str, several)))}")
        first["captions"] = list(dict.fromkeys(text for row in own for text in row["captions"]))
        voters = [row["labels"] for row in own if row.get("labels") is not None]
        if voters:
            votes = Counter(label for labels in voters for label in labels)
            first["labels"] = sorted(votes, key=lambda label: (-votes[label], label))
            first["label_weights"] = [votes[label] / len(voters) for label in first["labels"]]
        merged.append(first)
    return merged, len(rows) - len(merged)


def _refuse_repeats(rows: Sequence[dict[str, Any]]) -> None:
    """Raises an `InputError` if an id of the user's own column appears twice."""
    seen: set[str] = set()
    for row in rows:
        if row["sample_id"] in seen:
            name = row["sample_id"].removeprefix("table:")
            raise InputError(
                f"the id {shown(name)!r} appears twice",
                **row["place"],
                remedy="Keep one row for each, or give --annotators if they are of several annotators.",
            )
        seen.add(row["sample_id"])


def _number_repeats(rows: Sequence[dict[str, Any]]) -> int:
    """Gives rows of one id ids of their own: `#2`, `#3` ... They stay in one group. Returns how many there are."""
    seen: Counter[str] = Counter()
    for row in rows:
        own = row["sample_id"]
        seen[own] += 1
        if seen[own] > 1:
            row["sample_id"] = f"{own}#{seen[own]}"
    return seen.total() - len(seen)


def _is_not_there(uri: str | None) -> bool:
    """Returns whether an address is that of a local file that does not exist; stores are not asked."""
    return uri is not None and not storage.is_remote(uri) and "://" not in uri and not os.path.exists(uri)


def _doubts_about(labels: Sequence[str], separator: str) -> list[str]:
    """Returns sentences about labels of the data that differ in capitals alone, or hold another separator."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(label.casefold(), []).append(label)
    found = [f"the labels {' and '.join(own)} differ in capitals alone" for own in alike.values() if len(own) > 1]
    joined = [label for label in labels if any(mark in label for mark in SEPARATORS if mark != separator)]
    if joined:
        found.append(f"the label {joined[0]!r} looks like several: is --separator {separator!r} right?")
    return found
