"""The record of a study: its types, and all code that reads and writes a study's folder.

    STUDY/study.json                              the `StudyRecord`, rewritten after every stage; _study.json is a copy
    STUDY/trials/KEY/trial.json                   the `TrialRecord` of one configuration
    STUDY/trials/KEY/seed-S.weights.safetensors   weights of a seed's best epoch, kept for winners
    STUDY/predictions/KEY/val-seed-S.parquet      that epoch's predictions on validation: `sample_id`, `values`
    STUDY/predictions/KEY/test-seed-S.parquet     a winner's predictions on test
    STUDY/winner.yaml                             the recipe of the last stage's winner

A trial's key is a digest of everything that determines its result, so two stages share the trial of a configuration.
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
# Column of a predictions file.
VALUES = "values"
STUDY, TRIAL, WINNER = "study.json", "trial.json", "winner.yaml"
COMPLETE, STOPPED, FAILED, RUNNING = "complete", "stopped", "failed", "running"
JOINT = "joint"
# Dotted field -> label of its choice.
Configuration = dict[str, Any]
TrialStatus = Literal["complete", "stopped", "failed", "running"]


class Part(BaseModel):
    """Base of all parts of a record; rejects unknown or missing fields and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


P = TypeVar("P", bound=Part)


class Metric(Part):
    """The validation metric by which trials are compared.

    Attributes:
        name: as training records it, after `val_`.
        title: its name in sentences.
        baseline: the name in sentences of the baseline, which ignores the inputs.
    """

    name: str
    title: str
    higher_is_better: bool
    baseline: str = "chance"

    def gain(self, difference: float) -> float:
        """Returns a difference between two scores with its sign set so that positive is better."""
        return difference if self.higher_is_better else -difference


MACRO_AP = Metric(name="macro_ap", title="mAP", higher_is_better=True)


class Spread(Part):
    """A score over seeds: mean, sample standard deviation (None with one seed), and the score of each."""

    mean: float
    sd: float | None
    seeds: list[float]

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        """Computes the spread of at least one value."""
        known = [float(value) for value in values]
        return cls(mean=float(np.mean(known)), sd=float(np.std(known, ddof=1)) if len(known) > 1 else None, seeds=known)


class Epoch(Part):
    """One epoch of a trial.

    Attributes:
        score, train_loss: per seed; None for a seed that had stopped earlier.
        best: best score so far of each seed, averaged over seeds.
    """

    epoch: int
    score: list[float | None]
    train_loss: list[float | None]
    best: float


class BestEpoch(Part):
    """The epoch with the best score, whose weights are kept."""

    epoch: int
    score: float


class TrialRecord(Part):
    """The record of a running or finished trial.

    Attributes:
        config: the varied fields only.
        stage: the stage that first ran it.
        best: per seed.
        seconds: training time of all seeds.
        attempts: number of starts.
        order: end time in seconds since 1970, by which finished trials are replayed to a scheduler.
        files: SHA-256 of the trial's files, by name.
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
        """Whether it is complete, stopped or failed."""
        return self.status != RUNNING

    @property
    def scores(self) -> list[float]:
        """Best validation score of each seed so far."""
        return [best.score for best in self.best]

    @property
    def mean(self) -> float:
        """Mean of `scores`; NaN before the first epoch."""
        return float(np.mean(self.scores)) if self.best else float("nan")


class TrialLine(Part):
    """A finished trial as a stage's record lists it.

    Attributes:
        score: best validation score of each seed; None if no epoch ended.
        interpolated: validation mAP as EMOTIC's authors compute it; None if unknown.
        reused_from: the stage that trained it, if another one.
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
        """Whether it was fully trained, and so can be chosen."""
        return self.status == COMPLETE and self.score is not None

    @property
    def mean(self) -> float | None:
        """Mean score over seeds."""
        return None if self.score is None else self.score.mean


