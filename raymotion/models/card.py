"""The model card of a checkpoint, and the table of a model's metrics beside their baselines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raymotion.data.streams import ABLATIONS
from raymotion.learning.metrics.multilabel import Evaluation, metric_text, metric_title

LOOKS_AT = {"context": "the whole picture", "body": "the body's box", "face": "the face's box"}
TAGS = ("emotion-recognition", "affective-computing", "multi-label-classification")
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
    """Markdown with the Hugging Face hub's YAML header, from the contents of config.json and training.json."""
    if config["architecture"] in ("fusion", "fusion-tuned"):
        return _document(_fusion_head(config, training, parameters), config, training)
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
    return _document(lines, config, training)


def _document(lines: list[str], config: Mapping[str, Any], training: Mapping[str, Any]) -> str:
    """The card that begins with `lines`: data, targets, figures, and how to read them."""
    targets = training.get("targets") or {}
    imitates = targets.get("kind") == "pseudo-labels"
    lines = [*_header(config), *lines, *_targets(targets)]
    data = training.get("data") or {}
    if data:
        splits = ", ".join(f"{count:,} {name}" for name, count in (data.get("splits") or {}).items())
        lines.append(f"- Data: {data.get('name', 'unnamed')} ({splits}), fingerprint {data.get('fingerprint')}.")
    if "seed" in training:
        last = (training.get("settings") or {}).get("select_by") == "last"
        chosen = "the last one, whatever validation says" if last else "chosen on validation"
        lines.append(f"- Seed {training['seed']}; epoch {training.get('best_epoch')}, {chosen}.")
    chosen_on = "The epoch and the thresholds were chosen on these samples: the figures are optimistic."
    if imitates:
        chosen_on = (
            "Agreement with the teacher's labels of images that were held out from training: how well the student "
            f"imitates its teacher, not how well it knows what people say. {chosen_on}"
        )
    for name, explanation in (
        ("validation", chosen_on),
        ("test", "Scored once, after every choice was made."),
    ):
        evaluation = training.get(name)
        if not evaluation:
            continue
        lines += ["", f"## {name.capitalize()}: {evaluation['samples']:,} samples", "", explanation, ""]
        lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        lines += [f"| {' | '.join(row)} |" for row in metric_rows(evaluation)]
        lines += _emotic_lines((training.get("emotic") or {}).get("val" if name == "validation" else name) or {})
    lines += [
        "",
        "`class prior` answers with the training split's class rates for every image, `constant` with the evaluated",
        "split's own; neither looks at anything. `against both` is `better` only if the whole interval of the paired",
        "difference is.",
        "",
        *_meaning(imitates),
    ]
    return "\n".join(lines) + "\n"


def _header(config: Mapping[str, Any]) -> list[str]:
    """The YAML block by which the hub lists a model: library, task, tags, labels."""
    from huggingface_hub import ModelCardData

    reads_pictures = set(config["modalities"]) != {"text"}
    data = ModelCardData(
        library_name="raymotion",
        pipeline_tag="image-classification" if reads_pictures else "text-classification",
        tags=[*TAGS, config["architecture"], config["vocabulary"]["name"]],
    )
    return ["---", data.to_yaml(line_break="\n").rstrip("\n"), "---", ""]


def _targets(targets: Mapping[str, Any]) -> list[str]:
    """What the model learned to say: people's annotations, or the labels of another model and what these are worth."""
    if targets.get("kind") != "pseudo-labels":
        copied = targets.get("copied_from")
        if not copied or copied.get("targets") != "pseudo-labels":
            return []
        return [
            f"- Its first layers come from the student {copied['fingerprint']}, which learned from pseudo-labels of a "
            "teacher."
        ]
    teacher, collapse = targets.get("teacher") or {}, targets.get("collapse")
    reads = " and ".join(teacher.get("modalities") or ()) or "what is not recorded"
    lines = [
        f"- Targets: pseudo-labels ({targets.get('folder')}, job {targets.get('digest')}), which the "
        f"{teacher.get('architecture') or 'teacher'} {teacher.get('fingerprint')} made from {reads}. No person "
        "labelled these images.",
    ]
    if collapse is None:
        lines.append("- **Nobody checked the training labels for a collapse.**")
    elif collapse.get("collapsed"):
        lines.append(f"- **Training labels: {collapse.get('headline')}**")
    else:
        lines.append(f"- Training labels: {collapse.get('headline')}")
    return [*lines, *(f"- {notice}" for notice in targets.get("notices") or ())]


