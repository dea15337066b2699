"""Reads the output folder of a labelling job.

`open_labels` returns a DataFrame with a named column for each emotion. `read_parts` yields the parts one by one;
`load_labels` loads the probabilities and reads everything else on demand, for pages and audits.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion import storage
from raymotion.data.images.marks import Picture, PictureMark
from raymotion.data.parts import DATA, JOB, FileMark, complete_job, list_parts, open_part, part_marks
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import MADE_FROM_COLUMNS, begun_at, pictures_of
from raymotion.data.samples import read_samples
from raymotion.errors import InputError
from raymotion.learning.collapse import Collapse, check_collapse, check_one_label
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.significance import voids_results
from raymotion.learning.uncertainty import entropy
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.outputs.single_label import HARD
from raymotion.models.outputs.table import read_outputs
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd

CHOSEN = ["probabilities", "labels", "selected"]
# Number of parts read at once from an object store.
PARTS_AHEAD = 8


@dataclass(frozen=True)
class QuarantineRow:
    """A failed row, with the stage, the code of the reason, and the message."""

    sample_id: str
    image_uri: str | None
    stage: str | None
    reason: str
    message: str | None


@dataclass(frozen=True)
class LabelledRow:
    """A labelled sample for display; `mark` identifies the picture that was labelled, if any."""

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
        job: the record of the job; keys may be missing.
        parts: paths below the folder, and row counts.
        prior: (L,) class rates of the teacher's training split, if recorded.
        evaluation: validation metrics of the teacher, if recorded.
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
        """Returns the value at these nested keys of the job's record, or None."""
        value: Any = self.job
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def one_label(self) -> bool:
        """Whether exactly one of the labels applies to a sample."""
        return bool(self.recorded("model", "one_label"))

    def entropy(self, probabilities: np.ndarray) -> np.ndarray:
        """Returns the entropy (n,) of predictions (n, L), in bits: of the one label, or the mean over all."""
        return entropy(probabilities, one_label=self.one_label)

    def check_collapse(self, notices: Iterable[str] = (), one_label: bool | None = None) -> Collapse:
        """Returns the collapse check of the labels (`learning.collapse`).

        Args:
            notices: notices of the job; those that void its labels prevent a passing verdict.
            one_label: None: as recorded.
        """
        p, labels = self.probabilities, self.vocabulary.labels
        warnings = [own for own in notices if voids_results(own)]
        told: dict[str, Any] = {"prior": self.prior, "evaluation": self.evaluation, "warnings": warnings}
        if self.one_label if one_label is None else one_label:
            return check_one_label(p, labels, **told)
        return check_collapse(p, self.mask, labels, selected=self.selected, **told)

    def read_truth(self, samples: storage.PathLike) -> pa.Table:
        """Reads a sample table to compare with: of a model of bands of a number, its labels are those of the bands."""
        table = read_samples(samples)
        return self._output.labelled(table, where=samples) if self.one_label else table

    def one_of(self, truth: pa.Table, *, where: object) -> np.ndarray:
        """Returns the one label of each sample of `read_truth`, bool (n, L): that which most annotators agree with.

        Raises:
            InputError: a sample has several, none of which has the largest weight.
        """
        return np.asarray(self._output.read(truth, where=where).arrays[HARD] > 0)

    @property
    def _output(self) -> Output:
        """The output of the model that gives the labels."""
        outputs = read_outputs(self.recorded("model", "outputs"), where=storage.join(self.folder, JOB))
        return next(own for own in outputs if own.vocabulary is not None)

    @property
    def unfinished(self) -> str | None:
        """What is to be said of a job that is not complete; None for others."""
        status, total = self.recorded("status"), self.recorded("input", "rows")
        if status in ("complete", None):
            return None
        whole = f" of {total:,}" if isinstance(total, int) else ""
        return (
            f"The labelling job is not finished (status: {status}): these are {len(self):,}{whole} rows. The same "
            "`raymotion label` command goes on."
        )

    def rows(self, indices: Sequence[int]) -> list[LabelledRow]:
        """Returns the rows at `indices`, in that order; only parts that contain one are read."""
        return _rows_at(self.folder, self.parts, indices)

    def pictures(self) -> tuple[list[str], list[Picture]]:
        """Returns the sample_id of every row, in order, and the picture that was labelled."""
        ids: list[str] = []
        pictures: list[Picture] = []
        for name, _ in self.parts:
            table = storage.read_table(storage.join(self.folder, name), ["sample_id", *MADE_FROM_COLUMNS])
            ids.extend(table.column("sample_id").to_pylist())
            pictures.extend(pictures_of(table))
        return ids, pictures

    @property
    def begun(self) -> float | None:
        """Returns when labelling began, in seconds since the epoch, if recorded."""
        return begun_at(self.job)

    def quarantine(self, limit: int) -> tuple[dict[str, int], list[QuarantineRow]]:
        """Returns the number of failed rows by reason, most frequent first, and the first `limit` rows."""
        counts: Counter[str] = Counter()
        rows: list[QuarantineRow] = []
        columns = ["sample_id", "image_uri", "stage", "reason", "message"]
        complete = self.job.get("status") == "complete"
        for _, table in read_parts(self.folder, columns, quarantine=True, complete=complete):
            counts.update(str(reason) for reason in table.column("reason").to_pylist())
            for row in table.slice(0, max(0, limit - len(rows))).to_pylist():
                rows.append(QuarantineRow(**{**row, "reason": str(row["reason"])}))
        if not counts and isinstance(by_reason := self.recorded("counts", "by_reason"), Mapping):
            counts.update({str(reason): int(count) for reason, count in by_reason.items()})
        return dict(counts.most_common()), rows


