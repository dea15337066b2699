"""`raymotion predict`: emotions beside the training prior, and one line for every mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raymotion.models.checkpoint import load_model, save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher
from raymotion.vocabulary import MIKELS_8

PRIOR = [0.4, 0.05, 0.2, 0.5, 0.0, 0.3, 0.1, 0.25]
THRESHOLDS = [0.1, 0.9, 0.1, 0.9, 2.0, 0.1, 0.1, 0.1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "t"
    tokenizer = train_tokenizer(["a happy dog on the beach"], size=60, min_frequency=1)
    torch.manual_seed(0)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 4})
    training = {"outputs": {"emotions": {"prior": PRIOR, "thresholds": THRESHOLDS}}}
    network, inputs = VisualBertTeacher(config, len(MIKELS_8)), [Captions(64, tokenizer=tokenizer)]
    kind = get_kind("teacher-visualbert")
    save_checkpoint(folder, kind, network, inputs, [MultiLabel(MIKELS_8)], training=training)
    return folder


def expected(teacher: Path, captions: list[str]) -> np.ndarray:
    """Of each caption by itself what the network says, and the mean of the probabilities."""
    model = load_model(teacher)
    own = model.info.input("captions")
    assert isinstance(own, Captions)
    with torch.no_grad():
        said = [model.network(**own.tokenizer(text, return_tensors="pt")) for text in captions]
    return torch.stack(said).sigmoid().mean(dim=0)[0].numpy()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def test_json_holds_probability_prior_lift_and_decision(runner: Callable[..., Any], teacher: Path) -> None:
    done = runner("predict", teacher, "--caption", "a dog", "--caption", "the beach", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    said = expected(teacher, ["a dog", "the beach"])
    assert found["captions"] == ["a dog", "the beach"] and found["image"] is None and found["notes"] == []
    assert len(found["emotions"]) == 8
    for emotion in found["emotions"]:
        i = MIKELS_8.index(emotion["label"])
        assert emotion["probability"] == pytest.approx(float(said[i]), abs=1e-6)
        assert emotion["prior"] == PRIOR[i]
        assert emotion["lift"] == (pytest.approx(said[i] / PRIOR[i], rel=1e-5) if PRIOR[i] else None)
        assert emotion["chosen"] is bool(said[i] >= THRESHOLDS[i])


def test_the_table_shows_the_highest_and_says_what_was_not_read(
    runner: Callable[..., Any], teacher: Path, photo: Path
) -> None:
    done = runner("predict", teacher, photo, "--caption", "a dog", "--top", "3")
    lines = done.out.splitlines()
    assert done.code == 0 and done.err == "" and len(lines) == 5
    assert lines[0].split() == ["emotion", "probability", "in", "training", "lift", "chosen"]
    best = MIKELS_8.labels[int(expected(teacher, ["a dog"]).argmax())]
    assert lines[1].startswith(best) and f"{PRIOR[MIKELS_8.index(best)]:.3f}" in lines[1]
    assert lines[4] == "note: No image was read: this model was trained on captions alone."
    assert len(runner("predict", teacher, "--caption", "a dog", "--all").out.splitlines()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["TEACHER", "absent.jpg", "--caption", "a"], "/absent.jpg. Check the path"),
        (["TEACHER", "cut.jpg", "--caption", "a"], "cut.jpg: is not a readable picture"),
        (["TEACHER", "photo.jpg"], "this model reads captions, and none was given"),
        (["TEACHER"], "neither an image nor a caption is given"),
        (["TEACHER", "--caption", " "], "neither an image nor a caption is given"),
        (["absent", "--caption", "a"], "absent: no such checkpoint"),
        (["owner/name", "--caption", "a"], "raymotion pull owner/name --out DIR"),
        (["TEACHER", "--caption", "a", "--device", "tpu9"], "there is no device 'tpu9'"),
    ],
)
def test_mistakes_are_one_line(
    runner: Callable[..., Any], teacher: Path, photo: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(photo.parent)
    Path("cut.jpg").write_bytes(photo.read_bytes()[:-40])
    outcome = runner("predict", *[str(teacher) if a == "TEACHER" else a for a in arguments])
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and message in outcome.err
    assert outcome.out == ""
