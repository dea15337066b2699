"""One configuration in training: its seeds side by side, an epoch of each at a time. Knows nothing of Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors.numpy import save
from safetensors.torch import save as save_tensors

from raymotion.config import digest_of
from raymotion.errors import RaymotionError
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.study.record import COMPLETE, FAILED, StudyFolder, TrialRecord, machine_fault
from raymotion.train.fusion_data import FusionData
from raymotion.train.loop import Run, Workers
from raymotion.train.task import task_of

# The data of the study that this process works for: mapped once, with what tasks have computed of them.
_loaded: dict[str, FusionData] = {}


def study_data(folder: str) -> FusionData:
    """The data in `folder`, loaded once in a process."""
    if folder not in _loaded:
        _loaded.clear()
        _loaded[folder] = FusionData.load(folder)
    return _loaded[folder]


def without_test(data: FusionData) -> FusionData:
    """`data` as trials see them: no sample of the test split, no label of it, not its size.

    The public study's every choice agrees with its test scores (emotic_study.md 13.2). Here a trial could not read the
    test split if it tried.
    """
    keep = np.sort(np.concatenate([data.splits["train"], data.splits["val"]]))
    place = np.full(len(data.sample_ids), -1, dtype=np.int64)
    place[keep] = np.arange(len(keep))
    return FusionData(
        sample_ids=[data.sample_ids[row] for row in keep],
        groups=[data.groups[row] for row in keep],
        splits={
            "train": place[data.splits["train"]],
            "val": place[data.splits["val"]],
            "test": np.zeros(0, dtype=np.int64),
        },
        hard=data.hard[keep],
        soft=data.soft[keep],
        vad=data.vad[keep],
        vocabulary=data.vocabulary,
        folders=data.folders,
        rows=data.rows[keep],
        counts=data.counts,
        name=data.name,
        fingerprint=data.fingerprint,
        opened=data.opened,
    )


class Configuration:
    """A configuration in training; `step` until `finished`.

    Its record is written when it begins, when it ends and, for a look at it, nowhere between: an unfinished trial
    starts anew.

    Args:
        spec: key, config, recipe, seeds and stage of the trial, and the study's folder.
        data: as `without_test` gives them.
    """

    def __init__(self, spec: Mapping[str, Any], data: FusionData, *, device: str = "cpu") -> None:
        self.folder = StudyFolder(spec["study"])
        before = self.folder.read_trial(spec["key"])
        self.record = TrialRecord(
            spec["key"], dict(spec["config"]), list(spec["seeds"]), stage=spec["stage"],
            attempts=(before.attempts if before else 0) + 1,
            sample_ids=digest_of([data.sample_ids[row] for row in data.splits["val"]]),
        )  # fmt: skip
        self.folder.write_trial(self.record, durable=False)
        self.runs: list[Run] = []
        started = time.monotonic()
        try:
            recipe = FusionRecipe.model_validate(spec["recipe"])
            for seed in self.record.seeds:
                task = task_of(recipe.model_copy(update={"seed": seed}), data)
                self.runs.append(Run(task, workers=Workers(device=device)))
            self.record.parameters = sum(weights.numel() for weights in self.runs[0].model.parameters())
        except Exception as error:
            self._fail(error)
        self.record.seconds = time.monotonic() - started

    @property
    def finished(self) -> bool:
        return self.record.finished

    def step(self) -> dict[str, Any]:
        """Trains each seed that still improves for one epoch.

        Returns:
            `epoch`, `val_macro_ap` (mean over the seeds of the best epoch so far), `finished`, and `record`, the
            trial's as JSON. A failure is told in the record and finishes the trial.
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
            "epoch": len(record.epochs), "val_macro_ap": record.mean if record.best else 0.0,
            "finished": self.finished, "record": json.dumps(asdict(record)),
        }  # fmt: skip

    def close(self) -> None:
        for run in self.runs:
            run.close()
        self.runs = []

    def _epoch(self) -> None:
        lines = [None if run.done else run.step() for run in self.runs]

        def column(name: str) -> list[float | None]:
            return [None if line is None else float(line[name]) for line in lines]

        self.record.epochs.append(
            {"epoch": len(self.record.epochs) + 1}
            | {name: column(name) for name in ("val_macro_ap", "val_bce", "train_loss")}
        )
        self.record.best = [
            {
                "epoch": run.state.best_epoch,
                "val_macro_ap": float(run.state.history[run.state.best_epoch - 1]["val_macro_ap"]),
            }
            for run in self.runs
        ]
        self.record.epochs[-1]["score"] = self.record.mean

    def _complete(self) -> None:
        """Files first, then the record that says they are there; only then does Tune hear of the end."""
        for seed, run in zip(self.record.seeds, self.runs, strict=True):
            assert run.best_probabilities is not None
            labels = run.best_probabilities[:, : len(run.task.data.vocabulary)]
            answers = save({"val": np.ascontiguousarray(labels)}, metadata={"sample_ids": self.record.sample_ids})
            self.folder.write_file(self.record, f"seed-{seed}.safetensors", answers)
            self.folder.write_file(self.record, f"seed-{seed}.weights.safetensors", save_tensors(run.best_weights))
        self._end(COMPLETE)

    def _fail(self, error: Exception) -> None:
        if machine_fault(error, self.folder.path) is not None:
            raise error
        text = (str(error).strip().splitlines() or [""])[0]
        self._end(FAILED, text if isinstance(error, RaymotionError) else f"{type(error).__name__}: {text}")

    def _end(self, status: str, error: str | None = None) -> None:
        self.record.status, self.record.error, self.record.order = status, error, time.time()
        self.folder.write_trial(self.record)
        self.close()
