"""`raymotion evaluate` of a model of vectors: each caption for its own picture, among all of them, beside chance."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.evaluation.retrieval import expanded, measure_retrieval, shown_queries
from raymotion.learning.metrics.retrieval import RECALLS
from raymotion.models.outputs.embedding import Embedding

from .conftest import collection, train

DIRECTIONS = ("text_to_image", "image_to_text")


@pytest.fixture(scope="module")
def evaluated(
    pairs: str, pair_model: str, runner: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """An evaluation of the test split, and what the command printed."""
    out = tmp_path_factory.mktemp("evaluated") / "evaluation"
    done = runner("evaluate", pair_model, pairs, "--out", out, "--workers", 0, "--bootstrap", 100)
    assert done.code == 0, done.err
    return out, done


def vectors_of(out: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the ids and both vectors of the rows of an evaluation; zeros where a row has none."""
    table = pq.read_table(out / "predictions.parquet")
    ids = table.column("sample_id").to_pylist()
    found = []
    for side in ("image", "text"):
        own = table.column(f"{side}_embedding").to_pylist()
        width = next(len(one) for one in own if one is not None)
        found.append(np.array([[0.0] * width if one is None else one for one in own]))
    return ids, found[0], found[1]


def test_the_figures_are_those_of_ranking_each_caption_and_each_picture_by_hand(evaluated: tuple[Path, Any]) -> None:
    out, _ = evaluated
    record = json.loads((out / "evaluation.json").read_text())["retrieval"]["embedding"]
    ids, images, texts = vectors_of(out)
    pictures = [i for i, own in enumerate(images) if own.any()]
    captions = [i for i, own in enumerate(texts) if own.any()]
    assert (len(pictures), len(captions)) == (20, 100) and not set(pictures) & set(captions)
    of = {i: ids[i].partition("#")[0] for i in range(len(ids))}
    for direction, queries, items, left, right in (
        ("text_to_image", captions, pictures, texts, images), ("image_to_text", pictures, captions, images, texts)
    ):  # fmt: skip
        ranks = []
        for query in queries:
            similar = {item: float(left[query] @ right[item]) for item in items}
            best = max(value for item, value in similar.items() if of[item] == of[query])
            ranks.append(1 + sum(of[item] != of[query] and value >= best - 1e-7 for item, value in similar.items()))
        measured = {name: own["value"] for name, own in record["metrics"].items()}
        for k in RECALLS:
            assert measured[f"{direction}_recall_at_{k}"] == pytest.approx(np.mean(np.array(ranks) <= k))
        assert measured[f"{direction}_mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
        assert measured[f"{direction}_median_rank"] == np.median(ranks)
        assert measured[f"{direction}_mean_rank"] == pytest.approx(np.mean(ranks))
        rows = [row for row in csv.DictReader((out / "retrieval.csv").open()) if row["direction"] == direction]
        assert [int(row["rank"]) for row in rows] == ranks
        for row in rows:
            query = ids.index(row["query"])
            order = sorted(items, key=lambda item, query=query: (-round(float(left[query] @ right[item]), 9), item))
            assert [row[f"best_{i + 1}"] for i in range(5)] == [ids[item] for item in order[:5]]
    assert record["pools"]["text_to_image"]["chance"]["recall_at_1"] == pytest.approx(1 / 20)
    # The first of 5 among 100: 1 - C(95, 10) / C(100, 10).
    assert record["pools"]["image_to_text"]["chance"]["recall_at_10"] == pytest.approx(0.41624, abs=1e-5)


def test_every_table_says_how_large_the_pool_is(evaluated: tuple[Path, Any]) -> None:
    """Bug 6: figures of pools of different sizes were compared."""
    out, done = evaluated
    head = next(line for line in done.out.splitlines() if line.startswith("direction"))
    assert "chance" in head and "pool" in head and "queries" in head
    lines = [line.split() for line in done.out.splitlines() if line.startswith("text to image  R@1 ")]
    assert len(lines) == 1 and lines[0][-3:] == ["100", "20", "better"]
    record = json.loads((out / "evaluation.json").read_text())["retrieval"]["embedding"]
    assert {name: (own["queries"], own["pool"]) for name, own in record["pools"].items()} == {
        "text_to_image": (100, 20), "image_to_text": (20, 100)
    }  # fmt: skip
    page = (out / "evaluation.html").read_text()
    assert '<td data-head="pool">20</td>' in page and '<td data-head="pool">100</td>' in page
    assert {row["pool"] for row in csv.DictReader((out / "retrieval.csv").open())} == {"20", "100"}
    assert "chance 0.0500 of 20" in done.out.splitlines()[0]


def test_the_page_shows_queries_with_what_they_find(evaluated: tuple[Path, Any]) -> None:
    out, done = evaluated
    page = (out / "evaluation.html").read_text()
    assert done.out.startswith("Retrieval beats chance both ways") and "✓ Retrieval beats chance both ways" in page
    assert page.count('<div class="query">') == 24, "four of the best, of the worst and at random, both ways"
    assert page.count('<figure class="right">') >= 8 and page.count("data:image/jpeg") > 60
    assert "among the worst" in page and "picked at random" in page
    assert "rows of images and captions, split test: 120 in = 120 scored + 0 in quarantine" in done.out
    assert "<script" not in page and "<h2>Plots</h2>" not in page


def test_the_same_command_resumes_and_changes_nothing(
    evaluated: tuple[Path, Any], pairs: str, pair_model: str, runner: Callable[..., Any]
) -> None:
    out, first = evaluated
    before = {name: (out / name).read_bytes() for name in ("evaluation.json", "evaluation.html", "retrieval.csv")}
    again = runner("evaluate", pair_model, pairs, "--out", out, "--workers", 0, "--bootstrap", 100)
    assert again.code == 0 and again.out == first.out
    assert {name: (out / name).read_bytes() for name in before} == before


def test_all_test_rows_are_scored(pair_model: str, tmp_path: Path, runner: Callable[..., Any]) -> None:
    """Bug 15: figures of the first 512 rows alone."""
    samples = collection(tmp_path, 130, rng=5)
    done = runner(
        "evaluate", pair_model, samples, "--split", "all", "--out", tmp_path / "out", "--workers", 0, "--bootstrap", 0
    )
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["retrieval"]["embedding"]["pools"]["text_to_image"]["queries"] == 650
    rows = list(csv.DictReader((tmp_path / "out" / "retrieval.csv").open()))
    assert len(rows) == 650 + 130 and len({row["query"] for row in rows}) == 780
    assert record["caution"].startswith("These samples were trained on"), "the table says so"


def test_a_constant_text_side_is_no_better_than_chance_and_told(
    pairs: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    """Bug 8: all text vectors were one constant, and nothing said so."""
    model = train(pairs, tmp_path / "model", epochs=2, constant_text=True)
    done = runner("evaluate", model, pairs, "--out", tmp_path / "out", "--workers", 0, "--bootstrap", 50)
    assert done.code == 0, done.err
    told = "The text vectors of 100 samples are nearly one direction (mean cosine of two 1.000)"
    assert done.out.startswith(told) and done.out.count(told) == 1
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    metrics = record["retrieval"]["embedding"]["metrics"]
    for direction in DIRECTIONS:
        own = metrics[f"{direction}_mrr"]
        assert own["value"] <= own["constant"], "equal similarities count against the model"
    assert metrics["image_to_text_recall_at_1"]["value"] == 0
    assert told.split(" of ")[0] in (tmp_path / "out" / "evaluation.html").read_text()
    job = runner("label", pairs, "--model", model, "--out", tmp_path / "labels", "--workers", 0)
    assert job.code == 0 and "The text vectors of 80 samples are nearly one direction" in job.out, job.err


def values(rows: list[tuple[str, str, list[float] | None, list[float] | None]]) -> tuple[pa.Table, np.ndarray]:
    """Returns rows of (id, group, image vector, text vector) as `measure_retrieval` takes them."""
    table = table_from_rows(
        [
            {"sample_id": name, "group_id": group, "source": "t", "captions": [] if text is None else [name]}
            for name, group, _, text in rows
        ]
    )  # fmt: skip
    dim = 3
    vectors = np.array([[*(image or [0.0] * dim), *(text or [0.0] * dim)] for _, _, image, text in rows], np.float32)
    for half in (vectors[:, :dim], vectors[:, dim:]):
        half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
    return table, vectors


def test_captions_of_the_same_picture_are_no_errors_and_belong_to_it_by_its_group() -> None:
    """Bug 7: row i was scored against columns 5 i to 5 i + 4, or its sibling captions counted as wrong."""
    x, y, z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    # In no order; every caption of a picture points at it, and some of them more than others.
    table, vectors = values(
        [
            ("b#1", "b", None, [0.1, 1, 0]), ("a", "a", x, None), ("c#1", "c", None, z), ("a#1", "a", None, x),
            ("a#2", "a", None, [1, 0.3, 0]), ("c", "c", z, None), ("b", "b", y, None), ("b#2", "b", None, y),
        ]
    )  # fmt: skip
    found = measure_retrieval(Embedding(3), vectors, table, by_caption=True, bootstrap=0)
    assert found is not None
    for direction in found.directions:
        assert direction.ranks.ranks.tolist() == [1] * len(direction.queries)
        assert direction.evaluation["recall_at_1"].value == 1
    assert [own.ranks.pool for own in found.directions] == [3, 5]
    text_to_image = found.directions[0]
    ids = table.column("sample_id").to_pylist()
    assert [ids[row][0] for row in text_to_image.queries] == [ids[best[0]] for best in text_to_image.best]
    assert text_to_image.right.sum() == 5


def test_identical_pictures_of_other_groups_tie_against_the_model() -> None:
    x, y = [1.0, 0, 0], [0, 1.0, 0]
    table, vectors = values([("a", "a", x, None), ("a#1", "a", None, x), ("b", "b", x, None), ("b#1", "b", None, y)])
    found = measure_retrieval(Embedding(3), vectors, table, by_caption=True, bootstrap=0)
    assert found is not None
    # The caption of a finds a picture like its own: which of the two is first is no merit.
    assert found.directions[0].ranks.ranks.tolist() == [2, 2]


def test_rows_of_one_picture_count_once_and_queries_without_a_partner_are_told() -> None:
    x, y, z = [1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]
    table, vectors = values(
        [
            ("a:1", "a", x, [1, 1, 0]),
            ("a:2", "a", x, y),
            ("b:1", "b", y, z),
            ("c:1", "c", z, None),
            ("d:1", "d", None, x),
        ]
    )
    notices: list[str] = []
    found = measure_retrieval(Embedding(3), vectors, table, by_caption=False, bootstrap=0, notices=notices)
    assert found is not None
    assert {own.name: (len(own.queries), own.ranks.pool, own.left_out) for own in found.directions} == {
        "text_to_image": (3, 3, 1), "image_to_text": (2, 4, 1)
    }  # fmt: skip
    assert len(notices) == 2 and "1 of 4 text queries are left out" in notices[0]


def test_an_expanded_table_has_each_picture_and_each_caption_once(tmp_path: Path) -> None:
    row = {"group_id": "g", "image_uri": "/p/a.jpg", "source": "t", "body_box": [0, 0, 5, 5], "split": "test"}
    table = table_from_rows(
        [
            {**row, "sample_id": "p0", "captions": ["one", "two", "  "]},
            {**row, "sample_id": "p1", "captions": ["two", "three"]},
            {**row, "sample_id": "q", "group_id": "h", "image_uri": None, "captions": ["two"]},
        ]
    )
    found = expanded(table).to_pylist()
    assert [(own["sample_id"], own["image_uri"], own["captions"]) for own in found] == [
        ("p0", "/p/a.jpg", []), ("p0#caption-0", None, ["one"]), ("p0#caption-1", None, ["two"]),
        ("p1#caption-1", None, ["three"]), ("q#caption-0", None, ["two"]),
    ]  # fmt: skip
    assert [own["body_box"] is not None for own in found] == [True, False, False, False, False]
    # With cached features, a row without an address is a picture too.
    assert [own["sample_id"] for own in expanded(table, cached=True).to_pylist()][-2:] == ["q", "q#caption-0"]
    write_samples(tmp_path / "expanded.parquet", expanded(table))
    assert read_samples(tmp_path / "expanded.parquet").num_rows == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.sampled_from(["/1.jpg", "/2.jpg", None]),
            st.lists(st.sampled_from(["x", "y", " ", "\u200b"]), max_size=3),
        ),
        max_size=8,
    ),
    st.booleans(),
)  # fmt: skip
def test_expanding_keeps_each_picture_and_each_readable_caption_of_a_group(
    rows: list[tuple[str, str | None, list[str]]], cached: bool
) -> None:
    table = table_from_rows(
        [
            {"sample_id": f"{i}", "group_id": group, "image_uri": uri, "captions": said, "source": "t"}
            for i, (group, uri, said) in enumerate(rows)
        ]
    )
    found = expanded(table, cached=cached).to_pylist()
    assert len({own["sample_id"] for own in found}) == len(found)
    captions = [(own["group_id"], own["captions"][0]) for own in found if own["captions"]]
    assert sorted(captions) == sorted({(group, text) for group, _, said in rows for text in said if text in "xy"})
    pictures = [(own["group_id"], own["image_uri"]) for own in found if not own["captions"]]
    assert sorted(own for own in pictures if own[1]) == sorted({(group, uri) for group, uri, _ in rows if uri})
    assert sum(uri is None for _, uri in pictures) == (sum(uri is None for _, uri, _ in rows) if cached else 0)


