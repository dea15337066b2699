"""A small EMOTIC: pictures, `Annotations.mat` and the csv files of the public conversion, with planted defects.

Pictures are in `synthetic_emotic_pictures`, annotators in `synthetic_emotic_labels`; this file lays out and writes. The
same seed gives the same bytes.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.data.boxes import Box
from raymotion.data.readers.emotic import FACE_COLUMNS, FACE_FILE
from raymotion.data.readers.emotic.csv_file import COLUMNS
from raymotion.data.readers.reader import report_line
from raymotion.data.samples import SPLITS
from raymotion.data.synthetic.collections import claim_dataset
from raymotion.data.synthetic.emotic_labels import ANNOTATORS, Vad, annotate
from raymotion.data.synthetic.emotic_pictures import HEIGHT, WIDTH, draw_picture, draw_traits
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.vocabulary import EMOTIC_26

MAT_NAME = "Annotations/Annotations.mat"
FACES_NAME, DEFECTS_NAME = "faces.csv", "defects.json"
NO_FACE_SHARE = 0.15
QUALITY = 85

# Image folders with EMOTIC's names of files in them, and the share of the images that each has.
_FOLDERS: tuple[tuple[str, str, float], ...] = (
    ("mscoco/images", "COCO_val2014_{:012d}.jpg", 0.5),
    ("framesdb/images", "frame_{:05d}.jpg", 0.2),
    ("ade20k/images", "ADE_train_{:08d}.jpg", 0.15),
    ("emodb_small/images", "{:06d}.jpg", 0.15),
)
# 65 % train, 15 % val and 20 % test, in every run of twenty images.
_TWENTY = ("train",) * 13 + ("val",) * 3 + ("test",) * 4
_PERSONS = ((1, 2, 3, 4), (0.7, 0.2, 0.07, 0.03))


@dataclass
class _Person:
    traits: tuple[Sequence[float], ...]
    box: Box
    face: Box | None
    choices: list[list[str]]
    vads: list[Vad]
    gender: str
    age: str

    @property
    def union(self) -> list[str]:
        chosen = {label for own in self.choices for label in own}
        return [label for label in EMOTIC_26.labels if label in chosen]

    @property
    def mean_vad(self) -> list[float]:
        return [round(sum(vad[i] for vad in self.vads) / len(self.vads), 4) for i in range(3)]


@dataclass
class _Image:
    split: str
    folder: str
    name: str
    persons: list[_Person]
    size: tuple[int, int] = (WIDTH, HEIGHT)
    written: bool = True
    defects: list[tuple[str, _Person | None]] = field(default_factory=list)


@dataclass
class SyntheticEmotic:
    """What `write_emotic` wrote: images, persons in all splits, persons with a visible face, defects by kind, files."""

    images: int = 0
    persons: int = 0
    faces: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    defects: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What `raymotion data synth` prints."""
        splits, defects = (
            ", ".join(f"{name} {count:,}" for name, count in counts.items()) for counts in (self.splits, self.defects)
        )
        return [
            report_line("images", self.images),
            report_line("persons", f"{self.persons:,}, {self.faces:,} with a face that can be seen"),
            report_line("split", splits),
            *([report_line("defects", defects)] if defects else []),
            report_line("files", ", ".join(self.files)),
        ]


