"""Tables as text: aligned columns, the same in a terminal, a log and a pipe; and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# Wider than any table: cells are never wrapped or cut.
WIDTH = 10_000


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """The lines of a table, without colour: its head, then its rows.

    Args:
        rows: as many texts each as `head`.
        left: positions of the columns that are aligned to the left; the others are figures, to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    buffer = io.StringIO()
    # Whatever the terminal is: FORCE_COLOR, a dumb terminal and a notebook each change what rich does by itself.
    Console(file=buffer, width=WIDTH, height=25, force_terminal=False, force_jupyter=False, color_system=None).print(
        table
    )
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; None is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue()
