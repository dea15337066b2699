"""Runs any batch job: planning, preflight, execution on Ray Data, resuming, and final checks.

After any crash the same command continues after the last commit; the resulting files are the same.
"""

from __future__ import annotations

import contextlib
import html
import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from raymotion import interrupts, storage
from raymotion.batch import ledger, verify
from raymotion.batch.card import write_card
from raymotion.batch.cluster import Placement, available_cpus, connect, node_resources, plan_placement
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.preflight import (
    check_folder,
    check_image_folders,
    computed_with,
    free_if_nothing_committed,
    input_digest,
    new_record,
    read_record,
    require_same_pictures_as_before,
)
from raymotion.batch.progress import Progress, ProgressKind
from raymotion.batch.quiet import quiet_ray_data, without_noise
from raymotion.batch.spec import REMEDY, JobSettings, JobSpec, resolve_precision, with_its_access
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.config import digest_of, require_same_settings
from raymotion.data.parts import FORMAT, JOB, QUARANTINE, write_job
from raymotion.data.samples import read_samples, with_optional
from raymotion.errors import Damaged, InputError, RaymotionError, RunFailed
from raymotion.folders import lock as folder_lock
from raymotion.folders.lock import one_writer_of
from raymotion.stores import access

# How often damaged shards are processed again before the job fails: once may be a flipped bit, more is the disk.
MOST_REPAIRS = 2
# How the notices on smaller batches begin, by which those of earlier runs are found.
MEMORY_TOO_SMALL = "The GPU's memory was too small for the batches of the stage"


