"""The record of a study: its types, and the only code that reads and writes a study's folder.

    STUDY/study.json                              the `StudyRecord`, rewritten after every stage; _study.json is a copy
    STUDY/trials/KEY/trial.json                   the `TrialRecord` of one configuration
    STUDY/trials/KEY/seed-S.weights.safetensors   weights of a seed's best epoch, kept for winners
    STUDY/predictions/KEY/val-seed-S.parquet      that epoch's predictions on validation: `sample_id`, `values`
    STUDY/predictions/KEY/test-seed-S.parquet     a winner's predictions on test
    STUDY/winner.yaml                             the recipe that the stages ended with

A trial's key is a digest of everything that decides its result, so a configuration that two stages share is one trial.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raymotion import records, storage
from raymotion.errors import AccessDenied, Damaged, InputError
from raymotion.stores.local_files import disk_full, is_full

if TYPE_CHECKING:
    from raymotion.published.studies import PublishedStage, PublishedStudy

FORMAT: Literal[2] = 2
AGAIN = "Run the same command again: it trains that configuration again."
# The column of a file of predictions.
VALUES = "values"
STUDY, TRIAL, WINNER = "study.json", "trial.json", "winner.yaml"
COMPLETE, STOPPED, FAILED, RUNNING = "complete", "stopped", "failed", "running"
JOINT = "joint"
# Dotted field -> label of its choice.
Configuration = dict[str, Any]
TrialStatus = Literal["complete", "stopped", "failed", "running"]


class Part(BaseModel):
    """A part of a record: unknown or missing fields and numbers that are not finite are damage."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class Metric(Part):
    """The validation figure by which trials are compared.

    Attributes:
        name: as training records it, after `val_`. title: in sentences.
        baseline: what stands beside it in sentences: who never looks at a sample.
    """

    name: str
    title: str
    higher_is_better: bool
    baseline: str = "chance"

    def gain(self, difference: float) -> float:
        """A difference between two scores; positive is better."""
        return difference if self.higher_is_better else -difference


MACRO_AP = Metric(name="macro_ap", title="mAP", higher_is_better=True)


class Spread(Part):
    """A score over seeds: mean, sample standard deviation (None with one seed), and the score of each."""

    mean: float
    sd: float | None
    seeds: list[float]

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """The spread of at least one value."""
        known = [float(value) for value in values]
        return cls(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, seeds=known)


class Epoch(Part):
    """One epoch of a trial.

    Attributes:
        score, train_loss: of each seed; None for a seed that had stopped improving before.
        best: the mean over the seeds of each one's best score so far.
    """

    epoch: int
    score: list[float | None]
    train_loss: list[float | None]
    best: float


class BestEpoch(Part):
    """The epoch whose weights are kept, and its score."""

    epoch: int
    score: float


class TrialRecord(Part):
    """One configuration in training, or trained.

    Attributes:
        config: the varied fields alone.
        best: for each seed.
        seconds: of training, all seeds.
        attempts: how often it was started.
        stage: that first ran it.
        order: of the finished trials of a stage, so that a scheduler can be told of them in that order.
        files: SHA-256 of the files that it left, by name.
    """

    key: str
    config: Configuration
    seeds: list[int]
    stage: str = ""
    status: TrialStatus = "running"
    epochs: list[Epoch] = []
    best: list[BestEpoch] = []
    parameters: int = 0
    seconds: float = 0.0
    attempts: int = 0
    order: float = 0.0
    error: str | None = None
    files: dict[str, str] = {}

    @property
    def finished(self) -> bool:
        """Whether it came to an end, whichever."""
        return self.status != RUNNING

    @property
    def scores(self) -> list[float]:
        """Best validation score of each seed so far."""
        return [best.score for best in self.best]

    @property
    def mean(self) -> float:
        """The mean of `scores`; NaN before the first epoch."""
        return float(np.mean(self.scores)) if self.best else float("nan")


