"""Reads Socratis (Deng et al. 2023): images from news and the web with captions and the emotions that people felt.

Two formats are supported and detected from the content:

- the raw `imCaptionEmotionExplanation_formatted.json`: for each image id a list of annotators, each a list of image
  name, caption, three emotions in free text ('' if fewer), three explanations and a description of the annotator;
- the cleaned csv with the columns `image_name`, `caption` and `emotions` (a Python list), without single annotators.

A sample is an image with one caption. The published set has one caption per image (the first, with the emotions of all
annotators). If the annotators of an image saw different captions, each caption keeps its own emotions, and the samples
form one group: `socratis:NAME`, `socratis:NAME#2` and so on, where NAME is the file name without its extension (with
it, if two images differ only in the extension).
"""

from __future__ import annotations

import ast
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Folder, Metavar
from raymotion.data.captions import one_line
from raymotion.data.images.files import EXTENSIONS, FileNames, FolderContent, is_unicode, list_pictures
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.samples import table_from_rows
from raymotion.data.splits import split_by_shares
from raymotion.data.text_rows import Cells, delimited_rows, parse_json, shown
from raymotion.errors import InputError, located
from raymotion.vocabulary import SOCRATIS_29, Vocabulary, get_vocabulary

MIN_IMAGES = 100
COLUMNS = ("image_name", "caption", "emotions")
SOURCES = ("visualnews", "conceptualcaptions")
_NOTHING = ("none", "not entered")


@dataclass
class SocratisReport(Report):
    """Counts from `SocratisReader`; a row is an image with one caption.

    Attributes:
        captions: rows with a caption.
        images_found, images_missing: rows with and without an image in the images folder.
        annotators: entries of annotators (raw json only).
        weighted: whether rows have annotator shares.
        labels: number of images for each label of the vocabulary.
        images: the images folder, if given.
        few: message about an empty split and the reason.
    """

    captions: int = 0
    images_found: int = 0
    images_missing: int = 0
    annotators: int = 0
    weighted: bool = False
    labels: dict[str, int] = field(default_factory=dict)
    images: str | None = None
    few: str | None = None
    several_captions: int = noted("rows are of images with several captions, each with its own emotions; one group")
    other_case: int = noted("pictures are in the folder with other capitals in their names")
    ambiguous_names: int = noted("pictures could be several files, which differ in spaces or encoded accents")
    unused_pictures: int = noted("pictures in the folder that no row names")
    dropped_images: int = noted("images without a label left out")
    dropped_words: int = noted("words that are not labels left out")

    def notes(self) -> list[str]:
        """Returns a text for each kind of data that was left out or differs from the published set."""
        return super().notes() + ([self.few] if self.few else [])

    def lines(self) -> list[str]:
        """Returns lines for rows, images, captions, annotators and labels, then the notes."""
        top = sorted(self.labels.items(), key=lambda item: -item[1])[:5]
        shares = report_line("annotators", f"{self.annotators:,} entries; label_weights are their shares")
        found = report_line("images", f"{self.images_found:,}", self.images_missing, f"not in {self.images}")
        return [
            report_line("rows", self.rows),
            found if self.images else report_line("images", "none: no --images folder was given"),
            report_line("captions", self.captions),
            *([shares] if self.weighted else []),
            report_line("labels", f"{len(self.labels)}; most common: " + ", ".join(f"{name} {n:,}" for name, n in top)),
            *self.note_lines(),
        ]


@dataclass
class _Item:
    """One image with a caption.

    Attributes:
        name: image name as in the file.
        image: key of the image; see `_Images.image_of`.
        words: emotion words in order of appearance, each with the share of annotators or None.
    """

    name: str
    image: str
    caption: str
    words: dict[str, float | None]


