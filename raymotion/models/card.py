"""The model card of a checkpoint, and the table of a model's metrics beside their baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymotion.learning.metrics import Evaluation, metric_text, metric_title

HEADER = ("metric", "model", "95 % interval", "class prior", "constant", "against both")


def metric_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row for each metric of an `Evaluation.to_dict()`, in the columns of `HEADER`."""
    rows: list[tuple[str, ...]] = []
    for name, metric in Evaluation.from_dict(evaluation).metrics.items():
        interval = "not known" if metric.low is None else f"{metric_text(metric.low)} to {metric_text(metric.high)}"
        numbers = (metric_text(metric.value), interval, metric_text(metric.prior), metric_text(metric.constant))
        rows.append((metric_title(name), *numbers, metric.verdict))
    return rows


def model_card(config: Mapping[str, Any], training: Mapping[str, Any], *, parameters: int) -> str:
    """Markdown from the contents of config.json and training.json."""
    modalities = config["modalities"]
    vocabulary, extractor = config["vocabulary"], config["extractor"]
    student = config["architecture"] == "student"
    seen = "pictures" if student else "region features"
    read = {
        ("text",): "captions alone; it never saw an image, and labels from captions alone",
        ("regions",): "region features alone; it never saw a caption",
        ("image",): "pictures alone; it never saw a caption",
    }.get(tuple(modalities), f"captions and {seen}; either may be missing")
    shape = config["model"]
    what = (
        f"A student ({shape['image']} on pictures of {shape['image_size']} pixels, {shape['text']} on captions)"
        if student
        else "A VisualBERT with a multi-label head"
    )
    lines = [
        f"# Emotion {'student' if student else 'teacher'}",
        "",
        f"{what}, {parameters:,} parameters, made by raymotion {training['raymotion']}.",
        "",
        f"- Emotions: {vocabulary['name']}, {len(vocabulary['labels'])} labels ({vocabulary['fingerprint']}).",
        f"- Reads {read}.",
    ]
    if extractor:
        lines.append(
            f"- Region features: {extractor['name']}, weights {extractor['weights']}, {extractor['count']} regions of "
            f"{extractor['dim']} numbers. Features of another extractor mean something else."
        )
    data = training.get("data") or {}
    if data:
        splits = ", ".join(f"{count:,} {name}" for name, count in (data.get("splits") or {}).items())
        lines.append(f"- Data: {data.get('name', 'unnamed')} ({splits}), fingerprint {data.get('fingerprint')}.")
    if "seed" in training:
        lines.append(f"- Seed {training['seed']}; best epoch {training.get('best_epoch')}, chosen on validation.")
    for name, explanation in (
        ("validation", "The epoch and the thresholds were chosen on these samples: the figures are optimistic."),
        ("test", "Scored once, after every choice was made."),
    ):
        evaluation = training.get(name)
        if not evaluation:
            continue
        lines += ["", f"## {name.capitalize()}: {evaluation['samples']:,} samples", "", explanation, ""]
        lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        lines += [f"| {' | '.join(row)} |" for row in metric_rows(evaluation)]
    lines += [
        "",
        "`class prior` answers with the training split's class rates for every image, `constant` with the evaluated",
        "split's own; neither looks at anything. `against both` is `better` only if the whole interval of the paired",
        "difference is.",
        "",
        "The labels say what emotions annotators reported for pictures like these. They say nothing about the feelings",
        "of the people shown, and should not be used to judge any person.",
    ]
    return "\n".join(lines) + "\n"
