"""Reads COCO: images, captions, and persons with body and face boxes.

The layout is that of the published archives, with names of 2014 or 2017:

    ROOT/annotations/captions_val2017.json             ROOT/val2017/000000000139.jpg
    ROOT/annotations/person_keypoints_val2014.json     ROOT/val2014/COCO_val2014_000000000042.jpg

Other data sets in COCO's format are read by the rule of the format: an annotation's `image_id` is the `id` of an entry
of `images`, and the entry's `file_name` is the image's path relative to the split's folder (or ROOT). Ids in annotation
files take precedence over numbers in file names.

Only the necessary files are parsed: the captions and, for persons, the keypoints, or the instances without keypoints.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import Metavar, PathText
from raymotion.data.boxes import Box, area, clip_box
from raymotion.data.captions import one_line
from raymotion.data.images.files import FileNames, FolderContent, is_unicode, list_pictures, loosened
from raymotion.data.images.sizes import PictureSize, read_sizes
from raymotion.data.readers.reader import Reader, Report, noted, report_line
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.data.text_rows import read_json
from raymotion.errors import InputError

_PUBLISHED = re.compile(r"(?:^|/)((?:train|val|test|unlabeled)(\d{4}))/((?:COCO_([a-z]+\d{4})_)?\d{12}\.jpg)$")
_SPLIT = re.compile(r"([a-z]+)(\d{4})")
_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.(\w+)", re.IGNORECASE)
# Keypoints of a person in COCO's order: the first five are in the face.
_NOSE, _LEFT_EYE, _RIGHT_EYE, _LEFT_EAR, _RIGHT_EAR = range(5)
_VISIBLE = 2
# Ratio of the face's height, forehead to chin, to the distance of two points (in an adult, the height is about 19 cm:
# ears are 14 cm apart, eyes 6.3 cm, and in profile the nose is 12.5 cm from the ear).
_FACE_HEIGHTS = (
    (_LEFT_EAR, _RIGHT_EAR, 1.3),
    (_LEFT_EYE, _RIGHT_EYE, 3.0),
    (_NOSE, _LEFT_EAR, 1.5),
    (_NOSE, _RIGHT_EAR, 1.5),
)


@dataclass
class CocoReport(Report):
    """Counts from `CocoReader`. All files, entries and annotations are either in the table or counted here.

    Attributes:
        images, captions: distinct images and captions in the table.
        persons, bodies, faces: rows of persons, rows with a body box, and rows with a face box.
        no_image: entries without an image on disk (kept without an address if they have captions).
        empty_captions: captions without readable text, left out.
        crowds, small_boxes, degenerate_boxes: person annotations left out, by reason.
        files: the annotation files that were read.
        persons_asked: whether rows are persons.
        other_splits: splits that ROOT holds annotations of, and that were not read.
    """

    images: int = 0
    captions: int = 0
    persons: int = 0
    bodies: int = 0
    faces: int = 0
    no_image: int = 0
    empty_captions: int = 0
    crowds: int = 0
    small_boxes: int = 0
    degenerate_boxes: int = 0
    files: list[str] = field(default_factory=list)
    persons_asked: bool = False
    other_splits: list[str] = field(default_factory=list)
    no_entry: int = noted("images on disk that no annotation names (kept without captions in a table of images)")
    same_number: int = noted("of them have another image's number and were matched by name")
    dropped_entries: int = noted("entries with neither an image nor a caption left out")
    other_case: int = noted("entries have a file_name that differs from a file's in capital letters only")
    ambiguous_names: int = noted("entries have a file_name that several files could be")
    by_number: int = noted("images go by the other of COCO's two names than in the annotations")
    shared_files: int = noted("entries name the picture of another entry; they are kept in one group")
    repeated_entries: int = noted("entries appear twice, identically")
    stray_captions: int = noted("captions of images that have no entry left out")
    stray_persons: int = noted("persons of images that have no entry left out")
    no_image_persons: int = noted("persons left out with their entries")
    other_objects: int = noted("annotations of other things than persons left out")
    turned_boxes: int = noted("boxes of pictures that EXIF turns or mirrors, annotated as stored; turned with them")
    clipped_boxes: int = noted("boxes reach beyond their picture; clipped")
    other_size_boxes: int = noted("boxes of pictures that have another size than annotated; null")
    outside_boxes: int = noted("boxes lie mostly beyond their picture; null")
    unchecked_boxes: int = noted("boxes not checked, as their picture is not there or cannot be read")

    def lines(self) -> list[str]:
        """Returns lines for rows, images, captions and, for persons, boxes; then the notes."""
        told = [
            report_line("rows", self.rows),
            report_line("images", self.images, self.no_image - self.dropped_entries, "not on disk"),
            report_line("captions", self.captions, self.empty_captions, "empty ones left out"),
        ]
        if self.persons_asked:
            faces = f"{self.bodies:,} with a body box, {self.faces:,} with a face box"
            boxes = f"{self.small_boxes:,} small and {self.degenerate_boxes:,} degenerate boxes"
            told += [
                report_line("persons", f"{self.persons:,}, {faces}"),
                report_line("left out", f"{boxes}, {self.crowds:,} crowds"),
            ]
        if self.other_splits:
            told.append(report_line("not read", f"{', '.join(self.other_splits)} (--split)"))
        return told + self.note_lines()


class CocoReader(Reader):
    """COCO images with their captions. ROOT holds annotations/ and the folder of the split.

    Other data sets in COCO's format are read too: an annotation belongs to the picture that the entry of its image_id
    names in file_name, a path below the folder of the split or below ROOT. Boxes are checked against the pictures.

    \b
    Example:
      raymotion data prepare coco ROOT --split val2017 --out coco.parquet
      raymotion data prepare coco ROOT --split train2017 --persons --out persons.parquet
    """

    root: PathText = Field(description="holds annotations/ and the split's image folder; one of the two may be absent")
    split: Annotated[str, Metavar("NAME")] = Field("val2017", description="COCO's name: train2014, val2017.")
    persons: bool = Field(
        False, description="One row per person, with body and face box, instead of one per image; no crowds."
    )
    min_side: Annotated[float, Metavar("PIXELS")] = Field(
        32.0, description="With --persons: leave out boxes with a shorter side."
    )

    def read(self) -> tuple[pa.Table, CocoReport]:
        """Reads the images of the split, in the order of their ids.

        `sample_id` is `coco:` and the id from the annotation files in twelve digits. For an image without an entry, the
        id is the number in its name if the annotation files use these numbers as ids and it is unique, else
        `coco:file:` and its path. The split column is train, val or test, from the name of the split.

        Boxes are converted to pixels of the upright image. COCO's annotators and tools use the pixels as stored, so the
        boxes of an image with an EXIF orientation are transformed with it if its stored size is the annotated one (also
        if stored and upright size are equal). If only its upright size matches, they stay unchanged. If neither
        matches, the file is not the annotated image, and its boxes are null. `body_box` is clipped to the image;
        `face_box` comes from `face_from_keypoints`.

        Raises:
            InputError: a file is not a COCO annotation file (names the invalid entry, if any), files contradict each
                other, or there are no images or no person annotations.
        """
        if not storage.is_dir(self.root):
            raise InputError(
                "no such folder", path=self.root, remedy="Give the folder that holds annotations/ and val2017/."
            )
        split = self.split
        report = CocoReport(persons_asked=self.persons)
        names = storage.list_names(storage.join(self.root, "annotations"))
        named = {name.removeprefix("captions_").removesuffix(".json") for name in names if name.startswith("captions_")}
        report.other_splits = sorted(named - {split})
        pictures = Pictures(self.root, split)
        report.content = pictures.content
        documents: list[Document] = []
        captions: dict[int, list[str]] = {}
        if f"captions_{split}.json" in names:
            documents.append(Document(self.root, f"captions_{split}.json", report))
            captions = _captions(documents[0], report)
        people: list[tuple[int, int, Mapping[str, Any]]] = []
        if self.persons:
            documents.append(_person_file(self.root, split, names, report))
            people = list(_people_in(documents[-1], report))
        elif not documents:
            for name in (f"instances_{split}.json", f"image_info_{split}.json", f"person_keypoints_{split}.json"):
                if name in names:
                    documents.append(Document(self.root, name, report))
                    break
        if not pictures.content.pictures and not any(document.images for document in documents):
            raise InputError(
                f"has neither images in {split}/ nor annotations/captions_{split}.json",
                path=self.root,
                remedy=f"Check --split; annotations/ holds {', '.join(names[:6]) or 'nothing'}.",
            )
        places = pictures.places(documents)
        images = _joined(split, documents, captions, pictures, places, report)
        rows = list(images.values())
        if self.persons:
            rows = _person_rows(people, images, documents[-1], self.min_side, report)
        else:
            rows = [row for row in rows if row["image_uri"] or row["captions"]]
        shown = {row["sample_id"].split(":person:")[0]: row for row in rows}
        report.rows, report.images = len(rows), len({row["group_id"] for row in rows})
        report.captions = sum(len(row["captions"]) for row in shown.values())
        report.bodies = sum(1 for row in rows if row.get("body_box"))
        report.faces = sum(1 for row in rows if row.get("face_box"))
        return table_from_rows(rows, where=self.root), report


def coco_url(place: str) -> str | None:
    """Returns the public address of an original COCO image, from the names of its file and folder; None for others.

    >>> coco_url("/data/coco/train2017/000000000009.jpg")
    'http://images.cocodataset.org/train2017/000000000009.jpg'
    """
    found = _PUBLISHED.search(place.replace("\\", "/"))
    if found is None or found.group(4) != (found.group(1) if found.group(2) in ("2014", "2015") else None):
        return None
    return f"http://images.cocodataset.org/{found.group(1)}/{found.group(3)}"


class Document:
    """An annotation file, checked while it is read; errors name the file and the entry."""

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
        """Yields position and value of each object in the list `key`, after checking the types of `required` fields."""
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
    """The images of the split, searchable by file_name."""

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
        """Returns the address of the image `file_name` and how it was found (`name` or `number`); None if missing."""
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
        # 000000000139.jpg and COCO_val2014_000000000139.jpg are COCO's two names of the same image.
        key = coco_name(below)
        same = self.by_number.get(key, []) if key is not None else []
        return (self.content.address(same[0]), "number") if len(same) == 1 else None

    def places(self, documents: Sequence[Document]) -> dict[str, tuple[str, str] | None]:
        """Returns the result of `find` for each file_name."""
        names = {entry["file_name"] for document in documents for entry in document.images.values()}
        return {name: self.find(name) for name in sorted(names)}


def coco_name(name: str) -> tuple[str, int, str] | None:
    """Returns folder, number and extension of a path if the file name has COCO's form; otherwise None."""
    folder, file = posixpath.split(name.replace("\\", "/"))
    match = _NAME.fullmatch(file)
    if match is None:
        return None
    extension = match.group(2).lower()
    return folder, int(match.group(1)), "jpg" if extension == "jpeg" else extension


