"""The embedding job on real Ray and real (untrained, tiny) backbones: what it computes, how often, and for whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from raymotion import storage
from raymotion.batch import job, ledger
from raymotion.batch.embeddings import EmbeddingSettings, describe, embed, plan_streams, with_needs
from raymotion.batch.job import JobSummary
from raymotion.batch.worker import ShardWorker, WorkerPlan
from raymotion.data.embeddings import Embeddings
from raymotion.data.images import fetch_ahead
from raymotion.data.images.decode import decode_rgb
from raymotion.data.parts import write_job
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.data.views.streams import View, crop, render_view
from raymotion.errors import InputError, SettingsMismatch
from raymotion.models.vision.backbones import Backbone, identify
from raymotion.pipeline import embed as stream_stages
from raymotion.pipeline.embed import DecodeOnce, EmbedStreams
from raymotion.pipeline.stages import Item, image_units

NET, VIT, FULL = "test_resnet", "test_vit", "test_resnet.r160_in1k"
CHOICE: dict[str, Any] = {
    "context": (NET, VIT), "body": (NET,), "face": (NET,), "augment": ("basic", "full"), "views": 2, "tokens": 2,
    "backbone_weights": ("random:0", f"{VIT}=random:3"), "size": (f"{NET}=64", "48"), "seed": 5,
}  # fmt: skip
# Persons as (image, split, body box, face box). Pictures are 60 x 48.
BODY, LEFT, OUTSIDE = [20.0, 5.0, 45.0, 47.0], [-8.0, 4.0, 18.5, 48.0], [70.0, 2.0, 90.0, 30.0]
FACE = [26.0, 6.0, 38.0, 18.0]
PEOPLE: list[tuple[int, str, list[float] | None, list[float] | None]] = [
    (0, "train", BODY, FACE),
    (1, "val", BODY, FACE),
    (0, "train", LEFT, None),  # the second person of image 0 comes later in the table
    (2, "val", LEFT, FACE),  # image 2 is shared by validation and training
    (2, "train", BODY, None),
    (3, "test", OUTSIDE, FACE),  # the box lies outside the picture
    (4, "train", BODY, None),  # the picture is broken
    (4, "train", LEFT, FACE),
    (0, "train", BODY, None),
    (5, "train", None, FACE),
]
GOOD = [row for row, person in enumerate(PEOPLE) if person[0] != 4]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    for image in range(6):
        small = rng.integers(0, 255, (6, 8, 3), np.uint8)
        picture = Image.fromarray(small).resize((60, 48), Image.Resampling.BICUBIC)
        picture.save(folder / f"{image}.jpg", quality=95)
    broken = folder / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    rows = [
        {
            "sample_id": f"emotic:{split}:{row}", "group_id": f"emotic:f/{image}.jpg", "split": split,
            "image_uri": str(folder / f"{image}.jpg"), "body_box": body, "face_box": face, "source": "emotic",
        }
        for row, (image, split, body, face) in enumerate(PEOPLE)
    ]  # fmt: skip
    write_samples(folder / "people.parquet", table_from_rows(rows))
    return folder / "people.parquet"


def settings(table: Path, out: Path, **changes: Any) -> EmbeddingSettings:
    return EmbeddingSettings(**{**CHOICE, "samples": str(table), "out": str(out), "max_failed": 0.5, **changes})


@pytest.fixture(scope="module")
def made(
    table: Path, tmp_path_factory: pytest.TempPathFactory, ray_local: Any
) -> Iterator[tuple[JobSummary, Embeddings]]:
    out = tmp_path_factory.mktemp("made")
    summary = embed(settings(table, out / "e", shard_rows=3, workers=2))
    yield summary, Embeddings(out / "e", cache=str(out / "cache"))


def sample_id(row: int) -> str:
    return f"emotic:{PEOPLE[row][1]}:{row}"


def test_each_picture_or_crop_goes_once_through_each_backbone_and_view(made: Any) -> None:
    """Defects 13.12 (features computed again and again) and 13.4 (validation augmented): counted by hand."""
    summary, _ = made
    # Good pictures 0, 1, 2, 3, 5; of them 0, 2 and 5 have a person of train. Bodies: 0, 1, 2, 3, 4, 8; faces: 0, 1, 3,
    # 5, 9; of train: bodies 0, 2, 4, 8, faces 0, 9. Two views of each augmented level.
    expected = {"context/test_resnet/none": 5, "context/test_vit/none": 5, "body/test_resnet/none": 6,
                "face/test_resnet/none": 5}  # fmt: skip
    for level in ("basic", "full"):
        expected |= {
            f"context/test_resnet/{level}": 6, f"context/test_vit/{level}": 6,
            f"body/test_resnet/{level}": 8, f"face/test_resnet/{level}": 4,
        }  # fmt: skip
    assert summary.record["forward_passes"] == expected
    assert summary.record["forward_passes_minimum"] == expected
    commits = [storage.read_json(path) for path in sorted(Path(summary.folder, "_commits").glob("*.json"))]
    assert sum(commit["tally"].get("context/test_vit/full", 0) for commit in commits) == 6
    assert summary.counts["in"] == 10 and summary.counts["by_reason"] == {"image_truncated": 2}
    lines = describe(summary.record)
    assert lines[0].startswith("8 samples: 5 images, 6 bodies, 5 faces") and lines[-1].endswith("ratio 1.000")
    assert any("RANDOM WEIGHTS" in notice and "test_vit (random:3)" in notice for notice in summary.record["notices"])


def test_persons_of_one_image_share_a_shard_and_its_context(made: Any) -> None:
    summary, found = made
    shards = [
        storage.read_table(path).column("group_id").to_pylist()
        for path in sorted(Path(summary.folder).glob("data/part-*"))
    ]
    homes = [set(groups) for groups in shards if groups]
    assert len(homes) > 1 and sum(len(home) for home in homes) == len(set().union(*homes)) == 5
    block = found.block("context", NET)
    rows = dict(zip(found.sample_ids, block.row_of, strict=True))
    assert len(block.array) == 5 and rows[sample_id(0)] == rows[sample_id(2)] == rows[sample_id(8)]
    assert sorted(found.sample_ids) == sorted(sample_id(row) for row in GOOD)


def test_a_stream_that_a_person_lacks_is_a_null_not_a_black_square(made: Any) -> None:
    """Defect 13.8: missing faces were unspecified, or grey squares."""
    _, found = made
    for stream, place in (("body", 2), ("face", 3)):
        mask = dict(zip(found.sample_ids, found.mask(stream), strict=True))
        for row in GOOD:
            assert mask[sample_id(row)] == (PEOPLE[row][place] not in (None, OUTSIDE)), (stream, row)
    assert found.mask("context").all()


def test_validation_and_test_are_never_augmented(made: Any) -> None:
    """Defect 13.4, also where a person of validation shares an image with one of training."""
    _, found = made
    for stream in ("context", "body", "face"):
        clean = found.block(stream, NET).row_of >= 0
        train = np.array([":train:" in name for name in found.sample_ids])
        for level in ("basic", "full"):
            np.testing.assert_array_equal(found.block(stream, NET, level).row_of >= 0, clean & train)


@pytest.mark.parametrize(
    ("row", "stream", "name", "level"),
    [(2, "context", VIT, "none"), (2, "context", NET, "full"), (2, "body", NET, "basic"), (0, "face", NET, "full")],
)
def test_features_are_those_of_decode_crop_view_and_backbone_by_hand(
    made: Any, table: Path, row: int, stream: str, name: str, level: str
) -> None:
    _, found = made
    person = read_samples(table).to_pylist()[row]
    picture = decode_rgb(Path(person["image_uri"]).read_bytes())
    part = picture if stream == "context" else crop(picture, person[f"{stream}_box"])
    assert part is not None
    backbone = Backbone(identify(name, "random:0" if name == NET else "random:3", size=64 if name == NET else 48))
    owner = person["group_id"] if stream == "context" else person["sample_id"]
    for number in range(1 if level == "none" else 2):
        view = render_view(
            part, stream, View(level, number), seed=5, image=person["group_id"], owner=owner
        )  # fmt: skip
        pooled, tokens = backbone(backbone.prepare(view)[None], tokens=2)
        assert tokens is not None
        for kind, wanted in ((False, pooled[0]), (True, tokens[0])):
            block = found.block(stream, name, level, tokens=kind)
            own = block.array[block.row_of[found.sample_ids.index(person["sample_id"])]][number]
            # One rounding to float16, and other sums in a batch of another size.
            np.testing.assert_allclose(own.astype(np.float32), wanted, rtol=2e-3, atol=2e-3)
        assert np.ptp(pooled) > 0.01


@pytest.mark.slow
def test_one_worker_and_a_resume_write_the_files_of_two_workers(
    made: Any, table: Path, tmp_path: Path, digests: Callable[[Path], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, _ = made
    first, out = Path(summary.folder), tmp_path / "one"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # the worker sets them
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(job, "connect", lambda address: nullcontext())
    monkeypatch.setattr(job, "node_resources", lambda: [{"CPU": 2.0}])
    monkeypatch.setattr(job, "_stream", in_this_process)
    embed(settings(table, out, shard_rows=3, workers=1, decode_threads=2))
    assert digests(out) == digests(first)
    (out / "_commits" / "part-00001.json").unlink()
    record = json.loads((out / "_job.json").read_text())
    write_job(out, {**record, "status": "running"})
    again = embed(settings(table, out, shard_rows=3, workers=1))
    assert again.record["runs"][-1]["resumed_from_shards"] == len(again.record["shards"]) - 1
    assert digests(out) == digests(first)
    assert again.record["forward_passes"] == summary.record["forward_passes"]


@given(st.lists(st.sampled_from([None, "a", "b", "c", "d"]), min_size=1, max_size=30), st.integers(1, 8))
def test_shards_and_batches_are_whole_images(uris: list[str | None], rows_per_shard: int) -> None:
    rows = [{"sample_id": str(i), "group_id": "g", "image_uri": uri, "source": "x"} for i, uri in enumerate(uris)]
    ordered = ledger.by_image(table_from_rows(rows))
    ids = ordered.column("sample_id").to_pylist()
    assert sorted(ids) == sorted(row["sample_id"] for row in rows)
    starts = ledger.shard_starts(ordered, rows_per_shard, keep_images_together=True)
    assert starts[0] == 0 and starts == sorted(set(starts))
    home: dict[str, int] = {}
    seen: list[str | None] = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(ids)], strict=True)):
        units = image_units([Item(row) for row in ordered.slice(start, end - start).to_pylist()])
        assert end - start <= rows_per_shard or len(units) == 1
        for unit in units:
            uri = unit[0].row["image_uri"]
            seen.append(uri)
            assert len(unit) == (1 if uri is None else uris.count(uri))  # all of an image, and nothing else
            if uri is not None:
                assert home.setdefault(uri, number) == number
            assert [int(item.row["sample_id"]) for item in unit] == sorted(int(i.row["sample_id"]) for i in unit)
    # Images in the order in which they first appear.
    assert [uri for uri in seen if uri] == list(dict.fromkeys(uri for uri in uris if uri))


def in_this_process(plan: WorkerPlan, workers: int, cpus: float, gpus: float, shards: list[int]) -> Iterator[Any]:
    """In place of `job._stream`: one worker without Ray."""
    worker = ShardWorker(plan)
    for shard in shards:
        yield json.loads(worker({"shard": [shard]})["record"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_weights": ("random:1", f"{VIT}=random:3")}, r"backbones\.test_resnet\.weights: random:0 there"),
        ({"context": (VIT, NET)}, r"streams\.context"),
        ({"views": 3}, r"views\.basic: 2 there, 3 here"),
        ({"seed": 6}, r"seed: 5 there, 6 here"),
        ({"tokens": 0}, r"tokens: 2 there, 0 here"),
    ],
)
def test_a_resume_with_other_features_is_refused(made: Any, table: Path, changes: Any, message: str) -> None:
    summary, _ = made
    with pytest.raises(SettingsMismatch, match=message):
        embed(settings(table, Path(summary.folder), shard_rows=3, **changes))


def test_moved_boxes_are_another_input(made: Any, table: Path, tmp_path: Path) -> None:
    summary, _ = made
    rows = read_samples(table).to_pylist()
    rows[0]["face_box"] = [25.0, 6.0, 38.0, 18.0]
    write_samples(tmp_path / "moved.parquet", table_from_rows(rows))
    with pytest.raises(SettingsMismatch, match=r"input\.digest"):
        embed(settings(tmp_path / "moved.parquet", Path(summary.folder), shard_rows=3))


def test_what_can_not_be_made_is_told_before_any_work(table: Path, tmp_path: Path) -> None:
    rows = read_samples(table).to_pylist()
    for row in rows:
        row.update(split=None, face_box=None)
    write_samples(tmp_path / "bare.parquet", table_from_rows(rows))
    out, bare = tmp_path / "out", tmp_path / "bare.parquet"
    with pytest.raises(InputError, match="no sample is of the split train"):
        embed(settings(bare, out, face=()))
    with pytest.raises(InputError, match="no sample has a face_box"):
        embed(settings(bare, out, augment=()))
    with pytest.raises(InputError, match="no stream has a backbone"):
        embed(settings(bare, out, context=(), body=(), face=()))
    with pytest.raises(InputError, match=r"'swin=64'.*backbone.* test_resnet, test_vit"):
        embed(settings(bare, out, size=("swin=64",)))
    with pytest.raises(InputError, match=r"--size large is neither pixels"):
        embed(settings(bare, out, size=("large",)))
    with pytest.raises(InputError, match="at most"):
        embed(settings(bare, out, tokens=9))
    assert not out.exists()


def test_every_picture_is_decoded_once_and_shared_weights_loaded_once(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []

    def fetch(uri: str) -> bytes:
        fetched.append(uri)
        return Path(uri).read_bytes()

    monkeypatch.setattr(fetch_ahead, "shared", lambda: fetch_ahead.FetchAhead(fetch))
    rows = [row for row in read_samples(table).to_pylist() if row["group_id"] in ("emotic:f/0.jpg", "emotic:f/4.jpg")]
    items = [Item(row) for row in sorted(rows, key=lambda row: str(row["group_id"]))]
    DecodeOnce().process(items)
    assert len(items) == 5 and sorted(Path(uri).name for uri in fetched) == ["0.jpg", "4.jpg"]
    assert [item.failure.reason if item.failure else None for item in items] == [None] * 3 + ["image_truncated"] * 2
    # An alias and the full name of one model are one set of weights, for all streams.
    plan, weights = plan_streams(
        settings(table, tmp_path / "o", context=(NET,), body=(FULL,), size="64", backbone_weights="random:0")
    )
    stage = EmbedStreams(plan, weights, "float32")
    stage.setup(1, "cpu")
    assert stage.backbones[NET] is stage.backbones[FULL]
    monkeypatch.setattr(stream_stages, "CHUNK_CPU", 3)
    stage.process(items[:3])
    assert items[0].output["context/test_resnet/none"] is items[2].output["context/test_resnet/none"]


def test_what_float16_can_not_hold_is_quarantined_not_written(table: Path, tmp_path: Path) -> None:
    plan, weights = plan_streams(
        settings(
            table,
            tmp_path / "o",
            context=(),
            face=(),
            augment=(),
            tokens=0,
            size=("64",),
            backbone_weights=("random:0",),
        )
    )
    stage = EmbedStreams(plan, weights, "float32")
    stage.setup(1, "cpu")

    class Loud:
        prepare = stage.backbones[NET].prepare

        def __call__(self, pixels: np.ndarray, *, tokens: int) -> tuple[np.ndarray, None]:
            return np.full((len(pixels), 96), 7e4, np.float32), None

    stage.backbones[NET] = Loud()  # type: ignore[assignment]
    items = [Item(read_samples(table).to_pylist()[0])]
    DecodeOnce().process(items)
    stage.process(items)
    assert items[0].failure is not None and items[0].failure.reason == "not_finite" and not items[0].output


def test_what_a_study_needs_is_joined_with_what_was_asked_for() -> None:
    needs = {"context": [NET, None], "body": [VIT], "face": [], "levels": ["none", "full"], "tokens": True}
    merged = with_needs({"context": (VIT, NET), "augment": (), "tokens": None, "views": 3}, needs)
    assert merged == {
        "context": (NET, VIT), "body": (VIT,), "face": (), "augment": ("full",), "tokens": 2, "views": 3,
    }  # fmt: skip
    assert with_needs({"tokens": 3}, needs)["tokens"] == 3
