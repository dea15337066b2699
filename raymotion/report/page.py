"""One self-contained HTML page about a labelled data set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.batch.label_dataset import LabelledRow, LabelledSet, load_labels
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.learning.collapse import Collapse, first_labels
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.priors import told_rates
from raymotion.report import figures
from raymotion.report.cards import Card, ReviewLink, make_card
from raymotion.report.rendering import NOT_RECORDED, as_text, percent, template
from raymotion.report.review import write_review

EMOTIONS_SHOWN = 5
QUARANTINE_SHOWN = 20


@dataclass(frozen=True)
class ReportSummary:
    """Summary of the page, for a terminal.

    Attributes:
        headline: the verdict of the collapse check, one line.
        images_in, labelled, quarantined: counts; None if the job did not record them.
        distinct_sets, distinct_first: numbers of distinct label sets of the selected images and of distinct most
            probable labels.
        domain: line of the domain check, or None.
        size: of the page, in bytes.
    """

    out: str
    headline: str
    collapse: Collapse
    evaluation: Evaluation | None
    images_in: int | None
    labelled: int
    selected: int
    quarantined: int | None
    distinct_sets: int
    distinct_first: int
    domain: str | None
    size: int


def write_report(
    labels_dir: storage.PathLike,
    out: storage.PathLike,
    *,
    samples_shown: int = 24,
    seed: int = 0,
    review: storage.PathLike | None = None,
) -> ReportSummary:
    """Writes the report of a labels folder to `out`: one HTML file that needs no network and runs no script.

    Args:
        labels_dir: folder of the labelling job.
        samples_shown: number of images shown with captions and labels, a third of each kind.
        seed: for the images chosen at random.
        review: folder to write a review to (`report.review`), to which the page's numbers lead.

    Raises:
        InputError: the folder is not a labels folder.
    """
    if samples_shown < 0:
        raise InputError(f"samples_shown {samples_shown} is negative")
    outputs.require_replaceable(out, "a report", outputs.is_page)
    labelled = load_labels(labels_dir)
    collapse = labelled.check_collapse(map(str, labelled.recorded("notices") or ()))
    headline, state = collapse.headline, collapse.verdict.state
    if labelled.unfinished is not None:
        headline, state = f"{labelled.unfinished} So far: {headline}", "bad" if state == "bad" else "unsure"
    entropy = labelled.entropy(labelled.probabilities)
    distinct, common = figures.common_sets(labelled)
    first = len(first_labels(labelled.probabilities)[0])
    reasons, failed = labelled.quarantine(QUARANTINE_SHOWN)
    quarantined = _whole(labelled.recorded("counts", "quarantined"))
    if quarantined is None and reasons:
        quarantined = sum(reasons.values())

    domain = labelled.recorded("domain")
    picked = figures.pick_samples(entropy, samples_shown, seed)
    rows = labelled.rows([i for i, _ in picked])
    cards = [_card(labelled, i, why, row) for (i, why), row in zip(picked, rows, strict=True)]
    if review is not None:
        write_review(labels_dir, review, everything=True)
    html = template("report.html.j2").render(
        review=None if review is None else ReviewLink(str(out), str(review)),
        labelled=labelled,
        collapse=collapse,
        domain=domain,
        state=state,
        headline=headline,
        remarks=(collapse.reasons + collapse.notes)[1:],
        key_figures=_key_figures(labelled, quarantined, distinct, first),
        facts=_facts(labelled),
        notices=_notices(labelled, quarantined),
        metrics=figures.metric_rows(labelled.evaluation) if labelled.evaluation else [],
        rates=figures.class_rates(labelled),
        chosen_by_rates=figures.chosen_by_rates(labelled),
        histogram=figures.entropy_histogram(labelled, entropy),
        distinct=distinct,
        common=common,
        cards=cards,
        throughput=_throughput(labelled),
        quarantine_reasons=reasons,
        quarantine_rows=failed,
        quarantined=quarantined,
        settings=json.dumps(labelled.recorded("settings") or {}, indent=2, ensure_ascii=False),
        provenance=_provenance(labelled),
    )
    data = html.encode("utf-8", errors="replace")  # captions may contain lone surrogates
    storage.write_bytes(out, data)
    return ReportSummary(
        out=str(out),
        headline=headline,
        collapse=collapse,
        evaluation=labelled.evaluation,
        images_in=_whole(labelled.recorded("counts", "in")),
        labelled=len(labelled),
        selected=int(labelled.selected.sum()),
        quarantined=quarantined,
        distinct_sets=distinct,
        distinct_first=first,
        domain=None if domain is None else str(domain["headline"]),
        size=len(data),
    )


def summary_lines(summary: ReportSummary) -> list[str]:
    """Formats everything below the verdict: further reasons, metrics with baselines, counts, path of the page."""
    collapse = summary.collapse
    lines = [f"  - {reason}" for reason in collapse.reasons[1:]]
    domain = [] if summary.domain is None else [summary.domain]
    shown = collapse.notes if collapse.collapsed else collapse.notes[1:]
    lines += [*(f"  - {note}" for note in shown), *domain]
    if summary.evaluation is not None:
        lines += ["", *figures.metric_lines(summary.evaluation, "validation"), ""]

    def count(value: int | None) -> str:
        return "not recorded" if value is None else f"{value:,}"

    lines.append(
        f"images: {count(summary.images_in)} in, {summary.labelled:,} labelled, "
        f"{count(summary.quarantined)} quarantined, {summary.selected:,} selected; "
        f"{summary.distinct_first:,} distinct first labels, {summary.distinct_sets:,} distinct label sets"
    )
    lines.append(f"report: {summary.out} ({summary.size / 1e6:.1f} MB)")
    return lines


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return NOT_RECORDED
    if value < 120:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s" if value < 7200 else f"{value / 3600:.1f} h"


def _rate(value: Any) -> str:
    if not isinstance(value, int | float):
        return NOT_RECORDED
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _key_figures(labelled: LabelledSet, quarantined: int | None, distinct: int, first: int) -> list[tuple[str, str]]:
    return [
        ("images in", as_text(_whole(labelled.recorded("counts", "in")))),
        ("labelled", f"{len(labelled):,}"),
        ("quarantined", as_text(quarantined)),
        ("selected", f"{int(labelled.selected.sum()):,}"),
        ("distinct first labels", f"{first:,}"),
        ("distinct label sets", f"{distinct:,}"),
        ("images/s", _rate(labelled.recorded("throughput", "images_per_second"))),
    ]


def _facts(labelled: LabelledSet) -> list[tuple[str, str]]:
    extractor = labelled.recorded("model", "extractor")
    if isinstance(extractor, Mapping):
        regions = f", {extractor['count']} regions an image" if extractor.get("count") else ""
        extractor = f"{as_text(extractor.get('name'))} (weights: {as_text(extractor.get('weights'))}{regions})"
    vocabulary = labelled.vocabulary
    selection = labelled.recorded("settings", "selection")
    return [
        ("Model", as_text(labelled.recorded("model", "path"))),
        ("Reads", as_text(labelled.recorded("model", "reads"))),
        ("Region extractor", "none" if extractor is None else as_text(extractor)),
        ("Vocabulary", f"{vocabulary.name}, {len(vocabulary)} labels"),
        ("Selection", as_text(selection)),
        ("Input", as_text(labelled.recorded("input", "path"))),
    ]


def _notices(labelled: LabelledSet, quarantined: int | None) -> list[str]:
    notices = labelled.recorded("notices")
    result = [str(notice) for notice in notices] if isinstance(notices, list) else []
    choice, told = labelled.recorded("choice"), labelled.recorded("choice", "notes")
    if isinstance(choice, Mapping):
        result += told_rates(labelled.vocabulary.labels, choice)
    result += [str(note) for note in told] if isinstance(told, list) else []
    if labelled.recorded("status") != "complete":
        result.insert(0, labelled.unfinished or "The job's status is not recorded: rows may be missing.")
        return result
    good, total = _whole(labelled.recorded("counts", "good")), _whole(labelled.recorded("counts", "in"))
    if good is not None and good != len(labelled):
        result.insert(0, f"_job.json counts {good:,} labelled images, the parts hold {len(labelled):,}.")
    if good is not None and total is not None and quarantined is not None and good + quarantined != total:
        result.insert(0, f"The books do not close: {total:,} in, {good:,} labelled, {quarantined:,} quarantined.")
    return result


def _throughput(labelled: LabelledSet) -> list[tuple[str, str]]:
    def get(key: str) -> Any:
        return labelled.recorded("throughput", key)

    rows = [
        ("Steady state", f"{_rate(get('images_per_second'))} images/s" if get("images_per_second") else NOT_RECORDED),
        ("Whole run", _seconds(get("seconds"))),
        ("Start-up, before the first image", _seconds(get("startup_seconds"))),
        ("Finish, after the last image", _seconds(get("finish_seconds"))),
    ]
    decode, model = get("decode_seconds"), get("model_seconds")
    for name, own in (("Decoding, all workers", decode), ("Models, all workers", model)):
        text = _seconds(own)
        if isinstance(decode, int | float) and isinstance(model, int | float) and decode + model > 0:
            text += f" ({percent(own / (decode + model))} of both)"
        rows.append((name, text))
    return rows


def _provenance(labelled: LabelledSet) -> list[tuple[str, str]]:
    rows = [
        ("Job digest", as_text(labelled.recorded("digest"))),
        ("Model fingerprint", as_text(labelled.recorded("model", "fingerprint"))),
        ("Vocabulary fingerprint", labelled.vocabulary.fingerprint),
        ("Input digest", as_text(labelled.recorded("input", "digest") or labelled.recorded("input", "sha256"))),
        ("Input rows", as_text(labelled.recorded("input", "rows"))),
        ("Parts", f"{len(labelled.parts):,}"),
    ]
    versions = labelled.recorded("versions")
    if isinstance(versions, Mapping):
        rows += [(f"Version of {name}", str(version)) for name, version in versions.items()]
    return rows


def _card(labelled: LabelledSet, index: int, why: str, row: LabelledRow) -> Card:
    p, chosen = labelled.probabilities[index], labelled.mask[index]
    labels = labelled.vocabulary.labels
    best = np.argsort(-p, kind="stable")[:EMOTIONS_SHOWN].tolist()
    return make_card(
        row,
        why if labelled.selected[index] else f"{why} · not selected",
        [(labels[j], float(p[j]), bool(chosen[j])) for j in best],
        [f"Labels: {', '.join(labelled.vocabulary.decode(np.flatnonzero(chosen).tolist())) or 'none'}"],
    )
