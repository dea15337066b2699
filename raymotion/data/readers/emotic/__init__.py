"""Reads EMOTIC: persons in images, with 26 categories and valence, arousal and dominance (Kosti et al. 2017).

    ROOT/Annotations/Annotations.mat        ROOT/emotic/mscoco/images/COCO_val2014_000000562243.jpg
    ROOT/emotic_pre/train.csv, val.csv, test.csv (the public conversion), instead of the .mat

Differences from the public conversion (mat2py, which keeps 23,266 / 3,315 / 7,203 persons): a person without VAD keeps
its labels; a box without an area becomes null, and the person is kept; boxes are clipped to the decoded image, not to
the annotated size, and are not rounded; the train copies of images that are also in val or test are left out.

The annotated body boxes are in pixels of the image as stored, since the browsers used for annotation and MATLAB's
imread ignore EXIF. They are turned or mirrored with each image whose stored size is the annotated one, and stay
unchanged if only the upright size matches. A box is null if the image has neither the annotated size nor its swap (a
known defect of the annotations, with correct boxes), or if less than half of the box lies inside the image.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.config import File, Metavar, PathText
from raymotion.data.boxes import Box, area, clip_box
from raymotion.data.images.decode import ImageMissing
from raymotion.data.images.files import FileNames, FolderContent, list_pictures
from raymotion.data.images.sizes import PictureSize, read_sizes
from raymotion.data.readers.emotic.csv_file import read_csv
from raymotion.data.readers.emotic.mat_file import read_mat
from raymotion.data.readers.emotic.persons import Person
from raymotion.data.readers.emotic.report import EmoticReport, SplitReport, is_report
from raymotion.data.readers.reader import Reader
from raymotion.data.samples import SPLITS, table_from_rows
from raymotion.data.text_rows import delimited_rows
from raymotion.errors import InputError, located
from raymotion.folders.outputs import require_replaceable
from raymotion.vocabulary import EMOTIC_26

FACE_COLUMNS = ("split", "index", "x1", "y1", "x2", "y2")
FACE_FILE = "filename"  # an optional column: file name of the person's image
_MAT_PLACES = ("Annotations/Annotations.mat", "Annotations.mat", "annotations/Annotations.mat")
_CSV_PLACES = ("emotic_pre", "", "Annotations", "annotations")


class EmoticReader(Reader):
    """EMOTIC, one row for each person, its known defects found. ROOT holds Annotations/ and emotic/ as published.

    Also read: the train.csv, val.csv and test.csv of the public conversion, in ROOT or ROOT/emotic_pre.

    \b
    Example:
      raymotion data prepare emotic ROOT --out emotic.parquet
      raymotion data prepare emotic demo/emotic --faces demo/emotic/faces.csv --report emotic.json --out e.parquet
    """

    root: PathText
    annotations: Annotated[PathText, Metavar("PATH")] | None = Field(
        None,
        description="Annotations.mat, one of train.csv, val.csv, test.csv, or a folder with either. "
        "Default: found in ROOT.",
    )
    faces: File | None = Field(
        None,
        description="Csv of face boxes in pixels of the upright picture: split, index, x1, y1, x2, y2 (empty where no "
        "face is visible) and optionally filename, which must match. Default: none; EMOTIC has no face boxes.",
    )
    keep_missing: bool = Field(False, description="Keep persons whose image is not there, for counting labels.")
    keep_leaked: bool = Field(
        False,
        description="Keep the train copies of images that are in val or test too. Training refuses such a table.",
    )
    keep_suspect_boxes: bool = Field(
        False, description="Keep body boxes that a swapped image size has cut, instead of none."
    )
    report: File | None = Field(None, description="Write all counts and findings as JSON. Default: not.")

    def read(self) -> tuple[pa.Table, EmoticReport]:
        """Reads one row for each person, in the order of the annotations, and writes `report` if set.

        `labels` is the union of the annotators' choices, `label_weights` the share of annotators who chose each (null
        if a csv has only the union); valence, arousal and dominance are means on EMOTIC's scale of 1 to 10. The number
        in `sample_id` counts all persons of a split, so leaving out a person does not change other ids.

        Raises:
            InputError: annotations or images are missing or invalid (names the row), or `report` is an existing file
                that is not a report.
        """
        if self.report:
            require_replaceable(self.report, "a report on EMOTIC", is_report)
        root = self.root
        if not storage.is_dir(root):
            raise InputError("no such folder", path=root, remedy="Give the folder that holds Annotations/ and emotic/.")
        report = EmoticReport()
        persons = _read_annotations(root, self.annotations, report)
        boxes = _read_faces(self.faces, {(p.split, p.index): p for p in persons}) if self.faces else {}
        _count_annotated(persons, report)
        sizes, places = _pictures(root, persons, self.keep_missing, report)
        leaked = _leaks(persons, report)
        rows: list[dict[str, Any]] = []
        for person in persons:
            size = sizes.get(person.image)
            labels, name = person.labels(), person.sample_id
            if size is None and not self.keep_missing:
                report.add("missing_person", name, person.folder)
            elif not labels:
                report.add("unlabelled_person", name, person.folder)
            elif (person.split, person.image) in leaked and not self.keep_leaked:
                report.add("leaked_person", name, person.folder)
            else:
                face = boxes.get((person.split, person.index))
                rows.append(
                    {
                        "sample_id": name,
                        "group_id": f"emotic:{person.image}",
                        "image_uri": places[person.image] if size else None,
                        "body_box": _body_box(person, size, self.keep_suspect_boxes, report),
                        "face_box": _face_box(person, face, size, report),
                        "labels": list(labels),
                        "label_weights": person.shares(),
                        "split": person.split,
                        "source": "emotic",
                        **_vad(person, report),
                    }
                )
        _count_rows(rows, report)
        if not rows:
            raise InputError("no person is left", path=root, remedy="Check the annotations, or use --keep-missing.")
        table = table_from_rows(rows, EMOTIC_26, scale=(1.0, 10.0), where=self.annotations or root)
        if self.report:
            storage.write_json(self.report, report.to_dict())
        return table, report


def _read_annotations(
    root: storage.PathLike, annotations: storage.PathLike | None, report: EmoticReport
) -> list[Person]:
    if annotations is not None and not storage.exists(annotations):
        raise InputError("no such file or folder", path=annotations, remedy="Check --annotations.")
    if annotations is not None and not storage.is_dir(annotations):
        path = str(annotations)
        stem = path.replace("\\", "/").rsplit("/", 1)[-1].lower()
        if storage.suffix(path) == ".csv":
            split = next((name for name in SPLITS if name in stem), None)
            if split is None:
                raise InputError("names no split", path=path, remedy="Call it train.csv, val.csv or test.csv.")
            report.files.append(path)
            return read_csv(path, split)
        report.files.append(path)
        return _mat(path, report)
    base = root if annotations is None else annotations
    for place in _MAT_PLACES:
        path = storage.join(base, place)
        if storage.exists(path):
            report.files.append(path)
            return _mat(path, report)
    for place in _CSV_PLACES:
        folder = storage.join(base, place) if place else str(base)
        found = [split for split in SPLITS if storage.exists(storage.join(folder, f"{split}.csv"))]
        if found:
            report.files += [storage.join(folder, f"{split}.csv") for split in found]
            return [p for split in found for p in read_csv(storage.join(folder, f"{split}.csv"), split)]
    raise InputError(
        "has neither Annotations/Annotations.mat nor train.csv, val.csv and test.csv",
        path=base,
        remedy="Say where they are with --annotations.",
    )


def _mat(path: storage.PathLike, report: EmoticReport) -> list[Person]:
    empty: list[tuple[str, str]] = []
    persons = read_mat(path, empty)
    for folder, name in empty:
        report.add("no_persons", f"{folder}/{name}" if folder else name, folder)
    return persons


def _count_annotated(persons: Sequence[Person], report: EmoticReport) -> None:
    images: dict[str, set[str]] = defaultdict(set)
    seen: set[tuple[str, str, Box]] = set()
    for person in persons:
        split = report.splits.setdefault(person.split, SplitReport())
        split.persons += 1
        images[person.split].add(person.image)
        if person.labels():
            split.annotators[len(person.choices or ())] += 1
        split.gender[person.gender or "unknown"] += 1
        split.age[person.age or "unknown"] += 1
        united = {label for own in person.choices or () for label in own}
        if person.choices and person.combined is not None and united != set(person.combined):
            report.add("odd_union", person.sample_id, person.folder)
        if person.box is not None:
            key = (person.split, person.image, person.box)
            if key in seen:
                report.add("duplicate_person", person.sample_id, person.folder)
            seen.add(key)
    for name, split in report.splits.items():
        split.images = len(images[name])


def _pictures(
    root: storage.PathLike, persons: Sequence[Person], keep_missing: bool, report: EmoticReport
) -> tuple[dict[str, PictureSize], dict[str, str]]:
    """Returns the sizes of all readable images and the addresses of all images, by FOLDER/FILENAME."""
    folders = {person.image: person.folder for person in persons}
    tops = sorted({folder.split("/")[0] for folder in folders.values()})
    inner = storage.join(storage.absolute(root), "emotic")
    base = inner if any(storage.is_dir(storage.join(inner, top)) for top in tops) else storage.absolute(root)
    places = _places(base, folders, report)
    read = read_sizes(places.values())
    sizes: dict[str, PictureSize] = {}
    for image, place in places.items():
        found = read[place]
        if isinstance(found, PictureSize):
            sizes[image] = found
        else:
            kind = "missing_image" if isinstance(found, ImageMissing) else "unreadable_image"
            report.add(kind, image, folders[image])
    if persons and not sizes and not keep_missing:
        raise InputError(
            f"holds none of the {len(places):,} images of the annotations (looked for {next(iter(places.values()))})",
            path=root,
            remedy="Give the folder that holds emotic/, or use --keep-missing.",
        )
    for image, annotated in {person.image: person.size for person in persons}.items():
        size = sizes.get(image)
        if size is None or annotated is None:
            continue
        frame, swapped = size.frame_of(annotated), _is_swapped(annotated, size)
        if (frame == "stored" or swapped) and size.orientation != 1:
            report.add("turned_image", image, folders[image])
        if frame is None:
            report.add("transposed_size" if swapped else "other_size", image, folders[image])
    return sizes, places


def _places(base: str, folders: Mapping[str, str], report: EmoticReport) -> dict[str, str]:
    """Returns the address of each image, by FOLDER/FILENAME; counts files in these folders without annotations."""
    contents: dict[str, tuple[FolderContent, FileNames]] = {}
    for folder in sorted(set(folders.values())):
        content = list_pictures(storage.join(base, folder) if folder else base)
        contents[folder] = content, FileNames(content.pictures, content.base, content.aliases)
    places: dict[str, str] = {}
    used: dict[str, set[str]] = defaultdict(set)
    for image, folder in folders.items():
        content, names = contents[folder]
        name = image.removeprefix(f"{folder}/") if folder else image
        found = names.find(name)
        places[image] = content.address(name if found is None else found)
        used[folder].add(name if found is None else found)
    if any(used[folder] & names.files for folder, (_, names) in contents.items()):
        for folder, (content, _) in contents.items():
            start = f"{folder}/" if folder else ""
            below = tuple(
                f"{other.removeprefix(start)}/" for other in contents if other != folder and other.startswith(start)
            )
            for name in content.pictures:
                if name not in used[folder] and not name.startswith(below):
                    report.add("unused_image", f"{start}{name}", folder)
    return places


def _is_swapped(annotated: tuple[float, float], size: PictureSize) -> bool:
    """Returns whether the annotated width and height are swapped; only for images that EXIF does not turn sideways."""
    return size.orientation <= 4 and annotated == (size.height, size.width)


def _leaks(persons: Sequence[Person], report: EmoticReport) -> set[tuple[str, str]]:
    """Returns (split, image) of the copies to leave out: all except the last in the order train, val, test."""
    labels: dict[str, dict[str, list[tuple[str, ...]]]] = defaultdict(lambda: defaultdict(list))
    folders: dict[str, str] = {}
    for person in persons:
        labels[person.image][person.split].append(person.labels())
        folders[person.image] = person.folder
    out: set[tuple[str, str]] = set()
    for image, splits in labels.items():
        if len(splits) == 1:
            continue
        report.add("leaked_image", image, folders[image])
        first, *others = (sorted(value) for value in splits.values())
        if any(other != first for other in others):
            report.add("leak_with_other_labels", image, folders[image])
        out |= {(split, image) for split in sorted(splits, key=SPLITS.index)[:-1]}
    return out


def _body_box(person: Person, size: PictureSize | None, keep_suspect: bool, report: EmoticReport) -> Box | None:
    box = person.box
    if box is None or not _has_area(box):
        report.add("degenerate_box", person.sample_id, person.folder)
        return None
    if size is None:
        report.add("unchecked_box", person.sample_id, person.folder)
        return box
    # Without an annotated size, the frame of an image with an EXIF orientation is unknown.
    annotated = person.size or (size.stored if size.orientation == 1 else None)
    frame = size.frame_of(annotated) if annotated else None
    if frame is not None and size.contradicts(box, frame):
        report.add("outside_box", person.sample_id, person.folder)
        return None
    if frame == "stored":
        box = size.upright(box)
    elif frame is None and not (annotated and _is_swapped(annotated, size)):
        report.add("other_size_box", person.sample_id, person.folder)
        return None
    elif _is_cut(box, person.size, size):
        report.add("suspect_box", person.sample_id, person.folder)
        if not keep_suspect:
            return None
    if frame is None:  # a swapped size: the box is still in stored pixels
        box = size.upright(box)
    clipped = clip_box(box, size.width, size.height)
    if clipped is None:
        report.add("degenerate_box", person.sample_id, person.folder)
        return None
    if area(clipped) < area(box) / 2:
        report.add("outside_box", person.sample_id, person.folder)
        return None
    if clipped != box:
        report.add("clipped_box", person.sample_id, person.folder)
    return clipped


def _is_cut(box: Box, annotated: tuple[float, float] | None, size: PictureSize) -> bool:
    """Returns whether the box was cut at the limit of a swapped size, inside the image."""
    if annotated is None or not _is_swapped(annotated, size) or size.width == size.height:
        return False
    return (annotated[0] < size.width and box[2] == annotated[0]) or (
        annotated[1] < size.height and box[3] == annotated[1]
    )


def _has_area(box: Box) -> bool:
    return all(math.isfinite(v) for v in box) and box[2] - box[0] >= 1 and box[3] - box[1] >= 1


def _face_box(person: Person, box: Box | None, size: PictureSize | None, report: EmoticReport) -> Box | None:
    if box is None or size is None:
        return box
    clipped = clip_box(box, size.width, size.height)
    if clipped is None or area(clipped) < area(box) / 2:
        report.add("outside_face", person.sample_id, person.folder)
        return None
    if clipped != box:
        report.add("clipped_face", person.sample_id, person.folder)
    if size.orientation != 1:
        report.add("turned_face", person.sample_id, person.folder)
    return clipped


def _vad(person: Person, report: EmoticReport) -> dict[str, float | None]:
    values: Sequence[float | None] = person.vad or (None, None, None)
    if person.vad is None:
        report.add("no_vad", person.sample_id, person.folder)
    elif not all(1.0 <= value <= 10.0 for value in person.vad):
        report.add("vad_beyond_scale", person.sample_id, person.folder)
        values = (None, None, None)
    return dict(zip(("valence", "arousal", "dominance"), values, strict=True))


def _count_rows(rows: Sequence[Mapping[str, Any]], report: EmoticReport) -> None:
    images: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        split = report.splits[row["split"]]
        split.rows += 1
        split.labelled += 1
        images[row["split"]].add(row["group_id"])
        for label in row["labels"]:
            split.positives[EMOTIC_26.index(label)] += 1
    for name, split in report.splits.items():
        split.row_images = len(images[name])
    report.splits = {name: report.splits[name] for name in SPLITS if name in report.splits}
    report.rows = len(rows)
    report.images = len({row["group_id"] for row in rows})
    report.bodies = sum(row["body_box"] is not None for row in rows)
    report.faces = sum(row["face_box"] is not None for row in rows)


def _read_faces(path: storage.PathLike, known: Mapping[tuple[str, int], Person]) -> dict[tuple[str, int], Box]:
    """Reads face boxes from a csv, by split and index of the person; rows with empty cells are skipped."""
    result: dict[tuple[str, int], Box] = {}
    lines: dict[tuple[str, int], int] = {}
    theirs = "Give the faces of these annotations."
    for line, row in delimited_rows(storage.read_text(path), path, FACE_COLUMNS, optional=(FACE_FILE,)):
        with located(path, line=line):
            split, index = row["split"].strip(), row["index"].strip()
            key = split, int(index) if index.isascii() and index.isdigit() and len(index) < 10 else -1
            if key not in known:
                reason = f"the annotations have no person {index[:20]} in the split {split[:20]!r}"
                raise InputError(reason, remedy=theirs)
            # An index does not identify the image: new annotations number their persons anew.
            if (name := (row.get(FACE_FILE) or "").strip()) and name != known[key].filename:
                reason = f"is of {name}, person {index} of the split {split!r} is in {known[key].filename}"
                raise InputError(reason, remedy=theirs)
            if lines.setdefault(key, line) != line:
                reason = f"the person {index} of {split} appears twice, first in line {lines[key]}"
                raise InputError(reason, remedy="Give one face for each person.")
            cells = [row[name].strip() for name in FACE_COLUMNS[2:]]
            if not any(cells):
                continue
            try:
                x1, y1, x2, y2 = (float(cell) for cell in cells)
            except ValueError as error:
                raise InputError(f"{','.join(cells)!r} is not a box of four numbers") from error
            if not _has_area((x1, y1, x2, y2)):
                raise InputError(f"the box {','.join(cells)} has no area")
            result[key] = (x1, y1, x2, y2)
    return result
