"""One writer for a folder: on a disk, on a disk without locks, on a real S3 server; after crashes, from elsewhere."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raymotion import storage
from raymotion.errors import InputError, RunFailed
from raymotion.folders import lease
from raymotion.folders import lock as folder_lock
from raymotion.folders.lease import Lease, cell_at
from raymotion.folders.lock import LOCK, one_writer, one_writer_of
from raymotion.folders.owner import Owner

HOLD = (
    "import sys, time; from raymotion.folders.lock import one_writer\n"
    "with one_writer(sys.argv[1], beside=sys.argv[2] == '1'): print('held', flush=True); time.sleep(60)"
)


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path) -> str:
    return str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3") + "/out"


@pytest.fixture
def quick(monkeypatch):
    """Signs of life twenty times as often."""
    for module in (folder_lock, lease):
        monkeypatch.setattr(module, "BEAT", 0.1)
        monkeypatch.setattr(module, "STALE", 1.2)


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK])
def without_flock(request, monkeypatch):
    """A disk whose file system has no locks."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr("fcntl.flock", refuse)


def held(folder: str, *, beside: bool = False) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, "01"[beside]], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def elsewhere(folder: str, **changes: object) -> Owner:
    """Leaves the record of a process on another machine."""
    owner = replace(Owner.here(), host="elsewhere", boot="another", token="theirs", **changes)
    storage.write_json(storage.join(folder, LOCK), asdict(owner))
    return owner


def test_the_second_is_refused_and_told_who_holds_it_until_that_one_is_killed(folder: str) -> None:
    other = held(folder)
    try:
        with pytest.raises(InputError) as error, one_writer(folder):
            pass
        said = str(error.value)
        assert f"{folder}: is being written by process {other.pid} on host" in said and "\n" not in said
        assert "UTC" in said and "Wait until it has ended, or end it" in said
        other.send_signal(signal.SIGKILL)
        other.wait()
        started = time.monotonic()
        with one_writer(folder):  # proved dead: no waiting
            assert json.loads(storage.read_bytes(storage.join(folder, LOCK)))["pid"] == os.getpid()
        assert time.monotonic() - started < 3
        assert not storage.exists(storage.join(folder, LOCK))
    finally:
        other.kill()
        other.wait()


def test_two_threads_are_two_writers_and_a_call_inside_is_none(folder: str) -> None:
    refused = []

    def second() -> None:
        try:
            with one_writer(folder):
                pass
        except InputError as error:
            refused.append(str(error))

    with one_writer(folder), one_writer(folder), one_writer(storage.join(folder, "inner")):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    with one_writer(folder):  # the inner call has not let go of it too early, the outer one has at last
        pass


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with one_writer(tmp_path / "a" / "b"):
        assert (tmp_path / "a/b" / LOCK).exists()
    with one_writer(tmp_path / "c" / "d", beside=True):
        assert [path.name for path in (tmp_path / "c").iterdir()] == [".d.lock"]
    assert list(tmp_path.iterdir()) == []
    with one_writer(tmp_path / "a"):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


@pytest.mark.parametrize("first", [False, True])
def test_a_folder_and_its_replacement_exclude_each_other(tmp_path: Path, first: bool) -> None:
    """`label --out X` works inside X; `train --out X` puts a finished X there."""
    (tmp_path / "x").mkdir()
    other = held(str(tmp_path / "x"), beside=first)
    try:
        with pytest.raises(InputError, match=f"process {other.pid}"), one_writer(tmp_path / "x", beside=not first):
            pass
    finally:
        other.kill()
        other.wait()


def test_a_link_leads_to_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    other = held(str(tmp_path / "link"))
    try:
        with pytest.raises(InputError, match="is being written"), one_writer(tmp_path / "real"):
            pass
    finally:
        other.kill()
        other.wait()


def test_a_folder_that_may_not_be_written_can_be_looked_at(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "done").mkdir(mode=0o555)
    with one_writer(tmp_path / "done"):
        pass


@pytest.mark.usefixtures("quick")
def test_another_machines_lock_is_taken_over_once_it_is_silent(folder: str) -> None:
    elsewhere(folder)
    started = time.monotonic()
    with one_writer(folder):
        pass
    assert time.monotonic() - started > 0.8


def test_the_age_of_a_record_on_s3_is_never_overstated(s3: str) -> None:
    path = storage.join(s3, LOCK)
    time.sleep((0.9 - time.time()) % 1)  # its time of writing and the server's are whole seconds
    started = time.monotonic()
    storage.write_bytes(path, b"{}")
    time.sleep(0.3)
    found = cell_at(path).read()
    assert found is not None and found[2] <= time.monotonic() - started


