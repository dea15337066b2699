"""A whole study: the stages on validation, the joint search, and one evaluation on the test split at the end.

The study's record is rewritten after every stage, and each finished trial has its own. So after any crash the same
command resumes in the stage where it was, and does not repeat finished trials.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from raymotion import interrupts, storage
from raymotion.batch.cluster import available_cpus, connect
from raymotion.batch.progress import ProgressKind
from raymotion.batch.quiet import without_noise
from raymotion.config import require_same_settings
from raymotion.data.embedding_layout import require_complete
from raymotion.data.embeddings import Embeddings
from raymotion.errors import Damaged, InputError
from raymotion.folders import lock as folder_lock
from raymotion.folders.lock import one_writer_of
from raymotion.learning.metrics.multilabel import metric_title
from raymotion.models.inputs.streams import StreamInput
from raymotion.models.outputs.base import Output, choose_metric
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.study.data import baseline_of, data_facts
from raymotion.study.features import require_features
from raymotion.study.record import MACRO_AP, Metric, StudyFolder, StudyRecord
from raymotion.study.settings import StudySettings
from raymotion.study.show import Say, end_lines, stage_lines
from raymotion.study.space import Spaces, base_recipe, check_spaces, read_spaces, result_settings
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of, require_loggers
from raymotion.train.source import label_warnings
from raymotion.version import __version__

REMEDY = "Use the same settings, or another --out."


@one_writer_of("settings.out")
def run_study(
    settings: StudySettings, *, address: str | None = None, progress: ProgressKind = "auto", say: Say = print
) -> StudyRecord:
    """Runs or resumes the study of `settings`, and returns its record.

    Args:
        address: a Ray cluster; None starts Ray on this machine.
        say: receives the lines for the terminal.

    Raises:
        InputError: spaces, samples or embeddings are invalid, or features are missing (all are listed); raised before
            anything runs.
        SettingsMismatch: the folder holds another study.
        RunFailed: no configuration of a stage could be trained, or the search failed.
    """
    from raymotion.study.finish import finish
    from raymotion.study.loggers import callback_of
    from raymotion.study.stages import Search, run_stages

    spaces = read_spaces(settings.spaces).only(settings.stages, joint=settings.joint)
    given = {name: getattr(settings, name) for name in ("samples", "labels", "features")}
    if settings.embeddings:
        given["samples"] = given["samples"] or samples_of(settings.embeddings[0])
    options: dict[str, Any] = {"data": {name: storage.absolute(place) for name, place in given.items() if place}}
    if settings.embeddings:
        options["data"]["embeddings"] = [storage.absolute(folder) for folder in settings.embeddings]
    if settings.epochs is not None:
        options["optimiser"] = {"epochs": settings.epochs}
    base = base_recipe(spaces, settings.set, options, recipe=settings.recipe).with_absolute_paths()
    base.require_data(settings.recipe or settings.spaces)
    require_loggers(base, settings.out)
    for logger in base.loggers:
        callback_of(logger, settings.out)
    check_spaces(spaces, base)
    if any(isinstance(own, StreamInput) for own in kind_of(base).checked_inputs(base)):
        require_features(Embeddings(base.data.embeddings), spaces, base, base.data.samples)  # type: ignore[attr-defined]
    data = prepare_data(base)
    for warning in label_warnings(base):
        say(f"warning: {warning}")
    output, metric = _compared_by(base, data)
    folder = StudyFolder(settings.out)
    seeds = [base.seed + number for number in range(settings.seeds)]
    identity = _identity(settings, spaces, base, data, seeds)
    damaged: Damaged | None = None
    try:
        record = folder.read()
        if record is not None and record.identity != json.loads(json.dumps(identity)):
            folder.free_if_nothing_computed()
            record = folder.read()
    except Damaged as error:
        record, damaged = None, error
        say(f"{error.path}: {error.reason}; it is rewritten; finished trials are kept")
    if record is not None:
        require_same_settings(record.identity, identity, where=folder.path, remedy=REMEDY)
        if record.complete:
            say(f"{settings.out} is finished already, with these settings: nothing to do")
            for line in end_lines(record):
                say(line)
            return record
    else:
        if damaged is None:
            _require_free(folder)
        record = _new_record(settings, identity, spaces, data, output, metric, seeds)
        folder.write(record)
    for stage in record.stages:
        for line in stage_lines(record, stage, len(spaces.stages)):
            say(line)
    search = Search(settings, spaces, base, data, folder, record, output, say, progress)

    def ended_early(status: str) -> None:
        if folder_lock.is_lost(folder.path):
            return
        record.status = status
        with contextlib.suppress(Exception):  # must not hide the error that ended the study
            folder.write(record)

    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts.on_forced_end(lambda: ended_early("interrupted")))
        stack.push(lambda kind, error, trace: ended_early(_how(error)) if error is not None else None)
        if record.status != "running":
            record.status = "running"
            folder.write(record)

        def ray() -> None:
            """Connects to Ray when the first trial has to run, since a resumed study may need none."""
            if not search.connected:
                stack.enter_context(without_noise())
                stack.enter_context(connect(address, cpus=max(available_cpus(), round(settings.cpus_per_trial))))
                search.connected = True

        search.connect = ray
        run_stages(search)
        finish(search)
    for line in end_lines(record):
        say(line)
    return record


def _how(error: BaseException) -> str:
    return "interrupted" if interrupts.stopping() or not isinstance(error, Exception) else "failed"


def _compared_by(base: TrainRecipe, data: TrainingSet) -> tuple[Output, Metric]:
    """Returns the output and the validation metric that select epochs and compare trials."""
    outputs = kind_of(base).checked_outputs(base, data.facts)
    output, name = choose_metric(None if base.select_by == "last" else base.select_by, outputs)
    column = name if output is outputs[0] else f"{output.name}_{name}"
    if column == MACRO_AP.name:
        return output, MACRO_AP
    title = metric_title(name).partition(" (")[0].partition(",")[0]  # without its unit, for use in sentences
    named = {"numbers": "the training mean", "vectors": "one vector for all"}
    baseline = named.get(output.gives, "a constant") if output.vocabulary is None else "the class prior"
    higher = name not in output.lower_is_better
    return output, Metric(name=column, title=title, higher_is_better=higher, baseline=baseline)


def samples_of(embeddings: str) -> str:
    """Returns the sample table of embeddings, from the record of their job."""
    job = require_complete(storage.absolute(embeddings))
    found = (job.get("settings") or {}).get("samples")
    if not found:
        raise InputError("does not say which samples it was made of", path=embeddings, remedy="Give --samples.")
    if not storage.exists(found):
        raise InputError(f"was made of {found}, which is not there", path=embeddings, remedy="Give --samples.")
    return str(found)


def _identity(
    settings: StudySettings, spaces: Spaces, base: TrainRecipe, data: TrainingSet, seeds: Sequence[int]
) -> dict[str, Any]:
    """Returns everything that determines a study's result, and so must be unchanged when it resumes."""
    beside = {"title", "published", "recipe"}
    return {
        "data": data.fingerprint,
        "recipe": result_settings(base),
        "spaces": {space.name: space.model_dump(mode="json", exclude=beside) for space in spaces.all},
        "seeds": list(seeds),
        "early_stopping": settings.early_stopping,
        "ties": settings.ties,
    }


def _new_record(
    settings: StudySettings,
    identity: dict[str, Any],
    spaces: Spaces,
    data: TrainingSet,
    output: Output,
    metric: Metric,
    seeds: Sequence[int],
) -> StudyRecord:
    import platform

    import ray
    import torch

    return StudyRecord(
        status="running",
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=settings.model_dump(mode="json"),
        identity=json.loads(json.dumps(identity)),
        seeds=list(seeds),
        published=spaces.published,
        data=data_facts(data, output),
        metric=metric,
        baseline=baseline_of(metric, output, data, "val"),
        versions={
            "python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__,
            "raymotion": __version__,
        },
    )  # fmt: skip


def _require_free(folder: StudyFolder) -> None:
    # Any entry is refused, because the study removes its own subfolders at the end.
    if storage.list_entries(folder.path):
        raise InputError("is not empty, and no study", path=folder.path, remedy="Name another folder with --out.")
    storage.make_dir(folder.path)
    storage.probe_writable(folder.path)
