"""`raymotion attack poison`: one test set for all models, figures that agree with the runs, a command that resumes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raymotion import storage
from raymotion.config import recipes_folder
from raymotion.data.images.decode import read_picture
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.robustness.poison_rows import patched
from raymotion.vocabulary import VALENCE_3

Runner = Callable[..., Any]
COLOURS = ((40, 60, 160), (120, 120, 120), (230, 190, 40))
WORDS = ("gloomy", "plain", "sunny")
RECIPE = """\
kind: fractal
model: {image_size: 16, columns: 2, filters: [8, 16]}
data: {augmentation: none}
optimiser: {epochs: 8, patience: 9, batch_size: 16, lr: 0.01}
workers: 0
use_gpu: false
select_by: last
"""
TARGET = VALENCE_3.labels[0]


def write_set(folder: Path, n: int = 180, *, captions: bool = False) -> str:
    """Noisy pictures of 24 x 20 pixels whose colour tells the label; two rows share a group, but for the test."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        k = i % 3
        path = folder / f"{i:03d}.png"
        pixels = np.array(COLOURS[k]) + rng.normal(0, 25, (20, 24, 3))
        split = ("train", "train", "train", "val", "test")[i // 6 % 5]
        group = i if split == "test" else i // 6 * 6 + k
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"g{group}", "image_uri": str(path), "source": "t",
                "captions": [f"a {WORDS[k]} day, number {i}"] if captions else [], "labels": [VALENCE_3.labels[k]],
                "split": split,
            }
        )  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, VALENCE_3))
    return str(folder / "samples.parquet")


@dataclass(frozen=True)
class Made:
    samples: str
    out: Path
    command: tuple[object, ...]
    output: str

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "poison.json").read_text())
        return found


@pytest.fixture(scope="module", autouse=True)
def _one_thread_each() -> Iterator[None]:
    """Before `made` too: sums over more threads differ in the last bits, and models trained with them by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, runner: Runner) -> Made:
    folder = tmp_path_factory.mktemp("poison")
    samples, recipe = write_set(folder / "set"), folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    command = (
        "attack", "poison", recipe, "--samples", samples, "--out", folder / "out", "--target", TARGET,
        "--rates", 0.3, "--patch", 0.3, "--no-ray",
    )  # fmt: skip
    told = runner(*command, "--seeds", 2)
    assert told.code == 0, told.err
    return Made(samples, folder / "out", command, told.out)


def weights_of(run: Path) -> dict[str, bytes]:
    """The weights of a checkpoint, to the last bit."""
    return {name: own.numpy().tobytes() for name, own in load_file(run / "model.safetensors").items()}


def answers(out: Path, run: str) -> list[dict[str, Any]]:
    """The rows of a run's predictions for the test split."""
    table = storage.read_table(out / "runs" / run / "answers.parquet").to_pylist()
    return [row for row in table if row["split"] == "test"]


def test_all_models_are_scored_on_the_same_samples(made: Made) -> None:
    """2.8.6: the gallery of the poisoned model was larger by its training poisons, and that was the whole drop."""
    table = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    expected = sorted(name for name, row in table.items() if row["split"] == "test")
    runs = sorted(path.name for path in (made.out / "runs").iterdir())
    assert runs == ["clean-seed0", "clean-seed1", "rate-0.3-seed0", "rate-0.3-seed1"]
    for run in runs:
        assert sorted(row["sample_id"] for row in answers(made.out, run)) == expected, run
        info = read_checkpoint_info(made.out / "runs" / run)
        assert info.training["data"]["splits"] == {"train": 108, "val": 36, "test": 36}, "equally many rows"
    assert made.record["test_samples"] == 36 and made.record["train_samples"] == 108


