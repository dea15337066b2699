"""The training loop without Ray: it learns, it goes on exactly, it uses the splits as they are meant."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data.provenance import MADE_FROM
from raymotion.data.samples import attach_vocabulary, table_from_rows, write_samples
from raymotion.errors import InputError, SettingsMismatch
from raymotion.folders.outputs import run_folder
from raymotion.models.inputs.captions import PreparedCaptions
from raymotion.models.inputs.regions import PreparedRegions, RegionInput
from raymotion.models.training_set import TrainingSet
from raymotion.models.visualbert.recipe import TeacherDataSettings, TeacherOptimiserSettings, TeacherRecipe
from raymotion.train.batches import BatchLoader
from raymotion.train.fit import fit
from raymotion.train.loop import CURRENT, train
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import kind_of
from raymotion.train.schedule import epoch_rows, schedule
from raymotion.train.task import Task
from raymotion.train.workers import ALONE, Workers
from raymotion.vocabulary import Vocabulary

Said = Callable[..., np.ndarray]
LABELS = Vocabulary("weather-3", ("calm", "happy", "sad"))
WORDS = {
    "happy": ("sunny", "party", "laughing"),
    "sad": ("grey", "funeral", "crying"),
    "calm": ("lake", "evening", "quiet"),
}
DIM, COUNT = 6, 2


def rows(n: int, *, seed: int = 0, captions: bool = True) -> list[dict[str, Any]]:
    """Samples whose caption tells their emotion, mostly."""
    rng, result = np.random.default_rng(seed), []
    for i in range(n):
        label = LABELS.labels[rng.choice(3, p=[0.2, 0.6, 0.2])]
        word = rng.choice(WORDS[label if rng.random() < 0.9 else "calm"])
        result.append(
            {
                "sample_id": f"s:{i}",
                "group_id": f"s:{i}",
                "captions": [f"a {word} scene with {rng.choice(['people', 'trees', 'a house'])}"] if captions else [],
                "labels": [label],
                "label_weights": [0.5],
                "split": ("train", "train", "train", "val", "test")[i % 5],
                "source": "test",
            }
        )
    return result


def write_features(folder: Path, samples: list[dict[str, Any]], *, missing: frozenset[str] = frozenset()) -> None:
    """Region features whose first number is the happiness of the picture."""
    ids = [row["sample_id"] for row in samples if row["sample_id"] not in missing]
    happy = np.array([row["labels"] == ["happy"] for row in samples if row["sample_id"] not in missing])
    values = np.random.default_rng(3).normal(size=(len(ids), COUNT, DIM)) * 0.3
    values[:, :, 0] += np.where(happy, 2.0, -2.0)[:, None]
    fixed = lambda a, kind: pa.FixedSizeListArray.from_arrays(pa.array(a.reshape(-1), kind), a[0].size)  # noqa: E731
    table = pa.table(
        {
            "sample_id": ids,
            **{own.name: pa.nulls(len(ids), own.type) for own in MADE_FROM},
            "features": fixed(values.astype(np.float16), pa.float16()),
            "mask": fixed(np.ones((len(ids), COUNT), bool), pa.bool_()),
        }
    ).replace_schema_metadata(
        {b"raymotion.regions": json.dumps({"name": "d", "weights": "random", "count": COUNT, "dim": DIM}).encode()}
    )
    storage.write_table(folder / "data/part-0.parquet", table)
    storage.write_json(folder / "_job.json", {"status": "complete", "digest": "x"})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.parquet"
    write_samples(path, table_from_rows(rows(200), LABELS))
    return path


def recipe(samples: Path, *, features: Path | None = None, **settings: Any) -> TeacherRecipe:
    optimiser = {"lr": 5e-3, "backbone_lr": 5e-3, "epochs": 4, "batch_size": 16, **settings.pop("optimiser", {})}
    data = {"samples": str(samples), "features": features and str(features), **settings.pop("data", {})}
    return TeacherRecipe.model_validate(
        {
            "workers": 0,
            "model": {"size": "tiny"},
            "tokenizer": {"size": 200},
            "data": data,
            "optimiser": optimiser,
            **settings,
        }
    )


def loaded(settings: TeacherRecipe, folder: Path) -> TrainingSet:
    """What a worker reads."""
    return TrainingSet.load(str(folder), kind_of(settings).inputs(settings))


def captions_of(data: TrainingSet) -> PreparedCaptions:
    own = data.inputs["captions"]
    assert isinstance(own, PreparedCaptions)
    return own


def test_it_learns_what_captions_say_and_the_books_are_right(samples: Path, tmp_path: Path, said: Said) -> None:
    epochs: list[Mapping[str, Any]] = []
    result = fit(recipe(samples), tmp_path / "out", progress=epochs.append)
    info = result.info
    assert info.validation is not None and info.test is not None
    # The words give the label away nine times in ten: far below the prior, far above the constant answer.
    assert info.validation["metrics"]["bce"]["value"] < info.validation["metrics"]["bce"]["prior"] - 0.15
    assert info.test["metrics"]["top_1"]["value"] > info.test["metrics"]["top_1"]["constant"] + 0.1
    assert (info.validation["samples"], info.test["samples"]) == (40, 40)
    assert info.reads == ("captions",) and info.input("regions") is None
    table = rows(200)
    train_rates = np.mean([LABELS.encode(row["labels"]) for row in table if row["split"] == "train"], axis=0)
    np.testing.assert_allclose(info.prior, train_rates, atol=1e-6)
    assert info.training["data"]["splits"] == {"train": 120, "val": 40, "test": 40}
    assert len(info.training["history"]) == 4 and info.training["best_epoch"] in (1, 2, 3, 4)
    assert epochs and epochs[-1]["epoch"] == 4
    # The saved validation figure is what the saved model gives: recomputed here from captions, by the definition.
    held_out = [row for row in table if row["split"] == "val"]
    p = said(info.folder, [row["captions"] for row in held_out]).astype(np.float64)
    y = np.stack([LABELS.encode(row["labels"]) for row in held_out])
    bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert abs(bce - info.validation["metrics"]["bce"]["value"]) < 1e-5
    assert abs(bce - min(e["val_bce"] for e in info.training["history"])) < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_same_seed_same_fingerprint_and_a_finished_run_does_nothing(samples: Path, tmp_path: Path) -> None:
    short = {"optimiser": {"epochs": 2}}
    one, two = fit(recipe(samples, **short), tmp_path / "a"), fit(recipe(samples, **short), tmp_path / "b")
    other = fit(recipe(samples, seed=1, optimiser={"epochs": 2}), tmp_path / "c")
    assert one.info.fingerprint == two.info.fingerprint != other.info.fingerprint
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    again = fit(recipe(samples, workers=0, optimiser={"epochs": 2}), tmp_path / "a")
    assert again.already_done and before == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    with pytest.raises(SettingsMismatch, match=r"optimiser\.epochs: 2 there, 3 here"):
        fit(recipe(samples, optimiser={"epochs": 3}), tmp_path / "a")
    write_samples(samples, table_from_rows(rows(200, seed=9), LABELS))
    with pytest.raises(SettingsMismatch, match="data_fingerprint"):
        fit(recipe(samples, optimiser={"epochs": 2}), tmp_path / "a")


def test_a_run_broken_after_any_epoch_ends_in_the_same_weights(samples: Path, tmp_path: Path) -> None:
    settings = recipe(samples, model={"size": "tiny", "dropout": 0.3}, optimiser={"epochs": 4, "word_dropout": 0.2})
    data = prepare_data(settings)
    kept: list[Path] = []

    class Crash(Exception):
        pass

    def run(name: str, crash_at: int | None, resume_from: Path | None) -> Path:
        def report(metrics: Mapping[str, Any], folder: str | None) -> None:
            assert folder is not None
            kept.append(Path(shutil.copytree(folder, tmp_path / f"{name}-{metrics['epoch']}-{len(kept)}")))
            if metrics["epoch"] == crash_at:
                raise Crash

        train(Task(settings, data), report=report, resume_from=None if resume_from is None else str(resume_from))
        return kept[-1]

    whole = run("whole", None, None)
    for crash_at in (1, 3):
        with pytest.raises(Crash):
            run("broken", crash_at, None)
        torch.manual_seed(99)  # what the process did before must not matter
        final = run("resumed", None, kept[-1])
        assert (final / CURRENT).read_bytes() == (whole / CURRENT).read_bytes()
        assert json.loads((final / "state.json").read_text()) == json.loads((whole / "state.json").read_text())


def test_an_interrupted_command_goes_on(samples: Path, tmp_path: Path) -> None:
    settings, out = recipe(samples, optimiser={"epochs": 3}), tmp_path / "out"
    undisturbed = fit(settings, tmp_path / "undisturbed").info
    import raymotion.train.fit as module

    original = module._plain

    def crash_after_two(metrics: Mapping[str, Any]) -> dict[str, float]:
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt
        return original(metrics)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_plain", crash_after_two)
        fit(settings, out)
    assert not out.exists() and Path(run_folder(out)).is_dir()
    with pytest.raises(SettingsMismatch, match="seed: 0 there, 5 here"):
        fit(settings.model_copy(update={"seed": 5}), out)
    # Ray would find nothing of what this process kept, and begin again.
    with pytest.raises(SettingsMismatch, match="workers: 0 there, 1 here"):
        fit(settings.model_copy(update={"workers": 1}), out)
    result = fit(settings, out)
    attempts = [epoch["attempt"] for epoch in result.info.training["history"]]
    assert attempts[0] == attempts[1] != attempts[2]  # epoch 2 had been kept when the crash came
    assert result.resumed_from == 2 and result.info.fingerprint == undisturbed.fingerprint
    assert not Path(run_folder(out)).exists()
    assert fit(settings.model_copy(update={"workers": 1}), out).already_done


def test_a_run_goes_on_where_its_data_were_moved_to(tmp_path: Path) -> None:
    table = rows(60)
    write_samples(tmp_path / "s.parquet", table_from_rows(table, LABELS))
    write_features(tmp_path / "f", table)
    settings, out = {"optimiser": {"epochs": 2}, "model": {"size": "tiny"}}, tmp_path / "out"

    def crash(metrics: Mapping[str, Any]) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("raymotion.train.fit._plain", crash)
        fit(recipe(tmp_path / "s.parquet", features=tmp_path / "f", **settings), out)
    shutil.move(tmp_path / "s.parquet", tmp_path / "t.parquet")
    shutil.move(tmp_path / "f", tmp_path / "g")
    moved = recipe(tmp_path / "t.parquet", features=tmp_path / "g", **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("raymotion.train.fit._plain", crash)
        fit(moved, out)
    # What workers on other machines read names the new place.
    regions = loaded(moved, Path(run_folder(out), "data")).inputs["regions"]
    assert isinstance(regions, PreparedRegions) and regions.features.folder == str(tmp_path / "g")
    assert fit(moved, out).resumed_from == 2


def test_early_stop_and_best_epoch(samples: Path, tmp_path: Path) -> None:
    # A rate that wrecks the model: validation never gets better again, so patience ends it.
    info = fit(
        recipe(samples, optimiser={"epochs": 30, "lr": 0.5, "backbone_lr": 0.5, "patience": 2}), tmp_path / "o"
    ).info
    history = info.training["history"]
    assert len(history) == info.training["best_epoch"] + 2 < 30
    assert min(history, key=lambda e: e["val_bce"])["epoch"] == info.training["best_epoch"]


def test_regions_alone_and_what_to_do_without_them(tmp_path: Path) -> None:
    table = rows(200, captions=False)
    missing = frozenset({"s:0", "s:3", "s:4"})
    write_samples(tmp_path / "s.parquet", table_from_rows(table, LABELS))
    write_features(tmp_path / "f", table, missing=missing)
    settings = recipe(
        tmp_path / "s.parquet", features=tmp_path / "f", model={"size": "tiny", "normalize_regions": True}
    )
    info = fit(settings, tmp_path / "out").info
    regions = info.input("regions")
    assert info.reads == ("regions",) and isinstance(regions, RegionInput) and regions.identity.dim == DIM
    # Samples with neither caption nor region are left out and counted, not learned as zeros.
    assert info.training["data"]["counts"]["without_input"] == 3
    assert info.training["data"]["splits"] == {"train": 119, "val": 39, "test": 39}
    assert info.validation is not None
    happy = next(c for c in info.validation["per_class"] if c["label"] == "happy")
    assert happy["average_precision"] > 0.95


def test_both_modalities_and_either_one_withheld(tmp_path: Path, said: Said) -> None:
    table = rows(200)
    write_samples(tmp_path / "s.parquet", table_from_rows(table, LABELS))
    write_features(tmp_path / "f", table)
    settings = recipe(
        tmp_path / "s.parquet", features=tmp_path / "f", data={"caption_dropout": 0.3, "region_dropout": 0.3}
    )
    info = fit(settings, tmp_path / "out").info
    assert info.reads == ("captions", "regions")
    held_out = [row for row in table if row["split"] == "test"]
    from raymotion.data.features import RegionFeatures

    regions, mask = RegionFeatures(tmp_path / "f").get([row["sample_id"] for row in held_out])
    captions = [row["captions"] for row in held_out]
    truth = np.array([row["labels"] == ["happy"] for row in held_out])
    for given_captions, given_mask in (
        (captions, np.zeros_like(mask)),
        ([[] for _ in captions], mask),
        (captions, mask),
    ):
        found = said(tmp_path / "out", given_captions, regions={"regions": regions, "region_mask": given_mask})
        p = found[:, LABELS.index("happy")]
        assert ((p > 0.5) == truth).mean() > 0.8


def test_soft_targets_learn_the_share_of_annotators(samples: Path, tmp_path: Path, said: Said) -> None:
    info = fit(recipe(samples, data={"soft_targets": True}), tmp_path / "o").info
    p = said(info.folder, [["a party scene with people"]])[0]
    # Every label carries a share of 0.5: a model of 0/1 targets would say more than 0.8.
    assert 0.3 < p[LABELS.index("happy")] < 0.65
    assert info.prior is not None and info.prior[LABELS.index("happy")] > 0.5  # the record is of labels, not of shares


def test_what_can_not_be_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"

    def reason(table: pa.Table, **settings: Any) -> str:
        write_samples(path, table)
        with pytest.raises(InputError) as caught:
            prepare_data(recipe(path, **settings))
        assert str(tmp_path) in str(caught.value)
        return str(caught.value)

    good = rows(20)
    assert "has no labels" in reason(
        attach_vocabulary(table_from_rows([{**r, "labels": None, "label_weights": None} for r in good]), None)
    )
    assert "has no splits" in reason(table_from_rows([{**r, "split": None} for r in good], LABELS))
    assert "no sample of the split val" in reason(table_from_rows([{**r, "split": "train"} for r in good], LABELS))
    leak = [{**r, "group_id": "same"} for r in good]
    assert "group 'same' is in train and in val" in reason(table_from_rows(leak, LABELS))
    write_features(tmp_path / "f", [{**r, "sample_id": "other:" + r["sample_id"]} for r in good])
    assert "holds features of none" in reason(table_from_rows(good, LABELS), features=tmp_path / "f")


def test_never_over_something_else(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is not a checkpoint"):
        fit(recipe(samples), tmp_path / "o")


def test_prepared_data_is_the_same_from_its_files(samples: Path, tmp_path: Path) -> None:
    settings = recipe(samples)
    data = prepare_data(settings)
    data.save(str(tmp_path / "d"))
    again = loaded(settings, tmp_path / "d")
    assert again.sample_ids == data.sample_ids and again.fingerprint == data.fingerprint
    assert (again.groups, again.counts, again.facts) == (data.groups, data.counts, data.facts)
    assert [t.tolist() for t in captions_of(again).tokens] == [t.tolist() for t in captions_of(data).tokens]
    assert again.targets.keys() == data.targets.keys() == {"emotions"}
    for name, values in data.targets["emotions"].arrays.items():
        np.testing.assert_array_equal(again.targets["emotions"].arrays[name], values)
    # The tokenizer has seen the training captions alone.
    write_samples(
        samples,
        table_from_rows(
            [{**r, "captions": ["zebra"] if r["split"] == "test" else r["captions"]} for r in rows(200)], LABELS
        ),
    )
    assert captions_of(prepare_data(recipe(samples))).tokenizer.get_vocab() == captions_of(data).tokenizer.get_vocab()


@given(n=st.integers(1, 60), world=st.integers(1, 5), epoch=st.integers(0, 3), seed=st.integers(0, 3))
def test_workers_share_all_rows_evenly(n: int, world: int, epoch: int, seed: int) -> None:
    shares = [epoch_rows(np.arange(n), seed=seed, epoch=epoch, rank=r, world=world) for r in range(world)]
    assert len({len(share) for share in shares}) == 1
    seen = np.concatenate(shares)
    assert set(seen) == set(range(n)) and len(seen) - n < world


def test_schedule_is_the_textbook_one() -> None:
    values = [schedule(step, 100, 0.1) for step in range(100)]
    assert values.index(max(values)) == 10 and values[10] == 1.0
    assert values[55] == pytest.approx(0.5) and values[99] == pytest.approx(0, abs=1e-3)
    assert all(b > a for a, b in pairwise(values[:11]))
    assert schedule(0, 10, 0.0) == 1.0


@pytest.mark.slow
def test_two_processes_learn_one_model_and_validate_every_row(samples: Path, tmp_path: Path) -> None:
    """Plain DDP over gloo, as Ray Train sets it up: both ranks end with the same weights, and no row is dropped."""
    settings = recipe(samples, optimiser={"epochs": 2}, model={"size": "tiny", "dropout": 0.0})
    data = prepare_data(settings)
    data.save(str(tmp_path / "data"))
    torch.multiprocessing.start_processes(
        _ddp_worker, args=(settings.model_dump(mode="json"), str(tmp_path)), nprocs=2, start_method="spawn"
    )
    from safetensors.torch import load_file

    zero, one = (load_file(tmp_path / f"rank{r}.safetensors") for r in (0, 1))
    assert all(torch.equal(zero[name], one[name]) for name in zero)
    states = [json.loads((tmp_path / f"state{r}.json").read_text()) for r in (0, 1)]
    assert states[0] == states[1]
    # The figure that both agreed on is that of all 40 rows, computed here in one process from the saved weights.
    task = Task(settings, data)
    model = task.build()
    model.load_state_dict(zero)
    p = BatchLoader(task, ALONE, first_epoch=0).predict(model, "val")["emotions"].astype(np.float64)
    y = data.targets["emotions"].arrays["hard"][data.splits["val"]]
    bce = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert states[0]["history"][-1]["val_bce"] == pytest.approx(bce, abs=1e-5)


def _ddp_worker(rank: int, settings: dict[str, Any], folder: str) -> None:
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    parsed = TeacherRecipe.model_validate(settings)
    models: list[torch.nn.Module] = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        models.append(model)
        return torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)

    last: dict[str, Any] = {}

    def report(metrics: Mapping[str, Any], kept: str | None) -> None:
        # The weights after the last epoch, before the best ones are put back.
        if len(last) == 0 or metrics["epoch"] > last["epoch"]:
            last.update(metrics)
            save_file({k: v.clone() for k, v in models[0].state_dict().items()}, f"{folder}/rank{rank}.safetensors")

    state = train(
        Task(parsed, loaded(parsed, Path(folder, "data"))), report=report, workers=Workers(rank, 2, wrap=wrap)
    )
    Path(folder, f"state{rank}.json").write_text(json.dumps({"history": state.history, "best": state.best}))
    torch.distributed.destroy_process_group()


def test_recipe_defaults_are_valid() -> None:
    assert TeacherRecipe(data=TeacherDataSettings(samples="x"), optimiser=TeacherOptimiserSettings()).workers == 1
