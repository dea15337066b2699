"""A whole study: stage after stage on validation, the joint search, and one look at the test split at the end.

The folder's record is rewritten after every stage, and each finished trial has left its own, so the same command goes
on after any crash: with the stage it was in, and without training anything again that had ended.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import Field

from raymotion import interrupts, storage
from raymotion.batch.cluster import available_cpus, connect
from raymotion.batch.progress import ProgressKind
from raymotion.batch.quiet import without_noise
from raymotion.config import Settings, require_same_settings
from raymotion.data.embedding_layout import COMMAND, FeatureKey, require_complete
from raymotion.data.embeddings import Embeddings
from raymotion.data.streams import STREAMS
from raymotion.errors import Damaged, InputError
from raymotion.folders import lock as folder_lock
from raymotion.folders.lock import one_writer_of
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.study.record import FORMAT, StudyFolder
from raymotion.study.show import Say, end_lines, stage_lines
from raymotion.study.space import Spaces, base_recipe, check_spaces, needs_of, read_spaces
from raymotion.train.fusion_data import FusionData, prepare_fusion

REMEDY = "Use the same settings, or another --out."


class StudySettings(Settings):
    """One study.

    Attributes:
        spaces: folder of the stages' YAML files. samples: the table; None: the one that the embeddings were made of.
        seeds: how many, from the recipe's on. epochs: None: the recipe's.
        stages: names of those that run; None: all. joint: whether the joint search runs.
        ties: what a tie carries on, see `study.select_winner`.
        concurrent: configurations in training at a time; None: as many as fit. cpus_per_trial, gpus_per_trial: of each;
            None: a quarter of a GPU where there are any.
        autoscale: the cluster starts nodes for trials that wait.
        retry_failed: train those again that failed before.
        set: assignments over the recipe, `optimiser.lr=3e-4`.
    """

    spaces: str
    out: str
    embeddings: list[str] = Field(min_length=1)
    samples: str | None = None
    seeds: int = Field(3, ge=1)
    epochs: int | None = Field(None, ge=1)
    stages: list[str] | None = None
    joint: bool = True
    early_stopping: bool = True
    ties: Literal["incumbent", "highest"] = "incumbent"
    concurrent: int | None = Field(None, ge=1)
    cpus_per_trial: float = Field(1.0, gt=0)
    gpus_per_trial: float | None = Field(None, ge=0)
    autoscale: bool = False
    retry_failed: bool = False
    set: list[str] = []


@one_writer_of("settings.out")
def run_study(
    settings: StudySettings, *, address: str | None = None, progress: ProgressKind = "auto", say: Say = print
) -> dict[str, Any]:
    """Runs the study of `settings`, or goes on with it, and returns its record.

    Args:
        address: a Ray cluster; None starts Ray on this machine.
        say: takes the lines for the terminal.

    Raises:
        InputError: in spaces, samples or embeddings, before anything runs; features that are missing, all at once.
        SettingsMismatch: the folder holds another study.
        RunFailed: no configuration of a stage could be trained, or the search failed.
    """
    from raymotion.study.finish import finish
    from raymotion.study.stages import Search, run_stages

    spaces = read_spaces(settings.spaces).only(settings.stages, joint=settings.joint)
    samples = storage.absolute(settings.samples or samples_of(settings.embeddings[0]))
    embeddings = [storage.absolute(folder) for folder in settings.embeddings]
    options: dict[str, Any] = {"data": {"samples": samples, "embeddings": embeddings}}
    if settings.epochs is not None:
        options["optimiser"] = {"epochs": settings.epochs}
    base = base_recipe(spaces, settings.set, options)
    check_spaces(spaces, base)
    opened = Embeddings(embeddings)
    require_features(opened, spaces, base, samples)
    data = prepare_fusion(base, embeddings=opened)
    folder = StudyFolder(settings.out)
    seeds = [base.seed + number for number in range(settings.seeds)]
    identity = _identity(settings, spaces, base, data, opened, seeds)
    damaged: Damaged | None = None
    try:
        record = folder.read()
        if record is not None and record["identity"] != json.loads(json.dumps(identity)):
            folder.free_if_nothing_computed()
            record = folder.read()
    except Damaged as error:
        record, damaged = None, error
        say(f"{error.path}: {error.reason}; it is rewritten; finished trials are kept")
    if record is not None:
        require_same_settings(record["identity"], identity, where=folder.path, remedy=REMEDY)
        if record["status"] == "complete":
            say(f"{settings.out} is finished already, with these settings: nothing to do")
            for line in end_lines(record):
                say(line)
            return record
    else:
        if damaged is None:
            _require_free(folder)
        record = _new_record(settings, identity, data, seeds)
        folder.write(record)
    for stage in record["stages"]:
        for line in stage_lines(stage, _title(stage, len(spaces.stages))):
            say(line)
    search = Search(settings, spaces, base, data, opened, folder, seeds, record, say, progress)

    def ended_early(status: str) -> None:
        if folder_lock.is_lost(folder.path):
            return
        record["status"] = status
        with contextlib.suppress(Exception):  # the reason why it ended is the one to tell
            folder.write(record)

    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts.on_forced_end(lambda: ended_early("interrupted")))
        stack.push(lambda kind, error, trace: ended_early(_how(error)) if error is not None else None)
        if record["status"] != "running":
            record["status"] = "running"
            folder.write(record)

        def ray() -> None:
            """Connects when the first trial is to run: what is all known already needs no Ray."""
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


def samples_of(embeddings: str) -> str:
    """The sample table that embeddings were made of, as their job remembers it."""
    job = require_complete(storage.absolute(embeddings))
    found = (job.get("settings") or {}).get("samples")
    if not found:
        raise InputError("does not say which samples it was made of", path=embeddings, remedy="Give --samples.")
    if not storage.exists(found):
        raise InputError(f"was made of {found}, which is not there", path=embeddings, remedy="Give --samples.")
    return str(found)


def require_features(opened: Embeddings, spaces: Spaces, base: FusionRecipe, samples: str) -> None:
    """Raises one `InputError` that lists every feature that any configuration needs and that is not there.

    Its remedy is the command that makes them.
    """
    needs = needs_of(spaces, base)
    there = set(opened.keys)
    pairs = [(stream, name) for stream in STREAMS for name in needs[stream]]
    wanted = [FeatureKey(*pair, level) for pair in pairs for level in ("none", *needs["levels"])]
    if needs["tokens"]:
        # A head that is given a backbone's clean tokens wants those of its views as well.
        wanted += [
            FeatureKey(key.stream, key.backbone, key.level, True)
            for key in wanted
            if FeatureKey(key.stream, key.backbone, "none", True) in there
        ]
    missing = [key for key in wanted if key not in there]
    if not missing:
        return
    shown = ", ".join(key.column for key in missing[:6]) + (", ..." if len(missing) > 6 else "")
    raise InputError(
        f"lack {len(missing)} of the features that the study reads ({shown})",
        path=" and ".join(opened.folders),
        remedy=_command(opened, samples, pairs, missing, needs),
    )


def _command(
    opened: Embeddings,
    samples: str,
    pairs: Sequence[tuple[str, str]],
    missing: Sequence[FeatureKey],
    needs: dict[str, Any],
) -> str:
    """How to make what is missing: beside what there is, or all of it anew.

    An embedding job makes the clean features of every backbone that it is given, and two folders that are read together
    may not hold the same ones: a level or tokens of a backbone that is there cannot be made apart.
    """
    new = [pair for pair in pairs if FeatureKey(*pair) in missing]
    beside = len(new) < len(pairs) and all((key.stream, key.backbone) in new for key in missing)
    options = [f"--{stream} {name}" for stream, name in (new if beside else pairs)]
    options += [f"--augment {level}" for level in needs["levels"]]
    views = {opened.views[level] for level in needs["levels"] if level in opened.views}
    if beside and len(views) == 1:
        options.append(f"--views {views.pop()}")
    if needs["tokens"] and (not beside or any(key.tokens for key in opened.keys)):
        options.append("--tokens 2")
    how = "Make them in a folder of their own, and name it too" if beside else "Make all in one folder, to name alone"
    return f"{how}: `{COMMAND} {samples} --out DIR {' '.join(options)}`."


def _identity(
    settings: StudySettings, spaces: Spaces, base: FusionRecipe, data: FusionData, opened: Embeddings,
    seeds: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """What decides a study's result, and so what has to be the same when it goes on."""
    recipe = base.result_settings()
    recipe["data"] = {"soft_targets": base.data.soft_targets}
    return {
        "data": data.fingerprint,
        "embeddings": opened.digest,
        "recipe": recipe,
        "spaces": {
            space.name: space.model_dump(mode="json", exclude={"title", "published", "published_best"})
            for space in spaces.all
        },
        "seeds": list(seeds),
        "early_stopping": settings.early_stopping,
        "ties": settings.ties,
    }


def _new_record(
    settings: StudySettings, identity: dict[str, Any], data: FusionData, seeds: Sequence[int]
) -> dict[str, Any]:
    import platform

    import ray
    import torch

    import raymotion
    from raymotion.study.score import split_facts

    return {
        "format": FORMAT,
        "status": "running",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.model_dump(mode="json"),
        "identity": identity,
        "seeds": list(seeds),
        "data": {"samples": data.name, "counts": data.counts, **split_facts(data)},
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "ray": ray.__version__,
            "raymotion": getattr(raymotion, "__version__", ""),
        },
        "stages": [],
        "joint": None,
        "comparison": None,
        "test": None,
        "cost": None,
    }  # fmt: skip


def _require_free(folder: StudyFolder) -> None:
    # All of them: what stands in the study's own subfolders is removed when it ends.
    if storage.list_entries(folder.path):
        raise InputError("is not empty, and no study", path=folder.path, remedy="Name another folder with --out.")
    storage.make_dir(folder.path)
    storage.probe_writable(folder.path)


def _title(stage: dict[str, Any], of: int) -> str:
    return f"stage {stage['stage']} of {of}, {stage['name']}"