@one_writer_of("out")
def write_emotic(
    out: storage.PathLike, persons: int, seed: int = 0, *, kind: str = "both", defects: float = 0.0
) -> SyntheticEmotic:
    """Writes pictures of `persons` persons to `out/emotic/FOLDER/`, and their annotations as EMOTIC has them.

    Beside them lies `faces.csv` with the true face boxes (empty for the 15 % whose face cannot be seen), because no
    detector knows a drawn face.

    Args:
        out: folder or s3:// address.
        persons: how many; planted defects add a few.
        seed: same seed, same data.
        kind: mat (Annotations/Annotations.mat), csv (emotic_pre/train.csv ...) or both.
        defects: share of the images to damage, all kinds of `PLANTED` in turn and each at least once;
            `defects.json` lists them under the names that `EmoticReader` reports them by.

    Raises:
        InputError: a number or kind that makes no sense, or a folder that holds something else.
    """
    if not 1 <= persons <= 1_000_000:
        raise InputError(f"{persons} persons cannot be made", remedy="Choose from 1 to 1,000,000.")
    if not 0.0 <= defects <= 1.0:
        raise InputError(f"the share of defects is {defects}", remedy="Choose from 0 to 1.")
    if kind not in ("mat", "csv", "both"):
        raise InputError(f"there is no format {kind!r}", remedy="Choose mat, csv or both.")
    settings = {"persons": persons, "seed": seed, "kind": kind, "defects": defects}
    claim_dataset(
        out, "emotic", settings, folders=["emotic", "Annotations", "emotic_pre"], files=[FACES_NAME, DEFECTS_NAME]
    )
    for name in (FACES_NAME, DEFECTS_NAME):
        storage.remove(storage.join(out, name))
    images: list[_Image] = []
    while (made := sum(len(image.persons) for image in images)) < persons:
        images.append(_draw(out, len(images), seed, persons - made))
    report = SyntheticEmotic(images=len(images))
    if defects:
        _plant(images, random.Random(f"{seed}/emotic/defects"), max(round(defects * len(images)), len(PLANTED)))
        for image in images:
            if not image.written:
                storage.remove(storage.join(out, "emotic", image.folder, image.name))
    ordered = {split: [image for image in images if image.split == split] for split in SPLITS}
    if kind in ("mat", "both"):
        storage.write_bytes(storage.join(out, MAT_NAME), _mat(ordered))
        report.files.append(MAT_NAME)
    if kind in ("csv", "both"):
        for split in SPLITS:
            storage.write_text(storage.join(out, "emotic_pre", f"{split}.csv"), _csv(ordered[split], split))
            report.files.append(f"emotic_pre/{split}.csv")
    _write_faces(out, ordered, report)
    if defects:
        _write_defects(out, ordered, report)
    return report


def _draw(out: storage.PathLike, number: int, seed: int, most: int) -> _Image:
    """Draws image `number` and writes it; its annotators have spoken."""
    rng = random.Random(f"{seed}/emotic/{number}")
    turn = list(_TWENTY)
    random.Random(f"{seed}/emotic/splits/{number // 20}").shuffle(turn)
    split = turn[number % 20]
    folder, name, _ = rng.choices(_FOLDERS, [share for *_, share in _FOLDERS])[0]
    count = min(rng.choices(*_PERSONS)[0], most)
    scene = draw_traits(rng)
    people = [(draw_traits(rng), draw_traits(rng), rng.random() >= NO_FACE_SHARE) for _ in range(count)]
    picture, drawn = draw_picture(scene, people, rng)
    image = _Image(split, folder, name.format(number + 1), [])
    for (body, face, _), where in zip(people, drawn, strict=True):
        person = _Person((scene, body, face), where.body, where.face, [], [], "", "")
        person.gender = rng.choice(("Male", "Female"))
        person.age = rng.choices(("Adult", "Teenager", "Kid"), (0.78, 0.12, 0.1))[0]
        _annotate(person, split, rng)
        image.persons.append(person)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    storage.write_bytes(storage.join(out, "emotic", folder, image.name), buffer.getvalue(), durable=False)
    return image


def _annotate(person: _Person, split: str, rng: random.Random) -> None:
    answers = [annotate(person.traits, rng) for _ in range(rng.choice(ANNOTATORS[split]))]
    person.choices = [labels for labels, _ in answers]
    person.vads = [vad for _, vad in answers]


def _plant(images: list[_Image], rng: random.Random, count: int) -> None:
    """Damages `count` images, each in one way, as far as there are images that can be damaged in that way."""
    free = list(images)
    rng.shuffle(free)
    kinds = list(PLANTED)
    for k in range(count):
        kind = kinds[k % len(kinds)]
        for image in free:
            copy = PLANTED[kind](image, rng)
            if copy is not None:
                free.remove(image)
                if copy is not image:
                    images.append(copy)
                break


