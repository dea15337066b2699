"""The model card of a checkpoint, and the table of its metrics and baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raymotion.learning.metrics.multilabel import Evaluation, averages, interval_text, metric_text, row_title
from raymotion.models.inputs.base import Input
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import Output

TAGS = ("emotion-recognition", "affective-computing")
HEADER = ("metric", "model", "95 % interval", "prior", "constant", "against both")
# Of retrieval, whose baseline is chance, which depends on the pool.
RETRIEVAL_HEADER = ("metric", "model", "95 % interval", "chance", "queries", "pool", "against chance")
BASELINES = (
    "`prior` answers with the training split's class rates for every image, `constant` with the evaluated",
    "split's own; neither looks at anything. `against both` is `better` only if the whole interval of the paired",
    "difference is.",
)
MEANS = (
    "`prior` answers with the training split's mean for every sample, `constant` with the evaluated split's own;",
    "neither looks at anything. `against both` is `better` only if the whole interval of the paired difference is.",
)


RETRIEVAL = (
    "`chance` is a random order of the pool; equal similarities count against the model. Figures of pools of different",
    "sizes are not comparable. `against chance` is `better` only if the whole interval of the difference is.",
)
MEAN_CAPTIONS = (
    "A sample's captions are one query here, the mean of their directions, which is easier than each caption for",
    "itself: `raymotion evaluate` measures that.",
)


def metric_table(evaluation: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Returns the heads and the rows of the table of an `Evaluation.to_dict()`: of retrieval with chance and pool."""
    rows, pools = metric_rows(evaluation), evaluation.get("pools")
    if not pools:
        return HEADER, rows
    metrics = Evaluation.from_dict(evaluation).metrics
    found: list[tuple[str, ...]] = []
    for name, metric in metrics.items():
        pool: Mapping[str, int] = next((own for way, own in pools.items() if name.startswith(f"{way}_")), {})
        found.append(
            (
                row_title(name, metric), metric_text(metric.value), interval_text(metric.low, metric.high),
                metric_text(metric.constant), f"{pool.get('queries', 0):,}", f"{pool.get('pool', 0):,}", metric.verdict,
            )
        )  # fmt: skip
    return RETRIEVAL_HEADER, found


