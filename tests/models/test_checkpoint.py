"""A checkpoint opens anywhere, says what it is, and names what is wrong with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion import storage
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.models.checkpoint import load_teacher, read_checkpoint_info, save_checkpoint
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher, predict
from raymotion.vocabulary import MIKELS_8

CAPTIONS = ["a happy dog on the beach", "a sad man in the rain"]
EXTRACTOR = {"name": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random", "count": 3, "dim": 6}


def write(folder: storage.PathLike, *, modalities: tuple[str, ...] = ("text", "regions"), seed: int = 0) -> Any:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 6, "pooling": "cls+mean"}
    )
    model = VisualBertTeacher(config, len(MIKELS_8)).eval()
    rng = np.random.default_rng(0)
    targets, prior = (rng.random((40, 8)) < 0.3).astype(float), np.full(8, 0.3)
    training = {
        "data": {"name": "s.parquet", "fingerprint": "abc", "splits": {"train": 80, "val": 40, "test": 0}},
        "seed": 0,
        "best_epoch": 2,
        "prior": prior.tolist(),
        "thresholds": [0.5] * 7 + [1.0000001],
        "validation": evaluate(
            targets, rng.random((40, 8)), prior=prior, labels=MIKELS_8.labels, bootstrap=50
        ).to_dict(),
        "test": None,
    }
    info = save_checkpoint(
        folder, model, tokenizer, MIKELS_8, modalities=modalities,
        extractor=EXTRACTOR if "regions" in modalities else None, training=training,
    )  # fmt: skip
    return model, tokenizer, info


def some_regions() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(1).normal(size=(2, 3, 6)).astype(np.float32), np.ones((2, 3), dtype=bool)


def test_what_was_saved_predicts_the_same_from_disk_and_from_s3(tmp_path: Path, s3: str) -> None:
    regions, mask = some_regions()
    captions = [[CAPTIONS[0]], [CAPTIONS[1], "rain"]]
    for folder in (str(tmp_path / "t"), f"{s3}/models/t"):
        model, tokenizer, info = write(folder)
        teacher = load_teacher(folder)
        expected = predict(model, tokenizer, captions, regions, mask)
        np.testing.assert_allclose(teacher.predict(captions, regions, mask), expected, atol=1e-6)
        assert teacher.vocabulary == MIKELS_8 and not teacher.model.training
        assert teacher.info == info and info.modalities == ("text", "regions") and info.extractor == EXTRACTOR
        assert info.prior == (0.3,) * 8 and info.thresholds is not None and info.thresholds[-1] > 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json", "vocabulary.json",
    ]  # fmt: skip


def test_weights_in_a_store_are_fetched_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, info = write(f"{s3}/t")
    fetched: list[str] = []

    def watched(original: Any) -> Any:
        def read(path: storage.PathLike) -> Any:
            fetched.append(str(path))
            return original(path)

        return read

    for name in ("read_bytes", "open_input"):
        monkeypatch.setattr(storage, name, watched(getattr(storage, name)))
    assert load_teacher(f"{s3}/t").info == info
    assert fetched.count(f"{s3}/t/model.safetensors") == 1


def test_a_job_never_goes_on_with_another_checkpoint(tmp_path: Path, s3: str) -> None:
    for folder in (str(tmp_path / "t"), f"{s3}/t"):
        _, _, info = write(folder)
        assert load_teacher(folder, expected_fingerprint=info.fingerprint).info == info
        _, _, other = write(folder, seed=1)
        told = rf"{folder}: the checkpoint changed since the job began \(fingerprint {info.fingerprint} then, "
        with pytest.raises(InputError, match=rf"{told}{other.fingerprint} now\)\. Start the job in a fresh folder"):
            load_teacher(folder, expected_fingerprint=info.fingerprint)


def test_info_needs_no_torch(tmp_path: Path) -> None:
    _, _, info = write(tmp_path / "t")
    code = (
        "import sys, json; from raymotion.models.checkpoint import read_checkpoint_info as r;"
        f"i = r({str(tmp_path / 't')!r}); loaded = [name in sys.modules for name in ('torch', 'ray')];"
        "print(json.dumps([i.fingerprint, *loaded]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out) == [info.fingerprint, False, False]


def test_fingerprint_is_of_what_predicts(tmp_path: Path) -> None:
    one, same, other = (write(tmp_path / name, seed=seed)[2] for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert one.fingerprint == same.fingerprint != other.fingerprint and len(one.fingerprint) == 16
    training = tmp_path / "a" / "training.json"
    training.write_text(training.read_text().replace('"seed": 0', '"seed": 7'))
    assert read_checkpoint_info(tmp_path / "a").fingerprint == one.fingerprint
    assert write(tmp_path / "a", seed=1)[2].fingerprint == other.fingerprint  # replaced in place


def test_a_teacher_never_uses_what_it_was_not_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "t", modalities=("text",))
    teacher = load_teacher(tmp_path / "t")
    regions, mask = some_regions()
    captions = [[CAPTIONS[0]], [CAPTIONS[1]]]
    np.testing.assert_array_equal(teacher.predict(captions, regions, mask), teacher.predict(captions))
    assert teacher.usable([["dog"], []], mask).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"\[1\]"):
        teacher.predict([["dog"], []], regions, mask)
    write(tmp_path / "r", modalities=("regions",))
    blind = load_teacher(tmp_path / "r")
    np.testing.assert_array_equal(blind.predict(captions, regions, mask), blind.predict([[], []], regions, mask))
    with pytest.raises(InputError, match=r"regions of 6 numbers, these have 9"):
        blind.predict(captions, np.zeros((2, 3, 9), np.float32), mask)


def test_model_card_shows_metrics_beside_baselines(tmp_path: Path) -> None:
    _, _, info = write(tmp_path / "t", modalities=("text",))
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
        load_teacher(tmp_path / "t")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_teacher(tmp_path / "absent")


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
            load_teacher(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "another kind (ViTModel)" in after("config.json", lambda c: (c.clear(), c.update(architectures="ViTModel")))
    assert "format 9" in after("config.json", lambda c: c.update(format=9))
    assert "lacks extractor" in after("config.json", lambda c: c.pop("extractor"))
    assert "modalities ['sound']" in after("config.json", lambda c: c.update(modalities=["sound"]))
    assert "thresholds is not a list of 8" in after("training.json", lambda c: c.update(thresholds=[0.1]))
    assert "model.layers" in after("config.json", lambda c: c["model"].update(layers="many"))
    assert "has shape" in after("config.json", lambda c: c["model"].update(intermediate_size=7))
    assert "lacks weight" in after("config.json", lambda c: c["model"].update(layers=2))
    assert "unknown weight bag_norm" in after("config.json", lambda c: c["model"].update(pooling="cls"))
    assert "config.json says (7, 64)" in after("config.json", lambda c: c["model"].update(vocab_size=7))
    with pytest.raises(VocabularyMismatch):
        write(folder)
        damage(folder, "config.json", lambda c: c["vocabulary"]["labels"].reverse())
        load_teacher(folder)


def test_never_written_over_something_else(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty and is not a checkpoint"):
        write(tmp_path / "t")
    assert [p.name for p in tmp_path.rglob("*.*")] == ["thesis.txt"]
