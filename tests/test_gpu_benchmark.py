"""benchmarks/gpu.py: its table, its exit codes, and that a part which fails costs no figure of another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu as module

    return module


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_figure_is_compared_with_the_smallest_of_its_own_part_and_device(gpu: Any) -> None:
    job = gpu.Row("label", "job", "cuda", 90.0, "images/s", of=("decode", "network"), goal=0.9)
    rows = [
        gpu.Row("label", "decode", "cuda", 100.0), gpu.Row("label", "network", "cuda", 400.0), job,
        gpu.Row("embed", "decode", "cuda", 1.0), gpu.Row("label", "decode", "cpu", 2.0),
    ]  # fmt: skip
    found = gpu.with_shares(rows)
    share = found[found.index(next(row for row in found if row.name == "job")) + 1]
    assert (share.name, share.value, share.verdict) == ("job / decode", 0.9, "goal 0.9: reached")
    assert "goal" not in gpu.line(found[2]), "the goal is one of the share, not of the images/s"
    assert gpu.line(share).split()[:3] == ["label", "/", "decode"]
    # Decoding was measured on the GPU's machine and on the cores.
    assert [row.value for row in found if row.device == "both"] == [50.0]


def test_a_share_of_a_figure_that_is_missing_is_left_out(gpu: Any) -> None:
    rows = [
        gpu.Row("label", "decode", "cuda", error="OSError: no"),
        gpu.Row("label", "job", "cuda", 9.0, of=("decode",)),
    ]
    assert gpu.with_shares(rows) == rows
    assert gpu.line(rows[0]).endswith("ERROR: OSError: no")


def test_a_part_that_dies_keeps_what_it_has_measured(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part.py").write_text(
        "import json, os, sys\n"
        "rows = json.loads(sys.argv[2])[-1]\n"
        "row = {'part': 'label', 'name': 'decode', 'device': 'cpu', 'value': 3.0, 'of': []}\n"
        "open(rows, 'w').write(json.dumps(row) + '\\n' + '{\"part\": \"la')\n"
        "print('Segmentation fault', flush=True)\n"
        "os._exit(7)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))
    found = gpu.measure("label", "cpu", True, True, tmp_path, tmp_path, 60.0)
    assert found == [
        gpu.Row("label", "decode", "cpu", 3.0),
        gpu.Row("label", "the rest of the part", "cpu", error="ended with 7: Segmentation fault"),
    ]


def test_a_part_that_hangs_is_stopped(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "part.py"))
    (row,) = gpu.measure("label", "cpu", True, True, tmp_path, tmp_path, 0.5)
    assert row.error in ("stopped after 0 s", "stopped after 1 s")


def test_what_fails_within_a_part_is_a_row(gpu: Any, tmp_path: Path) -> None:
    bench = gpu.Bench("joint", "cpu", True, gpu.TINY, str(tmp_path), str(tmp_path), str(tmp_path / "rows"))
    with bench.measuring("step"):
        raise ValueError("no such thing\nmore")
    bench.tell("next", 1, "x")
    first, second = (json.loads(text) for text in gpu.read_lines(tmp_path / "rows"))
    assert first["error"] == "ValueError: no such thing" and first["value"] is None
    assert (second["name"], second["value"]) == ("next", 1.0)


def test_the_gpu_is_watched_while_a_part_runs(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '40, 1024'\necho '[N/A], 7'\necho '60, 2048'\nsleep 60\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with gpu.Watch() as watch:
        while len(watch.said) < 2:
            time.sleep(0.01)
    assert [(row.value, row.unit) for row in watch.rows("label")] == [(50.0, "%"), (2.0, "GiB")]
    monkeypatch.setenv("PATH", "")
    with gpu.Watch() as watch:
        pass
    assert watch.rows("label") == []


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: PyTorch finds no GPU here. Measure on the CPU with --cpu.\n"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_parts_run_on_a_cpu() -> None:
    done = run("--cpu", "--tiny", "--part", "attack", "--part", "joint", "--part", "oom")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["failed"] == 0 and set(told["seconds"]) == {"attack cpu", "joint cpu", "oom cpu"}
    value = {row["name"]: row.get("value") for row in told["rows"]}
    rates = [row["value"] for row in told["rows"] if row.get("unit") in ("queries/s", "samples/s")]
    assert len(rates) == 6 and min(rates) > 0
    assert value["batches of 16: rows with an answer"] == 1.0
    # Halved from 16 to what fits, and not to one image.
    assert value["batches of 16: largest that fitted"] == 2 and value["batches of 16: says so"] == 1.0
    losses = [value[name] for name in value if "loss of epoch" in name]
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=0.1)
