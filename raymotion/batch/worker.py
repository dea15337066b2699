"""The actor of a batch job: reads the rows of a shard, runs the stages on them, writes the files and commits.

Pixels never leave the actor; only one small record for each shard goes back through Ray.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from raymotion import storage
from raymotion.batch.ledger import (
    DAMAGED_KEPT,
    QUARANTINE_SCHEMA,
    Attempt,
    Attempts,
    Commit,
    Manifest,
    shard_name,
    write_commit,
)
from raymotion.batch.memory import is_out_of_memory, keep_freed_memory, release_memory
from raymotion.data.parts import FileMark, list_parts, part_name, sample_name
from raymotion.errors import InputError, RaymotionError, RunFailed
from raymotion.models.domain_sample import to_bytes
from raymotion.pipeline.stages import Failure, Item, Stage, image_units
from raymotion.stores.access import Access, current
from raymotion.stores.local_files import disk_full, is_full

# Number of deaths after which a shard is given up although each of its rows succeeds alone.
MOST_DEATHS_WITHOUT_CULPRIT = 3
# Number of workers that may die while loading their models. Ray alone would retry for ever.
MOST_DEATHS_IN_SETUP = 5


class Sink(Protocol):
    """Encodes finished items as a table."""

    def encode(self, items: Sequence[Item]) -> pa.Table:
        """Encodes the good items of one shard in order; the list is empty if all rows failed."""


@dataclass(frozen=True)
class WorkerPlan:
    """The configuration of a worker.

    Attributes:
        folder: output folder.
        run_id: id of this run of the job.
        job_digest: written into each commit.
        stages: the stages in order; the first one fetches and decodes.
        sink: encodes processed items.
        batch_size: number of items (with `keep_images_together`: images) in a batch.
        decode_threads: threads that run the first stage ahead of the others; 0 runs it in turn with them.
        threads: number of torch threads.
        device: torch device.
        columns: columns of the sample table in the items, besides sample_id, image_uri and captions.
        keep_images_together: keep items of one image in one batch, and in one call of the first stage.
        access: options for stores and web addresses.
        computed: written into each commit.
        sampled: shard -> rows of features to keep of it, by the stages that sample any.
    """

    folder: str
    run_id: str
    job_digest: str
    stages: tuple[Stage, ...]
    sink: Sink
    batch_size: int
    decode_threads: int
    threads: int
    device: str
    columns: tuple[str, ...] = ()
    keep_images_together: bool = False
    access: Access = field(default_factory=current)
    computed: Mapping[str, Any] = field(default_factory=dict)
    sampled: Mapping[int, int] = field(default_factory=dict)


class ShardWorker:
    """The callable class for Ray Data: takes batches of shard numbers and returns one JSON record for each.

    Errors that end the run are returned as records too: raised in an actor they would be retried, and the user would
    see Ray's traceback.

    Args:
        own_process: False in the process of a command, whose environment stays as it is.
    """

    def __init__(self, plan: WorkerPlan, *, own_process: bool = True) -> None:
        self.plan, self.own_process = plan, own_process
        self.fitting: dict[str, int] = {}
        self.fatal: dict[str, Any] | None = None
        keep_freed_memory()
        try:
            self._set_up()
        except Exception as error:
            self.fatal = _describe(error)
        self.ready_at = time.time()

    def _set_up(self) -> None:
        plan = self.plan
        if self.own_process:
            plan.access.apply()
            # Read when a stage imports torch, which jobs without torch never do.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(plan.threads)
        self.manifest = Manifest(plan.folder, plan.columns)
        replaces = self.own_process and _replaces_another()
        self.attempts = Attempts(plan.folder, plan.run_id, replaces=replaces)
        # Read once: earlier attempts died before this process began, or left a note.
        self.left_in_quarantine = set(list_parts(plan.folder, quarantine=True))
        deaths = self.attempts.begin_setup()
        if deaths > MOST_DEATHS_IN_SETUP:
            raise RunFailed(
                f"{deaths} workers died while they loaded their models. They may lack memory: lower --workers"
            )
        for stage in plan.stages:
            stage.setup(plan.threads, plan.device)
        self.attempts.end_setup()
        self.pool = ThreadPoolExecutor(plan.decode_threads) if plan.decode_threads else None
        self.worker = f"{socket.gethostname()}:{os.getpid()}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        records = []
        for shard in batch["shard"]:
            record: dict[str, Any] = {"ready_at": self.ready_at}
            if self.fatal is None:
                try:
                    record["commit"] = asdict(self.run_shard(int(shard)))
                except Exception as error:
                    self.fatal = _describe(error)
            if self.fatal is not None:
                record["fatal"] = self.fatal
            record["done_at"] = time.time()
            records.append(json.dumps(record))
        return {"record": records}

    def run_shard(self, shard: int) -> Commit:
        """Runs and commits one shard. A row that kills the process is identified over the following attempts."""
        started = time.monotonic()
        items = [Item(row) for row in self.manifest.rows(shard)]
        for tally in self._tallies():
            tally.clear()
        self._widen(len(items))
        # Started first, to fetch pictures while the note is written.
        with _ahead(self.plan.stages[0], items):
            attempt = self.attempts.begin(shard)
            batch_size = self.plan.batch_size
            if attempt.count > 1:
                batch_size = self._find_culprit(shard, items, attempt)
            for stage in self.plan.stages:
                if (begin := getattr(stage, "begin", None)) is not None:
                    begin(shard, self.plan.sampled.get(shard, 0))
            seconds = self._run(items, batch_size)
        commit = self._write(shard, items, attempt, seconds, started)
        self.attempts.end(shard)
        return commit

    def _widen(self, rows: int) -> None:
        """Doubles the limits of the last shard, where one large picture may have set them.

        Where it did not, that costs a shard one failed attempt at most. Limits that no batch exceeds are dropped.
        """
        largest = {stage.name: rows if stage.whole_shard else self.plan.batch_size for stage in self.plan.stages}
        self.fitting = {name: 2 * most for name, most in self.fitting.items() if 2 * most < largest[name]}

    def _find_culprit(self, shard: int, items: list[Item], attempt: Attempt) -> int:
        """Identifies the row that killed a worker: runs every other row alone. Returns the batch size."""
        for row in attempt.blamed:
            items[row].failure = Failure(
                "worker", "worker_crash", "WorkerCrash", "the process died twice while this sample was worked on alone"
            )
        if not attempt.probed:
            for index, item in enumerate(items):
                if item.failure is None:
                    attempt.suspect = index
                    self.attempts.note(shard, attempt)
                    self._run([Item(item.row)], 1)
            attempt.suspect, attempt.probed = None, True
            self.attempts.note(shard, attempt)
            return self.plan.batch_size
        # Each row succeeds alone, but a batch died again: probably memory. Use smaller batches, then give up.
        if attempt.deaths_as_batch > MOST_DEATHS_WITHOUT_CULPRIT:
            raise RunFailed(
                f"{shard_name(shard)} killed its worker {attempt.count - 1} times, and none of its rows does so alone. "
                "The worker may lack memory: lower --batch-size or --workers."
            )
        return 1

    def _run(self, items: list[Item], batch_size: int) -> dict[str, float]:
        """Runs all stages on all items, `batch_size` at a time; returns the seconds of each stage."""
        first, *others = self.plan.stages
        seconds = {stage.name: 0.0 for stage in self.plan.stages}

        def timed(stage: Stage, batch: Sequence[Item]) -> None:
            clock = time.monotonic()
            _process(stage, batch, self.fitting)
            seconds[stage.name] += time.monotonic() - clock

        for batch in self._started(first, items, batch_size, seconds):
            for stage in others:
                if not stage.whole_shard:
                    timed(stage, batch)
            for item in batch:
                item.pixels = None
        for stage in others:
            if stage.whole_shard:
                timed(stage, items)
        return seconds

    def _started(
        self, stage: Stage, items: list[Item], batch_size: int, seconds: dict[str, float]
    ) -> Iterator[list[Item]]:
        """Yields batches after the first stage; with decode threads the next batch is decoded meanwhile."""
        units = image_units(items) if self.plan.keep_images_together else [[item] for item in items]
        groups = [units[i : i + batch_size] for i in range(0, len(units), batch_size)]
        batches = [[item for unit in group for item in unit] for group in groups]

        def begin(group: list[list[Item]]) -> list[Future[None]]:
            assert self.pool is not None
            return [self.pool.submit(_process, stage, unit) for unit in group]

        ahead = [begin(group) for group in groups[:2]] if self.pool else []
        for number, batch in enumerate(batches):
            clock = time.monotonic()
            if self.pool:
                for future in ahead.pop(0):
                    future.result()
                if number + 2 < len(groups):
                    ahead.append(begin(groups[number + 2]))
            else:
                _process(stage, batch, self.fitting)
            seconds[stage.name] += time.monotonic() - clock
            yield batch

    def _tallies(self) -> list[Counter[str]]:
        """Returns the counts of all stages for the current shard."""
        return [tally for stage in self.plan.stages if (tally := getattr(stage, "tally", None)) is not None]

    def _write(
        self, shard: int, items: list[Item], attempt: Attempt, seconds: dict[str, float], started: float
    ) -> Commit:
        folder = self.plan.folder
        name, left = (part_name(shard_name(shard), quarantine=quarantine) for quarantine in (False, True))
        good = [item for item in items if item.failure is None]
        bad = [(item.row, item.failure) for item in items if item.failure is not None]
        damaged = Counter({DAMAGED_KEPT: kept} if (kept := sum(item.damage is not None for item in good)) else {})
        part = _write_table(storage.join(folder, name), self.plan.sink.encode(good))
        quarantine = storage.join(folder, left)
        failed = None
        if bad:
            rows = [
                {"sample_id": row["sample_id"], "image_uri": row["image_uri"], **asdict(failure)}
                for row, failure in bad
            ]
            failed = _write_table(quarantine, pa.Table.from_pylist(rows, QUARANTINE_SCHEMA))
        elif left in self.left_in_quarantine or attempt.count > 1 or not storage.is_remote(folder):
            # A dead attempt may have left rows here that are good now.
            storage.remove(quarantine)
        sample = None
        for stage in self.plan.stages:
            if hasattr(stage, "sample") and (kept := stage.sample()) is not None:
                data = to_bytes(kept)
                storage.write_bytes(storage.join(folder, sample_name(shard_name(shard))), data)
                sample = asdict(FileMark.of(data))
        commit = Commit(
            shard=shard,
            job_digest=self.plan.job_digest,
            rows=len(items),
            good=len(good),
            quarantined=len(bad),
            by_reason=dict(sorted(Counter(failure.reason for _, failure in bad).items())),
            sha256=part.sha256,
            bytes=part.size or 0,
            tail=part.tail,
            quarantine_sha256=failed.sha256 if failed else None,
            quarantine_bytes=failed.size if failed else None,
            quarantine_tail=failed.tail if failed else None,
            seconds=round(time.monotonic() - started, 4),
            stage_seconds={name: round(value, 4) for name, value in seconds.items()},
            worker=self.worker,
            attempt=attempt.count,
            tally=dict(sorted(sum(self._tallies(), damaged).items())),
            computed=dict(self.plan.computed),
            sample=sample,
            fitting=dict(self.fitting),
        )
        write_commit(folder, commit)
        return commit


def _write_table(path: str, table: pa.Table) -> FileMark:
    data = storage.finite_parquet(path, table)
    storage.write_bytes(path, data)
    return FileMark.of(data)


def _replaces_another() -> bool:
    """Returns whether Ray started this process to replace a dead actor."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _ahead(stage: Stage, items: Sequence[Item]) -> AbstractContextManager[None]:
    """Lets a stage that reads files start fetching those of the items."""
    begin = getattr(stage, "ahead", None)
    return nullcontext() if begin is None else begin(items)


