"""Errors that a user can act on.

They are printed as one line, without a traceback (`--debug` shows it), and set the exit code of the command: 2 for
input that has to be corrected, 1 for a run that started and failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class RaymotionError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 2


class InputError(RaymotionError):
    """Input from the user cannot be used.

    The message names, if known, the file, the row, the reason and the remedy:
    `coco.parquet, row 17: caption is not text. Give a list of strings.`

    `row` counts the rows of a table from 0, or names an entry. `line` counts the lines of a text file from 1, like an
    editor; for a record of several lines it is the first.
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
    """Adds file and row, or line, to every `InputError` raised in the block without a location."""
    try:
        yield
    except InputError as error:
        if (error.path, error.row, error.line) != (None, None, None):
            raise
        raise type(error)(error.reason, path=path, row=row, line=line, remedy=error.remedy) from error


def guess(name: str, known: Iterable[str]) -> str:
    """Returns ` Did you mean 'X'?` for the known name that is most like a misspelt one, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


class AccessDenied(InputError):
    """A file, folder or bucket may not be read or written. Stops the run, because it is not the fault of one row."""


class AddressRefused(InputError):
    """An address has a scheme that raymotion does not open, or only on request. No request was made."""


class Damaged(InputError):
    """A file written by raymotion has been truncated, overwritten, exchanged or removed."""


class VocabularyMismatch(InputError):
    """Two vocabularies differ that must be the same."""


class SettingsMismatch(InputError):
    """An output folder belongs to other settings, other input or another model."""


class RunFailed(RaymotionError):
    """A run could not be finished; its commits are kept."""

    exit_code = 1


class StoreUnavailable(RunFailed, ConnectionError):
    """A store failed for longer than the allowed patience. Stops the run, because it is not the fault of one row."""


class DiskFull(RunFailed):
    """A disk is full or a quota is used up. Never the fault of one row or one trial."""


class NotFinite(RunFailed):
    """A result is NaN or infinite. Such numbers are never written."""


class Diverged(NotFinite):
    """The loss or the weights of a training run are not finite.

    The same command would diverge at the same step, so the state of the run is removed; a command with a lower learning
    rate starts from scratch.
    """