@dataclass(frozen=True)
class JobSummary:
    """The result of a job; `record` is the content of the record file in its folder."""

    folder: str
    record: Mapping[str, Any] = field(repr=False)
    already_complete: bool

    @property
    def counts(self) -> Mapping[str, Any]:
        """The number of rows in, good and quarantined, and of failures by reason."""
        return dict(self.record["counts"])

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: the verdict, the counts and the folder."""
        lines = [(self.record.get(check) or {}).get("headline") for check in ("collapse", "domain")]
        lines += self.record.get("notices", ())
        reasons = [f"{number} {reason}" for reason, number in self.counts["by_reason"].items()]
        lines.append(
            f"{self.counts['in']} in = {self.counts['good']} good + {self.counts['quarantined']} in quarantine"
        )
        return "<br>".join(html.escape(line) for line in [*lines, *reasons, self.folder] if line)


def run_job(spec: JobSpec, *, address: str | None = None, progress: ProgressKind = "auto") -> JobSummary:
    """Runs the job, resumes it, or returns its result if it is complete.

    Raises:
        InputError: before any work: unreadable input, a missing image folder, a plan that does not fit on the cluster,
            or pictures other than those of the features.
        SettingsMismatch: the folder belongs to other settings or other input, or pictures of its rows have changed.
        AccessDenied: a file or folder may not be read or written; also during a run.
        RunFailed: more rows failed than `max_failed` allows, or the workers died; committed shards are kept.
    """
    return _run_job(spec.settings, spec, address, progress)


@with_its_access
@one_writer_of("settings.out")
def _run_job(settings: JobSettings, spec: JobSpec, address: str | None, progress: ProgressKind) -> JobSummary:
    folder = storage.absolute(spec.settings.out)
    samples = with_optional(read_samples(spec.settings.samples), spec.columns)
    if not samples.num_rows:
        raise InputError("holds no samples", path=spec.settings.samples)
    more_notices = (spec.check(samples) if spec.check is not None else None) or ()
    if spec.keep_images_together:
        samples = ledger.by_image(samples)
    free_if_nothing_committed(folder)
    lost: Damaged | None = None
    try:
        old = read_record(folder, spec.kind)
    except Damaged as error:
        old, lost = None, error
    shard_rows = spec.settings.shard_rows or ledger.default_shard_rows(
        samples.num_rows, spec.most_shard_rows, remote=storage.is_remote(folder)
    )
    identity = {
        "format": FORMAT,
        "kind": spec.kind,
        "input": {"rows": samples.num_rows, "digest": input_digest(samples, spec.columns)},
        "shard_rows": shard_rows,
        **spec.identity,
    }
    if spec.images != "none":
        identity["damaged"] = spec.settings.damaged
    here = spec.settings.runs_here(samples.num_rows, address)
    here = here and (spec.settings.workers == 0 or not _is_connected())
    digest = digest_of(identity)
    if old is not None:
        require_same_settings(old["identity"], identity, where=folder, remedy=REMEDY)
    sizes = ledger.shard_sizes(samples, shard_rows, keep_images_together=spec.keep_images_together)
    commits, faults = verify.survey(folder, digest, sizes, digests=spec.settings.verify)
    if old is not None and spec.images != "none":
        require_same_pictures_as_before(folder, commits, samples, old)
    if old is None and not commits:
        if lost is not None:
            raise lost
        check_folder(folder)
    verify.require_own_parts(folder, len(sizes))
    if old is not None and old["status"] == "complete" and len(commits) == len(sizes):
        return JobSummary(folder, old, True)
    if spec.images != "none":
        check_image_folders(samples, required=spec.images == "required")
    record = old or new_record(spec, identity, digest, samples)
    notices = record.setdefault("notices", [])
    notices += [notice for notice in more_notices if notice not in notices]
    if old is None and commits:
        verify.warn(f"{folder}: {JOB} is lost; rewriting it from {len(commits)} commits of this job")
        record["computed"] = next(iter(commits.values())).computed
    started = time.time()
    run: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)), "status": "running"}
    record["runs"], record["status"] = [*record["runs"], run], "running"
    if ledger.write_manifest(folder, samples, sizes):
        verify.warn(f"{storage.join(folder, ledger.MANIFEST)} was damaged; rewriting it from the input")
    del samples
    run["resumed_from_shards"] = len(commits)

    def ended_early(status: str, reason: str) -> None:
        if folder_lock.is_lost(folder):
            return
        run.update(status=status, reason=reason[:500])
        record["status"] = status
        # Report why the run ended, even if the store fails now.
        with contextlib.suppress(Exception), access.using(patience=0):
            write_job(folder, record)
            free_if_nothing_committed(folder)

    done, throughput = 0, None
    try:
        write_job(folder, record)  # before anything is removed: a folder under repair is not complete
        if faults:
            run["done_again"] = verify.redo(folder, faults)
        for repair in range(MOST_REPAIRS + 1):
            todo = verify.left(len(sizes), commits)
            done += len(todo)
            if todo:
                with (
                    interrupts.on_forced_end(lambda: ended_early("interrupted", "")),
                    contextlib.nullcontext() if here else connect(address),
                ):
                    now = _run_shards(spec, folder, digest, sizes, todo, commits, progress, started, record, here)
                throughput = {**(throughput or now), "last_done_at": now["last_done_at"]}
            # All output is read once more before the job is complete; with nothing to do, `survey` has just done so.
            faults = verify.faulty_files(folder, commits, digests=True) if todo or not spec.settings.verify else {}
            if not faults:
                break
            if repair == MOST_REPAIRS:
                _stop_for_damage(folder, faults)
            run["done_again"] = [*run.get("done_again", []), *verify.redo(folder, faults)]
            for shard in faults:
                del commits[shard]
        _close(spec, folder, record, commits, sizes)
    except BaseException as error:
        interrupted = interrupts.stopping() or not isinstance(error, Exception)
        ended_early("interrupted" if interrupted else "failed", str(error))
        raise
    ended = time.time()
    run.update(status="complete", seconds=round(ended - started, 2), shards=done)
    if throughput is not None:
        throughput["seconds"] = round(ended - started, 2)
        throughput["finish_seconds"] = round(ended - throughput.pop("last_done_at"), 2)
        record["throughput"] = throughput
    ledger.remove_attempts(folder)
    write_card(folder, record)
    write_job(folder, record)
    return JobSummary(folder, record, False)


def _run_shards(
    spec: JobSpec,
    folder: str,
    digest: str,
    sizes: list[int],
    todo: list[int],
    commits: dict[int, ledger.Commit],
    progress: ProgressKind,
    started: float,
    record: dict[str, Any],
    here: bool,
) -> dict[str, Any]:
    """Runs the remaining shards in a pool of actors, or here, and adds to `commits`; returns measurements."""
    settings = spec.settings
    if here:
        # One thread for the model, as a worker of Ray has: sums depend on their number, and the files must not.
        placement = Placement(0, settings.cpus_per_worker or 1.0, float(spec.gpu and _has_gpu()))
    else:
        placement = plan_placement(
            settings.workers,
            settings.cpus_per_worker,
            0 if settings.gpus_per_worker is None and not spec.gpu else settings.gpus_per_worker,
            nodes=node_resources(),
            autoscale=settings.autoscale,
        )
    workers = min(placement.workers, len(todo))
    device = "cuda" if placement.gpus else "cpu"
    threads = settings.decode_threads
    batch_size = settings.batch_size or spec.default_batch[bool(placement.gpus)]
    computed = computed_with(device, resolve_precision(settings, device), batch_size)
    require_same_settings(record.setdefault("computed", computed), computed, where=folder, remedy=REMEDY)
    write_job(folder, record)
    plan = WorkerPlan(
        folder=folder,
        run_id=uuid.uuid4().hex[:12],
        job_digest=digest,
        stages=spec.make_stages(device),
        sink=spec.sink,
        batch_size=batch_size,
        decode_threads=threads if threads is not None else _spare_threads(placement, here),
        threads=max(1, int(placement.cpus)),
        device=device,
        columns=spec.columns,
        keep_images_together=spec.keep_images_together,
        computed=computed,
        sampled=ledger.sampled_shards(len(sizes)),
    )
    total = sum(sizes)
    allowed = settings.rows_that_may_fail(total)
    quarantined = sum(commit.quarantined for commit in commits.values())
    unit = "samples" if spec.keep_images_together else "images"  # samples may share an image
    done = sum(commit.rows for commit in commits.values())
    with (
        Progress(progress, total=total, done=done, title=spec.kind, unit=unit) as bar,
        # Closed at once if the loop ends with an error, so that the actors end and the terminal is restored.
        contextlib.closing(
            _run_here(plan, todo) if here else _stream(plan, workers, placement.cpus, placement.gpus, todo)
        ) as answers,
    ):
        place = "this process, without Ray (--workers 1 or more starts it)" if here else placement.describe()
        bar.waiting(f"{place}, {device}: starting")
        for answer in answers:
            if "fatal" in answer:
                _raise_fatal(answer["fatal"])
            commit = ledger.Commit(**answer["commit"])
            commits[commit.shard] = commit
            quarantined += commit.quarantined
            bar.advance(commit.rows, commit.quarantined, ready_at=answer["ready_at"], done_at=answer["done_at"])
            if quarantined > allowed and quarantined:
                _note_memory(spec, record, commits)
                _stop_for_failures(spec, commits, quarantined, total)
    missing = [shard for shard in todo if shard not in commits]
    if missing:
        raise RunFailed(f"Ray ended without {len(missing)} of {len(sizes)} shards. The same command goes on")
    rate = bar.rate
    stage_seconds: Counter[str] = Counter()
    for shard in todo:
        stage_seconds.update(commits[shard].stage_seconds)
    busy = sum(stage_seconds.values())
    return {
        "images": rate.rows,
        "unit": unit,
        "images_per_second": round(rate.per_second or 0.0, 2),
        "startup_seconds": round(rate.ready_at - started, 2),
        "steady_seconds": round(rate.seconds, 2),
        "last_done_at": rate.done_at,
        "workers": workers,
        "cpus_per_worker": placement.cpus,
        "gpus_per_worker": placement.gpus,
        "decode_seconds": round(stage_seconds.get("decode", 0.0), 2),
        "model_seconds": round(busy - stage_seconds.get("decode", 0.0), 2),
        "stage_seconds": {name: round(value, 2) for name, value in sorted(stage_seconds.items())},
    }


def _spare_threads(placement: Placement, here: bool) -> int:
    """Returns how many threads decode ahead: on CPUs alone they would compete with the other workers' models."""
    if placement.gpus:
        return max(1, available_cpus() - 1 if here else int(placement.cpus))
    return min(4, available_cpus() - int(placement.cpus)) if here and available_cpus() > placement.cpus else 0


