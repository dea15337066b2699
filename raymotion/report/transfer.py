"""The table and the figure of a fine-tuning comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from raymotion import storage
from raymotion.learning.significance import Gain, Verdict, headline
from raymotion.report.plots import new_figure, png, style_axes
from raymotion.text_table import table_lines

if TYPE_CHECKING:
    from raymotion.train.transfer import Comparison, Row, Score

# Record name -> heading of the terminal's columns; json and csv also hold the other metrics. BCE comes first because
# a constant prediction cannot look good by it.
SHOWN = {"bce": "BCE (lower)", "macro_ap": "mAP", "top_1": "top-1", "top_3": "top-3"}
LINES = {"AnB": "#b3423a", "AnB+": "#b3423a", "BnB": "#31688e", "BnB+": "#31688e"}


def comparison_lines(result: Comparison) -> list[str]:
    """Formats a table for a terminal, baselines first, with mean and standard deviation over seeds and explanations."""
    names = [name for name in SHOWN if all(name in row.scores for row in result.rows)]
    seeds = len(result.rows[0].scores[names[0]].values)
    head = (f"{result.split}, n = {result.samples}", *(SHOWN[name] for name in names), "mAP over scratch", "distinct")
    first = result.rows[0].scores
    table = [
        ("class prior", *(f"{first[name].prior:.4f}" for name in names), "", "1"),
        ("constant", *(f"{first[name].constant:.4f}" for name in names), "", "1"),
        *(
            (
                title(row, len(result.layers)),
                *(_cell(row.scores[name]) for name in names),
                _gain(row),
                _range(row.distinct_top3),
            )
            for row in result.rows
        ),
    ]
    return [*table_lines(head, table), *_reading(result, seeds)]


def _reading(result: Comparison, seeds: int) -> list[str]:
    """Explains the columns, and the gain of the best transfer from pseudo-labels."""
    lines = [
        f"mean (sd) over {seeds} seed{'s' if seeds > 1 else ''}; over scratch: mean difference, seeds that gained; "
        "distinct: sets of three highest labels"
    ]
    from_a = [row for row in result.rows if row.condition in ("AnB", "AnB+")]
    if from_a:
        # Chosen on validation, not on the test split.
        lines.append(_finding(result, max(from_a, key=lambda row: row.validation_map)))
    return lines


def _finding(result: Comparison, best: Row) -> str:
    """Compares the transfer from pseudo-labels with training from scratch and with its control."""
    control = best.condition.replace("A", "B")
    gains = {"training from scratch": best.gain, f"its control {control}": best.over_control}
    verdicts: dict[str, Verdict] = {name: "untested" if gain is None else gain.verdict for name, gain in gains.items()}
    numbers = "; ".join(
        f"against {name} " + (_in_words(gain) if gain is not None else "nothing was run")
        for name, gain in gains.items()
    )
    nats = best.scores["bce"].against_scratch
    # A better ranking with worse probabilities does not count as better.
    verdicts["training from scratch in BCE"] = "better" if all(gain > 0 for gain in nats) else "unclear"
    student = f"The student that saw pseudo-labels ({title(best, len(result.layers))})"
    measured = f"{numbers}; BCE {-np.mean(nats):+.4f} nats against scratch (lower is better); {result.samples} images"
    doubtful = [name for name, verdict in verdicts.items() if verdict != "better"]
    return headline(
        verdicts,
        {
            "good": f"{student} beats training from scratch and its control {control}: {measured}.",
            "unsure": f"{student} is not shown to be better than {' or '.join(doubtful)}: {measured}.",
            "bad": f"{student} is worse than "
            f"{' and '.join(name for name, verdict in verdicts.items() if verdict == 'worse')}: {measured}.",
        },
    ).text


def _in_words(gain: Gain) -> str:
    ends = "" if gain.low is None else f", 95 % interval over images {gain.low:+.4f} to {gain.high:+.4f}"
    won = sum(value > 0 for value in gain.seeds)
    return f"mAP {np.mean(gain.seeds):+.4f} (better in {won} of {len(gain.seeds)} seeds{ends})"


def title(row: Row, layers: int) -> str:
    """Returns the title of a row, such as `AnB, n = 3 of 5`."""
    return "scratch" if row.depth is None else f"{row.condition}, n = {row.depth} of {layers}"


def _cell(score: Score) -> str:
    return f"{score.mean:.4f}" + ("" if np.isnan(score.spread) else f" ({score.spread:.4f})")


def _gain(row: Row) -> str:
    if row.depth is None or "macro_ap" not in row.scores:
        return ""
    gains = row.scores["macro_ap"].against_scratch
    return f"{np.mean(gains):+.4f}, {sum(gain > 0 for gain in gains)}/{len(gains)}"


def _range(values: tuple[int, ...]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def write_figure(result: Comparison) -> None:
    """Writes finetune.png into the comparison's folder."""
    storage.write_bytes(storage.join(result.folder, "finetune.png"), transfer_figure(result))


def transfer_figure(result: Comparison, metric: str = "macro_ap") -> bytes:
    """Plots mAP against the depth of the transfer, a point for each seed, as PNG (Yosinski et al. 2014, figure 2)."""
    figure = new_figure(7, 4.2)
    axes = figure.subplots()
    scratch = result.rows[0].scores[metric]
    axes.axhline(scratch.mean, color="#555555", lw=1.2, label="scratch")
    if not np.isnan(scratch.spread):
        axes.axhspan(scratch.mean - scratch.spread, scratch.mean + scratch.spread, color="#555555", alpha=0.12, lw=0)
    axes.axhline(scratch.constant, color="#555555", lw=1, ls=":", label="constant answer")
    for number, (condition, colour) in enumerate(LINES.items()):
        rows = [row for row in result.rows if row.condition == condition and metric in row.scores]
        if not rows:
            continue
        x = np.array([float(row.depth or 0) for row in rows]) + 0.04 * (number - 1.5)
        tuned = condition.endswith("+")
        axes.plot(
            x, [row.scores[metric].mean for row in rows], color=colour, ls="-" if tuned else "--",
            marker="o" if tuned else "s", ms=5, label=condition,
        )  # fmt: skip
        for place, row in zip(x, rows, strict=True):
            values = row.scores[metric].values
            axes.plot([place] * len(values), values, color=colour, ls="", marker=".", ms=4, alpha=0.5)
    depths = sorted({row.depth for row in result.rows if row.depth})
    axes.set_xticks(depths)
    axes.set_xlim(min(depths, default=0) - 0.5, max(depths, default=0) + 0.5)
    axes.set_xlabel(f"layers copied, of {len(result.layers)}")
    axes.set_ylabel(SHOWN.get(metric, metric))
    axes.set_title(f"Transfer, {result.split} split, n = {result.samples}: seeds and their mean", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    style_axes(axes)
    return png(figure)
