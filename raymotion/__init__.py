"""raymotion labels image collections with emotions, on Ray.

import raymotion
model = raymotion.load("teacher/")
model.label("photo.jpg", caption="A man laughs.")
frame = raymotion.label("photos/", model)  # a DataFrame
raymotion.label("photos/", model, out="labels/")  # a labelled folder
frame = raymotion.open_labels("labels/")

p = frame[frame.attrs["labels"]]  # or anybody's probabilities, as an array
raymotion.select(p, policy="threshold", threshold=0.4)
raymotion.evaluate(targets, p)
raymotion.audit(targets, p)

# Of a model of pictures and captions in one space:
raymotion.search("a dog at sunset", "labels/").frame()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raymotion.version import __version__

if TYPE_CHECKING:
    from raymotion.batch.label_dataset import open_labels
    from raymotion.batch.label_samples import label
    from raymotion.batch.search import SearchIndex, search
    from raymotion.evaluation.arrays import audit, evaluate, select
    from raymotion.pipeline.predictor import Predictor, load

__all__ = [
    "Predictor", "SearchIndex", "__version__", "audit", "evaluate", "label", "load", "open_labels", "search", "select"
]  # fmt: skip

# Modules of the public names, imported on first use, so that `import raymotion` does not load numpy or torch.
_HOMES = {
    "Predictor": "raymotion.pipeline.predictor",
    "SearchIndex": "raymotion.batch.search",
    "audit": "raymotion.evaluation.arrays",
    "evaluate": "raymotion.evaluation.arrays",
    "label": "raymotion.batch.label_samples",
    "load": "raymotion.pipeline.predictor",
    "open_labels": "raymotion.batch.label_dataset",
    "search": "raymotion.batch.search",
    "select": "raymotion.evaluation.arrays",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
