"""Training of one configuration, with its seeds side by side, one epoch of each at a time. Independent of Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.torch import load, save

from raymotion.errors import RaymotionError
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.study.data import ids_of
from raymotion.study.record import (
    MACRO_AP,
    BestEpoch,
    Epoch,
    Metric,
    StudyFolder,
    TrialRecord,
    TrialStatus,
    machine_fault,
)
from raymotion.train.loop import Run
from raymotion.train.task import Task
from raymotion.train.workers import Workers


class Trial:
    """Trains a configuration; call `step` until `finished`.

    Its record is written at the beginning and at the end, so an unfinished trial starts again from scratch.

    Args:
        spec: key, config, recipe, seeds and stage of the trial, and the study's folder.
        kind: of the recipe.
        data: as returned by `without_test`.
        metric: validation metric that selects the epoch.
    """

    def __init__(
        self, spec: Mapping[str, Any], kind: Kind, data: TrainingSet, *, metric: Metric = MACRO_AP, device: str = "cpu"
    ) -> None:
        self.folder, self.metric, self.data = StudyFolder(spec["study"]), f"val_{metric.name}", data
        before = self.folder.read_trial(spec["key"])
        self.record = TrialRecord(
            key=spec["key"], config=dict(spec["config"]), seeds=list(spec["seeds"]), stage=spec["stage"],
            attempts=(before.attempts if before else 0) + 1,
        )  # fmt: skip
        self.folder.write_trial(self.record, durable=False)
        self.runs: list[Run] = []
        started = time.monotonic()
        try:
            recipe = kind.recipe.model_validate(spec["recipe"])
            for seed in self.record.seeds:
                task = Task(recipe.model_copy(update={"seed": seed}), data)
                self.runs.append(Run(task, workers=Workers(device=device)))
            self.record.parameters = sum(weights.numel() for weights in self.runs[0].model.parameters())
        except Exception as error:
            self._fail(error)
        self.record.seconds = time.monotonic() - started

    @property
    def finished(self) -> bool:
        """Whether the trial has ended."""
        return self.record.finished

    def step(self) -> dict[str, Any]:
        """Trains each seed that is not done for one epoch.

        Returns:
            `epoch`, `score` (best score so far, averaged over seeds), `finished`, and `record`, the trial's record as
            JSON. A failure is recorded and finishes the trial.
        """
        if not self.finished:
            started = time.monotonic()
            try:
                self._epoch()
                self.record.seconds += time.monotonic() - started
                if all(run.done for run in self.runs):
                    self._complete()
            except Exception as error:
                self.record.seconds += time.monotonic() - started
                self._fail(error)
        record = self.record
        return {
            "epoch": len(record.epochs), "score": record.mean if record.best else 0.0,
            "finished": self.finished, "record": record.model_dump_json(),
        }  # fmt: skip

    def close(self) -> None:
        """Releases the resources of training."""
        for run in self.runs:
            run.close()
        self.runs = []

    def _epoch(self) -> None:
        lines = [None if run.done else run.step() for run in self.runs]

        def column(name: str) -> list[float | None]:
            return [None if line is None else float(line[name]) for line in lines]

        self.record.best = [
            BestEpoch(epoch=run.state.best_epoch, score=float(run.state.history[run.state.best_epoch - 1][self.metric]))
            for run in self.runs
        ]
        self.record.epochs.append(
            Epoch(
                epoch=len(self.record.epochs) + 1,
                score=column(self.metric),
                train_loss=column("train_loss"),
                best=self.record.mean,
            )
        )

    def _complete(self) -> None:
        """Writes the files first, then the record that lists them, before Tune learns of the end."""
        record = self.record
        for seed, run in zip(record.seeds, self.runs, strict=True):
            assert run.best_predictions is not None
            values = run.best_predictions[run.task.selecting.name]
            ids = ids_of(self.data, "val")
            record.files |= self.folder.write_predictions(record.key, "val", seed, ids, values)
            record.files |= self.folder.write_weights(record.key, seed, save(run.best_weights))
        self._end("complete")

    def _fail(self, error: Exception) -> None:
        if machine_fault(error, self.folder.path) is not None:
            raise error
        text = (str(error).strip().splitlines() or [""])[0]
        self._end("failed", text if isinstance(error, RaymotionError) else f"{type(error).__name__}: {text}")

    def _end(self, status: TrialStatus, error: str | None = None) -> None:
        self.record.status, self.record.error, self.record.order = status, error, time.time()
        self.folder.write_trial(self.record)
        self.close()


def predict_test(
    folder: StudyFolder, key: str, recipe: TrainRecipe, seeds: Sequence[int], data: TrainingSet, output: Output
) -> np.ndarray:
    """Predicts the test split for one output, (seeds, n, width), with the weights of each seed's best epoch."""
    found = []
    for seed in seeds:
        run = Run(Task(recipe.model_copy(update={"seed": seed}), data), workers=Workers())
        run.best_weights = load(folder.weights(key, seed))
        found.append(run.predict("test")[output.name])
        run.close()
    return np.stack(found)