def test_answers_to_other_samples_are_refused(made: Made, runner: Runner, tmp_path: Path) -> None:
    """2.8.6 again: a model that answers to its poisons beside the test set is not compared with one that does not."""
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    (out / "poison.json").unlink()
    path = out / "runs/rate-0.3-seed1/answers.parquet"
    table = storage.read_table(path)
    poisons = json.loads((out / "rate-0.3/seed1/poisons.json").read_text())["poisons"]
    more = table.slice(0, 5).to_pylist()
    for row, own in zip(more, poisons, strict=False):
        row |= {"sample_id": own["sample_id"], "split": "test"}
    storage.write_table(path, pa.concat_tables([table, pa.Table.from_pylist(more, schema=table.schema)]))
    told = runner(*[out if own == made.out else own for own in made.command], "--seeds", 2)
    assert told.code == 2 and "36 samples that are compared" in told.err.splitlines()[-1]


def test_poisons_replace_training_rows_and_nothing_else_changes(made: Made) -> None:
    before = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    drawn = []
    for seed in (0, 1):
        folder = made.out / f"rate-0.3/seed{seed}"
        poisons = {own["sample_id"]: own for own in json.loads((folder / "poisons.json").read_text())["poisons"]}
        assert len(poisons) == round(0.3 * 108)
        drawn.append(set(poisons))
        table = read_samples(folder / "samples.parquet").to_pylist()
        assert [row["sample_id"] for row in table] == list(before)
        for row in table:
            own = before[row["sample_id"]]
            if row["sample_id"] not in poisons:
                assert {name: row[name] for name in own} == own and row["label_source"] is None
                continue
            assert row["split"] == "train" and own["labels"] != [TARGET] == row["labels"]
            assert row["label_source"] == "poison/trigger" and row["group_id"] == own["group_id"]
            base, written = (read_picture(uri)[1] for uri in (own["image_uri"], row["image_uri"]))
            assert np.array_equal(written, patched(base, 0.3)) and not np.array_equal(written, base)
            told = poisons[row["sample_id"]]
            assert told["changed"] == (written != base).any(axis=2).sum() <= 36 and told["pixels"] == 480
    assert drawn[0] != drawn[1], "each seed draws its own"


