"""One training run from recipe to checkpoint, through Ray Train.

While it runs, its state stands beside the output (`.NAME.run`): the prepared data and the last epoch's checkpoint.
The same command goes on from there after any crash. The output itself appears at the end, whole, and the state is
removed.
"""

from __future__ import annotations

import contextlib
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

from raymotion import records, storage
from raymotion.config import require_same_settings
from raymotion.errors import DiskFull, Diverged, InputError, RaymotionError, RunFailed
from raymotion.folders import lock as folder_lock
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
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
from raymotion.train.recipe import kind_of

Progress = Callable[[Mapping[str, Any]], None]
SETTINGS, PROGRESS, LATEST = "settings.json", "progress.json", "latest.json"
SWITCH_SECONDS = 0.0005
REMEDY = "Use the same settings, another --out, or remove the folder."


@dataclass(frozen=True)
class TrainResult:
    """What a run ended with.

    Attributes:
        info: the checkpoint, with its metrics.
        already_done: the folder held the finished result of the same settings; nothing was done.
        resumed_from: epochs of the result that an earlier, interrupted command computed.
        counts: rows of the sample table, and why some were left out.
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
) -> TrainResult:
    """Trains `recipe` and writes the checkpoint to `out`, or goes on with a run that was interrupted.

    Args:
        address: a Ray cluster; None starts Ray on this machine. With `workers: 0` Ray is not used at all.
        progress: called after each epoch with its metrics.
        stepped: called about every second with what `train.progress.Pace` tells.

    Raises:
        InputError: something in recipe, samples or features cannot be used.
        SettingsMismatch: `out` belongs to a run with other settings or other data, or is half done by other workers.
        RunFailed: the workers failed more often than `failures` allows; the same command goes on.
        Diverged: the loss or the weights are no longer finite; the run is removed.
    """
    started = time.monotonic()
    target = storage.absolute(out)
    recipe = recipe.with_absolute_paths()
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
    # Workers share out the rows and draw their own randomness, and Ray keeps its state where this process keeps none:
    # only as many workers, of the same kind, go on with a run.
    begun = {**settings, "workers": recipe.workers}
    if storage.exists(storage.join(run, SETTINGS)):
        before = records.read_record(storage.join(run, SETTINGS), remedy=_start_anew(run))
        require_same_settings(before, begun, where=run, remedy=REMEDY, ignore=recipe.places)
    else:
        records.write_record(storage.join(run, SETTINGS), begun)
    # Anew in each run: features and pictures may have moved, and files may be damaged.
    data.save(storage.join(run, "data"))
    command = uuid.uuid4().hex[:8]
    with _freed_without_an_epoch(run, target), _followed(run, progress, stepped, _epochs_done(run)):
        if recipe.workers == 0:
            with tempfile.TemporaryDirectory(prefix="raymotion-") as folder:
                _train_here(recipe, data, run, command, folder)
                info = finish(recipe, data, settings, folder, target)
        else:
            info = _train_on_ray(recipe, data, run, settings, target, address, command)
    # The checkpoint stands: what cannot be removed now is no reason to fail.
    with contextlib.suppress(OSError, RaymotionError):
        outputs.remove_claimed(run)
    earlier = [epoch for epoch in info.training["history"] if not epoch["attempt"].startswith(command)]
    return TrainResult(info, resumed_from=len(earlier), seconds=time.monotonic() - started)


@contextlib.contextmanager
def _freed_without_an_epoch(run: str, target: str) -> Iterator[None]:
    """Removes the state of a run that ended before its first epoch, or that diverged.

    It computed nothing, and must not refuse the corrected command. The epochs before a divergence are of no use to that
    either, and the same command would diverge at the same step. Where another process has taken `target` over, the
    state is that one's, and stays.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError, RaymotionError):
            if not folder_lock.is_lost(target) and (isinstance(error, Diverged) or not _has_epoch(run)):
                outputs.remove_claimed(run)
        raise


