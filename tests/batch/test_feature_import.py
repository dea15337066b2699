"""`raymotion features import`: vectors that were made elsewhere become a folder of the embedding job."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion import records
from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.batch.feature_import import ImportSettings, import_vectors
from raymotion.batch.label_dataset import read_parts
from raymotion.data.embeddings import Embeddings
from raymotion.data.parts import read_job
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.data.vector_table import Shared, VectorIds, read_vectors, shared_by_pictures
from raymotion.errors import InputError

DIM = 512  # resnet18's


def vectors(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


def write_vectors(path: Path, ids: list[Any], values: Any, **names: str) -> Path:
    columns = {names.get("ids", "image"): ids, names.get("values", "embedding"): list(values)}
    pq.write_table(pa.table(columns), path)
    return path


def write_table(path: Path, names: list[str], **more: list[Any]) -> Path:
    rows = [
        {"sample_id": f"flickr8k:{name}", "group_id": f"flickr8k:{name}", "captions": ["A dog ."], "source": "flickr8k"}
        | {key: values[i] for key, values in more.items()}
        for i, name in enumerate(names)
    ]
    write_samples(path, table_from_rows(rows))
    return path


def take(tmp_path: Path, **options: Any) -> Any:
    base = {"vectors": tmp_path / "v.parquet", "samples": tmp_path / "s.parquet", "out": tmp_path / "out"}
    given = {key: str(value) for key, value in base.items()} | {"backbone": "resnet18", "weights": "random:0"} | options
    return import_vectors(ImportSettings(**given), progress="none")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_the_vectors_are_those_of_the_file_whatever_its_order(tmp_path, kind):
    names = [f"{i}.jpg" for i in range(20)]
    values = vectors(20)
    order = np.random.default_rng(1).permutation(20)
    lists = pa.array([values[i].tolist() for i in order], pa.list_(kind))
    pq.write_table(pa.table({"image": [names[i] for i in order], "embedding": lists}), tmp_path / "v.parquet")
    table = read_samples(write_table(tmp_path / "s.parquet", names))
    summary = take(tmp_path, shard_rows=8)
    assert summary.counts["good"] == 20
    found = Embeddings(str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    found.require_made_from(table)
    block = found.block("context", "resnet18")
    assert (block.views, block.dim, len(found)) == (1, DIM, 20)
    rows = block.row_of[found.rows(table["sample_id"].to_pylist())]
    assert np.array_equal(block.array[rows, 0], values)
    identity = found.backbones["resnet18"]
    assert (identity["weights"], identity["dim"], identity["size"]) == ("random:0", DIM, 224)
    assert take(tmp_path, shard_rows=8).already_complete


@pytest.mark.slow
def test_the_same_files_after_a_crash(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    write_vectors(tmp_path / "v.parquet", names, vectors(20))
    write_table(tmp_path / "s.parquet", names)
    take(tmp_path, shard_rows=8)
    part = tmp_path / "out/data/part-00001.parquet"
    before = part.read_bytes()
    part.unlink()
    assert not take(tmp_path, shard_rows=8).already_complete
    assert part.read_bytes() == before
    write_vectors(tmp_path / "v.parquet", names, vectors(20, seed=1))
    with pytest.raises(InputError, match="sha256"):
        take(tmp_path, shard_rows=8)


def test_what_finds_no_partner_is_told(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    write_vectors(tmp_path / "v.parquet", [*names[:18], "other.jpg"], vectors(19))
    write_table(tmp_path / "s.parquet", names)
    summary = take(tmp_path)
    assert summary.counts["good"] == 18 and summary.counts["by_reason"] == {"no_vector": 2}
    notices = summary.record["notices"]
    assert any("2 of 20 samples have no vector, such as flickr8k:18.jpg" in notice for notice in notices)
    assert any("1 of 19 vectors match no sample, such as other.jpg" in notice for notice in notices)


def test_too_few_partners_are_refused_before_anything_is_written(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    write_vectors(tmp_path / "v.parquet", names[:5], vectors(5))
    write_table(tmp_path / "s.parquet", names)
    with pytest.raises(InputError, match=r"15 of 20 samples have no vector, such as flickr8k:5.jpg.*--max-failed 1"):
        take(tmp_path)
    assert not (tmp_path / "out/data").exists()
    assert take(tmp_path, max_failed=1.0).counts["good"] == 5


def test_a_vector_that_is_not_finite_is_quarantined(tmp_path):
    names = [f"{i}.jpg" for i in range(8)]
    values = vectors(8).astype(np.float32)
    values[2, 5], values[3, 7] = np.nan, 1e6
    write_vectors(tmp_path / "v.parquet", names, values)
    write_table(tmp_path / "s.parquet", names)
    summary = take(tmp_path)
    assert summary.counts["by_reason"] == {"not_finite": 2}
    (_, rows), *_ = read_parts(str(tmp_path / "out"), ["sample_id", "message"], quarantine=True)
    assert rows["sample_id"].to_pylist() == ["flickr8k:2.jpg", "flickr8k:3.jpg"]


def test_vectors_of_persons(tmp_path):
    names = ["a", "b", "c"]
    write_vectors(tmp_path / "v.parquet", ["flickr8k:a", "flickr8k:b"], vectors(2))
    boxes = [[0.0, 0.0, 9.0, 9.0], [1.0, 1.0, 8.0, 8.0], None]
    uris = ["/x.jpg"] * 3
    write_table(tmp_path / "s.parquet", names, body_box=boxes, image_uri=uris)
    summary = take(tmp_path, stream="body")
    assert summary.counts["good"] == 3
    found = Embeddings(str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    assert found.mask("body").tolist() == [True, True, False]
    # A context is stored once for each picture, so it has to be the same for all in it.
    with pytest.raises(InputError, match="are of one picture, and have different vectors"):
        take(tmp_path, out=str(tmp_path / "other"), max_failed=1.0)


def test_vectors_of_the_embedding_job_come_back_as_they_were(tmp_path, monkeypatch):
    """What a folder says of its vectors is what the embedding job says, so models trained on either may use both."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"{i}.jpg" for i in range(5)]
    for i, name in enumerate(names):
        Image.new("RGB", (40, 30), (50 * i, 100, 200 - 40 * i)).save(tmp_path / name)
    write_table(tmp_path / "s.parquet", names, image_uri=[str(tmp_path / name) for name in names])
    made = EmbeddingSettings(
        samples=str(tmp_path / "s.parquet"), out=str(tmp_path / "made"), context=("test_resnet",),
        backbone_weights=("random:0",), size=("48",), workers=0,
    )  # fmt: skip
    embed(made, progress="none")
    first = Embeddings(str(tmp_path / "made"))
    block = first.block("context", "test_resnet")
    write_vectors(tmp_path / "v.parquet", names, block.array[block.row_of, 0])
    take(tmp_path, backbone="test_resnet", size=48)
    second = Embeddings(str(tmp_path / "out"))
    again = second.block("context", "test_resnet")
    assert second.backbones == first.backbones and second.keys == first.keys
    assert np.array_equal(again.array[again.row_of], block.array[block.row_of])
    second.require_made_from(read_samples(tmp_path / "s.parquet"))


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"backbone": "resnet50"}, "embedding has 512 numbers, a feature of resnet50 has 2,048"),
        ({"id_column": "name"}, "has no column 'name' of ids"),
        ({"vector_column": "image"}, "has no column 'image' of vectors"),
        ({"stream": "face"}, "no sample has a face_box"),
        ({"samples": "v.parquet"}, "is not a sample table"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, monkeypatch, options, reason):
    monkeypatch.chdir(tmp_path)
    write_vectors(tmp_path / "v.parquet", ["a"], vectors(1))
    write_table(tmp_path / "s.parquet", ["a"])
    with pytest.raises(InputError, match=re.escape(reason)):
        take(tmp_path, **options)