def _meaning(imitates: bool) -> list[str]:
    """What the labels may be taken for."""
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


def _fusion_head(config: Mapping[str, Any], training: Mapping[str, Any], parameters: int) -> list[str]:
    """What a fusion head is: its streams with their backbones, its network, and how it was trained."""
    origin, vocabulary = config.get("fusion") or {}, config["vocabulary"]
    tuned = config["architecture"] == "fusion-tuned"
    shape = config["model"]["fusion"] if tuned else config["model"]
    settings = training.get("settings") or {}
    backbones: Mapping[str, Mapping[str, Any]] = origin.get("backbones") or {}
    inside = "It reads features of frozen backbones, which are not part of it."
    if tuned:
        blocks = config["model"]["tuned_blocks"]
        inside = f"Its backbones are part of it: the last {blocks} blocks of each learned with the head."
    kept = [stream for stream in backbones if stream in ABLATIONS[shape["ablation"]]]
    random = [stream for stream in kept if backbones[stream]["identity"].get("weights", "").startswith("random:")]
    lines = ["# Emotions of a person in a picture: fusion head", ""]
    if random and not tuned:
        lines += [
            f"**Its backbones were never trained** ({', '.join(random)}: random weights). They tell colours and "
            "textures apart, not people or moods: this head is for trials of the machinery, its labels mean nothing.",
            "",
        ]
    lines += [
        f"Fusion `{shape['fusion']}`, width {shape['hidden']}, {parameters:,} parameters and statistics, made by "
        f"raymotion {training['raymotion']}. {inside}",
        "",
        f"- Emotions: {vocabulary['name']}, {len(vocabulary['labels'])} labels ({vocabulary['fingerprint']}).",
        "- Reads what there is of a person: a stream that is missing (no face found) is masked.",
    ]
    for stream in kept:
        own, name = backbones[stream]["identity"], backbones[stream]["name"]
        tokens = (shape.get("tokens") or {}).get(stream, 0)
        lines.append(
            f"- {stream.capitalize()} ({LOOKS_AT[stream]}): {name} = {own.get('name')}, weights {own.get('weights')}, "
            f"{own.get('size')} pixels, "
            + (f"{tokens} tokens of {own.get('token_dim')} numbers." if tokens else f"{own.get('dim')} numbers.")
        )
    if shape["ablation"] != "all":
        lines.append(f"- Ablation `{shape['ablation']}`: it looks at {' and '.join(kept)} alone.")
    loss = origin.get("loss") or {}
    options = ", ".join(f"{name} {value}" for name, value in (loss.get("options") or {}).items())
    resampling = settings.get("resampling") or {}
    made = resampling.get("method", "none")
    made = made if made == "none" else f"{made} {resampling.get('level')}"
    lines.append(
        f"- Loss `{loss.get('name')}`{f' ({options})' if options else ''}; augmentation "
        f"{settings.get('augmentation', 'none')}; resampling {made}"
        f"{'; valence, arousal and dominance besides' if shape.get('vad') else ''}."
    )
    return lines


def _emotic_lines(figures: Mapping[str, Any]) -> list[str]:
    """Both average precisions, and the error of valence, arousal and dominance beside that of their training means."""
    if not figures:
        return []
    lines = [
        "",
        f"mAP {metric_text(figures['map'])} as scikit-learn computes it, "
        f"{metric_text(figures['interpolated_map'])} interpolated as the "
        f"authors of EMOTIC do; a random order has {figures['chance_map']:.4f}.",
    ]
    known = [error for error in figures.get("vad_mae") or [] if error["mae"] is not None]
    if known:
        lines += ["", "| mean absolute error, scale 1 to 10 | model | training mean | samples |", "|---|---|---|---|"]
        lines += [f"| {e['name']} | {e['mae']:.3f} | {e['constant']:.3f} | {e['samples']:,} |" for e in known]
    return lines
