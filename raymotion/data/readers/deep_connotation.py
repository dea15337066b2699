"""Reads DeepConnotation: pictures of Flickr that were searched for by an emotion, with votes (You et al. 2016).

Two formats are supported and detected from the content:

- the merged csv without a header: the emotion of the search, the picture's address, and two counts of votes, which sum
  to 5. Votes for the emotion are the share in `label_weights`.
- `labels.json`: trainX, trainY, devX, devY, testX and testY. X is the number of the picture in the order of the
  downloads, Y the emotion, 0 to 7. It has no votes.

A picture that several searches found is one group, whatever the split. Id, emotion and picture of a sample stay
together from here on: the published code joined its lists by hand, and mixed those of two splits.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder, Metavar
from raymotion.data.images.files import FileNames, FolderContent, list_pictures
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.same_pictures import content_digests, joined_groups
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import bare_rows, parse_json, shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import MIKELS_8

ANNOTATORS = 5
SHAPE = "emotion, address and two counts of votes"
# A picture that so many photos have in common is what a site shows in place of those that are gone.
PLACEHOLDER = 20
_PARTS: Mapping[str, str] = {"train": "train", "dev": "val", "test": "test"}
# id_secret of Flickr; a letter behind it is a size of the same photo.
_PHOTO = re.compile(r"(\d+_[0-9a-f]+)(?:_[a-z0-9])?", re.IGNORECASE)
_HOST = re.compile(r"^([a-z][a-z0-9+.-]*:)?//[^/?#]*", re.IGNORECASE)
_NUMBER = re.compile(r"(?:img)?(\d+)", re.IGNORECASE)


@dataclass
class DeepConnotationReport(Report):
    """Counts of `DeepConnotationReader`.

    Attributes:
        labels: rows with each emotion.
        agreement: mean share of annotators who agree, of the rows that have votes.
        has_split: whether the file has a split of its own; leaking: pictures in more than one part of it.
        few: message about an empty split and the reason.
    """

    labels: dict[str, int] = field(default_factory=dict)
    agreement: float | None = None
    has_split: bool = False
    leaking: int = 0
    few: str | None = None
    missing: int = noted(
        "rows have no picture in the folder, and are left out", "row has no picture in the folder, and is left out"
    )
    ambiguous: int = noted("of them could be several files")
    unused_pictures: int = noted("pictures in the folder that no row names", "picture in the folder that no row names")
    placeholders: int = noted(f"rows left out, whose picture is that of more than {PLACEHOLDER} photos: a placeholder")
    not_compared: int = noted("pictures cannot be read: their content was not compared")
    repeated: int = noted("rows are of a picture that has a row of this emotion already, and counted into it")
    disputed: int = noted(
        "rows left out, with which fewer annotators agree than --min-agreement",
        "row left out, with which fewer annotators agree than --min-agreement",
    )
    rejected: int = noted("rows left out, that no annotator agrees with", "row left out, that no annotator agrees with")
    contradicting: int = noted("pictures were found under several emotions")
    overruled: int = noted("rows of them left out: another emotion has more votes, or as many (--contradictions)")
    withdrawn: int = noted("rows of the published split left out, whose picture is also in its val or test")

    def lines(self) -> list[str]:
        """Returns lines for rows, emotions and agreement, then the notes."""
        lines = [
            report_line("rows", self.rows),
            report_line("labels", ", ".join(f"{name} {count:,}" for name, count in self.labels.items())),
        ]
        if self.agreement is not None:
            lines.append(report_line("agreement", f"{self.agreement:.2f} of the annotators, on average"))
        return [*lines, *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns a text for each kind of data that was left out or changed, and what is wrong with the split."""
        split = (
            f"the published split was drawn without a seed, picture by picture: {self.leaking:,} pictures are in more "
            "than one part of it"
        )
        return [*super().notes(), *([split] if self.has_split else []), *([self.few] if self.few else [])]


@dataclass
class _Row:
    """One row of the file: its id, group, emotion, share of annotators or None, published split or None."""

    id: str
    group: str
    emotion: str
    share: float | None = None
    split: str | None = None
    picture: str | None = None
    repeats: int = 1


