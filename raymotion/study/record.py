"""What a study leaves in its folder, and how it is found again.

    STUDY/study.json                     the record, rewritten after every stage
    STUDY/trials/KEY/trial.json          one configuration: its epochs, how it ended, how often it was started
    STUDY/trials/KEY/seed-S.safetensors  the best epoch's probabilities on validation
    STUDY/trials/KEY/seed-S.weights.safetensors   its weights, kept for those that are carried forward
    STUDY/test/NAME-seed-S.safetensors   answers on test of the winner of stage NAME (or `joint`)
    STUDY/winner.yaml                    the recipe that the stages ended with

A trial's key is a digest of everything that decides its result, so a configuration that two stages share is one trial.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raymotion import storage
from raymotion.config import digest_of
from raymotion.errors import AccessDenied, InputError
from raymotion.local_files import disk_full, is_full
from raymotion.train.fusion_recipe import FusionRecipe

FORMAT = 1
STUDY, TRIAL, WINNER = "study.json", "trial.json", "winner.yaml"
COMPLETE, STOPPED, FAILED, RUNNING = "complete", "stopped", "failed", "running"
# Nothing of these decides a trial's result: where things are, and the seed, which stands beside the recipe.
_PLACES = ("samples", "embeddings")


def trial_key(recipe: FusionRecipe, seeds: Sequence[int], data_fingerprint: str) -> str:
    """16 hex digits of everything that decides a trial's result."""
    settings = recipe.result_settings()
    del settings["seed"]
    settings["data"] = {name: value for name, value in settings["data"].items() if name not in _PLACES}
    return digest_of({"recipe": settings, "seeds": list(seeds), "data": data_fingerprint})


def machine_fault(error: Exception, where: str) -> str | None:
    """What to tell the user of an error that no configuration is to blame for, None if one may be.

    Args:
        where: the study's folder, for a full disk that does not say its path.
    """
    if is_full(error):
        return str(disk_full(where, error))
    if isinstance(error, AccessDenied | ConnectionError | TimeoutError):
        return str(error)
    return None


@dataclass
class TrialRecord:
    """One configuration.

    Attributes:
        config: dotted field -> label of its choice; the varied fields alone.
        epochs: {"epoch", "val_macro_ap", "val_bce", "train_loss"}: a list over the seeds each, None for a seed that had
            stopped improving before; and "score", the mean over the seeds of the best epoch so far.
        best: for each seed {"epoch", "val_macro_ap"}.
        seconds: of training, all seeds.
        attempts: how often it was started.
        stage: that first ran it.
        sample_ids: digest of the ids of the persons whose validation probabilities are kept, in their order.
        order: of the finished trials of a stage, so that a scheduler can be told of them in that order.
    """

    key: str
    config: dict[str, Any]
    seeds: list[int]
    stage: str = ""
    status: str = RUNNING
    epochs: list[dict[str, Any]] = field(default_factory=list)
    best: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0
    attempts: int = 0
    sample_ids: str = ""
    order: float = 0.0
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.status != RUNNING

    @property
    def scores(self) -> list[float]:
        """Best validation mAP of each seed so far."""
        return [float(best["val_macro_ap"]) for best in self.best]

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores)) if self.best else float("nan")

    def results(self) -> list[dict[str, Any]]:
        """What the trial reported to its scheduler, epoch by epoch."""
        return [{"epoch": epoch["epoch"], "val_macro_ap": epoch["score"]} for epoch in self.epochs]


class StudyFolder:
    """The folder of one study; local or an address."""

    def __init__(self, path: storage.PathLike) -> None:
        self.path = storage.absolute(path)

    @property
    def data(self) -> str:
        """Where the driver lays the data for the trials: training and validation alone."""
        return storage.join(self.path, ".data")

    @property
    def scratch(self) -> str:
        """Ray Tune's own files; nothing of them is ever read again."""
        return storage.join(self.path, ".tune")

    @property
    def record(self) -> str:
        return storage.join(self.path, STUDY)

    @property
    def winner(self) -> str:
        return storage.join(self.path, WINNER)

    def trial(self, key: str) -> str:
        return storage.join(self.path, "trials", key)

    def read(self) -> dict[str, Any] | None:
        """study.json, or None where no study was begun."""
        if not storage.exists(self.record):
            return None
        found = storage.read_json(self.record)
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise InputError("is no record of a study", path=self.record, remedy="Name another folder with --out.")
        return found

    def free_if_nothing_computed(self) -> None:
        """Removes a study none of whose trials came to an end, so that it does not bind the folder to its settings."""
        record = self.read()
        if record is None or record["status"] == "complete":
            return
        keys = storage.list_entries(storage.join(self.path, "trials"))
        if any((trial := self.read_trial(key)) and trial.status in (COMPLETE, STOPPED) for key in keys):
            return
        for place in (self.scratch, self.data, storage.join(self.path, "trials")):
            storage.remove_tree(place)
        storage.remove(self.record)

    def write(self, record: Mapping[str, Any]) -> None:
        storage.write_json(self.record, record)

    def read_trial(self, key: str) -> TrialRecord | None:
        """The record of a trial; None if it never began: no file, or a torn one, as a power cut leaves it."""
        path = storage.join(self.trial(key), TRIAL)
        if not storage.exists(path):
            return None
        try:
            found = json.loads(storage.read_bytes(path))
        except ValueError:  # the record of a trial that was running is not written durably
            return None
        try:
            return TrialRecord(**found)
        except TypeError as error:
            raise InputError("is no record of a trial", path=path, remedy="Remove its folder.") from error

    def write_trial(self, record: TrialRecord, *, durable: bool = True) -> None:
        storage.write_json(storage.join(self.trial(record.key), TRIAL), asdict(record), durable=durable)

    def validation(self, key: str, seeds: Sequence[int]) -> np.ndarray:
        """Validation probabilities of a complete trial's best epochs, float32 (seeds, n, L)."""
        return np.stack([self._arrays(key, f"seed-{seed}.safetensors")["val"] for seed in seeds])

    def _arrays(self, key: str, name: str) -> dict[str, np.ndarray]:
        from safetensors.numpy import load

        return dict(load(storage.require(storage.join(self.trial(key), name))))

    def weights_path(self, key: str, seed: int) -> str:
        return storage.join(self.trial(key), f"seed-{seed}.weights.safetensors")

    def has_result(self, key: str, seeds: Sequence[int]) -> bool:
        """Whether the validation probabilities of all seeds are there."""
        names = {f"seed-{seed}.safetensors" for seed in seeds}
        return names <= set(storage.list_names(self.trial(key)))

    def write_test(self, name: str, seeds: Sequence[int], probabilities: np.ndarray) -> None:
        """Keeps a winner's answers on test, (seeds, n, L), for the report."""
        from safetensors.numpy import save

        for seed, own in zip(seeds, probabilities, strict=True):
            path = storage.join(self.path, "test", f"{name}-seed-{seed}.safetensors")
            storage.write_bytes(path, save({"test": np.ascontiguousarray(own, dtype=np.float32)}))

    def drop_weights(self, key: str, seeds: Sequence[int]) -> None:
        for seed in seeds:
            with contextlib.suppress(OSError):
                storage.remove(self.weights_path(key, seed))
