"""Cached region features: by id, masked where absent, memory-mapped once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymotion import storage
from raymotion.data.features import RegionFeatures
from raymotion.errors import InputError

COUNT, DIM = 3, 4


def fixed(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = values.reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel(), kind), flat.shape[1])


def write_job(
    folder: storage.PathLike, parts: list[list[str]], *, half: bool = True, status: str = "complete", count: int = COUNT
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A features folder as the job writes it; returns each sample's features and mask."""
    rng, truth = np.random.default_rng(0), {}
    extractor = {"name": "det", "weights": "random", "count": count, "dim": DIM}
    for number, ids in enumerate(parts):
        features = rng.normal(size=(len(ids), COUNT, DIM)).astype(np.float16)
        mask = rng.random((len(ids), COUNT)) < 0.7
        truth.update({i: (f.astype(np.float32), m) for i, f, m in zip(ids, features, mask, strict=True)})
        table = pa.table(
            {
                "sample_id": pa.array(ids, pa.string()),
                "features": fixed(
                    features.astype(np.float16 if half else np.float32), pa.float16() if half else pa.float32()
                ),
                "boxes": fixed(np.zeros((len(ids), COUNT, 4)), pa.float32()),
                "scores": fixed(np.zeros((len(ids), COUNT)), pa.float32()),
                "mask": fixed(mask, pa.bool_()),
            }
        ).replace_schema_metadata({b"raymotion.regions": json.dumps(extractor).encode()})
        storage.write_table(storage.join(folder, f"part-{number:05d}.parquet"), table)
    storage.write_json(storage.join(folder, "job.json"), {"job": "regions", "status": status, "digest": "d1"})
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
    for part in (tmp_path / "f").glob(
        "part-*"
    ):  # same listing and schema, other numbers: only a rebuild would see them
        stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
        assert part.exists()
    again = RegionFeatures(tmp_path / "f", cache=str(tmp_path / "cache"))
    assert stamp == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    np.testing.assert_array_equal(first.get(["b"])[0], again.get(["b"])[0])


def test_from_s3(tmp_path: Path, s3: str) -> None:
    truth = write_job(f"{s3}/f", [["a"], ["b"]])
    values, _ = RegionFeatures(f"{s3}/f", cache=str(tmp_path)).get(["b", "a"])
    np.testing.assert_array_equal(values, np.stack([truth["b"][0], truth["a"][0]]))


def test_what_can_not_be_used_is_named(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(InputError, match=r"has no job\.json"):
        RegionFeatures(tmp_path / "none", cache=cache)
    write_job(tmp_path / "r", [["a"]], status="running")
    with pytest.raises(InputError, match=r"not complete \(status: running\).*command again"):
        RegionFeatures(tmp_path / "r", cache=cache)
    write_job(tmp_path / "e", [])
    with pytest.raises(InputError, match="holds no part"):
        RegionFeatures(tmp_path / "e", cache=cache)
    write_job(tmp_path / "w", [["a"]], count=COUNT + 1)
    with pytest.raises(InputError, match="not a list of 16"):
        RegionFeatures(tmp_path / "w", cache=cache)
    write_job(tmp_path / "t", [["a"], ["a"]])
    with pytest.raises(InputError, match="sample_id stands twice"):
        RegionFeatures(tmp_path / "t", cache=cache)
    write_job(tmp_path / "d", [["a"]])
    (tmp_path / "d" / "part-00000.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"part-00000\.parquet: is not a readable Parquet file"):
        RegionFeatures(tmp_path / "d", cache=cache)
    assert not list((tmp_path / "cache").rglob(".*.tmp"))
