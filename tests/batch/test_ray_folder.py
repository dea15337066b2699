"""What is removed from a temporary folder: what this program made and its process left, never what looks like it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raymotion.batch.ray_folder import MARK, ray_folder, remove_abandoned

HOLD = (
    "import sys, time; from raymotion.batch.ray_folder import ray_folder\n"
    "with ray_folder(sys.argv[1]) as folder: print(folder, flush=True); time.sleep(60)"
)


@pytest.fixture
def abandoned(tmp_path: Path) -> Path:
    """The folder of a process that was killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    (folder / "session").mkdir()
    remove_abandoned(tmp_path)
    assert folder.is_dir(), "its process lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def test_what_a_killed_process_left_is_removed_and_a_folder_of_ones_own_at_the_end(tmp_path, abandoned):
    with ray_folder(tmp_path) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [Path(folder).name] and not abandoned.exists()
        (Path(folder) / "session").mkdir()
    assert list(tmp_path.iterdir()) == []


def test_what_only_has_the_name_stays(tmp_path, abandoned):
    """Names that the old sweep took for those of dead processes."""
    names = ["raymotion-2024-photos", "raymotion-4194305-out", "raymotion-0-", "raymotion-999999-x"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.jpg").write_bytes(b"mine")
    (tmp_path / "raymotion-1-file").write_bytes(b"mine")
    (tmp_path / names[0] / MARK).write_text("{}")
    (tmp_path / names[1] / MARK).write_bytes(b"\xff")
    os.mkfifo(tmp_path / names[2] / MARK)
    shutil.copytree(abandoned, tmp_path / "raymotion-backup")  # the mark came along, and is not of this folder
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "raymotion-link").symlink_to("elsewhere")
    shutil.copy(abandoned / MARK, tmp_path / "elsewhere" / MARK)
    remove_abandoned(tmp_path)
    left = {*names, "raymotion-1-file", "raymotion-backup", "elsewhere", "raymotion-link"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert all((tmp_path / name / "mine.jpg").read_bytes() == b"mine" for name in names)


@pytest.mark.parametrize("change", [{"boot": "of another machine"}, {"boot": ""}, {"pid": -1}, {"inode": 1}])
def test_what_another_machine_left_in_a_shared_folder_stays(tmp_path, abandoned, change):
    mark = abandoned / MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), **change}))
    remove_abandoned(tmp_path)
    assert abandoned.is_dir()


def test_a_live_process_of_another_container_keeps_its_folder(tmp_path):
    """Its number means nothing here, and may be nobody's; its lock is held all the same."""
    with ray_folder(tmp_path) as folder:
        mark = Path(folder) / MARK
        mark.write_text(json.dumps({**json.loads(mark.read_text()), "pid": 2**22 + 1, "namespace": "pid:[1]"}))
        remove_abandoned(tmp_path)
        assert Path(folder).is_dir()
