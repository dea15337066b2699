"""Tasks for people, as `raymotion data export` wrote them for another program, and what comes back from it.

    tasks.json           the record, written last: program, vocabulary, numbers of rows and files
    index-00000.parquet  sample_id, picture (its address in the program) and labels of each task of a chunk

A reader of a program's export inherits `TaskReader`. It finds each row by its sample_id or picture in the index, so a
correction goes to the row that was shown, and can tell labels that were kept from those that were changed.
"""

from __future__ import annotations

import glob
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pyarrow as pa
from pydantic import Field

from raymotion import records, storage
from raymotion.config import Folder, Metavar, PathText
from raymotion.data.marked import Mark, MarkedReport, marked_rows
from raymotion.data.readers.reader import Reader
from raymotion.data.text_rows import shown
from raymotion.errors import Damaged, InputError
from raymotion.vocabulary import Vocabulary

RECORD = "tasks.json"
INDEX = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("picture", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
    ]
)
AGAIN = "Run `raymotion data export` again."
# With this label or tag people say that they have looked at a picture, in programs that cannot tell it themselves.
REVIEWED = "reviewed"


def index_name(number: int) -> str:
    """Returns the file name of the index of a chunk."""
    return f"index-{number:05d}.parquet"


@dataclass(frozen=True)
class TaskSet:
    """The tasks of an export.

    Attributes:
        folder: where they are.
        labels: the labels that were shown, by sample_id.
        sample_of: sample_id by picture, for programs that know a picture once.
    """

    folder: str
    vocabulary: Vocabulary
    labels: Mapping[str, Sequence[str]]
    sample_of: Mapping[str, str]

    def mark(self, sample_id: str, labels: Iterable[str], shares: Sequence[float] | None = None) -> Mark:
        """Returns the mark for labels that people gave, without repeats, in the order of the vocabulary.

        Args:
            shares: one for each label, which then are without repeats.

        Raises:
            InputError: a label is not in the vocabulary.
        """
        given = list(labels)
        for label in given:
            if label not in self.vocabulary:
                raise InputError(f"the label {shown(label)!r} is not in the vocabulary {self.vocabulary.name}")
        places = sorted({self.vocabulary.index(label): at for at, label in enumerate(given)}.items())
        return Mark(
            labels=[self.vocabulary.labels[place] for place, _ in places],
            kept=set(given) == set(self.labels[sample_id]),
            shares=None if shares is None else [shares[at] for _, at in places],
        )

    def sample(self, picture: str) -> str:
        """Returns the sample_id of a picture.

        Raises:
            InputError: it is not one of the export.
        """
        if picture not in self.sample_of:
            raise InputError(
                f"{shown(picture)!r} is not a picture of {self.folder}",
                remedy="Give the folder that `raymotion data export` wrote for these tasks.",
            )
        return self.sample_of[picture]


def read_tasks(folder: str, tool: str) -> TaskSet:
    """Reads the index of an export for the program `tool`.

    Raises:
        InputError: the folder is not such an export, or it is damaged.
    """
    path = storage.join(folder, RECORD)
    if not storage.exists(path):
        raise InputError(
            f"has no {RECORD}", path=folder, remedy=f"Give the folder that `raymotion data export {tool}` wrote."
        )
    record = records.read_record(path, remedy=AGAIN, needs_seal=True)
    if record.get("tool") != tool:
        raise InputError(f"was written for {record.get('tool')}, not for {tool}", path=folder)
    labels: dict[str, list[str]] = {}
    sample_of: dict[str, str] = {}
    for number in range(int(record["chunks"])):
        table = storage.read_table(storage.join(folder, index_name(number)), INDEX.names)
        for row in table.to_pylist():
            labels[row["sample_id"]] = row["labels"]
            sample_of[row["picture"]] = row["sample_id"]
    if len(labels) != record["rows"]:
        raise Damaged(f"has {len(labels):,} tasks, and {record['rows']:,} were written", path=folder, remedy=AGAIN)
    return TaskSet(str(folder), Vocabulary.from_dict(record["vocabulary"], where=path), labels, sample_of)


def files_of(export: str, suffixes: Sequence[str]) -> list[str]:
    """Returns the files that an argument names: a file, those of a folder that end in `suffixes`, or a local pattern.

    Raises:
        InputError: there are none.
    """
    if storage.is_dir(export):
        found = [storage.join(export, name) for name in storage.list_names(export) if storage.suffix(name) in suffixes]
    elif not storage.is_remote(export) and not storage.exists(export) and glob.has_magic(export):
        found = sorted(glob.glob(export))
    elif storage.exists(export):
        found = [export]
    else:
        raise InputError("no such file or folder", path=export, remedy="Check the path.")
    if not found:
        raise InputError(f"there is no {' or '.join(suffixes)} file", path=export, remedy="Check the path.")
    return found


class TaskReader(Reader):
    """Base of the readers of what comes back from another program.

    Subclasses name the program in `tool`, the ends of its files in `suffixes`, and their counts in `report_type`.
    """

    tool: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    report_type: ClassVar[type[MarkedReport]] = MarkedReport

    export: Annotated[PathText, Metavar("EXPORT")]
    samples: Annotated[PathText, Metavar("SAMPLES")]
    tasks: Annotated[Folder, Metavar("TASKS")]
    seed: int = Field(0, description="Seed of the split of rows without one.")

    @abstractmethod
    def marks(self, paths: Sequence[str], tasks: TaskSet, report: MarkedReport) -> dict[str, Mark]:
        """Returns what people say, by sample_id; counts in `report` what it leaves out.

        Raises:
            InputError: a file is invalid, or names an unknown sample, picture or label.
        """

    def read(self) -> tuple[pa.Table, MarkedReport]:
        """Returns the rows of the sample table that people have looked at, in its order, with their labels.

        Raises:
            InputError: see `marks` and `read_tasks`.
        """
        tasks, report = read_tasks(self.tasks, self.tool), self.report_type()
        marks = self.marks(files_of(self.export, self.suffixes), tasks, report)
        table = marked_rows(
            self.samples, marks, tasks.vocabulary, report, tool=self.tool, seed=self.seed, where=self.export
        )
        return table, report