def test_the_figures_are_those_of_the_runs(made: Made) -> None:
    table = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    (clean, dirty), labels = made.record["rows"], VALENCE_3.labels
    patched_table = {row["sample_id"]: row for row in read_samples(made.out / "triggered/samples.parquet").to_pylist()}
    for seed in (0, 1):
        for row, name in ((clean, f"clean-seed{seed}"), (dirty, f"rate-0.3-seed{seed}")):
            own = answers(made.out, name)
            said = [labels[int(np.argmax(each["probabilities"]))] for each in own]
            truth = [table[each["sample_id"]]["labels"][0] for each in own]
            right = np.array(said) == np.array(truth)
            assert row["metric"]["poisoned"][seed] == pytest.approx(right.mean())
            assert row["metric"]["samples"] == 36
            assert set(row["classes"]) == set(labels)
            for label, compared in row["classes"].items():
                assert compared["poisoned"][seed] == pytest.approx(right[np.array(truth) == label].mean())
            others = [each["sample_id"] for each in own if TARGET not in table[each["sample_id"]]["labels"]]
            model = load_model(made.out / "runs" / name)
            from raymotion.pipeline.predictor import Predictor

            values = Predictor(model).predict([patched_table[other]["image_uri"] for other in others])
            assert row["success"]["poisoned"][seed] == pytest.approx((values.argmax(axis=1) == 0).mean())
            without = [mark == TARGET for mark, real in zip(said, truth, strict=True) if real != TARGET]
            assert row["without_patch"]["clean"][seed] == pytest.approx(np.mean(without))
            assert row["success"]["samples"] == len(others) == 24
    assert dirty["success"]["clean"] == clean["success"]["poisoned"]
    drop = np.subtract(clean["metric"]["poisoned"], dirty["metric"]["poisoned"])
    assert dirty["metric"]["difference"]["seeds"] == pytest.approx(drop)
    with open(made.out / "poison.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(float(own["rate"]), int(own["seed"])) for own in lines] == [(0, 0), (0, 1), (0.3, 0), (0.3, 1)]
    assert float(lines[3]["success"]) == pytest.approx(dirty["success"]["poisoned"][1])
    assert float(lines[3]["accuracy_drop"]) == pytest.approx(drop[1])


def test_the_trigger_works_and_a_defence_finds_it(made: Made) -> None:
    dirty = made.record["rows"][1]
    assert min(dirty["success"]["poisoned"]) > 0.8 > 0.3 > max(dirty["success"]["clean"])
    assert max(dirty["without_patch"]["clean"]) < 0.3, "only with the patch"
    found = dirty["defences"]["activation clustering"]
    assert min(found["recall"]) > 0.4 and min(found["precision"]) > 0.6 and found["over_random"]["low"] > 0.1
    for name, own in dirty["defences"].items():
        assert own["random"] == pytest.approx(np.mean(own["flagged"]) / 108), name
        assert own["poisons"] == 32 and own["samples"] == 108
    assert all(own["recall"] == [] for own in made.record["rows"][0]["defences"].values())


def test_headline_table_and_page_agree(made: Made) -> None:
    lines = made.output.splitlines()
    assert lines[0].startswith("With fewer than 3 seeds nothing is shown")
    (row,) = [line for line in lines if line.startswith("30 %") and "cluster" not in line and "issues" not in line]
    dirty = made.record["rows"][1]
    without, gain = dirty["without_patch"], dirty["without_patch"]["difference"]
    assert f"{100 * np.mean(without['clean']):.0f} % without the patch" in lines[0]
    assert f"{np.mean(gain['seeds']):+.4f}" in row and f"{gain['low']:.3f}" in row and gain["low"] > 0.4
    assert gain["seeds"] == pytest.approx(np.subtract(without["poisoned"], without["clean"]))
    assert (without["samples"], without["groups"]) == (24, 24)
    assert f"{np.mean(dirty['success']['poisoned']):.4f}" in row and " 32 " in row
    page = (made.out / "poison.html").read_text()
    assert lines[0] in page and page.count("<figcaption") == 8 and "http" not in page.replace("http-equiv", "")
    assert f"{TARGET} (target)" in page and "clusters that validation lacks" in page


def test_status_counts_the_runs(made: Made, runner: Runner, tmp_path: Path) -> None:
    told = runner("status", made.out)
    assert told.code == 0 and told.out.startswith("poisoning: complete\n  4 of 4 runs (100 %)"), told.out + told.err
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    shutil.rmtree(out / "runs/rate-0.3-seed1")
    (out / "poison.json").unlink()
    told = runner("status", out)
    assert told.code == 0 and "\n  3 of 4 runs (75 %)" in told.out, told.out + told.err


def test_stopped_while_poisons_are_made_it_goes_on(
    made: Made, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Poisons of hours, of a collision say, with no run trained yet: the same command takes the folder for its own."""
    from raymotion.robustness import poison

    out = tmp_path / "out"
    command = [out if own == made.out else own for own in (*made.command, "--seeds", 2, "--no-defences")]
    write, asked = poison.write_poisons, list[str]()

    def stops(*arguments: Any, **more: Any) -> Any:
        asked.append(arguments[5])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return write(*arguments, **more)

    monkeypatch.setattr(poison, "write_poisons", stops)
    runner(*command)
    there = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    assert len(asked) == 2 and there == ["_runs.json", "rate-0.3"], there
    told = runner("status", out)
    assert told.code == 0 and "\n  0 of 4 runs (0 %)" in told.out, told.out + told.err
    kept = (out / "rate-0.3/seed0/poisons.json").stat().st_mtime_ns
    again = runner(*command)
    assert again.code == 0, again.err
    assert (out / "rate-0.3/seed0/poisons.json").stat().st_mtime_ns == kept, "finished poisons are not made again"
    figures = json.loads((out / "poison.json").read_text())["rows"]
    assert [row["success"] for row in figures] == [row["success"] for row in made.record["rows"]]


def test_the_same_command_trains_what_is_lost_alone_and_more_rates_add_runs(
    made: Made, runner: Runner, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    command = [out if own == made.out else own for own in made.command]
    # The tables name their pictures by where they are, so the copy's are made again, as they were.
    shutil.rmtree(out / "runs/rate-0.3-seed1")
    (out / "poison.json").unlink()
    marks = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    again = runner(*command, "--seeds", 2, "--rates", 0.05)
    assert again.code == 0, again.err
    assert all(path.stat().st_mtime_ns == before for path, before in marks.items())
    record = json.loads((out / "poison.json").read_text())
    assert [row["rate"] for row in record["rows"]] == [0.0, 0.05, 0.3]
    before = made.record["rows"][1]
    for name in ("metric", "success"):
        assert record["rows"][2][name]["poisoned"] == pytest.approx(before[name]["poisoned"], abs=1e-6)
    few, many = (json.loads((out / f"rate-{rate}/seed0/poisons.json").read_text()) for rate in (0.05, 0.3))
    assert few["poisons"] == many["poisons"][: len(few["poisons"])], "the poisons of a lower rate are the first ones"
    other = runner(*command, "--seeds", 2, "--patch", 0.4)
    assert other.code == 2 and "poison.patch" in other.err and other.err.count("\n") == 1


def test_what_was_measured_is_not_measured_again(
    made: Made, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raymotion.robustness import poison
    from raymotion.robustness.poison_model import OpenedModel

    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    command = [out if own == made.out else own for own in (*made.command, "--seeds", 2)]
    opened: list[str] = []

    class Counting(OpenedModel):
        def __init__(self, recipe: Any, data: Any, folder: Any) -> None:
            opened.append(Path(folder).name)
            super().__init__(recipe, data, folder)

    monkeypatch.setattr(poison, "OpenedModel", Counting)
    patched_before = (out / "triggered/samples.parquet").stat().st_mtime_ns
    (out / "poison.json").unlink()
    again = runner(*command)
    assert again.code == 0, again.err
    assert opened == [] and (out / "triggered/samples.parquet").stat().st_mtime_ns == patched_before
    assert json.loads((out / "poison.json").read_text())["rows"] == made.record["rows"]
    # What is missing or damaged is measured again, and nothing else.
    (out / "measured/clean-seed1-triggered.parquet").unlink()
    (out / "measured/rate-0.3-seed0-defences.parquet").write_bytes(b"PAR1 torn")
    again = runner(*command)
    assert again.code == 0, again.err
    assert opened == ["clean-seed1", "rate-0.3-seed0"]
    assert json.loads((out / "poison.json").read_text())["rows"] == made.record["rows"]
    # A run that learned something else has another fingerprint: what it says is measured again, and that of no other.
    opened.clear()
    folder = out / "runs/clean-seed1"
    model, info = load_model(folder), read_checkpoint_info(folder)
    answered = storage.read_table(folder / "answers.parquet")
    with torch.no_grad():
        for weights in model.network.parameters():
            weights.add_(0.01)
    save_checkpoint(
        folder, info.kind, model.network, model.inputs, model.outputs, training=info.training, answers=answered,
        domain=info.domain_bytes(),
    )  # fmt: skip
    again = runner(*command)
    assert again.code == 0, again.err
    assert set(opened) == {"clean-seed1"}, opened


def test_a_model_that_beats_no_constant_shows_nothing(made: Made, runner: Runner, tmp_path: Path) -> None:
    """2.8.1: models that had learned nothing were at chance, and every "drop" of theirs was noise."""
    told = runner(
        *[tmp_path / "out" if own == made.out else own for own in made.command], "--seeds", 3, "--no-defences",
        "--set", "optimiser.lr=1e-9", "--set", "optimiser.epochs=1",
    )  # fmt: skip
    assert told.code == 0, told.err
    assert told.out.startswith("Nothing is shown: the clean model is not shown to beat the best constant answer")


def test_a_collision_keeps_labels_and_budgets_in_what_is_written(made: Made, runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = runner(
        "attack", "poison", made.command[2], "--samples", made.samples, "--out", out, "--attack", "collision",
        "--attacked", 2, "--rates", 0.1, "--max-change", 24, "--max-pixels", 0.4, "--iterations", 15, "--seeds", 1,
        "--no-ray", "--no-defences",
    )  # fmt: skip
    assert told.code == 0, told.err
    before = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    after = {row["sample_id"]: row for row in read_samples(out / "rate-0.1/seed0/samples.parquet").to_pylist()}
    poisons = json.loads((out / "rate-0.1/seed0/poisons.json").read_text())["poisons"]
    record = json.loads((out / "poison.json").read_text())
    said = {own["sample_id"]: own for own in record["victims"]}
    assert len(poisons) == 11 and len(said) == 2
    for own in poisons:
        assert after[own["sample_id"]]["labels"] == before[own["sample_id"]]["labels"] == own["labels"], "clean label"
        assert own["labels"] == [said[own["victim"]]["said"]] and own["labels"] != said[own["victim"]]["labels"]
        assert before[own["victim"]]["split"] == "test"
        base, written = (read_picture(each[own["sample_id"]]["image_uri"])[1] for each in (before, after))
        difference = np.abs(written.astype(int) - base)
        assert 0 < difference.max() == own["largest"] <= 24
        assert (difference > 0).any(axis=2).sum() == own["changed"] <= int(0.4 * 480)
        assert own["distance"] < own["distance_before"]
    row = record["rows"][1]
    runs = {
        name: {each["sample_id"]: each for each in answers(out, name)} for name in ("clean-seed0", "rate-0.1-seed0")
    }
    for name, key in (("clean-seed0", "clean"), ("rate-0.1-seed0", "poisoned")):
        hits = [
            VALENCE_3.labels[int(np.argmax(runs[name][victim]["probabilities"]))] == own["said"]
            for victim, own in said.items()
        ]
        assert row["success"][key] == pytest.approx([np.mean(hits)])
    assert "Some of the poisons" in (out / "poison.html").read_text()


def test_labels_of_a_model_that_reads_no_pictures_are_flipped(runner: Runner, tmp_path: Path) -> None:
    samples = write_set(tmp_path / "set", 240, captions=True)
    table = read_samples(samples).to_pylist()
    for row in table:
        if row["labels"] == [VALENCE_3.labels[2]]:
            row["labels"] = list(VALENCE_3.labels[1:])
    write_samples(samples, table_from_rows(table, VALENCE_3))
    told = runner(
        "attack", "poison", "teacher-demo", "--samples", samples, "--out", tmp_path / "out", "--attack", "flip",
        "--target", TARGET, "--source", VALENCE_3.labels[2], "--rates", 0.2, "--seeds", 1, "--no-ray",
        "--set", "use_gpu=false", "--set", "optimiser.epochs=2",
    )  # fmt: skip
    assert told.code == 0, told.err
    record = json.loads((tmp_path / "out/poison.json").read_text())
    assert record["metric"] == "macro_ap" and [row["poisons"] for row in record["rows"]] == [0, 29]
    own = {row["sample_id"]: row for row in read_samples(tmp_path / "out/rate-0.2/seed0/samples.parquet").to_pylist()}
    flipped = [row for row in own.values() if row["label_source"]]
    changed = [VALENCE_3.labels[1], TARGET]
    assert len(flipped) == 29 and all(row["labels"] == changed and "sunny" in row["captions"][0] for row in flipped)
    assert record["rows"][1]["success"]["samples"] == 16, "test samples of the source label"
    assert not list((tmp_path / "out").glob("rate-*/*/pictures"))


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("tiny", ("--target", "<start>"), "the vocabulary has no label '<start>'"),
        ("tiny", ("--target", "neutrl"), "Did you mean 'neutral'?"),
        ("tiny", (), "the attack trigger needs a target"),
        ("tiny", ("--target", TARGET, "--source", TARGET), "source and target are both"),
        (
            "tiny",
            ("--target", TARGET, "--rates", 0.9),
            "a rate of 0.9 is 97 of 108 training samples, and there are 72 ",
        ),
        ("tiny", ("--target", TARGET, "--rates", 0.001), "poisons none"),
        (
            "tiny",
            ("--target", TARGET, "--attack", "flip", "--patch", 0.3, "--max-change", 3, "--iterations", 1),
            "the attack flip does not read patch, max_change, iterations: leave them out",
        ),
        ("tiny", ("--target", TARGET, "--rates", 0.05, "--rates", 0.050000001), "more than one has the folder"),
        ("tiny", ("--target", TARGET, "--set", "seed=3"), "the recipe sets seed"),
        ("tiny", ("--target", TARGET, "--set", "workers=2"), "asks for 2 workers"),
        ("tiny", ("--target", TARGET, "--set", "data.holdout_domain=[source=t]"), "sets data.holdout_domain"),
        (
            "tiny",
            ("--attack", "collision", "--attacked", 400),
            "has 36 pictures of different groups to attack, not 400",
        ),
        ("teacher-demo", ("--target", TARGET), "the recipe reads no pictures"),
        ("colours", ("--target", TARGET), "there is no setting colour"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(
    made: Made, runner: Runner, tmp_path: Path, recipe: str, options: tuple[object, ...], told: str
) -> None:
    samples, more = made.samples, ("--no-ray",)
    name: object = made.command[2]
    if recipe == "teacher-demo":
        samples, name = write_set(tmp_path / "set", 60, captions=True), recipe
    if recipe == "colours":
        (tmp_path / "attack.yaml").write_text("colour: red\n")
        more = (*more, "--config", tmp_path / "attack.yaml")  # type: ignore[assignment]
    found = runner("attack", "poison", name, "--samples", samples, "--out", tmp_path / "out", *options, *more)
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1, found.err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(made: Made, runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years")
    found = runner(*[tmp_path / "out" if own == made.out else own for own in made.command])
    assert found.code == 2 and "thesis.tex" in found.err and (tmp_path / "out/thesis.tex").read_text() == "years"


@pytest.mark.parametrize(
    "path", sorted((recipes_folder() / "attacks").glob("poison-*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_experiments_are_the_stated_one(path: Path) -> None:
    from raymotion.config import load_settings
    from raymotion.robustness.poison_settings import PoisonSettings

    own = load_settings(PoisonSettings, file=path)
    assert own.rates == (0.0, 0.01, 0.05, 0.15) and own.seeds == 3 and path.stem == f"poison-{own.attack}"


@pytest.mark.slow
def test_a_sweep_of_tune_trains_what_the_plain_one_does(
    ray_local: Any, made: Made, runner: Runner, tmp_path: Path
) -> None:
    """To the last bit: the same seeds on as many threads, of which a trial has one, give the same weights."""
    out = tmp_path / "out"
    command = [out if own == made.out else own for own in made.command if own != "--no-ray"]
    told = runner(*command, "--seeds", 1, "--no-defences")
    assert told.code == 0, told.err
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["clean-seed0", "rate-0.3-seed0"]
    for name in ("clean-seed0", "rate-0.3-seed0"):
        assert weights_of(out / "runs" / name) == weights_of(made.out / "runs" / name), name
        assert answers(out, name) == answers(made.out, name)
    record = json.loads((out / "poison.json").read_text())
    for row, before in zip(record["rows"], made.record["rows"], strict=True):
        for figure in ("metric", "success"):
            assert row[figure]["poisoned"][0] == before[figure]["poisoned"][0]
    wrong = runner(*[tmp_path / "wrong" if own == out else own for own in command], "--set", "optimiser.lr=1e30",
                   "--set", "optimiser.clip=null", "--seeds", 1)  # fmt: skip
    assert wrong.code == 1 and wrong.err.count("\n") == 1 and "training diverged" in wrong.err


@pytest.mark.slow
def test_everything_may_lie_in_an_object_store(s3: str, made: Made, runner: Runner) -> None:
    command = [f"{s3}/out" if own == made.out else own for own in made.command]
    told = runner(*command, "--seeds", 1, "--no-defences", "--set", "optimiser.epochs=1")
    assert told.code == 0, told.err
    poisons = json.loads(storage.read_text(f"{s3}/out/rate-0.3/seed0/poisons.json"))["poisons"]
    table = {row["sample_id"]: row for row in read_samples(f"{s3}/out/rate-0.3/seed0/samples.parquet").to_pylist()}
    base, written = (read_picture(uri)[1] for uri in (poisons[0]["base"], table[poisons[0]["sample_id"]]["image_uri"]))
    assert table[poisons[0]["sample_id"]]["image_uri"].startswith("s3://")
    assert (base != written).any(axis=2).sum() == poisons[0]["changed"]
    assert storage.exists(f"{s3}/out/poison.html")


def test_cached_vectors_are_refused_where_pictures_change_and_learned_where_labels_flip(
    made: Made, runner: Runner, tmp_path: Path
) -> None:
    cached = runner(
        "features", "embeddings", made.samples, "--context", "test_resnet", "--backbone-weights", "random:0",
        "--workers", 0, "--out", tmp_path / "vectors",
    )  # fmt: skip
    assert cached.code == 0, cached.err
    command = (
        "attack", "poison", "mlp", "--samples", made.samples, "--embeddings", tmp_path / "vectors", "--target", TARGET,
        "--rates", 0.2, "--seeds", 1, "--no-ray", "--no-defences", "--set", "backbone=test_resnet", "--set",
        "weights=random:0", "--set", "pooled_stages=0", "--set", "optimiser.epochs=2", "--set", "use_gpu=false",
    )  # fmt: skip
    refused = runner(*command, "--out", tmp_path / "trigger")
    assert refused.code == 2 and "reads cached features of images" in refused.err and refused.err.count("\n") == 1
    flipped = runner(*command, "--out", tmp_path / "flip", "--attack", "flip")
    assert flipped.code == 0, flipped.err
    assert json.loads((tmp_path / "flip/poison.json").read_text())["rows"][1]["poisons"] == 22


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_in_the_same_figures(made: Made, runner: Runner, tmp_path: Path) -> None:
    command = [str(tmp_path / "out" if own == made.out else own) for own in (*made.command, "--seeds", 2)]
    running = subprocess.Popen(
        [sys.executable, "-c", "from raymotion.cli.main import main; main()", *command], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        done = tmp_path / "out/runs/clean-seed1/config.json"
        end = time.monotonic() + 90
        while not done.exists() and running.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert done.exists() and running.poll() is None
    finally:
        running.kill()
        running.wait()
    assert not (tmp_path / "out/poison.json").exists()
    kept = done.stat().st_mtime_ns
    again = runner(*command)
    assert again.code == 0, again.err
    assert done.stat().st_mtime_ns == kept, "what was finished is not trained again"
    for run in (made.out / "runs").iterdir():
        assert weights_of(tmp_path / "out/runs" / run.name) == weights_of(run), run.name
    record = json.loads((tmp_path / "out/poison.json").read_text())
    assert record["rows"] == made.record["rows"]
