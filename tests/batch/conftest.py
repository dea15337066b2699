"""Pictures, good and bad, as sample tables; and a cheap job that runs the real runner on them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from raymotion.batch.spec import JobSettings, JobSpec
from raymotion.data.provenance import MADE_FROM_COLUMNS
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.pipeline.stages import DecodeImages, Item, Stage, made_from


def jpeg(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "image_truncated": lambda data: data[: len(data) // 2],
    "image_damaged": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "image_not_an_image": lambda data: b"this is a text file named .jpg",
    "image_empty": lambda data: b"",
}


@pytest.fixture
def write_table(tmp_path: Path) -> Callable[..., Path]:
    """`write_table(n, damaged={row: reason}, missing=[rows])` -> path of a sample table over n real JPEG files."""

    def write(
        rows: int, *, damaged: dict[int, str] | None = None, missing: Sequence[int] = (), name: str = "s"
    ) -> Path:
        folder = tmp_path / f"{name}-images"
        folder.mkdir()
        for row in range(rows):
            data = jpeg(row)
            if row in (damaged or {}):
                data = DAMAGE[(damaged or {})[row]](data)
            if row not in missing:
                (folder / f"{row:05d}.jpg").write_bytes(data)
        path = tmp_path / f"{name}.parquet"
        write_samples(path, sample_table(folder, rows))
        return path

    return write


def sample_table(folder: Path | str, rows: int) -> pa.Table:
    return table_from_rows(
        {
            "sample_id": f"x:{row}",
            "group_id": f"x:{row}",
            "image_uri": f"{folder}/{row:05d}.jpg",
            "captions": [f"caption {row}", "another"],
            "source": "x",
        }
        for row in range(rows)
    )


class MeanColour:
    """A model small enough for tests: the mean of the pixels. Rows named in `die_at` kill the process, for real."""

    name = "mean"
    whole_shard = False

    def __init__(self, die_at: Sequence[str] = (), fail_at: Sequence[str] = (), log: str | None = None) -> None:
        self.die_at, self.fail_at, self.log = frozenset(die_at), frozenset(fail_at), log

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        for item in items:
            sample_id = item.row["sample_id"]
            if self.log:
                with open(self.log, "a") as file:
                    file.write(f"{sample_id}\n")
            if sample_id in self.die_at:
                os._exit(11)
            if sample_id in self.fail_at:
                raise RuntimeError(f"no mean of {sample_id}")
            assert item.pixels is not None
            item.output["mean"] = float(item.pixels.mean())


class MeanSink:
    def encode(self, items: Sequence[Item]) -> pa.Table:
        columns = {
            "sample_id": pa.array([item.row["sample_id"] for item in items], pa.string()),
            "mean": pa.array([item.output["mean"] for item in items], pa.float64()),
        }
        return pa.table(columns | dict(zip(MADE_FROM_COLUMNS, made_from(items), strict=True)))


@pytest.fixture
def mean_job() -> Callable[..., JobSpec]:
    """`mean_job(settings fields..., stage=MeanColour(...))` -> a JobSpec."""

    def make(*, stage: Stage | None = None, version: int = 1, **settings: Any) -> JobSpec:
        mean = stage or MeanColour()
        return JobSpec(
            kind="means",
            settings=JobSettings(
                **{"workers": 2, **{k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}}
            ),
            identity={"model": {"version": version}},
            make_stages=lambda device: (DecodeImages(damaged=settings.get("damaged", "quarantine")), mean),
            sink=MeanSink(),
        )

    return make


@pytest.fixture
def mean_stage() -> type[MeanColour]:
    return MeanColour


@pytest.fixture
def mean_sink() -> type[MeanSink]:
    return MeanSink


@pytest.fixture(scope="session")
def ray_jobs(ray_local: Any) -> Any:
    """`ray_local`, whose workers get this file's classes by value: they cannot import a conftest."""
    import sys

    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[MeanColour.__module__])
    return ray_local


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each data file of an output folder."""
    import hashlib

    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("part-*.p*q*"))
    }


@pytest.fixture(name="digests")
def digests_fixture() -> Callable[[Path], dict[str, str]]:
    return digests
