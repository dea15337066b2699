"""Errors that a user can act on.

Everything raised here reaches the terminal as one line, without a traceback (`--debug` shows it), and sets the exit
code of the command: 2 for input that has to be mended first, 1 for a run that started and failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RaymotionError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 2


class InputError(RaymotionError):
    """Something that the user handed in cannot be used.

    The message names, where they are known, the file, the row, the reason and the remedy:
    `coco.parquet, row 17: caption is not text. Give a list of strings.`

    `row` counts the rows of a table from 0, or names an entry. `line` counts the lines of a text file from 1, as an
    editor does; of a record that runs over several lines it is the first.
    """

    def __init__(
        self,
        reason: str,
        *,
        path: object = None,
        row: int | str | None = None,
        line: int | None = None,
        remedy: str | None = None,
    ) -> None:
        self.reason, self.path, self.row, self.line, self.remedy = reason, path, row, line, remedy
        parts = (
            str(path) if path else "",
            f"line {line}" if line is not None else "",
            f"row {row}" if row is not None else "",
        )
        where = ", ".join(part for part in parts if part)
        text = f"{where}: {reason}" if where else reason
        if remedy:
            text = f"{text.rstrip('.')}. {remedy}"
        super().__init__(text)


@contextmanager
def located(path: object, *, row: int | str | None = None, line: int | None = None) -> Iterator[None]:
    """Adds file and row, or line, to each `InputError` of its block that names no place."""
    try:
        yield
    except InputError as error:
        if (error.path, error.row, error.line) != (None, None, None):
            raise
        raise type(error)(error.reason, path=path, row=row, line=line, remedy=error.remedy) from error


class AccessDenied(InputError):
    """A file, folder or bucket may not be read or written. Never a fault of one row: the run stops."""


class AddressRefused(InputError):
    """An address of a kind that raymotion does not open, or not unless it is asked to. Nothing was requested."""


class Damaged(InputError):
    """A file that raymotion wrote is no longer what it wrote: cut, overwritten, exchanged or gone."""


class VocabularyMismatch(InputError):
    """Two vocabularies that have to be the same are not."""


class SettingsMismatch(InputError):
    """An output folder was made with other settings, other input or another model."""


class RunFailed(RaymotionError):
    """A run that started could not be finished; what it had committed stays."""

    exit_code = 1


class StoreUnavailable(RunFailed, ConnectionError):
    """A store failed for longer than its user wants to wait. Never a fault of one row: the run stops."""


class DiskFull(RunFailed):
    """A place has no room left, or the user's quota there is used up. Never a fault of one row or one trial."""


class NotFinite(RunFailed):
    """A number that is NaN or infinite where a result should be. It is never written to a file."""


class Diverged(NotFinite):
    """A training run whose loss or weights are no longer finite.

    The same command would diverge at the same step, so the run's state is of no use: it is removed, and the command
    with a lower learning rate starts fresh.
    """
