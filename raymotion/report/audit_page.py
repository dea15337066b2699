"""The page of an audit, one HTML file without scripts or network access, and its text version for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raymotion.batch.label_dataset import LabelledSet
from raymotion.evaluation.confident import count_flags
from raymotion.evaluation.disagreements import Example
from raymotion.learning.bootstrap import Metric
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.significance import FEWEST_IMAGES, Headline, Verdict, headline, verdict_of, voids_results
from raymotion.report.cards import Card, ReviewLink, make_card
from raymotion.report.figures import metric_rows
from raymotion.report.plots import data_address
from raymotion.report.rendering import as_text, template
from raymotion.text_table import table_lines

# Text columns among numeric columns.
TEXTS = ("said by", "not judged because")
QUESTIONS = {
    "human-labels": "Do the pseudo-labels say what people say of the same images?",
    "label-quality": "Which human labels do the predictions contradict?",
    "own-choices": "Where do the chosen labels and their own probabilities part ways?",
}
KINDS = {
    "miss": "people say {emotion}, the pseudo-labels do not",
    "false alarm": "the pseudo-labels say {emotion}, people do not",
    "doubtful": "labelled {emotion}, which the predictions contradict",
    "missing": "not labelled {emotion}, which the predictions ask for",
}


def verdict(record: Mapping[str, Any]) -> Headline:
    """Returns the headline of the page and the terminal output."""
    results = record["results"]
    warnings = [notice for notice in record["labels"]["notices"] if voids_results(notice)]
    if record["mode"] == "human-labels":
        match = record.get("match") or {}
        learned = match.get("trained_on", 0)
        told = f"{learned:,} of the {match.get('matched', 0):,} images may have been trained on (split train)."
        flattered = [told] if learned else []
        return _against_people(results, [*flattered, *warnings])
    found = count_flags(results, results["images"])
    if record["mode"] == "own-choices":
        text = f"The selection and the probabilities part ways on {found}. This finds no error of the model."
        return Headline("unsure", text)
    return Headline("unsure", _doubts(results, found))


def _against_people(results: Mapping[str, Any], warnings: Sequence[str]) -> Headline:
    emotions = results["emotions"]
    counts = Counter(emotion["verdict"] for emotion in emotions)
    tested = len(emotions) - counts["untested"]
    sentence = (
        f"{counts['untested']} of {len(emotions)} emotions cannot be judged: fewer than {FEWEST_IMAGES} images carry "
        f"them, or do not. " if counts["untested"] else ""
    )  # fmt: skip
    sentence += (
        f"The probabilities rank images better than chance for {counts['better']} of {tested} emotions, worse for "
        f"{counts['worse']}; for {counts['unclear']} it is not clear."
        if tested
        else "No emotion is on enough images to say how well the probabilities rank them."
    )
    kappa = verdict_of((results["choice"]["macro_kappa_low"], results["choice"]["macro_kappa_high"]))
    sentence += " The chosen labels agree with people" + (
        " beyond chance." if kappa == "better" else " no more than by chance."
    )
    metric = Evaluation.from_dict(results["evaluation"])["macro_ap"]
    useless = tested > 0 and not counts["better"] and metric.verdict != "better"
    verdicts: dict[str, Verdict] = {"mAP": metric.verdict, "kappa": "unclear" if kappa == "worse" else kappa}
    if counts["worse"]:
        verdicts["emotions"] = "unclear"
    return headline(
        verdicts,
        dict.fromkeys(("good", "unsure", "bad"), sentence),
        failures=["no emotion is ranked better than chance"] if useless else [],
        warnings=warnings,
    )


def _doubts(results: Mapping[str, Any], found: str) -> str:
    """Describes the findings of confident learning, with the number expected if no label were wrong."""
    if not results["judged"]:
        return "The predictions know too little of any emotion to doubt a label."
    luck, flagged = results["labels_flagged_by_luck"], results["labels_flagged"]
    known = f"for the {results['judged']} of {len(results['emotions'])} emotions that they know something of"
    if flagged <= luck:
        return (
            f"No evidence of wrong labels: the predictions contradict {found}, {known}, and labels that are all right "
            f"would get about {luck:,.0f} contradictions by luck alone."
        )
    return (
        f"The predictions contradict {found}, {known}; labels that are all right would get about {luck:,.0f} "
        "contradictions by luck alone."
    )


def emotion_table(record: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns headings and rows of the table of emotions, as texts."""
    emotions = record["results"]["emotions"]
    if record["mode"] == "human-labels":
        heads = ["emotion", "with it", "without", "AUC", "95 % interval", "AUC 0.5", "AP", "chance", "precision"]
        heads += ["chance", "recall", "chance", "kappa", "ECE", "said by"]
        rows = [
            [
                e["label"], f"{e['images_with']:,}", f"{e['images_without']:,}",
                *(("–", "–", "too few") if e["verdict"] == "untested" else
                  (_text(e["auc"]), _between(e["auc_low"], e["auc_high"]), e["verdict"])),
                _text(e["ap"]), _text(e["prevalence"]), _text(e["precision"]), _text(e["prevalence"]),
                _text(e["recall"]), _text(e["given"]), _text(e["kappa"]), _text(e["calibration_error"]),
                ", ".join(e["words"]),
            ]
            for e in emotions
        ]  # fmt: skip
        return heads, rows
    heads = [
        "emotion",
        "labelled",
        "mean p with it",
        "mean p without",
        "AUC",
        "95 % interval",
        "doubtful",
        "suggested" if record["results"].get("one_label") else "missing",
        "by luck",
    ]
    rows = [
        [
            e["label"], f"{e['given']:,}", _text(e["mean_given"]), _text(e["mean_absent"]), _text(e["auc"]),
            _between(e["auc_low"], e["auc_high"]), f"{e['doubtful']:,}" if e["judged"] else "–",
            f"{e['missing']:,}" if e["judged"] else "–", "–" if e["by_luck"] is None else f"{e['by_luck']:.1f}",
        ]
        for e in emotions
    ]  # fmt: skip
    if record["mode"] == "own-choices":  # the AUC of choices against their own probabilities is meaningless
        keep = [i for i, head in enumerate(heads) if head not in ("AUC", "95 % interval", "by luck")]
        return [heads[i] for i in keep], [[row[i] for i in keep] for row in rows]
    return [*heads, "not judged because"], [[*row, e["reason"]] for row, e in zip(rows, emotions, strict=True)]


