"""Socratis (Deng et al. 2023): pictures from news and the web, a caption each, and the emotions that people felt.

Two files are read, told apart by what is in them:

- the raw `imCaptionEmotionExplanation_formatted.json`: per image id a list of annotators, each a list of image name,
  caption, three emotions in free text ('' where fewer), three explanations and a description of the annotator;
- the cleaned csv with the columns `image_name`, `caption` and `emotions` (a Python list), where who said what is lost.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.data.samples import table_from_rows
from raymotion.errors import InputError
from raymotion.vocabulary import SOCRATIS_29, Vocabulary

MIN_IMAGES = 100
COLUMNS = ("image_name", "caption", "emotions")
SOURCES = ("visualnews", "conceptualcaptions")
_NOTHING = ("none", "not entered")


@dataclass
class SocratisReport:
    """Counts of what `read_socratis` met.

    Attributes:
        rows: images kept. captions: those with a caption.
        images_found, images_missing: rows whose picture is in the images folder, and rows whose picture is not.
        annotators: entries of annotators (raw json only). weighted: whether rows have annotator shares.
        dropped_images: images left without a label and so left out.
        dropped_words: distinct words left out because too few images carry them, or the vocabulary lacks them.
        labels: number of images per label, all labels of the vocabulary.
    """

    rows: int = 0
    captions: int = 0
    images_found: int = 0
    images_missing: int = 0
    annotators: int = 0
    weighted: bool = False
    dropped_images: int = 0
    dropped_words: int = 0
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class _Item:
    """One image: its caption, and its words in the order in which they came, with the share of annotators or None."""

    name: str
    caption: str
    words: dict[str, float | None]


def read_socratis(
    path: storage.PathLike,
    images: storage.PathLike | None = None,
    *,
    min_images: int = MIN_IMAGES,
    vocabulary: Vocabulary | None = None,
) -> tuple[pa.Table, SocratisReport]:
    """The raw json or the cleaned csv as a sample table, in the order of the file.

    Args:
        path: either file; which one it is, its first character tells.
        images: folder with the pictures; `image_uri` is null for those that are not in it.
        min_images: of the raw json, words that fewer images carry are no labels. The published set has 100 and comes to
            29 words; another result is a vocabulary `socratis-<n>`, sorted. A csv is clean already, so it is not used.
        vocabulary: take these words as labels and drop all others, instead.

    Returns:
        The table, with the vocabulary attached, and the counts. `label_weights` is the share of an image's annotators
        who named the label, null for the csv.

    Raises:
        InputError: names the file, the row (1 is the first line of data; of the json, the image's id) and the reason.
    """
    text = storage.read_text(path)
    report = SocratisReport()
    if text.lstrip()[:1] in ("{", "["):
        items = _read_raw(text, path, report)
        chosen = vocabulary or _frequent(items, min_images, path)
    else:
        items = _read_csv(text, path, None if vocabulary else SOCRATIS_29)
        chosen = vocabulary or SOCRATIS_29
    present: set[str] = set()
    folder = ""
    if images is not None:
        if not storage.is_dir(images):
            raise InputError("no such folder", path=images, remedy="Give the folder of the pictures, or leave it out.")
        folder, present = storage.absolute(images), set(storage.list_names(images))
    rows = []
    for item in items:
        words = {word: share for word, share in item.words.items() if word in chosen}
        if not words:
            report.dropped_images += 1
            continue
        labels = sorted(words, key=chosen.index)
        weights = [words[label] for label in labels] if report.weighted else None
        rows.append(
            {
                "sample_id": f"socratis:{posixpath.splitext(item.name)[0]}",
                "group_id": f"socratis:{posixpath.splitext(item.name)[0]}",
                "image_uri": storage.join(folder, item.name) if item.name in present else None,
                "captions": [item.caption] if item.caption else [],
                "labels": labels,
                "label_weights": weights,
                "source": _source(item.name),
            }
        )
    report.rows = len(rows)
    report.captions = sum(1 for row in rows if row["captions"])
    report.images_found = sum(1 for row in rows if row["image_uri"])
    report.images_missing = report.rows - report.images_found
    report.dropped_words = len({word for item in items for word in item.words if word not in chosen})
    counts = Counter(word for item in items for word in item.words)  # each item names a word once
    report.labels = {label: counts[label] for label in chosen.labels}
    return table_from_rows(rows, chosen), report


def clean_words(raw: Iterable[str]) -> list[str]:
    """Free-text emotions as words: the published cleaning, in its order, without repeats.

    Lower case; nothing for 'none' and 'not entered'; words of one character and words with a space fall away; quotes
    are stripped; what follows a '(' is cut. Spelling is left as it is, and so are 'angry' beside 'anger'.
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
    prefix = name.split("_", 1)[0]
    return f"socratis/{prefix}" if prefix in SOURCES else "socratis"


def _frequent(items: list[_Item], min_images: int, path: storage.PathLike) -> Vocabulary:
    counts = Counter(word for item in items for word in item.words)
    words = sorted(word for word, count in counts.items() if count >= min_images)
    if not words:
        top = f"; the commonest, {counts.most_common(1)[0][0]!r}, is on {counts.most_common(1)[0][1]}" if counts else ""
        raise InputError(
            f"no emotion is on {min_images} images or more{top}",
            path=path,
            remedy="Lower --min-images, or name the labels with --vocabulary socratis-29.",
        )
    return SOCRATIS_29 if set(words) == set(SOCRATIS_29.labels) else Vocabulary(f"socratis-{len(words)}", tuple(words))


def _read_raw(text: str, path: storage.PathLike, report: SocratisReport) -> list[_Item]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"is not JSON (line {error.lineno}: {error.msg})", path=path) from error
    if not isinstance(document, dict):
        raise InputError("is a JSON list, not an object of image ids", path=path, remedy="Give the raw json.")
    report.weighted = True
    by_image: dict[str, list[tuple[str, list[str]]]] = {}
    for key, annotators in document.items():
        if not isinstance(annotators, list) or not annotators:
            raise InputError("is not a list of annotators", path=path, row=key)
        for number, entry in enumerate(annotators):
            name, caption, emotions = _checked_entry(entry, path, f"{key}[{number}]")
            by_image.setdefault(name, []).append((caption, clean_words(emotions)))
    items = []
    for name, answers in by_image.items():
        votes = Counter(word for _, words in answers for word in words)
        caption = next((caption for caption, _ in answers if caption), "")
        items.append(_Item(name, caption, {word: count / len(answers) for word, count in votes.items()}))
        report.annotators += len(answers)
    return items


