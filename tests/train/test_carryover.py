"""`raymotion carryover`: each domain held out once, a table that agrees with its runs, and a model that tells of it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raymotion import storage
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.learning.significance import Gain
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.report.carryover import _label_auc
from raymotion.train.carryover import Row, _Test
from raymotion.vocabulary import VALENCE_3

Runner = Callable[..., Any]
WORDS = ("gloomy", "plain", "sunny")
SHORT = ("--no-ray", "--set", "use_gpu=false", "--set", "optimiser.epochs=2")


def rows_of(source: str, n: int, *, skill: float = 0.9) -> list[dict[str, Any]]:
    rng = np.random.default_rng(n)
    rows = []
    for i in range(n):
        k = int(rng.integers(3))
        said = k if rng.random() < skill else int(rng.integers(3))
        rows.append(
            {
                "sample_id": f"{source}{i}", "group_id": f"{source}{i}", "source": source,
                "captions": [f"a {WORDS[said]} day of {source}"], "labels": [VALENCE_3.labels[k]],
                "split": ("train", "train", "val", "test")[i % 4],
            }
        )  # fmt: skip
    return rows


def write_table(path: Path, *parts: list[dict[str, Any]]) -> str:
    write_samples(path, table_from_rows([row for own in parts for row in own], VALENCE_3))
    return str(path)


@dataclass(frozen=True)
class Made:
    samples: str
    out: Path
    output: str
    record: dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, runner: Runner) -> Made:
    folder = tmp_path_factory.mktemp("carryover")
    samples = write_table(folder / "s.parquet", rows_of("news", 100), rows_of("art", 60))
    told = runner("carryover", "teacher-demo", "--samples", samples, "--out", folder / "out", "--seeds", 2, *SHORT)
    assert told.code == 0, told.err
    return Made(samples, folder / "out", told.out, json.loads((folder / "out/carryover.json").read_text()))


def test_every_domain_is_held_out_once_and_the_table_is_what_the_runs_recorded(made: Made) -> None:
    rows = {(row["model"], row["held_out"]): row for row in made.record["rows"]}
    assert list(rows) == [
        (model, value) for model in ("teacher-visualbert", "logistic regression") for value in ("news", "art", None)
    ]
    table = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    seen: set[tuple[str, str | None]] = set()
    for folder in (made.out / "runs").iterdir():
        info = read_checkpoint_info(folder)
        held = info.training["data"]["holdout_domain"]
        value = held[0].removeprefix("source=") if held else None
        linear = folder.name.startswith("linear-")
        own = rows["logistic regression" if linear else "teacher-visualbert", value]
        answers = [row for row in storage.read_table(folder / "answers.parquet").to_pylist() if row["split"] == "test"]
        tested = [table[row["sample_id"]] for row in answers]
        expected = [
            row for row in table.values() if (row["split"] == "test" if value is None else row["source"] == value)
        ]
        assert {row["sample_id"] for row in tested} == {row["sample_id"] for row in expected}
        truth = np.array([[label in row["labels"] for label in VALENCE_3.labels] for row in tested])
        often = np.minimum(truth.sum(axis=0), (~truth).sum(axis=0)) >= 10
        auc = roc_auc_score(truth[:, often], np.array([row["probabilities"] for row in answers])[:, often])
        assert own["macro_auc"][0 if linear else info.training["seed"]] == pytest.approx(auc)
        assert own["labels"] == often.sum() and own["samples"] == len(tested)
        if linear:
            assert info.training["settings"]["probe"]["strengths"] == [1.0] and len(info.training["history"]) == 1
        seen.add((folder.name, value))
    assert len(seen) == 9, "two seeds and a logistic regression of three"
    with open(made.out / "carryover.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9
    for line in lines:
        own = rows[line["model"], line["held_out"] or None]
        assert float(line["macro_auc"]) == pytest.approx(own["macro_auc"][int(line["seed"])])


@pytest.mark.slow
def test_the_interval_is_that_of_plain_resampling(made: Made) -> None:
    (row,) = [own for own in made.record["rows"] if own["held_out"] == "art" and own["model"] != "logistic regression"]
    table = {own["sample_id"]: own for own in read_samples(made.samples).to_pylist()}
    runs = sorted(made.out.glob("runs/without-art-*"))
    answers = [
        [own for own in storage.read_table(run / "answers.parquet").to_pylist() if own["split"] == "test"]
        for run in runs
    ]
    truth = np.array([[label in table[own["sample_id"]]["labels"] for label in VALENCE_3.labels] for own in answers[0]])
    scores = [np.array([own["probabilities"] for own in each]) for each in answers]
    rng, drawn = np.random.default_rng(3), []
    for _ in range(600):
        some = rng.integers(0, len(truth), len(truth))
        drawn.append(np.mean([roc_auc_score(truth[some], p[some]) for p in scores]))
    low, high = np.percentile(drawn, (2.5, 97.5))
    assert row["auc_low"] == pytest.approx(low, abs=0.02) and row["auc_high"] == pytest.approx(high, abs=0.02)


def test_headline_table_and_page_say_it_in_words(made: Made) -> None:
    lines = made.output.splitlines()
    assert lines[0].startswith("It is not shown to carry over to news, art") and "fewer than 3 seeds" in lines[0]
    rows = {row["held_out"]: row for row in made.record["rows"] if row["model"] != "logistic regression"}
    for value, title in (("news", "news"), ("art", "art"), (None, "none: the table's test split")):
        (line,) = [own for own in lines if own.startswith(f"{title}  ")]
        assert f"{np.mean(rows[value]['macro_auc']):.4f}" in line
        assert f"{np.mean(rows[value]['macro_auc']):.3f}" in lines[0]
    assert sum(line.startswith("logistic regression, ") for line in lines) == 3
    page = (made.out / "carryover.html").read_text()
    assert lines[0] in page and "<h2>AUC of each label" in page and "http" not in page.replace("http-equiv", "")


def test_the_final_model_knows_how_such_models_carry_over(made: Made) -> None:
    own, first = read_checkpoint_info(made.out / "model"), read_checkpoint_info(made.out / "runs/in-domain-seed0")
    told = own.training["carryover"]
    assert told == made.record["carryover"] and told["column"] == "source" and set(told["domains"]) == {"news", "art"}
    rows = {row["held_out"]: row for row in made.record["rows"] if row["model"] != "logistic regression"}
    for value, figures in (*told["domains"].items(), (None, told["in_domain"])):
        assert figures["auc"] == pytest.approx(np.mean(rows[value]["macro_auc"]))
        assert figures["map"] == pytest.approx(np.mean(rows[value]["macro_ap"])) and figures["chance_map"] > 0
    assert own.training["history"] == first.training["history"] and own.test == first.test
    networks = [load_model(folder).network.state_dict() for folder in (own.folder, first.folder)]
    assert all(networks[0][name].equal(value) for name, value in networks[1].items())
    assert own.domain == first.domain and own.domain_bytes() == first.domain_bytes() is not None
    card = (made.out / "model/README.md").read_text()
    assert f"news {told['domains']['news']['auc']:.2f}" in card and "Held out one source at a time" in card


def test_what_it_labels_is_told_what_carrying_over_cost(made: Made, runner: Runner, tmp_path: Path) -> None:
    words = ("--workers", 0, "--out", tmp_path / "labels")
    done = runner("label", made.samples, "--model", made.out / "model", *words)
    assert done.code == 0 and "a classifier tells them apart" in done.out, done.err
    assert "Held out one" in done.out


def test_a_lost_run_alone_is_done_again_and_more_seeds_are_added(made: Made, runner: Runner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(made.out, out)
    lost = next(out.glob("runs/without-news-*-seed1"))
    shutil.rmtree(lost)
    (out / "carryover.json").unlink()
    kept = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    command = ("carryover", "teacher-demo", "--samples", made.samples, "--out", out, *SHORT)
    again = runner(*command, "--seeds", 3)
    assert again.code == 0, again.err
    now = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("runs/*/model.safetensors")}
    assert {name: now[name] for name in kept} == kept and lost.name in now and len(now) == 12
    rows = json.loads((out / "carryover.json").read_text())["rows"]
    assert rows[0]["macro_auc"][:2] == pytest.approx(made.record["rows"][0]["macro_auc"])
    assert "fewer than 3 seeds" not in again.out.splitlines()[0]
    other = runner(*command, "--set", "optimiser.lr=0.5")
    assert other.code == 2 and "optimiser.lr" in other.err and other.err.count("\n") == 1


@pytest.mark.parametrize(
    ("parts", "options", "told"),
    [
        ([("news", 60), ("art", 60)], ("--domain", "sauce"), "the column 'sauce' is not there. Did you mean 'source'?"),
        ([("news", 60)], (), "all samples have source = 'news'"),
        ([("news", 80), ("tiny", 8)], (), "source = 'tiny' has too few samples to judge a ranking: of its 8 labelled"),
        ([("news", 80), ("art", 60)], ("--value", "arts"), "no row has source = 'arts'. Did you mean 'art'?"),
        ([("news", 80), ("art", 60)], ("--set", "seed=3"), "the recipe sets seed"),
        ([("news", 80), ("art", 60)], ("--set", "workers=2"), "asks for 2 workers"),
        ([("news", 80), ("art", 60)], ("--set", "data.holdout_domain=[source=art]"), "sets data.holdout_domain"),
        ([("news", 42), ("art", 42)], (), "the split test has too few samples"),
    ],
)
def test_mistakes_are_one_line_before_any_training(
    runner: Runner, tmp_path: Path, parts: list[tuple[str, int]], options: tuple[str, ...], told: str
) -> None:
    samples = write_table(tmp_path / "s.parquet", *(rows_of(*own) for own in parts))
    found = runner("carryover", "teacher-demo", "--samples", samples, "--out", tmp_path / "out", *SHORT, *options)
    assert found.code == 2 and told in found.err and found.err.count("\n") == 1, found.err
    assert not (tmp_path / "out").exists()


def test_a_domain_without_labels_is_named(runner: Runner, tmp_path: Path) -> None:
    bare = [{**row, "labels": None} for row in rows_of("bare", 40)]
    samples = write_table(tmp_path / "s.parquet", rows_of("news", 80), bare)
    found = runner("carryover", "teacher-demo", "--samples", samples, "--out", tmp_path / "out", *SHORT)
    assert found.code == 2 and "none of the 40 samples of source = 'bare' has labels" in found.err


def test_only_one_value_is_held_out_where_one_is_named(runner: Runner, tmp_path: Path) -> None:
    samples = write_table(tmp_path / "s.parquet", rows_of("news", 80), rows_of("art", 60), rows_of("tiny", 8))
    command = ("carryover", "teacher-demo", "--samples", samples, "--value", "art", "--seeds", 1)
    found = runner(
        *command, "--out", tmp_path / "out", "--set", "probe.strengths=[1.0]", *SHORT[:-1], "optimiser.epochs=1"
    )
    assert found.code == 0, found.err
    record = json.loads((tmp_path / "out/carryover.json").read_text())
    assert [row["held_out"] for row in record["rows"]] == ["art", None]
    assert "No logistic regression on frozen features beside it: the recipe is" in found.out


@pytest.mark.slow
def test_runs_of_ray_are_those_of_one_process(ray_local: Any, made: Made, runner: Runner, tmp_path: Path) -> None:
    command = ("carryover", "teacher-demo", "--samples", made.samples, "--seeds", 1, "--value", "art", *SHORT[1:])
    found = runner(*command, "--out", tmp_path / "out", "--address", "auto")
    assert found.code == 0, found.err
    record = json.loads((tmp_path / "out/carryover.json").read_text())
    assert record["rows"][0]["macro_auc"][0] == pytest.approx(made.record["rows"][1]["macro_auc"][0], abs=0.02)


def test_a_label_of_many_persons_in_few_images_is_not_judged() -> None:
    groups = np.repeat([f"image {i}" for i in range(20)], 3).tolist()
    truth = np.zeros((60, 2))
    truth[:12, 0], truth[:30, 1] = 1, 1
    test = _Test([str(i) for i in range(60)], groups, truth)
    assert test.judged.tolist() == [False, True]
    found = evaluate(
        truth, np.random.default_rng(0).random((60, 2)), prior=[0.5, 0.5], labels=["a", "b"], groups=groups, bootstrap=9
    )
    row = Row("art", False, (found,), 0.4, Gain((), None, None), None, tuple(test.judged.tolist()))
    assert row.labels == 1
    assert _label_auc(row, 0) == "– (12)" and _label_auc(row, 1) == f"{found.per_class[1].auc:.3f} (30)"