def metric_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns one row per metric of an `Evaluation.to_dict()`, in the columns of `HEADER`.

    Metrics without samples are omitted; a metric of only some of the samples shows their number.
    """
    found = Evaluation.from_dict(evaluation)
    averaged = averages(found)
    rows: list[tuple[str, ...]] = []
    for name, metric in found.metrics.items():
        if metric.samples:
            count = "" if metric.samples == found.samples else f", n = {metric.samples:,}"
            interval = interval_text(metric.low, metric.high)
            numbers = (metric_text(metric.value), interval, metric_text(metric.prior), metric_text(metric.constant))
            title = row_title(name, metric) + (", mean" if name in averaged else "")
            rows.append((title + count, *numbers, metric.verdict))
    return rows


def model_card(
    kind: Kind,
    inputs: Sequence[Input],
    outputs: Sequence[Output],
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    *,
    parameters: int,
) -> str:
    """Returns the card as Markdown with the Hugging Face hub's YAML header.

    Args:
        config, training: contents of config.json and training.json.
    """
    targets = training.get("targets") or {}
    imitates = targets.get("kind") == "pseudo-labels"
    lines = [*_header(kind, inputs, outputs), f"# {kind.title()}", ""]
    random = [notice for own in inputs for notice in own.notices()]
    lines += [f"**{' '.join(random)}**", ""] if random else []
    first, *others = kind.describe(config["model"], training, inputs, parameters)
    lines += [f"{first} Made by raymotion {training['raymotion']}.", ""]
    lines.append(f"- Reads {kind.reads(inputs)}.")
    trained = not training.get("wrapped")
    described = [line for own in outputs for line in own.describe()]
    described += [line for own in outputs for line in own.describe_training() if trained]
    described += [line for own in inputs if own.used for line in own.describe()]
    lines += [f"- {line}" for line in (*others, *described)]
    lines += _targets(targets)
    data = training.get("data") or {}
    if data:
        splits = ", ".join(f"{count:,} {name}" for name, count in (data.get("splits") or {}).items())
        lines.append(f"- Data: {data.get('name', 'unnamed')} ({splits}), fingerprint {data.get('fingerprint')}.")
    if "seed" in training:
        last = (training.get("settings") or {}).get("select_by") == "last"
        chosen = "the last one, whatever validation says" if last else "chosen on validation"
        lines.append(f"- Seed {training['seed']}; epoch {training.get('best_epoch')}, {chosen}.")
    if served := served_weights(training):
        lines.append(f"- Weights: {served}.")
    says_labels = any(own.vocabulary is not None for own in outputs)
    thresholds = any(own.gives == "labels" for own in outputs)
    chosen = "The epoch and the thresholds were" if thresholds else "The epoch was"
    chosen_on = f"{chosen} chosen on these samples: the figures are optimistic."
    if imitates:
        chosen_on = (
            "Agreement with the teacher's labels of images that were held out from training: how well the student "
            f"imitates its teacher, not how well it knows what people say. {chosen_on}"
        )
    if training.get("calibration"):
        chosen_on = (
            "Rows of the calibration, each predicted with temperatures that were fitted to the others "
            "(cross-validation); figures of the model before it stand in the card of the model it was made from."
        )
    scored_once = "Scored once, after every choice was made."
    if held := held_out_text(training):
        lines.append(f"- {held[0].upper()}{held[1:]}.")
        scored_once += (
            " The samples are of a domain that training did not see: the figures say how the model carries over."
        )
    lines += _carryover(training)
    for name, explanation in (("validation", chosen_on), ("test", scored_once)):
        for own in outputs:
            evaluation = ((training.get("outputs") or {}).get(own.name) or {}).get(name)
            if not evaluation:
                continue
            of = f", {own.name}" if len(outputs) > 1 else ""
            lines += ["", f"## {name.capitalize()}{of}: {evaluation['samples']:,} samples", "", explanation, ""]
            head, rows = metric_table(evaluation)
            lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            lines += [f"| {' | '.join(row)} |" for row in rows]
            if interpolated := interpolated_map(evaluation):
                lines += ["", interpolated]
    if trained:
        vectors = [own for own in outputs if own.gives == "vectors"]
        lines += ["", *(BASELINES if says_labels else MEANS)] if len(vectors) < len(outputs) else []
        lines += ["", *RETRIEVAL] if vectors else []
        lines += MEAN_CAPTIONS if any(own.target_noun == "captions" for own in vectors) else []
    lines += ["", *_meaning(imitates, trained, outputs)]
    return "\n".join(lines) + "\n"


def _header(kind: Kind, inputs: Sequence[Input], outputs: Sequence[Output]) -> list[str]:
    """Returns the YAML block for the hub: library, task and tags."""
    from huggingface_hub import ModelCardData

    reads_pictures = any(own.used and own.looks_at != "none" for own in inputs)
    vocabularies = [own.vocabulary.name for own in outputs if own.vocabulary is not None]
    several = any(own.gives == "labels" for own in outputs)
    task = "image-classification" if reads_pictures else "text-classification"
    if all(own.gives == "vectors" for own in outputs):
        task = "feature-extraction"
    tags = [*TAGS, *(["multi-label-classification"] if several else []), kind.name, *vocabularies]
    data = ModelCardData(
        library_name="raymotion",
        pipeline_tag=task,
        tags=tags,
    )
    return ["---", data.to_yaml(line_break="\n").rstrip("\n"), "---", ""]


def served_weights(training: Mapping[str, Any]) -> str | None:
    """Returns a phrase about the averages that made the weights of a trained model; None: there were none."""
    history, best = training.get("history") or [], training.get("best_epoch") or 0
    settings = (training.get("settings") or {}).get("optimiser") or {}
    if not 1 <= best <= len(history):
        return None
    own = "the fine-tuned ones"
    if steps := history[best - 1].get("averaged_steps"):
        kind = f"exponential, decay {settings.get('ema_decay')}" if settings.get("average") == "ema" else "uniform"
        own = f"the average over {steps:,} steps ({kind})"
    share = history[best - 1].get("interpolate", 1.0)
    if share < 1:
        return f"{share:g} x {own} + {1 - share:g} x those before fine-tuning"
    return own if steps else None


def _targets(targets: Mapping[str, Any]) -> list[str]:
    """Returns lines about pseudo-labels that the model was trained on, and their quality; none for annotations."""
    if targets.get("kind") != "pseudo-labels":
        copied = targets.get("copied_from")
        if not copied or copied.get("targets") != "pseudo-labels":
            return []
        return [
            f"- Its first layers come from the student {copied['fingerprint']}, which learned from pseudo-labels of a "
            "teacher."
        ]
    teacher, collapse = targets.get("teacher") or {}, targets.get("collapse")
    reads = " and ".join(teacher.get("reads") or ()) or "what is not recorded"
    lines = [
        f"- Targets: pseudo-labels ({targets.get('folder')}, job {targets.get('digest')}), which the "
        f"{teacher.get('kind') or 'teacher'} {teacher.get('fingerprint')} made from {reads}. No person "
        "labelled these images.",
    ]
    if collapse is None:
        lines.append("- **Nobody checked the training labels for a collapse.**")
    elif collapse.get("collapsed"):
        lines.append(f"- **Training labels: {collapse.get('headline')}**")
    else:
        lines.append(f"- Training labels: {collapse.get('headline')}")
    return [*lines, *(f"- {notice}" for notice in targets.get("notices") or ())]


def _meaning(imitates: bool, trained: bool, outputs: Sequence[Output]) -> list[str]:
    """Returns lines on how to interpret the predictions."""
    if all(own.gives == "vectors" for own in outputs):
        return [
            "Similar vectors say that a picture and a text go together as in the training data, with its gaps and",
            "prejudices. They say nothing about the feelings of the people shown, and should not be used to judge any",
            "person.",
        ]
    if not trained:
        return [
            "No annotator was asked: the labels are what a model from elsewhere makes of the pictures. Before you use",
            "them, measure them against people's: `raymotion evaluate MODEL SAMPLES`. They say nothing about the",
            "feelings of the people shown, and should not be used to judge any person.",
        ]
    if imitates:
        return [
            "The labels repeat what another model guessed. Before you use them, measure them against people's:",
            "`raymotion evaluate MODEL SAMPLES`. They say nothing about the feelings of the people shown, and should",
            "not be used to judge any person.",
        ]
    return [
        "The labels say what emotions annotators reported for pictures like these. They say nothing about the feelings",
        "of the people shown, and should not be used to judge any person.",
    ]


def _carryover(training: Mapping[str, Any]) -> list[str]:
    """Returns a line about how such a model ranked domains that it was not trained on (`raymotion carryover`)."""
    told = training.get("carryover")
    if not told:
        return []
    ranked = ", ".join(f"{name} {own['auc']:.2f}" for name, own in told["domains"].items())
    return [
        f"- Held out one {told['column']} at a time, it ranked with a macro AUC of {ranked} (chance 0.50); in its own "
        f"domains {told['in_domain']['auc']:.2f}. Expect the former of other collections."
    ]


def held_out_text(training: Mapping[str, Any]) -> str | None:
    """Returns a sentence about the domains that were held out from training, by training.json; None if none was."""
    data = training.get("data") or {}
    if not data.get("holdout_domain"):
        return None
    count = (data.get("splits") or {}).get("test", 0)
    return f"test: {count:,} samples of {', '.join(data['holdout_domain'])}, which training did not see"


def interpolated_map(evaluation: Mapping[str, Any]) -> str | None:
    """Returns a sentence with both average precisions and chance, as in the literature; None for numbers."""
    if evaluation.get("interpolated_map") is None:
        return None
    macro = evaluation["metrics"]["macro_ap"]["value"]
    return (
        f"mAP {metric_text(macro)} as scikit-learn computes it, {metric_text(evaluation['interpolated_map'])} "
        f"interpolated as the authors of EMOTIC do; a random order has {evaluation['chance_map']:.4f}."
    )
