"""Published studies by name, for comparison with a study that repeats them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raymotion.errors import InputError
from raymotion.published.metrics import PublishedMetrics, mean_over_seeds, published_metrics, to_text


@dataclass(frozen=True)
class PublishedStage:
    """A stage of a published study.

    Attributes:
        carried: description of the configuration carried forward. test_map: its test mAP, as a share.
        cells: (varied fields, test mAP) of every published configuration.
    """

    name: str
    carried: str
    test_map: float
    cells: tuple[tuple[Mapping[str, Any], float], ...]

    def score_of(self, config: Mapping[str, Any]) -> float | None:
        """Returns the published test mAP of a configuration; None if it was not run."""
        found = (score for cell, score in self.cells if all(config.get(name) == cell[name] for name in cell))
        return next(found, None)


@dataclass(frozen=True)
class PublishedStudy:
    """A published study with one seed per configuration. All scores are shares.

    Attributes:
        data: name of its data set. persons: number of persons in each split.
        final_ap: test AP of each label, for the configuration of the last stage.
        final_argmax: accuracy, precision, recall and F1 of its argmax.
        noise: difference in mAP between two trainings of the same network. noise_sentence: its explanation.
    """

    data: str
    persons: Mapping[str, int]
    stages: tuple[PublishedStage, ...]
    final_ap: Mapping[str, float]
    final_argmax: tuple[float, float, float, float]
    noise: float
    noise_sentence: str

    @property
    def final_map(self) -> float:
        """Test mAP of the last stage."""
        return self.stages[-1].test_map

    def stage(self, name: str) -> PublishedStage | None:
        """Returns the stage of this name, or None."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def steps(self) -> dict[str, float]:
        """Returns the gain in test mAP of each stage after the first."""
        pairs = zip(self.stages, self.stages[1:], strict=False)
        return {now.name: now.test_map - before.test_map for before, now in pairs}

    def measure(self, targets: np.ndarray, runs: Sequence[np.ndarray]) -> list[PublishedMetrics]:
        """Computes the study's metrics for predictions (n, L) of each seed; the mean over the seeds comes first."""
        each = [published_metrics(targets, own) for own in runs]
        return [mean_over_seeds(each), *each]

    def as_text(self, metrics: PublishedMetrics) -> str:
        """Formats metrics as in the study's text files."""
        return to_text(metrics)


def published_study(name: str, *, where: object = None) -> PublishedStudy:
    """Returns the published study of this name, `STUDY` of the module `raymotion.published.NAME`.

    Args:
        where: the file that names it, for the error.

    Raises:
        InputError: there is no such study.
    """
    try:
        if not re.fullmatch(r"[a-z_]+", name):
            raise ModuleNotFoundError(name)
        found = getattr(importlib.import_module(f"raymotion.published.{name}"), "STUDY", None)
    except ModuleNotFoundError:
        found = None
    if not isinstance(found, PublishedStudy):
        raise InputError(
            f"there is no published study {name!r}", path=where, remedy="Name one such as emotic_study, or none."
        )
    return found
