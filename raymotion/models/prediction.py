"""One prediction beside what makes it readable: the training prior, the lift over it, the threshold's decision."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from raymotion import storage
from raymotion.errors import InputError


@dataclass(frozen=True)
class Emotion:
    """One emotion of one prediction.

    Attributes:
        prior: its share in the training split; None where the checkpoint does not say.
        lift: probability / prior; None without a prior, or for a prior of 0.
        chosen: whether the probability reaches `threshold`; None for a checkpoint without thresholds.
    """

    label: str
    probability: float
    prior: float | None
    lift: float | None
    threshold: float | None
    chosen: bool | None


@dataclass(frozen=True)
class Prediction:
    """What one model says of one image and its captions; `emotions` fall by probability."""

    model: str
    fingerprint: str
    image: str | None
    captions: list[str]
    emotions: list[Emotion]
    notes: list[str]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)

    def lines(self, top: int | None = None) -> list[str]:
        """A table of the `top` emotions for a terminal, and what has to be known of it."""
        shown = self.emotions[:top]
        heads = ("emotion", "probability", "in training", "lift", "chosen")
        rows = [
            (
                emotion.label,
                f"{emotion.probability:.3f}",
                "not known" if emotion.prior is None else f"{emotion.prior:.3f}",
                "" if emotion.lift is None else f"x {emotion.lift:.2f}",
                "" if emotion.chosen is None else f"{'yes' if emotion.chosen else 'no'} ({_limit(emotion.threshold)})",
            )
            for emotion in shown
        ]
        columns = heads if any(emotion.chosen is not None for emotion in shown) else heads[:-1]
        widths = [max(len(head), *(len(row[i]) for row in rows)) for i, head in enumerate(columns)]
        table = [
            "  ".join(
                cell.ljust(width) if i in (0, 4) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=False))
            ).rstrip()
            for row in [columns, *rows]
        ]
        return [*table, *(f"note: {note}" for note in self.notes)]


def explain(
    folder: storage.PathLike,
    image: str | None,
    captions: Sequence[str],
    *,
    device: str = "cpu",
    weights: str | None = None,
) -> Prediction:
    """Opens the checkpoint and predicts one sample; see `predictor.load` and `Predictor.label` for the errors."""
    from raymotion.models.predictor import load

    texts = [text for text in captions if text.strip()]
    if image is None and not texts:
        raise InputError("neither an image nor a caption is given", remedy='Add IMAGE, or --caption "...".')
    model = load(folder, device=device, weights=weights)
    probabilities = model.label(image, texts)
    info = model.info
    emotions = []
    for label, probability in probabilities.items():
        i = info.vocabulary.index(label)
        prior = None if info.prior is None else info.prior[i]
        threshold = None if info.thresholds is None else info.thresholds[i]
        emotions.append(
            Emotion(
                label,
                probability,
                prior,
                probability / prior if prior else None,
                threshold,
                None if threshold is None else probability >= threshold,
            )
        )
    notes = [*model.not_read(image=image is not None, caption=bool(texts)), *model.notes]
    return Prediction(str(folder), info.fingerprint, image, texts, emotions, notes)


def _limit(threshold: float | None) -> str:
    # Above 1: validation had no positive of this class, so nothing is known of it.
    return "no threshold: too rare in validation" if threshold is None or threshold > 1 else f"from {threshold:.2f}"