class TrialLine(Part):
    """A finished trial as a stage's record lists it.

    Attributes:
        score: best validation score of each seed; None where no epoch ended.
        interpolated: validation mAP as EMOTIC's authors compute it; None where that is not known.
        reused_from: the stage that trained it, if it was another one.
    """

    key: str
    config: Configuration
    status: TrialStatus
    score: Spread | None
    interpolated: float | None = None
    epochs: int
    parameters: int
    seconds: float
    reused_from: str | None = None
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether it was trained to its end, and so can be chosen."""
        return self.status == COMPLETE and self.score is not None

    @property
    def mean(self) -> float | None:
        """Mean score over the seeds."""
        return None if self.score is None else self.score.mean


class Compared(Part):
    """A configuration's gain over the one of `key`, in validation score; positive is better.

    Attributes:
        low, high: its 95 % interval over images. seed_error: its standard error between seeds; None with one seed.
        tied: whether images or seeds alone could have made it.
    """

    key: str
    difference: float
    low: float
    high: float
    tied: bool
    seed_error: float | None = None

    @property
    def noise(self) -> str:
        """What the difference is held against, for sentences."""
        seeds = "" if self.seed_error is None else f", seeds ±{2 * self.seed_error:.4f}"
        return f"95 % over images {self.low:+.4f} to {self.high:+.4f}{seeds}"

    @property
    def significant(self) -> bool | None:
        """Whether it is beyond noise; None where the images say so and nothing is known of the seeds."""
        return False if self.tied else None if self.seed_error is None else True


class Winner(Part):
    """The configuration that a stage carries forward.

    Attributes:
        config: all fields that the study varies.
        leader: key of the trial with the best score; incumbent: of the trial that was carried in.
        compared: the leader's gain over each other complete trial.
    """

    key: str
    config: Configuration
    leader: str
    incumbent: str | None
    reason: str
    compared: list[Compared]

    @property
    def tied(self) -> list[str]:
        """Keys of the trials that the data do not tell from the leader."""
        return [other.key for other in self.compared if other.tied]


class LeftOut(Part):
    """A configuration that cannot be trained, and why."""

    config: Configuration
    reason: str


class StageRecord(Part):
    """A decided stage, or the joint search.

    Attributes:
        stage: its number; None for the joint search. grid: the choices of each field; fixed: what it did not vary.
        trials: best first, those without a result last.
        epochs: that it trained, where one seed's epoch is one.
    """

    stage: int | None = None
    name: str
    title: str
    grid: dict[str, list[Any]]
    fixed: Configuration
    trials: list[TrialLine] = Field(min_length=1)
    left_out: list[LeftOut] = []
    winner: Winner
    epochs: int
    seconds: float

    @model_validator(mode="after")
    def _holds_the_trials_it_names(self) -> StageRecord:
        named = {self.winner.key, self.winner.leader, *(other.key for other in self.winner.compared)}
        if missing := named - {own.key for own in self.trials}:
            raise ValueError(f"stage {self.name} names the trial {min(missing)} and does not hold it")
        return self

    @property
    def varied(self) -> list[str]:
        """The dotted fields that it varies."""
        return list(self.grid)

    @property
    def complete(self) -> list[TrialLine]:
        """The trials that were trained to their end, best first."""
        return [own for own in self.trials if own.complete]

    @property
    def chosen(self) -> TrialLine:
        """The trial that is carried forward."""
        return next(own for own in self.trials if own.key == self.winner.key)

    def count(self, status: TrialStatus) -> int:
        """How many trials ended with `status`."""
        return sum(own.status == status for own in self.trials)

    def behind(self, key: str | None) -> Compared | None:
        """The leader's gain over the trial `key`; None for the leader, and for what was not compared."""
        return next((other for other in self.winner.compared if other.key == key), None)

    @property
    def step(self) -> Compared | None:
        """The leader's gain over the configuration that was carried in; None where there was none, or it leads."""
        return self.behind(self.winner.incumbent)

    @property
    def lead(self) -> Compared | None:
        """The leader's gain over the second best; None where there is no second."""
        return next((gap for own in self.complete if (gap := self.behind(own.key))), None)

    @property
    def decided(self) -> bool | None:
        """Whether the stage changed anything beyond noise; None where that cannot be said.

        The first stage has nothing to change: it decides if the leader beats every other configuration beyond noise.
        """
        winner = self.winner
        if winner.incumbent is None:
            leads = [other.significant for other in winner.compared]
            return False if False in leads else True if leads and None not in leads else None
        if winner.key == winner.incumbent:
            return False
        return None if self.step is None else self.step.significant


