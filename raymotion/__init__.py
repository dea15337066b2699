"""raymotion labels image collections with emotions, on Ray.

import raymotion
model = raymotion.load("teacher/")
model.label("photo.jpg", caption="A man laughs.")
raymotion.label("photos/", model)  # a DataFrame
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raymotion.version import __version__

if TYPE_CHECKING:
    from raymotion.batch.label_dataset import open_labels
    from raymotion.pipeline.predictor import Predictor, label, load

__all__ = ["Predictor", "__version__", "label", "load", "open_labels"]

# Modules of the public names, imported on first use, so that `import raymotion` does not load numpy or torch.
_HOMES = {
    "Predictor": "raymotion.pipeline.predictor",
    "label": "raymotion.pipeline.predictor",
    "load": "raymotion.pipeline.predictor",
    "open_labels": "raymotion.batch.label_dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