def _transposed(image: _Image, rng: random.Random) -> _Image | None:
    if image.folder != "emodb_small/images" or any(p.box[2] == HEIGHT for p in image.persons):
        return None
    image.size = (HEIGHT, WIDTH)
    image.defects.append(("transposed_size", None))
    return image


def _suspect(image: _Image, rng: random.Random) -> _Image | None:
    cut = [p for p in image.persons if p.box[0] < HEIGHT - 8 and p.box[2] > HEIGHT + 2]
    if not cut or _transposed(image, rng) is None:
        return None
    for person in cut:
        person.box = (*person.box[:2], float(HEIGHT), person.box[3])
        image.defects.append(("suspect_box", person))
    return image


def _beyond(image: _Image, rng: random.Random) -> _Image | None:
    person = rng.choice(image.persons)
    x1, y1, x2, y2 = person.box
    person.box = (-17.0, y1, x2, y2) if x1 < WIDTH - x2 else (x1, y1, WIDTH + 23.0, y2)
    image.defects.append(("clipped_box", person))
    return image


def _degenerate(image: _Image, rng: random.Random) -> _Image | None:
    person = rng.choice(image.persons)
    x1, y1, x2, y2 = person.box
    person.box = rng.choice(((x1, y1, x1, y2), (x2, y1, x1, y2)))
    image.defects.append(("degenerate_box", person))
    return image


def _missing(image: _Image, rng: random.Random) -> _Image | None:
    image.written = False
    image.defects += [("missing_image", None), *(("missing_person", person) for person in image.persons)]
    return image


def _without_vad(image: _Image, rng: random.Random) -> _Image | None:
    person = rng.choice(image.persons)
    gone = rng.randrange(3)  # one of the three is enough
    person.vads = [
        (math.nan if gone == 0 else v, math.nan if gone == 1 else a, math.nan if gone == 2 else d)
        for v, a, d in person.vads
    ]
    image.defects.append(("no_vad", person))
    return image


def _unlabelled(image: _Image, rng: random.Random) -> _Image | None:
    person = rng.choice(image.persons)
    person.choices = [[] for _ in person.choices]
    image.defects.append(("unlabelled_person", person))
    return image


def _twice(image: _Image, rng: random.Random) -> _Image | None:
    person = rng.choice(image.persons)
    copy = _Person(**vars(person))
    image.persons.append(copy)
    image.defects.append(("duplicate_person", copy))
    return image


def _leaked(image: _Image, rng: random.Random) -> _Image | None:
    if image.split != "train" or image.folder != "framesdb/images":
        return None
    copy = _Image("val", image.folder, image.name, [_Person(**vars(person)) for person in image.persons])
    for person in copy.persons:
        before = person.union
        _annotate(person, "val", rng)
        if person.union == before:
            person.choices[0] = [*person.choices[0], next(label for label in EMOTIC_26.labels if label not in before)]
    image.defects += [("leaked_image", None), ("leak_with_other_labels", None)]
    image.defects += [("leaked_person", person) for person in image.persons]
    return copy


# Under the names of `emotic_report.FINDINGS`. Each damages an image and returns it, or None if it cannot; `_leaked`
# returns the second copy.
PLANTED: dict[str, Callable[[_Image, random.Random], _Image | None]] = {
    "suspect_box": _suspect,
    "transposed_size": _transposed,
    "leaked_image": _leaked,
    "clipped_box": _beyond,
    "degenerate_box": _degenerate,
    "missing_image": _missing,
    "no_vad": _without_vad,
    "unlabelled_person": _unlabelled,
    "duplicate_person": _twice,
}


