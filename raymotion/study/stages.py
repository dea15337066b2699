"""Runs the stages in order, each from the winner of the one before, and the joint search over all their choices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from raymotion.batch.progress import ProgressKind
from raymotion.errors import RunFailed
from raymotion.learning.paired import PairedGain, paired_gain
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.study.cost import busy_seconds, cost, epochs_of
from raymotion.study.data import figure_of, ids_of, truth_of, units_of
from raymotion.study.record import (
    COMPLETE,
    FAILED,
    JOINT,
    STOPPED,
    Configuration,
    LeftOut,
    Spread,
    StageRecord,
    StudyFolder,
    StudyRecord,
    TrialLine,
    TrialRecord,
)
from raymotion.study.search import Resources, scheduler_of, search
from raymotion.study.select_winner import Candidate, Ties, choose, compare_joint
from raymotion.study.settings import StudySettings
from raymotion.study.show import Say, StageProgress, named, stage_lines
from raymotion.study.space import (
    Cell,
    Space,
    Spaces,
    Stopping,
    build_recipe,
    first_configuration,
    labels_of,
    refusal,
    trial_key,
)
from raymotion.train.recipe import kind_of


@dataclass
class Search:
    """A running study: its inputs and its record."""

    settings: StudySettings
    spaces: Spaces
    base: TrainRecipe
    data: TrainingSet
    folder: StudyFolder
    record: StudyRecord
    output: Output
    say: Say
    progress: ProgressKind
    connected: bool = False
    connect: Callable[[], None] = lambda: None
    prepared: bool = False
    # Keys of the stages' winners and of the joint search's trials, whose weights are still needed.
    keep: set[str] = field(default_factory=set)

    def recipe(self, config: Configuration) -> TrainRecipe:
        """Builds the recipe of a configuration."""
        return build_recipe(self.base, self.spaces, config)

    def cell(self, varied: Configuration, others: Configuration) -> Cell:
        """Returns the cell of `varied`, with the remaining fields from `others`."""
        config = {**others, **varied}
        return trial_key(self.recipe(config), self.record.seeds, self.data.fingerprint), varied, config

    def validation(self, key: str) -> np.ndarray:
        """Returns a trial's validation predictions, (seeds, n, L)."""
        return self.folder.validation(key, self.record.seeds, ids_of(self.data, "val"))

    def has_result(self, key: str) -> bool:
        """Returns whether a trial's validation predictions exist and are intact."""
        return self.folder.has_result(key, self.record.seeds, ids_of(self.data, "val"))

    @property
    def truth(self) -> np.ndarray:
        """Validation targets (n, width)."""
        return truth_of(self.data, self.output, "val")

    def gain(self, first: np.ndarray, second: np.ndarray) -> PairedGain:
        """Returns the gain of `first` over `second`, both (seeds, n, width) on validation, in the study's metric."""
        rows, units, targets = self.data.splits["val"], units_of(self.data, "val"), self.data.targets_of(self.output)
        metric = self.record.metric
        figure = figure_of(metric, self.output)
        both = [[self.output.weighed(figure, targets, rows, own, units) for own in each] for each in (first, second)]
        return paired_gain(
            *(both if metric.higher_is_better else reversed(both)),
            groups=int(units.max()) + 1, numbers=first[0].size, seed=self.base.seed,
        )  # fmt: skip