class Comparison(Part):
    """The joint search's best against the best that any stage trained, on validation.

    Attributes:
        joint_key: of the joint search's best. gap: its gain over the stages' best; carried: over what they carried on.
        configurations, epochs: what each search took by itself, under `stages` and `joint`.
    """

    joint_key: str
    gap: Compared
    carried: Compared
    configurations: dict[str, int]
    epochs: dict[str, int]
    reason: str

    @property
    def verdict(self) -> str:
        """What the comparison found, for the middle of a sentence."""
        if self.gap.tied or self.gap.low <= 0 <= self.gap.high:
            return "the joint search found nothing that can be told from what the stages found"
        if self.gap.difference > 0:
            return "the joint search found a better configuration than the stages"
        return "the joint search found nothing as good as the stages did"


class Estimate(Spread):
    """A score on test, with the 95 % interval of its mean over `resamples` of the images."""

    low: float | None
    high: float | None
    resamples: int


class ClassScore(Part):
    """One label on test, means over seeds; None without a positive."""

    label: str
    ap: float | None
    interpolated: float | None
    prevalence: float
    positives: int


class WinnerOnTest(Part):
    """A winner on test.

    Attributes:
        name: of its stage, or `joint`.
        baseline: the score of `Metric.baseline`.
        mean_ap, interpolated: mAP of labels, and mAP as EMOTIC's authors compute it.
        thresholded: F1 at thresholds fitted on validation, mean over seeds.
        files: SHA-256 of its files of predictions, by name.
    """

    name: str
    key: str
    config: Configuration
    score: Estimate
    baseline: float | None = None
    mean_ap: float | None = None
    interpolated: float | None = None
    thresholded: dict[str, float] = {}
    per_class: list[ClassScore] = []
    files: dict[str, str] = {}


class OnTest(Part):
    """The one look at the test split; no entries where the samples have none."""

    scored_at: str
    entries: list[WinnerOnTest]


class SplitFacts(Part):
    """The size of a split: samples (persons, where each is one), and the images that they are of."""

    samples: int
    images: int


class DataFacts(Part):
    """What the study was run on.

    Attributes:
        samples: name of the sample table. counts: its rows, and those that were left out.
        targets: of each split, a digest of its samples' ids and targets (`targets_digest`).
        labels: of the output that is compared; none of numbers. prevalence: share of each label, by split.
    """

    samples: str
    counts: dict[str, int]
    splits: dict[str, SplitFacts]
    targets: dict[str, str]
    labels: list[str]
    prevalence: dict[str, list[float]]


class Cost(Part):
    """What a study took so far; `epochs` counts one seed's epoch as one.

    Attributes:
        trials: that the stages asked for; trained, reused: of those; stopped: early, of those that were trained.
    """

    trials: int
    trained: int
    reused: int
    stopped: int
    epochs: int
    epochs_without_stopping: int
    seconds: float


class StudyRecord(Part):
    """study.json.

    Attributes:
        identity: what decides the result, and so what must be the same when the study goes on.
        metric: by which trials are compared. baseline: that of `Metric.baseline` on validation.
        published: name of the published study that it repeats (`raymotion.published`), or None.
        stages: those that are decided. joint, comparison: None until the joint search is.
        test: None until everything is chosen.
    """

    format: Literal[2] = FORMAT
    status: str
    started_at: str
    settings: dict[str, Any]
    identity: dict[str, Any]
    seeds: list[int]
    metric: Metric = MACRO_AP
    baseline: float | None = None
    published: str | None = None
    data: DataFacts
    versions: dict[str, str]
    stages: list[StageRecord] = []
    joint: StageRecord | None = None
    comparison: Comparison | None = None
    test: OnTest | None = None
    cost: Cost | None = None

    @property
    def complete(self) -> bool:
        """Whether the study came to its end."""
        return self.status == COMPLETE

    @property
    def parts(self) -> list[StageRecord]:
        """The stages, and the joint search where it is decided."""
        return [*self.stages, *([self.joint] if self.joint else [])]

    @property
    def entries(self) -> list[WinnerOnTest]:
        """What was scored on test."""
        return self.test.entries if self.test else []

    def on_test(self, stage: StageRecord) -> WinnerOnTest | None:
        """A stage's winner on test."""
        return next((entry for entry in self.entries if entry.name == stage.name), None)

    @property
    def final(self) -> WinnerOnTest | None:
        """The last stage's winner on test."""
        return self.on_test(self.stages[-1]) if self.stages else None

    @property
    def published_study(self) -> PublishedStudy | None:
        """The published study that this one repeats."""
        from raymotion.published.studies import published_study

        return None if self.published is None else published_study(self.published)

    def published_stage(self, stage: StageRecord) -> PublishedStage | None:
        """The same stage of the published study."""
        known = self.published_study
        return None if known is None else known.stage(stage.name)