def _process(stage: Stage, batch: Sequence[Item], fitting: dict[str, int] | None = None) -> None:
    """Runs one stage on the items that have not failed. After an error it is run again by image, then by item.

    Batches that do not fit into the memory of a GPU are halved until they do.

    Args:
        fitting: largest number of images at a time, by stage, once more did not fit; changed here.
    """
    live = [item for item in batch if item.failure is None]
    if not live:
        return
    units, fitting = image_units(live), {} if fitting is None else fitting
    most = fitting.get(stage.name, len(units))
    if len(units) > most:
        for start in range(0, len(units), most):
            _process(stage, [item for unit in units[start : start + most] for item in unit], fitting)
        return
    try:
        stage.process(live)
        return
    except RaymotionError:
        raise  # not the fault of one row: stop the run
    except Exception as error:
        if is_full(error):
            raise disk_full(tempfile.gettempdir(), error) from error
        if _device_is_lost(error):
            raise RunFailed(f"the GPU failed in the stage {stage.name}: {error}. The same command goes on") from error
        if len(live) == 1:
            live[0].failure = Failure.of(stage.name, error)
            return
        too_large = is_out_of_memory(error) and len(units) > 1
    if too_large:  # here, where the error no longer holds the tensors of the batch
        release_memory()
        fitting[stage.name] = len(units) // 2
        _process(stage, live, fitting)
        return
    for unit in units if len(units) > 1 else [[item] for item in live]:
        _process(stage, unit, fitting)


def _device_is_lost(error: Exception) -> bool:
    """Returns whether a CUDA error has made the process unusable, so that every later row would fail."""
    lost = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
    return lost and not is_out_of_memory(error)


def _describe(error: Exception) -> dict[str, Any]:
    """Converts an error to data: its message for the user, its traceback for `--debug`."""
    import traceback

    known = isinstance(error, RaymotionError)
    return {
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "input_error": isinstance(error, InputError),
        "traceback": traceback.format_exc(),
    }
