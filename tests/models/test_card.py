"""The model card says what the model learned to repeat, and opens with the header that the hub reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import yaml

from raymotion.learning.metrics.multilabel import evaluate
from raymotion.models.card import model_card
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.vocabulary import Vocabulary

THREE = Vocabulary("three", ("calm", "happy", "sad"))
SHAPE = {"image": "cnn", "image_size": 64, "text": "gru"}
FAILED = "Collapse check FAILED: 3 label sets cover 94.4 % of 142 images: the labels are one of a few answers."


def card(targets: dict[str, Any] | None, *, sees: bool = True) -> str:
    truth = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    evaluation = evaluate(truth, 0.1 + 0.8 * truth, prior=truth.mean(axis=0), labels=THREE.labels, bootstrap=0)
    inputs: list[Input] = [Captions(64), PictureInput(64, used=sees)]
    training = {
        "raymotion": "0", "outputs": {"emotions": {"validation": evaluation.to_dict()}},
        **({} if targets is None else {"targets": targets}),
    }  # fmt: skip
    return model_card(get_kind("student"), inputs, [MultiLabel(THREE)], {"model": SHAPE}, training, parameters=1)


def pseudo(collapse: dict[str, Any] | None) -> dict[str, Any]:
    teacher = {"fingerprint": "feedfacefeedface", "kind": "teacher-visualbert", "reads": ["captions", "regions"]}
    return {
        "kind": "pseudo-labels", "folder": "labels", "digest": "cafe", "selected": 9, "teacher": teacher,
        "collapse": collapse, "notices": ["REGION FEATURES COME FROM RANDOM WEIGHTS (random:0): ..."],
    }  # fmt: skip


def test_annotations_are_what_people_said() -> None:
    text = card({"kind": "annotations"})
    assert "what emotions annotators reported" in text and "pseudo-labels" not in text


@pytest.mark.parametrize(
    ("collapse", "line"),
    [
        ({"headline": FAILED, "collapsed": True}, f"- **Training labels: {FAILED}**"),
        ({"headline": "Collapse check passed.", "collapsed": False}, "- Training labels: Collapse check passed."),
        (None, "- **Nobody checked the training labels for a collapse.**"),
    ],
)
def test_pseudo_labels_are_what_a_teacher_said(collapse: dict[str, Any] | None, line: str) -> None:
    text = card(pseudo(collapse))
    assert "annotators reported" not in text
    made = "the teacher-visualbert feedfacefeedface made from captions and regions"
    assert f"- Targets: pseudo-labels (labels, job cafe), which {made}" in text
    assert line in text.splitlines()
    assert "- REGION FEATURES COME FROM RANDOM WEIGHTS (random:0): ..." in text.splitlines()
    section = text[text.index("## Validation") :]
    assert section.splitlines()[2].startswith("Agreement with the teacher's labels")


def test_copied_layers_are_told_from_annotations() -> None:
    copied = {"kind": "annotations", "copied_from": {"fingerprint": "abcd", "targets": "pseudo-labels"}}
    assert "the student abcd, which learned from pseudo-labels" in card(copied)


@pytest.mark.parametrize(("sees", "task"), [(False, "text"), (True, "image")])
def test_the_header_is_yaml_that_the_hub_reads(sees: bool, task: str) -> None:
    _, header, body = card(None, sees=sees).split("---\n", 2)
    value = yaml.safe_load(header)
    assert value["library_name"] == "raymotion" and value["pipeline_tag"] == f"{task}-classification"
    assert {"emotion-recognition", "student", "three"} <= set(value["tags"])
    assert body.lstrip().startswith("# Emotion student")
