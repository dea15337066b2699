"""The base class of readers of raw data. Each file beside this one is a reader: `my_set` holds `MySetReader`, which is
`raymotion data prepare my-set`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from raymotion.config import Settings
from raymotion.data.images.files import FolderContent
from raymotion.errors import InputError
from raymotion.registry import Registry, classes_beside

if TYPE_CHECKING:
    import pyarrow as pa


class Reader(Settings, ABC):
    """Converts one raw data set to a sample table.

    `raymotion data prepare NAME` is generated from a subclass: its docstring is the help text, which ends with an
    example; its fields are the options, and fields without a default the arguments.
    """

    @abstractmethod
    def read(self) -> tuple[pa.Table, Report]:
        """Returns the sample table (see `samples.table_from_rows`) and a report.

        Every row and every file of the data set is in the table or counted in the report.

        Raises:
            InputError: the data are damaged or of another format; names file, row, reason and remedy.
        """


def require_read(reader: type[Reader]) -> None:
    """Raises an `InputError` if a reader does not define what all must, or a field of a name that is taken."""
    if reader.__abstractmethods__:
        missing = ", ".join(sorted(reader.__abstractmethods__))
        raise InputError(
            f"the reader {reader.__module__}:{reader.__qualname__} does not define {missing}",
            remedy="Add it to the class.",
        )
    taken = sorted({"out", "relative", "allow_http", "store_patience"} & set(reader.model_fields))
    if taken:
        raise InputError(
            f"the reader {reader.__module__}:{reader.__qualname__} has a field {taken[0]}, which is an option of all",
            remedy="Give the field another name.",
        )


def read_all(reader: Reader) -> tuple[pa.Table, Report]:
    """Runs a reader, and checks what it returns.

    Raises:
        InputError: as `Reader.read`; or the reader returns something else, or no row.
    """
    import pyarrow as pa

    place = f"{type(reader).__module__}:{type(reader).__qualname__}.read"
    found = reader.read()
    if not (isinstance(found, tuple) and len(found) == 2):
        raise InputError(f"{place} returns a {type(found).__name__}", remedy="Return a sample table and a Report.")
    table, report = found
    if not isinstance(table, pa.Table):
        raise InputError(
            f"{place} returns a {type(table).__name__} as its table",
            remedy="Make one of rows: raymotion.data.samples.table_from_rows.",
        )
    if not isinstance(report, Report):
        raise InputError(
            f"{place} returns a {type(report).__name__} as its report",
            remedy="Return a raymotion.data.readers.reader.Report, e.g. Report(rows=table.num_rows).",
        )
    if report.rows != table.num_rows:
        raise InputError(
            f"{place} reports {report.rows:,} rows, and its table has {table.num_rows:,}",
            remedy="Let rows of the report be table.num_rows.",
        )
    if not table.num_rows:
        notes = "; ".join(report.notes())
        raise InputError(f"no row was found ({notes or 'nothing was left out'})", remedy="Is this the right place?")
    return table, report


def noted(note: str, one: str | None = None) -> Any:
    """Declares a count of a `Report` that starts at 0 and is reported as `COUNT note` unless it is 0; 1 as `1 one`."""
    return field(default=0, metadata={"note": note, "one": one or note})


@dataclass
class Report:
    """The counts of a reader. Subclasses add their own; those declared with `noted` are reported on their own line.

    Attributes:
        rows: number of rows of the table.
        content: the folder of pictures, and the files in it that were left out.
    """

    rows: int = 0
    content: FolderContent = field(default_factory=lambda: FolderContent(""))

    def lines(self) -> list[str]:
        """Returns the lines that `raymotion data prepare` prints: counts, then notes."""
        return [report_line("rows", self.rows), *self.note_lines()]

    def notes(self) -> list[str]:
        """Returns one text for each kind of data that was left out, changed or is uncertain."""
        told = [(getattr(self, each.name), each.metadata) for each in fields(self) if "note" in each.metadata]
        notes = [f"{count:,} {texts['one' if count == 1 else 'note']}" for count, texts in told if count]
        return notes + self.content.notes()

    def note_lines(self) -> list[str]:
        """Returns the `notes` as lines."""
        return [report_line("note", note) for note in self.notes()]


def report_line(name: str, value: int | str, count: int = 0, what: str = "") -> str:
    """Formats a line for the terminal: name, value and, if `count` is not 0, `(count what)`."""
    text = f"{value:,}" if isinstance(value, int) else value
    return f"{name:<11}{text}" + (f" ({count:,} {what})" if count else "")


def _own() -> dict[str, str]:
    return classes_beside(__name__, __file__, "Reader")


READERS = Registry("reader", Reader, "raymotion.readers", _own)  # type: ignore[type-abstract]
