"""A checkpoint opens anywhere, says what it is, and names what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion import storage
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.models.checkpoint import Model, load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.inputs.base import Arrays, Input
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import ExtractorIdentity, Regions
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import Item
from raymotion.vocabulary import MIKELS_8

CAPTIONS = ["a happy dog on the beach", "a sad man in the rain"]
EXTRACTOR = {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random", "count": 3, "dim": 6}


def write(folder: storage.PathLike, *, reads: tuple[str, ...] = ("captions", "regions"), seed: int = 0) -> Model:
    """A checkpoint, and the model that it was made of."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 6, "pooling": "cls+mean"}
    )
    network = VisualBertTeacher(config, len(MIKELS_8)).eval()
    rng = np.random.default_rng(0)
    targets, prior = (rng.random((40, 8)) < 0.3).astype(float), np.full(8, 0.3)
    evaluation = evaluate(targets, rng.random((40, 8)), prior=prior, labels=MIKELS_8.labels, bootstrap=50)
    training = {
        "data": {"name": "s.parquet", "fingerprint": "abc", "splits": {"train": 80, "val": 40, "test": 0}},
        "seed": 0,
        "best_epoch": 2,
        "outputs": {
            "emotions": {
                "prior": prior.tolist(), "thresholds": [0.5] * 7 + [1.0000001], "validation": evaluation.to_dict(),
                "test": None,
            }
        },
    }  # fmt: skip
    inputs: list[Input] = [Captions(64, tokenizer=tokenizer, used="captions" in reads)]
    if "regions" in reads:
        inputs.append(RegionInput(ExtractorIdentity.from_dict(EXTRACTOR)))
    kind = get_kind("teacher-visualbert")
    info = save_checkpoint(folder, kind, network, inputs, [MultiLabel(MIKELS_8)], training=training)
    return Model(network, replace(info, inputs=tuple(inputs)))


def some_regions() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32), np.ones((2, 3), dtype=bool)


def predict(model: Model, captions: list[list[str]], regions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    own = model.info.input("captions")
    assert isinstance(own, Captions)
    seen = Arrays("regions", mask.any(axis=1), {"regions": regions, "region_mask": mask})
    return model.predict({"captions": own.tokens(captions), "regions": seen})["emotions"]


def labelled(model: Model, captions: list[list[str]], regions: np.ndarray | None) -> list[Item]:
    """What the last stage of a labelling job makes of samples."""
    items = []
    for number, texts in enumerate(captions):
        item = Item({"sample_id": str(number), "image_uri": None, "captions": texts})
        if regions is not None:
            numbers, there = np.zeros((3, 4), np.float32), np.ones(3, dtype=bool)
            item.regions = Regions(regions[number], numbers, numbers[:, 0], there)
        items.append(item)
    stage = Predict(model.info.folder, model.info.fingerprint, type(model.info.kind))
    stage.use(model)
    stage.process(items)
    return items


def said(items: list[Item]) -> np.ndarray:
    return np.stack([item.output["emotions"] for item in items])


def test_what_was_saved_predicts_the_same_from_disk_and_from_s3(tmp_path: Path, s3: str) -> None:
    regions, mask = some_regions()
    captions = [[CAPTIONS[0]], [CAPTIONS[1], "rain"]]
    for folder in (str(tmp_path / "t"), f"{s3}/models/t"):
        written = write(folder)
        info = written.info
        teacher = load_model(folder, kind="teacher-visualbert")
        expected = predict(written, captions, regions, mask)
        np.testing.assert_allclose(predict(teacher, captions, regions, mask), expected, atol=1e-6)
        assert teacher.info.vocabulary == MIKELS_8 and not teacher.network.training
        assert teacher.info.to_dict() == info.to_dict() and teacher.info.training == info.training
        own = info.input("regions")
        assert isinstance(own, RegionInput) and own.identity.to_dict() == EXTRACTOR
        assert info.reads == ("captions", "regions") and info.labels is info.outputs[0]
        assert info.prior == (0.3,) * 8 and info.thresholds is not None and info.thresholds[-1] > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json",
    ]  # fmt: skip


def test_weights_in_a_store_are_fetched_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    info = write(f"{s3}/t").info
    fetched: list[str] = []

    def watched(original: Any) -> Any:
        def read(path: storage.PathLike) -> Any:
            fetched.append(str(path))
            return original(path)

        return read

    for name in ("read_bytes", "open_input"):
        monkeypatch.setattr(storage, name, watched(getattr(storage, name)))
    assert load_model(f"{s3}/t").info.to_dict() == info.to_dict()
    assert fetched.count(f"{s3}/t/model.safetensors") == 1


def test_a_job_never_goes_on_with_another_checkpoint(tmp_path: Path, s3: str) -> None:
    for folder in (str(tmp_path / "t"), f"{s3}/t"):
        info = write(folder).info
        assert load_model(folder, expected_fingerprint=info.fingerprint).info.to_dict() == info.to_dict()
        other = write(folder, seed=1).info
        told = f"{folder}: .*changed.*{info.fingerprint} then.*{other.fingerprint} now.*fresh folder"
        with pytest.raises(InputError, match=told):
            load_model(folder, expected_fingerprint=info.fingerprint)