class DeepConnotationReader(Reader):
    """DeepConnotation, from the merged csv with votes or from labels.json; which one FILE is, its content tells.

    Each row of the csv is an emotion, an address, and two counts of votes; label_weights are the share who agree.
    Pictures are found in --images by the last part of the address, or by number.

    A picture that several searches found is one group: no split divides it. The published split of labels.json does.

    \b
    Example:
      raymotion data prepare deep-connotation merged.csv --images images --min-agreement 3 --out flickr.parquet
      raymotion data prepare deep-connotation labels.json --images . --split published --out flickr.parquet
    """

    path: File
    images: Folder | None = Field(None, description="Folder of the pictures. Default: the folder of FILE.")
    names: Literal["address", "row", "position", "index"] | None = Field(
        None,
        description="Names of the pictures. Of a csv: address (the last part of it), or row (img0.jpg is the first "
        "row). Of labels.json: position (train_img/img0.jpg is the first of trainX; dev_img, test_img), or index "
        "(img17.jpg is what X calls 17). Default: address, position.",
    )
    agreeing_column: Literal["third", "fourth"] = Field(
        "fourth", description="Which column of the csv counts the annotators who agree."
    )
    min_agreement: Annotated[int, Metavar("VOTES")] | None = Field(
        None,
        ge=1,
        le=ANNOTATORS,
        description=f"Leave out rows with which fewer of the {ANNOTATORS} annotators agree (a csv only); You et al. "
        "used 3. [default: 1]",
    )
    contradictions: Literal["strongest", "keep", "drop"] = Field(
        "strongest",
        description="A picture found under several emotions has the one of most votes, and is left out if there is no "
        "such one (always in labels.json); or a row for each; or is left out.",
    )
    split: Literal["grouped", "published"] = Field(
        "grouped",
        description="Split anew by --seed, or as labels.json does, less the rows of train that are in val or test, and "
        "those of val that are in test.",
    )
    content_hash: bool = Field(True, description="Do not compare contents: the same picture has the same address.")
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of pictures for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, DeepConnotationReport]:
        """The pictures in the order of the file, with the vocabulary mikels-8.

        Raises:
            InputError: names the file, the line (in the json, the list and the position) and the reason.
        """
        if storage.is_dir(self.path):
            raise InputError(
                "is a folder, not a file",
                path=self.path,
                remedy="Give its csv or labels.json, and the folder of the pictures with --images.",
            )
        text = storage.read_text(self.path)
        folder = self.images or storage.parent(storage.absolute(self.path))
        if not storage.is_dir(folder):
            raise InputError("no such folder", path=folder, remedy="Give --images, the folder of the pictures.")
        pictures = list_pictures(folder)
        report = DeepConnotationReport(content=pictures)
        if text.lstrip()[:1] in ("{", "["):
            report.has_split = True
            rows = self._read_json(text, pictures, report)
        else:
            rows = self._read_csv(text, pictures, report)
        used = {row.picture for row in rows if row.picture is not None}
        report.unused_pictures = len(pictures.pictures) - len(used)
        report.missing = sum(row.picture is None for row in rows)
        if not used:
            raise InputError(
                f"none of the {len(rows):,} rows has a picture in {folder}",
                path=self.path,
                remedy="Check --images, and how the pictures are named: --names.",
            )
        rows = [row for row in rows if row.picture is not None]
        if self.content_hash:
            rows = _join_same(rows, pictures, report)
        rows = self._chosen(rows, report)
        weighted = any(row.share is not None for row in rows)
        table = table_from_rows(
            [
                {
                    "sample_id": f"deep-connotation:{row.id}",
                    "group_id": f"deep-connotation:{row.group}",
                    "image_uri": pictures.address(row.picture or ""),
                    "labels": [row.emotion],
                    "label_weights": [row.share] if weighted else None,
                    "split": row.split if self.split == "published" and not self.no_split else None,
                    "source": "deep-connotation",
                }
                for row in rows
            ],
            MIKELS_8,
            where=self.path,
        )
        counts = Counter(row.emotion for row in rows)
        report.rows, report.labels = len(rows), {label: counts[label] for label in MIKELS_8.labels}
        if weighted:
            report.agreement = sum(row.share or 0.0 for row in rows) / len(rows)
        if self.split == "grouped" and not self.no_split and rows:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        return table, report

    def _require_names(self, usual: str, other: str, what: str) -> str:
        if self.names not in (None, usual, other):
            raise InputError(
                f"is {what}, and --names {self.names} is not of its kind",
                path=self.path,
                remedy=f"Choose {usual} or {other}.",
            )
        return self.names or usual

    def _read_csv(self, text: str, pictures: FolderContent, report: DeepConnotationReport) -> list[_Row]:
        by_row = self._require_names("address", "row", "a csv") == "row"
        if self.split == "published":
            raise InputError("is a csv, which has no split", path=self.path, remedy="Leave --split published out.")
        names = FileNames(pictures.pictures, pictures.base, pictures.aliases)
        rows: list[_Row] = []
        for line, cells in bare_rows(text, self.path, ("emotion", "address", "third", "fourth"), SHAPE):
            with located(self.path, line=line):
                emotion = cells["emotion"].strip().casefold()
                if emotion not in MIKELS_8:
                    raise InputError(
                        f"{shown(cells['emotion'])[:40]!r} is not one of {', '.join(MIKELS_8.labels)}",
                        remedy=f"A line holds {SHAPE}, without a header.",
                    )
                # Not `urlsplit`, which refuses addresses that name a file all the same.
                name = posixpath.basename(unquote(re.split("[?#]", _HOST.sub("", cells["address"].strip()))[0]))
                stem = posixpath.splitext(name)[0]
                if not stem:
                    raise InputError(f"the address {shown(cells['address'])[:80]!r} names no file")
                photo = _PHOTO.fullmatch(stem)
                share = _agreeing(cells, self.agreeing_column) / ANNOTATORS
            # By number it does not matter what the file at the address was called.
            picture = None if by_row else names.find_alike(name)
            report.ambiguous += picture is None and name in names.ambiguous
            rows.append(_Row(f"{emotion}:{stem}", photo[1] if photo else stem, emotion, share, picture=picture))
        if not rows:
            raise InputError("has no rows", path=self.path)
        if by_row:
            numbered = _numbered(pictures, pictures.pictures)
            if len(numbered) < len(rows) and max(numbered, default=0) == len(numbered) - 1:
                raise InputError(
                    f"has {len(rows):,} rows, and the pictures are numbered 0 to {len(numbered) - 1:,} without a gap: "
                    "by what was downloaded, not by row",
                    path=self.path,
                    remedy="Nothing says which row a picture is of. Use labels.json, or pictures named by address.",
                )
            _require_below(numbered, len(rows), "the csv", pictures)
            for number, row in enumerate(rows):
                row.picture = numbered.get(number)
        return rows

    def _read_json(self, text: str, pictures: FolderContent, report: DeepConnotationReport) -> list[_Row]:
        by_position = self._require_names("position", "index", "labels.json") == "position"
        if self.min_agreement is not None:
            raise InputError("has no votes, and --min-agreement is given", path=self.path, remedy="Use the csv.")
        if self.no_split and self.split == "published":
            raise InputError("--no-split and --split published are given", remedy="Give one of them.")
        document = parse_json(text, self.path)
        missing = [
            key for part in _PARTS for key in (f"{part}X", f"{part}Y")
            if not isinstance(document, dict) or not isinstance(document.get(key), list)
        ]  # fmt: skip
        if missing:
            raise InputError(f"has no list {missing[0]}", path=self.path, remedy="It holds trainX, trainY, devX ...")
        numbered = {} if by_position else _numbered(pictures, pictures.pictures)
        owner: dict[int, str] = {}
        rows: list[_Row] = []
        for part, split in _PARTS.items():
            indices, numbers = document[f"{part}X"], document[f"{part}Y"]
            if len(indices) != len(numbers):
                raise InputError(
                    f"{part}X has {len(indices):,} entries, and {part}Y {len(numbers):,}",
                    path=self.path,
                    remedy="Nothing says which of them belong together: use the file as it was published.",
                )
            if by_position:
                numbered = _numbered(pictures, _in_part(pictures, part))
                _require_below(numbered, len(indices), f"{part}X", pictures)
            for position, (index, number) in enumerate(zip(indices, numbers, strict=True)):
                with located(self.path, row=f"{part}[{position}]"):
                    _require_number(index, f"{part}X", None)
                    _require_number(number, f"{part}Y", len(MIKELS_8))
                    if index in owner:
                        raise InputError(f"the index {index} is in {owner[index]} already, and again in {part}X")
                owner[index] = f"{part}X"
                picture = numbered.get(position if by_position else index)
                rows.append(_Row(f"{index:06d}", f"{index:06d}", MIKELS_8.labels[number], None, split, picture))
        return rows

    def _chosen(self, rows: Sequence[_Row], report: DeepConnotationReport) -> list[_Row]:
        """One row for each picture and emotion, less those that the options leave out."""
        groups: dict[str, list[_Row]] = defaultdict(list)
        for row in rows:
            groups[row.group].append(row)
        kept: set[int] = set()
        for own in groups.values():
            parts = {row.split for row in own}
            report.leaking += len(parts) > 1
            least = (self.min_agreement or 1) / ANNOTATORS
            labels = {}
            for emotion, same in _by_emotion(own).items():
                shares = [row.share for row in same if row.share is not None]
                share = sum(shares) / len(shares) if shares else None  # each is of as many annotators
                if share is not None and share < least - 1e-9:
                    if self.min_agreement is None:
                        report.rejected += len(same)
                    else:
                        report.disputed += len(same)
                else:
                    labels[emotion] = (same, share)
            if len(labels) > 1:
                report.contradicting += 1
                chosen = _strongest(labels) if self.contradictions == "strongest" else set()
                if self.contradictions != "keep":
                    report.overruled += sum(len(same) for name, (same, _) in labels.items() if name not in chosen)
                    labels = {name: found for name, found in labels.items() if name in chosen}
            last = max((SPLITS.index(part) for part in parts if part), default=None)
            for same, share in labels.values():
                if self.split == "published" and last is not None:
                    there = [row for row in same if row.split == SPLITS[last]]
                    report.withdrawn += len(same) - len(there)
                    same = there
                if same:
                    report.repeated += len(same) - 1
                    same[0].share = share
                    kept.add(id(same[0]))
        return [row for row in rows if id(row) in kept]


