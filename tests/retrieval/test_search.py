"""`raymotion search`: exact, in one order whatever the parts and the engine, with the model that made the vectors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raymotion
from raymotion.batch import search as module
from raymotion.data.parts import read_job, write_job
from raymotion.data.samples import read_samples, write_samples
from raymotion.errors import InputError

from .conftest import train


@pytest.fixture(scope="module")
def index(pairs: str, pair_model: str, runner: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """All 80 samples labelled, in several parts; the last ten without captions, and one of these without a picture."""
    folder = tmp_path_factory.mktemp("index")
    table = read_samples(pairs)
    rows = table.to_pylist()
    for row in rows[70:]:
        row["captions"] = []
    rows[69]["image_uri"] = None
    # Two more rows of the first picture, as of persons in it.
    rows += [{**rows[0], "sample_id": f"person-{i}", "captions": []} for i in (1, 0)]
    write_samples(folder / "s.parquet", pa.Table.from_pylist(rows, schema=table.schema))
    done = runner(
        "label", folder / "s.parquet", "--model", pair_model, "--out", folder / "labels", "--workers", 0,
        "--shard-rows", 30,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f'next: raymotion search "..." --index {folder / "labels"}' in done.out
    return str(folder / "labels")


def by_hand(index: str, query: np.ndarray, side: str) -> list[tuple[str, float]]:
    """Ranks all rows of an index: the best of each picture, ties by sample_id."""
    frame = pd.read_parquet(index)
    frame = frame[frame[f"{side}_embedding"].notna()]
    vectors = np.stack(frame[f"{side}_embedding"]).astype(np.float64)
    similar = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
    rows = zip(np.round(similar, 9), frame["sample_id"], frame["image_uri"], strict=True)
    found: dict[str, tuple[str, float]] = {}
    for value, name, uri in sorted(rows, key=lambda row: (-row[0], row[1])):
        found.setdefault(uri or name, (name, float(value)))
    return list(found.values())


@pytest.mark.parametrize("rows", [1, 7, 8192])
@pytest.mark.parametrize("side", ["image", "text"])
def test_it_finds_what_comparing_all_rows_finds(
    index: str, side: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", rows)
    text = "picture 1 rhigh gnone bnone"
    own = raymotion.SearchIndex(index)
    query = own.model.embed(caption=text)["text"].astype(np.float64)
    for top in (1, 10, 500):
        found = own.search(text, top=top, side=side)
        expected = by_hand(index, query, side)[:top]
        assert [hit.sample_id for hit in found] == [name for name, _ in expected]
        assert [hit.cosine for hit in found] == pytest.approx([value for _, value in expected], abs=1e-8)
        assert [hit.rank for hit in found] == list(range(1, len(expected) + 1))
    # Three rows are of one picture; 11 samples have no captions.
    assert (found.searched, found.without, len(found)) == ((81, 1, 79) if side == "image" else (70, 12, 70))


def test_a_sentence_finds_pictures_of_its_colour(index: str) -> None:
    found = raymotion.search("rhigh gnone bnone", index, top=3)
    assert found.searched == 81 and found.side == "image"
    for hit in found:
        red, green, blue = Image.open(str(hit.image_uri)).getpixel((0, 0))
        assert red > max(green, blue)
    frame = found.frame()
    assert list(frame.columns) == ["rank", "cosine", "sample_id", "image_uri", "captions"] and len(frame) == 3


def test_a_picture_finds_itself_first_and_captions_of_its_colour(index: str, pairs: str) -> None:
    picture = read_samples(pairs).column("image_uri")[20].as_py()
    found = raymotion.search(None, index, image=picture, top=5)
    assert found.hits[0].image_uri == picture and found.hits[0].cosine == pytest.approx(1.0, abs=1e-6)
    in_memory = raymotion.search(None, index, image=Image.open(picture), top=5)
    assert in_memory.hits == found.hits and in_memory.image == "an image"
    captions = raymotion.search(None, index, image=picture, side="text", top=1)
    assert captions.hits[0].captions


def test_the_command_prints_a_table_or_json_and_writes_a_page(
    index: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = runner("search", "rhigh gnone bnone", "--index", index, "--top", 4, "--html", page)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["rank", "cosine", "picture", "captions"]
    assert [line.split()[0] for line in lines[-6:-2]] == ["1", "2", "3", "4"] and ".png" in lines[-3]
    assert lines[-2:] == ["81 image vectors searched, 1 rows have none", f"page: {page}"]
    text = page.read_text()
    assert text.count("data:image/jpeg") == 4 and "“rhigh gnone bnone”" in text and "<script" not in text
    told = json.loads(runner("search", "rhigh gnone bnone", "--index", index, "--top", 4, "--json").out)
    assert [hit["rank"] for hit in told["hits"]] == [1, 2, 3, 4] and told["query"]["text"] == "rhigh gnone bnone"
    # A page is replaced by the next one, other files are not.
    assert runner("search", "<b>", "--index", index, "--html", page).code == 0
    assert "“&lt;b&gt;”" in page.read_text()
    assert runner("search", "--image", told["hits"][0]["image_uri"], "--index", index, "--html", page).code == 0
    assert "Pictures like" in page.read_text()
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    done = runner("search", "rhigh", "--index", index, "--html", tmp_path / "mine.html")
    assert done.code == 2 and "exists already" in done.err


def test_bad_input_is_told_in_one_line(
    index: str, pairs: str, pair_model: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    def refused(*arguments: object) -> str:
        done = runner("search", *arguments)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
        return str(done.err)

    assert "neither a text nor an image is given" in refused("--index", index)
    assert "a text and an image are given" in refused("a", "--image", "b.png", "--index", index)
    assert "no such folder" in refused("a", "--index", tmp_path / "nowhere")
    assert "a checkpoint" in refused("a", "--index", pair_model)
    assert "has no face vectors" in refused("rhigh", "--index", index, "--side", "face")
    assert "no caption has a word that this model knows" in refused("%%% ###", "--index", index)
    assert "nowhere.png" in refused("--image", tmp_path / "nowhere.png", "--index", index)
    with pytest.raises(InputError, match="at least one row"):
        raymotion.search("rhigh", index, top=0)
    with pytest.raises(InputError, match="no engine"):
        raymotion.search("rhigh", index, engine="annoy")
    other = train(pairs, tmp_path / "other", epochs=1)
    assert "is another model" in refused("rhigh", "--index", index, "--model", other)
    moved = shutil.copytree(pair_model, tmp_path / "moved")
    assert runner("search", "rhigh", "--index", index, "--model", moved).code == 0


def test_a_model_that_is_gone_is_told_with_the_remedy(
    pairs: str, pair_model: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    here = shutil.copytree(pair_model, tmp_path / "here")
    assert runner("label", pairs, "--model", here, "--out", tmp_path / "labels", "--workers", 0).code == 0
    shutil.rmtree(here)
    done = runner("search", "rhigh", "--index", tmp_path / "labels")
    assert done.code == 2 and "its model cannot be read" in done.err and "--model FOLDER" in done.err
    assert runner("search", "rhigh", "--index", tmp_path / "labels", "--model", pair_model).code == 0


def test_an_index_without_vectors_of_a_side_has_nothing_to_search(
    pairs: str, pair_model: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    table = read_samples(pairs).slice(0, 6)
    captions = pa.array([[]] * 6, table.schema.field("captions").type)
    position = table.schema.get_field_index("captions")
    write_samples(tmp_path / "s.parquet", table.set_column(position, table.schema.field("captions"), captions))
    runner("label", tmp_path / "s.parquet", "--model", pair_model, "--out", tmp_path / "labels", "--workers", 0)
    assert runner("search", "rhigh", "--index", tmp_path / "labels").code == 0
    done = runner("search", "rhigh", "--index", tmp_path / "labels", "--side", "text")
    assert done.code == 2 and "holds no text vector in its 6 rows" in done.err


def test_equal_rows_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    """Whatever the order of the rows and the size of the blocks."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(4, 6)), 5, axis=0).astype(np.float32)
    names = [f"{i:02d}" for i in range(20)]
    results = []
    for seed, size in ((0, 20), (1, 3), (2, 1)):
        order = np.random.default_rng(seed).permutation(20)
        best = module._Best(7)
        for start in range(0, 20, size):
            some = order[start : start + size]
            block = module._Block(
                some, pa.array([names[i] for i in some]), pa.nulls(len(some), pa.string()), vectors[some], 0
            )  # fmt: skip
            best.offer(block, module.cosines(vectors[:1], block.vectors)[0])
        results.append([row for row, _ in best.hits()])
    assert results[0] == results[1] == results[2]
    assert results[0][:5] == [0, 1, 2, 3, 4]