def _is_connected() -> bool:
    """Returns whether this process has connected to Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _has_gpu() -> bool:
    """Returns whether PyTorch can use a GPU of this machine."""
    import torch

    return torch.cuda.is_available()


def _run_here(plan: WorkerPlan, shards: list[int]) -> Generator[dict[str, Any], None, None]:
    """Runs shards in this process and yields their records. A picture that ends the process ends the command."""
    # A stage sets the number of torch's threads; a notebook goes on with its own.
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        worker = ShardWorker(plan, own_process=False)
        for shard in shards:
            (record,) = worker({"shard": [shard]})["record"]
            yield json.loads(record)
    finally:
        if (torch := sys.modules.get("torch")) is not None:
            torch.set_num_threads(before or available_cpus())


def _stream(
    plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]
) -> Generator[dict[str, Any], None, None]:
    """Sends shard numbers through a fixed pool of actors on Ray Data and yields their records as they arrive."""
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    # A dead worker is replaced and its shard started again, as often as necessary: each attempt blames a row or
    # ends the run (worker.py). The first actor that is ready begins: the preflight has found room for the others.
    context.wait_for_min_actors_s = -1
    _start_helpers()
    with without_noise(), quiet_ray_data(), _data_context(context):
        # In memory: reading a file would cost a task, a CPU that the pool needs, and one block for all shards.
        dataset = ray.data.from_arrow([pa.table({"shard": [shard]}) for shard in shards])
        dataset = dataset.map_batches(
            ShardWorker,
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            fn_constructor_args=(plan,),
            num_cpus=cpus,
            num_gpus=gpus or None,
        )
        try:
            for row in dataset.iter_rows():
                yield json.loads(row["record"])
        except RayError as error:
            raise RunFailed(
                f"Ray ended the run: {str(error).strip().splitlines()[-1]}. "
                "What was committed stays; the same command goes on"
            ) from error


def _start_helpers() -> None:
    """Starts Ray Data's two helper actors before ours.

    By default Ray Data starts them with the first task; their imports (2.5 s of CPU each) then compete with the model
    for the cores: 15 % of a short job on two cores. Ray Data uses the actors started here instead.
    """
    with contextlib.suppress(ImportError, AttributeError):  # Ray's internals: if they change, only time is lost
        from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_stats_actor()
        get_or_create_autoscaling_coordinator()


@contextlib.contextmanager
def _data_context(context: Any) -> Iterator[None]:
    from ray.data import DataContext

    with DataContext.current(context):
        yield


def _raise_fatal(fatal: Mapping[str, Any]) -> None:
    error = InputError(fatal["message"]) if fatal["input_error"] else RunFailed(fatal["message"])
    error.add_note("in the worker:\n" + fatal["traceback"])
    raise error


def _stop_for_failures(spec: JobSpec, commits: Mapping[int, ledger.Commit], quarantined: int, total: int) -> None:
    reasons: Counter[str] = Counter()
    for commit in commits.values():
        reasons.update(commit.by_reason)
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(3))
    example = ""
    with contextlib.suppress(RaymotionError, OSError):  # it only explains
        columns = ["sample_id", "message"]
        _, table = next(read_parts(storage.absolute(spec.settings.out), columns, quarantine=True, complete=False))
        first = table.slice(0, 1).to_pylist()[0]
        example = f", such as {first['sample_id']}: {first['message']}"
    allowed = f"more than --max-failed {spec.settings.max_failed:g} allows"
    raise RunFailed(
        f"{quarantined} of {total} samples failed ({listed}{example}), {allowed}. See "
        f"{storage.join(spec.settings.out, QUARANTINE)}; what was committed stays, and a larger --max-failed goes on"
    )


def _stop_for_damage(folder: str, faults: Mapping[int, str]) -> None:
    shard, reason = next(iter(faults.items()))
    raise RunFailed(
        f"{storage.join(folder, ledger.shard_name(shard))}: {reason}, though it was made {MOST_REPAIRS + 1} times"
        f"{f' (and {len(faults) - 1} more shards)' if len(faults) > 1 else ''}. Something changes the files while the "
        "job runs, or the disk is failing: see to that, and the same command goes on"
    )


def _close(
    spec: JobSpec, folder: str, record: dict[str, Any], commits: Mapping[int, ledger.Commit], sizes: list[int]
) -> None:
    """Checks that every input row is in exactly one committed shard, as good or as quarantined."""
    reasons: Counter[str] = Counter()
    for commit in commits.values():
        reasons.update(commit.by_reason)
    record["counts"] = {
        "in": sum(sizes),
        "good": sum(commit.good for commit in commits.values()),
        "quarantined": sum(commit.quarantined for commit in commits.values()),
        "by_reason": dict(sorted(reasons.items())),
    }
    if spec.settings.damaged == "keep":
        record["counts"][ledger.DAMAGED_KEPT] = sum(c.tally.get(ledger.DAMAGED_KEPT, 0) for c in commits.values())
    shards = [commits[shard] for shard in range(len(sizes))]
    record["shards"] = [
        {
            "name": ledger.shard_name(commit.shard),
            "in": commit.rows,
            "good": commit.good,
            "quarantined": commit.quarantined,
        }
        for commit in shards
    ]
    wrong = [commit.shard for commit, size in zip(shards, sizes, strict=True) if commit.rows != size]
    counts = record["counts"]
    if wrong or counts["in"] != counts["good"] + counts["quarantined"]:
        raise RunFailed(f"the books do not close: {counts}, shards {wrong[:5]}. Remove the folder and report this")
    _note_memory(spec, record, commits)
    if counts["quarantined"] > spec.settings.rows_that_may_fail(counts["in"]):
        _stop_for_failures(spec, commits, counts["quarantined"], counts["in"])
    if spec.finish is not None:
        record.update(spec.finish(folder))
        _note_memory(spec, record, commits)  # a job may give all its notices anew
    record["status"] = "complete"


def _note_memory(spec: JobSpec, record: dict[str, Any], commits: Mapping[int, ledger.Commit]) -> None:
    """Notes which stages went on with smaller batches than they were given, in place of what earlier runs noted."""
    least: dict[str, int] = {}
    for commit in commits.values():
        for stage, images in commit.fitting.items():
            least[stage] = min(images, least.get(stage, images))
    # Others take whole shards, and divide them by a size of their own.
    takes_batches = {stage.name for stage in spec.make_stages("cpu") if not stage.whole_shard} if least else set()
    record["notices"] = [
        *(notice for notice in record["notices"] if not notice.startswith(MEMORY_TOO_SMALL)),
        *(
            f"{MEMORY_TOO_SMALL} {stage}, which went on with as few as {images} image{'s' if images != 1 else ''} at a "
            f"time.{' A lower --batch-size fits from the start.' if stage in takes_batches else ''}"
            for stage, images in sorted(least.items())
        ),
    ]
