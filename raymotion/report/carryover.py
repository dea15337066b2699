"""The table, the headline and the page of how a recipe carries over to domains that it was not trained on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from raymotion import storage
from raymotion.learning.metrics.auc import CHANCE
from raymotion.learning.metrics.multilabel import interval_text
from raymotion.learning.significance import FEWEST_IMAGES, FEWEST_SEEDS, Headline, Verdict, headline
from raymotion.report.rendering import template
from raymotion.text_table import table_lines
from raymotion.version import __version__

if TYPE_CHECKING:
    from raymotion.train.carryover import Carryover, Row

HEADS = ("n", "labels judged", "macro AUC (chance 0.5)", "95 % interval", "mAP (chance)", "BCE below prior")


def verdict(result: Carryover) -> Headline:
    """Returns the headline: whether the recipe ranks better than chance in each domain that it was not trained on."""
    verdicts: dict[str, Verdict] = {str(row.domain): row.over_chance.verdict for row in result.held_out}
    ranked = ", ".join(f"{_auc(row):.3f} on {row.domain}" for row in result.held_out)
    figures = (
        f"held out one {result.column} at a time, the macro AUC is {ranked} (chance {CHANCE:.1f}); in its own domains "
        f"{_auc(result.row(None)):.3f}"
    )
    named = {word: ", ".join(name for name, own in verdicts.items() if own == word) for word in set(verdicts.values())}
    few = f" With fewer than {FEWEST_SEEDS} seeds nothing is shown." if "untested" in named else ""
    doubtful = ", ".join(name for name, own in verdicts.items() if own != "better")
    return headline(
        verdicts,
        {
            "good": f"It carries over: {figures}.",
            "reserved": f"It carries over: {figures}.",
            "unsure": f"It is not shown to carry over to {doubtful}: {figures}.{few}",
            "bad": f"It does not carry over to {named.get('worse')}, where it ranks worse than chance: {figures}.",
        },
        warnings=warnings(result),
    )


def warnings(result: Carryover) -> list[str]:
    """Returns the reservations about a recipe that ranks better than chance elsewhere."""
    found = []
    for row in result.held_out:
        if row.over_linear is not None and row.over_linear.verdict == "worse":
            simple = _auc(result.row(row.domain, linear=True))
            found.append(
                f"Logistic regression on the frozen features carries over better to {row.domain}: {simple:.3f} against "
                f"{_auc(row):.3f}."
            )
        if row.values("bce_gain").mean() <= 0:
            found.append(
                f"On {row.domain} its probabilities are worse than the class prior of the training domains (BCE "
                f"{-row.values('bce_gain').mean():+.4f}): its order carries over, its rates do not."
            )
    return found


def carryover_lines(result: Carryover) -> list[str]:
    """Formats headline, table and explanations for a terminal."""
    first = verdict(result)
    seeds = len(result.row(None).evaluations)
    lines = [first.text, *(f"  - {text}" for text in warnings(result)), ""]
    lines += table_lines((_first_head(result), *HEADS), table_rows(result))
    lines += ["", *notes(result, seeds), f"model, trained on all: {storage.join(result.folder, 'model')}"]
    return [*lines, f"page: {storage.join(result.folder, 'carryover.html')}"]


def notes(result: Carryover, seeds: int) -> list[str]:
    """Explains the columns of the table."""
    lines = [
        f"mean (sd) over {seeds} seed{'' if seeds == 1 else 's'}; judged: labels that {FEWEST_IMAGES} images "
        f"carry and {FEWEST_IMAGES} do not; prior: class rates of the training domains"
    ]
    rows = [row for row in result.rows if not row.linear]
    if seeds > 1 and all(np.ptp(row.values("macro_auc")) == 0 for row in rows):
        lines.append("All seeds gave the same model: nothing in this recipe is random.")
    if result.without_linear is not None:
        lines.append(f"No logistic regression on frozen features beside it: {result.without_linear}.")
    return lines


def table_rows(result: Carryover) -> list[tuple[str, ...]]:
    """Returns the texts of the table, a row for each recipe and domain; the columns after the first are `HEADS`."""
    rows: list[tuple[str, ...]] = []
    for row in result.rows:
        where = "none: the table's test split" if row.domain is None else row.domain
        low, high = row.over_chance.low, row.over_chance.high
        ends = (None, None) if low is None or high is None else (CHANCE + low, CHANCE + high)
        rows.append(
            (
                f"logistic regression, {where}" if row.linear else where, f"{row.samples:,}", str(row.labels),
                _cell(row.values("macro_auc")), interval_text(*ends),
                f"{_cell(row.values('macro_ap'))} ({row.chance_map:.4f})", _cell(row.values("bce_gain"), "+"),
            )
        )  # fmt: skip
    return rows


def write_page(result: Carryover) -> None:
    """Writes carryover.html into the comparison's folder."""
    first, seeds = verdict(result), len(result.row(None).evaluations)
    held = [*result.held_out, result.row(None)]
    labels = [own.label for own in held[0].evaluations[0].per_class]
    page = template("carryover.html.j2").render(
        state=first.state,
        headline=first.text,
        remarks=warnings(result),
        notices=[],
        column=result.column,
        recipe=result.recipe,
        key_figures=[
            ("lowest macro AUC, held out", f"{min(map(_auc, result.held_out)):.3f}"),
            ("macro AUC, own domains", f"{_auc(result.row(None)):.3f}"),
            ("chance", f"{CHANCE:.1f}"),
            ("domains held out", str(len(result.held_out))),
            ("seeds", str(seeds)),
        ],
        facts=[("Kind", result.recipe), ("Samples", result.settings["data"]["samples"]), ("Column", result.column)],
        heads=(_first_head(result), *HEADS),
        rows=table_rows(result),
        notes=notes(result, seeds),
        label_heads=("label", *(row.domain or "none: the table's test split" for row in held)),
        label_rows=[(name, *(_label_auc(row, j) for row in held)) for j, name in enumerate(labels)],
        settings=json.dumps(result.settings, indent=2, ensure_ascii=False),
        provenance=[
            ("Fingerprint of the data", result.settings["data_fingerprint"]),
            ("Version of raymotion", __version__),
        ],
    )
    storage.write_text(storage.join(result.folder, "carryover.html"), page)


def _first_head(result: Carryover) -> str:
    return f"{result.column} held out"


def _auc(row: Row) -> float:
    return float(row.values("macro_auc").mean())


def _cell(values: np.ndarray, sign: str = "") -> str:
    return f"{values.mean():{sign}.4f}" + (f" ({values.std(ddof=1):.4f})" if len(values) > 1 else "")


def _label_auc(row: Row, label: int) -> str:
    """Returns a label's mean AUC over seeds, and its positives; a dash where they are too few to judge it."""
    own = [one.per_class[label] for one in row.evaluations]
    positives = own[0].positives
    if not row.judged[label]:
        return f"– ({positives})"
    return f"{np.mean([one.auc for one in own]):.3f} ({positives})"
