"""The files of a data set in COCO's format: annotation files, and the pictures that their entries mean."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raymotion import storage
from raymotion.data.images.files import FileNames, FolderContent, is_unicode, list_pictures, loosened
from raymotion.data.readers.coco_report import CocoReport
from raymotion.data.readers.text_rows import read_json
from raymotion.errors import InputError

_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.(\w+)", re.IGNORECASE)


class Document:
    """One annotation file, checked as it is read: a fault is named with its file and entry."""

    def __init__(self, root: storage.PathLike, name: str, report: CocoReport) -> None:
        self.path = storage.join(root, "annotations", name)
        value = read_json(self.path)
        if not isinstance(value, dict):
            kind = type(value).__name__
            raise InputError(f"is a JSON {kind}, not an object with images and annotations", path=self.path)
        self.value = value
        self.images = self._images(report)
        report.files.append(name)

    def entries(self, key: str, required: Mapping[str, type]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of the list `key` with their positions; each has the `required` fields in the right type."""
        values = self.value.get(key)
        if not isinstance(values, list):
            raise InputError(f"has no list {key!r}", path=self.path, remedy="Is it a COCO annotation file?")
        for position, entry in enumerate(values):
            where = f"{key}[{position}]"
            if not isinstance(entry, dict):
                raise InputError("is not an object", path=self.path, row=where)
            for name, kind in required.items():
                if name not in entry:
                    raise InputError(f"lacks {name!r}", path=self.path, row=where)
                if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
                    text = json.dumps(entry[name])[:40]
                    raise InputError(
                        f"{name} is {text}, which is not what COCO allows there",
                        path=self.path,
                        row=where,
                        remedy="COCO's ids are whole numbers: renumber the images, and the annotations with them."
                        if kind is int
                        else None,
                    )
                if kind is str and not is_unicode(entry[name]):
                    text = ascii(entry[name])[:60]
                    raise InputError(f"{text} contains half a character (a lone surrogate)", path=self.path, row=where)
            yield position, entry

    def _images(self, report: CocoReport) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for position, entry in self.entries("images", {"id": int, "file_name": str}):
            before = found.setdefault(entry["id"], entry)
            if before is entry:
                continue
            if any(before.get(name) != entry.get(name) for name in ("file_name", "width", "height")):
                told = " and as ".join(
                    f"{e['file_name']!r} ({e.get('width')} x {e.get('height')})" for e in (before, entry)
                )
                raise InputError(
                    f"id {entry['id']} appears twice: as {told}",
                    path=self.path,
                    row=f"images[{position}]",
                    remedy="An id is unique: renumber the images, and the annotations with them.",
                )
            report.repeated_entries += 1
        return found


class Pictures:
    """The pictures of the split, and which of them each file_name means."""

    def __init__(self, root: storage.PathLike, split: str) -> None:
        self.root, self.split = storage.absolute(root), split
        self.content = list_pictures(storage.join(self.root, split))
        self.names = FileNames(self.content.pictures, self.content.base, self.content.aliases)
        self._others: dict[str, tuple[FolderContent, FileNames] | None] = {}
        self.by_number: dict[tuple[str, int, str], list[str]] = {}
        for name in self.content.pictures:
            if (key := coco_name(name)) is not None:
                self.by_number.setdefault(key, []).append(name)

    def find(self, file_name: str) -> tuple[str, str] | None:
        """Address of the picture `file_name`, and how it was found (`name` or `number`); None if it is not there."""
        below = file_name.removeprefix(f"{self.split}/")
        found = self.names.find(file_name) or self.names.find(below)
        if found is not None:
            return self.content.address(found), "name"
        top, slash, rest = file_name.partition("/")
        if slash and top not in ("", ".", "..", self.split) and not storage.is_remote(file_name):
            if top not in self._others:
                content = list_pictures(storage.join(self.root, top))
                self._others[top] = (content, FileNames(content.pictures, content.base)) if content.pictures else None
            other = self._others[top]
            if other is not None and (found := other[1].find(rest)) is not None:
                return other[0].address(found), "name"
        # 000000000139.jpg and COCO_val2014_000000000139.jpg are COCO's own two names of one picture.
        key = coco_name(below)
        same = self.by_number.get(key, []) if key is not None else []
        return (self.content.address(same[0]), "number") if len(same) == 1 else None

    def places(self, documents: Sequence[Document]) -> dict[str, tuple[str, str] | None]:
        """What `find` gives for each file_name, by name."""
        names = {entry["file_name"] for document in documents for entry in document.images.values()}
        return {name: self.find(name) for name in sorted(names)}


def coco_name(name: str) -> tuple[str, int, str] | None:
    """Folder, number and extension of a path whose file goes by a name of COCO's form."""
    folder, file = posixpath.split(name.replace("\\", "/"))
    match = _NAME.fullmatch(file)
    if match is None:
        return None
    extension = match.group(2).lower()
    return folder, int(match.group(1)), "jpg" if extension == "jpeg" else extension


def agreed(documents: Sequence[Document], places: Mapping[str, tuple[str, str] | None]) -> dict[int, dict[str, Any]]:
    """The entries of all files by id, if no two files contradict each other; of sizes the last file's count."""

    def picture(entry: Mapping[str, Any]) -> str:
        place = places[entry["file_name"]]
        return place[0] if place else loosened(entry["file_name"])

    entries: dict[int, dict[str, Any]] = {}
    for number, document in enumerate(documents):
        for other in documents[:number]:
            ids: dict[str, set[int]] = {}
            for image_id, entry in other.images.items():
                ids.setdefault(picture(entry), set()).add(image_id)
            own: dict[str, set[int]] = {}
            for image_id, entry in document.images.items():
                own.setdefault(picture(entry), set()).add(image_id)
                before = other.images.get(image_id)
                if before is not None and picture(before) != picture(entry):
                    raise InputError(
                        f"image {image_id} is {entry['file_name']!r} here and {before['file_name']!r} in {other.path}",
                        path=document.path,
                        remedy="The ids of the two files must mean the same pictures.",
                    )
            for name, numbers in own.items():
                if name in ids and not numbers & ids[name]:
                    raise InputError(
                        f"{posixpath.basename(name)!r} is image {min(numbers)} here and {min(ids[name])} in "
                        f"{other.path}",
                        path=document.path,
                        remedy="The ids of the two files must mean the same pictures.",
                    )
        for image_id, entry in document.images.items():
            entries[image_id] = {**entries.get(image_id, {}), **entry}
    return entries
