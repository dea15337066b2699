"""An evaluation as lines of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from raymotion import storage
from raymotion.evaluation.evaluate import EvaluationSummary
from raymotion.report.evaluation_page import calibration_row, verdict, warnings_of
from raymotion.report.figures import metric_rows

METRICS = {
    "name": "metric", "value": "value", "interval": "95 % interval", "prior": "class prior", "constant": "constant",
    "samples": "n", "verdict": "against both",
}  # fmt: skip
CALIBRATION = {
    "name": "calibration error", "error": "value", "interval": "95 % interval", "prior": "class prior",
    "by_luck": "by luck",
}  # fmt: skip


def summary_lines(summary: EvaluationSummary) -> list[str]:
    """Caution first, then the verdict, metrics beside their baselines, calibration, counts, where the files are."""
    measured, samples = summary.measured, summary.record["samples"]
    distinct, evaluation = measured.diversity, measured.evaluation
    lines = [] if summary.caution is None else [summary.caution]
    lines.append(verdict(measured, warnings_of(summary.record)).text)
    lines += [f"  - {text}" for text in (*measured.collapse.reasons, *measured.collapse.notes, *measured.notes)]
    lines += [f"note: {notice}" for notice in summary.record["notices"]]
    lines += ["", *table(METRICS, metric_rows(evaluation)), ""]
    rows = []
    for scores in measured.calibration:
        row = calibration_row(scores)
        rows.append({**row, "name": f"pooled, {row['name']}"})
        rows.append(
            {
                "name": f"mean over labels, {row['name']}",
                "error": row["class_error"],
                "interval": row["class_interval"],
                "prior": row["class_prior"],
                "by_luck": row["class_by_luck"],
            }
        )
    lines += [*table(CALIBRATION, rows), ""]
    if evaluation.classes_left_out:
        lines.append(f"{evaluation.classes_left_out} labels without a positive are left out of the macro means")
    lines.append(
        f"distinct answers: {distinct.top_1:,} first labels, {distinct.top_3:,} sets of three highest, "
        f"{distinct.chosen_sets:,} sets above the thresholds (the commonest for {100 * distinct.commonest_share:.0f} %)"
    )
    left_out = f"; {samples['without_labels']:,} without labels left out" if samples["without_labels"] else ""
    lines.append(
        f"samples, split {samples['split']}: {samples['in']:,} in = {samples['good']:,} scored + "
        f"{samples['quarantined']:,} in quarantine{left_out}"
    )
    lines += [f"  quarantine: {count} {reason}" for reason, count in samples["by_reason"].items()]
    lines.append(f"page: {storage.join(summary.out, 'evaluation.html')}")
    return lines


def table(heads: dict[str, str], rows: Sequence[dict[str, str]]) -> list[str]:
    """Aligned columns; the first and the last column to the left."""
    names = list(heads)
    widths = {name: max(len(row[name]) for row in [heads, *rows]) for name in names}

    def cell(row: dict[str, str], name: str) -> str:
        left = name in ("name", "verdict")
        return row[name].ljust(widths[name]) if left else row[name].rjust(widths[name])

    return ["  ".join(cell(row, name) for name in names).rstrip() for row in [heads, *rows]]
