"""The page of an evaluation: one HTML file that opens offline and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from raymotion.evaluation.measure import Measured
from raymotion.learning.metrics.calibration import CalibrationScores
from raymotion.learning.significance import Headline, headline, voids_results
from raymotion.report.figures import metric_rows
from raymotion.report.page import template

NAMES = {"bce": "BCE", "macro_ap": "mAP"}
KINDS = {"width": "equal width", "mass": "equal mass"}
CAPTIONS = {
    "reliability_width": "On the dashed line, what is called 30 % happens in 30 % of the cases. All labels pooled.",
    "reliability_mass": "The same with about as many forecasts in each bin: a closer look at small probabilities.",
    "average_precision": "Labels from frequent to rare, with their samples. A dot left of its mark: worse than chance.",
    "f1": "A label whose dot is left of its mark would do better if it were given to every sample.",
    "probabilities": "The further apart the two, the better the model tells true labels from others.",
}


def render(record: Mapping[str, Any], measured: Measured, figures: Mapping[str, bytes]) -> str:
    """The page from evaluation.json's record, what was measured, and PNG figures by name."""
    samples, checkpoint = record["samples"], record["checkpoint"]
    first = verdict(measured, warnings_of(record))
    distinct = measured.diversity
    return template("evaluation.html.j2").render(
        record=record,
        samples=samples,
        checkpoint=checkpoint,
        results=measured,
        state=first.state,
        headline=first.text,
        reasons=[*measured.collapse.reasons, *measured.collapse.notes, *measured.notes],
        metrics=metric_rows(measured.evaluation),
        calibration=[calibration_row(scores) for scores in measured.calibration],
        key_figures=[
            ("samples scored", f"{samples['good']:,}"),
            ("quarantined", f"{samples['quarantined']:,}"),
            ("without labels", f"{samples['without_labels']:,}"),
            ("mAP", _text(measured.evaluation["macro_ap"].value)),
            ("chance", _text(measured.evaluation["macro_ap"].constant)),
            ("distinct label sets", f"{distinct.chosen_sets:,}"),
        ],
        facts=[
            ("Checkpoint", checkpoint["path"]),
            ("Architecture", checkpoint["architecture"]),
            ("Reads", ", ".join(checkpoint["modalities"])),
            ("Samples", samples["path"]),
            ("Split", samples["split"]),
            ("Vocabulary", f"{record['vocabulary']['name']}, {len(measured.classes)} labels"),
            ("Thresholds", checkpoint["thresholds"]),
        ],
        provenance=[
            ("Checkpoint fingerprint", checkpoint["fingerprint"]),
            ("Fingerprint of its training data", checkpoint["trained_on"] or "not recorded"),
            ("Fingerprint of these samples", samples["fingerprint"]),
            ("Vocabulary fingerprint", record["vocabulary"]["fingerprint"]),
            *((f"Version of {name}", number) for name, number in record["versions"].items()),
        ],
        figures=[
            (name, CAPTIONS[name], "data:image/png;base64," + base64.b64encode(data).decode())
            for name, data in figures.items()
        ],
    )


def verdict(measured: Measured, warnings: Sequence[str]) -> Headline:
    """How the page and the terminal begin.

    Args:
        warnings: the caution about the samples, if there is one, and notices that void the results.
    """
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
    """What takes from every figure of an evaluation.json: its caution, and notices that void the results."""
    caution = record["caution"]
    return [*([caution] if caution else []), *(notice for notice in record["notices"] if voids_results(notice))]


def calibration_row(scores: CalibrationScores) -> dict[str, str]:
    """Texts of one kind of bins, for a table on a page or a terminal."""
    return {
        "name": f"{KINDS[scores.strategy]}, {scores.bins} bins",
        "error": _text(scores.error),
        "interval": _between(scores.low, scores.high),
        "by_luck": _text(scores.by_luck),
        "prior": _text(scores.prior),
        "class_error": _text(scores.class_error),
        "class_interval": _between(scores.class_low, scores.class_high),
        "class_by_luck": _text(scores.class_by_luck),
        "class_prior": _text(scores.class_prior),
        "maximum": _text(scores.maximum),
    }


def _between(low: float | None, high: float | None) -> str:
    return "not known" if low is None or high is None else f"{low:.4f} to {high:.4f}"


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
