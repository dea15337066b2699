"""A report's summary as lines of plain text."""

from __future__ import annotations

from raymotion.report.figures import metric_rows
from raymotion.report.page import ReportSummary

HEADS = {
    "name": "validation",
    "value": "value",
    "interval": "95 % interval",
    "prior": "class prior",
    "constant": "constant",
}


def summary_lines(summary: ReportSummary) -> list[str]:
    """Everything below the verdict: further reasons, metrics beside their baselines, counts, where the page is."""
    collapse = summary.collapse
    lines = [f"  - {reason}" for reason in collapse.reasons[1:]]
    shown = collapse.notes if collapse.collapsed else collapse.notes[1:]
    lines += [f"  - {note}" for note in shown]
    if summary.evaluation is not None:
        lines += ["", *_table(metric_rows(summary.evaluation), summary.evaluation.samples), ""]

    def count(value: int | None) -> str:
        return "not recorded" if value is None else f"{value:,}"

    lines.append(
        f"images: {count(summary.images_in)} in, {summary.labelled:,} labelled, "
        f"{count(summary.quarantined)} quarantined, {summary.selected:,} selected; "
        f"{summary.distinct_first:,} distinct first labels, {summary.distinct_sets:,} distinct label sets"
    )
    lines.append(f"report: {summary.out} ({summary.size / 1e6:.1f} MB)")
    return lines


def _table(rows: list[dict[str, str]], samples: int) -> list[str]:
    heads = {**HEADS, "verdict": f"against both (n = {samples:,})"}
    widths = {key: max(len(head), *(len(row[key]) for row in rows)) for key, head in heads.items()}

    def cell(row: dict[str, str], key: str) -> str:
        return row[key].ljust(widths[key]) if key in ("name", "verdict") else row[key].rjust(widths[key])

    return ["  ".join(cell(row, key) for key in heads).rstrip() for row in [heads, *rows]]
