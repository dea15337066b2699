"""The runner on real Ray: books, resume, crashes, refusals."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymotion import storage
from raymotion.batch.job import run_job
from raymotion.batch.spec import JobSettings, JobSpec
from raymotion.data.parts import write_job
from raymotion.data.samples import read_samples, write_samples
from raymotion.errors import AccessDenied, InputError, RunFailed, SettingsMismatch

pytestmark = pytest.mark.usefixtures("ray_jobs")
Job = Callable[..., JobSpec]


def rows_of(folder: Path | str) -> list[str]:
    place = str(folder) if str(folder).endswith("_quarantine") else f"{folder}/data"
    return [
        i for name in storage.list_names(place) for i in storage.read_table(f"{place}/{name}")["sample_id"].to_pylist()
    ]


def test_a_job_from_start_to_end_and_again(write_table: Callable[..., Path], mean_job: Job, tmp_path: Path) -> None:
    damaged = {4: "image_truncated", 9: "image_damaged", 20: "image_not_an_image"}
    table, out = write_table(30, damaged=damaged), tmp_path / "out"
    spec = mean_job(samples=table, out=out, shard_rows=4, max_failed=0.1, damaged="keep")
    summary = run_job(spec)
    assert not summary.already_complete
    record = json.loads((out / "_job.json").read_text())
    assert record["status"] == "complete"
    assert record["counts"] == {
        "in": 30, "good": 29, "quarantined": 1, "by_reason": {"image_not_an_image": 1}, "damaged_kept": 2,
    }  # fmt: skip
    assert sum(s["in"] for s in record["shards"]) == 30
    assert all(s["in"] == s["good"] + s["quarantined"] for s in record["shards"])
    assert rows_of(out) == [f"x:{i}" for i in range(30) if i != 20]
    assert rows_of(out / "_quarantine") == ["x:20"]
    assert record["throughput"]["images"] == 30 and record["throughput"]["images_per_second"] > 0
    assert not (out / "_attempts").exists()

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = run_job(spec)
    assert again.already_complete
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    with pytest.raises(SettingsMismatch, match="damaged"):
        run_job(mean_job(samples=table, out=out, shard_rows=4, max_failed=0.1))


def test_resume_does_only_what_is_not_committed(
    write_table: Callable[..., Path], mean_job: Job, mean_stage: Any, tmp_path: Path, digests: Any
) -> None:
    table, out, log = write_table(24), tmp_path / "out", tmp_path / "log"
    run_job(mean_job(samples=table, out=out, shard_rows=4))
    whole = digests(out)
    # As a killed run leaves it: two shards not committed, one of them with its data file already there.
    for shard, with_file in ((1, True), (4, False)):
        (out / f"_commits/part-{shard:05d}.json").unlink()
        if not with_file:
            (out / f"data/part-{shard:05d}.parquet").unlink()
    record = json.loads((out / "_job.json").read_text())
    write_job(out, {**record, "status": "running"})
    run_job(mean_job(samples=table, out=out, shard_rows=4, stage=mean_stage(log=str(log))))
    assert sorted(log.read_text().split()) == sorted(f"x:{i}" for i in [*range(4, 8), *range(16, 20)])
    assert digests(out) == whole


def test_other_settings_on_the_same_folder_show_the_difference(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    table, out = write_table(6), tmp_path / "out"
    run_job(mean_job(samples=table, out=out))
    with pytest.raises(SettingsMismatch, match=r"model.version: 1 there, 2 here"):
        run_job(mean_job(samples=table, out=out, version=2))
    other = write_table(7, name="other")
    with pytest.raises(SettingsMismatch, match=r"input.rows: 6 there, 7 here"):
        run_job(mean_job(samples=other, out=out, shard_rows=8))
    # Placement is not identity: the same command on a larger machine goes on.
    assert run_job(mean_job(samples=table, out=out, workers=1)).already_complete


@pytest.mark.slow
def test_a_picture_that_kills_its_worker_is_isolated(
    write_table: Callable[..., Path], mean_job: Job, mean_stage: Any, tmp_path: Path
) -> None:
    table, out = write_table(16), tmp_path / "out"
    spec = mean_job(samples=table, out=out, shard_rows=4, max_failed=0.2, stage=mean_stage(die_at=["x:6"]))
    summary = run_job(spec)
    assert summary.counts["by_reason"] == {"worker_crash": 1}
    assert rows_of(out) == [f"x:{i}" for i in range(16) if i != 6]
    assert rows_of(out / "_quarantine") == ["x:6"]


def test_too_many_failures_stop_the_run_and_keep_what_is_done(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    table, out = write_table(20, damaged=dict.fromkeys(range(10, 20), "image_empty")), tmp_path / "out"
    with pytest.raises(RunFailed, match=r"of 20 .*\d+ image_empty.*--max-failed 0\.05"):
        run_job(mean_job(samples=table, out=out, shard_rows=5))
    done = {path.name for path in (out / "_commits").iterdir()}
    assert done and json.loads((out / "_job.json").read_text())["status"] == "failed"
    summary = run_job(mean_job(samples=table, out=out, shard_rows=5, max_failed=0.5))
    assert summary.counts["quarantined"] == 10 and summary.record["runs"][-1]["resumed_from_shards"] == len(done)


@pytest.mark.parametrize(("rows", "share", "allowed"), [(4, 0.05, 3), (1000, 0.05, 50), (1000, 0.0, 0), (9, 1.0, 9)])
def test_a_few_rows_may_always_fail(rows: int, share: float, allowed: int) -> None:
    assert JobSettings(samples="s", out="o", max_failed=share).rows_that_may_fail(rows) == allowed


def test_a_missing_image_folder_stops_before_any_work(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    table = read_samples(write_table(3))
    moved = [uri.replace("s-images", "moved-away") for uri in table.column("image_uri").to_pylist()]
    position = table.schema.get_field_index("image_uri")
    write_samples(tmp_path / "moved.parquet", table.set_column(position, "image_uri", pa.array(moved)))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"moved-away: no such folder"):
        run_job(mean_job(samples=tmp_path / "moved.parquet", out=tmp_path / "out"))
    assert time.monotonic() - started < 5
    assert not list((tmp_path / "out").rglob("part-*"))


def test_a_denied_store_stops_before_any_work(
    refusing_store: None, write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    with pytest.raises(AccessDenied, match=r"s3://bucket/out"):
        run_job(mean_job(samples=write_table(2), out="s3://bucket/out"))
    samples = read_samples(write_table(2, name="remote"))
    uris = pa.array(["s3://bucket/images/1.jpg", "s3://bucket/images/2.jpg"])
    position = samples.schema.get_field_index("image_uri")
    write_samples(tmp_path / "remote.parquet", samples.set_column(position, "image_uri", uris))
    with pytest.raises(AccessDenied, match=r"s3://bucket/images"):
        run_job(mean_job(samples=tmp_path / "remote.parquet", out=tmp_path / "out"))
    assert not list((tmp_path / "out").rglob("part-*"))


def test_a_plan_that_does_not_fit_is_refused_in_seconds(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(InputError, match=r"9 x \(1 CPU\).*\(4 CPU, 0 GPU\).* 4"):
        run_job(mean_job(samples=write_table(3), out=tmp_path / "out", workers=9))
    assert time.monotonic() - started < 5


def test_a_folder_with_other_files_is_not_written_into(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    pq.write_table(pa.table({"a": [1]}), out / "mine.parquet")
    with pytest.raises(InputError, match=r"mine\.parquet.*_job\.json"):
        run_job(mean_job(samples=write_table(3), out=out))


def test_an_empty_sample_table_is_refused(mean_job: Job, tmp_path: Path, write_table: Callable[..., Path]) -> None:
    table = read_samples(write_table(1)).slice(0, 0)
    write_samples(tmp_path / "empty.parquet", table)
    with pytest.raises(InputError, match="holds no samples"):
        run_job(mean_job(samples=tmp_path / "empty.parquet", out=tmp_path / "out"))


def test_everything_on_s3(s3: str, write_table: Callable[..., Path], mean_job: Job) -> None:
    local = read_samples(write_table(9, damaged={2: "image_empty"}))
    for uri in local.column("image_uri").to_pylist():
        storage.write_bytes(f"{s3}/images/{Path(uri).name}", Path(uri).read_bytes())
    uris = [f"{s3}/images/{Path(uri).name}" for uri in local.column("image_uri").to_pylist()]
    position = local.schema.get_field_index("image_uri")
    write_samples(f"{s3}/samples.parquet", local.set_column(position, "image_uri", pa.array(uris)))
    spec = mean_job(samples=f"{s3}/samples.parquet", out=f"{s3}/out", shard_rows=4, max_failed=0.2)
    summary = run_job(spec)
    assert summary.counts == {"in": 9, "good": 8, "quarantined": 1, "by_reason": {"image_empty": 1}}
    assert rows_of(f"{s3}/out") == [f"x:{i}" for i in range(9) if i != 2]
    assert run_job(spec).already_complete


def remote_table(s3: str, table: pa.Table) -> str:
    """The sample table and its pictures, copied into the bucket."""
    uris = table.column("image_uri").to_pylist()
    for uri in uris:
        storage.write_bytes(f"{s3}/images/{Path(uri).name}", Path(uri).read_bytes())
    position = table.schema.get_field_index("image_uri")
    moved = pa.array([f"{s3}/images/{Path(uri).name}" for uri in uris])
    write_samples(f"{s3}/samples.parquet", table.set_column(position, "image_uri", moved))
    return f"{s3}/samples.parquet"


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_blamed_on_s3_too(
    s3: str, ray_jobs: Any, write_table: Callable[..., Path], mean_job: Job, mean_stage: Any
) -> None:
    samples = remote_table(s3, read_samples(write_table(12)))
    stage = mean_stage(die_at=["x:5"])
    summary = run_job(mean_job(samples=samples, out=f"{s3}/out", shard_rows=4, stage=stage))
    assert summary.counts == {"in": 12, "good": 11, "quarantined": 1, "by_reason": {"worker_crash": 1}}
    assert rows_of(f"{s3}/out") == [f"x:{i}" for i in range(12) if i != 5]
    assert not storage.list_tree(f"{s3}/out/_attempts")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_store_that_fails_for_a_while_costs_no_row_and_for_good_ends_the_run(
    s3: str, store_proxy: Any, run_command: Callable[..., Any], write_table: Callable[..., Path]
) -> None:
    """A command of its own, because the workers of the shared Ray know another endpoint."""
    samples = remote_table(s3, read_samples(write_table(12)))
    down = False

    def fault(request: Any, before: int) -> tuple[Any, ...] | None:
        if down and request.kind == "GET picture":
            return ("status", 500)
        if before == 0:
            return {"GET": ("short", 0), "PUT": ("status", 503)}.get(request.method, ("reset",))
        return ("cut", 100) if before == 1 and request.kind == "GET picture" else None

    def features(out: str, *options: str) -> Any:
        return run_command(
            "features", "regions", samples, "--extractor", "fasterrcnn_mobilenet_v3_large_320_fpn", "--weights",
            "random:0", "--count", "4", "--workers", "1", "--shard-rows", "4", "--out", f"{s3}/{out}", *options,
            timeout=280,
        )  # fmt: skip

    store_proxy.fault = fault
    done = features("out")
    assert done.code == 0, done.err
    assert storage.read_json(f"{s3}/out/_job.json")["counts"] == {
        "in": 12,
        "good": 12,
        "quarantined": 0,
        "by_reason": {},
    }
    down = True
    ended = features("again", "--store-patience", "1")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error")]
    assert f"{s3}/images/" in line and store_proxy.endpoint in line and "the same command goes on" in line
    down = False
    assert features("again").code == 0
    assert storage.read_json(f"{s3}/again/_job.json")["counts"]["good"] == 12
