"""Training runs that are compared with each other: each in its own folder, as many at once as there are CPUs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow.compute as pc

from raymotion import records, storage
from raymotion.batch.cluster import connect
from raymotion.batch.label_dataset import matrix_of
from raymotion.batch.progress import Progress, ProgressKind
from raymotion.config import require_same_settings
from raymotion.errors import Damaged, InputError, RaymotionError, RunFailed
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer
from raymotion.models.checkpoint import (
    CheckpointInfo,
    is_checkpoint,
    load_model,
    read_checkpoint_info,
    save_checkpoint,
)
from raymotion.models.checkpoint_files import ANSWERS
from raymotion.models.kind import Kind
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import of_class
from raymotion.stores.access import Access, current
from raymotion.train.fit import REMEDY, fit
from raymotion.train.progress import at_epoch, interval, read_pace
from raymotion.train.recipe import kind_of

RUNS = "runs"  # folder of the runs, in that of the comparison
PLAN = "_runs.json"  # names all runs that there will be, for `raymotion status`
MOST_SHOWN = 3  # running runs whose epoch is displayed


class Named(Protocol):
    """One run of a comparison."""

    @property
    def name(self) -> str:
        """The name of the run's folder."""


R = TypeVar("R", bound=Named)


class ComparisonProgress(Progress):
    """Counts the runs of a comparison on standard error and shows the epochs of those in training.

    Args:
        folder: the folder of all runs.
        names: the name of each run.
    """

    def __init__(self, kind: ProgressKind, folder: str, names: Sequence[str], *, title: str = "fine-tuning") -> None:
        super().__init__(kind, total=len(names), done=0, title=title, unit="runs")
        self._folder, self._open = folder, list(names)
        self._seen: dict[str, Mapping[str, Any]] = {}
        self._looked = -math.inf

    def ended(self, name: str) -> None:
        """Counts a finished run."""
        self._open.remove(name)
        self._seen.pop(name, None)
        self.advance(1, 0)

    def refresh(self) -> None:
        if time.monotonic() - self._looked < interval(self._folder):
            return
        self._looked = time.monotonic()
        for name in list(self._open):
            news = read_pace(outputs.run_folder(storage.join(self._folder, name)))
            if news is not None and name in self._open:
                self._seen[name] = news
                self._waiting = ""

    def note(self) -> str:
        seen = sorted(self._seen.items(), key=lambda item: -float(item[1]["at"]))
        shown = ", ".join(f"{name} {at_epoch(news)}" for name, news in seen[:MOST_SHOWN])
        return f"runs, in training: {shown}" if shown else "runs"


def require_comparison(target: str, tables: Collection[str]) -> None:
    """Raises an `InputError` if a folder holds anything that an unfinished comparison does not.

    Args:
        tables: the names of its other files, which it writes after its plan.
    """
    if strange := strange_entries(set(storage.list_entries(target)), tables):
        raise InputError(
            f"holds {strange[0]}, which is not part of a comparison",
            path=target,
            remedy="Name another folder with --out.",
        )


def require_same_comparison(
    target: str, record: str, settings: Mapping[str, Any], tables: Collection[str], *, ignore: Sequence[str]
) -> None:
    """Raises an error if a folder holds a comparison with other settings, or anything else.

    Args:
        record: the file that marks a complete comparison, in which its `settings` are.
        tables: see `require_comparison`.
        ignore: settings that may differ, because each run records its own.
    """
    path = storage.join(target, record)
    if not storage.exists(path):
        require_comparison(target, tables)
        return
    with contextlib.suppress(Damaged):  # rewritten at the end
        before = records.read_record(path)["settings"]
        require_same_settings(before, settings, where=target, remedy=REMEDY, ignore=ignore)


def write_plan(target: str, title: str, record: str, names: Sequence[str]) -> None:
    """Writes which runs a comparison has, before it writes anything else: `require_comparison` knows it by this file.

    Args:
        title: what it is, as in `carry-over`.
        record: the file that marks a complete comparison.
    """
    plan = {"title": title, "record": record, "runs": list(names)}
    records.write_record(storage.join(target, PLAN), plan)


def publish(info: CheckpointInfo, folder: str, **told: Any) -> None:
    """Writes the model of a run again, with what its training.json and card say of the whole comparison."""
    model = load_model(info.folder)
    save_checkpoint(
        folder, info.kind, model.network, model.inputs, model.outputs, training={**info.training, **told},
        answers=storage.read_table(storage.join(info.folder, ANSWERS)), domain=info.domain_bytes(),
    )  # fmt: skip


