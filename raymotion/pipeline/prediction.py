"""Single predictions with context: training prior, lift over it, and threshold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import cast

from raymotion import storage
from raymotion.data.captions import readable
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.embedding import TEXT, Embedding
from raymotion.text_table import table_lines

OPTIONAL = ("boxes", "numbers", "scales")


@dataclass(frozen=True)
class Emotion:
    """One emotion of one prediction.

    Attributes:
        prior: its share in the training split; None if the checkpoint does not contain it.
        lift: probability / prior; None without a prior, or for a prior of 0.
        chosen: whether the probability reaches `threshold`, or is the highest of a model of one label; None for another
            checkpoint without thresholds.
    """

    label: str
    probability: float
    prior: float | None
    lift: float | None
    threshold: float | None
    chosen: bool | None


@dataclass(frozen=True)
class Prediction:
    """The prediction of a model for one image and its captions; `emotions` are in descending order of probability."""

    model: str
    fingerprint: str
    image: str | None
    captions: list[str]
    emotions: list[Emotion]
    notes: list[str]
    # The given boxes, and numbers such as valence, each on its scale in `scales`.
    boxes: dict[str, list[float]] | None = None
    numbers: dict[str, float] | None = None
    scales: dict[str, list[float]] | None = None

    def to_json(self) -> str:
        """Returns the prediction as JSON; without numbers, scales and boxes if there are none."""
        values = {name: value for name, value in asdict(self).items() if value or name not in OPTIONAL}
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)

    def lines(self, top: int | None = None) -> list[str]:
        """Returns a table of the `top` emotions for a terminal, with numbers and notes."""
        shown = self.emotions[:top]
        heads = ("emotion", "probability", "in training", "lift", "chosen")
        rows = [
            (
                emotion.label,
                f"{emotion.probability:.3f}",
                "not known" if emotion.prior is None else f"{emotion.prior:.3f}",
                "" if emotion.lift is None else f"x {emotion.lift:.2f}",
                _choice(emotion),
            )
            for emotion in shown
        ]
        width = len(heads) if any(emotion.chosen is not None for emotion in shown) else len(heads) - 1
        table = table_lines(heads[:width], [row[:width] for row in rows], left=(0, 4))
        numbers = []
        for name, value in (self.numbers or {}).items():
            scale = (self.scales or {}).get(name)
            numbers.append(f"{name} {value:.2f}" + (f" (of {scale[0]:g} to {scale[1]:g})" if scale else ""))
        return [*(table if self.emotions else []), *numbers, *(f"note: {note}" for note in self.notes)]


def explain(
    folder: storage.PathLike,
    image: str | None,
    captions: Sequence[str],
    *,
    device: str = "cpu",
    weights: str | Sequence[str] | None = None,
    boxes: Mapping[str, Sequence[float]] | None = None,
    damaged: DamagedPolicy = "quarantine",
) -> Prediction:
    """Loads the checkpoint and predicts one sample; see `predictor.load` and `Predictor.label` for errors."""
    from raymotion.pipeline.predictor import load, read_picture

    texts = readable(captions)
    if image is None and not texts:
        if any(text.strip() for text in captions):
            raise InputError("no caption holds a readable character", remedy="Write one, or add IMAGE.")
        raise InputError("neither an image nor a caption is given", remedy='Add IMAGE, or --caption "...".')
    # The picture is read before the model, which takes seconds or minutes, to report a misspelt name at once.
    kept: list[Exception] = []
    pixels = None if image is None else read_picture(image, on_kept=kept.append if damaged == "keep" else None)
    model = load(folder, device=device, weights=weights)
    model.damaged = damaged
    said = model.label(pixels if model.min_side is None else image, texts, boxes=boxes)
    info = model.info
    emotions = [] if info.labels is None else _emotions(info, said)
    numbers = {**(said if info.labels is None else {}), **(model.numbers or {})}
    given_numbers = [cast(Dimensions, own) for own in info.outputs if own.gives == "numbers"]
    scales = {name: list(own.scale) for own in given_numbers for name in own.names}
    notes = [*model.not_read(image=image is not None, caption=bool(texts)), *model.notes]
    vectors = [cast(Embedding, own) for own in info.outputs if own.gives == "vectors"]
    if any(own.added for own in vectors) and set(numbers) - set(scales):
        notes.append(
            "The similarity is corrected for hubs: 0 means as close as its closest training examples, on average."
        )
    else:
        scales |= {name: [-1.0, 1.0] for name in numbers if vectors and name not in scales}  # a cosine
    if len(vectors) == len(info.outputs) and not numbers:
        sides = " and ".join("a caption" if side == TEXT else f"an {side}" for side in vectors[0].sides)
        notes.append(
            f"This model compares {sides}: give both to see how similar they are. `raymotion search` finds more."
        )
    if damage := model.damage or (str(kept[0]) if kept else None):
        notes.insert(0, f"The picture is damaged, and was read as it decodes: {damage}.")
    given = {name: [float(value) for value in box] for name, box in (boxes or {}).items()}
    return Prediction(
        str(folder), info.fingerprint, image, texts, emotions, notes, given or None, numbers or None, scales or None
    )


def _choice(emotion: Emotion) -> str:
    if emotion.chosen is None:
        return ""
    limit = "" if emotion.threshold is None else f" ({_limit(emotion.threshold)})"
    return ("yes" if emotion.chosen else "no") + limit


def _emotions(info: CheckpointInfo, said: Mapping[str, float]) -> list[Emotion]:
    emotions: list[Emotion] = []
    for label, probability in said.items():
        i = info.vocabulary.index(label)
        prior = None if info.prior is None else info.prior[i]
        threshold = None if info.thresholds is None else info.thresholds[i]
        lift = probability / prior if prior else None
        chosen = None if threshold is None else probability >= threshold
        if info.one_label:
            chosen = not emotions  # the first one is the most probable
        emotions.append(Emotion(label, probability, prior, lift, threshold, chosen))
    return emotions


def parse_box(text: str, what: str) -> list[float]:
    """Parses `x1,y1,x2,y2`.

    Raises:
        InputError: the text is not a box; `what` names it in the message.
    """
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4 or not all(math.isfinite(value) for value in values):
        raise InputError(f"{what} {text!r} is not a box", remedy="Write four numbers of pixels: x1,y1,x2,y2.")
    if values[2] <= values[0] or values[3] <= values[1]:
        raise InputError(f"{what} {text!r} is empty", remedy="Left and top come first: x1 < x2 and y1 < y2.")
    return values


def _limit(threshold: float | None) -> str:
    # Above 1: no threshold could be fitted, because validation had no positive of this class.
    return "no threshold: too rare in validation" if threshold is None or threshold > 1 else f"from {threshold:.2f}"
