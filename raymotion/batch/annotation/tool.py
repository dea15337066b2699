"""Export of labels as tasks for people, to the annotation programs of others.

Each file beside this one is a program: `label_studio` holds `LabelStudioTool`, which is `raymotion data export
label-studio`. What comes back is read by the reader of the same name in `raymotion.data.readers`.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from raymotion import records, storage
from raymotion.batch.label_dataset import labels_vocabulary, matrix_of, read_labels_record, read_parts
from raymotion.config import Metavar, Settings
from raymotion.data.tasks import INDEX, RECORD, index_name
from raymotion.errors import InputError, located
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.registry import Registry, classes_beside
from raymotion.stores import tar
from raymotion.stores.addresses import VERSION
from raymotion.vocabulary import Vocabulary

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Task:
    """A row for a person.

    Attributes:
        picture: address of the picture in the program.
        labels: those that were chosen.
        probabilities: (L,) float32.
    """

    sample_id: str
    picture: str
    captions: list[str]
    labels: list[str]
    probabilities: np.ndarray


@dataclass(frozen=True)
class Exported:
    """What was written: numbers of tasks and of files, and of rows that were left out as they have no picture."""

    out: str
    rows: int
    chunks: int
    without_picture: int


class Tool(Settings, ABC):
    """An annotation program.

    `raymotion data export NAME` is made from a subclass: its docstring is the help text, which ends with an example;
    its fields are the options.

    Attributes:
        name: of the program, and of the reader of what comes back.
        is_by_picture: whether the program knows a picture once, and without its captions.
        same: why two rows would be the same task, for messages.
    """

    name: ClassVar[str]
    is_by_picture: ClassVar[bool] = False
    same: ClassVar[str] = "it shows a whole picture, not one person in it"

    image_root: Annotated[str, Metavar("FOLDER")] | None = Field(
        None, description="Folder or address (s3://...) that all pictures lie below, and that --image-prefix replaces."
    )
    image_prefix: Annotated[str, Metavar("PREFIX")] | None = Field(
        None, description="What stands before a picture's path below --image-root where the program finds it."
    )
    chunk: int = Field(1000, ge=1, description="Tasks of a file.")

    @model_validator(mode="after")
    def _root_for_prefix(self) -> Self:
        if self.image_prefix is not None and self.image_root is None:
            raise ValueError("--image-prefix replaces --image-root, which is missing")
        return self

    @abstractmethod
    def address(self, uri: str) -> str:
        """Returns the address of a picture in the program; `below_root` and `openable` help.

        Raises:
            InputError: the program cannot open it.
        """

    @abstractmethod
    def files(self, number: int, tasks: Sequence[Task], vocabulary: Vocabulary) -> dict[str, str]:
        """Returns the files of a chunk by name; names contain the number as `-00000` at their end."""

    def settings_files(self, vocabulary: Vocabulary) -> dict[str, str]:
        """Returns the files that set the program up, by name."""
        return {}

    def key(self, task: Task) -> str:
        """Returns what two tasks may not have in common."""
        return task.picture if self.is_by_picture else "\0".join([task.picture, *task.captions])

    def below_root(self, uri: str, prefix: str = "") -> str:
        """Returns the picture's path below `image_root` after `image_prefix`, or after `prefix` where that is not set.

        Paths are percent-encoded after a web address.
        """
        root = storage.absolute(str(self.image_root)).rstrip("/") + "/"
        own = storage.absolute(uri)
        if not own.startswith(root):
            raise InputError(f"{uri} does not lie below --image-root {self.image_root}")
        before = prefix if self.image_prefix is None else self.image_prefix
        path = own[len(root) :]
        is_web = storage.is_http(before) or (before.startswith("/") and "?" in before)
        return before + (quote(path) if is_web else path)


def _own() -> dict[str, str]:
    return classes_beside(__name__, __file__, "Tool")


TOOLS = Registry("annotation tool", Tool, "raymotion.annotation_tools", _own)  # type: ignore[type-abstract]


@one_writer_of("out")
def export_tasks(tool: Tool, labels: storage.PathLike, out: storage.PathLike, *, told: Told | None = None) -> Exported:
    """Writes the selected rows of a labelled data set as tasks, in files of `tool.chunk`.

    Only a chunk is in memory, and a digest for each row. All addresses are checked before anything is written. The same
    labels and settings give the same files; the record is written last.

    Args:
        told: called with the number of tasks written so far and their total.

    Raises:
        InputError: the program cannot open a picture, two rows would be the same task, no selected row has a picture,
            or `out` holds other files.
    """
    folder, target = storage.absolute(labels), storage.absolute(out)
    vocabulary = labels_vocabulary(read_labels_record(folder), folder)
    settings_files = tool.settings_files(vocabulary)
    rows, without = _checked(tool, folder)
    outputs.claim(target)
    _clear(target, tool, settings_files)
    done, number, waiting = 0, 0, list[Task]()

    def write() -> None:
        nonlocal done, number
        if tool.is_by_picture:
            waiting.sort(key=lambda task: task.picture)
        for name, text in tool.files(number, waiting, vocabulary).items():
            storage.write_text(storage.join(target, name), text)
        index = [{"sample_id": own.sample_id, "picture": own.picture, "labels": own.labels} for own in waiting]
        storage.write_table(storage.join(target, index_name(number)), pa.Table.from_pylist(index, schema=INDEX))
        done, number = done + len(waiting), number + 1
        waiting.clear()
        if told is not None:
            told(done, rows)

    for task in _tasks(tool, folder):
        waiting.append(task)
        if len(waiting) == tool.chunk:
            write()
    if waiting:
        write()
    for name, text in settings_files.items():
        storage.write_text(storage.join(target, name), text)
    records.write_record(
        storage.join(target, RECORD),
        {"tool": tool.name, "vocabulary": vocabulary.to_dict(), "rows": rows, "chunks": number, "labels": folder,
         "settings": tool.model_dump(mode="json")},
    )  # fmt: skip
    return Exported(str(out), rows, number, without)


def _tasks(tool: Tool, folder: str) -> Iterator[Task]:
    columns = ["sample_id", "image_uri", "captions", "probabilities", "labels", "selected"]
    for _, table in read_parts(folder, columns):
        matrix = matrix_of(table)
        for row, probabilities in zip(table.drop_columns(["probabilities"]).to_pylist(), matrix, strict=True):
            if row["selected"] and row["image_uri"]:
                yield Task(
                    row["sample_id"], tool.address(row["image_uri"]), row["captions"], row["labels"], probabilities
                )


def _checked(tool: Tool, folder: str) -> tuple[int, int]:
    """Checks the addresses of the selected rows; returns the number of tasks and of rows without a picture."""
    seen: dict[bytes, str] = {}
    without = 0
    for _, table in read_parts(folder, ["sample_id", "image_uri", "captions", "selected"]):
        for row in table.to_pylist():
            uri, name = row["image_uri"], row["sample_id"]
            if not row["selected"]:
                continue
            if not uri:
                without += 1
                continue
            with located(folder, row=name):
                if storage.scheme_of(uri) == tar.SCHEME:
                    raise InputError(
                        f"{tool.name} cannot open a picture inside a tar",
                        remedy="Unpack the tars, and prepare the table from their folder.",
                    )
                if VERSION.search(uri):
                    raise InputError(f"{tool.name} cannot open one version of an object ({uri})")
                key = tool.key(Task(name, tool.address(uri), row["captions"], [], np.zeros(0)))
                other = seen.setdefault(hashlib.blake2b(key.encode(), digest_size=12).digest(), name)
                if other != name:
                    raise InputError(
                        f"would be the same task in {tool.name} as {other}: {tool.same}",
                        remedy="Export labels of different pictures. `raymotion review` takes any rows.",
                    )
    if not seen:
        raise InputError("has no selected row with a picture", path=folder)
    return len(seen), without


def _clear(target: str, tool: Tool, settings_files: dict[str, str]) -> None:
    """Removes the files of an earlier export, whose last chunks would otherwise stay.

    Raises:
        InputError: the folder holds other files.
    """
    chunk = [re.escape(name).replace("00000", r"\d{5,9}") for name in (*tool.files(0, [], _NOTHING), index_name(0))]
    own = re.compile("|".join([*chunk, *map(re.escape, settings_files), re.escape(RECORD)]))
    names = storage.list_entries(target)
    for name in names:
        if not own.fullmatch(name):
            raise InputError(f"holds {name}, which is not of {tool.name}", path=target, remedy="Name another --out.")
    for name in sorted(names, key=lambda each: each != RECORD):  # without the record, what is left is no export
        storage.remove(storage.join(target, name))


_NOTHING = Vocabulary("nothing", ("nothing",))


def openable(uri: str, schemes: Sequence[str | None], tool: str, remedy: str) -> str:
    """Returns an address as it is if its scheme is one of `schemes` (None: a local path), else raises `InputError`."""
    scheme: Any = storage.scheme_of(uri)
    if scheme not in schemes:
        raise InputError(f"{tool} cannot open {uri}", remedy=remedy)
    return uri


def xml_attribute(text: str) -> str:
    """Returns a quoted value of an XML attribute; raises `InputError` for a character that XML cannot hold."""
    if any(ord(letter) < 32 or letter in "\ufffe\uffff" for letter in text):
        raise InputError(f"{text!a} has a character that XML cannot hold")
    return quoteattr(text)
