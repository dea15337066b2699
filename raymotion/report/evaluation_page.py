"""Output of an evaluation: an HTML page without scripts or network access, plots, and text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import storage
from raymotion.batch.label_dataset import load_labels, read_rows
from raymotion.evaluation.classes import MeasuredClasses
from raymotion.evaluation.corruption import each_figure
from raymotion.evaluation.disagreements import rank_disagreements
from raymotion.evaluation.evaluate import PREDICTIONS, SAMPLES
from raymotion.evaluation.measure import Measured
from raymotion.learning.metrics.calibration import CalibrationScores
from raymotion.learning.metrics.multilabel import Evaluation, interval_text, metric_text, short_title
from raymotion.learning.significance import Headline, headline, voids_results
from raymotion.report.cards import Card, ReviewLink, make_card
from raymotion.report.evaluation_plots import draw, draw_classes, draw_numbers
from raymotion.report.figures import metric_lines, metric_rows
from raymotion.report.plots import data_address
from raymotion.report.rendering import template
from raymotion.report.retrieval import retrieval_lines, shown_retrieval, verdict_of_retrieval
from raymotion.report.review import write_review
from raymotion.text_table import table_lines

if TYPE_CHECKING:
    from raymotion.evaluation.evaluate import Classes, EvaluationSummary, Labels, Numbers
    from raymotion.evaluation.retrieval import Retrieval

ERRORS_SHOWN, NUMBERS_SHOWN = 24, 12
# Labels whose confusion has room on a terminal.
LABELS_SHOWN = 10
ERRORS = {"miss": "people say {emotion}, the model does not", "false alarm": "the model says {emotion}, people do not"}
NAMES = {"bce": "BCE", "macro_ap": "mAP"}
# Columns of the table of `--by`, after the value.
BY_HEADS = ("n", "labels judged", "macro AUC (chance 0.5)", "95 % interval", "mAP (chance)", "BCE", "below prior")
BY_HEADS_OF_CLASSES = (
    "n", "accuracy", "95 % interval", "majority", "macro F1", "95 % interval", "log loss", "below prior"
)  # fmt: skip
# Columns of that table for numbers, after the value and the name of the number.
BY_HEADS_OF_NUMBERS = (
    "n", "R²", "95 % interval", "training mean", "CCC (mean 0)", "95 % interval", "MAE", "95 % interval",
    "training mean", "below it",
)  # fmt: skip
CORRUPTION_HEADS = (
    "features replaced", "metric", "value", "95 % interval", "constant", "change", "95 % interval"
)  # fmt: skip
KINDS = {"width": "equal width", "mass": "equal mass"}
CAPTIONS = {
    "reliability_width": "On the dashed line, what is called 30 % happens in 30 % of the cases. All labels pooled.",
    "reliability_mass": "The same with about as many forecasts in each bin: a closer look at small probabilities.",
    "average_precision": "Labels from frequent to rare, with their samples. A dot left of its mark: worse than chance.",
    "f1": "A label whose dot is left of its mark would do better if it were given to every sample.",
    "confusion": "A row for each true label: where its samples went. Right answers are on the diagonal.",
    "answers": "A model that says one label of nearly everything has one long bar.",
    "probabilities": "The further apart the two, the better the model tells true labels from others.",
}


CLASS_RELIABILITY = "On the dashed line, of the answers that are 70 % sure, 70 % are right."
DISTRIBUTION = "Where predictions have a narrow peak and true values none, nearly the same is said of every sample."
TRUE_AGAINST_PREDICTED = "On the dashed line a prediction is right. A flat band: the same answer for every sample."


def write(
    out: str,
    record: Mapping[str, Any],
    labels: Labels | None,
    numbers: Sequence[Numbers],
    classes: Sequence[Classes] = (),
    retrieval: Sequence[Retrieval] = (),
    *,
    review: storage.PathLike | None = None,
) -> None:
    """Writes evaluation.html and plots/*.png into the folder `out`.

    Args:
        review: folder to write a review of the predictions to (`report.review`), to which the page's numbers lead; not
            for a model without a vocabulary.
    """
    figures = {} if labels is None else draw(labels.measured, labels.targets, labels.probabilities)
    captions = dict(CAPTIONS)
    for numeric in numbers:
        for name, data in draw_numbers(numeric).items():
            figures[key := f"{numeric.output}_{name}"] = data
            captions[key] = DISTRIBUTION if name.endswith("_distribution") else TRUE_AGAINST_PREDICTED
    for own in classes:
        for name, data in draw_classes(own.measured).items():
            figures[key := name if own is classes[0] and labels is None else f"{own.output}_{name}"] = data
            captions[key] = CLASS_RELIABILITY if name.startswith("reliability") else CAPTIONS[name]
    for name, data in figures.items():
        storage.write_bytes(storage.join(out, "plots", f"{name}.png"), data)
    predictions, page = storage.join(out, PREDICTIONS), storage.join(out, "evaluation.html")
    link = None
    if review is not None and (labels is not None or classes):
        write_review(predictions, review, everything=True, truth=storage.join(out, SAMPLES))
        link = ReviewLink(page, str(review), compared=True)
    cards = [] if labels is None else _worst_labels(predictions, labels)
    worst = [(own, _worst_numbers(predictions, own)) for own in numbers]
    answers = [(own, _worst_classes(predictions, own)) for own in classes]
    text = render(
        record, labels, numbers, figures, answers, retrieval, cards=cards, worst=worst, review=link, captions=captions,
        predictions=predictions,
    )  # fmt: skip
    storage.write_text(page, text)


def _worst_classes(predictions: str, own: Classes) -> list[Card]:
    """Returns the samples of the wrong answers that were surest."""
    p, true = own.probabilities, own.targets.argmax(axis=1)
    names = [row.label for row in own.measured.classes]
    answer = p.argmax(axis=1)
    margin = p.max(axis=1) - p[np.arange(len(p)), true]
    wrong = [i for i in np.argsort(-margin, kind="stable").tolist() if answer[i] != true[i]][:ERRORS_SHOWN]
    cards = []
    for i, row in zip(wrong, read_rows(predictions, own.rows[wrong].tolist()), strict=True):
        top = np.argsort(-p[i], kind="stable")[:5].tolist()
        why = f"people say {names[true[i]]}, the model {names[answer[i]]} (p = {p[i].max():.2f})"
        cards.append(make_card(row, why, [(names[j], float(p[i, j]), j == true[i]) for j in top]))
    return cards


def _worst_labels(predictions: str, labels: Labels) -> list[Card]:
    """Returns the samples of the strongest contradictions, half of them missed labels and half of them false alarms."""
    labelled, measured = load_labels(predictions), labels.measured
    found = rank_disagreements(
        labelled, np.arange(len(labelled)), measured.chosen != (labels.targets > 0), labels.probabilities,
        given=labels.targets > 0, predicted=measured.chosen, names=labelled.vocabulary.labels,
        kinds=("miss", "false alarm"),
    )  # fmt: skip
    return [
        make_card(
            own.row,
            ERRORS[own.kind].format(emotion=own.emotion) + f" (p = {own.probability:.2f})",
            own.top,
            [f"People: {', '.join(own.given) or 'none'}", f"Predicted: {', '.join(own.predicted) or 'none'}"],
        )
        for own in found.gallery(ERRORS_SHOWN)
    ]


def _worst_numbers(predictions: str, own: Numbers) -> list[Card]:
    """Returns the samples with the largest errors of any number, each once."""
    errors = np.abs(own.values - own.truth)
    largest = np.where(np.isfinite(errors), errors, -1.0).max(axis=1)
    order = [i for i in np.argsort(-largest, kind="stable")[:NUMBERS_SHOWN].tolist() if largest[i] > 0]
    rows = read_rows(predictions, order)
    cards = []
    for i, row in zip(order, rows, strict=True):
        said = [
            f"{name}: people {truth:.2f}, predicted {value:.2f}"
            for name, truth, value in zip(own.names, own.truth[i], own.values[i], strict=True)
            if np.isfinite(truth)
        ]
        cards.append(make_card(row, f"off by {largest[i]:.2f}", lines=said))
    return cards


def render(
    record: Mapping[str, Any],
    labels: Labels | None,
    numbers: Sequence[Numbers],
    figures: Mapping[str, bytes],
    classes: Sequence[tuple[Classes, Sequence[Card]]] = (),
    retrieval: Sequence[Retrieval] = (),
    *,
    cards: Sequence[Card] = (),
    worst: Sequence[tuple[Numbers, Sequence[Card]]] = (),
    review: ReviewLink | None = None,
    captions: Mapping[str, str] = CAPTIONS,
    predictions: str | None = None,
) -> str:
    """Renders the page from the record of evaluation.json, the measurements, and PNG figures by name.

    Args:
        classes: results of one label a sample, each with the samples of its worst errors.
        cards, worst: the samples with the worst errors of the labels, and of each output of numbers.
        captions: of the figures, by name.
        review: makes links to the pictures behind the numbers, or None.
        predictions: folder of the labelling job, whose pictures queries of retrieval are shown with.
    """
    samples, checkpoint = record["samples"], record["checkpoint"]
    measured_classes = [own for own, _ in classes]
    first = verdict(labels, numbers, warnings_of(record), measured_classes, retrieval)
    measured = None if labels is None else labels.measured
    by_caption = bool(retrieval) and retrieval[0].by_caption
    key_figures = [
        ("images and captions scored" if by_caption else "samples scored", f"{samples['good']:,}"),
        ("quarantined", f"{samples['quarantined']:,}"),
        ("without captions" if by_caption else "without labels", f"{samples['without_labels']:,}"),
    ]
    remarks = [record["caution"]] if record["caution"] else []
    facts = [
        ("Checkpoint", checkpoint["path"]),
        ("Kind", checkpoint["kind"]),
        ("Reads", ", ".join(checkpoint["reads"])),
        ("Samples", samples["path"]),
        ("Split", samples["split"]),
        *((("Domain", ", ".join(samples["holdout_domain"])),) if samples["holdout_domain"] else ()),
    ]
    if measured is not None:
        key_figures += [
            ("mAP", metric_text(measured.evaluation["macro_ap"].value)),
            ("chance", metric_text(measured.evaluation["macro_ap"].constant)),
            ("distinct label sets", f"{measured.diversity.chosen_sets:,}"),
        ]
        remarks += [*measured.collapse.reasons, *measured.collapse.notes, *measured.notes]
        facts.append(("Vocabulary", f"{record['vocabulary']['name']}, {len(measured.classes)} labels"))
        facts.append(("Thresholds", checkpoint["thresholds"]))
    for one in measured_classes:
        key_figures += [
            ("accuracy", metric_text(one.measured.evaluation["accuracy"].value)),
            ("majority", metric_text(one.measured.evaluation["accuracy"].constant)),
            ("macro F1", metric_text(one.measured.evaluation["macro_f1"].value)),
            ("distinct answers", f"{len(one.measured.answers)} of {len(one.measured.classes)}"),
        ]
        remarks += [*one.measured.collapse.reasons, *one.measured.collapse.notes]
        facts.append(("One label of", f"{one.subject}, {len(one.measured.classes)} labels"))
    remarks += [own.flat for own in numbers if own.flat is not None]
    remarks += [own.flat for own in retrieval if own.flat is not None]
    remarks = [text for text in remarks if text != first.text]
    for own in numbers:
        key_figures += [
            (f"{name.upper()}, {own.output}", metric_text(own.evaluation[name].value)) for name in ("ccc", "mae")
        ]
        facts.append((own.output, f"{', '.join(own.names)}, {own.scale[0]:g} to {own.scale[1]:g}"))
    for pairs in retrieval:
        for direction in pairs.directions:
            told = direction.name.replace("_", " ")
            key_figures.append((f"R@1, {told}", metric_text(direction.evaluation["recall_at_1"].value)))
            key_figures.append((f"pool, {told}", f"{direction.ranks.pool:,}"))
    subjects = [*(own.output for own in numbers), *(own.output for own in retrieval)]
    return template("evaluation.html.j2").render(
        record=record,
        cards=cards,
        worst=[(own, shown) for own, shown in worst if shown],
        review=review,
        samples=samples,
        checkpoint=checkpoint,
        subject=record["vocabulary"]["name"] if record["vocabulary"] else ", ".join(subjects),
        results=measured,
        state=first.state,
        headline=first.text,
        notices=record["notices"],
        remarks=remarks,
        metrics=[] if measured is None else metric_rows(measured.evaluation),
        classes=[(own, _shown_classes(own, record), shown) for own, shown in classes],
        soft=record["settings"]["soft"],
        by=labels and record["by"] and {"heads": (record["by"]["column"], *BY_HEADS), "rows": by_rows(labels.by)},
        numbers=[(own, metric_rows(own.evaluation), _shown_by_of_numbers(own, record)) for own in numbers],
        by_caption=by_caption,
        retrieval=[(pairs, shown_retrieval(pairs, predictions)) for pairs in retrieval],
        corruption=record["corruption"]
        and {"heads": CORRUPTION_HEADS, "rows": corruption_rows(record), "note": corruption_note(record)},
        calibration=[] if measured is None else [calibration_row(scores) for scores in measured.calibration],
        key_figures=key_figures,
        facts=facts,
        provenance=[
            ("Checkpoint fingerprint", checkpoint["fingerprint"]),
            ("Fingerprint of its training data", checkpoint["trained_on"] or "not recorded"),
            ("Fingerprint of these samples", samples["fingerprint"]),
            *([("Vocabulary fingerprint", record["vocabulary"]["fingerprint"])] if record["vocabulary"] else []),
            *((f"Version of {name}", number) for name, number in record["versions"].items()),
        ],
        figures=[
            (name, captions.get(name, TRUE_AGAINST_PREDICTED), data_address(data)) for name, data in figures.items()
        ],
    )


def _shown_classes(own: Classes, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the texts of the page's tables of one label a sample."""
    by = record["by"] and {"heads": (record["by"]["column"], *BY_HEADS_OF_CLASSES), "rows": class_by_rows(own.by)}
    return {
        "metrics": metric_rows(own.measured.evaluation),
        "calibration": [calibration_row(scores) for scores in own.measured.calibration],
        "by": by if own.by else None,
    }


def verdict(
    labels: Labels | None,
    numbers: Sequence[Numbers],
    warnings: Sequence[str],
    classes: Sequence[Classes] = (),
    retrieval: Sequence[Retrieval] = (),
) -> Headline:
    """Returns the headline of page and terminal, about the labels, else about the numbers, else about retrieval.

    Args:
        warnings: the caution about the samples, if any, and notices that void the results.
    """
    if labels is not None:
        return _verdict_of_labels(labels.measured, warnings)
    if classes:
        return _verdict_of_classes(classes[0].measured, warnings)
    if not numbers and retrieval:
        return verdict_of_retrieval(retrieval[0], warnings)
    metrics = numbers[0].evaluation.metrics
    verdicts = {name: metrics[name].verdict for name in ("mae", "ccc")}
    doubtful = " and ".join(name.upper() for name, own in verdicts.items() if own != "better")
    return headline(
        verdicts,
        {
            "bad": numbers[0].flat or "The predictions are worse than the mean of the training split.",
            "unsure": f"{doubtful} may be no better than the mean of the training split.",
            "reserved": "MAE and CCC beat the mean",
            "good": "MAE and CCC beat the mean of the training split.",
        },
        failures=[] if numbers[0].flat is None else [numbers[0].flat],
        warnings=list(warnings),
    )


def _verdict_of_classes(measured: MeasuredClasses, warnings: Sequence[str]) -> Headline:
    metrics, collapse = measured.evaluation.metrics, measured.collapse
    accuracy, names = metrics["accuracy"], {"log_loss": "Log loss", "accuracy": "Accuracy"}
    beside = f"accuracy {metric_text(accuracy.value)}, always {measured.majority} {metric_text(accuracy.constant)}"
    verdicts = {name: metrics[name].verdict for name in names}
    doubtful = [names[name] for name, own in verdicts.items() if own == "unclear"]
    unsure = f"{' and '.join(doubtful)} may be no better than the baselines: {beside}."
    if accuracy.value is not None and accuracy.constant is not None and accuracy.value <= accuracy.constant:
        as_often = "less often than" if accuracy.value < accuracy.constant else "as often as"
        unsure = f"The model is right {as_often} the majority class: {beside}. The difference may be chance."
    return headline(
        verdicts,
        {
            "bad": collapse.reasons[0] if collapse.reasons else f"The log loss is worse than a baseline's ({beside}).",
            "unsure": unsure,
            "reserved": f"Log loss and accuracy beat the baselines ({beside})",
            "good": f"Log loss and accuracy beat the class prior and the majority class: {beside}.",
        },
        failures=collapse.reasons,
        warnings=[*warnings, *collapse.notes],
    )


def _verdict_of_labels(measured: Measured, warnings: Sequence[str]) -> Headline:
    metrics = measured.evaluation.metrics
    verdicts = {name: metrics[name].verdict for name in ("bce", "macro_ap")}
    doubtful = {
        word: " and ".join(NAMES[name] for name, own in verdicts.items() if own == word)
        for word in ("worse", "unclear")
    }
    if measured.collapse.collapsed:
        bad = "Collapsed: the predictions are nearly constant, or no better than the prior."
    else:
        bad = f"{doubtful['worse']} {'are' if ' and ' in doubtful['worse'] else 'is'} worse than a baseline."
    return headline(
        verdicts,
        {
            "bad": bad,
            "unsure": f"The predictions vary, but {doubtful['unclear']} may be no better than the baselines.",
            "reserved": "BCE and mAP beat the baselines",
            "good": "The predictions vary, and BCE and mAP beat the class prior and the constant.",
        },
        failures=measured.collapse.reasons,
        warnings=[*warnings, *measured.collapse.notes, *measured.notes],
    )


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """Returns the warnings about an evaluation.json: its caution, and notices that void the results."""
    caution = record["caution"]
    return [*([caution] if caution else []), *(notice for notice in record["notices"] if voids_results(notice))]


def calibration_row(scores: CalibrationScores) -> dict[str, str]:
    """Returns the texts of one kind of bins, for a table on a page or a terminal."""
    return {
        "name": f"{KINDS[scores.strategy]}, {scores.bins} bins",
        "error": metric_text(scores.error),
        "interval": interval_text(scores.low, scores.high),
        "by_luck": metric_text(scores.by_luck),
        "prior": metric_text(scores.prior),
        "class_error": metric_text(scores.class_error),
        "class_interval": interval_text(scores.class_low, scores.class_high),
        "class_by_luck": metric_text(scores.class_by_luck),
        "class_prior": metric_text(scores.class_prior),
        "maximum": metric_text(scores.maximum),
    }


def verdict_of(summary: EvaluationSummary) -> Headline:
    """Returns the headline of an evaluation."""
    return verdict(
        summary.labels, summary.numbers, warnings_of(summary.record), summary.classes, summary.retrieval
    )  # fmt: skip


def summary_lines(summary: EvaluationSummary) -> list[str]:
    """Formats caution, verdict, metrics with baselines, calibration, counts and paths of the files, in this order."""
    samples = summary.record["samples"]
    lines = [] if summary.caution is None else [summary.caution]
    lines.append((first := verdict_of(summary)).text)
    notes = [f"note: {notice}" for notice in summary.record["notices"]]
    by = (summary.record["by"] or {}).get("column")
    if summary.labels is None:
        lines += notes
    else:
        lines += _label_lines(summary.labels, notes, by)
    for one in summary.classes:
        lines += _class_lines(one, by, first.text)
    for own in summary.numbers:
        lines += [] if own.flat in (None, first.text) else [f"  - {own.flat}"]
        lines += ["", f"{own.output}: {', '.join(own.names)}, on a scale of {own.scale[0]:g} to {own.scale[1]:g}"]
        lines += metric_lines(own.evaluation)
        if by is not None and own.by:
            lines += ["", *table_lines(by_heads_of_numbers(by), number_by_rows(own), left=(0, 1))]
    for pairs in summary.retrieval:
        lines += retrieval_lines(pairs, first.text)
    noun = "captions" if summary.retrieval and summary.retrieval[0].by_caption else "labels"
    of_what = "rows of images and captions" if noun == "captions" else "samples"
    if summary.record["corruption"]:
        lines += ["", *table_lines(CORRUPTION_HEADS, corruption_rows(summary.record)), corruption_note(summary.record)]
    left_out = f"; {samples['without_labels']:,} without {noun} left out" if samples["without_labels"] else ""
    of = f" of {', '.join(samples['holdout_domain'])}" if samples["holdout_domain"] else ""
    lines.append(
        f"{of_what}{of}, split {samples['split']}: {samples['in']:,} in = {samples['good']:,} scored + "
        f"{samples['quarantined']:,} in quarantine{left_out}"
    )
    lines += [f"  quarantine: {count} {reason}" for reason, count in samples["by_reason"].items()]
    lines.append(f"page: {storage.join(summary.out, 'evaluation.html')}")
    return lines


def corruption_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns the texts of the table of `evaluate --corrupt` from an evaluation.json, in `CORRUPTION_HEADS`."""
    rows: list[tuple[str, ...]] = []
    for name, own in each_figure(record["corruption"] or {"conditions": []}):
        clean = own.change is None
        rows.append(
            (
                name, f"{own.output}: {short_title(own.metric)}", metric_text(own.value),
                interval_text(own.low, own.high), metric_text(own.constant),
                "" if clean else f"{own.change:+.4f}", "" if clean else interval_text(own.change_low, own.change_high),
            )
        )  # fmt: skip
    return rows


def corruption_note(record: Mapping[str, Any]) -> str:
    """Returns the sentence below that table."""
    raw = record["corruption"]["space"] == "raw"
    drawn = (
        "from N(0, 1) whatever the size of the features, as in the public EMOTIC code"
        if raw
        else "with the mean and the spread that each number has over these samples"
    )
    return (
        f"A random share of the numbers of a feature is replaced by noise, drawn {drawn} (seed "
        f"{record['corruption']['seed']}). The change is from clean features, with the interval of the paired "
        "difference; the constant is the best answer that looks at nothing."
    )


def by_rows(by: Mapping[str, Evaluation]) -> list[tuple[str, ...]]:
    """Returns the texts of the table of `evaluate --by`, a row for each value, in the columns of `BY_HEADS`."""
    rows: list[tuple[str, ...]] = []
    for value, own in by.items():
        auc, ap, bce = own["macro_auc"], own["macro_ap"], own["bce"]
        gain = "not known" if bce.value is None or bce.prior is None else f"{bce.prior - bce.value:+.4f}"
        rows.append(
            (
                value, f"{own.samples:,}", f"{auc.labels} of {len(own.per_class)}", metric_text(auc.value),
                interval_text(auc.low, auc.high), f"{metric_text(ap.value)} ({metric_text(ap.constant)})",
                metric_text(bce.value), gain,
            )
        )  # fmt: skip
    return rows


def class_by_rows(by: Mapping[str, Evaluation]) -> list[tuple[str, ...]]:
    """Returns the texts of the table of `evaluate --by` for one label a sample, in `BY_HEADS_OF_CLASSES`."""
    rows: list[tuple[str, ...]] = []
    for value, own in by.items():
        right, f1, loss = own["accuracy"], own["macro_f1"], own["log_loss"]
        gain = "not known" if loss.value is None or loss.prior is None else f"{loss.prior - loss.value:+.4f}"
        rows.append(
            (
                value, f"{own.samples:,}", metric_text(right.value), interval_text(right.low, right.high),
                metric_text(right.constant), metric_text(f1.value), interval_text(f1.low, f1.high),
                metric_text(loss.value), gain,
            )
        )  # fmt: skip
    return rows


def by_heads_of_numbers(column: str) -> tuple[str, ...]:
    """Returns the heads of the table of `evaluate --by` for numbers."""
    return column, "number", *BY_HEADS_OF_NUMBERS


def number_by_rows(numbers: Numbers) -> list[tuple[str, ...]]:
    """Returns the texts of that table, a row for each value and number."""
    rows: list[tuple[str, ...]] = []
    for value, own in numbers.by.items():
        for name in numbers.names:
            prefix = f"{name}_" if len(numbers.names) > 1 else ""
            r2, ccc, mae = (own[f"{prefix}{metric}"] for metric in ("r2", "ccc", "mae"))
            gain = "not known" if mae.value is None or mae.prior is None else f"{mae.prior - mae.value:+.4f}"
            rows.append(
                (
                    value, name, f"{mae.samples:,}", metric_text(r2.value), interval_text(r2.low, r2.high),
                    metric_text(r2.prior), metric_text(ccc.value), interval_text(ccc.low, ccc.high),
                    metric_text(mae.value), interval_text(mae.low, mae.high), metric_text(mae.prior), gain,
                )
            )  # fmt: skip
    return rows


def _shown_by_of_numbers(own: Numbers, record: Mapping[str, Any]) -> dict[str, Any] | None:
    if not own.by:
        return None
    return {"heads": by_heads_of_numbers(record["by"]["column"]), "rows": number_by_rows(own)}


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _class_lines(own: Classes, by: str | None, headline: str) -> list[str]:
    measured = own.measured
    n, (first, count) = measured.evaluation.samples, measured.answers[0]
    told = (*measured.collapse.reasons, *measured.collapse.notes)
    lines = [f"  - {text}" for text in told if text != headline]
    lines += ["", f"{own.output}: one label of {own.subject}", *metric_lines(measured.evaluation), ""]
    if by is not None and own.by:
        lines += [*table_lines((by, *BY_HEADS_OF_CLASSES), class_by_rows(own.by)), ""]
    names = [row.label for row in measured.classes]
    counts = [[f"{count:g}" for count in row] for row in measured.confusion.tolist()]
    rows = [[row.label, *cells] for row, cells in zip(measured.classes, counts, strict=True)]
    if len(names) <= LABELS_SHOWN:
        lines += [*table_lines(("true label, answers across", *names), rows), ""]
    rows = [
        [row.label, f"{row.support:,}", f"{row.said:g}", *map(_figure, (row.precision, row.recall, row.f1))]
        for row in measured.classes
    ]
    lines += [*table_lines(("label", "samples", "said", "precision", "recall", "F1"), rows), ""]
    rows = [
        [row["name"], row["error"], row["interval"], row["prior"], row["by_luck"]]
        for row in map(calibration_row, measured.calibration)
    ]
    heads = ("calibration error of the answers", "value", "95 % interval", "always the majority", "by luck")
    lines += [*table_lines(heads, rows), ""]
    lines.append(
        f"distinct answers: {len(measured.answers)} of {len(names)} labels (the commonest, {first}, for "
        f"{100 * count / n:.0f} %)"
    )
    return lines


def _label_lines(labels: Labels, notes: Sequence[str], by: str | None) -> list[str]:
    measured = labels.measured
    distinct, evaluation = measured.diversity, measured.evaluation
    lines = [f"  - {text}" for text in (*measured.collapse.reasons, *measured.collapse.notes, *measured.notes)]
    lines += [*notes, "", *metric_lines(evaluation), "", *_calibration_lines(measured.calibration), ""]
    if by is not None:
        lines += [*table_lines((by, *BY_HEADS), by_rows(labels.by)), ""]
    if evaluation.classes_left_out:
        lines.append(f"{evaluation.classes_left_out} labels without a positive are left out of the macro means")
    lines.append(
        f"distinct answers: {distinct.top_1:,} first labels, {distinct.top_3:,} sets of three highest, "
        f"{distinct.chosen_sets:,} sets above the thresholds (the commonest for {100 * distinct.commonest_share:.0f} %)"
    )
    return lines


def _calibration_lines(calibration: Sequence[CalibrationScores]) -> list[str]:
    rows = []
    for row in map(calibration_row, calibration):
        for what, start in (("pooled", ""), ("mean over labels", "class_")):
            values = (row[start + name] for name in ("error", "interval", "prior", "by_luck"))
            rows.append((f"{what}, {row['name']}", *values))
    return table_lines(("calibration error", "value", "95 % interval", "class prior", "by luck"), rows)