def _by_emotion(rows: Sequence[_Row]) -> dict[str, list[_Row]]:
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.emotion, []).append(row)
    return found


def _strongest(labels: Mapping[str, tuple[list[_Row], float | None]]) -> set[str]:
    """Returns the emotion with the highest share of annotators, if there is just one."""
    most = max(share or 0.0 for _, share in labels.values())
    first = {name for name, (_, share) in labels.items() if (share or 0.0) > most - 1e-9}
    return first if len(first) == 1 else set()


def _join_same(rows: list[_Row], pictures: FolderContent, report: DeepConnotationReport) -> list[_Row]:
    """Joins the groups of pictures with the same content; leaves placeholders out."""
    contents = content_digests([pictures.address(row.picture or "") for row in rows])
    report.not_compared = len({row.picture for row, content in zip(rows, contents, strict=True) if content is None})
    photos: dict[str, set[str]] = defaultdict(set)
    for row, content in zip(rows, contents, strict=True):
        if content is not None:
            photos[content].add(row.group)
    real = [content is None or len(photos[content]) <= PLACEHOLDER for content in contents]
    report.placeholders = real.count(False)
    kept = [(row, content) for row, content, own in zip(rows, contents, real, strict=True) if own]
    for (row, _), group in zip(
        kept, joined_groups([row.group for row, _ in kept], [content for _, content in kept]), strict=True
    ):
        row.group = group
    return [row for row, _ in kept]