@pytest.mark.usefixtures("quick")
def test_another_machines_lock_is_respected_while_it_shows_life(folder: str) -> None:
    owner, over = elsewhere(folder), threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(0.2):
            number += 1
            storage.write_json(storage.join(folder, LOCK), {**asdict(owner), "beats": number})

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InputError, match="on host elsewhere"), one_writer(folder):
            pass
    finally:
        over.set()
        thread.join()
    assert json.loads(storage.read_bytes(storage.join(folder, LOCK)))["token"] == "theirs"


def test_of_many_that_find_a_dead_owners_lease_one_takes_it_over(s3: str) -> None:
    folder = s3 + "/out"
    gone = replace(Owner.here(), pid=2**22 + 1, token="gone")
    storage.write_json(storage.join(folder, LOCK), asdict(gone))
    begin, took, refused = threading.Barrier(6), [], []

    def take() -> None:
        begin.wait()
        try:
            took.append(Lease(cell_at(storage.join(folder, LOCK))).take(folder))
        except InputError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(took), len(refused)) == (1, 5)


@pytest.mark.usefixtures("quick")
def test_a_lock_that_was_lost_ends_the_run(folder: str) -> None:
    with pytest.raises(RunFailed, match="another process took"), one_writer(folder):
        elsewhere(folder)
        time.sleep(20)
    assert json.loads(storage.read_bytes(storage.join(folder, LOCK)))["token"] == "theirs"  # it is not removed


@pytest.mark.usefixtures("quick")
def test_whoever_lost_a_lock_is_told_so_before_it_cleans_up(folder: str) -> None:
    inner, told = storage.join(folder, "inner"), []
    with pytest.raises(RunFailed), one_writer(folder), one_writer(inner):
        told.append(folder_lock.is_lost(folder))
        elsewhere(folder)
        try:
            time.sleep(20)
        finally:
            told += [folder_lock.is_lost(place) for place in (folder, inner, folder + "2")]
    assert told == [False, True, True, False]
    assert folder_lock.is_lost(folder) and not folder_lock.is_lost(inner)  # a hook that runs late is told too
    storage.remove(storage.join(folder, LOCK))
    with one_writer(folder):
        assert not folder_lock.is_lost(folder)


class Slow:
    """A cell whose next `replace` takes until it is let go, as a store's may."""

    def __init__(self, cell: lease.Cell, *, after: bool) -> None:
        self.cell, self.after, self.begun, self.let_go = cell, after, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cell, name)

    def replace(self, data: bytes, stamp: str) -> str | None:
        answer = None if self.after else self.cell.replace(data, stamp)
        self.begun.set()
        self.let_go.wait(5)
        if self.after:  # the store does not compare: it is written, whatever is there
            storage.write_bytes(self.cell.path, data)  # type: ignore[attr-defined]
            answer = data.decode()
        return answer


@pytest.mark.parametrize("after", [False, True])
def test_a_renewal_under_way_does_not_bring_a_released_lease_back(tmp_path: Path, after: bool) -> None:
    hold = Lease(cell_at(str(tmp_path / LOCK))).take("out")
    if not after:
        hold.stamp = "of an earlier renewal"
    slow = Slow(hold.cell, after=after)
    hold.cell = slow  # type: ignore[assignment]
    thread = threading.Thread(target=hold.renew)
    thread.start()
    assert slow.begun.wait(5)
    hold.release()
    slow.let_go.set()
    thread.join()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("quick")
def test_a_lease_lives_through_a_lost_answer_and_a_record_that_was_removed(s3: str) -> None:
    path = f"{s3}/out/{LOCK}"
    hold = Lease(cell_at(path)).take("out")
    hold.stamp = '"of an earlier renewal"'
    assert hold.renew() and hold.renew()
    storage.remove(path)
    assert hold.renew()
    hold.release()
    assert not storage.exists(path)


@pytest.mark.usefixtures("quick", "without_flock")
def test_a_disk_without_locks_gets_a_lease(tmp_path: Path) -> None:
    refused = []

    def second(beside: bool) -> None:
        try:
            with one_writer(tmp_path, beside=beside):
                pass
        except InputError as error:
            refused.append(str(error))

    started = time.monotonic()
    with one_writer(tmp_path):
        # No file that filelock left was taken for a torn record, and waited for.
        assert time.monotonic() - started < lease.STALE / 2 and os.listdir(tmp_path) == [LOCK]
        for beside in (False, True):
            thread = threading.Thread(target=second, args=[beside])
            thread.start()
            thread.join()
        time.sleep(0.3)  # renewed meanwhile
        assert json.loads((tmp_path / LOCK).read_bytes())["beats"] > 0
    assert len(refused) == 2 and not (tmp_path / LOCK).exists()
    storage.write_json(tmp_path / LOCK, asdict(replace(Owner.here(), pid=2**22 + 1)))
    with one_writer(tmp_path):
        pass