def read_rows(folder: storage.PathLike, indices: Sequence[int]) -> list[LabelledRow]:
    """Returns the rows at `indices` of a labelled data set of any model, in that order."""
    parts = []
    for name in list_parts(folder):
        with storage.open_parquet(storage.join(folder, name)) as file:
            parts.append((name, file.metadata.num_rows))
    return _rows_at(folder, parts, indices)


def _rows_at(folder: storage.PathLike, parts: Sequence[tuple[str, int]], indices: Sequence[int]) -> list[LabelledRow]:
    found: dict[int, LabelledRow] = {}
    wanted, start = sorted(set(indices)), 0
    for name, count in parts:
        inside = [i for i in wanted if start <= i < start + count]
        if inside:
            columns = ["sample_id", *MADE_FROM_COLUMNS, "captions"]
            table = storage.read_table(storage.join(folder, name), columns).take([i - start for i in inside])
            for i, row, picture in zip(inside, table.to_pylist(), pictures_of(table), strict=True):
                captions = [caption for caption in row["captions"] or [] if caption]
                found[i] = LabelledRow(row["sample_id"], row["image_uri"], captions, picture.mark)
        start += count
    return [found[i] for i in indices]


def open_labels(folder: storage.PathLike) -> pd.DataFrame:
    """Returns all rows of a labelled data set as a DataFrame, with one column for each emotion.

    The other columns are sample_id, image_uri, captions, labels, selected and any others in the parts. An emotion
    named like one of them has its column as `p_NAME`. `frame[frame.attrs["labels"]]` are the probabilities alone, in
    the order of the vocabulary.

    Raises:
        InputError: the folder is not that of a finished labelling job.
        Damaged: a part differs from what was committed.
    """
    record = read_labels_record(folder)
    _first(list_parts(folder), folder)
    table = pa.concat_tables(table for _, table in read_parts(folder))
    names: list[str] = []
    if "probabilities" in table.column_names:
        position, matrix = table.schema.get_field_index("probabilities"), matrix_of(table)
        table = table.remove_column(position)
        taken = set(table.column_names)
        names = [f"p_{label}" if label in taken else label for label in labels_vocabulary(record, folder).labels]
        for number, name in enumerate(names):
            table = table.add_column(position + number, name, pa.array(matrix[:, number], pa.float32()))
    frame = table.to_pandas()
    frame.attrs["labels"] = names
    return frame


def read_labels_record(folder: storage.PathLike, *, complete: bool = True) -> dict[str, Any]:
    """Returns the record of a labelling job, which must be finished unless `complete` is False.

    Raises:
        InputError: the folder is not that of such a job.
    """
    other = wrong_kind(folder, "labels")
    if other is not None:
        raise other
    place = storage.absolute(folder)
    return complete_job(place, "labels", what="labelling job", command="raymotion label", complete=complete)


def labels_vocabulary(record: Mapping[str, Any], folder: storage.PathLike) -> Vocabulary:
    """Returns the vocabulary of the labels from the record, else from their first part.

    Raises:
        InputError: there is none, because the model does not predict emotions by name.
    """
    stated = record.get("vocabulary")
    if "vocabulary" not in record:
        path = storage.join(folder, _first(list_parts(folder), folder))
        with storage.open_parquet(path) as part:
            own = Vocabulary.from_metadata(part.schema_arrow.metadata, where=path)
        if own is not None:
            return own
    if not isinstance(stated, Mapping):
        outputs = (record.get("model") or {}).get("outputs") or ()
        if any(own.get("type") == Embedding.kind_of_output for own in outputs if isinstance(own, Mapping)):
            raise InputError(
                "has no labels to choose from: its model predicts vectors",
                path=folder,
                remedy="`raymotion search` finds pictures by them, `raymotion evaluate` measures how well.",
            )
        raise InputError(
            "has no labels to choose from: its model predicts numbers",
            path=folder,
            remedy="`raymotion evaluate` compares them with people's ratings, and `raymotion export --format full-csv` "
            "writes them.",
        )
    return Vocabulary.from_dict(stated, where=storage.join(folder, JOB))