def _agreeing(cells: Mapping[str, str], column: str) -> int:
    """Returns the number of annotators who agree; raises an `InputError` if the two counts are not of all five."""
    counts = []
    for name in ("third", "fourth"):
        text = cells[name].strip()
        if not re.fullmatch(r"\d{1,3}(\.0+)?", text):
            raise InputError(
                f"the {name} cell is {shown(text)[:40]!r}, not a number of votes",
                remedy="Correct the row, or leave it out.",
            )
        counts.append(int(float(text)))
    if sum(counts) != ANNOTATORS:
        raise InputError(
            f"the votes are {counts[0]} and {counts[1]}, and there are {ANNOTATORS} annotators",
            remedy="Correct the row, or leave it out.",
        )
    return counts[0] if column == "third" else counts[1]


def _require_number(value: Any, name: str, end: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (end is not None and value >= end):
        what = "an index" if end is None else f"a number from 0 to {end - 1}"
        raise InputError(f"{name} has {value!r:.40}, not {what}")


def _in_part(pictures: FolderContent, part: str) -> list[str]:
    """Returns the pictures in the folder of a part of the split: train_img, or train."""
    for folder in (f"{part}_img", part):
        found = [name for name in pictures.pictures if posixpath.dirname(name) == folder]
        if found:
            return found
    return []


def _numbered(pictures: FolderContent, names: Sequence[str]) -> dict[int, str]:
    """Returns the pictures that are named by a number, such as img17.jpg or 17.jpg.

    Raises:
        InputError: two have the same number.
    """
    found: dict[int, str] = {}
    for name in names:
        match = _NUMBER.fullmatch(posixpath.splitext(posixpath.basename(name))[0])
        if match is None:
            continue
        if int(match[1]) in found:
            raise InputError(
                f"{found[int(match[1])]} and {name} are both the picture {int(match[1])}",
                path=pictures.base,
                remedy="Keep one of them, or give --images a folder with one set of pictures.",
            )
        found[int(match[1])] = name
    return found


def _require_below(numbered: Mapping[int, str], count: int, what: str, pictures: FolderContent) -> None:
    """Raises an `InputError` if pictures have numbers that a list does not reach: they are of another list."""
    highest = max(numbered, default=0)
    if highest >= count:
        raise InputError(
            f"there is {numbered[highest]}, and {what} has {count:,} entries, numbered 0 to {count - 1}",
            path=pictures.base,
            remedy="The pictures are of another list: labels would be those of other pictures.",
        )
