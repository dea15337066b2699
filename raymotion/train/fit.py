"""One training run from recipe to checkpoint, through Ray Train.

During the run its state lies beside the output (`.NAME.run`): the prepared data and the last epoch's checkpoint.
After a crash the same command resumes from there. At the end the complete output is published and the state removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymotion import interrupts, records, storage
from raymotion.config import require_same_settings
from raymotion.errors import DiskFull, Diverged, InputError, RaymotionError, RunFailed
from raymotion.folders import lock as folder_lock
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.loggers.logger import LoggedRun, Status
from raymotion.loggers.tracking import Tracking, Warn
from raymotion.models.checkpoint import (
    CheckpointInfo,
    is_checkpoint,
    read_checkpoint_info,
)
from raymotion.models.inputs.reading import Pictures, Reader
from raymotion.models.kind import Kind
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import of_class
from raymotion.models.training_set import TrainingSet
from raymotion.stores import access
from raymotion.stores.local_files import disk_full, is_full
from raymotion.train.finish import finish
from raymotion.train.ingest import Ingest, plan_ingest
from raymotion.train.pictures import Portion
from raymotion.train.prepare import prepare_data
from raymotion.train.progress import interval, pace_file, read_pace
from raymotion.train.recipe import kind_of, require_loggers
from raymotion.train.task import baselines_of

Progress = Callable[[Mapping[str, Any]], None]
SETTINGS, PROGRESS, LATEST, LOGGED = "settings.json", "progress.json", "latest.json", "loggers.json"
HISTORY = "history"  # in the progress file: all epochs
SWITCH_SECONDS = 0.0005
REMEDY = "Use the same settings, another --out, or remove the folder."


def _to_stderr(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        info: the checkpoint, with its metrics.
        already_done: the folder already held the finished result of the same settings; nothing was done.
        resumed_from: number of epochs that an earlier, interrupted command computed.
        seconds: wall time of this command.
    """

    info: CheckpointInfo
    already_done: bool = False
    resumed_from: int = 0
    seconds: float = 0.0


