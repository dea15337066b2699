"""Base class of readers of raw data. Each module in this package is a reader: `my_set` defines `MySetReader`."""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymotion.config import Settings
from raymotion.data.images.files import FolderContent
from raymotion.registry import Registry

if TYPE_CHECKING:
    import pyarrow as pa


class Reader(Settings, ABC):
    """Converts one raw data set to a sample table.

    Each subclass becomes a command `raymotion data prepare NAME`: its docstring is the help text and ends with an
    example; fields without a default are arguments, the others options.
    """

    @abstractmethod
    def read(self) -> tuple[pa.Table, Report]:
        """Returns the sample table (see `samples.table_from_rows`) and a report.

        Every row and file of the data set is either in the table or counted in the report.

        Raises:
            InputError: the data are damaged or of another format; names file, row, reason and remedy.
        """


def noted(note: str) -> Any:
    """Defines a counter field of a `Report`; it starts at 0 and is reported as `COUNT note` unless it is 0."""
    return field(default=0, metadata={"note": note})


@dataclass
class Report:
    """Counts from one run of a reader. Subclasses add fields; each one defined by `noted` gets its own line.

    Attributes:
        rows: number of rows in the table.
        content: content of the image folder, including the files that were left out.
    """

    rows: int = 0
    content: FolderContent = field(default_factory=lambda: FolderContent(""))

    def lines(self) -> list[str]:
        """Returns the output lines of `raymotion data prepare`: the counts, then the `notes`."""
        return [report_line("rows", self.rows), *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns a text for each kind of data that was left out, changed or could not be determined."""
        told = [(getattr(self, each.name), each.metadata["note"]) for each in fields(self) if "note" in each.metadata]
        return [f"{count:,} {note}" for count, note in told if count] + self.content.notes()

    def note_lines(self) -> list[str]:
        """Returns the `notes` as lines."""
        return [report_line("note", note) for note in self.notes()]


def report_line(name: str, value: int | str, count: int = 0, what: str = "") -> str:
    """Formats a line for the terminal: name, value and, unless `count` is 0, `(count what)`."""
    text = f"{value:,}" if isinstance(value, int) else value
    return f"{name:<11}{text}" + (f" ({count:,} {what})" if count else "")


def _own() -> dict[str, str]:
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    package = __name__.rpartition(".")[0]
    return {name: f"{package}.{name}:{name.title().replace('_', '')}Reader" for name in names if name != "reader"}


READERS = Registry("reader", Reader, "raymotion.readers", _own)  # type: ignore[type-abstract]
