"""`raymotion status`: how far a job, a training run or a study is, from its folder alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymotion.batch.job import run_job
from raymotion.batch.status import job_status
from raymotion.data.parts import running_job, write_job
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.folders.owner import Owner
from raymotion.models.checkpoint import read_checkpoint_info
from raymotion.train.crossfit import cross_fit
from raymotion.train.fit import fit
from raymotion.train.loop import Run
from raymotion.train.recipe import load_recipe
from raymotion.train.status import comparison_status, training_status
from raymotion.vocabulary import VALENCE_3


@pytest.mark.parametrize("remote", [False, True])
def test_a_job_that_runs_is_interrupted_dies_and_is_finished(
    mean_job: Any, mean_stage: Any, write_table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str,
    remote: bool, runner: Callable[..., Any],
) -> None:  # fmt: skip
    out = f"{s3}/job" if remote else tmp_path / "out"
    stage, told = mean_stage(), []
    process = type(stage).process

    def looks(self: Any, items: Any) -> None:
        told.append(job_status(out))
        if len(told) == 8:
            raise KeyboardInterrupt
        process(self, items)

    monkeypatch.setattr(type(stage), "process", looks)
    samples = write_table(12, missing=[1])
    job = mean_job(stage=stage, samples=samples, out=out, workers=0, shard_rows=4, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        run_job(job)
    # The stage saw rows 0, 2, 3 of the first shard (row 1 has no file), then four, then one of the last.
    assert [(status.state, status.done, status.total) for status in told] == [
        ("running", shard * 4, 12) for shard in (0, 0, 0, 1, 1, 1, 1, 2)
    ]
    assert told[0].per_second is None and told[-1].per_second and told[-1].left is not None and told[-1].left > 0
    assert told[-1].lines == ["quarantine: 1 image_missing"] and f"process {Owner.here().pid}" in told[-1].who
    done = runner("status", out)
    assert done.code == 0 and "means: interrupted\n  8 of 12 rows (67 %)" in done.out, done.out + done.err
    assert "The same command goes on." in done.out and "1 image_missing" in done.out
    run_job(job)
    done = runner("status", out)
    assert done.out.startswith("means: complete\n  12 of 12 rows (100 %)"), done.out
    assert "goes on" not in done.out


def test_a_job_whose_process_is_gone_is_dead(mean_job: Any, write_table: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_job(mean_job(samples=write_table(4), out=out, workers=0))
    write_job(str(out), {**running_job(out), "status": "running"})
    owner = json.loads(json.dumps({**vars(Owner.here()), "pid": 2**22 + 1}))
    (out / ".raymotion.lock").write_text(json.dumps(owner))
    status = job_status(out)
    assert (status.state, status.left) == ("dead", None) and f"process {2**22 + 1}" in status.who
    assert "The same command goes on." in "\n".join(status.text())


def written(folder: Path) -> str:
    """Writes a table of captions to train on."""
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"s{i}", "source": "t", "captions": [f"word{i % 3} and more"],
            "split": ("train", "train", "val", "test")[i % 4], "labels": [VALENCE_3.labels[i % 3]],
        }
        for i in range(24)
    ]  # fmt: skip
    write_samples(folder / "s.parquet", table_from_rows(rows, VALENCE_3))
    return str(folder / "s.parquet")


def test_a_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any]) -> None:
    options = {
        "data": {"samples": written(tmp_path)}, "workers": 0, "use_gpu": False,
        "optimiser": {"epochs": 3, "patience": 3},
    }  # fmt: skip
    recipe = load_recipe("teacher-demo", options=options)
    out, told, step = tmp_path / "teacher", [], Run.step

    def looks(self: Run) -> Any:
        told.append(training_status(out))
        return step(self)

    monkeypatch.setattr(Run, "step", looks)
    fit(recipe, out)
    assert [(own.state, own.done, own.total) for own in told] == [("running", epochs, 3) for epochs in range(3)]
    assert re.match(r"epoch 2: val_bce \d", told[2].lines[0]) and f"process {Owner.here().pid}" in told[2].who
    done = runner("status", out)
    epochs = len(read_checkpoint_info(out).training["history"])
    assert done.code == 0 and done.out.startswith(f"training: complete\n  {epochs} epochs"), done.out


def test_runs_that_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any]) -> None:
    """A cross-fit: while it runs, killed in its second run, and complete; `carryover` and `finetune` share this."""
    options = {"data": {"samples": written(tmp_path)}, "workers": 0, "use_gpu": False, "optimiser": {"epochs": 3}}
    recipe, out, told, step = load_recipe("teacher-demo", options=options), tmp_path / "out", [], Run.step

    def looks(self: Run) -> Any:
        told.append(comparison_status(out))
        if len(told) == 6:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Run, "step", looks)
    with pytest.raises(KeyboardInterrupt):
        cross_fit(recipe, out, folds=2, parallel=False)
    assert [(own.state, own.done, own.total) for own in told] == [("running", i // 3, 3) for i in range(6)]
    assert told[0].what == "cross-fit" and f"process {Owner.here().pid}" in told[0].who
    assert any(re.match(r"without-fold-1: epoch \d/3", line) for line in told[5].lines), told[5].lines
    done = runner("status", out)
    assert done.code == 0 and "cross-fit: dead\n  1 of 3 runs (33 %)" in done.out, done.out + done.err
    assert "The same command goes on." in done.out
    cross_fit(recipe, out, folds=2, parallel=False)
    done = runner("status", out)
    assert done.out.startswith("cross-fit: complete\n  3 of 3 runs (100 %)"), done.out
    (out / "crossfit.json").unlink()
    assert "the results are not written yet" in runner("status", out).out
    (out / "_runs.json").write_text("{")
    done = runner("status", out)
    assert done.code != 0 and "_runs.json: is damaged" in done.err, done.err


def test_any_other_folder_is_told(tmp_path: Path, runner: Callable[..., Any]) -> None:
    done = runner("status", tmp_path)
    assert done.code == 2 and "holds no job, no training run, no comparison of runs and no study" in done.err