def test_a_side_output_is_measured_by_its_rows_beside_the_main_one(
    pairs: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    model = train(pairs, tmp_path / "model", epochs=10, valence=True)
    done = runner("evaluate", model, pairs, "--out", tmp_path / "out", "--workers", 0, "--bootstrap", 50)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert "mae" in record["numbers"]["valence"]["metrics"] and record["samples"]["good"] == 20
    own = record["retrieval"]["embedding"]
    assert own["queries_are"] == "rows" and own["pools"]["text_to_image"] | {"chance": 0} == {
        "queries": 20, "pool": 20, "left_out": 0, "chance": 0
    }  # fmt: skip
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count('<div class="said">') >= 24, "captions are shown as text, though their row has a picture"
    assert "a row's captions are one query" in done.out and "valence: valence, on a scale" in done.out
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert "Retrieval: embedding, both ways" in page and "<h2>valence: valence, beside the mean</h2>" in page


def test_cached_features_and_pictures_through_the_backbone_give_the_same_figures(
    pairs: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    """Rows of captions have neither a picture nor features: they are no failures of a model that reads both."""
    embedded = runner(
        "features", "embeddings", pairs, "--out", tmp_path / "features", "--context", "test_resnet",
        "--backbone-weights", "random:0", "--size", 16, "--workers", 0,
    )  # fmt: skip
    assert embedded.code == 0, embedded.err
    (tmp_path / "recipe.yaml").write_text(
        f"""kind: joint
backbone: test_resnet
weights: random:0
size: 16
workers: 0
use_gpu: false
data: {{samples: {pairs}, embeddings: [{tmp_path / "features"}]}}
model: {{text: lstm, dim: 8, image_hidden: [16], text_size: 16, embedding_size: 8}}
optimiser: {{epochs: 3, lr: 0.01, batch_size: 20}}
"""
    )
    trained = runner("train", tmp_path / "recipe.yaml", "--out", tmp_path / "model")
    assert trained.code == 0, trained.err
    found = []
    for name, options in (("cached", ["--features", tmp_path / "features"]), ("pictures", [])):
        done = runner(
            "evaluate", tmp_path / "model", pairs, "--out", tmp_path / name, "--workers", 0, "--bootstrap", 0, *options
        )
        assert done.code == 0, done.err
        record = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert record["samples"]["quarantined"] == 0 and record["samples"]["good"] == 120
        metrics = record["retrieval"]["embedding"]["metrics"]
        found.append({key: own["value"] for key, own in metrics.items()})
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_a_picture_that_cannot_be_read_is_in_quarantine_and_its_captions_are_left_out(
    pair_model: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    samples = collection(tmp_path, 40, rng=7)
    (tmp_path / "003.png").write_bytes(b"no picture")
    done = runner("evaluate", pair_model, samples, "--out", tmp_path / "out", "--workers", 0, "--bootstrap", 0)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["samples"]["quarantined"] == 1 and record["samples"]["good"] == 59
    pools = record["retrieval"]["embedding"]["pools"]
    assert (pools["text_to_image"]["queries"], pools["text_to_image"]["pool"]) == (45, 9)
    assert pools["text_to_image"]["left_out"] == 5 and pools["image_to_text"]["pool"] == 50
    assert any("5 of 50 text queries are left out" in notice for notice in record["notices"])


def test_shown_queries_are_the_best_the_worst_and_some_at_random(evaluated: tuple[Path, Any]) -> None:
    rng = np.random.default_rng(0)
    rows = [(f"{i}", f"{i}", rng.normal(size=3).tolist(), rng.normal(size=3).tolist()) for i in range(30)]
    table, vectors = values(rows)  # type: ignore[arg-type]
    found = measure_retrieval(Embedding(3), vectors, table, by_caption=False, bootstrap=0)
    assert found is not None
    own = found.directions[0]
    shown = shown_queries(own, each=3, seed=0)
    numbers = [query.number for query in shown]
    assert len(set(numbers)) == len(numbers) and shown == shown_queries(own, each=3, seed=0)
    worst = [query.number for query in shown if query.why == "among the worst"]
    assert sorted(own.ranks.ranks[worst].tolist()) == sorted(own.ranks.ranks.tolist())[-3:]
    assert all(own.ranks.ranks[query.number] == 1 for query in shown if query.why == "among the best")


@pytest.mark.parametrize(
    "options, told",
    [
        (["--by", "source"], "predicts no labels or numbers"),
        (["--split", "val", "--soft"], "learns no labels of annotators"),
    ],
)
def test_what_is_of_labels_alone_is_refused(
    pairs: str, pair_model: str, tmp_path: Path, runner: Callable[..., Any], options: list[str], told: str
) -> None:
    done = runner("evaluate", pair_model, pairs, "--out", tmp_path / "out", "--workers", 0, *options)
    assert done.code == 2 and told in done.err and len(done.err.splitlines()) == 1


def test_samples_without_captions_are_refused_in_their_own_words(
    pair_model: str, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    samples = collection(tmp_path, 8, captions=0)
    done = runner("evaluate", pair_model, samples, "--out", tmp_path / "out", "--workers", 0)
    assert done.code == 2 and "has no captions to compare with" in done.err