@pytest.mark.parametrize("left", [b"", b"{", b"[1]", b"\xff\xfe", b'{"pid": "x"}', b"[" * 100_000])
def test_a_torn_record_is_no_owner(tmp_path: Path, left: bytes) -> None:
    (tmp_path / LOCK).write_bytes(left)
    with one_writer(tmp_path):
        assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()


def test_a_number_that_was_given_to_another_process_proves_nothing(tmp_path: Path) -> None:
    assert Owner.here().lives() is True
    assert replace(Owner.here(), began=1).lives() is False
    assert replace(Owner.here(), boot="another").lives() is None
    assert replace(Owner.here(), namespace="pid:[1]").lives() is None  # a container beside this one


def test_the_decorator_finds_the_folder_among_the_arguments(tmp_path: Path) -> None:
    class Settings:
        out = str(tmp_path / "by settings")

    @one_writer_of("settings.out")
    def by_settings(settings: Settings) -> list[str]:
        return os.listdir(settings.out)

    @one_writer_of("out", beside=True)
    def by_name(first: int, out: object = str(tmp_path / "d")) -> list[str]:
        return os.listdir(tmp_path)

    assert by_settings(Settings()) == [LOCK]
    assert by_name(1, tmp_path / "n") == [".n.lock"] and by_name(first=1, out=tmp_path / "m") == [".m.lock"]
    assert by_name(1) == [".d.lock"]


def _commands(out: str) -> dict[str, Callable[[], object]]:
    """Every function that writes a folder, with input that is not there: what is refused first is the folder."""
    from raymotion.batch.choice import select
    from raymotion.batch.faces import FaceSettings, detect_faces
    from raymotion.batch.job import run_job
    from raymotion.batch.spec import JobSettings, JobSpec
    from raymotion.data.synthetic.collections import write_coco, write_socratis
    from raymotion.data.synthetic.emotic import write_emotic
    from raymotion.demo import run_demo
    from raymotion.evaluation.evaluate import EvaluateSettings, evaluate_checkpoint
    from raymotion.learning.selection import SelectionPolicy
    from raymotion.models.hub import pull, push
    from raymotion.models.student.recipe import StudentRecipe
    from raymotion.report.audit import AuditSettings, audit_against_truth, audit_choices, audit_samples
    from raymotion.report.study import write_study_report
    from raymotion.study.run import run_study
    from raymotion.study.settings import StudySettings
    from raymotion.train.fit import fit
    from raymotion.train.transfer import compare

    def job() -> object:
        sink: Any = None
        settings = JobSettings(samples="no.parquet", out=out)
        return run_job(JobSpec("labels", settings, {}, lambda _: (), sink))

    return {
        "label, features": job,
        "data faces": lambda: detect_faces(FaceSettings(samples="no.parquet", out=out)),
        "select": lambda: select("no", out, SelectionPolicy()),
        "evaluate": lambda: evaluate_checkpoint(EvaluateSettings(model="no", samples="no.parquet", out=out)),
        "audit --truth": lambda: audit_against_truth("no", "no.parquet", out, AuditSettings()),
        "audit --predictions": lambda: audit_samples("no.parquet", "no", out, AuditSettings()),
        "audit": lambda: audit_choices("no", out, AuditSettings()),
        "train": lambda: fit(StudentRecipe(), out),
        "finetune": lambda: compare(StudentRecipe(), "no", out),
        "study run": lambda: run_study(StudySettings(spaces="no", embeddings=["no"], out=out)),
        "study report": lambda: write_study_report("no", out),
        "pull": lambda: pull("./no", out),
        "push": lambda: push("./no", out),
        "data synth coco": lambda: write_coco(out, 1),
        "data synth socratis": lambda: write_socratis(out, 1),
        "data synth emotic": lambda: write_emotic(out, 1),
        "demo": lambda: run_demo(out),
    }


@pytest.fixture(scope="module")
def busy(tmp_path_factory) -> Iterator[tuple[str, int]]:
    out = tmp_path_factory.mktemp("busy") / "out"
    out.mkdir()
    other = held(str(out))
    yield str(out), other.pid
    other.kill()
    other.wait()


@pytest.mark.parametrize("command", list(_commands("out")))
def test_every_command_that_writes_a_folder_is_refused_while_another_does(busy, command: str) -> None:
    out, pid = busy
    with pytest.raises(InputError, match=f"process {pid}"):
        _commands(out)[command]()
    assert os.listdir(out) == [LOCK]


def test_a_wrong_clock_takes_no_lock_from_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is an hour ahead; how old the record is, the disk tells."""
    hold = folder_lock._Flock(str(tmp_path / LOCK))
    (tmp_path / LOCK).touch()
    monkeypatch.setattr(time, "time", lambda: os.stat(tmp_path).st_mtime + 3600)
    assert hold._age() < 30 and os.listdir(tmp_path) == [LOCK]
