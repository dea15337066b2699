"""What stands in the way of an output: other kinds of files, pipes, links, and a disk without room."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import DiskFull, InputError
from raymotion.folders import outputs
from raymotion.stores.local_files import is_full, reserve


def samples() -> pa.Table:
    return table_from_rows([{"sample_id": "a", "group_id": "a", "source": "x"}])


class TestWhereAFileIsWritten:
    """Nothing may hang: a pipe is never opened."""

    @pytest.fixture(params=["a pipe", "a socket", "a device", "a folder"])
    def strange(self, request, tmp_path: Path, monkeypatch) -> Iterator[tuple[Path, str]]:
        path = tmp_path / "out"
        if request.param == "a pipe":
            os.mkfifo(path)
        elif request.param == "a socket":
            monkeypatch.chdir(tmp_path)  # a socket's path may not be long
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("out")
                yield path, request.param
            return
        elif request.param == "a device":
            path.symlink_to("/dev/full")
        else:
            path.mkdir()
        yield path, request.param

    @pytest.mark.timeout(20)
    def test_what_is_no_file_is_refused(self, strange: tuple[Path, str]) -> None:
        path, kind = strange
        before = path.lstat()
        for write in (
            lambda: storage.write_bytes(path, b"x"),
            lambda: write_samples(path, samples()),
            lambda: outputs.require_replaceable(path, "a report", outputs.is_page),
        ):
            with pytest.raises(InputError, match=rf"out: .*{kind}, not a file"):
                write()
        assert path.lstat() == before and [p.name for p in path.parent.iterdir()] == ["out"]

    @pytest.mark.timeout(20)
    def test_a_pipe_or_a_link_in_place_of_a_folder(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="is a file, not a folder"):
            storage.make_dir(tmp_path / "pipe")
        with pytest.raises(InputError, match="is a file, not a folder"):
            storage.write_bytes(tmp_path / "pipe" / "x", b"x")
        (tmp_path / "link").symlink_to("elsewhere")
        storage.make_dir(tmp_path / "link")
        storage.write_bytes(tmp_path / "link" / "x", b"x")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "x").read_bytes() == b"x"

    @pytest.mark.parametrize("there", [True, False])
    def test_a_link_stays_a_link(self, tmp_path: Path, there: bool) -> None:
        (tmp_path / "far").mkdir()
        if there:
            write_samples(tmp_path / "far" / "real", samples())
        (tmp_path / "second").symlink_to("far/real")
        (tmp_path / "first").symlink_to(tmp_path / "second")
        write_samples(tmp_path / "first", samples())
        assert os.readlink(tmp_path / "second") == "far/real" and (tmp_path / "first").is_symlink()
        assert storage.read_table(tmp_path / "far" / "real").num_rows == 1
        assert [path.name for path in (tmp_path / "far").iterdir()] == ["real"]

    def test_links_that_lead_nowhere(self, tmp_path: Path) -> None:
        (tmp_path / "gone").symlink_to("/nonexistent/deep/file")
        with pytest.raises(InputError, match="link to /nonexistent/deep/file"):
            storage.write_bytes(tmp_path / "gone", b"x")
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(InputError, match="leads to itself"):
            storage.write_bytes(tmp_path / "loop", b"x")

    def test_a_checkpoint_is_put_where_a_link_leads(self, tmp_path: Path) -> None:
        from raymotion.stores.local_files import replaced

        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        with replaced(os.path.realpath(tmp_path / "link")) as temporary:
            storage.write_bytes(f"{temporary}/config.json", b"{}")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "config.json").exists()


class TestWhatIsOverwritten:
    @pytest.fixture(params=["disk", "s3"])
    def path(self, request, tmp_path) -> str:
        return str(tmp_path / "t.parquet") if request.param == "disk" else request.getfixturevalue("s3") + "/t.parquet"

    @pytest.mark.parametrize(
        "columns",
        [
            {"sample_id": ["a"], "features": [[1.0]], "mask": [[True]]},  # region features
            {"sample_id": ["a"], "image_uri": ["a"], "captions": [["c"]], "probabilities": [[0.5]]},  # labels
            {"sample_id": ["a"], "kind": ["x"], "emotion": ["joy"]},  # disagreements of an audit
            {"sample_id": ["a"], "face_box": [None], "score": [0.5]},  # parts of a face job
            {"price": [1.0]},  # somebody's own
        ],
    )
    def test_another_kind_of_parquet_is_not(self, path: str, columns: dict[str, Any]) -> None:
        storage.write_table(path, pa.table(columns))
        before = storage.read_bytes(path)
        with pytest.raises(InputError, match=r"t\.parquet: exists.*sample table"):
            write_samples(path, samples())
        assert storage.read_bytes(path) == before

    @pytest.mark.parametrize("data", [b"PAR1", b"PAR1 and then text", b"id,caption\n", b"\0" * 100])
    def test_nor_what_is_no_parquet(self, path: str, data: bytes) -> None:
        storage.write_bytes(path, data)
        with pytest.raises(InputError, match=r"exists.*sample table"):
            write_samples(path, samples())
        assert storage.read_bytes(path) == data

    def test_a_sample_table_and_an_empty_file_are(self, path: str) -> None:
        storage.write_bytes(path, b"")  # of mktemp
        for _ in range(2):
            write_samples(path, samples())
        assert storage.read_table(path).num_rows == 1

    def test_pages_and_reports(self, tmp_path: Path, runner: Callable[..., Any]) -> None:
        path = tmp_path / "index.html"
        path.write_text("<!DOCTYPE html><html><title>My home page</title>")
        for command in (("report", "labels"), ("study", "report", "study")):
            (tmp_path / "labels").mkdir(exist_ok=True)
            done = runner(*command, "--out", path if command[0] == "report" else tmp_path)
            assert done.code == 2 and path.read_text().endswith("My home page</title>")
        assert "exists already and is not a report" in runner("report", tmp_path / "labels", "--out", path).err
        assert outputs.is_page(b"<!doctype html>\n<html><head><title>raymotion report: x</title>")

    def test_a_folder_that_is_replaced_holds_nothing_else(self, tmp_path: Path) -> None:
        from raymotion.models.hub import _check_free

        storage.write_bytes(tmp_path / ".cache" / "huggingface" / "x", b"x")  # a download leaves it
        _check_free(tmp_path, None, overwrite=True)
        storage.write_bytes(tmp_path / ".cache" / "mine", b"x")
        with pytest.raises(InputError, match=r"\.cache/mine.*checkpoint"):
            _check_free(tmp_path, None, overwrite=True)


class TestAClaimedFolder:
    def test_only_what_was_claimed_is_removed(self, tmp_path: Path) -> None:
        storage.write_bytes(tmp_path / "mine" / "x", b"x")
        with pytest.raises(InputError, match=r"holds x.*not made by raymotion"):
            outputs.claim(tmp_path / "mine")
        outputs.remove_claimed(tmp_path / "mine")
        (tmp_path / "mine" / storage.MARK).write_text("{}")
        outputs.remove_claimed(tmp_path / "mine")
        assert (tmp_path / "mine" / "x").exists()
        outputs.claim(tmp_path / "ours")
        storage.write_bytes(tmp_path / "ours" / "x", b"x")
        outputs.claim(tmp_path / "ours")
        outputs.remove_claimed(tmp_path / "ours")
        assert not (tmp_path / "ours").exists()


class TestAFullDisk:
    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Path]:
        """A real one, of 256 KB."""
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except OSError:
            pytest.skip("no mount")
        if done.returncode:
            pytest.skip("may not mount a disk")
        yield place
        subprocess.run(["umount", "-l", str(place)], check=True)

    def test_the_path_is_named_and_no_piece_is_left(self, disk: Path) -> None:
        storage.write_bytes(disk / "small", b"x")
        with pytest.raises(DiskFull) as error:
            storage.write_bytes(disk / "big", bytes(500_000))
        assert str(error.value).startswith(f"{disk}/big: no space left on the device. Make room there")
        assert error.value.exit_code == 1 and [path.name for path in disk.iterdir()] == ["small"]

    def test_a_memory_map_does_not_kill_the_process(self, disk: Path) -> None:
        array = np.lib.format.open_memmap(disk / "a.npy", mode="w+", dtype=np.uint8, shape=(10_000_000,))
        with pytest.raises(OSError, match="No space left") as error:
            reserve(disk / "a.npy")
        assert is_full(error.value)
        del array

    def test_pictures_that_do_not_fit_into_the_cache(self, disk: Path, tmp_path: Path) -> None:
        from raymotion.train.pictures import cache_pictures

        with pytest.raises(DiskFull, match=f"{disk}: no space left"):
            cache_pictures([None] * 100, 64, threads=1, folder=str(disk))
        assert [path.suffix for path in disk.iterdir()] == [".lock"]  # empty

    def test_what_c_and_rust_say_of_it(self, disk: Path) -> None:
        from safetensors.numpy import save_file

        with (
            pytest.raises(DiskFull, match=f"{disk}/w: no space left"),
            storage.explained(disk / "w", "write it"),
        ):
            save_file({"w": np.zeros(1_000_000)}, disk / "w")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (ValueError("full"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors_and_through_those_that_it_caused(error: Exception, full: bool) -> None:
    assert is_full(error) is full
    try:
        raise RuntimeError("outer") from error
    except RuntimeError as outer:
        assert is_full(outer) is full


def test_a_quota_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFull, match="the disk quota is used up"):
        storage.write_bytes(tmp_path / "x", b"x")
    assert list(tmp_path.iterdir()) == []


def test_ray_trains_full_disk_names_a_path() -> None:
    from raymotion.train.fit import _explained

    class Failed(Exception):
        worker_failures: dict[int, Exception]

    error = Failed("workers failed")
    error.worker_failures = {0: OSError("Error writing bytes to file. Detail: [errno 28] No space left on device")}
    assert str(_explained(error, "/run")).startswith("/run: no space left")
    error.worker_failures = {0: DiskFull("/tmp/x: no space left on the device")}
    assert str(_explained(error, "/run")).startswith("/tmp/x: no space left")


def test_no_trial_and_no_row_is_to_blame_for_a_full_disk(tmp_path: Path) -> None:
    from raymotion.batch.worker import _process
    from raymotion.pipeline.stages import Item
    from raymotion.study.record import machine_fault

    class Full:
        name, whole_shard = "full", False

        def setup(self, threads: int, device: str) -> None: ...

        def process(self, items: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    item = Item({"sample_id": "a", "image_uri": None})
    with pytest.raises(DiskFull):
        _process(Full(), [item])
    assert item.failure is None
    assert machine_fault(OSError(errno.ENOSPC, "full"), "study") is not None
    assert machine_fault(ConnectionError("s3 is down"), "study") == "s3 is down"
    assert machine_fault(ValueError("a shape"), "study") is None


def test_a_report_file_is_looked_at_before_the_work(tmp_path: Path, runner: Callable[..., Any]) -> None:
    """`--report FILE` of EMOTIC is looked at before the work."""
    for text in ("mine", '{"mine": 1}', '{"name": "x", "kind": "emotic-report"}'):
        (tmp_path / "notes.txt").write_text(text)
        done = runner(
            "data", "prepare", "emotic", tmp_path, "--report", tmp_path / "notes.txt", "--out", tmp_path / "e.parquet"
        )
        assert done.code == 2 and "notes.txt: exists already" in done.err
        assert (tmp_path / "notes.txt").read_text() == text


def test_an_earlier_report_is_replaced(tmp_path: Path) -> None:
    from raymotion.data.readers.emotic.report import EmoticReport, is_report

    storage.write_json(tmp_path / "r.json", EmoticReport().to_dict())
    outputs.require_replaceable(tmp_path / "r.json", "a report on EMOTIC", is_report)


def test_tables_that_only_bear_the_name_of_ours(tmp_path: Path) -> None:
    from raymotion.report.audit import _check_out
    from raymotion.train.runs import RUNS, strange_entries
    from raymotion.train.transfer import TABLES

    storage.write_text(tmp_path / "per_emotion.csv", "mine")
    with pytest.raises(InputError, match=r"holds per_emotion\.csv"):
        _check_out(tmp_path)
    storage.write_text(tmp_path / "audit.html", "<!doctype html><title>raymotion audit</title>")  # cut off after it
    _check_out(tmp_path)
    assert strange_entries({"finetune.csv"}, TABLES) == ["finetune.csv"]
    assert strange_entries({"finetune.csv", RUNS}, TABLES) == []
