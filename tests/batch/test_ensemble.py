"""Labelling with several models at once: the mean of their predictions, whatever each of them reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import raymotion
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.labels import LabelSettings, label
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.ensemble import read_models
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.student.network import Student, StudentConfig
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import identify
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.vocabulary import EMOTIC_26, SOCRATIS_29, Vocabulary

EXTRACTOR, COUNT = "fasterrcnn_mobilenet_v3_large_320_fpn", 4


def make_teacher(
    folder: Path, seed: int, words: str, *, regions: str | None = None, vocabulary: Vocabulary = SOCRATIS_29
) -> str:
    """An untrained teacher whose tokenizer knows `words`; it may read regions of an extractor with these weights."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer([f"{words} {i}" for i in range(40)], size=100)
    inputs: list[Any] = [Captions(64, tokenizer=tokenizer)]
    if regions is not None:
        inputs.append(RegionInput(identify(EXTRACTOR, regions, COUNT)))
    config = TeacherConfig(size="tiny", vocab_size=len(tokenizer), visual_dim=1024, normalize_regions=True)  # type: ignore[call-arg]
    network = VisualBertTeacher(config, len(vocabulary))
    torch.nn.init.normal_(network.head.weight, std=1.0)
    prior = [0.1 * seed] * len(vocabulary)
    facts = {"emotions": {"thresholds": [0.5] * len(vocabulary), "prior": prior}}
    training = {"outputs": facts, "data": {"seen": [f"seen-{seed}"], "name": "t"}}
    save_checkpoint(
        folder, get_kind("teacher-visualbert"), network, inputs, [MultiLabel(vocabulary)], training=training
    )
    return str(folder)


def make_student(folder: Path) -> str:
    """An untrained student of pictures alone."""
    torch.manual_seed(3)
    tokenizer = train_tokenizer(["no caption"], size=50)
    inputs = [Captions(64, tokenizer=tokenizer, used=False), PictureInput(32)]
    config = StudentConfig(
        image_size=32, channels=(4, 8), embedding_size=8, text_size=8, hidden_size=16, vocab_size=len(tokenizer)
    )
    network = Student(config, 29)
    torch.nn.init.normal_(network.head.weight, std=1.0)
    save_checkpoint(folder, get_kind("student"), network, inputs, [MultiLabel(SOCRATIS_29)], training={})
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "text": make_teacher(folder / "text", 1, "caption and another"),
        "regions": make_teacher(folder / "regions", 2, "some other caption words", regions="random:0"),
        "student": make_student(folder / "student"),
    }


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six pictures; the third has no caption, the fourth one of unknown words, and the last is no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    rows = []
    for row in range(6):
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(folder / f"{row}.png")
        captions = {2: [], 3: ["ΩΩΩ"]}.get(row, [f"caption {row}", "another"])
        rows.append(
            {"sample_id": f"x{row}", "group_id": f"x{row}", "source": "x", "captions": captions,
             "image_uri": str(folder / f"{row}.png")}
        )  # fmt: skip
    (folder / "5.png").write_text("this is no picture")
    write_samples(folder / "samples.parquet", table_from_rows(rows))
    return str(folder / "samples.parquet")


def labelled(samples: str, out: Path, *models: str, **more: Any) -> dict[str, np.ndarray]:
    """The probabilities of a job by sample_id."""
    label(LabelSettings(samples=samples, model=models, out=str(out), workers=0, max_failed=0.6, **more))
    found = {}
    for _, part in read_parts(str(out), ["sample_id", "probabilities"]):
        found |= {row["sample_id"]: np.array(row["probabilities"]) for row in part.to_pylist()}
    return found


def test_the_probabilities_are_the_mean_of_those_of_each_model(
    models: dict[str, str], samples: str, tmp_path: Path
) -> None:
    alone = {name: labelled(samples, tmp_path / name, folder) for name, folder in models.items()}
    together = labelled(samples, tmp_path / "all", models["student"], models["text"], models["regions"])
    assert list(together) == ["x0", "x1", "x2", "x3", "x4"]
    for sample, values in together.items():
        told = [own[sample] for own in alone.values() if sample in own]
        assert len(told) == (2 if sample in ("x2", "x3") else 3)
        np.testing.assert_allclose(values, np.mean(told, axis=0), atol=1e-6)
    captions = {row["sample_id"]: row for _, part in read_parts(str(tmp_path / "all")) for row in part.to_pylist()}
    assert captions["x0"]["captions"] == ["caption 0", "another"] and captions["x0"]["unknown_words"] is not None
    assert captions["x2"]["captions"] == []


