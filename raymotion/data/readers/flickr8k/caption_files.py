"""The three published forms of Flickr8k's captions: captions.txt, Flickr8k.token.txt and Karpathy's json.

captions.txt (Kaggle) is a csv by its header, `image,caption`, but not by its quotes: copies are around in which a
caption with commas or quotes is written as it is. So a line is read as a name, a comma and a caption; the caption is
unquoted only if all of it is one quoted cell. Such a cell may hold line breaks, if no line in it looks like a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raymotion import storage
from raymotion.data.images.files import EXTENSIONS
from raymotion.data.text_rows import lines_of, parse_json, shown
from raymotion.errors import InputError, located

HEADER = ("image", "caption")
IMAGE_COLUMNS = ("image", "image_name", "file", "file_name", "filename")
CAPTION_COLUMNS = ("caption", "text", "comment")
# Karpathy's restval: pictures that were meant for validation and are used to train.
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
FORMS = "captions.txt (image,caption), Flickr8k.token.txt (NAME.jpg#0<TAB>caption) or dataset_flickr8k.json"

_PICTURE = "|".join(re.escape(extension[1:]) for extension in EXTENSIONS)
_ROW = re.compile(rf'\s*"?[^,"\r\n]+\.(?:{_PICTURE})(?:\.\d+)?"?\s*,', re.IGNORECASE)
_TOKEN = re.compile(r"(?P<name>[^\t\r\n]+)#(?P<number>\d+)\t(?P<caption>[^\r\n]*)")
_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"\s*', re.DOTALL)


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture that a file names.

    Attributes:
        name: as the file has it. captions: in order, as they are written, possibly empty.
        split: train, val or test as the file says, or None.
    """

    name: str
    captions: tuple[str, ...]
    split: str | None = None


def read_caption_file(path: storage.PathLike) -> tuple[str, list[CaptionedPicture]]:
    """Returns the form of a file (`csv`, `token` or `json`) and its pictures in the order of their first row.

    Raises:
        InputError: it has another form, or a line of it is damaged; names the line.
    """
    return parse_caption_file(storage.read_text(path), path)


def parse_caption_file(text: str, path: storage.PathLike) -> tuple[str, list[CaptionedPicture]]:
    """See `read_caption_file`; `text` is the content of `path`."""
    if "\0" in text:
        raise InputError("holds NUL characters", path=path, remedy="Is it UTF-16, or not text? Save it as UTF-8.")
    first = text.lstrip()
    if not first:
        raise InputError("the file is empty", path=path, remedy=f"Give {FORMS}.")
    if first[0] in "{[":
        return "json", _pictures_of_json(text, path)
    if _TOKEN.match(first):
        return "token", _grouped(_token_rows(text, path))
    return "csv", _grouped((name, caption) for _, name, caption in csv_rows(text, path))


def _grouped(rows: Iterator[tuple[str, str]]) -> list[CaptionedPicture]:
    found: dict[str, list[str]] = {}
    for name, caption in rows:
        found.setdefault(name, []).append(caption)
    return [CaptionedPicture(name, tuple(captions)) for name, captions in found.items()]


def csv_rows(text: str, path: storage.PathLike) -> Iterator[tuple[int, str, str]]:
    """Yields line, name and caption of each row of a captions.txt; blank lines are skipped.

    Raises:
        InputError: the header is another one, or a line holds no comma.
    """
    lines = lines_of(text)
    at = next((place for place, line in enumerate(lines) if line.strip()), 0)
    header = [cell.strip().strip('"').strip().casefold() for cell in lines[at].split(",")]
    if len(header) == 2 and header[0] in IMAGE_COLUMNS and header[1] in CAPTION_COLUMNS:
        at += 1
    elif not _ROW.match(lines[at]):
        raise InputError(
            f"begins with {shown(lines[at].strip())[:60]!r}, which is not the header image,caption",
            path=path,
            line=at + 1,
            remedy=f"Give {FORMS}; a table with other columns is for `raymotion data prepare table`.",
        )
    while at < len(lines):
        line, start = lines[at], at
        at += 1
        if not line.strip():
            continue
        name, comma, caption = _cells(line)
        if not comma or not name:
            raise InputError(
                f"is {shown(line.strip())[:60]!r}, not a picture's name, a comma and a caption",
                path=path,
                line=start + 1,
                remedy="A caption of several lines is put in quotes.",
            )
        if caption.lstrip().startswith('"') and not _QUOTED.fullmatch(caption):
            end = _end_of_cell(lines, at, caption)
            caption += "".join(lines[at:end])
            at = end
        cell = _QUOTED.fullmatch(caption)
        yield start + 1, name, cell[1].replace('""', '"') if cell else caption.strip("\r\n")


