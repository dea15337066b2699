"""Several models as one, whose predictions are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.config import digest_of
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, Model, load_model, read_checkpoint_info
from raymotion.models.outputs.base import Output

# Inputs of which one pass over the pictures makes one kind.
MADE_ONCE = {
    "answers": "answers of one service",
    "regions": "features of one region extractor, `raymotion features regions`",
    "streams": "features of one set of backbones, `raymotion features embeddings`",
}


def read_models(folders: Sequence[storage.PathLike]) -> CheckpointInfo:
    """Reads the description of one model, or of several models as one (see `combined`)."""
    return combined([read_checkpoint_info(folder) for folder in folders])


def load_models(folders: Sequence[storage.PathLike], device: str = "cpu") -> Model:
    """Loads one model, or several as one; see `checkpoint.load_model` and `combined`."""
    models = [load_model(folder, device=device) for folder in folders]
    info = combined([own.info for own in models])
    models.sort(key=lambda own: own.info.fingerprint)
    return models[0] if len(models) == 1 else Model(models[0].network, info, tuple(models))


def combined(infos: Sequence[CheckpointInfo]) -> CheckpointInfo:
    """Returns the description of the mean of several models; that of a single one is returned as it is.

    It has the inputs of all and the mean of their class rates, if each has some. It has no thresholds and no figures:
    those of its members say nothing of the mean.

    Raises:
        InputError: they predict different things, or vectors, need different features of a picture, or one is named
            twice.
    """
    first = infos[0]
    if len(infos) == 1:
        return first
    names = {own.name: own for own in first.inputs}
    for place, info in enumerate(infos):
        if any(own.gives == "vectors" for own in info.outputs):
            raise InputError(
                "gives vectors in a space of its own, which have no mean with those of another model",
                path=info.folder,
                remedy="Name one model.",
            )
        if info.fingerprint in {own.fingerprint for own in infos[:place]}:
            raise InputError("is named twice, and would count twice", path=info.folder, remedy="Name each model once.")
        if (told := _predicted(info.outputs)) != (wanted := _predicted(first.outputs)):
            differs = next((a, b) for a, b in zip([*told, None], [*wanted, None]) if a != b)
            raise InputError(
                f"predicts {_shown(differs[0])}, and {first.folder} {_shown(differs[1])}",
                path=info.folder,
                remedy="Average models of the same labels, in the same order, and of the same numbers.",
            )
        for own in info.inputs:
            if own.name in MADE_ONCE and own.to_dict() != names.setdefault(own.name, own).to_dict():
                raise InputError(
                    f"reads other {own.name} than a model before it, and a job makes {MADE_ONCE[own.name]}",
                    path=info.folder,
                    remedy="Average models of the same features.",
                )
    # In an order of their own, so that the last digits of the mean do not depend on the command line.
    infos = sorted(infos, key=lambda own: own.fingerprint)
    outputs = {own.name: _mean_rates(infos, own) for own in first.outputs}
    marks = [(info.training.get("data") or {}).get("seen") for info in infos]
    return replace(
        infos[0],
        folder=" + ".join(info.folder for info in infos),
        inputs=tuple(own for info in infos for own in info.inputs),
        fingerprint=digest_of([info.fingerprint for info in infos]),
        training={
            "outputs": {name: facts for name, facts in outputs.items() if facts},
            # Not known of all of them, it is not known.
            "data": {"seen": None if None in marks else sorted({mark for own in marks for mark in own or ()})},
        },
        members=tuple(infos),
    )


# What a model's output is trained or calibrated with; the others say what it predicts.
TRAINED = ("loss", "weight", "temperatures", "standardised")


def _predicted(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    """Returns what a model predicts, without how it was trained or calibrated to."""
    return [{name: value for name, value in own.to_dict().items() if name not in TRAINED} for own in outputs]


def _shown(output: Mapping[str, Any] | None) -> str:
    if output is None:
        return "nothing more"
    told = output.get("vocabulary")
    if isinstance(told, Mapping):
        labels = ", ".join(map(str, told.get("labels", ())))
        return f"{told.get('name')} ({labels if len(labels) < 80 else labels[:80] + ' ...'})"
    return ", ".join(f"{name} {value}" for name, value in output.items() if name != "type")


def _mean_rates(infos: Sequence[CheckpointInfo], output: Output) -> dict[str, list[float]]:
    facts = [info.facts(output.name) for info in infos]
    if any(own.get("prior") is None for own in facts):
        return {}
    rates = {"prior": [own["prior"] for own in facts]}
    if any("learned_rates" in own for own in facts):
        rates["learned_rates"] = [own.get("learned_rates", own["prior"]) for own in facts]
    return {name: [float(x) for x in np.mean(np.array(own, dtype=np.float64), axis=0)] for name, own in rates.items()}
