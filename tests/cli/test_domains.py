"""`--holdout-domain` and `--by`: a model that is tested on a domain it never saw, and the domains of one table."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raymotion import storage
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.learning.metrics.multilabel import bce
from raymotion.models.checkpoint import read_checkpoint_info, sample_mark
from raymotion.vocabulary import VALENCE_3

Runner = Callable[..., Any]
ART = "source=art"
WORDS = ("gloomy", "plain", "sunny")


def two_domains(path: Path, n: int = 160) -> str:
    """News and art: a word of the caption tells the label. Art is oftener negative, and one picture is in both."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for i in range(n):
        source = "art" if i % 3 == 0 else "news"
        k = int(rng.choice(3, p=(0.6, 0.2, 0.2) if source == "art" else (0.2, 0.4, 0.4)))
        said = k if rng.random() < 0.8 else int(rng.integers(3))
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": "both" if i in (0, 1) else f"g{i}", "source": source,
                "captions": [f"a {WORDS[said]} day of {source}"], "labels": [VALENCE_3.labels[k]],
                "split": "train" if i in (0, 1) else ("train", "train", "val", "test", None)[i % 5],
            }
        )  # fmt: skip
    write_samples(path, table_from_rows(rows, VALENCE_3))
    return str(path)


@dataclass(frozen=True)
class Made:
    samples: str
    model: Path
    output: str


COMMAND = ("train", "teacher-demo", "--workers", "0", "--epochs", "3", "--set", "use_gpu=false")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, runner: Runner) -> Made:
    folder = tmp_path_factory.mktemp("domains")
    samples = two_domains(folder / "s.parquet")
    told = runner(*COMMAND, "--samples", samples, "--out", folder / "t", "--holdout-domain", ART)
    assert told.code == 0, told.err
    return Made(samples, folder / "t", told.out)


def test_the_domain_is_the_test_split_and_its_images_train_nothing(made: Made) -> None:
    table = read_samples(made.samples).to_pylist()
    art = [row["sample_id"] for row in table if row["source"] == "art"]
    info = read_checkpoint_info(made.model)
    data = info.training["data"]
    assert f"test: {len(art)} samples of source=art, which training did not see" in made.output
    assert "test_of_other_domains" in made.output and "1 images_held_out" in made.output
    assert data["holdout_domain"] == [ART] and data["splits"]["test"] == len(art)
    rest = [
        row for row in table if row["source"] != "art" and row["split"] in ("train", "val") and row["sample_id"] != "s1"
    ]
    assert data["seen"] == sorted(sample_mark(row["sample_id"]) for row in rest)
    counts = data["counts"]
    left_out = sum(count for name, count in counts.items() if name != "rows")
    assert counts["rows"] == len(table) == len(rest) + len(art) + left_out
    answers = storage.read_table(made.model / "answers.parquet").to_pylist()
    assert [row["sample_id"] for row in answers if row["split"] == "test"] == art
    train = [row for row in rest if row["split"] == "train"]
    rates = [np.mean([label in row["labels"] for row in train]) for label in VALENCE_3.labels]
    assert info.prior == pytest.approx(rates)
    card = storage.read_text(made.model / "README.md")
    assert f"Test: {len(art)} samples of source=art, which training did not see." in card and "carries over" in card


def test_the_table_shows_the_auc_of_the_labels_that_can_be_judged(made: Made) -> None:
    table = {row["sample_id"]: row for row in read_samples(made.samples).to_pylist()}
    own = storage.read_table(made.model / "answers.parquet").to_pylist()
    p = np.array([row["probabilities"] for row in own if row["split"] == "test"])
    rows = [table[row["sample_id"]] for row in own if row["split"] == "test"]
    truth = np.array([[label in row["labels"] for label in VALENCE_3.labels] for row in rows])
    often = truth.sum(axis=0) >= 10
    assert 1 <= often.sum() < 3, "one label is too rare here"
    expected = roc_auc_score(truth[:, often], p[:, often])
    info = read_checkpoint_info(made.model)
    assert info.test is not None and info.test["metrics"]["macro_auc"]["value"] == pytest.approx(expected)
    (line,) = [line for line in made.output.splitlines()[-12:] if line.startswith("Macro AUC")]
    assert line.startswith(f"Macro AUC, {often.sum()} label") and f"{expected:.4f}" in line and "0.5000" in line