def _structs(fields: Sequence[str], rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """A 1 x rows struct array."""
    array = np.empty((1, len(rows)), dtype=[(name, object) for name in fields])
    for k, row in enumerate(rows):
        for name, value in zip(fields, row, strict=True):
            array[0, k][name] = value
    return array


def _cell(values: Sequence[str]) -> np.ndarray:
    cell = np.empty((1, len(values)), dtype=object)
    cell[0, :] = values
    return cell


def _mat(ordered: dict[str, list[_Image]]) -> bytes:
    """The bytes of `Annotations.mat`."""
    import scipy.io

    vad = ("valence", "arousal", "dominance")
    content = {}
    for split, images in ordered.items():
        records = []
        for image in images:
            persons: list[tuple[Any, ...]] = []
            for p in image.persons:
                body = np.array([p.box], dtype=np.float64)
                own = _structs(("categories",), [(_cell(labels),) for labels in p.choices if labels])
                own_vad = _structs(vad, p.vads)
                if split == "train":
                    persons.append((body, own, own_vad, p.gender, p.age))
                else:
                    mean = _structs(vad, [p.mean_vad])
                    persons.append((body, own, _cell(p.union), own_vad, mean, p.gender, p.age))
            fields = _PERSON if split == "train" else _PERSON_OF_SEVERAL
            size = _structs(("n_col", "n_row"), [(float(image.size[0]), float(image.size[1]))])
            origin = _structs(("name",), [(image.folder.split("/")[0],)])
            records.append((image.name, image.folder, size, origin, _structs(fields, persons)))
        content[split] = _structs(("filename", "folder", "image_size", "original_database", "person"), records)
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, content, do_compression=True)
    # The first 116 bytes are a remark, in which SciPy puts the time: without it, same seed, same bytes.
    return b"MATLAB 5.0 MAT-file, synthetic EMOTIC by raymotion".ljust(116) + buffer.getvalue()[116:]


_PERSON = ("body_bbox", "annotations_categories", "annotations_continuous", "gender", "age")
_PERSON_OF_SEVERAL = (
    "body_bbox", "annotations_categories", "combined_categories", "annotations_continuous", "combined_continuous",
    "gender", "age",
)  # fmt: skip


def _csv(images: Sequence[_Image], split: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    people = [(image, person) for image in images for person in image.persons]
    for index, (image, person) in enumerate(people):
        box, size = [round(v) for v in person.box], list(image.size)
        vad = person.mean_vad
        cells = (index, image.folder, image.name, size, box, person.union, vad, person.gender, person.age)
        writer.writerow([str(cell) for cell in cells])
    return text.getvalue()


def _write_faces(out: storage.PathLike, ordered: dict[str, list[_Image]], report: SyntheticEmotic) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*FACE_COLUMNS, FACE_FILE])
    for split, images in ordered.items():
        people = [(person, image.name) for image in images for person in image.persons]
        for index, (person, name) in enumerate(people):
            writer.writerow([split, index, *(person.face or ("", "", "", "")), name])
        report.splits[split] = len(people)
        report.faces += sum(person.face is not None for person, _ in people)
    report.persons = sum(report.splits.values())
    storage.write_text(storage.join(out, FACES_NAME), text.getvalue())
    report.files.append(FACES_NAME)


def _write_defects(out: storage.PathLike, ordered: dict[str, list[_Image]], report: SyntheticEmotic) -> None:
    entries = []
    for split, images in ordered.items():
        people = [id(person) for image in images for person in image.persons]
        numbers = {own: index for index, own in enumerate(people)}
        for image in images:
            for kind, person in image.defects:
                name = f"{image.folder}/{image.name}" if person is None else f"emotic:{split}:{numbers[id(person)]}"
                entries.append({"kind": kind, "split": split, "image": f"{image.folder}/{image.name}", "name": name})
                report.defects[kind] = report.defects.get(kind, 0) + 1
    storage.write_json(storage.join(out, DEFECTS_NAME), sorted(entries, key=lambda e: (e["kind"], e["name"])))
    report.files.append(DEFECTS_NAME)