@one_writer_of("out", beside=True)
def fit(
    recipe: TrainRecipe,
    out: storage.PathLike,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    stepped: Progress | None = None,
    warn: Warn = _to_stderr,
) -> TrainResult:
    """Trains `recipe` and writes the checkpoint to `out`; resumes a run that was interrupted.

    Args:
        address: a Ray cluster; None starts Ray on this machine. With `workers: 0` Ray is not used at all.
        progress: called after each epoch with its metrics.
        stepped: called about every second with the report of `train.progress.Pace`.
        warn: receives the warnings about loggers that fail, which never end a training.

    Raises:
        InputError: the recipe, the samples or the features are invalid, or a logger is not installed.
        SettingsMismatch: `out` belongs to a run with other settings or data, or was begun with other workers.
        RunFailed: the workers failed more often than `failures` allows; the same command resumes the run.
        Diverged: the loss or the weights are no longer finite; the run is removed.
    """
    started = time.monotonic()
    target = storage.absolute(out)
    require_loggers(recipe, target)
    parameters, loggers = recipe.model_dump(mode="json", exclude={"loggers"}), recipe.loggers
    recipe = recipe.with_absolute_paths().without_loggers()
    data = prepare_data(recipe)
    settings = {**recipe.result_settings(), "data_fingerprint": data.fingerprint}
    for name, source in recipe.sources().items():
        settings[f"{name}_fingerprint"] = read_checkpoint_info(source).fingerprint
    if is_checkpoint(target):
        info = read_checkpoint_info(target)
        made_with = info.training.get("settings") or {}
        require_same_settings(made_with, settings, where=target, remedy=REMEDY, ignore=recipe.places)
        return TrainResult(info, already_done=True)
    _require_free(target)
    run = outputs.run_folder(target)
    storage.probe_writable(storage.parent(target))
    if not _has_epoch(run):  # left by a run that was killed before its first epoch
        outputs.remove_claimed(run)
    outputs.claim(run)
    # Rows and random draws depend on the number of workers, and Ray keeps its state elsewhere than this process does:
    # a run resumes only with the same `workers`.
    begun = {**settings, "workers": recipe.workers}
    if storage.exists(storage.join(run, SETTINGS)):
        before = records.read_record(storage.join(run, SETTINGS), remedy=_start_anew(run))
        require_same_settings(before, begun, where=run, remedy=REMEDY, ignore=recipe.places)
    else:
        records.write_record(storage.join(run, SETTINGS), begun)
    # Written again by each command: features and pictures may have moved, and files may be damaged.
    data.save(storage.join(run, "data"))
    command = uuid.uuid4().hex[:8]
    logged = LoggedRun(
        target.rstrip("/").rsplit("/", 1)[-1], target, {**parameters, "data_fingerprint": data.fingerprint}
    )
    tracking = Tracking(
        loggers, logged, record=storage.join(run, LOGGED), warn=warn,
        constants=baselines_of(recipe, data) if loggers else {},
    )  # fmt: skip
    with (
        _freed_without_an_epoch(run, target),
        _tracked(tracking, run, target) as ended,
        _followed(run, progress, stepped, tracking, _epochs_done(run)),
    ):
        if recipe.workers == 0:
            with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
                _train_here(recipe, data, run, command, folder)
                info = finish(recipe, data, settings, folder, target)
        else:
            info = _train_on_ray(recipe, data, run, settings, target, address, command)
        ended(info)
    # The checkpoint is complete, so a failure to clean up must not fail the run.
    with contextlib.suppress(OSError, RaymotionError):
        outputs.remove_claimed(run)
    earlier = [epoch for epoch in info.training["history"] if not epoch["attempt"].startswith(command)]
    return TrainResult(info, resumed_from=len(earlier), seconds=time.monotonic() - started)


@contextlib.contextmanager
def _tracked(tracking: Tracking, run: str, target: str) -> Iterator[Callable[[CheckpointInfo], None]]:
    """Ends the run in its loggers, with the best epoch of the checkpoint that the yielded function is told."""
    told: list[CheckpointInfo] = []
    status: Status = "failed"
    tracking.log([])
    try:
        yield told.append
        status = "complete"
    except BaseException as error:
        status = "failed" if isinstance(error, Exception) and not interrupts.stopping() else "interrupted"
        raise
    finally:
        summary: dict[str, float | str] = {"checkpoint": target}
        history = _history(run) if tracking else []
        for info in told:
            history = history or _figures(info.training["history"])
            best, column = info.training["best_epoch"], info.training["selected_by"]
            summary |= {"best_epoch": best, f"best_{column}": info.training["history"][best - 1][column]}
        tracking.close(status, history, summary)


