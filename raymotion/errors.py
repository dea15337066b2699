"""Errors that a user can act on.

The command line prints each of them as one line, without a traceback (`--debug` shows it), and exits with code 2 for
input that must be fixed first, or 1 for a run that started and failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class RaymotionError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 2


class InputError(RaymotionError):
    """The user's input cannot be used.

    The message gives the file, row, reason and remedy as far as they are known:
    `coco.parquet, row 17: caption is not text. Give a list of strings.`

    `row` is the index of a table's row, from 0, or the name of an entry. `line` is the line number in a text file, from
    1; for a record that spans several lines, the first of them.
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
    """Adds the file and the row or line to any `InputError` raised in the block without a location."""
    try:
        yield
    except InputError as error:
        if (error.path, error.row, error.line) != (None, None, None):
            raise
        raise type(error)(error.reason, path=path, row=row, line=line, remedy=error.remedy) from error


class AccessDenied(InputError):
    """Permission to read or write a file, folder or bucket is denied. Stops the run; never quarantines a row."""


class AddressRefused(InputError):
    """An address of a kind that raymotion does not open, or only on request. Raised before any access."""


class Damaged(InputError):
    """A file that raymotion wrote has been truncated, overwritten, replaced or removed."""


class VocabularyMismatch(InputError):
    """Two vocabularies differ that must be the same."""


class SettingsMismatch(InputError):
    """An output folder was made with other settings, other input or another model."""


class RunFailed(RaymotionError):
    """A run started but could not finish; its commits are kept."""

    exit_code = 1


class StoreUnavailable(RunFailed, ConnectionError):
    """A store kept failing for longer than the user's patience. Stops the run; never quarantines a row."""


class DiskFull(RunFailed):
    """A disk is full or the user's quota is used up. Never counts as the failure of one row or one trial."""


class NotFinite(RunFailed):
    """A result is NaN or infinite. Such numbers are never written to a file."""


class Diverged(NotFinite):
    """The loss or weights of a training run are no longer finite.

    The same command would diverge at the same step, so the run's state is removed. The command with a lower learning
    rate starts from scratch.
    """
