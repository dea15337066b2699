"""What a reader of raw data is. Each file beside this one is a reader: `my_set` holds the class `MySetReader`."""

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
    """Turns one raw data set into a sample table.

    `raymotion data prepare NAME` is made from a subclass: its docstring is the help, which ends in an example; its
    fields are the options, and those without a default the arguments.
    """

    @abstractmethod
    def read(self) -> tuple[pa.Table, Report]:
        """The sample table (see `samples.table_from_rows`), and what was met on the way.

        Every row and every file of the data set is in the table, or counted in the report.

        Raises:
            InputError: the data are damaged or not of this kind; it names file, row, reason and remedy.
        """


def noted(note: str) -> Any:
    """A count of a `Report` that starts at 0 and is told, if it is not 0, as a line `COUNT note`."""
    return field(default=0, metadata={"note": note})


@dataclass
class Report:
    """What a reader met. A subclass adds its counts; those made by `noted` have a line of their own.

    Attributes:
        rows: of the table.
        content: of the folder of pictures, and which files in it were left out.
    """

    rows: int = 0
    content: FolderContent = field(default_factory=lambda: FolderContent(""))

    def lines(self) -> list[str]:
        """What `raymotion data prepare` prints: `report_line`s of counts, then those of `notes`."""
        return [report_line("rows", self.rows), *self.note_lines()]

    def notes(self) -> list[str]:
        """A text for each thing that was left out, changed or cannot be told."""
        told = [(getattr(self, each.name), each.metadata["note"]) for each in fields(self) if "note" in each.metadata]
        return [f"{count:,} {note}" for count, note in told if count] + self.content.notes()

    def note_lines(self) -> list[str]:
        """The `notes` as lines."""
        return [report_line("note", note) for note in self.notes()]


def report_line(name: str, value: int | str, count: int = 0, what: str = "") -> str:
    """A line for the terminal: name, value and, where `count` is not 0, `(count what)`."""
    text = f"{value:,}" if isinstance(value, int) else value
    return f"{name:<11}{text}" + (f" ({count:,} {what})" if count else "")


def _own() -> dict[str, str]:
    names = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    package = __name__.rpartition(".")[0]
    return {name: f"{package}.{name}:{name.title().replace('_', '')}Reader" for name in names if name != "reader"}


READERS = Registry("reader", Reader, "raymotion.readers", _own)  # type: ignore[type-abstract]
