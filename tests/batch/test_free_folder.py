"""A job that committed nothing leaves its folder to whoever comes next. No Ray: it is what does not start here."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from raymotion import storage
from raymotion.batch.job import run_job
from raymotion.batch.spec import JobSpec
from raymotion.errors import InputError, RunFailed, SettingsMismatch
from raymotion.folders import lock as folder_lock
from raymotion.folders.owner import Owner

Job = Callable[..., JobSpec]


ENDS = [RunFailed("Ray did not start"), KeyboardInterrupt(), OSError(28, "full")]


@pytest.fixture(autouse=True, params=ENDS[:1], ids=["no ray"])
def no_ray(request, monkeypatch) -> BaseException:
    @contextlib.contextmanager
    def connect(address: str | None) -> Iterator[None]:
        raise request.param
        yield

    monkeypatch.setattr("raymotion.batch.job.connect", connect)
    error: BaseException = request.param
    return error


@pytest.mark.parametrize("no_ray", ENDS, ids=repr, indirect=True)
def test_a_job_that_could_not_start_leaves_nothing(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path, no_ray: BaseException
) -> None:
    table, out = write_table(6), tmp_path / "deep" / "out"
    for version in (1, 2):  # other settings are no mismatch: nothing was computed with the first
        with pytest.raises(type(no_ray)):
            run_job(mean_job(samples=table, out=out, version=version))
        assert not out.parent.exists()


def left_by_a_killed_run(table: Path, mean_job: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("raymotion.batch.job.free_if_nothing_committed", lambda folder: None)
        with contextlib.suppress(Exception, KeyboardInterrupt):
            run_job(mean_job(samples=table, out=out))
    storage.write_json(out / "_attempts" / "0123" / "part-00000.json", {})
    storage.write_bytes(out / "data/part-00000.parquet", b"PAR1")
    storage.write_bytes(out / "_quarantine" / "part-00000.pq", b"PAR1")
    assert (out / "_job.json").exists()


def test_nor_does_one_that_was_killed_before_its_first_commit(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path, no_ray: BaseException, monkeypatch
) -> None:
    table, out = write_table(6), tmp_path / "out"
    left_by_a_killed_run(table, mean_job, out, monkeypatch)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt.*_job\.json"):
        run_job(mean_job(samples=table, out=out, version=2))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_what_is_committed_binds(write_table: Callable[..., Path], mean_job: Job, tmp_path: Path, monkeypatch) -> None:
    table, out = write_table(6), tmp_path / "out"
    left_by_a_killed_run(table, mean_job, out, monkeypatch)
    (out / "_commits").mkdir()
    (out / "_commits" / "part-00000.json").write_text("{}")
    before = json.loads((out / "_job.json").read_text())
    with pytest.raises(SettingsMismatch):
        run_job(mean_job(samples=table, out=out, version=2))
    assert json.loads((out / "_job.json").read_text()) == before and (out / "data/part-00000.parquet").exists()


@pytest.mark.parametrize("inner", ["_attempts", "_quarantine", "_commits", "data"])
def test_a_folder_of_a_name_that_jobs_use_is_not_taken_for_theirs(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path, inner: str
) -> None:
    """`_attempts` is removed when a job ends."""
    mine = tmp_path / "out" / inner / "notes" / "mine.txt"
    storage.write_text(mine, "mine")
    with pytest.raises(InputError, match=rf"{inner}/notes.*_job\.json"):
        run_job(mean_job(samples=write_table(3), out=tmp_path / "out"))
    assert mine.read_text() == "mine"


def test_a_job_that_lost_its_folder_leaves_it_to_the_new_owner(
    write_table: Callable[..., Path], mean_job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.05)
    table, out = write_table(6), tmp_path / "out"

    def taken_over(address: str | None) -> None:
        storage.write_json(out / folder_lock.LOCK, asdict(replace(Owner.here(), token="theirs")))
        time.sleep(20)

    monkeypatch.setattr("raymotion.batch.job.connect", taken_over)
    with pytest.raises(RunFailed, match="another process took"):
        run_job(mean_job(samples=table, out=out))
    assert json.loads((out / "_job.json").read_text())["status"] == "running" and (out / "_manifest.pq").exists()
