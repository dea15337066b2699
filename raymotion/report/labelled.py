"""A folder that the labelling job wrote, read for looking at it: probabilities in memory, everything else on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion import storage
from raymotion.data.images.marks import Picture, PictureMark
from raymotion.data.parts import FileMark, open_part, part_marks, read_job
from raymotion.data.provenance import MADE_FROM_COLUMNS, begun_at, pictures_of
from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.vocabulary import Vocabulary

REQUIRED = {"sample_id", *MADE_FROM_COLUMNS, "captions", "probabilities", "labels", "selected"}
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class QuarantineRow:
    """One row that failed, with the stage, the code of the reason, and the message."""

    sample_id: str
    image_uri: str | None
    stage: str | None
    reason: str
    message: str | None


@dataclass(frozen=True)
class LabelledRow:
    """What a person looks at in one labelled sample; `mark` is of the picture that was labelled, if one was read."""

    sample_id: str
    image_uri: str | None
    captions: list[str]
    mark: PictureMark | None = None


@dataclass(frozen=True)
class LabelledSet:
    """A labelled data set.

    Attributes:
        probabilities: (n, L) float32, rows in the order of the parts.
        mask: (n, L) bool, the chosen labels.
        selected: (n,) bool.
        job: `job.json` as it stands; keys may be missing.
        parts: names and row counts.
        prior: (L,) class rates of the teacher's training split, where recorded.
        evaluation: the teacher's on validation, where recorded.
    """

    folder: str
    vocabulary: Vocabulary
    job: Mapping[str, Any]
    parts: list[tuple[str, int]]
    probabilities: np.ndarray
    mask: np.ndarray
    selected: np.ndarray
    prior: np.ndarray | None
    evaluation: Evaluation | None

    def __len__(self) -> int:
        return len(self.probabilities)

    def recorded(self, *keys: str) -> Any:
        """The value at these nested keys of `job.json`, or None."""
        value: Any = self.job
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def rows(self, indices: Sequence[int]) -> list[LabelledRow]:
        """The rows at `indices`, in that order; only the parts that hold one are read."""
        found: dict[int, LabelledRow] = {}
        wanted, start = sorted(set(indices)), 0
        for name, count in self.parts:
            inside = [i for i in wanted if start <= i < start + count]
            if inside:
                columns = ["sample_id", *MADE_FROM_COLUMNS, "captions"]
                table = storage.read_table(storage.join(self.folder, name), columns).take([i - start for i in inside])
                for i, row, picture in zip(inside, table.to_pylist(), pictures_of(table), strict=True):
                    captions = [caption for caption in row["captions"] or [] if caption]
                    found[i] = LabelledRow(row["sample_id"], row["image_uri"], captions, picture.mark)
            start += count
        return [found[i] for i in indices]

    def pictures(self) -> tuple[list[str], list[Picture]]:
        """sample_id of every row, in order, and the picture that it was labelled by."""
        ids: list[str] = []
        pictures: list[Picture] = []
        for name, _ in self.parts:
            table = storage.read_table(storage.join(self.folder, name), ["sample_id", *MADE_FROM_COLUMNS])
            ids.extend(table.column("sample_id").to_pylist())
            pictures.extend(pictures_of(table))
        return ids, pictures

    @property
    def begun(self) -> float | None:
        """When labelling began, in seconds since the epoch, where recorded."""
        return begun_at(self.job)

    def quarantine(self, limit: int) -> tuple[dict[str, int], list[QuarantineRow]]:
        """How many rows failed for each reason, most frequent first, and the first `limit` of them."""
        counts: Counter[str] = Counter()
        rows: list[QuarantineRow] = []
        folder, complete = storage.join(self.folder, "quarantine"), self.job.get("status") == "complete"
        for name, marks in part_marks(self.folder, quarantine=True, complete=complete).items():
            for batch in _batches(folder, name, marks, {"sample_id", "image_uri", "stage", "reason", "message"}):
                counts.update(str(reason) for reason in batch.column("reason").to_pylist())
                for row in batch.slice(0, max(0, limit - len(rows))).to_pylist():
                    row["reason"] = str(row["reason"])
                    rows.append(QuarantineRow(**row))
        if not counts and isinstance(by_reason := self.recorded("counts", "by_reason"), Mapping):
            counts.update({str(reason): int(count) for reason, count in by_reason.items()})
        return dict(counts.most_common()), rows


def load_labels(folder: storage.PathLike) -> LabelledSet:
    """Reads a folder of the labelling job, part by part; captions and addresses stay on disk.

    Raises:
        InputError: no such folder, no `job.json` in it, another job's folder, or parts that do not fit it.
    """
    job_path = storage.join(folder, "job.json")
    job, _ = read_job(folder)
    if job is None:
        what = "has no job.json" if storage.is_dir(folder) else "no such folder"
        raise InputError(what, path=folder, remedy="Give the folder that `raymotion label` wrote.")
    if job.get("job") != "labels":
        raise InputError(
            f"is the record of a job {job.get('job')!r}, not of labels", path=job_path, remedy="Give a labels folder."
        )
    stated = job.get("vocabulary")
    vocabulary = Vocabulary.from_dict(stated, where=job_path) if isinstance(stated, Mapping) else None
    names = part_marks(folder, complete=job.get("status") == "complete")
    if not names and _good(job) != 0:
        raise InputError("has no part-*.parquet", path=folder, remedy="Run `raymotion label` to its end.")

    parts: list[tuple[str, int]] = []
    blocks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for name, marks in names.items():
        path = storage.join(folder, name)
        before = sum(len(block[2]) for block in blocks)
        for batch in _batches(folder, name, marks, REQUIRED, ["probabilities", "labels", "selected"]):
            own = Vocabulary.from_metadata(batch.schema.metadata, where=path)
            if own is not None and vocabulary is not None:
                vocabulary.require_same(own, here=str(job_path), there=path)
            vocabulary = vocabulary or own
            if vocabulary is None:
                raise InputError("names no vocabulary", path=path, remedy="Label again with this version.")
            blocks.append(_arrays(batch, vocabulary, path))
        parts.append((name, sum(len(block[2]) for block in blocks) - before))
    if vocabulary is None:
        raise InputError("names no vocabulary", path=job_path, remedy="Label again with this version.")
    width = len(vocabulary)
    blocks.append((np.zeros((0, width), np.float32), np.zeros((0, width), bool), np.zeros(0, bool)))
    model = job.get("model")
    teacher = (model.get("teacher") if isinstance(model, Mapping) else None) or {}
    return LabelledSet(
        folder=str(folder),
        vocabulary=vocabulary,
        job=job,
        parts=parts,
        probabilities=np.concatenate([block[0] for block in blocks]),
        mask=np.concatenate([block[1] for block in blocks]),
        selected=np.concatenate([block[2] for block in blocks]),
        prior=_prior(teacher.get("prior"), vocabulary, job_path),
        evaluation=Evaluation.from_dict(teacher["validation"], where=job_path) if teacher.get("validation") else None,
    )


def _good(job: Mapping[str, Any]) -> Any:
    counts = job.get("counts")
    return counts.get("good") if isinstance(counts, Mapping) else None


def _batches(
    folder: storage.PathLike,
    name: str,
    marks: Sequence[FileMark],
    required: set[str],
    columns: list[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    with open_part(folder, name, marks) as parquet:
        missing = sorted(required - set(parquet.schema_arrow.names))
        if missing:
            path = storage.join(folder, name)
            raise InputError(f"has no column {', '.join(missing)}", path=path, remedy="Label again.")
        metadata = parquet.schema_arrow.metadata
        for batch in parquet.iter_batches(BATCH_ROWS, columns=columns or sorted(required)):
            yield batch.replace_schema_metadata(metadata)


def _arrays(batch: pa.RecordBatch, vocabulary: Vocabulary, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, chosen labels and selection of one batch."""
    width, rows = len(vocabulary), batch.num_rows
    column = batch.column("probabilities")
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != width:
        raise InputError(f"probabilities are {column.type}, not one for each of {width} labels", path=path)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise InputError("probabilities are null", path=path, remedy="Label again.")
    probabilities = values.to_numpy(zero_copy_only=False).astype(np.float32).reshape(rows, width)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        row = int(np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)).all(axis=1))[0])
        raise InputError("probabilities are not all between 0 and 1", path=path, row=row)

    mask = np.zeros((rows, width), dtype=bool)
    labels = batch.column("labels")
    names = pc.list_flatten(labels)
    positions = pc.index_in(names, pa.array(vocabulary.labels, pa.string()))
    if positions.null_count:
        foreign = names.filter(pc.is_null(positions))[0].as_py()
        raise InputError(f"label {foreign!r} is not in the vocabulary {vocabulary.name}", path=path)
    mask[pc.list_parent_indices(labels).to_numpy(), positions.to_numpy()] = True
    selected = batch.column("selected").fill_null(False).to_numpy(zero_copy_only=False).astype(bool)
    return probabilities, mask, selected


def _prior(value: Any, vocabulary: Vocabulary, where: str) -> np.ndarray | None:
    if value is None:
        return None
    try:
        prior = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("the teacher's prior is not a list of numbers", path=where) from error
    if prior.shape != (len(vocabulary),) or not ((prior >= 0) & (prior <= 1)).all():
        raise InputError(
            f"the teacher's prior is not {len(vocabulary)} rates, one for each label of {vocabulary.name}", path=where
        )
    return prior
