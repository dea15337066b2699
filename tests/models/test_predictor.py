"""Three lines of plain Python: any checkpoint, pictures and captions in, probabilities out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import raymotion
from raymotion.errors import InputError
from raymotion.models.checkpoint import Model, load_model, save_checkpoint
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.student.config import StudentConfig
from raymotion.models.student.network import Student
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import ExtractorIdentity, RegionExtractor, identify
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher
from raymotion.pipeline import predictor
from raymotion.pipeline.plan import find_extractor
from raymotion.vocabulary import MIKELS_8

CAPTIONS = ["a happy dog on the beach", "a sad man in the rain"]
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def write(folder: Path, *reads: str, weights: str = "random:3") -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 1024, "normalize_regions": True}
    )
    inputs: list[Input] = [Captions(64, tokenizer=tokenizer, used="captions" in reads)]
    if "regions" in reads:
        inputs.append(RegionInput(ExtractorIdentity(name=SMALL, weights=weights, count=4, dim=1024)))
    network = VisualBertTeacher(config, len(MIKELS_8)).eval()
    save_checkpoint(folder, get_kind("teacher-visualbert"), network, inputs, [MultiLabel(MIKELS_8)], training={})
    return folder


def write_student(folder: Path, *reads: str) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = StudentConfig(
        image_size=32, channels=(4, 8), embedding_size=8, text_size=8, hidden_size=16, vocab_size=len(tokenizer)
    )
    network = Student(config, len(MIKELS_8))
    torch.nn.init.normal_(network.head.weight)  # else all answers lie close together
    inputs = [Captions(64, tokenizer=tokenizer, used="captions" in reads), PictureInput(32, used="picture" in reads)]
    save_checkpoint(folder, get_kind("student"), network, inputs, [MultiLabel(MIKELS_8)], training={})
    return folder


def by_hand(model: Model, texts: list[str], *seen: torch.Tensor) -> np.ndarray:
    """The mean of what the network says of each caption by itself, beside the pictures' part."""
    own = model.info.input("captions")
    assert isinstance(own, Captions)
    with torch.no_grad():
        said = [
            model.network(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long), *seen)
            for ids in own.tokenizer(texts or [""])["input_ids"]
        ]
    return torch.stack(said).sigmoid().mean(dim=0)[0].numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three teachers: `text`, `regions`, `both`; two students: `student`, and `reader`, of captions alone."""
    base = tmp_path_factory.mktemp("teachers")
    write(base / "text", "captions")
    write(base / "regions", "regions")
    write(base / "both", "captions", "regions")
    write_student(base / "student", "captions", "picture")
    write_student(base / "reader", "captions")
    return base


@pytest.fixture(scope="module")
def both(folder: Path) -> Any:
    return raymotion.load(folder / "both")


def pixels(seed: int = 0, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.mark.slow
def test_import_is_quick_and_needs_no_ray(folder: Path) -> None:
    code = (
        "import sys, time; start = time.process_time(); import raymotion; spent = time.process_time() - start;"
        "heavy = [n for n in ('numpy', 'torch', 'ray', 'pyarrow') if n in sys.modules];"
        f"p = raymotion.load({str(folder / 'text')!r}).label(caption='a happy dog');"
        "print(spent, heavy, 'ray' in sys.modules, len(p))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert float(out[0]) < 0.05 and out[1:] == ["[]", "False", "8"]
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        raymotion.lode  # noqa: B018
    assert {"load", "Predictor"} <= set(dir(raymotion))


def test_label_is_what_the_teacher_says_highest_first(folder: Path) -> None:
    model = raymotion.load(folder / "text")
    assert isinstance(model, raymotion.Predictor)
    found = model.label(caption=CAPTIONS)
    assert list(found.values()) == sorted(found.values(), reverse=True) and set(found) == set(MIKELS_8.labels)
    expected = by_hand(load_model(folder / "text"), CAPTIONS)  # of several captions, the mean
    assert [found[label] for label in MIKELS_8.labels] == pytest.approx(expected.tolist(), abs=1e-6)
    assert model.reads == ("captions",) and model.vocabulary == MIKELS_8


def test_a_picture_goes_through_the_extractor_that_the_checkpoint_names(folder: Path, both: Any) -> None:
    """By hand: the same extractor, its regions, the teacher; None and [] are masked, not zeros."""
    images, captions = [pixels(0), None, pixels(2, (90, 50)), pixels(0)], [[CAPTIONS[0]], [CAPTIONS[1]], [], []]
    found = both.predict(images, captions, batch_size=1)
    extractor, teacher = RegionExtractor(SMALL, "random:3", 4), load_model(folder / "both")
    for i, (image, texts) in enumerate(zip(images[:3], captions[:3], strict=True)):
        regions = None if image is None else extractor([image])
        seen = () if regions is None else (torch.from_numpy(regions.features), torch.from_numpy(regions.mask))
        np.testing.assert_allclose(found[i], by_hand(teacher, texts, *seen), atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 1e-4 < np.abs(found[2] - found[3]).max(), "both parts are read"
    assert both.predict([], []).shape == (0, 8)


def test_a_student_reads_the_picture_itself(folder: Path, tmp_path: Path) -> None:
    """The three lines of the README; and by hand: picture and caption through the student's own parts, one by one."""
    Image.fromarray(pixels(0)).save(tmp_path / "photo.png")
    model = raymotion.load(str(folder / "student"))
    found = model.label(tmp_path / "photo.png", caption=CAPTIONS[0])
    student = load_model(folder / "student")

    def said(picture: np.ndarray | None, text: str | None) -> np.ndarray:
        resized = None if picture is None else Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)
        seen = () if resized is None else (torch.from_numpy(np.array(resized)[None]),)
        return by_hand(student, [text or ""], *seen)

    np.testing.assert_allclose([found[name] for name in MIKELS_8.labels], said(pixels(0), CAPTIONS[0]), atol=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    images = [pixels(0), None, pixels(2, (90, 50)), pixels(1), None]
    captions = [[CAPTIONS[0]], [CAPTIONS[1]], [], CAPTIONS, [CAPTIONS[0]]]
    got = model.predict(images, captions, batch_size=2)  # the last pass has no picture at all
    for i in (0, 1, 2, 4):
        np.testing.assert_allclose(got[i], said(images[i], captions[i][0] if captions[i] else None), atol=1e-5)
    mean = (said(images[3], CAPTIONS[0]) + said(images[3], CAPTIONS[1])) / 2
    np.testing.assert_allclose(got[3], mean, atol=1e-5)
    assert np.abs(got[0] - got[4]).max() > 1e-3 and model.min_side == 32 and model.reads == ("captions", "picture")
    assert model.predict([], []).shape == (0, 8)


def test_a_student_says_what_it_does_not_read(folder: Path) -> None:
    both, reader = raymotion.load(folder / "student"), raymotion.load(folder / "reader")
    assert both.not_read(image=True, caption=True) == [] == both.notes
    assert reader.not_read(image=True, caption=True) == ["No image was read: this model was trained on captions alone."]
    assert reader.label(pixels(), CAPTIONS[0]) == reader.label(caption=CAPTIONS[0])
    assert both.usable([pixels(), None, None], [[], ["dog"], [" "]]).tolist() == [True, True, False]
    assert reader.usable([pixels(), None, None], [[], ["dog"], [" "]]).tolist() == [False, True, False]
    with pytest.raises(InputError, match="reads captions or images, and none was given"):
        both.label(caption="  ")
    with pytest.raises(InputError, match="would not use --weights"):
        raymotion.load(folder / "student", weights="default")


def test_every_form_of_a_picture_is_the_same_picture(tmp_path: Path) -> None:
    array = pixels(1)
    picture = Image.fromarray(array)
    picture.save(tmp_path / "p.png")
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(array)))
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    forms = (tmp_path / "p.png", str(tmp_path / "p.png"), picture, array, tmp_path / "turned.png")
    for form in (*forms, Image.open(tmp_path / "turned.png")):
        np.testing.assert_array_equal(predictor.read_picture(form), array)
    grey = array.mean(axis=2).astype(np.uint8)
    for form in (grey, Image.fromarray(grey)):
        np.testing.assert_array_equal(predictor.read_picture(form), np.repeat(grey[:, :, None], 3, axis=2))
    assert predictor.read_picture(picture.convert("CMYK")).shape == array.shape