class Compared(Part):
    """A configuration's gain in validation score over the trial `key`; positive is better.

    Attributes:
        low, high: 95 % interval over images.
        tied: whether the choice of images or seeds could explain the gain.
        seed_error: standard error between seeds; None with one seed.
    """

    key: str
    difference: float
    low: float
    high: float
    tied: bool
    seed_error: float | None = None

    @property
    def noise(self) -> str:
        """The uncertainty of the difference, for sentences."""
        seeds = "" if self.seed_error is None else f", seeds ±{2 * self.seed_error:.4f}"
        if self.tied and self.low * self.high > 0:
            seeds += ", which could explain it"
        return f"95 % over images {self.low:+.4f} to {self.high:+.4f}{seeds}"

    @property
    def significant(self) -> bool | None:
        """Whether the gain exceeds the noise; None if it does over images but there is only one seed."""
        return False if self.tied else None if self.seed_error is None else True


class Winner(Part):
    """The configuration that a stage carries forward.

    Attributes:
        config: all fields that the study varies.
        leader: key of the trial with the best score.
        incumbent: key of the trial that the stage before carried forward.
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
        """Keys of the trials tied with the leader."""
        return [other.key for other in self.compared if other.tied]


class LeftOut(Part):
    """A configuration that cannot be trained, and the reason."""

    config: Configuration
    reason: str


class StageRecord(Part):
    """A decided stage, or the joint search.

    Attributes:
        stage: its number; None for the joint search.
        grid: the choices of each varied field.
        fixed: the fields that it did not vary.
        trials: best first, those without a result last.
        epochs: epochs trained, summed over seeds.
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
        """The varied fields, dotted."""
        return list(self.grid)

    @property
    def complete(self) -> list[TrialLine]:
        """The complete trials, best first."""
        return [own for own in self.trials if own.complete]

    @property
    def chosen(self) -> TrialLine:
        """The trial carried forward."""
        return next(own for own in self.trials if own.key == self.winner.key)

    def count(self, status: TrialStatus) -> int:
        """Counts the trials that ended with `status`."""
        return sum(own.status == status for own in self.trials)

    def behind(self, key: str | None) -> Compared | None:
        """Returns the leader's gain over the trial `key`; None for the leader and for trials not compared."""
        return next((other for other in self.winner.compared if other.key == key), None)

    @property
    def step(self) -> Compared | None:
        """The leader's gain over the incumbent; None if there is no incumbent or it leads."""
        return self.behind(self.winner.incumbent)

    @property
    def lead(self) -> Compared | None:
        """The leader's gain over the second best; None if there is no second."""
        return next((gap for own in self.complete if (gap := self.behind(own.key))), None)

    @property
    def decided(self) -> bool | None:
        """Whether the stage found a significant change; None if that is unknown.

        The first stage has no incumbent: it decides if the leader's gain over every other configuration is significant.
        """
        winner = self.winner
        if winner.incumbent is None:
            leads = [other.significant for other in winner.compared]
            return False if False in leads else True if leads and None not in leads else None
        if winner.key == winner.incumbent:
            return False
        return None if self.step is None else self.step.significant


class Comparison(Part):
    """The joint search's best trial compared with the best trial of any stage, on validation.

    Attributes:
        joint_key: key of the joint search's best trial.
        gap: its gain over the stages' best trial.
        carried: its gain over the configuration that the stages carried forward.
        configurations, epochs: cost of each search, under `stages` and `joint`.
    """

    joint_key: str
    gap: Compared
    carried: Compared
    configurations: dict[str, int]
    epochs: dict[str, int]
    reason: str

    @property
    def verdict(self) -> str:
        """The finding, phrased for the middle of a sentence."""
        if self.gap.tied or self.gap.low <= 0 <= self.gap.high:
            return "the joint search found nothing that can be told from what the stages found"
        if self.gap.difference > 0:
            return "the joint search found a better configuration than the stages"
        return "the joint search found nothing as good as the stages did"