def run_stages(study: Search) -> None:
    """Runs the stages that the record lacks, the joint search, and the comparison of the two."""
    record, spaces = study.record, study.spaces
    start = first_configuration(spaces, study.base)
    joint = _draw(study, start)
    study.keep = {key for key, _, _ in joint}
    config, incumbent = dict(start), None
    for space in spaces.stages:
        stage = next((own for own in record.stages if own.name == space.name), None)
        if stage is not None and not study.has_result(stage.winner.key):
            study.say(f"files of {space.name}'s winner are damaged or gone: deciding the stages again from there")
            record.stages = record.stages[: record.stages.index(stage)]
            record.joint = stage = None
        if stage is None:
            base = {**config, **space.fixed}
            drawn = space.configurations() if space.samples is None else space.draw(space.samples, seed=study.base.seed)
            cells = [study.cell(varied, base) for varied in drawn]
            fixed = {name: value for name, value in base.items() if name not in space.grid}
            stage = _run_space(study, space, cells, fixed, incumbent, study.settings.ties, number=space.stage)
            record.stages.append(stage)
            _write(study, stage)
        config, incumbent = stage.winner.config, stage.winner.key
        study.keep.add(incumbent)
        _clear(study, stage)
    if spaces.joint is None:
        return
    if record.joint and not study.has_result(record.joint.winner.key):
        study.say("files of the joint search's winner are damaged or gone: deciding it again")
        record.joint = None
    if record.joint is None:
        count = spaces.joint.samples or len({own.key for stage in record.stages for own in stage.trials})
        # There is no incumbent, and the stages are compared with the best configuration found.
        record.joint = _run_space(study, spaces.joint, joint[:count], dict(spaces.joint.fixed), None, "highest")
        trained = [study.folder.read_trial(own.key) for own in record.joint.trials]
        epochs = {"stages": sum(stage.epochs for stage in record.stages), JOINT: epochs_of(trained)}
        record.comparison = compare_joint(record, study.gain, study.validation, epochs)
        _write(study, record.joint)
    study.keep = {part.winner.key for part in record.parts}
    for part in record.parts:
        _clear(study, part)


def _write(study: Search, stage: StageRecord) -> None:
    """Writes the record with a new stage and prints its result."""
    study.record.cost = cost(study.record, study.base.optimiser.epochs)
    study.folder.write(study.record)
    for line in stage_lines(study.record, stage, len(study.spaces.stages)):
        study.say(line)


def _draw(study: Search, start: Configuration) -> list[Cell]:
    """Draws the joint search's cells in advance, so that the stages keep the weights of shared ones."""
    space = study.spaces.joint
    if space is None:
        return []
    most = space.samples or sum(1 for stage in study.spaces.stages for _ in stage.configurations())
    base = {**start, **space.fixed}

    def refused(varied: Configuration) -> bool:
        return bool(refusal(study.recipe({**base, **varied})))

    return [study.cell(varied, base) for varied in space.draw(most, seed=study.base.seed, refused=refused)]


def _run_space(
    study: Search,
    space: Space,
    cells: Sequence[Cell],
    fixed: Configuration,
    incumbent: str | None,
    ties: Ties,
    number: int | None = None,
) -> StageRecord:
    """Trains the cells without a result, chooses a winner, and returns the stage's record."""
    started, began = time.monotonic(), time.time()
    refused = {key: refusal(study.recipe(full)) for key, _, full in cells}
    left_out = [LeftOut(config=cell, reason=f"{named(cell)}: {refused[key]}") for key, cell, _ in cells if refused[key]]
    usable = [own for own in cells if not refused[own[0]]]
    trials = train(study, usable, space.name, space.stopping, space.title)
    candidates = [
        Candidate(key, trials[key].scores, study.validation(key), trials[key].parameters, named(cell), full)
        for key, cell, full in usable
        if trials[key].status == COMPLETE
    ]
    metric = study.record.metric
    winner = choose(
        candidates, study.gain, metric=metric, incumbent=incumbent, ties=ties, baseline=study.record.baseline
    )
    lines = [_line(study, trials[key], cell, space.name) for key, cell, _ in usable]
    lines.sort(key=lambda own: (not own.complete, 0.0 if own.mean is None else -metric.gain(own.mean), own.parameters))
    own = [trial for trial in trials.values() if trial.stage == space.name]
    # Includes trials of this stage that were trained before a kill.
    before = busy_seconds([trial for trial in own if trial.order < began])
    return StageRecord(
        stage=number,
        name=space.name,
        title=space.title,
        grid={name: labels_of(choices) for name, choices in space.options.items()},
        fixed=fixed,
        trials=lines,
        left_out=left_out,
        winner=winner,
        epochs=epochs_of(own),
        seconds=round(before + time.monotonic() - started, 2),
    )


