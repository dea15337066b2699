"""Cached region features: by id, masked where absent, memory-mapped once."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data.feature_store import features_digest
from raymotion.data.features import RegionFeatures
from raymotion.data.provenance import MADE_FROM
from raymotion.errors import InputError

COUNT, DIM = 3, 4


def fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), kind), flat.shape[1])


def write_job(
    folder: storage.PathLike,
    parts: list[list[str]],
    *,
    half: bool = True,
    status: str = "complete",
    count: int = COUNT,
    seed: int = 0,
    commits: bool = False,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A features folder as the job writes it; returns each sample's features and mask."""
    rng, truth = np.random.default_rng(seed), {}
    extractor = {"name": "det", "weights": "random", "count": count, "dim": DIM}
    for number, ids in enumerate(parts):
        features = rng.normal(size=(len(ids), COUNT, DIM)).astype(np.float16)
        mask = rng.random((len(ids), COUNT)) < 0.7
        truth.update({i: (f.astype(np.float32), m) for i, f, m in zip(ids, features, mask, strict=True)})
        table = pa.table(
            {
                "sample_id": pa.array(ids, pa.string()),
                **{own.name: pa.nulls(len(ids), own.type) for own in MADE_FROM},
                "features": fixed(
                    features.astype(np.float16 if half else np.float32), pa.float16() if half else pa.float32()
                ),
                "boxes": fixed(np.zeros((len(ids), COUNT, 4)), pa.float32()),
                "scores": fixed(np.zeros((len(ids), COUNT)), pa.float32()),
                "mask": fixed(mask, pa.bool_()),
            }
        ).replace_schema_metadata({b"raymotion.regions": json.dumps(extractor).encode()})
        sha256, _ = storage.write_table(storage.join(folder, f"data/part-{number:05d}.parquet"), table)
        if commits:
            storage.write_json(storage.join(folder, "_commits", f"part-{number:05d}.json"), {"sha256": sha256})
    storage.write_json(storage.join(folder, "_job.json"), {"job": "regions", "status": status, "digest": "d1"})
    return truth


@pytest.mark.parametrize("half", [True, False])
def test_any_ids_in_any_order(tmp_path: Path, half: bool) -> None:
    truth = write_job(tmp_path / "f", [["a", "b"], ["c"], ["d", "e", "f"]], half=half)
    features = RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache"))
    assert (len(features), features.count, features.dim) == (6, COUNT, DIM)
    assert features.extractor["name"] == "det" and "a" in features and "x" not in features
    asked = ["f", "x", "a", "c", "f"]
    values, mask = features.get(asked)
    assert values.shape == (5, COUNT, DIM) and values.dtype == np.float32 and mask.dtype == bool
    for row, sample_id in enumerate(asked):
        if sample_id == "x":
            assert not mask[row].any()
        else:
            np.testing.assert_array_equal(values[row], truth[sample_id][0])
            np.testing.assert_array_equal(mask[row], truth[sample_id][1])
    assert features.get([])[0].shape == (0, COUNT, DIM)


@given(asked=st.lists(st.sampled_from(["a", "b", "c", "zz"]), max_size=12))
def test_each_row_depends_on_its_own_id_alone(features: RegionFeatures, asked: list[str]) -> None:
    values, mask = features.get(asked)
    for row, sample_id in enumerate(asked):
        one, own = features.get([sample_id])
        assert np.array_equal(values[row], one[0]) and np.array_equal(mask[row], own[0])


@pytest.fixture
def features(tmp_path: Path) -> RegionFeatures:
    write_job(tmp_path / "f", [["a", "b", "c"]])
    return RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache"))


def test_the_copy_is_made_once_and_mapped_not_loaded(tmp_path: Path) -> None:
    write_job(tmp_path / "f", [["a", "b"]])
    first = RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache"))
    assert isinstance(first._features, np.memmap)
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    again = RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache"))
    assert len(stamp) > 3 and stamp == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    np.testing.assert_array_equal(first.get(["b"])[0], again.get(["b"])[0])


