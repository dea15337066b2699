"""A fusion head's checkpoint by itself: opened, used on a picture with boxes, described, and sent away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

import raymotion
from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.worker import _process
from raymotion.data.images.decode import decode_rgb
from raymotion.errors import InputError
from raymotion.learning.losses.bce import WeightKind
from raymotion.learning.losses.multilabel import LOSSES, link_of
from raymotion.learning.metrics.dimensions import evaluate_dimensions
from raymotion.learning.metrics.multilabel import evaluate
from raymotion.models import hub
from raymotion.models.checkpoint import Model, load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.fusion.config import FusionConfig
from raymotion.models.fusion.network import FusionHead
from raymotion.models.fusion_tuned.config import TunedConfig
from raymotion.models.fusion_tuned.network import TunedStreams
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.streams import CropInput, Stream, StreamEvidence, StreamInput
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.recipe import LossSettings
from raymotion.models.registry import get_kind
from raymotion.models.student.kind import StudentKind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.backbones import Backbone, BackboneIdentity, identify
from raymotion.pipeline.plan import Options, make_plan
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.predictor import Predictor
from raymotion.pipeline.stages import Item
from raymotion.vocabulary import VALENCE_3, Vocabulary

NET, SIZE = "test_resnet", 48
BODY, FACE = (20.0, 5.0, 45.0, 47.0), (26.0, 6.0, 38.0, 18.0)


def streams_of(names: tuple[str, ...], identity: BackboneIdentity) -> list[Stream]:
    return [Stream(name, "net", identity) for name in names]


def save_head(folder: Path, *, streams: tuple[str, ...] = ("context", "body", "face"), **config: Any) -> Path:
    torch.manual_seed(3)
    identity = identify(NET, "random:0", size=SIZE)
    shape = {"fusion": "gated_residual", "hidden": 16, "vad": True, **config}
    head = FusionHead(FusionConfig.model_validate({**shape, "dims": dict.fromkeys(streams, identity.dim)}), 3)
    torch.nn.init.normal_(head.head.weight, std=1.0)
    _on_the_scale(head)
    rng = np.random.default_rng(0)
    truth, p = (rng.random((40, 3)) < 0.4).astype(float), rng.random((40, 3))
    figures = evaluate(truth, p, prior=[0.3, 0.3, 0.4], labels=VALENCE_3.labels, bootstrap=50).to_dict()
    labels = {**figures, "interpolated_map": 0.4567, "chance_map": 0.3987}
    vad = np.stack([np.full(40, 4.0), rng.uniform(1, 10, 40), np.full(40, np.nan)], axis=1)
    said = np.stack([np.full(40, 5.125), rng.uniform(1, 10, 40), np.full(40, 5.0)], axis=1)
    numbers = evaluate_dimensions(
        vad, said, training_mean=[6.75, 5.0, np.nan], names=("valence", "arousal", "dominance"), bootstrap=50
    ).to_dict()
    training = {
        "seed": 5, "best_epoch": 7,
        "outputs": {
            "emotions": {"prior": [0.3, 0.3, 0.4], "thresholds": [0.5] * 3, "test": labels},
            "vad": {"mean": [6.75, 5.0, None], "sd": [1.0, 1.0, None], "test": numbers},
        },
        "settings": {
            "augmentation": "basic", "resampling": {"method": "adasyn", "level": "mini"}, "select_by": "macro_ap",
        },
    }  # fmt: skip
    save_checkpoint(
        folder, get_kind("fusion"), head,
        [StreamInput(streams_of(streams, identity), ablation=head.config.ablation)],
        [MultiLabel(VALENCE_3, loss=LossSettings(name="focal", options={"gamma": 1.5})), Dimensions(scale=(1, 10))],
        training=training,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_head(tmp_path_factory.mktemp("fusion") / "head")


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    small = np.random.default_rng(1).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(small).resize((60, 48)).save(path)
    return path


def _on_the_scale(head: FusionHead) -> None:
    """Lets an untrained head say numbers within 1 to 10, so that none is moved to an end."""
    if head.vad_head is not None:
        with torch.no_grad():
            head.vad_head.bias.fill_(0.5)
            head.vad_head.weight.mul_(0.1)


def by_hand(head: Path, photo: Path, boxes: dict[str, tuple[float, ...]]) -> np.ndarray:
    """What backbone and head say of the crops, past the predictor."""
    picture, backbone = decode_rgb(photo.read_bytes()), Backbone(identify(NET, "random:0", size=SIZE))
    crops: list[np.ndarray | None] = [picture]
    for name in ("body", "face"):
        left, top, right, bottom = (int(value) for value in boxes.get(name, (0, 0, 0, 0)))
        crops.append(picture[top:bottom, left:right] if name in boxes else None)
    features = [None if own is None else torch.from_numpy(backbone(backbone.prepare(own)[None])[0]) for own in crops]
    with torch.no_grad():
        output = load_model(head, kind="fusion").network(features, torch.tensor([[own is not None for own in crops]]))[
            0
        ]
    return torch.cat([torch.sigmoid(output[:3]), 10 * output[3:]]).numpy()


def test_label_reads_the_crops_and_masks_what_has_no_box(head: Path, photo: Path) -> None:
    model = raymotion.load(head)
    assert isinstance(model, Predictor) and model.reads == ("context", "body", "face")
    for boxes, masked in (
        ({"body": BODY, "face": FACE}, None),
        ({"body": BODY}, "the face"),
        ({}, "the body and the face"),
    ):
        expected = by_hand(head, photo, boxes)
        found = model.label(photo, boxes=boxes)
        assert [found[name] for name in VALENCE_3.labels] == pytest.approx(expected[:3], abs=2e-3)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert model.numbers is not None and list(model.numbers.values()) == pytest.approx(expected[3:], abs=2e-2)
        said = [note for note in model.notes if "No box of" in note]
        assert len(said) == (masked is not None) and all(f"No box of {masked} was given" in note for note in said)
    assert "random weights" in model.notes[0]
    boxes = [{"body": BODY, "face": FACE}, None]
    both = model.predict([decode_rgb(photo.read_bytes())] * 2, boxes=boxes, batch_size=1)
    assert both == pytest.approx(np.stack([by_hand(head, photo, {"body": BODY, "face": FACE})[:3],
                                                  by_hand(head, photo, {})[:3]]), abs=2e-3)  # fmt: skip


def test_predict_command_takes_boxes_and_says_what_was_masked(
    head: Path, photo: Path, runner: Callable[..., Any]
) -> None:
    command = ["predict", head, photo, "--body-box", "20,5,45,47", "--json"]
    full = json.loads(runner(*command, "--face-box", "26,6,38,18").out)
    expected = by_hand(head, photo, {"body": BODY, "face": FACE})
    probabilities = {emotion["label"]: emotion["probability"] for emotion in full["emotions"]}
    assert [probabilities[name] for name in VALENCE_3.labels] == pytest.approx(expected[:3], abs=2e-3)
    assert full["boxes"] == {"body": list(BODY), "face": list(FACE)}
    assert full["numbers"] == pytest.approx(
        dict(zip(("valence", "arousal", "dominance"), expected[3:].tolist(), strict=True)), abs=2e-2
    )
    assert full["scales"] == {key: [1, 10] for key in ("valence", "arousal", "dominance")}
    lone = runner("predict", head, photo)
    assert lone.code == 0 and "No box of the body and the face was given" in lone.out and "valence" in lone.out
    assert "whole picture alone" in lone.out


@pytest.mark.parametrize(
    "arguments,named",
    [
        (("--body-box", "1,2,3"), "--body-box '1,2,3' is not a box"),
        (("--face-box", "30,2,20,9"), "x1 < x2"),
        (("--face-box", "nan,2,20,9"), "not a box"),
        (("--body-box", "70,5,90,40"), "60 x 48 pixels"),
        (("--weights", "net.safetensors"), "would not use --weights"),
        (("--weights", "net=random:1"), "with weights random:0, here it is random:1"),
    ],
)
def test_mistakes_are_one_line(
    head: Path, photo: Path, runner: Callable[..., Any], arguments: tuple[str, ...], named: str
) -> None:
    found = runner("predict", head, photo, *arguments)
    assert found.code == 2 and named in found.err and found.err.count("\n") == 1


def test_a_head_without_context_wants_a_box(photo: Path, tmp_path: Path) -> None:
    model = raymotion.load(save_head(tmp_path / "body", streams=("body", "face"), ablation="body"))
    with pytest.raises(InputError, match="body box"):
        model.label(photo)
    with pytest.raises(InputError, match="body box"):  # the ablation leaves the face out
        model.label(photo, boxes={"face": FACE})
    assert len(model.label(photo, boxes={"body": BODY})) == 3
    assert not model.usable([decode_rgb(photo.read_bytes())], None).any()


def test_a_backbone_that_timm_describes_otherwise_now_is_refused(
    head: Path, photo: Path, tmp_path: Path, rebind: Callable[[Path], None]
) -> None:
    changed = tmp_path / "changed"
    hub.copy_checkpoint(head, changed)
    config = json.loads((changed / "config.json").read_text())
    config["inputs"][0]["streams"]["face"]["identity"]["mean"][0] += 0.01
    config["inputs"][0]["streams"]["face"]["name"] = "other"
    (changed / "config.json").write_text(json.dumps(config))
    rebind(changed)
    with pytest.raises(InputError, match="features of other with mean"):
        raymotion.load(changed).label(photo)


def test_card_says_what_the_head_is_and_warns_first_of_random_backbones(head: Path) -> None:
    card = (head / "README.md").read_text().split("---\n", 2)[2].lstrip()  # below the hub's header
    assert "random weights" in "\n".join(card.splitlines()[:4])
    for said in (
        "Fusion `gated_residual`", f"Body (the body's box): net = {identify(NET, 'random:0').name}, weights random:0",
        "48 pixels", "Loss `focal` (gamma 1.5)", "Augmentation basic; resampling adasyn mini", "Seed 5; epoch 7",
        "0.4567 interpolated", "0.3987", "Valence, arousal, dominance on a scale of 1 to 10",
        "A stream that is missing (no face found) is masked",
    ):  # fmt: skip
        assert said in card, said
    figures = read_checkpoint_info(head).facts("emotions")["test"]["metrics"]
    assert f"mAP {figures['macro_ap']['value']:.4f} as scikit-learn" in card
    # The model's error, then those of the training mean and of the split's own.
    (line,) = (line for line in card.splitlines() if line.startswith("| valence: MAE"))
    assert [line.split(" | ")[place] for place in (1, 3, 4)] == ["1.1250", "2.7500", "0.0000"]
    assert "caption" not in card


def test_a_checkpoint_without_tokenizer_goes_there_and_back(head: Path, tmp_path: Path, s3: str) -> None:
    assert not (head / "tokenizer.json").exists()
    fingerprint = read_checkpoint_info(head).fingerprint
    assert hub.push(head, f"{s3}/models/head").info.fingerprint == fingerprint
    assert hub.pull(f"{s3}/models/head", tmp_path / "back").info.fingerprint == fingerprint
    back, there = load_model(tmp_path / "back", kind="fusion"), load_model(f"{s3}/models/head")
    features = {name: np.full((2, size), 0.5, np.float16) for name, size in back.network.config.dims.items()}
    one, two = (predict(model, features) for model in (back, there))
    assert all(np.array_equal(one[name], two[name]) for name in ("emotions", "vad"))
    with pytest.raises(InputError, match="is a fusion, not a teacher-visualbert"):
        load_model(tmp_path / "back", kind="teacher-visualbert")


def predict(model: Model, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Of persons that have all of these streams."""
    order = tuple(features)
    n = len(features[order[0]])
    there = {name: np.ones(n, dtype=bool) for name in order}
    return model.predict({"streams": StreamEvidence("features", order, features, there, n)})


