"""A study's folder as its report reads it: the record, each trial's epochs, and predictions where they were kept.

Everything that a running, stopped or older study may lack is None or empty here; the page says so in its place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymotion import records, storage
from raymotion.errors import Damaged, InputError
from raymotion.learning.significance import is_significant, seed_error

RECORD, FORMAT = "study.json", 1
JOINT = "joint"


@dataclass(frozen=True)
class Against:
    """The difference in validation mAP of the leader to another configuration, with its interval, as shares."""

    difference: float
    low: float | None
    high: float | None
    tied: bool


@dataclass(frozen=True)
class Trial:
    """One configuration of a stage.

    Attributes:
        config: the varied fields only.
        mean, sd: of validation mAP over seeds, as shares; None where the trial did not finish.
        published: test mAP that the public study printed for the same cell, a share.
        against: the leader's difference to it; None for the leader and where nothing was compared.
    """

    key: str
    config: Mapping[str, Any]
    status: str
    mean: float | None
    sd: float | None
    seeds: tuple[float, ...]
    interpolated: float | None
    epochs: int | None
    parameters: int | None
    seconds: float | None
    reused_from: str | None
    published: float | None = None
    against: Against | None = None

    @property
    def complete(self) -> bool:
        return self.status == "complete" and self.mean is not None


@dataclass(frozen=True)
class Lead:
    """How far the best configuration is ahead of the second, in mAP, and whether that is beyond noise."""

    difference: float
    significant: bool | None


@dataclass(frozen=True)
class Stage:
    """A stage, or the joint search; trials best first, those without a score last.

    Attributes:
        published: (configuration, test mAP) of every cell that the space carries from the public study.
        winner: key of the configuration that was carried forward, or None; config: all of its fields.
    """

    name: str
    title: str
    varied: tuple[str, ...]
    status: str
    trials: tuple[Trial, ...]
    published: tuple[tuple[Mapping[str, Any], float], ...]
    winner: str | None
    config: Mapping[str, Any]
    reason: str
    incumbent: str | None
    seconds: float | None

    def trial(self, key: str | None) -> Trial | None:
        return next((trial for trial in self.trials if trial.key == key), None)

    @property
    def leader(self) -> Trial | None:
        """The complete trial with the highest mean; the winner may be another one, tied with it."""
        return next((trial for trial in self.trials if trial.complete), None)

    @property
    def step(self) -> Against | None:
        """The leader's gain over the configuration that was carried in; None where there was none, or it leads."""
        incumbent = self.trial(self.incumbent)
        return None if incumbent is None else incumbent.against

    @property
    def tied(self) -> int:
        """How many configurations cannot be told from the leader."""
        return sum(trial.against is not None and trial.against.tied for trial in self.trials)

    @property
    def beaten(self) -> list[Trial]:
        """The configurations that the leader beats beyond noise."""
        return [t for t in self.trials if t.against is not None and self.is_significant(t.against)]

    @property
    def lead(self) -> Lead | None:
        """The leader's lead over the second; None where the two were not compared."""
        second = next((trial for trial in self.trials[1:] if trial.complete), None)
        if second is None or second.against is None:
            return None
        return Lead(second.against.difference, self.is_significant(second.against))

    @property
    def seed_error(self) -> float | None:
        """Standard error of a difference that seeds alone make, as the study's choice uses it; None with one seed."""
        return seed_error([trial.seeds for trial in self.trials if trial.complete])

    def is_significant(self, against: Against) -> bool | None:
        """Whether a lead is beyond noise, by the rule of the study's own choices."""
        return is_significant(against.difference, self.seed_error, tied=against.tied)

    @property
    def decided(self) -> bool | None:
        """Whether the stage changed anything beyond noise; None where that cannot be said.

        The first stage has nothing to change: it decides if the leader beats every other configuration beyond noise.
        """
        if self.winner is None:
            return None
        if self.incumbent is None:
            leads = [self.is_significant(trial.against) for trial in self.trials if trial.against is not None]
            return False if False in leads else True if leads and None not in leads else None
        if self.winner == self.incumbent:
            return False
        return None if self.step is None else self.is_significant(self.step)


@dataclass(frozen=True)
class Scored:
    """One configuration's scores on the test split; shares."""

    name: str
    key: str
    config: Mapping[str, Any]
    mean: float
    sd: float | None
    seeds: tuple[float, ...]
    low: float | None
    high: float | None
    interpolated: float | None
    chance: float | None
    thresholded: Mapping[str, float]
    per_class: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class StudyFolder:
    """A study on disk.

    Attributes:
        record: study.json as it is.
        joint: None where there was no joint search, or it has not begun.
        scored: what was scored on test; empty until everything was chosen.
    """

    path: str
    record: Mapping[str, Any]
    stages: tuple[Stage, ...]
    joint: Stage | None
    scored: tuple[Scored, ...]
    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    _trials: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def final(self) -> Scored | None:
        """The last stage's winner on test."""
        staged = {entry.name: entry for entry in self.scored if entry.name != JOINT}
        return staged.get(self.stages[-1].name) if self.stages else None

    @property
    def complete(self) -> bool:
        return self.record.get("status") == "complete"

    def epochs(self, key: str) -> list[Mapping[str, Any]]:
        """The trial's record of each epoch; empty where it is not kept."""
        path = storage.join(self.path, "trials", key, "trial.json")
        if key not in self._trials:
            try:
                self._trials[key] = records.read_record(path) if storage.exists(path) else {}
            except Damaged:  # as if it were not kept: the study's own record has the scores
                self._trials[key] = {}
        return list(self._trials[key].get("epochs") or [])

    def files(self, key: str) -> Mapping[str, str]:
        """SHA-256 of the trial's files by name; empty where it is not kept."""
        self.epochs(key)
        return dict(self._trials[key].get("files") or {})

    def best_epochs(self, key: str) -> list[int]:
        """The best epoch of each seed."""
        self.epochs(key)
        return [int(best["epoch"]) for best in self._trials[key].get("best") or []]