def strange_entries(there: set[str], tables: Collection[str]) -> list[str]:
    """Returns the entries of a folder that do not belong to a comparison, which writes its plan first."""
    return sorted(there - ({RUNS, PLAN, *tables} if there & {RUNS, PLAN} else set()))


def run_all(
    recipes: Sequence[tuple[R, TrainRecipe]], target: str, address: str | None, parallel: bool
) -> Iterator[tuple[R, CheckpointInfo]]:
    """Trains each recipe into `target`/runs, and yields its checkpoint; those that are finished come first.

    Args:
        parallel: as Ray tasks, as many at once as there are CPUs (or GPUs, if any); False: one after the other in this
            process.

    Raises:
        RunFailed: a task failed; the same call goes on. Else the error of a run, as `fit` raises it.
    """
    open_ = unfinished(recipes, target) if parallel else {}
    for run, recipe in recipes:
        if run.name not in open_:
            yield run, fit(recipe, folder_of(run, target)).info  # which compares the settings of a finished one
    if not open_:
        return
    with cluster_for(open_.values(), address) as gpus:
        import ray
        from ray.exceptions import RayError

        train = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=2)(train_one)
        waiting = {train.remote(*training_of(run, recipe, target)): run for run, recipe in open_.values()}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(ready)
            try:
                ray.get(ready)
            except RayError as error:
                cause = getattr(error, "cause", None)
                if isinstance(cause, RaymotionError):
                    raise cause from error
                raise RunFailed(
                    f"run {run.name} failed ({str(error).strip().splitlines()[-1]}); the same command goes on"
                ) from error
            yield run, result_of(run, target)


def folder_of(run: Named, target: str) -> str:
    """Returns the folder of a run's checkpoint, in that of the comparison."""
    return storage.join(target, RUNS, run.name)


def unfinished(recipes: Sequence[tuple[R, TrainRecipe]], target: str) -> dict[str, tuple[R, TrainRecipe]]:
    """Returns the runs without a checkpoint, by name."""
    return {run.name: (run, recipe) for run, recipe in recipes if not is_checkpoint(folder_of(run, target))}


@contextlib.contextmanager
def cluster_for(runs: Collection[tuple[R, TrainRecipe]], address: str | None) -> Iterator[int]:
    """Connects to Ray for the duration of the block, and yields the number of GPUs of each run: 1 if there are any that
    the recipe may use, else 0."""
    with connect(address):
        import ray

        wanted = all(recipe.use_gpu is not False for _, recipe in runs)
        yield 1 if wanted and ray.cluster_resources().get("GPU", 0) >= 1 else 0


def training_of(run: R, recipe: TrainRecipe, target: str) -> tuple[type[Kind], dict[str, Any], str, Access]:
    """Returns the arguments of `train_one` for a run."""
    return type(kind_of(recipe)), recipe.model_dump(mode="json"), folder_of(run, target), current()


def result_of(run: Named, target: str) -> CheckpointInfo:
    """Returns the checkpoint of a run that has ended on Ray.

    Raises:
        RunFailed: it is not here.
    """
    folder = folder_of(run, target)
    if not is_checkpoint(folder):
        raise RunFailed(
            f"run {run.name} ended on another machine, whose files are not seen here: let --out be an s3:// address, "
            "or a folder that all machines share"
        )
    return read_checkpoint_info(folder)


def train_one(kind: type[Kind], recipe: dict[str, Any], out: str, access: Access) -> None:
    """Executes one run in a Ray task with one CPU, so one thread, and the driver's access settings."""
    import torch

    access.apply()
    torch.set_num_threads(1)
    # A task of a driver that was just killed may still be writing.
    with one_writer(out, beside=True, patience=30):
        fit(of_class(kind).recipe.model_validate(recipe), out)


def read_answers(info: CheckpointInfo, split: str, ids: Sequence[str]) -> np.ndarray:
    """Returns a run's probabilities (n, L) of the samples of a split, from its checkpoint.

    Raises:
        InputError: its samples are not `ids`, in this order.
    """
    path = storage.join(info.folder, ANSWERS)
    table = storage.read_table(path)
    table = table.filter(pc.equal(table.column("split"), split))
    if table.column("sample_id").to_pylist() != list(ids):
        raise InputError(
            f"does not hold the answers to the {len(ids)} samples that are compared",
            path=path,
            remedy="Remove this run's folder; the same command trains it again.",
        )
    return matrix_of(table)