def test_info_needs_no_torch(tmp_path: Path) -> None:
    info = write(tmp_path / "t").info
    code = (
        "import sys, json; from raymotion.models.checkpoint import read_checkpoint_info as r;"
        f"i = r({str(tmp_path / 't')!r}); loaded = [name in sys.modules for name in ('torch', 'ray')];"
        "print(json.dumps([i.fingerprint, *loaded]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [info.fingerprint, False, False]


def test_fingerprint_is_of_what_predicts(tmp_path: Path) -> None:
    one, same, other = (write(tmp_path / name, seed=seed).info for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.fingerprint == same.fingerprint != other.fingerprint and len(one.fingerprint) == 16
    training = tmp_path / "a" / "training.json"
    training.write_text(training.read_text().replace('"seed": 0', '"seed": 7'))
    assert read_checkpoint_info(tmp_path / "a").fingerprint == one.fingerprint
    assert write(tmp_path / "a", seed=1).info.fingerprint == other.fingerprint  # replaced in place


def test_a_teacher_never_uses_what_it_was_not_trained_on(tmp_path: Path, rebind: Callable[[Path], None]) -> None:
    write(tmp_path / "t", reads=("captions",))
    teacher = load_model(tmp_path / "t")
    regions, mask = some_regions()
    captions = [[CAPTIONS[0]], [CAPTIONS[1]]]
    np.testing.assert_array_equal(said(labelled(teacher, captions, regions)), said(labelled(teacher, captions, None)))
    known, nothing = labelled(teacher, [["dog"], []], regions)
    assert known.failure is None and nothing.failure is not None and nothing.failure.reason == "no_input"
    write(tmp_path / "r", reads=("regions",))
    blind = load_model(tmp_path / "r")
    expected = predict(blind, [[], []], regions, mask)
    np.testing.assert_allclose(said(labelled(blind, captions, regions)), expected, atol=1e-6)
    assert [item.output["captions"] for item in labelled(blind, captions, regions)] == [[], []]
    damage(tmp_path / "r", "config.json", lambda c: c["inputs"][1]["extractor"].update(dim=9))
    rebind(tmp_path / "r")
    with pytest.raises(InputError, match=r"regions have 9 numbers, model\.visual_dim is 6"):
        load_model(tmp_path / "r")


def test_model_card_shows_metrics_beside_baselines(tmp_path: Path) -> None:
    info = write(tmp_path / "t", reads=("captions",)).info
    card = (tmp_path / "t" / "README.md").read_text()
    assert info.validation is not None
    bce = info.validation["metrics"]["bce"]
    line = next(line for line in card.splitlines() if line.startswith("| BCE"))
    assert all(f"{bce[key]:.4f}" in line for key in ("value", "prior", "constant", "low", "high"))
    assert "it never saw an image" in card and "## Test" not in card


def damage(folder: Path, name: str, change: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("config.json", "is not a checkpoint"),
        ("model.safetensors", "no such file"),
        ("tokenizer.json", "no such file"),
        ("training.json", "no such file"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path / "t")
    (tmp_path / "t" / name).unlink()
    with pytest.raises(InputError, match=reason):
        load_model(tmp_path / "t")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_model(tmp_path / "absent")


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -400])
def test_cut_off_weights_are_found_before_torch_is(tmp_path: Path, keep: int) -> None:
    write(tmp_path / "t")
    path = tmp_path / "t" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors: is damaged or cut off"):
        read_checkpoint_info(tmp_path / "t")


def test_damage_and_foreign_models_are_named(tmp_path: Path, rebind: Callable[[Path], None]) -> None:
    folder = tmp_path / "t"

    def after(name: str, change: Any) -> str:
        write(folder)
        damage(folder, name, change)
        rebind(folder)
        with pytest.raises(InputError) as caught:
            load_model(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    def first(name: str, value: Any) -> Any:
        return lambda c: c[name][0].update(value)

    assert "ViTModel" in after("config.json", lambda c: (c.clear(), c.update(architectures="ViTModel")))
    assert "no kind of model" in after("config.json", lambda c: c.update(kind="teacher-nobody"))
    assert "format 9" in after("config.json", lambda c: c.update(format=9))
    assert "lacks inputs" in after("config.json", lambda c: c.pop("inputs"))
    assert "extractor" in after("config.json", lambda c: c["inputs"][1].pop("extractor"))
    assert "no input" in after("config.json", first("inputs", {"type": "sound"}))
    assert "no output" in after("config.json", first("outputs", {"type": "sound"}))
    assert "list of 8" in after("training.json", lambda c: c["outputs"]["emotions"].update(thresholds=[0.1]))
    assert "model.layers" in after("config.json", lambda c: c["model"].update(layers="many"))
    assert "has shape" in after("config.json", lambda c: c["model"].update(intermediate_size=7))
    assert "lacks weight" in after("config.json", lambda c: c["model"].update(layers=2))
    assert "unknown weight bag_norm" in after("config.json", lambda c: c["model"].update(pooling="cls"))
    assert "7" in after("config.json", lambda c: c["model"].update(vocab_size=7))
    assert "max_text_length" in after("config.json", first("inputs", {"max_length": 32}))
    assert "captions" in after("config.json", lambda c: c["inputs"].pop(0))
    with pytest.raises(VocabularyMismatch):
        write(folder)
        damage(folder, "config.json", lambda c: c["outputs"][0]["vocabulary"]["labels"].reverse())
        load_model(folder)


def test_never_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is not a checkpoint"):
        write(tmp_path / "t")
    assert [p.name for p in tmp_path.rglob("*.*")] == ["thesis.txt"]