class OutOfMemoryOnce:
    """A model whose first batch does not fit."""

    def __init__(self, model: Model) -> None:
        self.model, self.inputs, self.outputs, self.info = model, model.inputs, model.outputs, model.info
        self.asked: list[tuple[str, int]] = []

    def predict(self, evidence: Any, *, batch_size: int | None, precision: str) -> dict[str, np.ndarray]:
        (own,) = evidence.values()
        self.asked.append((precision, len(own.present)))
        if len(self.asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model.predict(evidence, batch_size=batch_size, precision=precision)


def test_a_batch_that_failed_once_is_answered_item_by_item_with_all_its_streams(head: Path) -> None:
    """It was quarantined as `no_input`: the first attempt had taken the features away."""
    info = read_checkpoint_info(head)
    stage = Predict(str(head), info.fingerprint, type(info.kind))
    stage.setup(1, "cpu")
    (person,) = stage.inputs
    assert isinstance(person, StreamInput)
    rng = np.random.default_rng(2)

    def items() -> list[Item]:
        return [
            Item(
                {"sample_id": name, "image_uri": uri},
                features={own.stream: values[own.stream] for own in person.kept if own.stream not in left_out},
            )
            for name, uri, left_out in (("a", "1.jpg", ""), ("b", "1.jpg", "face"), ("c", None, "context"))
        ]

    values = {own.stream: rng.normal(size=own.identity.dim).astype(np.float16) for own in person.kept}
    plain, again = items(), items()
    stage.process(plain)
    tally = dict(stage.tally)
    stage.tally.clear()
    stage.use(OutOfMemoryOnce(stage.model))  # type: ignore[arg-type]
    _process(stage, again)
    assert dict(stage.tally) == tally == {"context": 2, "body": 3, "face": 2}
    for one, two in zip(plain, again, strict=True):
        assert two.failure is None and set(two.output) == {"emotions", "vad"} == set(one.output)
        assert two.features == {} and two.output["emotions"].tolist() == pytest.approx(
            one.output["emotions"].tolist(), abs=1e-6
        )


class ForgetfulStudent:
    """Answers with the mean of the picture, not at the first time; -1 where it sees none."""

    inputs = (Captions(8, tokenizer=train_tokenizer(["c d"], min_frequency=1)), PictureInput(2))
    outputs = (MultiLabel(Vocabulary("one", ("bright",))),)
    failed = False

    def predict(self, evidence: Any, **_: Any) -> dict[str, np.ndarray]:
        if not self.failed:
            self.failed = True
            raise torch.OutOfMemoryError("CUDA out of memory")
        own = evidence["picture"].values
        return {"emotions": np.where(own["image_mask"], own["images"].mean(axis=(1, 2, 3)), -1)[:, None]}


def test_a_student_still_has_the_pictures_of_a_batch_that_failed_once() -> None:
    stage = Predict("student", "", StudentKind)
    stage.use(ForgetfulStudent())  # type: ignore[arg-type]
    items = [Item({"captions": ["c"], "image_uri": f"{i}"}, pixels=np.full((2, 2, 3), i, np.uint8)) for i in (7, 9)]
    _process(stage, items)
    assert [float(item.output["emotions"][0]) for item in items] == [7.0, 9.0]
    assert all(item.pixels is None for item in items)


TRAINED_WITH: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LOSSES),
    *(("bce", {"class_weights": kind, "label_smoothing": 0.1}) for kind in get_args(WeightKind)),
    *((name, {"weights": kind}) for name in ("discrete", "discrete_published") for kind in ("mean", "static")),
]