def load_study(folder: storage.PathLike) -> StudyFolder:
    """Reads what a study has written so far.

    Raises:
        InputError: the folder is no study, or its record is damaged.
    """
    path = storage.join(folder, RECORD)
    record, _ = records.read_twice(path, remedy="Run the same `raymotion study run` command again.")
    if record is None:
        raise InputError(
            f"is no study: it has no {RECORD}", path=folder, remedy="Give the folder of `raymotion study run --out`."
        )
    if record.get("format") != FORMAT or "stages" not in record:
        raise InputError(f"is not the record of a study (format {FORMAT})", path=path)
    try:
        joint = record.get("joint")
        return StudyFolder(
            path=str(folder),
            record=record,
            stages=tuple(_stage(stage) for stage in record["stages"] or []),
            joint=_stage({"name": JOINT, "title": "Joint search", **joint}) if joint else None,
            scored=tuple(_scored(entry) for entry in (record.get("test") or {}).get("entries") or []),
            labels=tuple((record.get("data") or {}).get("labels") or ()),
            seeds=tuple(int(seed) for seed in record.get("seeds") or ()),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"is damaged ({type(error).__name__}: {error})", path=path, remedy="Run the study.") from error


def _stage(entry: Mapping[str, Any]) -> Stage:
    winner = entry.get("winner") or {}
    compared = {
        other["key"]: Against(
            float(other["difference"]), number(other.get("low")), number(other.get("high")), bool(other["tied"])
        )
        for other in winner.get("compared") or []
    }
    published = [(dict(cell["config"]), float(cell["test_map"])) for cell in entry.get("published") or []]
    trials = [_trial(trial, published, compared) for trial in entry.get("trials") or []]
    trials.sort(key=lambda trial: (not trial.complete, -(trial.mean if trial.mean is not None else -1.0)))
    return Stage(
        name=str(entry["name"]),
        title=str(entry.get("title") or entry["name"]),
        varied=tuple(entry.get("varied") or dict.fromkeys(field for trial in trials for field in trial.config)),
        status=str(entry.get("status") or "running"),
        trials=tuple(trials),
        published=tuple(published),
        winner=winner.get("key"),
        config=winner.get("config") or {},
        reason=str(winner.get("reason") or ""),
        incumbent=winner.get("incumbent"),
        seconds=number(entry.get("seconds")),
    )


def _trial(
    entry: Mapping[str, Any], published: list[tuple[dict[str, Any], float]], compared: Mapping[str, Against]
) -> Trial:
    scores = entry.get("val_macro_ap") or {}
    config = entry["config"]
    cells = [score for cell, score in published if cell and all(config.get(name) == cell[name] for name in cell)]
    return Trial(
        key=str(entry["key"]),
        config=config,
        status=str(entry["status"]),
        mean=number(scores.get("mean")),
        sd=number(scores.get("sd")),
        seeds=numbers(scores.get("seeds")),
        interpolated=number((entry.get("val_interpolated") or {}).get("mean")),
        epochs=None if entry.get("epochs") is None else int(entry["epochs"]),
        parameters=None if entry.get("parameters") is None else int(entry["parameters"]),
        seconds=number(entry.get("seconds")),
        reused_from=entry.get("reused_from"),
        published=cells[0] if cells else None,
        against=compared.get(str(entry["key"])),
    )


def _scored(entry: Mapping[str, Any]) -> Scored:
    scores = entry["map"]
    return Scored(
        name=str(entry["name"]),
        key=str(entry["key"]),
        config=entry.get("config") or {},
        mean=float(scores["mean"]),
        sd=number(scores.get("sd")),
        seeds=numbers(scores.get("seeds")),
        low=number(scores.get("low")),
        high=number(scores.get("high")),
        interpolated=number((entry.get("interpolated") or {}).get("mean")),
        chance=number(entry.get("chance")),
        thresholded=entry.get("thresholded") or {},
        per_class=tuple(entry.get("per_class") or ()),
    )


def number(value: Any) -> float | None:
    """A finite number, or None for everything else that JSON can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def numbers(values: Any) -> tuple[float, ...]:
    """The finite numbers of a list; a single number is a list of one."""
    found = (number(value) for value in (values if isinstance(values, list) else [values]))
    return tuple(value for value in found if value is not None)


def shown(value: Any) -> Any:
    """A recorded value without the folders of the machine it was recorded on: of a path, its last part is left."""
    if isinstance(value, Mapping):
        return {str(key): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    if isinstance(value, str):
        without_hosts = re.sub(r"[a-zA-Z0-9+]+://(?:[^\s/'\"]+/)*", "", value)
        return re.sub(r"(?<![\w.)])/(?:[^\s/'\"]+/)+", "", without_hosts)
    return value