@contextlib.contextmanager
def _freed_without_an_epoch(run: str, target: str) -> Iterator[None]:
    """Removes the state of a run that failed before its first epoch, or that diverged, so that a corrected command can
    start fresh.

    The epochs before a divergence are useless too: the same command would diverge at the same step. If another process
    has taken over `target`, the state belongs to that process and stays.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, RaymotionError):
            if not folder_lock.is_lost(target) and (isinstance(error, Diverged) or not _has_epoch(run)):
                outputs.remove_claimed(run)
        raise


def _train_here(recipe: TrainRecipe, data: TrainingSet, run: str, command: str, into: str) -> None:
    """Runs the loop in this process and copies the files of the last report to the local folder `into`.

    In `run` the files of a new epoch are complete before the old ones are removed; `latest.json` names the current.
    """
    import torch

    from raymotion.batch.cluster import available_cpus
    from raymotion.batch.memory import keep_freed_memory
    from raymotion.train.loop import train
    from raymotion.train.task import Task
    from raymotion.train.workers import Workers

    keep_freed_memory()
    kept = storage.join(run, "epochs")
    latest = storage.join(kept, LATEST)

    def report(metrics: Mapping[str, Any], folder: str | None) -> None:
        assert folder is not None
        before = _latest(run)["number"] if storage.exists(latest) else -1
        place = storage.join(kept, f"{before + 1:06d}")
        names = sorted(os.listdir(folder))
        for name in names:
            storage.write_bytes(storage.join(place, name), Path(folder, name).read_bytes())
        records.write_record(latest, {"number": before + 1, "files": names})
        _write_progress(run, metrics, folder)
        if before >= 0:
            storage.remove_tree(storage.join(kept, f"{before:06d}"))

    def fetch(folder: str) -> bool:
        if not storage.exists(latest):
            return False
        found = _latest(run)
        for name in found["files"]:
            data = records.read_bytes(storage.join(kept, f"{found['number']:06d}", name), None, remedy=_start_anew(run))
            storage.write_bytes(storage.join(folder, name), data, durable=False)
        return True

    device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
    workers = Workers(device=device, attempt=_attempt(command), pace=pace_file(run))
    threads = getattr(recipe.data, "decode_tasks", None) or available_cpus()
    with tempfile.TemporaryDirectory(prefix="raymotion-") as earlier:
        resume_from = earlier if fetch(earlier) else None
        train(Task(recipe, data, threads=threads), report=report, resume_from=resume_from, workers=workers)
    fetch(into)


def _attempt(command: str) -> str:
    """Returns the history's mark of who computed an epoch: the command and its process."""
    return f"{command}-{os.getpid()}"


def _train_on_ray(
    recipe: TrainRecipe,
    data: TrainingSet,
    run: str,
    settings: dict[str, Any],
    target: str,
    address: str | None,
    command: str,
) -> CheckpointInfo:
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    # How often Ray Train polls its workers, and so how long each report blocks: at Ray's 2 s a run of short epochs
    # waits more than it trains.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from raymotion.batch.cluster import available_cpus, connect, node_resources, plan_placement
    from raymotion.batch.memory import MALLOC

    decodes = data.streamed is not None
    # On our own Ray, workers and decoding tasks share the cores; the operating system schedules them.
    cores = max(available_cpus(), recipe.workers)
    with connect(address, cpus=cores + recipe.workers if decodes else cores):
        import ray.train
        from ray.train.torch import TorchTrainer

        nodes = node_resources()
        use_gpu = any(node.get("GPU", 0) >= 1 for node in nodes) if recipe.use_gpu is None else recipe.use_gpu
        plan = plan_ingest(recipe, nodes, decodes=decodes)
        # Without this check Ray Train would wait forever for resources that the cluster lacks.
        plan_placement(recipe.workers, plan.worker_cpus, float(use_gpu), nodes=nodes, autoscale=recipe.autoscale)
        filesystem, path = storage.arrow_filesystem(run)

        class Trainer(TorchTrainer):
            def _register_sigint_handler(self, controller: Any) -> None:
                """Leaves Ctrl-C to the command, because Ray Train's own handler exits with code 0."""

        trainer = Trainer(
            _worker,
            train_loop_config={
                "recipe": recipe.model_dump(mode="json"),
                # The class, because the workers do not know a kind that was registered here.
                "kind": type(kind_of(recipe)),
                "run": run,
                "command": command,
                "ingest": asdict(plan),
                "access": asdict(access.current()),
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=recipe.workers,
                use_gpu=use_gpu,
                resources_per_worker={"CPU": plan.worker_cpus, **({"GPU": 1} if use_gpu else {})},
            ),
            run_config=ray.train.RunConfig(
                # Ray finds an earlier run by this name alone; `fit` has checked that the settings match.
                name="train",
                storage_path=path,
                storage_filesystem=filesystem,
                failure_config=ray.train.FailureConfig(max_failures=recipe.failures),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),
                worker_runtime_env={"env_vars": MALLOC},
            ),
        )
        try:
            result = trainer.fit()
        except Exception as error:
            raise _explained(error, run) from error
        if result.checkpoint is None:
            raise RunFailed(f"{run}: the workers ended without a checkpoint")
        with result.checkpoint.as_directory() as folder:
            return finish(recipe, data, settings, folder, target)