@pytest.mark.parametrize("name,options", TRAINED_WITH, ids=str)
def test_a_head_predicts_whatever_loss_it_was_trained_with(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Weights of a loss need the training split, which whoever predicts does not have."""
    torch.manual_seed(1)
    identity = identify(NET, "random:0", size=SIZE)
    model = FusionHead(
        FusionConfig.model_validate({"fusion": "simple", "hidden": 8, "dims": {"body": identity.dim}}), 3
    ).eval()
    output = MultiLabel(VALENCE_3, loss=LossSettings(name=name, options=options))
    inputs = [StreamInput(streams_of(("body",), identity))]
    save_checkpoint(tmp_path / "head", get_kind("fusion"), model, inputs, [output], training={})
    values = np.random.default_rng(0).normal(size=(5, identity.dim)).astype(np.float32)
    with torch.no_grad():
        outputs = model([torch.from_numpy(values)], torch.ones(5, 1, dtype=torch.bool)).numpy()
    # Whatever a loss says its numbers mean, the checkpoint says too; of raymotion's, one does not mean logits.
    expected = link_of(name, options).probabilities(torch.from_numpy(outputs)).numpy()
    if name == "discrete_published":
        np.testing.assert_allclose(expected, np.clip(outputs, 0, 1))
    elif link_of(name, options).logits:
        np.testing.assert_allclose(expected, 1 / (1 + np.exp(-outputs)), atol=1e-6)
    found = predict(load_model(tmp_path / "head"), {"body": values})["emotions"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_head_with_its_own_backbones_labels_the_crops_and_needs_no_other_weights(
    photo: Path, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    torch.manual_seed(4)
    streams, identity = ("context", "body", "face"), identify(NET, "random:0", size=SIZE)
    fusion = FusionConfig.model_validate(
        {"fusion": "simple", "hidden": 16, "dims": dict.fromkeys(streams, identity.dim), "vad": True}
    )
    config = TunedConfig(fusion=fusion, identities=dict.fromkeys(streams, identity.to_dict()))
    model = TunedStreams(config, 3)
    torch.nn.init.normal_(model.head.head.weight, std=3.0)
    _on_the_scale(model.head)
    outputs = [MultiLabel(VALENCE_3), Dimensions(scale=(1, 10))]
    inputs = [CropInput(streams_of(streams, identity))]
    save_checkpoint(tmp_path / "tuned", get_kind("fusion-tuned"), model, inputs, outputs, training={})
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "Its backbones are part of it: the last 1 blocks of each learned" in card and "random weights" not in card
    picture = Image.open(photo)
    crops = [
        torch.from_numpy(np.array(part.resize((SIZE, SIZE), Image.Resampling.BILINEAR, reducing_gap=3.0)))[None]
        for part in (picture, picture.crop((20, 5, 45, 47)))
    ]
    with torch.no_grad():
        output = model.eval()([*crops, None], torch.tensor([[True, True, False]]))[0]
    found = raymotion.load(tmp_path / "tuned").label(photo, boxes={"body": BODY})
    assert [found[name] for name in VALENCE_3.labels] == pytest.approx(torch.sigmoid(output[:3]).tolist(), abs=1e-4)
    # The same in a labelling job's worker.
    info = read_checkpoint_info(tmp_path / "tuned")
    stage = make_plan(info, Options()).make_stages("bfloat16")[-1]
    assert isinstance(stage, Predict)
    stage.setup(1, "cpu")
    out_of_memory = OutOfMemoryOnce(stage.model)
    stage.use(out_of_memory)  # type: ignore[arg-type]
    rows = [
        {"sample_id": name, "image_uri": None, "body_box": box, "face_box": None}
        for name, box in (("a", list(BODY)), ("b", None))
    ]
    items = [Item(row, pixels=np.array(picture)) for row in rows]
    _process(stage, items)
    assert out_of_memory.asked == [("bfloat16", 2), ("bfloat16", 1), ("bfloat16", 1)]
    assert all(item.failure is None and item.pixels is None for item in items)
    assert items[0].output["emotions"].tolist() == pytest.approx(torch.sigmoid(output[:3]).tolist(), abs=1e-4)
    assert items[0].output["vad"].tolist() == pytest.approx((10 * output[3:]).tolist(), abs=1e-3)
    assert stage.tally == {"context": 2, "body": 1, "face": 0} and items[1].failure is None
    refused = runner("predict", tmp_path / "tuned", photo, "--weights", "net.safetensors")
    assert refused.code == 2 and "would not use --weights" in refused.err
    settings = LabelSettings(samples="s", model=str(tmp_path / "tuned"), out="o", features="embeddings")
    with pytest.raises(InputError, match="would not use --features"):
        label(settings)