def _agreed(documents: Sequence[Document], places: Mapping[str, tuple[str, str] | None]) -> dict[int, dict[str, Any]]:
    """Merges the entries of all files by id; later files take precedence. Raises if two files contradict each other."""

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


def _joined(
    split: str,
    documents: Sequence[Document],
    captions: Mapping[int, list[str]],
    pictures: Pictures,
    places: Mapping[str, tuple[str, str] | None],
    report: CocoReport,
) -> dict[int | str, dict[str, Any]]:
    """Returns a row for each entry, by id in ascending order, then for each image without an entry."""
    entries = _agreed(documents, places)
    known = _SPLIT.fullmatch(split)
    column = known.group(1) if known and known.group(1) in SPLITS else None
    rows: dict[int | str, dict[str, Any]] = {}
    groups: dict[str, str] = {}

    def add(key: int | str, sample_id: str, place: tuple[str, str] | None, name: str, own: list[str]) -> None:
        rows[key] = {
            "sample_id": sample_id,
            "group_id": groups.setdefault(place[0] if place else name, sample_id),
            "image_uri": place[0] if place else None,
            "captions": own,
            "split": column,
            "source": "coco",
        }

    for number in sorted(entries):
        name = entries[number]["file_name"]
        place = places[name]
        if place is None:
            report.no_image += 1
            report.dropped_entries += not captions.get(number)
            key = coco_name(name.removeprefix(f"{split}/"))
            several = name in pictures.names.ambiguous or (key is not None and len(pictures.by_number.get(key, ())) > 1)
            report.ambiguous_names += several
            report.other_case += not several and pictures.names.other_case(name) is not None
        else:
            report.by_number += place[1] == "number"
        report.shared_files += (place[0] if place else name) in groups
        add(number, f"coco:{number:012d}", place, name, captions.get(number, []))
    free = [name for name in pictures.content.pictures if pictures.content.address(name) not in groups]
    report.no_entry = len(free)
    for name, own in _numbers_of(free, entries, report).items():
        sample_id = f"coco:file:{name}" if own is None else f"coco:{own:012d}"
        add(name if own is None else own, sample_id, (pictures.content.address(name), "name"), name, [])
    return dict(sorted(rows.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _numbers_of(
    names: Iterable[str], entries: Mapping[int, Mapping[str, Any]], report: CocoReport
) -> dict[str, int | None]:
    """Returns the COCO number of each image without an entry; None if it cannot serve as the id."""
    keys = {number: coco_name(entry["file_name"]) for number, entry in entries.items()}
    are_ids = all(key is not None and key[1] == number for number, key in keys.items())
    numbers = {name: key[1] if (key := coco_name(name)) else None for name in names}
    taken = Counter(number for number in numbers.values() if number is not None)
    result: dict[str, int | None] = {}
    for name, number in numbers.items():
        if number is not None and (number in entries or taken[number] > 1):
            report.same_number += are_ids
            number = None
        result[name] = number if are_ids else None
    return result


def _captions(document: Document, report: CocoReport) -> dict[int, list[str]]:
    numbered: dict[int, list[tuple[int, str]]] = {}
    for _, entry in document.entries("annotations", {"id": int, "image_id": int, "caption": str}):
        text = one_line(entry["caption"])
        if entry["image_id"] not in document.images:
            report.stray_captions += 1
        elif text:
            numbered.setdefault(entry["image_id"], []).append((entry["id"], text))
        else:
            report.empty_captions += 1
    return {image: [text for _, text in sorted(pairs)] for image, pairs in numbered.items()}


def _person_file(root: storage.PathLike, split: str, names: Sequence[str], report: CocoReport) -> Document:
    for name in (f"person_keypoints_{split}.json", f"instances_{split}.json"):
        if name in names:
            return Document(root, name, report)
    raise InputError(
        f"has neither annotations/person_keypoints_{split}.json nor instances_{split}.json",
        path=root,
        remedy="Persons need one of them; without --persons the captions do.",
    )


def _people_in(document: Document, report: CocoReport) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yields image id, annotation id and annotation of each person; skips crowds."""
    categories = {entry["id"]: entry["name"] for _, entry in document.entries("categories", {"id": int, "name": str})}
    person = {number for number, name in categories.items() if name == "person"}
    if not person:
        others = ", ".join(repr(name) for name in list(categories.values())[:5]) or "none"
        raise InputError(
            f"has no category 'person' (its categories: {others})",
            path=document.path,
            remedy="Name the category of persons 'person'.",
        )
    required = {"id": int, "image_id": int, "category_id": int, "bbox": list}
    seen: dict[int, int] = {}
    for position, entry in document.entries("annotations", required):
        if entry["category_id"] not in person:
            report.other_objects += 1
            continue
        where = f"annotations[{position}]"
        if seen.setdefault(entry["id"], position) != position:
            raise InputError(
                f"id {entry['id']} appears twice, first in annotations[{seen[entry['id']]}]",
                path=document.path,
                row=where,
                remedy="An annotation's id is unique.",
            )
        if entry.get("iscrowd"):
            report.crowds += 1
            continue
        for name, size in (("bbox", 4), ("keypoints", 51)):
            values = entry.get(name)
            if values is None:
                continue
            if not isinstance(values, list) or len(values) != size or not all(_is_number(v) for v in values):
                raise InputError(f"{name} is not {size} numbers", path=document.path, row=where)
        if entry["image_id"] not in document.images:
            report.stray_persons += 1
            continue
        yield entry["image_id"], entry["id"], entry


def _is_number(value: object) -> bool:
    """Returns whether a JSON value is a number that fits into a float."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63)


def _person_rows(
    people: Sequence[tuple[int, int, Mapping[str, Any]]],
    images: Mapping[int | str, Mapping[str, Any]],
    document: Document,
    min_side: float,
    report: CocoReport,
) -> list[dict[str, Any]]:
    """Returns a row for each person, ordered by image and annotation, with boxes in pixels of the upright image."""
    used = sorted({number for number, *_ in people})
    sizes = read_sizes(uri for number in used if (uri := images[number]["image_uri"]))
    rows = []
    for number, annotation, entry in sorted(people, key=lambda item: item[:2]):
        image = images[number]
        if not image["image_uri"] and not image["captions"]:
            report.no_image_persons += 1
            continue
        read = sizes.get(image["image_uri"] or "")
        size = read if isinstance(read, PictureSize) else None
        width, height = _annotated_size(number, document, size)
        x, y, w, h = (float(v) for v in entry["bbox"])
        body = clip_box((x, y, x + w, y + h), width, height)
        if body is None:
            report.degenerate_boxes += 1
            continue
        points = entry.get("keypoints")
        face = face_from_keypoints(points, width, height) if points else None
        frame = "upright" if size is None else size.frame_of((width, height))
        if frame is None:
            report.other_size_boxes += 1
            body = face = None
        elif area(body) < w * h / 2 or (size is not None and size.contradicts((x, y, x + w, y + h), frame)):
            report.outside_boxes += 1
            body = face = None
        elif min(body[2] - body[0], body[3] - body[1]) < min_side:
            report.small_boxes += 1
            continue
        else:
            report.unchecked_boxes += size is None
            report.clipped_boxes += max(abs(a - b) for a, b in zip(body, (x, y, x + w, y + h), strict=True)) > 1.0
            if size is not None and frame == "stored" and size.orientation != 1:
                report.turned_boxes += 1
                body = size.upright(body)
                face = None if face is None else size.upright(face)
        sample_id = f"coco:{number:012d}:person:{annotation}"
        rows.append({**image, "sample_id": sample_id, "body_box": body, "face_box": face})
    report.persons = len(rows)
    return rows


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) and math.isfinite(value) and value == int(value) else None


def _annotated_size(number: int, document: Document, size: PictureSize | None) -> tuple[int, int]:
    """Returns the annotated width and height of an image; if missing, the size of the file if it is stored upright."""
    width, height = (_whole(document.images[number].get(name)) for name in ("width", "height"))
    if width is None and height is None and size is not None and size.orientation == 1:
        return size.stored
    if width is None or height is None:
        raise InputError(
            f"image {number} has no width and height to clip boxes to",
            path=document.path,
            row=f"images, id {number}",
        )
    return width, height


def face_from_keypoints(keypoints: Sequence[float], width: int, height: int) -> Box | None:
    """Estimates a face box from COCO keypoints (17 times x, y, visibility).

    The box is a square around the nose, eyes and ears. Its side is the largest estimate from the distances ear to ear
    (x 1.3), eye to eye (x 3) and nose to ear (x 1.5); its centre is the horizontal midrange and the vertical mean of
    the points. It is clipped to the image of `width` x `height` pixels. None if fewer than three of the five points are
    visible.
    """
    points = {
        i: (float(keypoints[3 * i]), float(keypoints[3 * i + 1])) for i in range(5) if keypoints[3 * i + 2] == _VISIBLE
    }
    if len(points) < 3:
        return None
    # Any three of the five points include at least one of the pairs.
    side = max(math.dist(points[a], points[b]) * k for a, b, k in _FACE_HEIGHTS if a in points and b in points)
    across = [x for x, _ in points.values()]
    cx, cy = (min(across) + max(across)) / 2, sum(y for _, y in points.values()) / len(points)
    return clip_box((cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2), width, height)