def test_a_resumed_command_must_hold_out_the_same(made: Made, runner: Runner) -> None:
    command = (*COMMAND, "--samples", made.samples, "--out", made.model)
    again = runner(*command, "--set", "data.holdout_domain=source=art")
    assert again.code == 0 and "nothing to do" in again.out
    other = runner(*command, "--holdout-domain", "source=news")
    assert other.code == 2 and "data.holdout_domain: ['source=art'] there, ['source=news'] here" in other.err


@pytest.mark.parametrize(
    ("domain", "told"),
    [
        ("source=arts", "no row has source = 'arts'. Did you mean 'art'? There are news (106), art (54)"),
        ("sources=art", "Did you mean 'source'?"),
        ("art", "is not of the form COLUMN=VALUE"),
        ("split=train", "has no sample of the split train with labels and"),
    ],
)
def test_mistakes_are_one_line(made: Made, runner: Runner, tmp_path: Path, domain: str, told: str) -> None:
    for command in (
        (*COMMAND, "--samples", made.samples, "--out", tmp_path / "t"),
        ("evaluate", made.model, made.samples, "--out", tmp_path / "e"),
    ):
        if command[0] == "evaluate" and domain == "split=train":
            continue
        found = runner(*command, "--holdout-domain", domain)
        assert found.code == 2 and told in found.err and found.err.count("\n") == 1, found.err
    assert not list(tmp_path.iterdir())


def test_evaluate_scores_a_domain_and_each_value_of_a_column(made: Made, runner: Runner, tmp_path: Path) -> None:
    command = ("evaluate", made.model, made.samples, "--workers", "0", "--bootstrap", "50")
    one = runner(*command, "--holdout-domain", ART, "--out", tmp_path / "art")
    assert one.code == 0, one.err
    assert "flatter" not in one.out and "samples of source=art, split all: 54 in" in one.out
    record = json.loads((tmp_path / "art/evaluation.json").read_text())
    trained = read_checkpoint_info(made.model)
    assert trained.test is not None and record["caution"] is None
    for name in ("macro_auc", "macro_ap", "bce"):
        for number in ("value", "prior"):
            assert record["results"]["metrics"][name][number] == pytest.approx(
                trained.test["metrics"][name][number], abs=1e-5
            )
    seen = runner(*command, "--holdout-domain", "source=news", "--out", tmp_path / "news")
    assert "were in the model's training or validation split" in seen.out

    every = runner(*command, "--split", "all", "--by", "source", "--out", tmp_path / "all")
    assert every.code == 0, every.err
    by = json.loads((tmp_path / "all/evaluation.json").read_text())["by"]
    assert by["column"] == "source" and list(by["outputs"]["emotions"]) == ["news", "art"]
    art = by["outputs"]["emotions"]["art"]
    assert art["samples"] == 54
    assert art["metrics"]["macro_auc"]["value"] == pytest.approx(record["results"]["metrics"]["macro_auc"]["value"])
    table = storage.read_table(tmp_path / "all/predictions.parquet").to_pylist()
    news = {row["sample_id"] for row in read_samples(made.samples).to_pylist() if row["source"] == "news"}
    rows = [row for row in table if row["sample_id"] in news]
    truth = np.array([[label in row["labels"] for label in VALENCE_3.labels] for row in rows], dtype=np.float64)
    expected = bce(truth, np.array([row["probabilities"] for row in rows]))
    assert by["outputs"]["emotions"]["news"]["metrics"]["bce"]["value"] == pytest.approx(expected, abs=1e-6)
    (line,) = [line for line in every.out.splitlines() if line.startswith("art ")]
    assert f"{art['metrics']['macro_auc']['value']:.4f}" in line and "of 3" in line
    assert "<h2>By source</h2>" in (tmp_path / "all/evaluation.html").read_text()
    unknown = runner(*command, "--by", "sauce", "--out", tmp_path / "x")
    assert unknown.code == 2 and "Did you mean 'source'?" in unknown.err and not (tmp_path / "x").exists()
