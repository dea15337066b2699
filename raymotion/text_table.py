"""Tables as aligned text, identical in a terminal, a log and a pipe, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from typing import Any

# Wider than any table, so that cells are never wrapped or cut.
WIDTH = 10_000


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[int] = (0,)) -> list[str]:
    """Returns the lines of a table, head first, without colour.

    Args:
        rows: each as long as `head`.
        left: indices of the columns to align to the left; the others are aligned to the right.
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
    # Fixed, because by default rich adapts to FORCE_COLOR, a dumb terminal or a notebook.
    Console(file=buffer, width=WIDTH, height=25, force_terminal=False, force_jupyter=False, color_system=None).print(
        table
    )
    return [line.rstrip() for line in buffer.getvalue().splitlines()]


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns the table as CSV, with None as an empty cell."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue()