def _checked_entry(entry: object, path: storage.PathLike, where: str) -> tuple[str, str, list[str]]:
    if not isinstance(entry, list) or len(entry) < 3:
        raise InputError(
            "is not a list of image name, caption, emotions, explanations and annotator", path=path, row=where
        )
    name, caption, emotions = entry[0], entry[1], entry[2]
    if not isinstance(name, str) or not name.strip():
        raise InputError("has no image name", path=path, row=where)
    if caption is not None and not isinstance(caption, str):
        raise InputError("the caption is not text", path=path, row=where)
    if not isinstance(emotions, list) or not all(e is None or isinstance(e, str) for e in emotions):
        raise InputError("the emotions are not a list of words", path=path, row=where)
    return name.strip(), " ".join((caption or "").split()), [e for e in emotions if e]


def _read_csv(text: str, path: storage.PathLike, known: Vocabulary | None) -> list[_Item]:
    """Rows of the cleaned csv; with `known`, a word outside it is an error. All bad rows are counted in the message."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    items: list[_Item] = []
    bad: list[tuple[int, str]] = []
    seen: dict[str, int] = {}
    row = 0
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            needed = ", ".join(COLUMNS)
            raise InputError(f"lacks the column {', '.join(missing)}", path=path, remedy=f"It needs {needed}.")
        for row, values in enumerate(reader, start=1):
            reason = _bad_csv_row(values, known, seen)
            if reason:
                bad.append((row, reason))
                continue
            name = values["image_name"].strip()
            seen[name] = row
            words = dict.fromkeys(ast.literal_eval(values["emotions"]), None)
            items.append(_Item(name, " ".join(values["caption"].split()), words))
    except csv.Error as error:
        raise InputError(f"is not a csv that can be read ({error})", path=path, row=row + 1) from error
    if bad:
        others = f"; {len(bad) - 1} more bad rows: {', '.join(str(r) for r, _ in bad[1:9])}" if len(bad) > 1 else ""
        raise InputError(f"{bad[0][1]}{others}", path=path, row=bad[0][0])
    return items


def _bad_csv_row(values: Mapping[str | Any, Any], known: Vocabulary | None, seen: Mapping[str, int]) -> str | None:
    if None in values:
        return "has more fields than the header (a comma outside quotes?)"
    if any(values[name] is None for name in COLUMNS):
        return "has fewer fields than the header"
    name = values["image_name"].strip()
    if not name:
        return "image_name is empty"
    if name in seen:
        return f"image_name {name} stands twice, first in row {seen[name]}"
    try:
        words = ast.literal_eval(values["emotions"])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        words = None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return f"emotions {values['emotions'][:40]!r} are not a list of words such as ['happy', 'calm']"
    foreign = [word for word in words if known is not None and word not in known]
    if foreign:
        return (
            f"{foreign[0]!r} is not an emotion of {known.name if known else ''}"
            " (--vocabulary with that name drops such words)"
        )
    return None
