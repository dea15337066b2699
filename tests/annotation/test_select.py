"""`select --policy uncertain`: rows for people, as a labelled data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from raymotion.batch.label_dataset import load_labels
from raymotion.batch.ledger import MANIFEST
from raymotion.data.samples import read_samples, write_samples
from raymotion.learning.uncertainty import disagreement, entropy, margin

Build = Callable[..., Any]


@pytest.fixture
def many(labelled: Build) -> Any:
    own = labelled(uris=[f"/d/{i}.jpg" for i in range(60)], groups=[f"scene{i // 2}" for i in range(60)])
    write_samples(own.labels / "m.parquet", read_samples(own.samples))  # the job's manifest is its sample table
    (own.labels / "m.parquet").rename(own.labels / MANIFEST)
    return own


def taken(folder: Path) -> list[str]:
    own = load_labels(folder)
    ids, _ = own.pictures()
    return [ids[row] for row in np.flatnonzero(own.selected)]


@pytest.mark.parametrize("name, measure", [("entropy", entropy), ("margin", margin)])
def test_uncertain_rows_balanced_and_one_of_a_scene(
    many: Any, tmp_path: Path, runner: Callable[..., Any], name: str, measure: Any
) -> None:
    words = ["--policy", "uncertain", "--count", 10, "--measure", name]
    done = runner("select", many.labels, *words, "--out", tmp_path / "ask")
    assert done.code == 0 and "10 of 60 images selected" in done.out and "raymotion review" in done.out, done.err
    before, after = load_labels(many.labels), load_labels(tmp_path / "ask")
    assert (before.mask == after.mask).all() and (before.probabilities == after.probabilities).all()
    rows = [many.ids.index(one) for one in taken(tmp_path / "ask")]
    assert len({row // 2 for row in rows}) == len(rows) == 10
    scores = measure(many.probabilities)
    assert scores[rows].mean() > scores.mean()
    counts = after.mask[rows].sum(axis=0)
    assert counts.min() >= 2, "every label has its share"
    record = json.loads((tmp_path / "ask" / "_job.json").read_text())
    assert record["collapse"] == before.job["collapse"] and record["choice"]["selection"]["policy"] == "uncertain"
    again = runner("select", many.labels, *words, "--out", tmp_path / "again")
    assert again.code == 0 and taken(tmp_path / "again") == taken(tmp_path / "ask")


@pytest.fixture
def one_label(labelled: Build) -> Any:
    return labelled(uris=[f"/d/{i}.jpg" for i in range(60)], one_label=True)


def test_one_label_is_ranked_by_the_entropy_of_its_distribution(
    one_label: Any, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    """Within each label the rows of the highest `scipy.stats.entropy`, not of the highest mean of yes and no."""
    words = ["--policy", "uncertain", "--count", 20]
    done = runner("select", one_label.labels, *words, "--out", tmp_path / "ask")
    assert done.code == 0, done.err
    rows = {one_label.ids.index(one) for one in taken(tmp_path / "ask")}
    answers = one_label.probabilities.argmax(axis=1)

    def best(scores: np.ndarray) -> set[int]:
        own = [np.flatnonzero(answers == label) for label in range(5)]
        return {int(row) for rows in own for row in rows[np.argsort(-scores[rows])][:4]}

    assert rows == best(stats.entropy(one_label.probabilities, axis=1))
    assert rows != best(entropy(one_label.probabilities)), "independent labels would be ranked otherwise"


def test_labels_of_other_kinds_of_model_do_not_disagree(
    one_label: Any, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(one_label.labels, other)
    words = ["--policy", "uncertain", "--count", 5, "--against", other]
    done = runner("select", one_label.labels, *words, "--out", tmp_path / "same")
    assert done.code == 0, done.err
    record = json.loads((other / "_job.json").read_text())
    (other / "_job.json").write_text(json.dumps({**record, "model": {}}))
    done = runner("select", one_label.labels, *words, "--out", tmp_path / "ask")
    assert done.code == 2 and "is of a model of independent labels" in done.err, done.err


def test_a_selected_folder_keeps_its_groups(many: Any, tmp_path: Path, runner: Callable[..., Any]) -> None:
    assert runner("select", many.labels, "--policy", "threshold", "--out", tmp_path / "other").code == 0
    done = runner("select", tmp_path / "other", "--policy", "uncertain", "--count", 60, "--out", tmp_path / "ask")
    assert done.code == 0 and "there are only 30 such groups, fewer than --count" in done.out
    assert len({many.ids.index(one) // 2 for one in taken(tmp_path / "ask")}) == 30


def test_what_people_have_looked_at_is_left_out(many: Any, tmp_path: Path, runner: Callable[..., Any]) -> None:
    write_samples(tmp_path / "done.parquet", read_samples(many.samples).slice(1, 40))
    words = ["--policy", "uncertain", "--count", 8, "--reviewed", tmp_path / "done.parquet"]
    done = runner("select", many.labels, *words, "--out", tmp_path / "ask")
    assert done.code == 0 and "42 rows are of groups that people have looked at" in done.out
    assert {many.ids.index(one) for one in taken(tmp_path / "ask")} <= set(range(42, 60))


def test_disagreement_of_two_folders(many: Any, tmp_path: Path, runner: Callable[..., Any]) -> None:
    """A second model that differs on ten rows: those are taken, in whatever order its rows are."""
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    (other / "_job.json").write_text((many.labels / "_job.json").read_text())
    whole = pa.concat_tables(pq.read_table(path) for path in sorted((many.labels / "data").glob("*.parquet")))
    p = many.probabilities.copy()
    p[10:20] = 1 - p[10:20]
    column = pa.array(p.tolist(), whole.schema.field("probabilities").type)
    changed = whole.set_column(whole.schema.get_field_index("probabilities"), "probabilities", column)
    order = np.random.default_rng(0).permutation(59)  # the last row is missing
    pq.write_table(
        changed.take(pa.array(order)).replace_schema_metadata(whole.schema.metadata), other / "data/a.parquet"
    )
    done = runner(
        "select", many.labels, "--policy", "uncertain", "--count", 5, "--against", other, "--out", tmp_path / "ask"
    )
    assert done.code == 0 and "1 rows are not labelled in every folder" in done.out, done.err
    rows = [many.ids.index(one) for one in taken(tmp_path / "ask")]
    scores = disagreement([many.probabilities, p])
    assert len(rows) == 5 and set(rows) <= set(range(10, 20)) and (scores[rows] > 0).all()
    pictures = [uri.replace("/d/", "/e/") for uri in whole["image_uri"].to_pylist()]
    moved = whole.set_column(1, "image_uri", pa.array(pictures)).replace_schema_metadata(whole.schema.metadata)
    pq.write_table(moved, other / "data/a.parquet")
    done = runner(
        "select", many.labels, "--policy", "uncertain", "--count", 5, "--against", other, "--out", tmp_path / "b"
    )
    assert done.code == 2 and "Give labels of the same pictures" in done.err, done.err


@pytest.mark.parametrize(
    "words, told",
    [
        (["--policy", "uncertain"], "needs --count"),
        (["--policy", "uncertain", "--count", 3, "--measure", "disagreement"], "disagreement needs --against"),
        (["--policy", "uncertain", "--count", 3, "--threshold", 0.3], "threshold is not used by the policy uncertain"),
        (["--measure", "entropy"], "measure is not used by the policy top-per-image"),
        (["--reviewed", "x.parquet"], "reviewed is not used by the policy top-per-image"),
        (["--policy", "uncertain", "--count", 3, "--against", "nowhere"], "nowhere: no such folder"),
        (["--policy", "uncertain", "--count", 3, "--reviewed", "nowhere.parquet"], r"nowhere.parquet"),
    ],
)
def test_mistakes(many: Any, tmp_path: Path, runner: Callable[..., Any], words: list[Any], told: str) -> None:
    done = runner("select", many.labels, *words, "--out", tmp_path / "ask")
    assert done.code == 2 and told in done.err, done.err


def test_numbers_are_refused(labelled: Build, tmp_path: Path, runner: Callable[..., Any]) -> None:
    own = labelled()
    path = own.labels / "_job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocabulary": None}))
    done = runner("select", own.labels, "--policy", "uncertain", "--count", 3, "--out", tmp_path / "ask")
    assert done.code == 2 and "has no labels to choose from: its model predicts numbers" in done.err, done.err
    assert not (tmp_path / "ask").exists()


def test_labelling_has_no_such_policy(runner: Callable[..., Any]) -> None:
    assert "uncertain" not in runner("label", "--help").out.replace("\n", " ")