def _worker(config: dict[str, Any]) -> None:
    """Runs the training loop in one Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from raymotion.batch.cluster import available_cpus
    from raymotion.train.loop import train
    from raymotion.train.stream import read_with_ray
    from raymotion.train.task import Task
    from raymotion.train.workers import Workers

    # On a cluster that was already running, this process has not inherited it. Picture readers inherit it from here.
    access.Access(**config["access"]).apply()
    context = ray.train.get_context()
    kind: type[Kind] = config["kind"]
    known = of_class(kind)
    recipe = kind.recipe.model_validate(config["recipe"])
    data = TrainingSet.load(storage.join(config["run"], "data"), known.checked_inputs(recipe))
    cores = available_cpus() // context.get_local_world_size()
    # torch's threads wait for each other: one that shares its core with a decoder delays all.
    torch.set_num_threads(max(1, cores // 2 if data.streamed is not None else cores))
    # Ray Data's readers are threads of this process. While one holds the GIL, each of the training step's hundred
    # operations waits, by default for 5 ms.
    sys.setswitchinterval(SWITCH_SECONDS)
    world = context.get_world_size()

    ingest = Ingest(**config["ingest"])

    def source(portions: Sequence[Portion], reader: Reader) -> Iterator[tuple[Portion, Pictures]]:
        return read_with_ray(
            portions, data.streamed.addresses, reader, tasks=ingest.tasks, cpus_per_task=ingest.task_cpus
        )

    def report(metrics: Mapping[str, Any], folder: str | None) -> None:
        checkpoint = None if folder is None else ray.train.Checkpoint.from_directory(folder)
        ray.train.report(dict(metrics), checkpoint=checkpoint)
        if folder is not None:
            _write_progress(config["run"], metrics, folder)

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        if world == 1:
            return model
        # A batch without regions leaves their projection unused; DDP must expect that.
        return ray.train.torch.prepare_model(model, parallel_strategy_kwargs={"find_unused_parameters": True})

    with contextlib.ExitStack() as stack:
        earlier = ray.train.get_checkpoint()
        resume_from = None if earlier is None else stack.enter_context(earlier.as_directory())
        train(
            Task(recipe, data, source=source, threads=available_cpus()),
            report=report,
            resume_from=resume_from,
            workers=Workers(
                context.get_world_rank(),
                world,
                str(ray.train.torch.get_device()),
                attempt=_attempt(config["command"]),
                wrap=wrap,
                pace=pace_file(config["run"]) if context.get_world_rank() == 0 else None,
            ),
        )


def _require_free(target: str) -> None:
    if not storage.is_remote(target) and os.path.isfile(target):
        raise InputError("is a file", path=target, remedy="Name a folder with --out.")
    if storage.list_entries(target):
        raise InputError("is not empty and is not a checkpoint", path=target, remedy="Name another folder with --out.")


def _epochs_done(run: str) -> int:
    """Returns the number of epochs in the progress file; used only for display."""
    try:
        return int(records.read_record(storage.join(run, PROGRESS), needs_seal=True)["epoch"])
    except InputError:
        return 0


def _latest(run: str) -> dict[str, Any]:
    """Returns the number and the file names of the epoch from which a run resumes."""
    return records.read_record(storage.join(run, "epochs", LATEST), needs_seal=True, remedy=_start_anew(run))


def _start_anew(run: str) -> str:
    return f"Remove {run}, and run the same command again: it starts from the first epoch."


def _has_epoch(run: str) -> bool:
    """Returns whether this process or Ray has saved an epoch, even if the progress file does not list it."""
    if any(storage.exists(storage.join(run, *names)) for names in ((PROGRESS,), ("epochs", LATEST))):
        return True
    return any(name.startswith("checkpoint_") for name in storage.list_entries(storage.join(run, "train")))


def _write_progress(run: str, metrics: Mapping[str, Any], folder: str) -> None:
    """Records the metrics of the last epoch, and those of all epochs, which `folder` (see `Run.save`) holds."""
    from raymotion.train.loop import SPEED, STATE

    speeds = {line["epoch"]: {SPEED: line[SPEED]} for line in [*_history(run), metrics] if SPEED in line}
    state = json.loads(records.read_record(Path(folder, STATE))["state"])
    history = [{**line, **speeds.get(line["epoch"], {})} for line in _figures(state["history"])]
    records.write_record(storage.join(run, PROGRESS), {**_plain(metrics), HISTORY: history})


def _history(run: str) -> list[dict[str, float]]:
    """Returns the recorded metrics of all epochs so far; used only for display and loggers."""
    try:
        return list(records.read_record(storage.join(run, PROGRESS), needs_seal=True)[HISTORY])
    except (OSError, RaymotionError, KeyError):
        return []


@contextlib.contextmanager
def _followed(
    run: str, progress: Progress | None, stepped: Progress | None, tracking: Tracking, done: int
) -> Iterator[None]:
    """Calls `progress` for each epoch that rank 0 records, and `stepped` for its reports in between; logs the epochs.

    Reads them from files, since workers may run on other machines.
    """
    if progress is None and stepped is None and not tracking:
        yield
        return
    path, stop, seen = storage.join(run, PROGRESS), threading.Event(), [done]
    told = [read_pace(run)]  # left by an earlier command

    def look() -> None:
        news = None if stepped is None else read_pace(run)
        if stepped is not None and news is not None and news != told[0]:
            told[0] = news
            stepped(news)
        with contextlib.suppress(OSError, RaymotionError):
            if storage.exists(path):
                latest = records.read_record(path)
                history = latest.pop(HISTORY, [])
                if latest["epoch"] > seen[0]:
                    seen[0] = latest["epoch"]
                    tracking.log(history)
                    if progress is not None:
                        progress(latest)

    def follow() -> None:
        while not stop.wait(0.3 * interval(run)):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def _explained(error: Exception, run: str) -> RaymotionError:
    """Returns the workers' own error if the user can correct it, else a `RunFailed` with its cause."""
    if (full := _full_disk(error, run)) is not None:
        return full
    causes = list(getattr(error, "worker_failures", {}).values()) or [error]
    cause: BaseException = causes[0]
    while True:
        for candidate in (cause, getattr(cause, "_base_exc", None), getattr(cause, "cause", None)):
            if isinstance(candidate, InputError | Diverged):
                return candidate
        inner = getattr(cause, "_base_exc", None) or cause.__cause__
        if inner is None or inner is cause:
            break
        cause = inner
    reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
    return RunFailed(
        f"training failed ({type(cause).__name__}: {reason}); {_epochs_done(run)} epochs are kept, "
        "and the same command goes on from there"
    )


def _full_disk(error: Exception, run: str) -> RaymotionError | None:
    """Returns a `DiskFull` if a full disk caused the error in Ray or in a worker; names the path if the worker did."""
    for failure in [error, *getattr(error, "worker_failures", {}).values()]:
        cause: BaseException | None = failure
        while cause is not None:
            inner = getattr(cause, "_base_exc", None) or getattr(cause, "cause", None) or cause.__cause__
            if is_full(cause):
                told = next((one for one in (cause, inner) if isinstance(one, DiskFull)), None)
                return told or disk_full(run, cause)
            cause = inner if inner is not cause else None
    return None


def _figures(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    return [_plain({name: own for name, own in line.items() if name != "attempt"}) for line in history]


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
