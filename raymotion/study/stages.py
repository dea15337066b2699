"""The stages one after the other, each from where the one before ended, and the joint search over all their choices."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raymotion.batch.progress import ProgressKind
from raymotion.data.embeddings import Embeddings
from raymotion.errors import InputError, RunFailed
from raymotion.models.fusion.config import FusionConfig
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.study.select_winner import Candidate, Choice, choose
from raymotion.study.record import COMPLETE, FAILED, STOPPED, StudyFolder, TrialRecord, trial_key
from raymotion.study.search import Resources, scheduler_of, search
from raymotion.study.show import Say, StageProgress, named, stage_lines
from raymotion.study.space import JOINT, Configuration, Space, Spaces, StageSpace, Stopping, build_recipe, labels_of
from raymotion.study.cost import busy_seconds, compare, cost, epochs_of
from raymotion.train.fusion_data import FusionData


@dataclass
class Search:
    """A study under way: what it is about, and its record."""

    settings: Any
    spaces: Spaces
    base: FusionRecipe
    data: FusionData
    embeddings: Embeddings
    folder: StudyFolder
    seeds: list[int]
    record: dict[str, Any]
    say: Say
    progress: ProgressKind
    connected: bool = False
    connect: Callable[[], None] = lambda: None
    prepared: bool = False
    # Keys of the stages' winners, and of what the joint search will draw: their weights are still needed.
    keep: set[str] = field(default_factory=set)

    def recipe(self, config: Configuration) -> FusionRecipe:
        return build_recipe(self.base, self.spaces, config)

    def key(self, recipe: FusionRecipe) -> str:
        return trial_key(recipe, self.seeds, self.data.fingerprint)

    def validation(self, key: str) -> np.ndarray:
        return self.folder.validation(key, self.seeds)

    @property
    def truth(self) -> np.ndarray:
        """Validation's targets (n, L)."""
        return self.data.hard[self.data.splits["val"]]

    @property
    def groups(self) -> list[str]:
        """The image of each validation sample."""
        return [self.data.groups[row] for row in self.data.splits["val"]]


def run_stages(study: Search) -> None:
    """All stages that the record lacks, the joint search, and the comparison of the two."""
    record, spaces = study.record, study.spaces
    start = first_configuration(study)
    joint = _draw(study, start)
    study.keep = {own[0] for own in joint}
    config, incumbent = dict(start), None
    for stage in spaces.stages:
        done = [own for own in record["stages"] if own["name"] == stage.name]
        if done and not study.folder.has_result(done[0]["winner"]["key"], study.seeds):
            study.say(f"files of {stage.name}'s winner are damaged or gone: deciding the stages again from there")
            record["stages"] = record["stages"][: record["stages"].index(done[0])]
            record["joint"], done = None, []
        if done:
            known = done[0]
        else:
            known = _run_stage(study, stage, config, incumbent)
            record["stages"].append(known)
            record["cost"] = cost(study)
            study.folder.write(record)
            for line in stage_lines(known, f"stage {stage.stage} of {len(spaces.stages)}, {stage.name}"):
                study.say(line)
        config, incumbent = known["winner"]["config"], known["winner"]["key"]
        study.keep.add(incumbent)
        _clear(study, known)
    if spaces.joint is None:
        return
    if record["joint"] and not study.folder.has_result(record["joint"]["winner"]["key"], study.seeds):
        study.say("files of the joint search's winner are damaged or gone: deciding it again")
        record["joint"] = None
    if record["joint"] is None:
        count = spaces.joint.samples or len({own["key"] for stage in record["stages"] for own in stage["trials"]})
        found = _run_joint(study, joint[:count])
        record["joint"] = found
        record["comparison"] = compare(study)
        record["cost"] = cost(study)
        study.folder.write(record)
        for line in stage_lines(found, "joint search"):
            study.say(line)
    study.keep = {stage["winner"]["key"] for stage in record["stages"]} | {record["joint"]["winner"]["key"]}
    for done in [*record["stages"], record["joint"]]:
        _clear(study, done)