def _cells(line: str) -> tuple[str, str, str]:
    """Splits a line at its first comma, or at the one behind a name in quotes."""
    if line.lstrip().startswith('"'):
        name, quote, rest = line.lstrip()[1:].partition('"')
        if quote and rest.lstrip().startswith(","):
            return name.strip(), ",", rest.lstrip()[1:]
    name, comma, caption = line.partition(",")
    return name.strip(), comma, caption


def _end_of_cell(lines: Sequence[str], at: int, caption: str) -> int:
    """Returns the line behind the end of a quoted cell that goes on at line `at`; `at` if it is no such cell."""
    text = caption
    for end in range(at, len(lines)):
        if _ROW.match(lines[end]):
            return at
        text += lines[end]
        if _QUOTED.fullmatch(text):
            return end + 1
    return at


def _token_rows(text: str, path: storage.PathLike) -> Iterator[tuple[str, str]]:
    """Yields name and caption of each line of a token.txt, those of a picture in the order of their numbers."""
    found: dict[str, list[tuple[int, str]]] = {}
    for number, line in enumerate(lines_of(text), start=1):
        if not line.strip():
            continue
        match = _TOKEN.fullmatch(line.rstrip("\r\n"))
        if match is None:
            raise InputError(
                f"is {shown(line.strip())[:60]!r}, not NAME.jpg#0, a tab and a caption",
                path=path,
                line=number,
                remedy="Correct the line, or leave it out.",
            )
        found.setdefault(match["name"].strip(), []).append((int(match["number"]), match["caption"]))
    for name, captions in found.items():
        for _, caption in sorted(captions, key=lambda pair: pair[0]):
            yield name, caption


def _pictures_of_json(text: str, path: storage.PathLike) -> list[CaptionedPicture]:
    document = parse_json(text, path)
    images = document.get("images") if isinstance(document, dict) else None
    if not isinstance(images, list):
        raise InputError("has no list images", path=path, remedy=f"Give {FORMS}.")
    found: dict[str, CaptionedPicture] = {}
    for number, image in enumerate(images):
        with located(path, row=f"images[{number}]"):
            own = _picture_of(image)
            if own.name in found:
                raise InputError(f"names {shown(own.name)!r} a second time", remedy="Keep one of the entries.")
            found[own.name] = own
    return list(found.values())


def _picture_of(image: Any) -> CaptionedPicture:
    if not isinstance(image, dict):
        raise InputError("is not an object")
    name, split, sentences = image.get("filename"), image.get("split"), image.get("sentences")
    if not isinstance(name, str) or not name.strip():
        raise InputError("has no filename")
    if split is not None and split not in SPLITS:
        raise InputError(f"has the split {split!r:.40}, not one of {', '.join(SPLITS)}")
    if not isinstance(sentences, list):
        raise InputError("has no list sentences")
    if not all(isinstance(own, dict) and isinstance(own.get("raw"), str) for own in sentences):
        raise InputError("has a sentence without raw, its text")
    ids = image.get("sentids")
    if isinstance(ids, list) and ids != [own.get("sentid") for own in sentences]:
        raise InputError(
            f"has the sentids {ids!r:.60}, and sentences of others: they are another picture's",
            remedy="Use the file as it was published.",
        )
    return CaptionedPicture(name.strip(), tuple(own["raw"] for own in sentences), split and SPLITS[split])
