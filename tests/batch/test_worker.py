"""One worker without Ray: what it writes, how it isolates a bad row, and a row that kills the process for real."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from raymotion.batch import ledger
from raymotion.batch.job import run_job
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.data.samples import read_samples
from raymotion.errors import RunFailed
from raymotion.pipeline.stages import DecodeImages, Item, Stage


@pytest.fixture
def plan(tmp_path: Path, mean_sink: Any) -> Callable[..., WorkerPlan]:
    def make(table: Path, *stages: Stage, out: str = "out", shard_rows: int = 5, **changes: Any) -> WorkerPlan:
        folder = tmp_path / out
        if not (folder / "_manifest.pq").exists():
            samples = read_samples(table)
            ledger.write_manifest(str(folder), samples, ledger.shard_sizes(samples, shard_rows))
        fields = {
            "folder": str(folder), "run_id": "run", "job_digest": "d", "stages": (DecodeImages(), *stages),
            "sink": mean_sink(), "batch_size": 2, "decode_threads": 0, "threads": 1, "device": "cpu",
        }  # fmt: skip
        return WorkerPlan(**{**fields, **changes})

    return make


def run_all(plan: WorkerPlan, shards: int) -> list[ledger.Commit]:
    worker = ShardWorker(plan)
    assert worker.fatal is None
    return [worker.run_shard(shard) for shard in range(shards)]


def ids(folder: str, name: str) -> list[str]:
    return list(pq.read_table(f"{folder}/{name}").column("sample_id").to_pylist())


def test_good_and_bad_rows_part_and_the_books_close(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    made = plan(write_table(12, damaged={1: "image_truncated", 6: "image_empty"}, missing=[11]), mean_stage())
    commits = run_all(made, 3)
    assert [(c.rows, c.good, c.by_reason) for c in commits] == [
        (5, 4, {"image_truncated": 1}),
        (5, 4, {"image_empty": 1}),
        (2, 1, {"image_missing": 1}),
    ]
    assert ids(made.folder, "data/part-00000.parquet") == ["x:0", "x:2", "x:3", "x:4"]
    bad = pq.read_table(f"{made.folder}/_quarantine/part-00000.pq").to_pylist()
    assert [(row["sample_id"], row["stage"], row["error"]) for row in bad] == [("x:1", "decode", "ImageTruncated")]
    assert bad[0]["message"] and bad[0]["image_uri"].endswith("00001.jpg")


@pytest.mark.parametrize("threads", [0, 3])
def test_rows_with_a_damaged_picture_that_is_kept_are_counted(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any, threads: int
) -> None:
    """The rows that fail later are not, and a batch that is run again counts once."""
    table = write_table(7, damaged={1: "image_truncated", 2: "image_damaged", 3: "image_damaged", 6: "image_empty"})
    stages = (DecodeImages(damaged="keep"), mean_stage(fail_at=["x:3"]))
    first, second = run_all(plan(table, stages=stages, batch_size=5, decode_threads=threads), 2)
    assert (first.good, first.by_reason, first.tally) == (4, {"stage_error": 1}, {"damaged_kept": 2})
    assert (second.good, second.by_reason, second.tally) == (1, {"image_empty": 1}, {})


def test_a_shard_of_bad_rows_only_still_commits(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    made = plan(write_table(3, damaged=dict.fromkeys(range(3), "image_empty")), mean_stage())
    (commit,) = run_all(made, 1)
    assert (commit.good, commit.quarantined) == (0, 3)
    table = pq.read_table(f"{made.folder}/data/part-00000.parquet")
    assert table.num_rows == 0 and table.schema.field("mean").type == "double"


def test_a_row_that_breaks_its_batch_is_isolated(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    made = plan(write_table(5), mean_stage(fail_at=["x:2"]), batch_size=5)
    (commit,) = run_all(made, 1)
    assert (commit.good, commit.by_reason) == (4, {"stage_error": 1})
    bad = pq.read_table(f"{made.folder}/_quarantine/part-00000.pq").to_pylist()
    assert (bad[0]["stage"], bad[0]["error"], bad[0]["message"]) == ("mean", "RuntimeError", "no mean of x:2")


def test_decode_threads_change_no_byte(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any, digests: Any
) -> None:
    table = write_table(11, damaged={3: "image_truncated"})
    plain, threaded = plan(table, mean_stage(), out="a"), plan(table, mean_stage(), out="b", decode_threads=4)
    run_all(plain, 3)
    run_all(threaded, 3)
    assert digests(Path(plain.folder)) == digests(Path(threaded.folder)) != {}


def _attempt(plan: WorkerPlan) -> None:
    ShardWorker(plan).run_shard(0)


def test_a_row_that_kills_the_process_is_blamed_and_its_neighbours_are_kept(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any, digests: Any
) -> None:
    """Real processes that really die; what Ray does by replacing the actor is done here by hand."""
    table = write_table(5)
    made = plan(table, mean_stage(die_at=["x:1", "x:3"]))
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(8):
        process = context.Process(target=_attempt, args=(made,))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    # In a batch; alone, twice for row 1 and twice for row 3; then through.
    assert codes == [11, 11, 11, 11, 11, 0]
    assert ids(made.folder, "data/part-00000.parquet") == ["x:0", "x:2", "x:4"]
    bad = pq.read_table(f"{made.folder}/_quarantine/part-00000.pq").to_pylist()
    assert [(row["sample_id"], row["reason"]) for row in bad] == [("x:1", "worker_crash"), ("x:3", "worker_crash")]
    # The good rows are those that a job without the two would have given.
    assert not list(Path(made.folder, "_attempts").rglob("*.json"))


class DieInBatches:
    """Kills the process whenever more than `limit` items come at once: a batch that does not fit into memory."""

    name = "hungry"
    whole_shard = False

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        import os

        if len(items) > self.limit:
            os._exit(9)
        for item in items:
            item.output["mean"] = 0.0


def test_a_batch_that_is_too_large_ends_in_single_rows(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan]
) -> None:
    made = plan(write_table(4), DieInBatches(1), batch_size=4)
    context = multiprocessing.get_context("fork")
    codes = []
    for _ in range(4):
        process = context.Process(target=_attempt, args=(made,))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
        if process.exitcode == 0:
            break
    # As a batch; each row alone, which none dies of, and as a batch again; row by row.
    assert codes == [9, 9, 0]
    assert ids(made.folder, "data/part-00000.parquet") == ["x:0", "x:1", "x:2", "x:3"]


def test_a_shard_that_dies_for_no_row_is_given_up(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    made = plan(write_table(4), mean_stage())
    attempts = ledger.Attempts(made.folder, made.run_id)
    attempts.note(0, ledger.Attempt(count=6, probed=True, deaths_as_batch=3))
    worker = ShardWorker(made)
    with pytest.raises(RunFailed, match="part-00000 killed its worker 6 times"):
        worker.run_shard(0)


def test_a_quarantine_file_of_an_attempt_that_died_is_not_left_behind(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    """An attempt quarantined row 1 and died before its commit; now the row is good: it is to be in one place only."""
    made = plan(write_table(3), mean_stage(fail_at=["x:1"]))
    run_all(made, 1)
    assert ids(made.folder, "_quarantine/part-00000.pq") == ["x:1"]
    (commit,) = run_all(plan(write_table(3, name="again"), mean_stage()), 1)
    assert commit.good == 3 and not Path(made.folder, "_quarantine/part-00000.pq").exists()


class LostDevice:
    name = "gpu"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_lost_gpu_is_no_bad_row(write_table: Callable[..., Path], plan: Callable[..., WorkerPlan]) -> None:
    with pytest.raises(RunFailed, match="the GPU failed in the stage gpu"):
        ShardWorker(plan(write_table(3), LostDevice())).run_shard(0)


class OutOfMemory:
    name = "large"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        for item in items:
            if item.row["sample_id"] == "x:1":
                raise MemoryError("unable to allocate 9 GiB")
            item.output["mean"] = 0.0


def test_a_picture_that_does_not_fit_into_memory_is_a_bad_row(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan]
) -> None:
    made = plan(write_table(3), OutOfMemory())
    assert ShardWorker(made).run_shard(0).by_reason == {"stage_error": 1}


class SmallGpu:
    """Has memory for so many pictures at a time, and none at all for `too_large`."""

    name = "small"
    whole_shard = False

    def __init__(self, most: int, too_large: str | None = None) -> None:
        self.most, self.too_large, self.asked = most, too_large, list[int]()

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        import torch

        self.asked.append(len(items))
        if len(items) > self.most or any(item.row["sample_id"] == self.too_large for item in items):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        for item in items:
            item.output["mean"] = 0.0


def test_batches_that_do_not_fit_into_a_gpu_are_halved(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan]
) -> None:
    """Once for the shard, and one attempt more for each after it: an attempt costs as long as a batch."""
    stage = SmallGpu(2)
    first, second = run_all(plan(write_table(32), stage, batch_size=8, shard_rows=16), 2)
    assert stage.asked == [8, 4, *[2] * 8, 4, *[2] * 8]
    assert (first.good, first.fitting) == (16, {"small": 2}) == (second.good, second.fitting)


@pytest.mark.parametrize(("whole_shard", "batch_size"), [(False, 8), (True, 2)])
def test_batches_grow_again_after_a_picture_too_large_for_a_gpu(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], whole_shard: bool, batch_size: int
) -> None:
    stage = SmallGpu(8, "x:1")
    stage.whole_shard = whole_shard
    commits = run_all(plan(write_table(40), stage, batch_size=batch_size, shard_rows=8), 5)
    assert commits[0].by_reason == {"stage_error": 1} and sum(commit.good for commit in commits) == 39
    assert stage.asked == [8, 4, 2, *[1] * 8, 2, 2, 2, 2, 4, 4, 8, 8]
    assert [commit.fitting for commit in commits] == [{"small": 1}, {"small": 2}, {"small": 4}, {}, {}]


@pytest.mark.parametrize(("whole_shard", "remedy"), [(False, " A lower --batch-size fits from the start."), (True, "")])
def test_a_job_says_that_its_batches_did_not_fit(
    write_table: Callable[..., Path], mean_job: Callable[..., Any], tmp_path: Path, whole_shard: bool, remedy: str
) -> None:
    """A stage that takes whole shards divides them by a size of its own, so the option is no remedy."""
    settings = {"samples": write_table(12), "out": tmp_path / "out", "shard_rows": 6, "batch_size": 6, "workers": 0}
    stage = SmallGpu(3)
    stage.whole_shard = whole_shard
    # A job may end with notices in place of those that it began with.
    spec = dataclasses.replace(mean_job(stage=stage, **settings), finish=lambda _: {"notices": ["Labels are alike."]})
    record = run_job(spec, progress="none").record
    assert record["counts"]["good"] == 12
    assert record["notices"] == [
        "Labels are alike.",
        "The GPU's memory was too small for the batches of the stage small, which went on with as few as 3 images at a "
        f"time.{remedy}",
    ]


def test_a_job_with_too_many_failures_says_so_too_and_the_next_run_says_it_anew(
    write_table: Callable[..., Path], mean_job: Callable[..., Any], tmp_path: Path
) -> None:
    settings = {"samples": write_table(8), "out": tmp_path / "out", "batch_size": 4, "shard_rows": 4, "workers": 0}
    record, copy = tmp_path / "out/_job.json", tmp_path / "out/__job.json"
    for _ in range(3):
        # The first two runs are stopped after a shard each, the third has nothing to do. None sees what the last noted.
        record.unlink(missing_ok=True)
        copy.unlink(missing_ok=True)
        with pytest.raises(RunFailed, match="1 of 8 samples failed"):
            run_job(mean_job(stage=SmallGpu(2, "x:1"), max_failed=0, **settings), progress="none")
        told = json.loads(record.read_text())["notices"]
        assert len(told) == 1 and "as few as 1 image at a time" in told[0]
    # The shard of the large picture is done again, on a GPU with more room for it.
    (tmp_path / "out/_commits/part-00000.json").unlink()
    (told,) = run_job(mean_job(stage=SmallGpu(2), max_failed=0, **settings), progress="none").record["notices"]
    assert "as few as 2 images at a time" in told


def test_errors_of_the_run_come_back_as_a_record(
    write_table: Callable[..., Path], plan: Callable[..., WorkerPlan], mean_stage: Any
) -> None:
    made = plan(write_table(2), mean_stage())
    Path(made.folder, "_manifest.pq").unlink()
    worker = ShardWorker(made)
    (answer,) = worker({"shard": [0]})["record"]
    assert '"fatal"' in answer and "_manifest.pq" in answer
