"""COCO: captions, persons with boxes and faces, and the pictures' places.

The layout is the one of the published archives, 2014 and 2017 names alike:

    ROOT/annotations/captions_val2017.json             ROOT/val2017/000000000139.jpg
    ROOT/annotations/person_keypoints_val2014.json     ROOT/val2014/COCO_val2014_000000000042.jpg

Other data sets in COCO's format are read by the same rule, which is the format's own: an annotation's `image_id` is the
`id` of an entry of `images`, and that entry's `file_name` is the picture's path below the folder of the split (or below
ROOT). No id is taken from a file's name where an annotation file says another.

Only what is asked for is parsed: the captions; for persons the keypoints too, or the instances where there are none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.data.captions import one_line
from raymotion.data.readers.coco_files import Document, Pictures, agreed, coco_name
from raymotion.data.readers.coco_persons import Box, clip_box, face_from_keypoints, people_in, person_file, person_rows
from raymotion.data.readers.coco_report import CocoReport
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.errors import InputError

__all__ = ["Box", "CocoReport", "clip_box", "coco_url", "face_from_keypoints", "read_coco"]

_PUBLISHED = re.compile(r"(?:^|/)((?:train|val|test|unlabeled)(\d{4}))/((?:COCO_([a-z]+\d{4})_)?\d{12}\.jpg)$")
_SPLIT = re.compile(r"([a-z]+)(\d{4})")


def coco_url(place: str) -> str | None:
    """Public address of a picture of COCO's own, told by the names of its file and its folder; None for others.

    >>> coco_url("/data/coco/train2017/000000000009.jpg")
    'http://images.cocodataset.org/train2017/000000000009.jpg'
    """
    found = _PUBLISHED.search(place.replace("\\", "/"))
    if found is None or found.group(4) != (found.group(1) if found.group(2) in ("2014", "2015") else None):
        return None
    return f"http://images.cocodataset.org/{found.group(1)}/{found.group(3)}"


def read_coco(
    root: storage.PathLike, split: str = "val2017", *, persons: bool = False, min_side: float = 32.0
) -> tuple[pa.Table, CocoReport]:
    """The images of one COCO split as a sample table, in the order of their ids.

    `sample_id` is `coco:` with the id of the annotation files in twelve digits. A picture without an entry has the
    number in its name, where that is how the annotation files number theirs and no other picture has it; else
    `coco:file:` and its path.

    Boxes are given in pixels of the upright picture. COCO's annotators and its tools see the pixels as stored; so where
    EXIF turns or mirrors a picture whose stored size is the annotated one, its boxes are turned with it (also where
    both sizes are the same). Where the upright size alone is the annotated one, they are taken as they are. A picture
    of another size is not the one that was annotated, and its boxes are null.

    Args:
        root: folder that holds `annotations/` and the split's image folder; each may be absent, but not both.
        split: COCO's name, `train2014`, `val2017` ...; it gives the split column (train, val or test).
        persons: one row per person instead of one per image: those that are no crowd, with `body_box` clipped to the
            image. `face_box` is a square around the nose, eyes and ears, if at least three of them are visible: it is
            as high as the largest estimate from ear to ear (x 1.3), eye to eye (x 3) and nose to ear (x 1.5), and its
            centre is the middle of the points across and their mean in height; clipped to the image.
        min_side: persons whose clipped box has a shorter side, in pixels, are left out.

    Returns:
        The table and the counts of what was met on the way.

    Raises:
        InputError: a file that is no COCO annotation file (with the entry, where one is at fault), files that
            contradict each other, nothing to read, or no person annotations.
    """
    if not storage.is_dir(root):
        raise InputError("no such folder", path=root, remedy="Give the folder that holds annotations/ and val2017/.")
    report = CocoReport()
    names = storage.list_names(storage.join(root, "annotations"))
    pictures = Pictures(root, split)
    report.content = pictures.content
    documents: list[Document] = []
    captions: dict[int, list[str]] = {}
    if f"captions_{split}.json" in names:
        documents.append(Document(root, f"captions_{split}.json", report))
        captions = _captions(documents[0], report)
    people: list[tuple[int, int, Mapping[str, Any]]] = []
    if persons:
        documents.append(person_file(root, split, names, report))
        people = list(people_in(documents[-1], report))
    elif not documents:
        for name in (f"instances_{split}.json", f"image_info_{split}.json", f"person_keypoints_{split}.json"):
            if name in names:
                documents.append(Document(root, name, report))
                break
    if not pictures.content.pictures and not any(document.images for document in documents):
        raise InputError(
            f"has neither images in {split}/ nor annotations/captions_{split}.json",
            path=root,
            remedy=f"Check --split; annotations/ holds {', '.join(names[:6]) or 'nothing'}.",
        )
    places = pictures.places(documents)
    images = _joined(split, documents, captions, pictures, places, report)
    rows = list(images.values())
    if persons:
        rows = person_rows(people, images, documents[-1], min_side, report)
    else:
        rows = [row for row in rows if row["image_uri"] or row["captions"]]
    shown = {row["sample_id"].split(":person:")[0]: row for row in rows}
    report.rows, report.images = len(rows), len({row["group_id"] for row in rows})
    report.captions = sum(len(row["captions"]) for row in shown.values())
    report.bodies = sum(1 for row in rows if row.get("body_box"))
    report.faces = sum(1 for row in rows if row.get("face_box"))
    return table_from_rows(rows, where=root), report


def _joined(
    split: str,
    documents: Sequence[Document],
    captions: Mapping[int, list[str]],
    pictures: Pictures,
    places: Mapping[str, tuple[str, str] | None],
    report: CocoReport,
) -> dict[int | str, dict[str, Any]]:
    """A row for each entry, by its id and in the order of ids, then for each picture that has no entry, by its name."""
    entries = agreed(documents, places)
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
    """The COCO number of each picture that has no entry, where it can be told to be its id."""
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