def test_a_damaged_picture_is_refused_or_read_with_a_note(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "half.jpg")
    data = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) * 3 // 4] + b"\xff\xd9")
    with pytest.raises(InputError, match=r"half\.jpg: is not a readable picture .*--damaged keep"):
        predictor.read_picture(tmp_path / "half.jpg")
    notes: list[Exception] = []
    assert predictor.read_picture(tmp_path / "half.jpg", on_kept=notes.append).shape == pixels().shape
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("absent.jpg", "no file at"),
        ("text.jpg", "is not a readable picture"),
        ("cut.png", "is not a readable picture"),
        ("", "is a folder"),
        (np.zeros((5, 5, 4), np.uint8), r"shape \(5, 5, 4\)"),
        (np.zeros((5, 5, 3)), "float64"),
        (7, "int is not a picture"),
    ],
)
def test_a_picture_that_is_none_is_named(folder: Path, tmp_path: Path, image: Any, message: str) -> None:
    (tmp_path / "text.jpg").write_text("this is text")
    Image.fromarray(pixels()).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-200])
    with pytest.raises(InputError, match=message):
        predictor.read_picture(tmp_path / image if isinstance(image, str) else image)
    if isinstance(image, str):  # also for a model that would not look at it
        with pytest.raises(InputError, match=message):
            raymotion.load(folder / "text").label(tmp_path / image, caption="a dog")