class SocratisReader(Reader):
    """Socratis, from its raw json or the cleaned csv; which one FILE is, its content tells.

    Images are split into train, validation and test by --seed, so that each has its part of the rare labels (iterative
    stratification).

    \b
    Example:
      raymotion data prepare socratis cleaned_data.csv --images DIR --out socratis.parquet
      raymotion data prepare socratis raw.json --vocabulary socratis-29 --seed 3 --out socratis.parquet
    """

    path: File
    images: Folder | None = Field(None, description="Folder of the pictures. Default: none, captions only.")
    vocabulary: Annotated[str, Metavar("NAME")] | None = Field(
        None,
        description="Take the labels of this vocabulary (socratis-29) and drop all other words. "
        "Default: those of the file.",
    )
    min_images: Annotated[int, Metavar("N")] = Field(
        MIN_IMAGES,
        description="Of the raw json: leave out labels on fewer images. Not used with --vocabulary or a csv.",
    )
    val_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of images for validation.")
    test_fraction: Annotated[float, Metavar("SHARE")] = Field(0.1, description="Share of images for the test.")
    no_split: bool = Field(False, description="Leave the split column empty.")
    seed: int = Field(0, description="Same seed, same result.")

    def read(self) -> tuple[pa.Table, SocratisReport]:
        """Reads the samples in the order of the file (or of its images), with the vocabulary attached.

        In the raw json, words on fewer than `min_images` images are not labels. With 100, as in the published set, 29
        words remain; any other result is a sorted vocabulary `socratis-<n>`. A csv is already cleaned. `label_weights`
        is the share of an image's annotators who named the label, null for the csv; `image_uri` is null for images not
        in the folder.

        Raises:
            InputError: names the file, the line (in the json, the image's id) and the reason.
        """
        vocabulary = get_vocabulary(self.vocabulary) if self.vocabulary else None
        text = storage.read_text(self.path)
        pictures = _Images(self.images)
        report = SocratisReport(images=self.images, content=pictures.content)
        if text.lstrip()[:1] in ("{", "["):
            items = _read_raw(text, self.path, pictures, report)
            chosen = vocabulary or _frequent(items, self.min_images, self.path)
        else:
            items = _read_csv(text, self.path, pictures, None if vocabulary else SOCRATIS_29)
            chosen = vocabulary or SOCRATIS_29
        table = table_from_rows(_rows(items, chosen, pictures, report), chosen, where=self.path)
        counts = _images_with(items)
        report.labels = {label: counts[label] for label in chosen.labels}
        report.dropped_words = len(counts.keys() - set(chosen.labels))
        if not self.no_split:
            table, report.few = split_by_shares(
                table, val_fraction=self.val_fraction, test_fraction=self.test_fraction, seed=self.seed
            )
        return table, report


def _rows(
    items: Sequence[_Item], vocabulary: Vocabulary, pictures: _Images, report: SocratisReport
) -> list[dict[str, Any]]:
    """Converts items with a label of `vocabulary` to rows of a sample table, and updates `report`."""
    rows: list[dict[str, Any]] = []
    used: set[str] = set()
    for item, (sample_id, group_id) in zip(items, _ids(items), strict=True):
        words = {word: share for word, share in item.words.items() if word in vocabulary}
        if not words:
            report.dropped_images += 1
            continue
        labels = sorted(words, key=vocabulary.index)
        file = pictures.names.find(item.name)
        if file is not None:
            used.add(file)
        else:
            report.ambiguous_names += item.name in pictures.names.ambiguous
            report.other_case += pictures.names.other_case(item.name) is not None
        rows.append(
            {
                "sample_id": sample_id,
                "group_id": group_id,
                "image_uri": None if file is None else pictures.content.address(file),
                "captions": [item.caption] if item.caption else [],
                "labels": labels,
                "label_weights": [words[label] for label in labels] if report.weighted else None,
                "source": _source(item.name),
            }
        )
    report.rows = len(rows)
    report.captions = sum(1 for row in rows if row["captions"])
    report.several_captions = len(rows) - len({row["group_id"] for row in rows})
    report.images_found = sum(1 for row in rows if row["image_uri"])
    report.images_missing = report.rows - report.images_found
    report.unused_pictures = len(pictures.content.pictures) - len(used)
    return rows