@dataclass(frozen=True)
class Predictions:
    """Predictions of one seed: the id of each sample, and what is said of it, (n, width) float32."""

    sample_ids: list[str]
    values: np.ndarray

    def of(self, sample_ids: Sequence[str]) -> np.ndarray | None:
        """What is said of exactly these samples, in their order; None if they are of others."""
        place = {own: row for row, own in enumerate(self.sample_ids)}
        if len(place) != len(sample_ids) or any(own not in place for own in sample_ids):
            return None
        return self.values[[place[own] for own in sample_ids]]


def targets_digest(sample_ids: Sequence[str], targets: np.ndarray) -> str:
    """Digest of samples and what is true of them, (n, width), whatever their order.

    It shows whether a sample table has changed, and tells no trial what is true.
    """
    rows = np.asarray(targets, dtype=np.float64).tolist()
    lines = sorted(f"{own} {' '.join(f'{v:g}' for v in row)}" for own, row in zip(sample_ids, rows, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def machine_fault(error: Exception, where: str) -> str | None:
    """What to tell the user of an error that no configuration is to blame for; None if one may be.

    Args:
        where: the study's folder, for a full disk that does not say its path.
    """
    if is_full(error):
        return str(disk_full(where, error))
    if isinstance(error, AccessDenied | ConnectionError | TimeoutError):
        return str(error)
    return None


class StudyFolder:
    """The folder of one study; local or an address."""

    def __init__(self, path: storage.PathLike) -> None:
        self.path = storage.absolute(path)

    @property
    def data(self) -> str:
        """Where the driver puts the data for the trials: training and validation alone."""
        return storage.join(self.path, ".data")

    @property
    def scratch(self) -> str:
        """Ray Tune's own files; nothing of them is ever read again."""
        return storage.join(self.path, ".tune")

    @property
    def record(self) -> str:
        """Path of study.json."""
        return storage.join(self.path, STUDY)

    @property
    def winner(self) -> str:
        """Path of the winner's recipe."""
        return storage.join(self.path, WINNER)

    def trial(self, key: str) -> str:
        """Folder of a trial."""
        return storage.join(self.path, "trials", key)

    def read(self) -> StudyRecord | None:
        """The study's record; None where no study was begun.

        Raises:
            Damaged: it cannot be read, and neither can its copy.
            InputError: it is not the record of a study.
        """
        found, _ = records.read_twice(self.record, remedy="Run the same command again.")
        if found is None:
            return None
        return _parsed(StudyRecord, found, self.record, "a study", "Name another folder.")

    def require(self) -> StudyRecord:
        """The study's record; raises `InputError` where there is none."""
        record = self.read()
        if record is None:
            raise InputError(
                f"is not a study: it has no {STUDY}",
                path=self.path,
                remedy="Give the folder of `raymotion study run --out`, or of `raymotion tune --out`.",
            )
        return record

    def write(self, record: StudyRecord) -> None:
        """Writes study.json and its copy."""
        records.write_twice(self.record, record.model_dump(mode="json"))

    def free_if_nothing_computed(self) -> None:
        """Removes a study none of whose trials came to an end, so that it does not bind the folder to its settings."""
        record = self.read()
        if record is None or record.complete:
            return
        keys = storage.list_entries(storage.join(self.path, "trials"))
        if any((trial := self.read_trial(key)) and trial.status in (COMPLETE, STOPPED) for key in keys):
            return
        for place in (self.scratch, self.data, *(storage.join(self.path, own) for own in ("trials", "predictions"))):
            storage.remove_tree(place)
        for path in (self.record, records.copy_of(self.record)):
            storage.remove(path)

    def read_trial(self, key: str) -> TrialRecord | None:
        """The record of a trial; None if it never began: no file, or a damaged one, as a power cut leaves it."""
        path = storage.join(self.trial(key), TRIAL)
        if not storage.exists(path):
            return None
        try:
            found = records.read_record(path)
        except Damaged:  # the record of a trial that was running is not written durably
            return None
        return _parsed(TrialRecord, found, path, "a trial", "Remove its folder.")

    def write_trial(self, record: TrialRecord, *, durable: bool = True) -> None:
        """Writes the record of a trial."""
        path = storage.join(self.trial(record.key), TRIAL)
        records.write_record(path, record.model_dump(mode="json"), durable=durable)

    def write_predictions(
        self, key: str, split: str, seed: int, sample_ids: Sequence[str], values: np.ndarray
    ) -> dict[str, str]:
        """Writes what a model says, (n, width), with the ids of their samples; returns the file's name and SHA-256."""
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        name, path = self._predictions(key, split, seed)
        table = pa.table({"sample_id": pa.array(list(sample_ids), pa.string()), VALUES: lists})
        return {name: storage.write_table(path, table)[0]}

    def predictions(self, key: str, split: str, seed: int, files: Mapping[str, str]) -> Predictions:
        """Predictions of one seed on `val` or `test`.

        Args:
            files: the SHA-256 of each file, as the record of the trial, or of the test, has them.

        Raises:
            Damaged: they are gone, or not those that were written.
        """
        name, path = self._predictions(key, split, seed)
        data = records.read_bytes(path, files.get(name), remedy=AGAIN)
        try:
            with storage.open_parquet(path, data) as file:
                table = file.read(columns=["sample_id", VALUES]).combine_chunks()
            column = table.column(VALUES).combine_chunks()
            values = column.flatten().to_numpy().reshape(len(table), column.type.list_size)
        except (pa.ArrowException, InputError, AttributeError, ValueError, KeyError) as error:
            raise Damaged("is damaged: it holds no predictions", path=path, remedy=AGAIN) from error
        return Predictions(table.column("sample_id").to_pylist(), values)

    def _predictions(self, key: str, split: str, seed: int) -> tuple[str, str]:
        name = f"{split}-seed-{seed}.parquet"
        return name, storage.join(self.path, "predictions", key, name)

    def validation(self, key: str, seeds: Sequence[int], sample_ids: Sequence[str]) -> np.ndarray:
        """What a complete trial's best epochs say of validation, float32 (seeds, n, width), in the order of the ids.

        Raises:
            Damaged: they are gone, not those that were written, or of other samples.
        """
        record = self.read_trial(key)
        found = []
        for seed in seeds:
            own = self.predictions(key, "val", seed, record.files if record else {}).of(sample_ids)
            if own is None:
                path = self._predictions(key, "val", seed)[1]
                raise Damaged("holds predictions of other samples", path=path, remedy=AGAIN)
            found.append(own)
        return np.stack(found)

    def write_weights(self, key: str, seed: int, data: bytes) -> dict[str, str]:
        """Writes a seed's weights, as safetensors; returns the file's name and SHA-256."""
        path = self.weights_path(key, seed)
        storage.write_bytes(path, data)
        return {path.rsplit("/", 1)[-1]: hashlib.sha256(data).hexdigest()}

    def weights(self, key: str, seed: int) -> bytes:
        """The weights of a seed's best epoch, as safetensors.

        Raises:
            Damaged: they are gone, or not those that were written.
        """
        path, record = self.weights_path(key, seed), self.read_trial(key)
        sha256 = None if record is None else record.files.get(path.rsplit("/", 1)[-1])
        return records.read_bytes(path, sha256, remedy=AGAIN)

    def weights_path(self, key: str, seed: int) -> str:
        """Where a seed's weights stand."""
        return storage.join(self.trial(key), f"seed-{seed}.weights.safetensors")

    def has_result(self, key: str, seeds: Sequence[int], sample_ids: Sequence[str]) -> bool:
        """Whether the validation predictions of all seeds are there, as they were written, and of these samples."""
        try:
            return self.read_trial(key) is not None and self.validation(key, seeds, sample_ids).ndim == 3
        except (Damaged, ValueError):
            return False

    def has_weights(self, key: str, seeds: Sequence[int]) -> bool:
        """Whether the weights of all seeds are there, as they were written."""
        try:
            return self.read_trial(key) is not None and all(self.weights(key, seed) for seed in seeds)
        except Damaged:
            return False

    def drop_weights(self, key: str, seeds: Sequence[int]) -> None:
        """Removes the weights of all seeds."""
        for seed in seeds:
            with contextlib.suppress(OSError):
                storage.remove(self.weights_path(key, seed))


def _parsed(kind: type[P], found: Mapping[str, Any], path: str, what: str, remedy: str) -> P:
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"is not the record of {what} ({where + ': ' if where else ''}{first['msg']})"
        raise InputError(reason, path=path, remedy=remedy) from error