def test_its_record_names_each_model_and_its_order_does_not_matter(
    models: dict[str, str], samples: str, tmp_path: Path
) -> None:
    labelled(samples, tmp_path / "ab", models["text"], models["student"])
    labelled(samples, tmp_path / "ba", models["student"], models["text"])
    job = json.loads((tmp_path / "ab/_job.json").read_text())
    assert {own["path"] for own in job["model"]["members"]} == {models["text"], models["student"]}
    assert sorted(job["model"]["kind"].split(" + ")) == ["student", "teacher-visualbert"]
    assert job["with"] == {"captions": 3, "picture": 5}
    assert job["model"]["prior"] is None, "the student does not know the rates of its training"
    parts = sorted((tmp_path / "ab/data").glob("*.parquet"))
    assert parts and all(own.read_bytes() == (tmp_path / "ba/data" / own.name).read_bytes() for own in parts)


def test_the_mean_has_the_mean_class_rates_all_samples_seen_and_no_thresholds(models: dict[str, str]) -> None:
    info = read_models([models["text"], models["regions"]])
    np.testing.assert_allclose(info.prior or (), 0.15)
    assert info.training["data"]["seen"] == ["seen-1", "seen-2"]
    assert info.thresholds is None and info.reads == ("captions", "regions")
    # The student's record names none: of both together it is not known which samples they have seen.
    assert read_models([models["text"], models["student"]]).training["data"]["seen"] is None


def test_plain_python_averages_too(models: dict[str, str], samples: str, tmp_path: Path) -> None:
    names = [models["student"], models["text"]]
    together = labelled(samples, tmp_path / "both", *names)
    frame = raymotion.label(samples, names)
    assert list(frame["failure"].isna()) == [True] * 5 + [False]
    values = frame[list(SOCRATIS_29.labels)].to_numpy()[:5]
    np.testing.assert_allclose(values, np.array(list(together.values())), atol=1e-6)
    picture = str(Path(samples).parent / "0.png")
    alone = [raymotion.load(name).label(picture, "caption 0") for name in names]
    told = raymotion.load(names).label(picture, "caption 0")
    assert told["joy"] == pytest.approx((alone[0]["joy"] + alone[1]["joy"]) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("same", "is named twice"),
        ("vocabulary", r"predicts emotic-26 \(.*\), and .*text socratis-29"),
        ("extractor", "reads other regions than a model before it"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(
    models: dict[str, str], samples: str, tmp_path: Path, second: str, message: str
) -> None:
    first, other = models["text"], models["text"]
    if second == "vocabulary":
        other = make_teacher(tmp_path / "other", 4, "caption", vocabulary=EMOTIC_26)
    if second == "extractor":
        first, other = models["regions"], make_teacher(tmp_path / "other", 4, "caption", regions="random:1")
    with pytest.raises(InputError, match=message):
        labelled(samples, tmp_path / "out", first, other)
    assert not (tmp_path / "out").exists()


def test_thresholds_of_the_members_are_not_those_of_the_mean(
    models: dict[str, str], samples: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="holds no thresholds"):
        policy = SelectionPolicy(policy="class-thresholds")
        labelled(samples, tmp_path / "out", models["text"], models["regions"], selection=policy)


@pytest.mark.slow
def test_the_command_takes_a_model_several_times(
    runner: Any, models: dict[str, str], samples: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "labels")
    both = ["--model", models["text"], "--model", models["student"]]
    done = runner("label", samples, *both, "--out", out, "--max-failed", "0.6", "--progress", "none")
    assert done.code == 0, done.err
    assert "Made by the" in (tmp_path / "labels/_README.md").read_text()
    again = runner("label", samples, *both[:2], "--out", out, "--max-failed", "0.6", "--progress", "none")
    assert again.code == 2 and "other settings" in again.err, again.err