class _Images:
    """The images folder, if given, and the identity of image names in the annotations."""

    def __init__(self, folder: storage.PathLike | None) -> None:
        if folder is not None and not storage.is_dir(folder):
            raise InputError("no such folder", path=folder, remedy="Give the folder of the pictures, or leave it out.")
        self.content = FolderContent("") if folder is None else list_pictures(folder)
        self.names = FileNames(self.content.pictures, self.content.base, self.content.aliases)

    def image_of(self, name: str) -> str:
        """Returns a key of the image: a file's exact name, else `name` without outer blanks, with accents in NFC."""
        return name if name in self.names.files else unicodedata.normalize("NFC", name.strip())


def _ids(items: Sequence[_Item]) -> list[tuple[str, str]]:
    """Returns sample_id and group_id of each item; images whose ids would collide all use a longer name."""
    forms: dict[str, tuple[str, str, str]] = {}
    for item in items:
        plain = item.name.strip()
        forms.setdefault(item.image, (posixpath.splitext(plain)[0], plain, item.name))
    level = dict.fromkeys(forms, 0)
    while True:
        seen: Counter[str] = Counter()
        ids = []
        for item in items:
            group = f"socratis:{forms[item.image][level[item.image]]}"
            seen[item.image] += 1
            ids.append((group if seen[item.image] == 1 else f"{group}#{seen[item.image]}", group))
        owners: dict[str, set[str]] = defaultdict(set)
        for item, (sample_id, _) in zip(items, ids, strict=True):
            owners[sample_id].add(item.image)
        shared = {image for images in owners.values() if len(images) > 1 for image in images if level[image] < 2}
        if not shared:
            return ids
        for image in shared:
            level[image] += 1


def _images_with(items: Iterable[_Item]) -> Counter[str]:
    """Counts the images with each word, over all captions."""
    pairs = {(item.image, word) for item in items for word in item.words}
    return Counter(word for _, word in pairs)


def clean_words(raw: Iterable[str]) -> list[str]:
    """Cleans free-text emotions as in the published set, and removes duplicates.

    In order: converts to lower case; drops 'none', 'not entered', words of one character and words with a space;
    removes quotes; cuts at '('. Does not correct spelling or merge words such as 'angry' and 'anger'.
    """
    words: dict[str, None] = {}
    for text in raw:
        word = text.lower()
        if word in _NOTHING or len(word) < 2 or " " in word:
            continue
        word = word.replace('"', "").split("(")[0]
        if word:
            words[word] = None
    return list(words)


def _source(name: str) -> str:
    prefix = name.strip().split("_", 1)[0]
    return f"socratis/{prefix}" if prefix in SOURCES else "socratis"


def _frequent(items: list[_Item], min_images: int, path: storage.PathLike) -> Vocabulary:
    counts = _images_with(items)
    words = sorted(word for word, count in counts.items() if count >= min_images)
    if not words:
        commonest = min(counts, key=lambda word: (-counts[word], word), default="")
        top = f"; the commonest, {commonest!r}, is on {counts[commonest]}" if counts else ""
        raise InputError(
            f"no emotion is on {min_images} images or more{top}",
            path=path,
            remedy="Lower --min-images, or name the labels with --vocabulary socratis-29.",
        )
    return SOCRATIS_29 if set(words) == set(SOCRATIS_29.labels) else Vocabulary(f"socratis-{len(words)}", tuple(words))


