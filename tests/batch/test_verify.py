"""Committed parts and bookkeeping files that are no longer what was written: noticed, told, and made good."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import records, storage
from raymotion.batch import job, ledger, verify
from raymotion.batch.choice import choose_globally, select
from raymotion.batch.export import export
from raymotion.batch.job import run_job
from raymotion.batch.label_dataset import load_labels
from raymotion.batch.spec import JobSpec
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.data.parts import FileMark
from raymotion.data.provenance import MADE_FROM
from raymotion.errors import Damaged, InputError, NotFinite, RunFailed, SettingsMismatch
from raymotion.learning.selection import SelectionPolicy
from raymotion.report.audit import AuditSettings, audit_choices
from raymotion.report.page import write_report
from raymotion.train.source import pseudo_labelled
from raymotion.vocabulary import MIKELS_8

Job = Callable[..., JobSpec]
Damage = Callable[[Path], object]


def in_this_process(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
    """In place of `job._stream`: one worker without Ray."""
    worker = ShardWorker(plan)
    for shard in shards:
        yield json.loads(worker({"shard": [shard]})["record"][0])


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the worker sets them
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(job, "connect", lambda address: nullcontext())
    monkeypatch.setattr(job, "node_resources", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(job, "_stream", in_this_process)


class World:
    """A finished job of 12 rows in 4 shards, row 4 in quarantine; `run` is the same command again."""

    def __init__(self, mean_job: Job, mean_stage: Any, table: Path, out: Path, log: Path, digests: Any) -> None:
        self.out, self.log, self.digests = out, log, digests
        stage = mean_stage(log=str(log))
        self.spec = lambda **more: mean_job(samples=table, out=out, shard_rows=3, max_failed=0.5, stage=stage, **more)

    def run(self, **more: Any) -> job.JobSummary:
        self.log.write_text("")
        return run_job(self.spec(**more))

    def worked(self) -> set[int]:
        """The shards that the last run worked on."""
        return {int(name.removeprefix("x:")) // 3 for name in self.log.read_text().split()}


@pytest.fixture
def world(
    without_ray: None,
    write_table: Callable[..., Path],
    mean_job: Job,
    mean_stage: Any,
    tmp_path: Path,
    digests: Any,
    capsys: pytest.CaptureFixture[str],
) -> World:
    made = World(
        mean_job, mean_stage, write_table(12, damaged={4: "image_empty"}), tmp_path / "out", tmp_path / "log", digests
    )
    made.run()
    assert made.worked() == {0, 1, 2, 3} and capsys.readouterr().err == ""
    return made


def flip(path: Path, at: int = 40) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def blank(path: Path) -> None:
    """Zeros in place of the first pages, the footer as it was."""
    data = bytearray(path.read_bytes())
    data[4:84] = bytes(80)
    path.write_bytes(data)


def exchange(a: Path, b: Path) -> None:
    other = b.read_bytes()
    b.write_bytes(a.read_bytes())
    a.write_bytes(other)


PART, BAD_PART = "data/part-00001.parquet", "_quarantine/part-00001.pq"
# What happens to a finished folder, and the shards that have to be done again.
DAMAGE: dict[str, tuple[Damage, set[int]]] = {
    "a flipped bit": (lambda out: flip(out / PART), {1}),
    "zeros in a part": (lambda out: blank(out / PART), {1}),
    "a cut part": (lambda out: os.truncate(out / PART, 200), {1}),
    "an empty part": (lambda out: os.truncate(out / PART, 0), {1}),
    "a part is gone": (lambda out: (out / PART).unlink(), {1}),
    "two parts exchanged": (
        lambda out: exchange(out / "data/part-00002.parquet", out / "data/part-00003.parquet"),
        {2, 3},
    ),
    "a part doubled": (lambda out: shutil.copy(out / "data/part-00002.parquet", out / "data/part-00003.parquet"), {3}),
    "a flipped bit in quarantine": (lambda out: flip(out / BAD_PART), {1}),
    "quarantine is gone": (lambda out: (out / BAD_PART).unlink(), {1}),
    "quarantine of nobody": (
        lambda out: shutil.copy(out / BAD_PART, out / "_quarantine/part-00002.pq"),
        {2},
    ),
    "an empty commit": (lambda out: os.truncate(out / "_commits/part-00001.json", 0), {1}),
    "a cut commit": (lambda out: os.truncate(out / "_commits/part-00001.json", 100), {1}),
    "a commit of other types": (
        lambda out: (out / "_commits/part-00001.json").write_text('[{"rows": 1e999}]'),
        {1},
    ),
    "a commit that is no text": (
        lambda out: (out / "_commits/part-00001.json").write_bytes(b"\xff\xfe\x00{"),
        {1},
    ),
    "a count changed by one": (
        lambda out: (out / "_commits/part-00001.json").write_text(
            (out / "_commits/part-00001.json").read_text().replace('"attempt": 1', '"attempt": 2')
        ),
        {1},
    ),
    "commits exchanged": (
        lambda out: exchange(out / "_commits/part-00002.json", out / "_commits/part-00003.json"),
        {2, 3},
    ),
    "a commit too many": (
        lambda out: ledger.write_commit(str(out), replace(ledger.read_commit(str(out), 2), shard=9)),
        set(),
    ),
}


@pytest.mark.parametrize(
    ("name", "status"),
    [*((name, "complete") for name in DAMAGE), ("a flipped bit", "running"), ("an empty commit", "running")],
)
def test_a_shard_that_is_not_what_was_committed_is_done_again_and_told(
    name: str, status: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, shards = DAMAGE[name]
    whole = world.digests(world.out)
    record = json.loads((world.out / "_job.json").read_text())
    job.write_job(world.out, {**record, "status": status})
    damage(world.out)
    summary = world.run()
    told = capsys.readouterr().err.splitlines()
    assert world.digests(world.out) == whole
    assert world.worked() == shards
    if shards:
        assert len(told) == len(shards) and all("redoing it" in line for line in told)
        assert [entry["shard"] for entry in summary.record["runs"][-1]["done_again"]] == [
            ledger.shard_name(shard) for shard in sorted(shards)
        ]
    assert summary.record["status"] == "complete" and summary.counts["good"] == 11
    assert world.run(verify=True).already_complete and not capsys.readouterr().err


def test_a_changed_picture_is_told_whether_the_job_is_finished_or_a_part_is_damaged(
    world: World, tmp_path: Path
) -> None:
    first, second = sorted((tmp_path / "s-images").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    for damage in (lambda: None, lambda: blank(world.out / PART)):
        damage()
        with pytest.raises(SettingsMismatch, match=r"x:0 .*another picture"):
            world.run()
    assert (world.out / "_commits/part-00001.json").exists()


def commit_of(shard: int, rows: int, sha256: str, size: int, tail: str) -> ledger.Commit:
    return ledger.Commit(shard, "d", rows, rows, 0, {}, sha256, size, None, 0.0, {}, "w", 1, tail=tail)


def large(folder: Path, shard: int) -> ledger.Commit:
    """A part of 200 kB, of which a quick look reads the end alone."""
    data = np.random.default_rng(shard).bytes(200_000)
    storage.write_bytes(folder / f"data/{ledger.shard_name(shard)}.parquet", data)
    mark = asdict(FileMark.of(data))
    return ledger.Commit(
        shard, "d", 1, 1, 0, {}, mark["sha256"], mark["size"], None, 0.0, {}, "w", 1, tail=mark["tail"]
    )


def test_digests_find_what_sizes_and_footers_do_not(tmp_path: Path) -> None:
    commits = {shard: large(tmp_path, shard) for shard in range(3)}
    assert verify.faulty_files(str(tmp_path), commits, digests=True) == {}
    flip(tmp_path / PART, at=1000)
    assert verify.faulty_files(str(tmp_path), commits, digests=False) == {}
    assert verify.faulty_files(str(tmp_path), commits, digests=True) == {1: "the part is not what was committed"}
    exchange(tmp_path / "data/part-00000.parquet", tmp_path / "data/part-00002.parquet")
    assert set(verify.faulty_files(str(tmp_path), commits, digests=False)) == {0, 2}


def test_a_job_does_not_close_over_a_part_that_was_damaged_while_it_ran(
    without_ray: None,
    write_table: Callable[..., Path],
    mean_job: Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, damaged = write_table(9), list[int]()

    def stream(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
        for answer in in_this_process(plan, workers, cpus, gpus, shards):
            if answer["commit"]["shard"] == 1 and len(damaged) < times:
                flip(Path(plan.folder) / PART)
                damaged.append(1)
            yield answer

    monkeypatch.setattr(job, "_stream", stream)
    times = 1
    summary = run_job(mean_job(samples=table, out=tmp_path / "a", shard_rows=3))
    assert "part-00001: the part is not what was committed; redoing it" in capsys.readouterr().err
    assert summary.counts["good"] == 9 and summary.record["throughput"]["images"] == 9
    assert storage.read_table(tmp_path / "a" / PART).num_rows == 3
    times = 99
    with pytest.raises(RunFailed, match=r"part-00001: .*not what was committed.* 3 times"):
        run_job(mean_job(samples=table, out=tmp_path / "b", shard_rows=3))
    assert json.loads((tmp_path / "b/_job.json").read_text())["status"] == "failed"


def test_twenty_kills_each_with_damage_end_in_the_files_of_an_undisturbed_run(
    without_ray: None,
    write_table: Callable[..., Path],
    mean_job: Job,
    tmp_path: Path,
    digests: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng, table = random.Random(0), write_table(40, damaged={4: "image_empty", 30: "image_truncated"})
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_job(mean_job(samples=table, out=whole, shard_rows=2, max_failed=0.5))

    def killed(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
        for number, answer in enumerate(in_this_process(plan, workers, cpus, gpus, shards)):
            yield answer
            if number == stop:
                raise KeyboardInterrupt

    spec = mean_job(samples=table, out=out, shard_rows=2, max_failed=0.5)
    for _ in range(20):
        stop = rng.randrange(4)
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(job, "_stream", killed)
            run_job(spec)
        commits = sorted((out / "_commits").glob("*.json"))
        parts = [out / "data" / commit.with_suffix(".parquet").name for commit in commits]
        harm = rng.choice(
            [
                lambda parts=parts: flip(rng.choice(parts), at=rng.randrange(400)),
                lambda parts=parts: exchange(*rng.sample(parts, 2)) if len(parts) > 1 else None,
                lambda parts=parts: rng.choice(parts).unlink(),
                lambda commits=commits: os.truncate(rng.choice(commits), 30),
                lambda commits=commits: flip(rng.choice(commits), at=rng.randrange(200)),
                lambda: os.truncate(out / "_manifest.pq", 0),
                lambda: os.truncate(out / "_job.json", 100),
                lambda: (out / "__job.json").unlink(),
            ]
        )
        harm()
    summary = run_job(spec)
    assert digests(out) == digests(whole)
    assert summary.counts == {
        "in": 40, "good": 38, "quarantined": 2, "by_reason": {"image_empty": 1, "image_truncated": 1}
    }  # fmt: skip


def test_a_part_of_nobody_is_not_taken_for_rows(world: World) -> None:
    shutil.copy(world.out / PART, world.out / "data/part-00001 (copy).parquet")
    with pytest.raises(InputError, match=r"part-00001 \(copy\)\.parquet: .* 4 shards"):
        world.run()


MANIFESTS: dict[str, Damage] = {
    "gone": lambda out: (out / "_manifest.pq").unlink(),
    "empty": lambda out: os.truncate(out / "_manifest.pq", 0),
    "cut": lambda out: os.truncate(out / "_manifest.pq", 900),
    "a flipped bit": lambda out: flip(out / "_manifest.pq", at=100),
    "another table": lambda out: shutil.copy(out / PART, out / "_manifest.pq"),
}


@pytest.mark.parametrize("name", list(MANIFESTS))
def test_a_damaged_manifest_is_written_again(name: str, world: World) -> None:
    manifest, whole = (world.out / "_manifest.pq").read_bytes(), world.digests(world.out)
    MANIFESTS[name](world.out)
    (world.out / "_commits/part-00002.json").unlink()
    world.run()
    assert (world.out / "_manifest.pq").read_bytes() == manifest
    assert world.digests(world.out) == whole and world.worked() == {2}


def test_rows_of_a_manifest_that_was_damaged_meanwhile_are_not_worked_on(world: World) -> None:
    manifest = ledger.Manifest(str(world.out))
    data = bytearray((world.out / "_manifest.pq").read_bytes())
    for at in range(4, len(data) // 2):
        data[at] ^= 0x55
    with open(world.out / "_manifest.pq", "r+b") as file:  # in place: the worker has the file open
        file.write(data)
    with pytest.raises(Damaged, match=r"_manifest\.pq: .*Parquet"):
        for shard in range(4):
            manifest.rows(shard)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"identity": {}}x', b"\xff\x00", b'{"a": ' * 2000, None]
)
def test_job_json_comes_back_from_its_copy(
    content: bytes | None, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (world.out / "_job.json").read_bytes()
    if content is None:
        (world.out / "_job.json").unlink()
    else:
        (world.out / "_job.json").write_bytes(content)
    assert world.run().already_complete
    assert (world.out / "_job.json").read_bytes() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert "_job.json is " in line and line.endswith("restoring it from its copy")


@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_job_json_is_made_again_from_commits_of_the_very_job(
    content: bytes | None, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, record = world.digests(world.out), json.loads((world.out / "_job.json").read_text())
    for name in ("_job.json", "__job.json"):
        if content is None:
            (world.out / name).unlink()
        else:
            (world.out / name).write_bytes(content)
    if content == b"{}":
        (world.out / "_job.json").write_bytes(b"{")
    summary = world.run()
    assert "rewriting it from 4 commits of this job" in capsys.readouterr().err
    assert not world.worked() and world.digests(world.out) == whole
    assert summary.counts == record["counts"] and summary.record["computed"] == record["computed"]
    # With other settings the commits are another job's, and stay.
    for name in ("_job.json", "__job.json"):
        (world.out / name).write_bytes(b"{")
    with pytest.raises(SettingsMismatch, match="belongs to another job"):
        world.run(version=2)
    assert world.digests(world.out) == whole


def test_a_job_json_that_is_lost_with_everything_else_says_what_to_do(world: World) -> None:
    shutil.rmtree(world.out / "_commits")
    for name in ("_job.json", "__job.json"):
        (world.out / name).write_bytes(b"")
    with pytest.raises(Damaged, match=r"_job\.json: .*damaged.*no good copy"):
        world.run()


@pytest.mark.parametrize("content", [b"", b"{", b'{"count": "many"}', b'{"suspect": 1e400}', b"[1]", b"\x80"])
def test_a_damaged_note_of_an_attempt_blames_nobody(content: bytes, tmp_path: Path) -> None:
    attempts = ledger.Attempts(str(tmp_path), "run")
    attempts.begin(3)
    Path(attempts.folder, "part-00003.json").write_bytes(content)
    again = attempts.begin(3)
    assert (again.count, again.blamed) == (2, [])


def test_a_record_without_its_seal_is_taken_and_one_with_another_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    value = {"b": [1, 2.5, None], "a": {"ä": "\u200b"}, "2": True, "10": -0.0}
    records.write_record(path, value)
    assert records.read_record(path, needs_seal=True) == value
    storage.write_json(path, value)
    assert records.read_record(path) == value
    with pytest.raises(Damaged, match="has no seal"):
        records.read_record(path, needs_seal=True)
    storage.write_json(path, {**records.sealed(value), "2": 1})
    with pytest.raises(Damaged, match="is not what was written"):
        records.read_record(path)
    with pytest.raises(InputError, match="no such file"):
        records.read_record(tmp_path / "none.json")


def labelled(folder: Path) -> None:
    """The folder of a labelling job in three parts, before its labels are chosen."""
    rng = np.random.default_rng(0)
    for shard in range(3):
        probabilities = rng.random((4, len(MIKELS_8)), np.float32)
        table = pa.table(
            {
                "sample_id": [f"{shard}-{row}" for row in range(4)],
                **{field.name: pa.nulls(4, field.type) for field in MADE_FROM},
                "captions": [["a"]] * 4,
                "probabilities": pa.FixedSizeListArray.from_arrays(pa.array(probabilities.reshape(-1)), len(MIKELS_8)),
                "labels": pa.nulls(4, pa.list_(pa.string())),
                "selected": pa.nulls(4, pa.bool_()),
            }
        ).replace_schema_metadata(MIKELS_8.to_metadata())
        data = storage.parquet_bytes(table)
        storage.write_bytes(folder / f"data/{ledger.shard_name(shard)}.parquet", data)
        ledger.write_commit(str(folder), commit_of(shard, 4, **asdict(FileMark.of(data))))
    job.write_job(
        folder,
        {
            "job": "labels",
            "status": "complete",
            "identity": {},
            "settings": {},
            "notices": [],
            "vocabulary": MIKELS_8.to_dict(),
            "counts": {"in": 12, "good": 12, "quarantined": 0, "by_reason": {}},
            "model": {"teacher": {}},
        },
    )


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", range(9))
def test_a_choice_that_is_cut_off_is_no_damage(
    write: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, count = SelectionPolicy(policy="top-per-class", count=2), iter(range(100))
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        labelled(folder)
    choose_globally(str(whole), str(whole), policy, MIKELS_8, None)
    write_bytes = storage.write_bytes

    def cut(path: Any, data: bytes, **options: Any) -> None:
        mine = next(count) == write
        if mine and when == "before":
            raise KeyboardInterrupt
        write_bytes(path, data, **options)
        if mine:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", cut)
        with pytest.raises(KeyboardInterrupt):
            choose_globally(str(out), str(out), policy, MIKELS_8, None)
    for digests in (False, True):
        commits, faults = verify.survey(str(out), "d", [4, 4, 4], digests=digests)
        assert set(commits) == {0, 1, 2} and not faults
    choose_globally(str(out), str(out), policy, MIKELS_8, None)
    for place, suffix in (("data/", ".parquet"), ("_commits/", ".json")):
        for shard in range(3):
            name = place + ledger.shard_name(shard) + suffix
            assert (out / name).read_bytes() == (whole / name).read_bytes()


READERS: dict[str, Callable[[Path, Path], object]] = {
    "load_labels": lambda folder, out: load_labels(folder),
    "select": lambda folder, out: select(folder, out, SelectionPolicy(policy="threshold", threshold=0.5)),
    "export csv": lambda folder, out: export(folder, out, "csv"),
    "export coco": lambda folder, out: export(folder, out, "coco-json"),
    "pseudo_labelled": lambda folder, out: pseudo_labelled(str(folder), 0.2, 0),
    "audit": lambda folder, out: audit_choices(folder, out, AuditSettings(bootstrap=2)),
    "report": lambda folder, out: write_report(folder, out),
}
FINISHED: dict[str, Damage] = {
    "a flipped bit": lambda folder: flip(folder / PART, at=300),
    "a cut part": lambda folder: os.truncate(folder / PART, 300),
    "a part is gone": lambda folder: (folder / PART).unlink(),
    "parts exchanged": lambda folder: exchange(folder / PART, folder / "data/part-00002.parquet"),
    "a part too many": lambda folder: shutil.copy(folder / PART, folder / "data/part-00009.parquet"),
    "a cut commit": lambda folder: os.truncate(folder / "_commits/part-00001.json", 50),
}


@pytest.mark.parametrize(
    ("reader", "damage"),
    [*((reader, "a flipped bit") for reader in READERS), *(("load_labels", damage) for damage in FINISHED)],
)
def test_readers_of_a_finished_folder_name_the_damaged_part(reader: str, damage: str, tmp_path: Path) -> None:
    labelled(tmp_path / "labels")
    choose_globally(str(tmp_path / "labels"), str(tmp_path / "labels"), SelectionPolicy(), MIKELS_8, None)
    FINISHED[damage](tmp_path / "labels")
    with pytest.raises(Damaged, match=r"part-0000\d\.(parquet|json): .*--verify"):
        READERS[reader](tmp_path / "labels", tmp_path / "out")


def test_what_select_writes_is_a_data_set_with_books(tmp_path: Path) -> None:
    labelled(tmp_path / "labels")
    select(tmp_path / "labels", tmp_path / "out", SelectionPolicy(policy="threshold", threshold=0.5))
    record = json.loads((tmp_path / "out/_job.json").read_text())
    commits, faults = verify.survey(str(tmp_path / "out"), record["digest"], [4, 4, 4], digests=True)
    assert set(commits) == {0, 1, 2} and not faults


def failed_rows(folder: Path) -> Path:
    """Gives the first shard a row that failed."""
    path = folder / BAD_PART
    storage.write_table(path, pa.Table.from_pylist([], ledger.QUARANTINE_SCHEMA))
    mark = FileMark.of(path.read_bytes())
    commit = replace(
        ledger.read_commit(str(folder), 1), rows=5, quarantined=1, by_reason={"x": 1},
        quarantine_sha256=mark.sha256, quarantine_bytes=mark.size, quarantine_tail=mark.tail,
    )  # fmt: skip
    ledger.write_commit(str(folder), commit)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", range(13))
def test_a_select_that_was_cut_off_binds_its_folder_to_nothing(
    write: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled(tmp_path / "labels")
    failed_rows(tmp_path / "labels")
    policy, out, count = SelectionPolicy(policy="threshold", threshold=0.5), tmp_path / "out", iter(range(100))
    write_bytes = storage.write_bytes

    def cut(path: Any, data: bytes, **options: Any) -> None:
        if ".probe" not in str(path) and next(count) == write:
            raise KeyboardInterrupt
        write_bytes(path, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", cut)
        with contextlib.suppress(KeyboardInterrupt):
            select(tmp_path / "labels", out, SelectionPolicy(policy="top-per-class", count=2))
    assert next(count) > write
    record = select(tmp_path / "labels", out, policy)  # another policy: what is there is not taken for its own
    assert record["identity"]["selection"]["policy"] == "threshold"
    select(tmp_path / "labels", tmp_path / "whole", policy)
    assert files(out) == files(tmp_path / "whole")


def test_a_select_that_is_under_way_says_what_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled(tmp_path / "labels")
    policy, out = SelectionPolicy(policy="threshold", threshold=0.5), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("raymotion.batch.choice.check_labels", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            select(tmp_path / "labels", out, policy)
    begun = json.loads((out / "_job.json").read_text())
    assert begun["status"] == "running"
    done = select(tmp_path / "labels", out, policy)
    assert all(begun[name] == done[name] for name in ("digest", "identity", "settings", "selected_from"))


def test_select_copies_no_damaged_quarantine_and_writes_no_number_that_is_none(tmp_path: Path) -> None:
    labelled(tmp_path / "a")
    flip(failed_rows(tmp_path / "a"))
    with pytest.raises(Damaged, match=r"_quarantine/part-00001\.pq: is not what was committed.*--verify"):
        select(tmp_path / "a", tmp_path / "out", SelectionPolicy())
    labelled(tmp_path / "b")
    table = storage.read_table(tmp_path / "b" / PART)
    values = pa.array([float("nan")] * (4 * len(MIKELS_8)), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(values, len(MIKELS_8))
    index = table.schema.get_field_index("probabilities")
    data = storage.parquet_bytes(table.set_column(index, "probabilities", column))
    storage.write_bytes(tmp_path / "b" / PART, data)
    ledger.write_commit(str(tmp_path / "b"), commit_of(1, 4, **asdict(FileMark.of(data))))
    with pytest.raises(NotFinite, match="row 0: probabilities holds NaN"):
        select(tmp_path / "b", tmp_path / "out", SelectionPolicy(policy="threshold", threshold=0.5))
