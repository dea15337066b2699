"""What a study leaves in its folder, and how it is found again.

    STUDY/study.json                     the record, rewritten after every stage; _study.json is a second copy
    STUDY/trials/KEY/trial.json          one configuration: its epochs, how it ended, how often it was started
    STUDY/trials/KEY/seed-S.safetensors  the best epoch's probabilities on validation
    STUDY/trials/KEY/seed-S.weights.safetensors   its weights, kept for those that are carried forward
    STUDY/test/NAME-seed-S.safetensors   answers on test of the winner of stage NAME (or `joint`)
    STUDY/winner.yaml                    the recipe that the stages ended with

A trial's key is a digest of everything that decides its result, so a configuration that two stages share is one trial.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from raymotion import records, storage
from raymotion.config import digest_of
from raymotion.errors import AccessDenied, Damaged, InputError
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.stores.local_files import disk_full, is_full

FORMAT = 1
AGAIN = "Run the same command again: it trains that configuration again."
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
        files: SHA-256 of what it left, by name.
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
    files: dict[str, str] = field(default_factory=dict)

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
        """study.json, or None where no study was begun.

        Raises:
            Damaged: it cannot be read, and neither can its copy.
        """
        found, _ = records.read_twice(self.record)
        if found is not None and (found.get("format") != FORMAT or not isinstance(found.get("identity"), dict)):
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
        for path in (self.record, records.copy_of(self.record)):
            storage.remove(path)

    def write(self, record: Mapping[str, Any]) -> None:
        records.write_twice(self.record, record)

    def read_trial(self, key: str) -> TrialRecord | None:
        """The record of a trial; None if it never began: no file, or a damaged one, as a power cut leaves it."""
        path = storage.join(self.trial(key), TRIAL)
        if not storage.exists(path):
            return None
        try:
            found = records.read_record(path)
        except Damaged:  # the record of a trial that was running is not written durably
            return None
        try:
            return TrialRecord(**found)
        except TypeError as error:
            raise InputError("is no record of a trial", path=path, remedy="Remove its folder.") from error

    def write_trial(self, record: TrialRecord, *, durable: bool = True) -> None:
        records.write_record(storage.join(self.trial(record.key), TRIAL), asdict(record), durable=durable)

    def validation(self, key: str, seeds: Sequence[int]) -> np.ndarray:
        """Validation probabilities of a complete trial's best epochs, float32 (seeds, n, L)."""
        return np.stack([self._arrays(key, f"seed-{seed}.safetensors")["val"] for seed in seeds])

    def weights(self, key: str, seed: int) -> bytes:
        """The weights of a seed's best epoch, as safetensors.

        Raises:
            Damaged: they are not those that were written.
        """
        path = self.weights_path(key, seed)
        return records.read_bytes(path, self._sha256(key, path.rsplit("/", 1)[-1]), remedy=AGAIN)

    def write_file(self, record: TrialRecord, name: str, data: bytes) -> None:
        """Writes a file of a trial, and its digest into the record."""
        storage.write_bytes(storage.join(self.trial(record.key), name), data)
        record.files[name] = hashlib.sha256(data).hexdigest()

    def _arrays(self, key: str, name: str) -> dict[str, np.ndarray]:
        return records.read_arrays(storage.join(self.trial(key), name), self._sha256(key, name), remedy=AGAIN)

    def _sha256(self, key: str, name: str) -> str | None:
        record = self.read_trial(key)
        return None if record is None else record.files.get(name)

    def weights_path(self, key: str, seed: int) -> str:
        return storage.join(self.trial(key), f"seed-{seed}.weights.safetensors")

    def has_result(self, key: str, seeds: Sequence[int]) -> bool:
        """Whether the validation probabilities of all seeds are there, as they were written."""
        try:
            return self.read_trial(key) is not None and self.validation(key, seeds).ndim == 3
        except (Damaged, KeyError, ValueError):
            return False

    def has_weights(self, key: str, seeds: Sequence[int]) -> bool:
        """Whether the weights of all seeds are there, as they were written."""
        try:
            return self.read_trial(key) is not None and all(self.weights(key, seed) for seed in seeds)
        except Damaged:
            return False

    def write_test(self, name: str, seeds: Sequence[int], probabilities: np.ndarray) -> dict[str, str]:
        """Keeps a winner's answers on test, (seeds, n, L), for the report; returns the SHA-256 of each file."""
        from safetensors.numpy import save

        files = {}
        for seed, own in zip(seeds, probabilities, strict=True):
            file, data = f"{name}-seed-{seed}.safetensors", save({"test": np.ascontiguousarray(own, dtype=np.float32)})
            storage.write_bytes(storage.join(self.path, "test", file), data)
            files[file] = hashlib.sha256(data).hexdigest()
        return files

    def drop_weights(self, key: str, seeds: Sequence[int]) -> None:
        for seed in seeds:
            with contextlib.suppress(OSError):
                storage.remove(self.weights_path(key, seed))