class Estimate(Spread):
    """A test score with the 95 % interval of its mean, from `resamples` bootstrap resamples of the images."""

    low: float | None
    high: float | None
    resamples: int


class ClassScore(Part):
    """Test scores of one label, averaged over seeds; None without a positive."""

    label: str
    ap: float | None
    interpolated: float | None
    prevalence: float
    positives: int


class WinnerOnTest(Part):
    """Test scores of a winner.

    Attributes:
        name: of its stage, or `joint`.
        baseline: the score of `Metric.baseline`.
        mean_ap, interpolated: mAP of labels, and mAP as EMOTIC's authors compute it.
        thresholded: F1 at thresholds fitted on validation, averaged over seeds; of one label a sample, F1 and accuracy
            of the highest label.
        files: SHA-256 of its prediction files, by name.
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
    """Results on the test split, which is scored once; no entries if there is no test split."""

    scored_at: str
    entries: list[WinnerOnTest]


class SplitFacts(Part):
    """The size of a split: samples (persons in EMOTIC), and the distinct images they come from."""

    samples: int
    images: int


class DataFacts(Part):
    """Facts about the study's data.

    Attributes:
        samples: name of the sample table.
        counts: its rows, and the rows left out.
        targets: per split, a digest of sample ids and targets (`targets_digest`).
        labels: of the compared output; empty for numeric outputs.
        prevalence: share of each label, by split.
        one_label: whether exactly one of the labels applies to a sample.
    """

    samples: str
    counts: dict[str, int]
    splits: dict[str, SplitFacts]
    targets: dict[str, str]
    labels: list[str]
    prevalence: dict[str, list[float]]
    one_label: bool = False

    @property
    def ranked(self) -> bool:
        """Whether labels apply independently, so that each has an average precision."""
        return bool(self.labels) and not self.one_label


class Cost(Part):
    """The cost of a study so far; `epochs` are summed over seeds.

    Attributes:
        trials: trials that the stages and the joint search asked for.
        trained, reused: trials trained now, and trials taken from another stage.
        stopped: trained trials that were stopped early.
    """

    trials: int
    trained: int
    reused: int
    stopped: int
    epochs: int
    epochs_without_stopping: int
    seconds: float


class StudyRecord(Part):
    """The contents of study.json.

    Attributes:
        identity: everything that determines the result, and so must be unchanged when the study resumes.
        metric: by which trials are compared.
        baseline: validation score of `Metric.baseline`.
        published: name of the published study that it repeats (`raymotion.published`), or None.
        stages: the decided stages.
        joint, comparison: None until the joint search is decided.
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
        """Whether the study is finished."""
        return self.status == COMPLETE

    @property
    def parts(self) -> list[StageRecord]:
        """The stages, and the joint search once it is decided."""
        return [*self.stages, *([self.joint] if self.joint else [])]

    @property
    def entries(self) -> list[WinnerOnTest]:
        """The winners' test scores."""
        return self.test.entries if self.test else []

    def on_test(self, stage: StageRecord) -> WinnerOnTest | None:
        """Returns the test scores of a stage's winner."""
        return next((entry for entry in self.entries if entry.name == stage.name), None)

    @property
    def final(self) -> WinnerOnTest | None:
        """The test scores of the last stage's winner."""
        return self.on_test(self.stages[-1]) if self.stages else None

    @property
    def published_study(self) -> PublishedStudy | None:
        """The published study that this one repeats."""
        from raymotion.published.studies import published_study

        return None if self.published is None else published_study(self.published)

    def published_stage(self, stage: StageRecord) -> PublishedStage | None:
        """Returns the corresponding stage of the published study."""
        known = self.published_study
        return None if known is None else known.stage(stage.name)


