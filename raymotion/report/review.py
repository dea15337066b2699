"""A static folder in which people review labels: pictures in a grid, filters, and marks that become training labels.

index.html       the page; it opens from a disk, without a network
data.js          ids, labels and probabilities of the rows
thumbs/NNN/      a small JPEG of each picture, loaded as one scrolls; thumbs/of.json names their pictures
vocabulary.json  for `raymotion data prepare corrections`, which reads the marks that the page saves
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from raymotion import storage
from raymotion.batch.label_dataset import LabelledSet, load_labels
from raymotion.config import digest_of
from raymotion.data.images.marks import Picture
from raymotion.data.samples import vocabulary_of
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.report.cards import small_jpeg
from raymotion.report.rendering import template

SIDE = 320
THREADS = 8
PER_FOLDER = 1000
QUARANTINE_SHOWN = 5000
# Probabilities are shown, not computed with: a thousandth is enough.
STEPS = 1000
# A job of more pictures is reviewed in part: the page holds the data of all.
MOST = 100_000
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class ReviewSummary:
    """What was written: the folder, and the numbers of rows, of thumbnails, and of pictures that cannot be shown.

    Attributes:
        unfinished: see `LabelledSet.unfinished`.
    """

    out: str
    rows: int
    shown: int
    unreadable: int
    quarantined: int
    unfinished: str | None = None


@one_writer_of("out")
def write_review(
    labels_dir: storage.PathLike,
    out: storage.PathLike,
    *,
    most: int = 20_000,
    everything: bool = False,
    truth: storage.PathLike | None = None,
    told: Told | None = None,
) -> ReviewSummary:
    """Writes the review folder of a labelled data set; a second call goes on with the thumbnails.

    Args:
        labels_dir: folder of the labelling job, or of `raymotion select`.
        most: largest number of rows, the first ones.
        everything: show the rows that the selection did not take too. A running job has no selection yet.
        truth: sample table with people's labels of these samples, found by sample_id, which the page then compares.
        told: called with the number of thumbnails made so far and their total.

    Raises:
        InputError: the folder is no labelled data set, or `out` holds other files.
    """
    labelled = load_labels(labels_dir)
    if not len(labelled):
        raise InputError("holds no labelled row to review", path=labels_dir)
    everything = everything or labelled.recorded("status") != "complete"
    taken = np.arange(len(labelled)) if everything else np.flatnonzero(labelled.selected)
    if not len(taken):
        raise InputError("has no selected row to review", path=labels_dir, remedy="Pass --all.")
    said = None if truth is None else _said_by_people(truth, labelled)
    target = storage.absolute(out)
    outputs.claim(target)
    rows = taken[: min(most, MOST)]
    all_ids, all_pictures = labelled.pictures()
    ids, pictures = [all_ids[row] for row in rows], [all_pictures[row] for row in rows]
    _keep_thumbs_of(target, ids, pictures)
    problems = _write_thumbs(target, pictures, told)
    reasons, failed = labelled.quarantine(QUARANTINE_SHOWN)
    data = {
        "labels": list(labelled.vocabulary.labels),
        "one_label": labelled.one_label,
        "job": str(labelled.recorded("digest") or ""),
        "ids": ids,
        "uris": [own.uri for own in pictures],
        "problems": problems,
        "steps": STEPS,
        "probabilities": _packed(labelled.probabilities[rows]),
        "chosen": [np.flatnonzero(row).tolist() for row in labelled.mask[rows]],
        "truth": None if said is None else [said.get(own) for own in ids],
        "per_folder": PER_FOLDER,
        "quarantine": [[row.sample_id, row.image_uri, row.reason, row.message] for row in failed],
    }
    # Inside a script: the end of one in a caption or an id must not end it.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("</", "<\\/")
    storage.write_text(storage.join(target, "data.js"), f"const REVIEW = {text};\n")
    storage.write_json(storage.join(target, "vocabulary.json"), labelled.vocabulary.to_dict())
    html = template("review.html.j2").render(
        title=f"Review of {storage.absolute(labels_dir).rstrip('/').rpartition('/')[2]}", rows=len(rows),
        left_out=len(taken) - len(rows), unselected=len(labelled) - len(taken), vocabulary=labelled.vocabulary,
        compared=said is not None,
    )  # fmt: skip
    storage.write_text(storage.join(target, "index.html"), html)  # last: a folder with it is complete
    return ReviewSummary(
        str(out), len(rows), len(rows) - len(problems), len(problems), sum(reasons.values()), labelled.unfinished
    )


def _said_by_people(path: storage.PathLike, labelled: LabelledSet) -> dict[str, list[int]]:
    """Returns sample_id -> positions of the labels that people gave."""
    table, vocabulary = labelled.read_truth(path), labelled.vocabulary
    own = vocabulary_of(table, where=path)
    if own is None:
        raise InputError("has no labels to compare with", path=path, remedy="Give samples that people labelled.")
    own.require_same(vocabulary, here=str(path), there="the labels")
    rows = zip(table.column("sample_id").to_pylist(), table.column("labels").to_pylist(), strict=True)
    return {name: [vocabulary.index(label) for label in labels] for name, labels in rows if labels is not None}


def _packed(probabilities: np.ndarray) -> str:
    """Returns the probabilities as thousandths, uint16 (n, L) little-endian, in base64."""
    steps = np.round(probabilities * STEPS).clip(0, STEPS)
    return base64.b64encode(np.ascontiguousarray(steps, dtype="<u2").tobytes()).decode()


def _keep_thumbs_of(target: str, ids: list[str], pictures: list[Picture]) -> None:
    """Removes thumbnails that an earlier call made for other rows: they are named by the row's number."""
    marks = [[name, own.uri, own.mark and own.mark.digest] for name, own in zip(ids, pictures, strict=True)]
    path, digest = storage.join(target, "thumbs/of.json"), digest_of(marks)
    if not storage.exists(path) or storage.read_json(path).get("rows") != digest:
        storage.remove_tree(storage.join(target, "thumbs"))
        storage.write_json(path, {"rows": digest})


def _write_thumbs(target: str, pictures: list[Picture], told: Told | None) -> dict[int, str]:
    """Writes the thumbnails that are not there yet; returns the reason for each picture that cannot be shown."""
    there: set[str] = set()
    for folder in range(-(-len(pictures) // PER_FOLDER)):
        there.update(
            f"{folder:03d}/{name}" for name in storage.list_names(storage.join(target, f"thumbs/{folder:03d}"))
        )

    def make(row: int) -> str:
        name = f"{row // PER_FOLDER:03d}/{row:06d}.jpg"
        if name in there:
            return ""
        data, problem = small_jpeg(pictures[row].uri, pictures[row].mark, (SIDE, SIDE))
        if data is not None:
            storage.write_bytes(storage.join(target, f"thumbs/{name}"), data, durable=False)
        return problem

    problems: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for row, problem in enumerate(pool.map(make, range(len(pictures)))):
            if problem:
                problems[row] = problem
            if told is not None:
                told(row + 1, len(pictures))
    return problems


def summary_lines(summary: ReviewSummary) -> list[str]:
    """Returns the lines that `raymotion review` prints."""
    first = [summary.unfinished] if summary.unfinished else []
    lines = [*first, f"{summary.rows:,} rows, {summary.shown:,} with a picture; {summary.quarantined:,} in quarantine"]
    if summary.unreadable:
        lines.append(f"{summary.unreadable:,} pictures cannot be shown; the page gives the reason of each")
    return [*lines, f"open {storage.join(summary.out, 'index.html')} in a browser"]