def _read_raw(text: str, path: storage.PathLike, pictures: _Images, report: SocratisReport) -> list[_Item]:
    document = parse_json(text, path)
    if not isinstance(document, dict):
        raise InputError("is a JSON list, not an object of image ids", path=path, remedy="Give the raw json.")
    report.weighted = True
    names: dict[str, str] = {}
    by_image: dict[str, list[tuple[str, list[str]]]] = {}
    for key, annotators in document.items():
        if not isinstance(annotators, list) or not annotators:
            raise InputError("is not a list of annotators", path=path, row=shown(key))
        for number, entry in enumerate(annotators):
            with located(path, row=f"{shown(key)}[{number}]"):
                name, caption, emotions = _checked_entry(entry)
            image = pictures.image_of(name)
            names.setdefault(image, name)
            by_image.setdefault(image, []).append((caption, clean_words(emotions)))
    items = []
    for image, answers in by_image.items():
        report.annotators += len(answers)
        captions = list(dict.fromkeys(caption for caption, _ in answers if caption))
        if len(captions) <= 1:  # annotators without a caption saw the same one
            answers = [(captions[0] if captions else "", words) for _, words in answers]
        for caption in dict.fromkeys(caption for caption, _ in answers):
            own = [words for shown, words in answers if shown == caption]
            votes = Counter(word for words in own for word in words)
            items.append(_Item(names[image], image, caption, {word: n / len(own) for word, n in votes.items()}))
    return items


def _checked_entry(entry: object) -> tuple[str, str, list[str]]:
    """Returns image name, caption and emotions of one annotator's entry, after checking them."""
    if not isinstance(entry, list) or len(entry) < 3:
        raise InputError("is not a list of image name, caption, emotions, explanations and annotator")
    name, caption, emotions = entry[0], entry[1], entry[2]
    if not isinstance(name, str) or not name.strip():
        raise InputError("has no image name")
    if caption is not None and not isinstance(caption, str):
        raise InputError("the caption is not text")
    for text in (name, caption or ""):
        if not is_unicode(text):
            raise InputError(f"{ascii(text)[:60]} contains half a character (a lone surrogate)")
    if not isinstance(emotions, list) or not all(e is None or isinstance(e, str) for e in emotions):
        raise InputError("the emotions are not a list of words")
    return name, one_line(caption), [e for e in emotions if e]


def _read_csv(text: str, path: storage.PathLike, pictures: _Images, known: Vocabulary | None) -> list[_Item]:
    """Reads the cleaned csv; with `known`, other words are an error. The message lists all invalid rows."""
    items: list[_Item] = []
    bad: list[tuple[int, str]] = []
    seen: dict[tuple[str, str], int] = {}
    for line, cells in delimited_rows(text, path, COLUMNS, verbatim=("image_name",), is_start=_is_start):
        name, caption = cells["image_name"], one_line(cells["caption"])
        image = pictures.image_of(name)
        first = seen.setdefault((image, caption), line)
        words = _words(cells["emotions"])
        foreign = [word for word in words or () if known is not None and word not in known]
        if not name.strip():
            bad.append((line, "image_name is empty"))
        elif first != line:
            bad.append((line, f"image_name {shown(name)} appears twice with the same caption, first in line {first}"))
        elif words is None:
            bad.append((line, f"emotions {cells['emotions'][:40]!r} are not a list of words such as ['happy', 'calm']"))
        elif foreign:
            drop = " (--vocabulary with that name drops such words)"
            bad.append((line, f"{foreign[0]!r} is not an emotion of {known.name if known else ''}{drop}"))
        else:
            items.append(_Item(name, image, caption, dict.fromkeys(words, None)))
    if bad:
        others = f"; {len(bad) - 1} more bad lines: {', '.join(str(r) for r, _ in bad[1:9])}" if len(bad) > 1 else ""
        raise InputError(f"{bad[0][1]}{others}", path=path, line=bad[0][0])
    return items


def _is_start(cells: Cells) -> bool:
    name = cells["image_name"]
    return re.fullmatch(r"\S+", name) is not None and name.lower().endswith(EXTENSIONS)


def _words(cell: str) -> list[str] | None:
    """Parses a Python list of words; returns None if it is not one."""
    try:
        words = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None