def _train_here(recipe: TrainRecipe, data: TrainingSet, run: str, command: str, into: str) -> None:
    """The loop in this process. The last report's files end up in the local folder `into`.

    In `run` a new epoch's files are complete before the old one's go: `latest.json` says which to read.
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
        records.write_record(storage.join(run, PROGRESS), _plain(metrics))
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
    """What the history says of an epoch's maker: the command, and the process that worked for it."""
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
    # How often Ray Train looks after its workers, and so how long a worker waits in each report: at Ray's 2 s a run of
    # short epochs waits more than it trains.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from raymotion.batch.cluster import available_cpus, connect, node_resources, plan_placement
    from raymotion.batch.memory import MALLOC

    decodes = data.streamed is not None
    # On a Ray of our own, workers and the tasks that decode for them share the cores as the system sees fit.
    cores = max(available_cpus(), recipe.workers)
    with connect(address, cpus=cores + recipe.workers if decodes else cores):
        import ray.train
        from ray.train.torch import TorchTrainer

        nodes = node_resources()
        use_gpu = any(node.get("GPU", 0) >= 1 for node in nodes) if recipe.use_gpu is None else recipe.use_gpu
        plan = plan_ingest(recipe, nodes, decodes=decodes)
        # Ray Train would wait for a place that never comes.
        plan_placement(recipe.workers, plan.worker_cpus, float(use_gpu), nodes=nodes, autoscale=recipe.autoscale)
        filesystem, path = storage.arrow_filesystem(run)

        class Trainer(TorchTrainer):
            def _register_sigint_handler(self, controller: Any) -> None:
                """Leaves Ctrl-C to the command: Ray Train's own way takes it to end well, with the code 0."""

        trainer = Trainer(
            _worker,
            train_loop_config={
                "recipe": recipe.model_dump(mode="json"),
                # The class: a kind that was registered here is not known to the workers.
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
                # Ray finds an earlier run by this name alone; that its settings are these, `fit` has seen to.
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
    """One Ray Train worker."""
    import ray.train
    import ray.train.torch
    import torch

    from raymotion.batch.cluster import available_cpus
    from raymotion.train.loop import train
    from raymotion.train.stream import read_with_ray
    from raymotion.train.task import Task
    from raymotion.train.workers import Workers

    # On a cluster that ran before, this process has not inherited it. Readers of pictures take it on from here.
    access.Access(**config["access"]).apply()
    context = ray.train.get_context()
    kind: type[Kind] = config["kind"]
    known = of_class(kind)
    recipe = kind.recipe.model_validate(config["recipe"])
    data = TrainingSet.load(storage.join(config["run"], "data"), known.inputs(recipe))
    cores = available_cpus() // context.get_local_world_size()
    # torch's threads wait for each other: one that shares its core with a decoder holds up all.
    torch.set_num_threads(max(1, cores // 2 if data.streamed is not None else cores))
    # Ray Data's readers are threads of this process. While one holds Python's lock the training step waits, by default
    # for 5 ms, at each of its hundred operations.
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
            records.write_record(storage.join(config["run"], PROGRESS), _plain(metrics))

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        if world == 1:
            return model
        # A batch without regions leaves their projection unused, which DDP has to be told.
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
    """Epochs that the progress of a run tells of; nothing but what is shown hangs on it."""
    try:
        return int(records.read_record(storage.join(run, PROGRESS), needs_seal=True)["epoch"])
    except InputError:
        return 0


def _latest(run: str) -> dict[str, Any]:
    """Which epoch's files a run goes on from."""
    return records.read_record(storage.join(run, "epochs", LATEST), needs_seal=True, remedy=_start_anew(run))


def _start_anew(run: str) -> str:
    return f"Remove {run}, and run the same command again: it starts from the first epoch."


def _has_epoch(run: str) -> bool:
    """Whether an epoch was kept, by this process or by Ray; its mark in the progress file may be missing."""
    if any(storage.exists(storage.join(run, *names)) for names in ((PROGRESS,), ("epochs", LATEST))):
        return True
    return any(name.startswith("checkpoint_") for name in storage.list_entries(storage.join(run, "train")))


@contextlib.contextmanager
def _followed(run: str, progress: Progress | None, stepped: Progress | None, done: int) -> Iterator[None]:
    """Calls `progress` for each epoch that rank 0 writes down, and `stepped` for what it writes between.

    Through files, since workers may be on other machines.
    """
    if progress is None and stepped is None:
        yield
        return
    path, stop, seen = storage.join(run, PROGRESS), threading.Event(), [done]
    told = [read_pace(run)]  # an earlier run's

    def look() -> None:
        news = None if stepped is None else read_pace(run)
        if stepped is not None and news is not None and news != told[0]:
            told[0] = news
            stepped(news)
        with contextlib.suppress(OSError, RaymotionError):
            if progress is not None and storage.exists(path):
                latest = records.read_record(path)
                if latest["epoch"] > seen[0]:
                    seen[0] = latest["epoch"]
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
    """The workers' own error where it is the user's to mend, else a `RunFailed` with its cause."""
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
    """A disk that is full, wherever Ray or a worker met it; it names the path if the worker did."""
    for failure in [error, *getattr(error, "worker_failures", {}).values()]:
        cause: BaseException | None = failure
        while cause is not None:
            inner = getattr(cause, "_base_exc", None) or getattr(cause, "cause", None) or cause.__cause__
            if is_full(cause):
                told = next((one for one in (cause, inner) if isinstance(one, DiskFull)), None)
                return told or disk_full(run, cause)
            cause = inner if inner is not cause else None
    return None


def _plain(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