@pytest.mark.parametrize("commits", [True, False])
def test_features_extracted_anew_are_not_taken_from_the_old_copy(tmp_path: Path, commits: bool) -> None:
    cache = str(tmp_path / "cache")
    write_job(tmp_path / "f", [["a", "b"]], commits=commits)
    old = RegionFeatures(tmp_path / "f", cache=cache)
    truth = write_job(tmp_path / "f", [["a", "b"]], commits=commits, seed=1)  # same job, same names, other pictures
    new = RegionFeatures(tmp_path / "f", cache=cache)
    np.testing.assert_array_equal(new.get(["a", "b"])[0], np.stack([truth["a"][0], truth["b"][0]]))
    assert new.digest != old.digest


@pytest.mark.parametrize("commits", [True, False])
def test_a_moved_folder_is_the_same_features(tmp_path: Path, commits: bool) -> None:
    cache = tmp_path / "cache"
    write_job(tmp_path / "f", [["a", "b"], ["c"]], commits=commits)
    before, digest = RegionFeatures(tmp_path / "f", cache=str(cache)).digest, features_digest(tmp_path / "f")
    shutil.move(tmp_path / "f", tmp_path / "g")
    assert RegionFeatures(tmp_path / "g", cache=str(cache)).digest == before
    assert features_digest(tmp_path / "g") == digest
    assert len(list((cache / "regions").glob("*/index.json"))) == 1


def test_what_the_job_wrote_down_is_not_hashed_again(tmp_path: Path) -> None:
    write_job(tmp_path / "f", [["a"], ["b"]], commits=True)
    digest = features_digest(tmp_path / "f")
    shutil.rmtree(tmp_path / "f" / "_commits")
    assert features_digest(tmp_path / "f") == digest  # of the files themselves
    for part in (tmp_path / "f").glob("data/part-*"):
        recorded = {"sha256": "0" * 64}
        storage.write_json(tmp_path / "f" / "_commits" / f"{part.stem}.json", recorded)
    assert features_digest(tmp_path / "f") != digest


def test_of_those_who_open_it_at_once_one_makes_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = write_job(tmp_path / "f", [["a", "b"]])
    copies: list[Any] = []
    start, original = threading.Barrier(4), np.lib.format.open_memmap

    def counted(*arguments: Any, **settings: Any) -> Any:
        if settings["mode"] == "w+":
            copies.append(arguments)
            time.sleep(0.3)  # long enough for the others to come
        return original(*arguments, **settings)

    def look() -> np.ndarray:
        start.wait()
        return RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache")).get(["b"])[0][0]

    monkeypatch.setattr(np.lib.format, "open_memmap", counted)
    with ThreadPoolExecutor(4) as pool:  # a lock of the file system is between open files, not between processes
        for values in [future.result() for future in [pool.submit(look) for _ in range(4)]]:
            np.testing.assert_array_equal(values, truth["b"][0])
    assert len(copies) == 1


def test_from_s3(tmp_path: Path, s3: str) -> None:
    truth = write_job(f"{s3}/f", [["a"], ["b"]])
    values, _ = RegionFeatures(f"{s3}/f", cache=str(tmp_path)).get(["b", "a"])
    np.testing.assert_array_equal(values, np.stack([truth["b"][0], truth["a"][0]]))


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(InputError, match=r"no such folder"):
        RegionFeatures(tmp_path / "none", cache=cache)
    write_job(tmp_path / "r", [["a"]], status="running")
    with pytest.raises(InputError, match=r"complete.*status: running"):
        RegionFeatures(tmp_path / "r", cache=cache)
    write_job(tmp_path / "e", [])
    with pytest.raises(InputError, match="holds no part"):
        RegionFeatures(tmp_path / "e", cache=cache)
    write_job(tmp_path / "w", [["a"]], count=COUNT + 1)
    with pytest.raises(InputError, match="not a list of 16"):
        RegionFeatures(tmp_path / "w", cache=cache)
    write_job(tmp_path / "t", [["a"], ["a"]])
    with pytest.raises(InputError, match="sample_id appears twice"):
        RegionFeatures(tmp_path / "t", cache=cache)
    write_job(tmp_path / "d", [["a"]])
    (tmp_path / "d" / "data/part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"part-00000\.parquet: .*Parquet"):
        RegionFeatures(tmp_path / "d", cache=cache)
    assert not list((tmp_path / "cache").rglob(".*.tmp"))