@dataclass(frozen=True)
class Predictions:
    """Predictions of one seed: sample ids and decoded values, (n, width) float32."""

    sample_ids: list[str]
    values: np.ndarray

    def of(self, sample_ids: Sequence[str]) -> np.ndarray | None:
        """Returns the values of exactly these samples, in their order; None if the predictions cover other samples."""
        place = {own: row for row, own in enumerate(self.sample_ids)}
        if len(place) != len(sample_ids) or any(own not in place for own in sample_ids):
            return None
        return self.values[[place[own] for own in sample_ids]]


def targets_digest(sample_ids: Sequence[str], targets: np.ndarray) -> str:
    """Returns a digest of samples and their targets (n, width), independent of their order.

    It detects changes of a sample table without revealing the targets to trials.
    """
    rows = np.asarray(targets, dtype=np.float64).tolist()
    lines = sorted(f"{own} {' '.join(f'{v:g}' for v in row)}" for own, row in zip(sample_ids, rows, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def machine_fault(error: Exception, where: str) -> str | None:
    """Returns the message of an error that the machine caused; None if a configuration may have caused it.

    Args:
        where: the study's folder, named if a full-disk error has no path.
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
        """Folder of the data for the trials: training and validation only."""
        return storage.join(self.path, ".data")

    @property
    def scratch(self) -> str:
        """Folder of Ray Tune's own files, which are never read."""
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
        """Returns the folder of a trial."""
        return storage.join(self.path, "trials", key)

    def read(self) -> StudyRecord | None:
        """Reads the study's record; None if there is none.

        Raises:
            Damaged: neither the record nor its copy can be read.
            InputError: the file is not the record of a study.
        """
        found, _ = records.read_twice(self.record, remedy="Run the same command again.")
        if found is None:
            return None
        return _parsed(StudyRecord, found, self.record, "a study", "Name another folder.")

    def require(self) -> StudyRecord:
        """Reads the study's record; raises `InputError` if there is none."""
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
        """Removes a study without any complete or stopped trial, so that the folder accepts other settings."""
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
        """Reads the record of a trial; None if it is missing, or damaged as after a power cut."""
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
        """Writes predictions (n, width) with their sample ids; returns the file's name and SHA-256."""
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
        name, path = self._predictions(key, split, seed)
        table = pa.table({"sample_id": pa.array(list(sample_ids), pa.string()), VALUES: lists})
        return {name: storage.write_table(path, table)[0]}

    def predictions(self, key: str, split: str, seed: int, files: Mapping[str, str]) -> Predictions:
        """Reads the predictions of one seed on `val` or `test`.

        Args:
            files: SHA-256 of each file, from the record of the trial or of the test.

        Raises:
            Damaged: the file is missing or differs from what was written.
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
        """Reads a complete trial's validation predictions, float32 (seeds, n, width), in the order of `sample_ids`.

        Raises:
            Damaged: a file is missing, differs from what was written, or holds other samples.
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
        """Reads the weights of a seed's best epoch, as safetensors.

        Raises:
            Damaged: the file is missing or differs from what was written.
        """
        path, record = self.weights_path(key, seed), self.read_trial(key)
        sha256 = None if record is None else record.files.get(path.rsplit("/", 1)[-1])
        return records.read_bytes(path, sha256, remedy=AGAIN)

    def weights_path(self, key: str, seed: int) -> str:
        """Returns the path of a seed's weights."""
        return storage.join(self.trial(key), f"seed-{seed}.weights.safetensors")

    def has_result(self, key: str, seeds: Sequence[int], sample_ids: Sequence[str]) -> bool:
        """Returns whether the validation predictions of all seeds exist, are intact and cover these samples."""
        try:
            return self.read_trial(key) is not None and self.validation(key, seeds, sample_ids).ndim == 3
        except (Damaged, ValueError):
            return False

    def has_weights(self, key: str, seeds: Sequence[int]) -> bool:
        """Returns whether the weights of all seeds exist and are intact."""
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