def first_configuration(study: Search) -> Configuration:
    """What the base recipe says of every field that any space varies, by label where the choices have labels."""
    start: Configuration = {}
    for name in study.spaces.fields:
        start[name] = _label(study, name)
    return start


def _label(study: Search, name: str) -> Any:
    value: Any = study.base.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    for space in study.spaces.all:
        choices = space.options.get(name)
        if isinstance(choices, dict):
            for label in labels_of(choices):
                if study.recipe({name: label}) == study.base:
                    return label
    return value


def _run_stage(study: Search, stage: StageSpace, config: Configuration, incumbent: str | None) -> dict[str, Any]:
    base = {**config, **stage.fixed}
    cells = [(study.key(study.recipe(full)), cell, full) for cell, full in _cells(stage, base)]
    fixed = {name: value for name, value in base.items() if name not in stage.grid}
    described = {
        "stage": stage.stage, "name": stage.name, "title": stage.title, "varied": list(stage.grid), "fixed": fixed,
        "grid": {name: labels_of(choices) for name, choices in stage.grid.items()},
    }  # fmt: skip
    return _run_space(study, stage, cells, described, incumbent, study.settings.ties)


def _run_joint(study: Search, drawn: Sequence[tuple[str, Configuration, Configuration]]) -> dict[str, Any]:
    space = study.spaces.joint
    assert space is not None
    described = {
        "name": JOINT, "title": space.title, "varied": list(space.choices), "fixed": dict(space.fixed),
        "grid": {name: labels_of(choices) for name, choices in space.choices.items()}, "samples": len(drawn),
    }  # fmt: skip
    # Nothing was carried in, and what is compared with the stages is the best that was found.
    done = _run_space(study, space, drawn, described, None, "highest")
    return {**done, "stopped": sum(own["status"] == STOPPED for own in done["trials"])}


def _cells(stage: StageSpace, base: Configuration) -> list[tuple[Configuration, Configuration]]:
    return [(cell, {**base, **cell}) for cell in stage.configurations()]


def _draw(study: Search, start: Configuration) -> list[tuple[str, Configuration, Configuration]]:
    """What the joint search will draw at most: known before it starts, so that weights it shares can be kept."""
    space = study.spaces.joint
    if space is None:
        return []
    most = space.samples or sum(1 for stage in study.spaces.stages for _ in stage.configurations())
    base = {**start, **space.fixed}
    cells = space.draw(most, seed=study.base.seed, refused=lambda cell: bool(refusal(study, {**base, **cell})))
    return [(study.key(study.recipe({**base, **cell})), cell, {**base, **cell}) for cell in cells]


def refusal(study: Search, config: Configuration) -> str | None:
    """Why a configuration cannot be trained, though each of its parts could; None if it can."""
    recipe = study.recipe(config)
    try:  # such as a fusion of two streams where the ablation or the backbones leave one
        FusionConfig.model_validate({**recipe.model, "dims": dict.fromkeys(recipe.backbones.chosen(), 1)})
    except InputError as error:
        return error.reason
    return None


def _run_space(
    study: Search,
    space: Space,
    cells: Sequence[tuple[str, Configuration, Configuration]],
    described: dict[str, Any],
    incumbent: str | None,
    ties: Any,
) -> dict[str, Any]:
    """Trains what is not known yet, chooses, and gives the stage's part of the record."""
    started, began = time.monotonic(), time.time()
    left_out = [
        {"config": cell, "reason": f"{named(cell)}: {reason}"}
        for _, cell, full in cells
        if (reason := refusal(study, full))
    ]
    usable = [own for own in cells if not refusal(study, own[2])]
    trials = train(study, usable, space.name, space.stopping, described["title"])
    choice = _choose(study, usable, trials, incumbent, ties)
    configs = {key: full for key, _, full in usable}
    own = [trial for trial in trials.values() if trial.stage == space.name]
    # Of this stage too: what was trained of it before a kill.
    before = busy_seconds([trial for trial in own if trial.order < began])
    published = [own.model_dump(mode="json") for own in space.published]
    return {
        **described,
        "published": published,
        "published_best": space.published_best,
        "trials": [_told(study, trials[key], cell, space.name) for key, cell, _ in usable],
        "left_out": left_out,
        "winner": {**choice.to_dict(), "config": configs[choice.key]},
        "epochs": epochs_of(own),
        "seconds": round(before + time.monotonic() - started, 2),
        "status": "complete",
    }


