"""benchmarks/gpu.py: its table, its exit codes, and that a part which fails costs no figure of another."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
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
    started = time.monotonic()
    (row,) = gpu.measure("label", "cpu", True, True, tmp_path, tmp_path, 1.0)
    assert row.error == "stopped after 1 s" and time.monotonic() - started < 30


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
    # Of two GPUs, the one that was asked for.
    script.write_text(
        "#!/bin/sh\ncase $1 in\n--id=GPU-1) ;;\n*) echo '99, 9999' ;;\nesac\n"
        "echo '40, 1024'\necho '[N/A], 7'\necho '60, 2048'\nexec sleep 60\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with gpu.Watch("GPU-1") as watch:
        deadline = time.monotonic() + 30
        while len(watch.said) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert [(row.value, row.unit) for row in watch.rows("label")] == [(50.0, "%"), (2.0, "GiB")]
    with gpu.Watch(None) as watch:
        assert not hasattr(watch, "process")
    monkeypatch.setenv("PATH", "")
    with gpu.Watch("GPU-1") as watch:
        pass
    assert watch.rows("label") == []


def test_a_machine_without_git_is_described(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\necho 1234abcd\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert gpu.machine("cpu")["commit"] == "1234abcd"
    monkeypatch.setenv("PATH", "")
    assert gpu.machine("cpu")["commit"] is None


@pytest.mark.parametrize("population", [20, 100, 400])
def test_an_attack_is_measured_beside_a_network_that_is_sent_as_many_pictures(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, population: int
) -> None:
    from raymotion.robustness.pixel_attack import BATCH

    sent = {"cpu": list[int](), "cuda": list[int]()}
    monkeypatch.setattr(gpu, "forward_alone", lambda bench, *others: sent[bench.device].append(others[-1]) or 1.0)
    for name, value in {
        "recipe_of": None, "untrained": "", "as_predicted": ("", ""), "resized": "", "queries_a_second": 1.0,
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu, name, lambda *_, value=value, **__: value)
    size = dataclasses.replace(gpu.TINY, populations=(population,))
    for device in sent:
        bench = gpu.Bench("attack", device, True, size, str(tmp_path), str(tmp_path), str(tmp_path / "rows"))
        monkeypatch.setattr(bench, "samples", lambda *_, **__: "")
        gpu.attack(bench)
    assert sent == {device: [min(population, BATCH[device == "cuda"])] * 2 for device in sent}
    assert sent["cuda"][0] == min(population, 256) and sent["cpu"][0] == min(population, 32)


@pytest.mark.parametrize(("device", "goals"), [("cpu", 0), ("cuda", 2)])
def test_precisions_have_a_goal_on_a_gpu_alone(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, goals: int
) -> None:
    from raymotion.batch import label_dataset, labels

    table = pd.DataFrame({gpu.KEY: ["a", "b"], "joy": [0.1, 0.9], "anger": [0.9, 0.1]})
    table.attrs["labels"] = ["joy", "anger"]
    monkeypatch.setattr(labels, "label", lambda *_, **__: None)
    monkeypatch.setattr(label_dataset, "open_labels", lambda _: table)
    bench = gpu.Bench("precision", device, True, gpu.TINY, str(tmp_path), str(tmp_path), str(tmp_path / "rows"))
    gpu.compare(bench, "net", "samples", "model")
    rows = [json.loads(text) for text in gpu.read_lines(tmp_path / "rows")]
    assert len(rows) == 4 and sum(row["goal"] is not None or row["most"] is not None for row in rows) == goals
    assert all(("no goal on a CPU" in row["name"]) == (device == "cpu") for row in rows)


def steps_of(gpu: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[str]:
    """The parts that a command would measure."""
    done: list[str] = []
    monkeypatch.setattr(gpu, "measure", lambda part, *_: done.append(part) or [])
    monkeypatch.setattr(gpu, "write_pictures", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 0
    return done


def test_a_part_named_twice_is_measured_once(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--cpu", "--part", "joint", "--part", "attack", "--part", "joint"]
    assert steps_of(gpu, monkeypatch, *options) == ["joint", "attack"]


def test_a_cpu_pretends_to_run_out_of_memory_with_little_of_everything_alone(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps_of(gpu, monkeypatch, "--cpu") == [part for part in gpu.PARTS if part != "oom"]
    assert sorted(steps_of(gpu, monkeypatch, "--cpu", "--tiny")) == sorted(gpu.PARTS)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--cpu", "--part", "oom"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2 and "with --tiny only" in capsys.readouterr().err


@pytest.mark.slow
def test_without_a_gpu_it_says_so() -> None:
    done = run(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 3 and done.stdout == ""
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