def test_what_a_model_does_not_read_is_said_and_ignored(folder: Path, both: Any) -> None:
    text, blind = raymotion.load(folder / "text"), raymotion.load(folder / "regions")
    assert text.label(pixels(), CAPTIONS[0]) == text.label(caption=CAPTIONS[0])
    assert blind.label(pixels(), CAPTIONS[0]) == blind.label(pixels())
    assert text.not_read(image=True, caption=True) == ["No image was read: this model was trained on captions alone."]
    assert blind.not_read(image=True, caption=True) == ["No caption was read: this model was trained on images alone."]
    assert both.not_read(image=True, caption=True) == [] and "random weights" in both.notes[0] and text.notes == []
    images, captions = [pixels(), None, None], [[], ["dog"], [" "]]
    assert text.usable(images, captions).tolist() == [False, True, False]
    assert blind.usable(images, captions).tolist() == [True, False, False]
    assert both.usable(images, captions).tolist() == [True, True, False]
    with pytest.raises(InputError, match="reads captions, and sample 0 has none"):
        text.predict(images, captions)
    with pytest.raises(InputError, match="reads captions or images, and sample 2 has none"):
        both.predict(images, captions)
    with pytest.raises(InputError, match="reads images"):
        blind.label(caption="a dog")
    with pytest.raises(InputError, match="neither"):
        both.predict(None, None)


def test_weights_are_the_trained_ones_or_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"are random:4, the model was trained with random:3"):
        raymotion.load(folder / "both", weights="random:4").label(pixels())
    other = raymotion.load(write(tmp_path / "t", "regions", weights="sha256:" + "0" * 64))
    with pytest.raises(InputError, match="Name that file as --weights"):
        other.label(pixels())
    read = raymotion.load(write(tmp_path / "c", "captions", "regions", weights="sha256:" + "0" * 64))
    assert len(read.label(caption=CAPTIONS[0])) == 8, "captions alone need no extractor"
    with pytest.raises(InputError, match="Name that file as --weights"):
        read.label(pixels(), CAPTIONS[0])
    with pytest.raises(InputError, match="would not use --weights"):
        raymotion.load(folder / "text", weights="random:3")


def test_the_published_detector_is_looked_for_where_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its identity is a digest, also where it came from the hub: nobody should have to name it again."""
    from raymotion import weights

    monkeypatch.setitem(weights.SCHEMES, "hf", lambda hub_id, *_: str(tmp_path / hub_id))
    own = tmp_path / "unc-nlp" / "frcnn-vg-finetuned"
    own.mkdir(parents=True)
    (own / "config.yaml").write_text("RPN:\n  NMS_THRESH: 0.7\n")
    (own / "pytorch_model.bin").write_bytes(b"weights")
    trained = identify("frcnn-vg-r101-c4", str(own), 4)
    assert trained.weights.startswith("sha256:")
    folder = tmp_path / "t"
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 2048})
    network, own_input = VisualBertTeacher(config, len(MIKELS_8)), RegionInput(trained)
    inputs = [Captions(64, tokenizer=tokenizer, used=False), own_input]
    info = save_checkpoint(folder, get_kind("teacher-visualbert"), network, inputs, [MultiLabel(MIKELS_8)], training={})
    assert find_extractor(info, own_input, None) == (trained, "default")
    (own / "pytorch_model.bin").write_bytes(b"others")
    with pytest.raises(InputError, match=r"--weights default are sha256:.*, the model was trained with sha256:"):
        find_extractor(info, own_input, None)


def test_what_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"owner/name: no such checkpoint.*raymotion pull owner/name --out DIR"):
        raymotion.load("owner/name")
    with pytest.raises(InputError, match="no such checkpoint"):
        raymotion.load(tmp_path / "absent")
    with pytest.raises(InputError, match="there is no device 'gpu9x'"):
        raymotion.load(folder / "text", device="gpu9x")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no GPU"):
            raymotion.load(folder / "text", device="cuda")