@pytest.mark.parametrize(
    "ids, values, reason",
    [
        (["a", "a"], [[1.0], [2.0]], "row 1 (counted from 0): image 'a' appears twice"),
        (["a", None], [[1.0], [2.0]], "row 1 (counted from 0): image is empty"),
        (["a", "b"], [[1.0], [2.0, 3.0]], "row 1 (counted from 0): embedding has 2 numbers, the first row has 1"),
        (["a", "b"], [[1.0], None], "row 1 (counted from 0): embedding is null"),
        (["a", "b"], [[1.0], [None]], "has a null within a vector"),
        ([], [], "has no column that could hold vectors"),
        (["a"], [[]], "could hold vectors"),
    ],
)
def test_damaged_vectors_are_named(tmp_path, ids, values, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        read_vectors(write_vectors(tmp_path / "v.parquet", ids, values))


def test_other_files_are_no_vectors(tmp_path):
    (tmp_path / "v.parquet").write_text("image,embedding\n")
    with pytest.raises(InputError, match="is not a Parquet file"):
        read_vectors(tmp_path / "v.parquet")
    pq.write_table(pa.table({"a": ["x"], "b": ["y"], "v": [[1.0]], "w": [[1.0]]}), tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"several columns that could hold vectors.*--vector-column: v, w"):
        read_vectors(tmp_path / "v.parquet")
    with pytest.raises(InputError, match=r"several columns that could hold ids.*--id-column: a, b"):
        read_vectors(tmp_path / "v.parquet", vector_column="w")
    assert read_vectors(tmp_path / "v.parquet", vector_column="w", id_column="b").ids == ("y",)


def samples_of(rows: list[tuple[str, str | None]]) -> pa.Table:
    return pa.table(
        {"sample_id": [own for own, _ in rows], "image_uri": pa.array([uri for _, uri in rows], pa.string())}
    )


def matched(ids: list[str], samples: pa.Table, **more: Any) -> tuple[list[int], list[bool], dict[int, str]]:
    found = VectorIds(ids).match(samples, **more)
    return found.rows.tolist(), found.by_file_name.tolist(), found.ambiguous


def test_a_sample_is_known_by_id_then_by_picture():
    samples = samples_of([("f:a.jpg", "/p/b.jpg"), ("f:b.jpg", None), ("f:x", "/p/c.jpg"), ("f:y", "/p/c.jpg")])
    exact = [False] * 4
    assert matched(["a.jpg", "b.jpg", "c.jpg"], samples) == ([0, 1, 2, 2], [False, False, True, True], {})
    assert matched(["a.jpg", "b.jpg", "c.jpg"], samples, by_picture=False) == ([0, 1, -1, -1], exact, {})
    assert matched(["/p/c.jpg", "f:b.jpg", "/p/b.jpg"], samples) == ([2, 1, 0, 0], exact, {})
    assert matched(["Images/a.jpg"], samples) == ([0, -1, -1, -1], [True, *exact[1:]], {})
    assert matched(["b.jpg"], samples_of([("f:p/b.jpg", None)])) == ([0], [True], {})
    # Two ids with one file name: neither is meant by it, not even if one of them is nothing but the name.
    for ids in (["u/a.jpg", "v/a.jpg"], ["a.jpg", "v/a.jpg"]):
        rows, _, why = matched(ids, samples_of([("f:p/a.jpg", None)]))
        assert rows == [-1] and why == {0: f"a.jpg is the file name of 2 vectors, such as {ids[0]} and v/a.jpg"}
    assert matched(["a.jpg", "v/a.jpg"], samples)[0][0] == 0


def test_a_file_name_of_two_pictures_says_nothing():
    two = samples_of([("f:p/a.jpg", "/p/a.jpg"), ("f:q/a.jpg", "/q/a.jpg"), ("g:1", "/q/b.jpg"), ("g:2", "/q/b.jpg")])
    shared = shared_by_pictures(two)
    assert shared == Shared(frozenset(), frozenset({"a.jpg"}))
    rows, by_name, why = matched(["a.jpg", "b.jpg"], two, shared=shared)
    assert (rows, by_name) == ([-1, -1, 1, 1], [False, False, True, True])
    assert why == dict.fromkeys((0, 1), "a.jpg is the file name of several pictures")
    assert matched(["p/a.jpg", "/q/a.jpg"], two, shared=shared)[0] == [0, 1, -1, -1]


@pytest.mark.parametrize("uris", [("/p/1.jpg", "/q/1.jpg"), (None, None)])
def test_an_id_of_two_data_sets_says_nothing_without_its_data_set(uris):
    two = samples_of([("coco:1.jpg", uris[0]), ("gaped:1.jpg", uris[1])])
    shared = shared_by_pictures(two)
    rows, _, why = matched(["1.jpg"], two, shared=shared)
    assert rows == [-1, -1] and why[0] == "1.jpg is the id of samples of several data sets"
    assert matched(["gaped:1.jpg", "coco:1.jpg"], two, shared=shared)[0] == [1, 0]
    # Of one picture, in two data sets, it is the same vector.
    same = samples_of([("coco:1.jpg", "/p/1.jpg"), ("gaped:1.jpg", "/p/1.jpg")])
    assert matched(["1.jpg"], same, shared=shared_by_pictures(same))[0] == [0, 0]


def test_how_samples_were_matched_is_printed_and_recorded(runner, tmp_path):
    names = [*[f"{i}.jpg" for i in range(4)], *[f"p/{i}.jpg" for i in range(4, 8)], "q/7.jpg", "r/8.jpg", "9.jpg"]
    ids = [*names[:4], *[f"Images/{i}.jpg" for i in range(4, 8)], "u/8.jpg", "v/8.jpg", "9.jpg"]
    write_vectors(tmp_path / "v.parquet", ids, vectors(len(ids)))
    write_table(tmp_path / "s.parquet", names)
    where = [tmp_path / "v.parquet", "--samples", tmp_path / "s.parquet", "--out", tmp_path / "out"]
    where += ["--backbone", "resnet18", "--weights", "random:0"]
    done = runner("features", "import", *where, "--max-failed", 0)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1
    assert "3 of 11 samples have no vector, such as flickr8k:p/7.jpg; 3 of them because a name is ambiguous" in done.err
    assert "Give sample ids or addresses as ids, or let --max-failed 1" in done.err
    done = runner("features", "import", *where, "--max-failed", 1)
    assert done.code == 0, done.err
    assert "matched: 5 by id or address, 3 by file name alone" in done.out
    assert (
        "3 of 11 samples were matched by file name alone, such as flickr8k:p/4.jpg with Images/4.jpg: make" in done.out
    )
    assert "flickr8k:q/7.jpg: 7.jpg is the file name of several pictures" in done.out
    assert "flickr8k:r/8.jpg: 8.jpg is the file name of 2 vectors, such as u/8.jpg and v/8.jpg" in done.out
    (record, _) = read_job(str(tmp_path / "out"))
    assert record["embeddings"]["matched"] == {"by_id": 5, "by_file_name": 3, "without": 3, "ambiguous": 3}
    parts = [part for _, part in read_parts(str(tmp_path / "out"), ["sample_id", "message"], quarantine=True)]
    rows = pa.concat_tables(parts)
    assert sorted(rows["sample_id"].to_pylist()) == ["flickr8k:p/7.jpg", "flickr8k:q/7.jpg", "flickr8k:r/8.jpg"]
    assert all("is the file name of" in message for message in rows["message"].to_pylist())
    again = runner("features", "import", *where, "--max-failed", 1)
    assert again.code == 0 and "matched: 5 by id or address, 3 by file name alone" in again.out
    # Earlier versions did not record it.
    del record["embeddings"]["matched"]
    records.write_record(tmp_path / "out/_job.json", record)
    again = runner("features", "import", *where, "--max-failed", 1)
    assert again.code == 0, again.err
    assert "8 vectors of 512 numbers" in again.out and "matched:" not in again.out


def test_the_column_of_ids_is_in_doubt_unless_all_that_is_missing_is_ambiguous(tmp_path):
    write_vectors(tmp_path / "v.parquet", ["u/0.jpg", "v/0.jpg", "x"], vectors(3))
    write_table(tmp_path / "s.parquet", ["p/0.jpg", "1.jpg", "2.jpg"])
    with pytest.raises(InputError, match=r"1 of them because a name is ambiguous.*Check --id-column\."):
        take(tmp_path)
    write_table(tmp_path / "s.parquet", ["p/0.jpg"])
    with pytest.raises(InputError, match=r"a name is ambiguous.*Give sample ids or addresses as ids\."):
        take(tmp_path)


def test_what_is_shared_is_that_of_the_table_not_of_a_shard(tmp_path):
    names = [f"{folder}/{i}.jpg" for folder in "pq" for i in range(8)]
    write_vectors(tmp_path / "v.parquet", [f"{i}.jpg" for i in range(8)], vectors(8))
    write_table(tmp_path / "s.parquet", names)
    with pytest.raises(InputError, match="16 of 16 samples have no vector"):
        take(tmp_path, shard_rows=8)
    write_vectors(tmp_path / "v.parquet", [*[f"{i}.jpg" for i in range(8)], "p/0.jpg"], vectors(9))
    summary = take(tmp_path, shard_rows=8, max_failed=1.0)
    assert summary.counts["good"] == 1 and summary.counts["by_reason"] == {"no_vector": 15}


@given(
    names=st.lists(st.text("abc/.", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    order=st.randoms(use_true_random=False),
)
def test_ids_find_themselves_in_any_order(names, order):
    samples = samples_of([(f"set:{name}", None) for name in names])
    shuffled = list(names)
    order.shuffle(shuffled)
    found = VectorIds(shuffled).match(samples)
    assert [shuffled[row] for row in found.rows] == names and not found.by_file_name.any()


def test_the_command(runner, tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    write_vectors(tmp_path / "v.parquet", names, vectors(6))
    write_table(tmp_path / "s.parquet", names)
    where = ["--samples", tmp_path / "s.parquet", "--out", tmp_path / "out", "--progress", "none"]
    done = runner(
        "features", "import", tmp_path / "v.parquet", *where, "--backbone", "resnet18", "--weights", "random:0"
    )
    assert done.code == 0, done.err
    assert "6 samples, 6 vectors of 512 numbers as context/resnet18" in done.out
    assert "The vectors were not made by raymotion" in done.out + done.err
    help_text = runner("features", "import", "--help").out
    assert "--precision" not in help_text and "--damaged" not in help_text


def test_the_real_vectors(shared_data, tmp_path):
    from raymotion.data.readers.flickr8k import Flickr8kReader

    table, _ = Flickr8kReader(path=str(shared_data / "flickr8k/captions.csv")).read()
    write_samples(tmp_path / "s.parquet", table)
    path = shared_data / "flickr8k/efficientnet_lite0.parquet"
    summary = take(
        tmp_path, vectors=str(path), backbone="tf_efficientnet_lite0", weights="bundled:tf_efficientnet_lite0"
    )
    assert summary.counts["good"] == 600
    found = Embeddings(str(tmp_path / "out"), cache=str(tmp_path / "cache"))
    block, own = found.block("context", "tf_efficientnet_lite0"), read_vectors(path)
    rows = block.row_of[found.rows([f"flickr8k:{name}" for name in own.ids])]
    assert np.array_equal(block.array[rows, 0], own.vectors)