def train(
    study: Search,
    cells: Sequence[Cell],
    stage: str,
    stopping: Stopping | None,
    title: str,
) -> dict[str, TrialRecord]:
    """Trains the cells that have no final record, and returns the records of all cells by key.

    Raises:
        RunFailed: all of them failed.
    """
    if not study.settings.early_stopping:
        stopping = None
    known: dict[str, TrialRecord] = {}
    for key, _, _ in cells:
        record = study.folder.read_trial(key)
        if record is not None and is_final(study, record, stage, stopping):
            known[key] = record
    specs = [
        {"key": key, "config": cell, "stage": stage, "seeds": study.record.seeds,
         "recipe": study.recipe(full).without_loggers().model_dump(mode="json")}
        for key, cell, full in cells
        if key not in known
    ]  # fmt: skip
    if specs:
        _prepare(study)
        study.connect()
        settings = study.settings
        resources = Resources(settings.cpus_per_trial, settings.gpus_per_trial, settings.concurrent, settings.autoscale)
        # Trials of this stage only: the incumbent of an earlier stage would be alone on every rung at first, and would
        # stop every trial that is slightly behind it at its fifth epoch.
        own = [record for record in known.values() if record.stage == stage]
        metric = study.record.metric
        scheduler = scheduler_of(stopping, study.base.optimiser.epochs, own, metric)
        shown = StageProgress(
            study.progress, title=title, total=len(cells), done=list(known.values()),
            epochs=study.base.optimiser.epochs, metric=metric,
        )  # fmt: skip
        with shown:
            shown.waiting("starting")
            search(
                specs, study.folder, scheduler=scheduler, resources=resources, metric=metric,
                kind=type(kind_of(study.base)), ended=shown.ended, epoch_ended=shown.epoch_ended,
                loggers=study.base.loggers, baseline=study.record.baseline,
                warn=lambda text: study.say(f"warning: {text}"),
            )  # fmt: skip
    for key in [key for key, _, _ in cells if key not in known]:
        record = study.folder.read_trial(key)
        if record is None or not record.finished:
            raise RunFailed(f"configuration {key} was not trained to an end; the same command goes on")
        known[key] = record
    failed = Counter(record.error for record in known.values() if record.status == FAILED)
    if failed and sum(failed.values()) == len(known):
        raise RunFailed(
            f"all {len(known)} configurations of {stage} failed: "
            + "; ".join(f"{reason} ({count})" for reason, count in failed.items())
            + ". Correct the cause, and run again with --retry-failed"
        )
    return known


def is_final(study: Search, record: TrialRecord, stage: str, stopping: Stopping | None) -> bool:
    """Returns whether a trial's record is final for `stage`, so that the trial is not run again."""
    if record.status == FAILED:
        return not study.settings.retry_failed
    if record.status == STOPPED:
        # Another stage's scheduler stopped it among other configurations; this stage runs it again.
        return stopping is not None and record.stage == stage
    return record.finished and study.has_result(record.key)


def _prepare(study: Search) -> None:
    """Writes the training and validation data for the trials, without the test split."""
    if not study.prepared:
        study.data.without_test().save(study.folder.data)
        study.prepared = True


def _line(study: Search, trial: TrialRecord, cell: Configuration, stage: str) -> TrialLine:
    from raymotion.study.score import interpolated_map

    complete, labels = trial.status == COMPLETE, study.output.gives == "labels"
    return TrialLine(
        key=trial.key,
        config=cell,
        status=trial.status,
        score=Spread.of(trial.scores) if trial.best else None,
        interpolated=interpolated_map(study.truth, study.validation(trial.key)) if complete and labels else None,
        epochs=len(trial.epochs),
        parameters=trial.parameters,
        seconds=round(trial.seconds, 2),
        reused_from=trial.stage if trial.stage != stage else None,
        error=trial.error,
    )


def _clear(study: Search, stage: StageRecord) -> None:
    """Removes the weights of trials that are not in `study.keep`."""
    for own in stage.trials:
        if own.key not in study.keep:
            study.folder.drop_weights(own.key, study.record.seeds)
