"""Labelling and scoring with a fusion head: pictures of persons, or their embeddings, to probabilities."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from raymotion import storage
from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.batch.labels import LabelSettings, label
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.images.decode import decode_rgb
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.evaluation.measure import measure
from raymotion.learning.metrics.multilabel import bce
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.fusion.kind import FusionKind
from raymotion.models.fusion.network import FusionConfig, FusionHead
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.streams import Stream, StreamInput, find_weights
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.backbones import Backbone, identify
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.pipeline.embed import EmbedForHead
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import Item
from raymotion.vocabulary import VALENCE_3

pytestmark = pytest.mark.slow  # the heads themselves are tested in tests/models and tests/train

NET, SIZE = "test_resnet", 48
BODY, LEFT, OUTSIDE, FACE = [20.0, 5.0, 45.0, 47.0], [-8.0, 4.0, 18.5, 48.0], [70.0, 2.0, 90.0, 30.0], [26.0, 6, 38, 18]
# Persons as (image, body box, face box). Pictures are 60 x 48.
PEOPLE: list[tuple[int, list[float] | None, list[float] | None]] = [
    (0, BODY, FACE), (1, BODY, FACE), (0, LEFT, None), (2, LEFT, FACE), (3, OUTSIDE, None), (4, BODY, FACE),
    (2, BODY, None), (5, None, FACE), (1, LEFT, None), (0, BODY, None),
]  # fmt: skip
BROKEN = 4


@dataclass(frozen=True)
class World:
    """Persons in pictures, their embeddings, and a head whose weights were drawn."""

    samples: str
    embeddings: str
    head: str
    folder: Path

    def settings(self, out: Path, **changes: Any) -> LabelSettings:
        base = {"samples": self.samples, "model": self.head, "out": str(out), "workers": 1, "max_failed": 0.5}
        return LabelSettings.model_validate({**base, **changes})

    def rows(self) -> list[dict[str, Any]]:
        return read_samples(self.samples).to_pylist()


def save_head(folder: Path, *, tokens: dict[str, int] | None = None, random: str = "random:0", **config: Any) -> str:
    """The checkpoint of a fusion head with random weights, as training writes it."""
    torch.manual_seed(3)
    identity = identify(NET, random, size=SIZE)
    shape = {"fusion": "gated_residual", "hidden": 16, **config}
    streams = shape.pop("streams", ("context", "body", "face"))
    dims = {stream: identity.token_dim if (tokens or {}).get(stream) else identity.dim for stream in streams}
    head = FusionHead(
        FusionConfig.model_validate({**shape, "dims": dims, "tokens": tokens or {}, "token_dims": dict(dims)}), 3
    )
    torch.nn.init.normal_(head.head.weight, std=1.0)
    if head.vad_head is not None:  # so that no number is moved to an end of the scale
        with torch.no_grad():
            head.vad_head.bias.fill_(0.5)
            head.vad_head.weight.mul_(0.1)
    head.set_statistics(
        {name: torch.full((size,), 0.1) for name, size in dims.items()},
        {name: torch.full((size,), 0.5) for name, size in dims.items()},
    )
    grids = {stream: round((tokens or {}).get(stream, 0) ** 0.5) for stream in streams}
    inputs = [StreamInput([Stream(stream, NET, identity, grids[stream]) for stream in streams])]
    numbers = [Dimensions(scale=(1.0, 10.0))] if config.get("vad") else []
    facts = {"emotions": {"prior": [0.3, 0.3, 0.4], "thresholds": [0.5] * 3}}
    save_checkpoint(
        folder, get_kind("fusion"), head, inputs, [MultiLabel(VALENCE_3), *numbers], training={"outputs": facts}
    )
    return str(folder)


def streams_of(head: str) -> StreamInput:
    found = read_checkpoint_info(head).input("streams")
    assert isinstance(found, StreamInput)
    return found


@pytest.fixture(scope="module")
def world(ray_jobs: Any, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("fusion-labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        rng = np.random.default_rng(0)
        for image in range(6):
            small = rng.integers(0, 255, (6, 8, 3), np.uint8)
            Image.fromarray(small).resize((60, 48), Image.Resampling.BICUBIC).save(folder / f"{image}.jpg", quality=95)
        broken = folder / f"{BROKEN}.jpg"
        broken.write_bytes(broken.read_bytes()[:300])
        rows = [
            {
                "sample_id": f"e:{row}", "group_id": f"e:{image}", "split": "test", "source": "e",
                "image_uri": str(folder / f"{image}.jpg"), "body_box": body, "face_box": face,
                "labels": [VALENCE_3.labels[row % 3]],
            }
            for row, (image, body, face) in enumerate(PEOPLE)
        ]  # fmt: skip
        write_samples(folder / "people.parquet", table_from_rows(rows, VALENCE_3))
        settings = {
            "samples": str(folder / "people.parquet"), "out": str(folder / "embeddings"), "context": (NET,),
            "body": (NET,), "face": (NET,), "backbone_weights": ("random:0",), "size": str(SIZE), "workers": 1,
            "max_failed": 0.5,
        }  # fmt: skip
        embed(EmbeddingSettings.model_validate(settings))
        head = save_head(folder / "head", vad=True)
        yield World(settings["samples"], settings["out"], head, folder)


@pytest.fixture(scope="module")
def labelled(world: World) -> dict[str, dict[str, Any]]:
    """The rows of the labelling from pictures, by id."""
    out = world.folder / "labels"
    summary = label(world.settings(out, shard_rows=4))
    assert summary.counts["in"] == len(PEOPLE) and summary.counts["by_reason"] == {"image_truncated": 1}
    assert summary.record["with"] == {"context": 9, "body": 7, "face": 4}
    assert any("random weights" in notice for notice in summary.record["notices"])
    return by_id(out)


def by_id(folder: Path | str) -> dict[str, dict[str, Any]]:
    return {
        row["sample_id"]: row
        for path in Path(folder).glob("data/part-*.parquet")
        for row in pq.read_table(path).to_pylist()
    }


def test_labels_are_what_backbone_and_head_say_of_the_crops_with_missing_streams_masked(
    world: World, labelled: dict[str, dict[str, Any]]
) -> None:
    backbone, head = Backbone(identify(NET, "random:0", size=SIZE)), load_model(world.head, kind="fusion").network
    for row in world.rows():
        if row["group_id"] == f"e:{BROKEN}":
            assert row["sample_id"] not in labelled
            continue
        picture = decode_rgb(Path(row["image_uri"]).read_bytes())
        crops: list[np.ndarray | None] = [picture]
        for box in (row["body_box"], row["face_box"]):
            left, top, right, bottom = (0, 0, 0, 0) if box is None else (max(0, round(value)) for value in box)
            crops.append(picture[top:bottom, left:right] if left < min(right, 60) else None)
        features = [None if crop is None else backbone(backbone.prepare(crop)[None])[0] for crop in crops]
        with torch.no_grad():
            output = head(
                [None if own is None else torch.from_numpy(own) for own in features],
                torch.tensor([[crop is not None for crop in crops]]),
            )[0]
        found = labelled[row["sample_id"]]
        # Features are kept in half precision on the way.
        assert found["probabilities"] == pytest.approx(torch.sigmoid(output[:3]).tolist(), abs=2e-3)
        assert [found[name] for name in ("valence", "arousal", "dominance")] == pytest.approx(
            (10 * output[3:]).tolist(), abs=2e-2
        )


def test_embeddings_in_place_of_pictures_give_the_same_labels(
    world: World, labelled: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    out = world.folder / "from-features"
    summary = label(world.settings(out, features=world.embeddings))
    assert summary.counts["by_reason"] == {"no_features": 1}  # that of the picture which could not be read
    found = by_id(out)
    assert found.keys() == labelled.keys()
    for name, row in found.items():
        assert row["probabilities"] == pytest.approx(labelled[name]["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_evaluation_under_an_ablation_is_that_of_a_head_which_has_it_built_in(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runner: Callable[..., Any],
    rebind: Callable[[Path], None],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    command = ["evaluate", world.head, world.samples, "--features", world.embeddings, "--bootstrap", 50]
    run = runner(
        *command, "--workers", 1, "--max-failed", 0.5, "--ablation", "face_body", "--out", tmp_path / "ablated"
    )
    assert run.code == 0, run.err
    record = json.loads((tmp_path / "ablated" / "evaluation.json").read_text())
    assert record["settings"]["ablation"] == "face_body"
    assert any("intervals draw whole ones" in notice for notice in record["notices"])
    # A person with neither box has nothing left to look at.
    assert record["samples"]["by_reason"] == {"no_features": 1, "no_input": 1}
    built_in = tmp_path / "built-in"
    built_in.mkdir()
    for file in Path(world.head).iterdir():
        (built_in / file.name).write_bytes(file.read_bytes())
    config = json.loads((built_in / "config.json").read_text())
    config["model"]["ablation"] = config["inputs"][0]["ablation"] = "face_body"
    (built_in / "config.json").write_text(json.dumps(config))
    rebind(built_in)
    label(world.settings(tmp_path / "labels", model=str(built_in), features=world.embeddings))
    expected = {name: row["probabilities"] for name, row in by_id(tmp_path / "labels").items()}
    scored = pq.read_table(tmp_path / "ablated" / "predictions.parquet").to_pylist()
    assert {row["sample_id"]: row["probabilities"] for row in scored} == expected and len(expected) == 8
    truth = np.array([[float(j == int(name[2:]) % 3) for j in range(3)] for name in expected])
    value = bce(truth, np.array(list(expected.values()), np.float64))
    assert record["results"]["metrics"]["bce"]["value"] == pytest.approx(value, abs=1e-9)
    again = runner(*command, "--workers", 1, "--max-failed", 0.5, "--ablation", "face", "--out", tmp_path / "ablated")
    assert again.code == 2 and "ablation" in again.err


def test_spatial_tokens_are_made_by_the_grid_that_the_head_was_trained_on(world: World, tmp_path: Path) -> None:
    head = save_head(tmp_path / "head", fusion="attention", tokens={"body": 4})
    inputs = streams_of(head).kept
    assert [(own.stream, own.grid) for own in inputs] == [("context", 0), ("body", 2), ("face", 0)]
    fingerprint = read_checkpoint_info(head).fingerprint
    stages = (EmbedForHead(inputs, {NET: "random:0"}, "float32"), Predict(head, fingerprint, FusionKind))
    row = world.rows()[0]
    item = Item(row, pixels=decode_rgb(Path(row["image_uri"]).read_bytes()))
    assert item.pixels is not None
    picture = item.pixels
    for stage in stages:
        stage.setup(1, "cpu")
        stage.process([item])
    backbone = Backbone(identify(NET, "random:0", size=SIZE))
    pooled = [backbone(backbone.prepare(crop)[None])[0] for crop in (picture, picture[6:18, 26:38])]
    tokens = backbone(backbone.prepare(picture[5:47, 20:45])[None], tokens=2)[1]
    assert tokens is not None
    with torch.no_grad():
        features = [torch.from_numpy(own) for own in (pooled[0], tokens, pooled[1])]
        expected = torch.sigmoid(load_model(head).network(features, torch.ones(1, 3, dtype=torch.bool)))[0]
    assert item.failure is None
    assert item.output["emotions"].tolist() == pytest.approx(expected.tolist(), abs=2e-3)


def test_a_head_of_faces_quarantines_who_has_none(world: World, tmp_path: Path) -> None:
    inputs = streams_of(world.head).without("face").kept
    stage = Predict(world.head, read_checkpoint_info(world.head).fingerprint, FusionKind, ablation="face")
    stage.setup(1, "cpu")
    items = [
        Item({"sample_id": "a"}, features={"face": np.ones(inputs[0].identity.dim, np.float16)}),
        Item({"sample_id": "b"}),
    ]
    stage.process(items)
    assert items[0].failure is None and stage.tally == {"face": 1}
    assert items[1].failure is not None and items[1].failure.reason == "no_input"
    assert "a face box" in items[1].failure.message


@pytest.mark.parametrize(
    "given,named",
    [
        ((), "--weights net=FILE"),
        (("OTHER",), "weights sha256:"),
        (("net=OTHER",), "weights sha256:"),
        (("random:0",), "random:0"),
        (("nowhere.safetensors",), "nowhere.safetensors"),
    ],
)
def test_weights_that_are_not_named_or_changed_are_refused(tmp_path: Path, given: tuple[str, ...], named: str) -> None:
    from safetensors.torch import save_file

    files = {"RIGHT": str(tmp_path / "net.safetensors"), "OTHER": str(tmp_path / "other.safetensors")}
    for number, path in enumerate(files.values()):
        save_file({"weight": torch.full((3,), float(number))}, path)
    inputs = (Stream("body", "net", identify(NET, files["RIGHT"], size=SIZE), 0),)
    for right in (files["RIGHT"], f"net={files['RIGHT']}"):
        assert find_weights(inputs, [right]) == {"net": files["RIGHT"]}
    with pytest.raises(InputError) as caught:
        find_weights(inputs, [value.replace("OTHER", files["OTHER"]) for value in given])
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_head_can_not_label_is_refused_before_any_work(world: World, tmp_path: Path) -> None:
    other = identify(NET, "random:1", size=SIZE).to_dict()
    shapes = {FeatureKey(stream, NET): FeatureShape(1, other["dim"]) for stream in ("context", "body", "face")}
    layout = EmbeddingLayout(shapes, {NET: other}, {"none": 1}, seed=0)
    storage.write_table(tmp_path / "other" / "data/part-00000.parquet", layout.schema().empty_table())
    storage.write_json(tmp_path / "other" / "_job.json", {"job": "embeddings", "status": "complete"})
    boxless = read_samples(world.samples)
    for name in ("body_box", "face_box"):
        position = boxless.schema.get_field_index(name)
        boxless = boxless.set_column(
            position, boxless.schema.field(name), pa.nulls(len(PEOPLE), boxless.schema.field(name).type)
        )
    storage.write_table(tmp_path / "boxless.parquet", boxless)
    captions = save_teacher(tmp_path / "teacher")
    for changes, named in (
        ({"features": str(tmp_path / "other")}, "weights random:1"),
        ({"features": world.folder.as_posix()}, "not embeddings"),
        ({"features": world.embeddings, "samples": str(tmp_path / "boxless.parquet")}, "another body_box"),
        ({"weights": "net.safetensors"}, "would not use --weights"),
        ({"ablation": "head"}, "head"),
        (
            {"ablation": "face_body", "samples": str(tmp_path / "boxless.parquet")},
            "no sample has a body_box or a face_box",
        ),
        ({"ablation": "face", "model": captions}, "--ablation"),
    ):
        with pytest.raises(InputError) as caught:
            label(world.settings(tmp_path / "out", **changes))
        assert named in str(caught.value) and "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()


def save_teacher(folder: Path) -> str:
    tokenizer = train_tokenizer([f"caption {i}" for i in range(50)], size=120)
    config = TeacherConfig(size="tiny", vocab_size=len(tokenizer), visual_dim=8)  # type: ignore[call-arg]
    save_checkpoint(
        folder, get_kind("teacher-visualbert"), VisualBertTeacher(config, 3), [Captions(64, tokenizer=tokenizer)],
        [MultiLabel(VALENCE_3)], training={},
    )  # fmt: skip
    return str(folder)


def test_intervals_draw_whole_images() -> None:
    """Every sample twice, as one image, is no more evidence: each interval is that of the single samples."""
    rng = np.random.default_rng(1)
    truth = (rng.random((60, 3)) < 0.4).astype(float)
    p = np.clip(0.3 * truth + 0.5 * rng.random((60, 3)), 0.01, 0.99)
    twice = np.repeat(np.arange(60), 2)
    options: dict[str, Any] = {"labels": VALENCE_3.labels, "prior": [0.3, 0.3, 0.4], "bootstrap": 80, "bins": 5}
    single = measure(truth, p, **options)
    grouped = measure(truth[twice], p[twice], groups=[f"g{i}" for i in twice], **options)
    plain = measure(truth[twice], p[twice], **options)
    for name, metric in single.evaluation.metrics.items():
        own = grouped.evaluation.metrics[name]
        assert (own.value, own.low, own.high) == pytest.approx((metric.value, metric.low, metric.high)), name
    widths = [
        sum((metric.high or 0.0) - (metric.low or 0.0) for metric in found.evaluation.metrics.values())
        for found in (plain, grouped)
    ]
    assert widths[0] < 0.85 * widths[1]  # what rows drawn one by one would claim
    for one, two in zip(single.calibration, grouped.calibration, strict=True):
        assert two.low == pytest.approx(one.low) and two.high == pytest.approx(one.high)
    assert [row.f1_low for row in grouped.classes] == pytest.approx([row.f1_low for row in single.classes])
