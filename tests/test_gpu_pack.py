"""benchmarks/gpu_pack.sh and gpu_run.sh: what is packed, and that it is found where it is unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest


def has_tools() -> bool:
    """Returns whether xz is there, and a tar that sorts names."""
    if not shutil.which("xz") or not (tar := shutil.which("tar")):
        return False
    return "GNU tar" in subprocess.run([tar, "--version"], capture_output=True, text=True).stdout


pytestmark = pytest.mark.skipif(not has_tools(), reason="needs xz and GNU tar")

REPOSITORY = Path(__file__).resolve().parents[1]
# Stands in for the installer: notes what it was asked for, and writes what wheels bring along.
UV = """#!/bin/sh
echo "$@" >>{log}
while [ $# -gt 0 ]; do
    case $1 in
    --target) site=$2 ;;
    --requirement) cat "$2" >>{log} ;;
    esac
    shift
done
for name in ray/_private ray/jars ray/serve ray/dashboard/client timm/__pycache__ timm-1.dist-info bin; do
    mkdir -p "$site/$name" && echo x >"$site/$name/file"
done
echo "file:///secret/place" >"$site/timm-1.dist-info/direct_url.json"
{more}
"""


def pack(folder: Path, name: str, more: str = "") -> subprocess.CompletedProcess[str]:
    uv = folder / "uv"
    uv.write_text(UV.format(log=folder / "log", more=more))
    uv.chmod(0o755)
    return subprocess.run(
        [str(REPOSITORY / "benchmarks/gpu_pack.sh"), str(folder / name)],
        capture_output=True, text=True, env={**os.environ, "UV": str(uv)},
    )  # fmt: skip


def test_the_pack_holds_locked_versions_without_places(tmp_path: Path) -> None:
    done = pack(tmp_path, "one.tar.xz")
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / "one.tar.xz") as archive:
        members = archive.getmembers()
    assert {own.name for own in members if own.isfile()} == {"./ray/_private/file", "./timm-1.dist-info/file"}
    assert {(own.uid, own.gid, own.mtime, own.uname) for own in members} == {(0, 0, 0, "")}
    asked = (tmp_path / "log").read_text()
    assert "--python-version 3.12" in asked and "--no-deps" in asked
    locked = (REPOSITORY / "requirements.lock").read_text().split()
    wanted = [line for line in asked.splitlines() if "==" in line]
    assert set(wanted) <= set(locked) and {line.split("==")[0] for line in wanted} >= {"ray", "timm", "pydantic"}
    pack(tmp_path, "two.tar.xz")
    assert (tmp_path / "one.tar.xz").read_bytes() == (tmp_path / "two.tar.xz").read_bytes()


def test_too_large_a_pack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST_BYTES", "40000")
    done = pack(tmp_path, "large.tar.xz", 'head -c 50000 /dev/urandom >"$site/noise"')
    assert done.returncode == 1 and "40000 is the most" in done.stderr
    assert not (tmp_path / "large.tar.xz").exists()


def test_the_benchmark_runs_with_what_was_unpacked(tmp_path: Path) -> None:
    assert pack(tmp_path, "pack.tar.xz").returncode == 0
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nls "${PYTHONPATH#*:}"\nexit 1\n')
    python.chmod(0o755)
    command = [str(REPOSITORY / "benchmarks/gpu_run.sh"), "--part", "attack"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHON": str(python), "ARCHIVE": str(tmp_path / "pack.tar.xz")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, "the exit code is the benchmark's"
    assert done.stdout.split() == ["benchmarks/gpu.py", "--part", "attack", "ray", "timm", "timm-1.dist-info"]
    # From another folder, with names that are relative to it.
    environment |= {"PYTHON": "./python", "ARCHIVE": "pack.tar.xz"}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (1, done.stdout), again.stderr
    environment["ARCHIVE"] = "no.tar.xz"
    gone = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert gone.returncode == 2 and gone.stderr.startswith(f"error: {tmp_path}/no.tar.xz is not there. Make it")


@pytest.mark.parametrize("uv", ["uv", "./uv"])
def test_uv_and_the_archive_are_found_from_the_folder_of_the_caller(tmp_path: Path, uv: str) -> None:
    """By its name on the PATH, and beside the caller."""
    assert pack(tmp_path, "one.tar.xz").returncode == 0
    found = tmp_path / ("bin" if uv == "uv" else ".")
    found.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "uv", found / "copy")
    (tmp_path / "uv").unlink()
    (found / "copy").rename(found / "uv")
    command = [str(REPOSITORY / "benchmarks/gpu_pack.sh"), "two.tar.xz"]
    environment = {**os.environ, "UV": uv, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.tar.xz").read_bytes() == (tmp_path / "one.tar.xz").read_bytes()
    environment["UV"] = "no-uv"
    gone = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert gone.returncode == 2 and "no-uv is not there" in gone.stderr