def read_parts(
    folder: storage.PathLike,
    columns: Sequence[str] | None = None,
    *,
    quarantine: bool = False,
    complete: bool = True,
) -> Iterator[tuple[str, pa.Table]]:
    """Yields the parts of a data set in order: their paths below the folder, and their tables.

    Args:
        quarantine: read the failed rows instead of the good ones.
        complete: whether the job is complete; parts of a running job need no commit.

    Raises:
        InputError: a part lacks one of `columns`.
        Damaged: a part differs from what was committed.
    """

    def read(name: str, marks: Sequence[FileMark]) -> pa.Table:
        with open_part(folder, name, marks) as part:
            missing = sorted(set(columns or ()) - set(part.schema_arrow.names))
            if missing:
                path = storage.join(folder, name)
                raise InputError(f"has no column {', '.join(missing)}", path=path, remedy="Label again.")
            return part.read(columns=columns)

    ahead = PARTS_AHEAD if storage.is_remote(folder) else 0
    with ThreadPoolExecutor(ahead or 1) as pool:  # each part in a store costs at least one round trip
        waiting: deque[tuple[str, Future[pa.Table]]] = deque()
        for name, marks in part_marks(folder, quarantine=quarantine, complete=complete).items():
            waiting.append((name, pool.submit(read, name, marks)))
            if len(waiting) > ahead:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def matrix_of(table: pa.Table) -> np.ndarray:
    """Returns the column probabilities as float32 (n, L)."""
    column = table.column("probabilities").combine_chunks()
    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    width = table.schema.field("probabilities").type.list_size  # an empty part does not show the width
    return array.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, width)


def load_labels(folder: storage.PathLike) -> LabelledSet:
    """Loads the output of a labelling job part by part; captions and addresses stay on disk.

    The job need not be complete.

    Raises:
        InputError: the folder is missing or of another job, its labels are not emotions, or parts do not fit the
            record.
    """
    job = read_labels_record(folder, complete=False)
    where = storage.join(folder, JOB)
    vocabulary = labels_vocabulary(job, folder)
    width = len(vocabulary)
    parts: list[tuple[str, int]] = []
    blocks = [(np.zeros((0, width), np.float32), np.zeros((0, width), bool), np.zeros(0, bool))]
    for name, table in read_parts(folder, CHOSEN, complete=job.get("status") == "complete"):
        path = storage.join(folder, name)
        own = Vocabulary.from_metadata(table.schema.metadata, where=path)
        if own is not None:
            vocabulary.require_same(own, here=where, there=path)
        blocks.append(_arrays(table, vocabulary, path))
        parts.append((name, table.num_rows))
    if _good(job) != 0:
        _first(parts, folder)
    described = job.get("model")
    model = described if isinstance(described, Mapping) else {}
    return LabelledSet(
        folder=str(folder),
        vocabulary=vocabulary,
        job=job,
        parts=parts,
        probabilities=np.concatenate([block[0] for block in blocks]),
        mask=np.concatenate([block[1] for block in blocks]),
        selected=np.concatenate([block[2] for block in blocks]),
        prior=_prior(model.get("prior"), vocabulary, where),
        evaluation=Evaluation.from_dict(model["validation"], where=where) if model.get("validation") else None,
    )


def _first(parts: Iterable[Any], folder: storage.PathLike) -> Any:
    for part in parts:
        return part
    raise InputError(f"holds no {DATA}/*.parquet", path=folder, remedy="Run `raymotion label` to its end.")


def _good(job: Mapping[str, Any]) -> Any:
    counts = job.get("counts")
    return counts.get("good") if isinstance(counts, Mapping) else None


def _arrays(table: pa.Table, vocabulary: Vocabulary, path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns probabilities (n, L), chosen labels (n, L) and selection (n,) of one part."""
    width, rows = len(vocabulary), table.num_rows
    column = table.column("probabilities")
    if not pa.types.is_fixed_size_list(column.type) or column.type.list_size != width:
        raise InputError(f"probabilities are {column.type}, not one for each of {width} labels", path=path)
    if column.null_count or pc.list_flatten(column).null_count:
        raise InputError("probabilities are null", path=path, remedy="Label again.")
    probabilities = matrix_of(table).astype(np.float32)
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        row = int(np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)).all(axis=1))[0])
        raise InputError("probabilities are not all between 0 and 1", path=path, row=row)

    mask = np.zeros((rows, width), dtype=bool)
    labels = table.column("labels").combine_chunks()
    names = pc.list_flatten(labels)
    positions = pc.index_in(names, pa.array(vocabulary.labels, pa.string()))
    if positions.null_count:
        foreign = names.filter(pc.is_null(positions))[0].as_py()
        raise InputError(f"label {foreign!r} is not in the vocabulary {vocabulary.name}", path=path)
    mask[pc.list_parent_indices(labels).to_numpy(), positions.to_numpy()] = True
    selected = table.column("selected").fill_null(False).to_numpy().astype(bool)
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