def train(
    study: Search,
    cells: Sequence[tuple[str, Configuration, Configuration]],
    stage: str,
    stopping: Stopping | None,
    title: str,
) -> dict[str, TrialRecord]:
    """Records of all cells by key, those trained now that had none.

    Raises:
        RunFailed: every one of them failed.
    """
    if not study.settings.early_stopping:
        stopping = None
    known: dict[str, TrialRecord] = {}
    for key, _, _ in cells:
        record = study.folder.read_trial(key)
        if record is not None and _counts(study, record, stage, stopping):
            known[key] = record
    specs = [
        {"key": key, "config": cell, "stage": stage, "seeds": study.seeds,
         "recipe": study.recipe(full).model_dump(mode="json")}
        for key, cell, full in cells
        if key not in known
    ]  # fmt: skip
    if specs:
        _prepare(study)
        study.connect()
        settings = study.settings
        resources = Resources(settings.cpus_per_trial, settings.gpus_per_trial, settings.concurrent, settings.autoscale)
        # Of this stage alone: what an earlier one carried in has every rung to itself at first, and would end all that
        # are a hair behind it at their fifth epoch.
        own = [record for record in known.values() if record.stage == stage]
        scheduler = scheduler_of(stopping, study.base.optimiser.epochs, own)
        shown = StageProgress(
            study.progress, title=title, total=len(cells), done=list(known.values()), epochs=study.base.optimiser.epochs
        )
        with shown:
            shown.waiting("starting")
            search(
                specs, study.folder, scheduler=scheduler, resources=resources, ended=shown.ended,
                epoch_ended=shown.epoch_ended,
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
            + ". Mend it, and say --retry-failed"
        )
    return known


def _counts(study: Search, record: TrialRecord, stage: str, stopping: Stopping | None) -> bool:
    """Whether a record is an end for `stage`: its trial is not run again."""
    if record.status == FAILED:
        return not study.settings.retry_failed
    if record.status == STOPPED:
        # Another stage's scheduler held it against other configurations: here it is to have its chance.
        return stopping is not None and record.stage == stage
    return record.finished and study.folder.has_result(record.key, record.seeds)


def _prepare(study: Search) -> None:
    """Lays the data where trials find them: training and validation, and nothing of test."""
    from raymotion.study.trial import without_test

    if not study.prepared:
        without_test(study.data).save(study.folder.data)
        study.prepared = True


def _choose(
    study: Search,
    cells: Sequence[tuple[str, Configuration, Configuration]],
    trials: dict[str, TrialRecord],
    incumbent: str | None,
    ties: Any,
) -> Choice:
    candidates = [
        Candidate(key, trials[key].scores, study.validation(key), trials[key].parameters, named(cell))
        for key, cell, _ in cells
        if trials[key].status == COMPLETE
    ]
    return choose(candidates, study.truth, groups=study.groups, incumbent=incumbent, ties=ties, seed=study.base.seed)


def _told(study: Search, trial: TrialRecord, cell: Configuration, stage: str) -> dict[str, Any]:
    """A trial's line in study.json."""
    from raymotion.study.score import interpolated_map, spread

    complete = trial.status == COMPLETE
    return {
        "key": trial.key,
        "config": cell,
        "status": trial.status,
        "val_macro_ap": spread(trial.scores) if trial.best else {"mean": None, "sd": None, "seeds": []},
        "val_interpolated": {"mean": interpolated_map(study.truth, study.validation(trial.key)) if complete else None},
        "epochs": len(trial.epochs),
        "parameters": trial.parameters,
        "seconds": round(trial.seconds, 2),
        "reused_from": trial.stage if trial.stage != stage else None,
        "error": trial.error,
    }


def _clear(study: Search, stage: dict[str, Any]) -> None:
    """Removes the weights of what is not carried on."""
    for own in stage["trials"]:
        if own["key"] not in study.keep:
            study.folder.drop_weights(own["key"], study.seeds)