def test_faiss_finds_the_same(index: str, runner: Callable[..., Any]) -> None:
    pytest.importorskip("faiss")
    for engine_side in ("image", "text"):
        slow, fast = raymotion.SearchIndex(index), raymotion.SearchIndex(index, engine="faiss")
        for top in (1, 5, 79, 500):
            own, other = (one.search("rhigh gnone bnone", top=top, side=engine_side) for one in (slow, fast))
            assert own.hits == other.hits
            assert (own.searched, own.without, other.engine) == (other.searched, other.without, "faiss")


def test_faiss_that_is_not_installed_is_told(
    index: str, runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    done = runner("search", "rhigh", "--index", index, "--engine", "faiss")
    assert done.code == 2 and "faiss is not installed" in done.err and len(done.err.splitlines()) == 1


def test_an_index_of_labels_is_refused(runner: Callable[..., Any], tmp_path: Path, index: str) -> None:
    copy = Path(shutil.copytree(index, tmp_path / "labels"))
    record, _ = read_job(copy)
    assert record is not None
    numbers = {"type": "dimensions", "name": "valence", "names": ["valence"], "scale": [1, 7], "loss": {"name": "mse"}}
    write_job(str(copy), {**record, "model": {**record["model"], "outputs": [numbers], "kind": "regressor"}})
    done = runner("search", "rhigh", "--index", copy)
    assert done.code == 2 and "holds no vectors to search: its labels are those of a regressor" in done.err, done.err


def test_what_reads_labels_refuses_vectors_or_shows_them(
    index: str, pair_model: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    for command in (
        ("report", index, "--out", tmp_path / "r.html"), ("review", index, "--out", tmp_path / "review"),
        ("select", index, "--policy", "threshold", "--out", tmp_path / "select"),
        ("audit", index, "--out", tmp_path / "audit"),
        ("export", index, "--format", "csv", "--out", tmp_path / "out.csv"),
    ):  # fmt: skip
        done = runner(*command)
        assert done.code == 2 and "its model predicts vectors" in done.err, (command, done.err)
        assert len(done.err.splitlines()) == 1
    assert runner("export", index, "--out", tmp_path / "full.csv").code == 0
    table = pd.read_csv(tmp_path / "full.csv")
    part = pq.read_table(min(Path(index, "data").glob("*.parquet")))
    assert json.loads(table["image_embedding"][0]) == pytest.approx(part.column("image_embedding")[0].as_py(), abs=1e-5)
    assert runner("status", index).out.startswith("labels: complete")
    frame = raymotion.open_labels(index)
    assert len(frame) == 82 and len(frame["text_embedding"][0]) == 16 and frame.attrs["labels"] == []
    card = Path(index, "_README.md").read_text()
    assert "Vectors of pictures and captions" in card and "unit vector of the image" in card
    assert (
        "unit vector of the captions" in card
        and "raymotion.search(" in card
        and "emotion" not in card.split("# Vec")[1]
    )
    done = runner("label", index.replace("labels", "s.parquet"), "--model", pair_model, "--model", pair_model,
                  "--out", tmp_path / "mean", "--workers", 0)  # fmt: skip
    assert done.code == 2 and "have no mean" in done.err


def test_predict_shows_the_similarity_of_a_picture_and_its_caption(
    pairs: str, pair_model: str, runner: Callable[..., Any]
) -> None:
    row = read_samples(pairs).slice(0, 1).to_pylist()[0]
    done = runner("predict", pair_model, row["image_uri"], "--caption", row["captions"][0])
    assert done.code == 0 and done.out.startswith("similarity "), done.err
    model = raymotion.load(pair_model)
    vectors = model.embed(row["image_uri"], row["captions"][0])
    cosine = float(vectors["image"] @ vectors["text"])
    assert f"similarity {cosine:.2f} (of -1 to 1)" in done.out
    told = json.loads(runner("predict", pair_model, row["image_uri"], "--caption", row["captions"][0], "--json").out)
    assert told["numbers"]["similarity"] == pytest.approx(cosine, abs=1e-6)
    for alone in ((row["image_uri"],), ("--caption", row["captions"][0])):
        done = runner("predict", pair_model, *alone)
        assert done.code == 0 and len(done.out.splitlines()) == 1
        assert "give both to see how similar they are" in done.out
    assert "-> vectors" in repr(model)


def test_a_data_frame_gets_the_vectors_that_the_job_stores(pairs: str, pair_model: str, index: str) -> None:
    frame = pd.read_parquet(pairs).iloc[:6].copy()
    frame.loc[2, "image_uri"] = None
    said = raymotion.load(pair_model).predict(frame)
    assert list(said.columns) == ["sample_id", "image_uri", "image_embedding", "text_embedding", "failure"]
    assert said["image_embedding"][2] is None and said["text_embedding"][2].dtype == np.float32
    stored = pd.read_parquet(index).set_index("sample_id")
    for name in ("image_embedding", "text_embedding"):
        assert said[name][0] == pytest.approx(stored.loc["s000", name], abs=1e-6)


def test_a_model_without_vectors_or_without_text_says_so(pairs: str, pair_model: str, tmp_path: Path) -> None:
    model = raymotion.load(pair_model)
    own = model.model.inputs[1]
    try:
        own.used = False
        with pytest.raises(InputError, match="reads no captions"):
            raymotion.pipeline.predictor.Predictor(model.model).embed(caption="rhigh")
    finally:
        own.used = True


def test_crossfit_refuses_vectors_of_one_space_for_each_fold(
    pairs: str, runner: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text("kind: toy-pair\nworkers: 0\noptimiser: {epochs: 1}\n")
    done = runner(
        "crossfit", tmp_path / "recipe.yaml", "--samples", pairs, "--folds", 2, "--out", tmp_path / "out", "--no-ray"
    )
    assert done.code == 2 and "each fold's model has a space of its own" in done.err, done.err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*"))


def test_an_index_and_a_page_in_an_object_store(index: str, s3: str, runner: Callable[..., Any]) -> None:
    from raymotion import storage

    for path in Path(index).rglob("*"):
        if path.is_file():
            storage.write_bytes(f"{s3}/labels/{path.relative_to(index).as_posix()}", path.read_bytes())
    here, there = (
        runner("search", "rhigh gnone bnone", "--index", own, "--json", "--html", f"{s3}/{i}.html")
        for i, own in enumerate((index, f"{s3}/labels"))
    )
    assert here.code == there.code == 0, there.err
    assert json.loads(here.out)["hits"] == json.loads(there.out)["hits"]
    assert b"data:image/jpeg" in storage.read_bytes(f"{s3}/1.html")


def test_an_empty_sentence_is_told(index: str, runner: Callable[..., Any]) -> None:
    for text in ("  ", "", "\u200b"):
        done = runner("search", text, "--index", index)
        assert done.code == 2 and "the text to search for is empty" in done.err and len(done.err.splitlines()) == 1


def test_a_part_that_was_changed_is_not_searched(index: str, runner: Callable[..., Any], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(index, tmp_path / "labels"))
    part = min((copy / "data").glob("*.parquet"))
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(bytes(data))
    done = runner("search", "rhigh", "--index", copy)
    assert done.code == 2 and "is not what was committed" in done.err, done.err