def key_figures(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns names and texts of the key numbers of an audit, each with its chance level."""
    results = record["results"]
    if record["mode"] == "human-labels":
        choice, metric = results["choice"], Evaluation.from_dict(results["evaluation"])["macro_ap"]
        auc = results["macro_auc"]
        return [
            ("images compared", f"{record['match']['matched']:,}"),
            ("emotions judged", f"{results['judged']} of {len(results['emotions'])}"),
            ("mean AUC of these", _text(auc["value"])),
            ("95 % interval", _between(auc["low"], auc["high"])),
            ("mAP", _text(metric.value)),
            ("mAP by chance", _text(metric.constant)),
            ("precision", _text(choice["precision"])),
            ("precision by chance", _text(choice["precision_by_chance"])),
            ("recall", _text(choice["recall"])),
            ("recall by chance", _text(choice["recall_by_chance"])),
            ("mean kappa", _text(choice["macro_kappa"])),
            ("ECE", _text(results["calibration"]["error"])),
            ("ECE by luck", _text(results["calibration"]["by_luck"])),
        ]
    return [
        ("images", f"{results['images']:,}"),
        ("images flagged", f"{results['images_flagged']:,}"),
        ("labels flagged", f"{results['labels_flagged']:,}"),
        *([("by luck", f"{results['labels_flagged_by_luck']:,.0f}")] if record["mode"] == "label-quality" else []),
        ("emotions judged", f"{results['judged']} of {len(results['emotions'])}"),
        ("mean label quality", _text(results["mean_quality"])),
    ]


def lines(record: Mapping[str, Any]) -> list[str]:
    """Formats the audit for a terminal: verdict, notes, key numbers, table of emotions."""
    heads, rows = emotion_table(record)
    # A final text column is shown on the page only, since terminal lines are short.
    width = len(heads) - 1 if heads[-1] in TEXTS else len(heads)
    table = table_lines(heads[:width], [row[:width] for row in rows])
    figures = "; ".join(f"{name} {value}" for name, value in key_figures(record))
    return [
        verdict(record).text,
        *(f"note: {note}" for note in record["notes"]),
        figures,
        "",
        *table,
        *(
            ["", "What this audit cannot tell:", *(f"  - {line}" for line in silent)]
            if (silent := untold(record))
            else []
        ),
    ]


def untold(record: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what an audit against people cannot tell: emotions with too few images, and gaps of the
    mapping in both directions. Empty for other audits, and if there is nothing.
    """
    if record["mode"] != "human-labels":
        return []
    results, mapping, lines = record["results"], record["mapping"], []
    few = [e for e in results["emotions"] if e["verdict"] == "untested"]
    if few:
        listed = ", ".join(f"{e['label']} ({e['images_with']:,} with it, {e['images_without']:,} without)" for e in few)
        lines.append(
            f"Whether the probabilities rank {listed}: fewer than {FEWEST_IMAGES} images carry it, or do not. The mean "
            "AUC leaves these out."
        )
    if results["silent"]:
        listed = ", ".join(f"{own['label']} ({own['images']:,} images)" for own in results["silent"])
        lines.append(f"No label says {listed}: what people say there is not compared with anything.")
    if mapping["unmapped"]:
        lines.append(
            f"Labels that mean no category of {mapping['to']}: {', '.join(mapping['unmapped'])}. Right or wrong, they "
            "are not in these figures."
        )
    return lines


def render(
    record: Mapping[str, Any], examples: Sequence[Example], labelled: LabelledSet, review: ReviewLink | None = None
) -> str:
    """Renders the page from the record of audit.json and the disagreements to show.

    Args:
        review: makes links to the pictures behind the numbers, or None.
    """
    first = verdict(record)
    heads, rows = emotion_table(record)
    results = record["results"]
    against_people = record["mode"] == "human-labels"
    metrics = []
    if against_people:
        evaluation = Evaluation.from_dict(results["evaluation"])
        evaluation.metrics["macro_auc"] = Metric.from_dict(results["macro_auc"])
        metrics = metric_rows(evaluation)
    source = record["labels"]
    facts = [
        ("Question", QUESTIONS[record["mode"]]),
        ("Labels", f"{source['path']}, {source['images']:,} images, {source['vocabulary']['name']}"),
        (
            "Model",
            f"{source['model'] or 'not recorded'}, reads {', '.join(source['reads'] or ['what is not recorded'])}",
        ),
        ("Selection", as_text(source["selection"])),
    ]
    if "truth" in record:
        facts.append(("Human labels", f"{record['truth']['path']}, {record['truth']['vocabulary']['name']}"))
    if record.get("mapping") and record["mapping"]["path"]:
        facts.append(("Mapping", record["mapping"]["path"]))
    return template("audit.html.j2").render(
        record=record,
        review=review,
        state=first.state,
        headline=first.text,
        remarks=record["notes"],
        notices=record["labels"]["notices"],
        question=QUESTIONS[record["mode"]],
        key_figures=key_figures(record),
        facts=facts,
        metrics=metrics,
        heads=heads,
        rows=rows,
        links=_links(review, [e["label"] for e in results["emotions"]], labelled),
        texts=[i for i, head in enumerate(heads) if head in TEXTS],
        figure=_figure(record) if against_people else None,
        calibration=results.get("calibration"),
        untold=untold(record),
        fewest=FEWEST_IMAGES,
        cards=[_card(example, record["mode"]) for example in examples],
        provenance=[
            ("Job digest", str(source["digest"] or "not recorded")),
            ("Vocabulary fingerprint", source["vocabulary"]["fingerprint"]),
            *((f"Version of {name}", number) for name, number in record["versions"].items()),
        ],
    )


def _links(review: ReviewLink | None, names: Sequence[str], labelled: LabelledSet) -> list[str | None]:
    """Returns the address of the pictures behind each row of the table; None for categories that are no label."""
    view, order = ("said", "disagreement") if review is not None and review.compared else ("chosen", "low")
    return [review(view, name, order) if review and name in labelled.vocabulary else None for name in names]


def _figure(record: Mapping[str, Any]) -> str:
    from raymotion.learning.metrics.calibration import CalibrationBin
    from raymotion.report.evaluation_plots import reliability_figure

    scores = record["results"]["calibration"]
    data = reliability_figure(
        [CalibrationBin(**item) for item in scores["curve"]],
        title="Reliability, bins of equal mass",
        what="people say the emotion",
        note=f"ECE {scores['error']:.3f}, by luck {scores['by_luck']:.3f}",
    )
    return data_address(data)


def _card(example: Example, mode: str) -> Card:
    chosen = f"Chosen: {', '.join(example.predicted) or 'none'}"
    people = f"People: {', '.join(example.given) or 'none'}"
    return make_card(
        example.row,
        KINDS[example.kind].format(emotion=example.emotion)
        + f" (p = {example.probability:.2f})"
        + (f"; they say {example.suggested}" if example.suggested else ""),
        example.top,
        [chosen] if mode == "own-choices" else [people, chosen],
    )


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"
