"""The working folder of a training run: removed only if it is raymotion's, and no tie where nothing was learned."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from raymotion import storage
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import Diverged, InputError, RunFailed, SettingsMismatch
from raymotion.folders import lock as folder_lock
from raymotion.folders import outputs
from raymotion.folders.outputs import run_folder
from raymotion.folders.owner import Owner
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.train import fit as module
from raymotion.train.fit import fit
from raymotion.vocabulary import Vocabulary


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    rows = [
        {
            "sample_id": f"s:{i}", "group_id": f"s:{i}", "captions": [f"a {('sunny', 'grey')[i % 2]} scene"],
            "labels": [("happy", "sad")[i % 2]], "split": ("train", "train", "val", "test")[i // 2 % 4], "source": "x",
        }
        for i in range(32)
    ]  # fmt: skip
    path = tmp_path / "samples.parquet"
    write_samples(path, table_from_rows(rows, Vocabulary("weather-2", ("happy", "sad"))))
    return path


def recipe(samples: Path, seed: int = 0, epochs: int = 1) -> TeacherRecipe:
    return TeacherRecipe.model_validate(
        {
            "workers": 0, "model": {"size": "tiny"}, "tokenizer": {"size": 100}, "data": {"samples": str(samples)},
            "optimiser": {"epochs": epochs, "batch_size": 16}, "seed": seed,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "error", [RunFailed("Ray did not start"), KeyboardInterrupt(), OSError(28, "full"), MemoryError()], ids=repr
)
def test_a_run_without_an_epoch_leaves_nothing(samples: Path, tmp_path: Path, monkeypatch: Any, error: Any) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "_train_here", fail)
    for seed in (0, 1):
        with pytest.raises(type(error)):
            fit(recipe(samples, seed), tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir() if path.name != "xdg") == ["samples.parquet"]


@pytest.mark.parametrize("epoch", [None, "progress.json", "epochs/latest.json", "train/checkpoint_0/model.json"])
def test_a_run_that_was_killed_binds_only_with_an_epoch(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: str | None
) -> None:
    run = run_folder(tmp_path / "out")
    outputs.claim(run)
    storage.write_json(storage.join(run, "settings.json"), {"seed": 7})
    if epoch:
        storage.write_json(storage.join(run, epoch), {"epoch": 1})

    def fail(*_: object) -> None:
        raise RunFailed("it got as far as training")

    monkeypatch.setattr(module, "_train_here", fail)
    with pytest.raises(SettingsMismatch if epoch else RunFailed):
        fit(recipe(samples), tmp_path / "out")
    assert Path(run).exists() is bool(epoch)


def test_a_folder_of_somebody_elses_by_that_name_stays(samples: Path, tmp_path: Path) -> None:
    mine = Path(run_folder(tmp_path / "out"), "settings.json")
    storage.write_text(mine, "{}")
    with pytest.raises(InputError, match=r"holds settings\.json, and was not made by raymotion"):
        fit(recipe(samples), tmp_path / "out")
    assert mine.read_text() == "{}" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [None, Diverged("at once")])
def test_a_run_that_lost_its_folder_leaves_it_to_the_new_owner(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.05)

    def taken_over(*_: object) -> None:
        storage.write_json(tmp_path / ".out.lock", asdict(replace(Owner.here(), token="theirs")))
        try:
            time.sleep(20)
        finally:
            if error is not None:
                raise error

    monkeypatch.setattr(module, "_train_here", taken_over)
    with pytest.raises(RunFailed, match="another process took this folder over"):
        fit(recipe(samples), tmp_path / "out")
    assert Path(run_folder(tmp_path / "out"), "settings.json").exists()
