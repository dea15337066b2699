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
from raymotion.models.checkpoint import load_student, load_teacher, save_checkpoint
from raymotion.models.student.network import Student, StudentConfig
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import RegionExtractor, identify
from raymotion.models.visualbert import network as visualbert
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.pipeline import predictor
from raymotion.vocabulary import MIKELS_8

CAPTIONS = ["a happy dog on the beach", "a sad man in the rain"]
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def write(folder: Path, *modalities: str, weights: str = "random:3") -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": len(tokenizer), "visual_dim": 1024, "normalize_regions": True}
    )
    extractor = {"name": SMALL, "weights": weights, "count": 4, "dim": 1024} if "regions" in modalities else None
    model = VisualBertTeacher(config, len(MIKELS_8)).eval()
    save_checkpoint(folder, model, tokenizer, MIKELS_8, modalities=modalities, extractor=extractor, training={})
    return folder


def write_student(folder: Path, *modalities: str) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, size=120, min_frequency=1)
    config = StudentConfig(
        image_size=32, channels=(4, 8), embedding_size=8, text_size=8, hidden_size=16, vocab_size=len(tokenizer)
    )
    model = Student(config, len(MIKELS_8))
    torch.nn.init.normal_(model.head.weight)  # else all answers lie close together
    save_checkpoint(folder, model, tokenizer, MIKELS_8, modalities=modalities, extractor=None, training={})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three teachers: `text`, `regions`, `both`; two students: `student`, and `reader`, of captions alone."""
    base = tmp_path_factory.mktemp("teachers")
    write(base / "text", "text")
    write(base / "regions", "regions")
    write(base / "both", "text", "regions")
    write_student(base / "student", "text", "image")
    write_student(base / "reader", "text")
    return base


@pytest.fixture(scope="module")
def both(folder: Path) -> Any:
    return raymotion.load(folder / "both")


def pixels(seed: int = 0, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


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
    teacher = load_teacher(folder / "text")
    one, two = (visualbert.predict(teacher.model, teacher.tokenizer, [[text]])[0] for text in CAPTIONS)
    expected = (one + two) / 2  # of several captions, the mean
    assert [found[label] for label in MIKELS_8.labels] == pytest.approx(expected.tolist(), abs=1e-6)
    assert model.modalities == ("text",) and model.vocabulary == MIKELS_8


def test_a_picture_goes_through_the_extractor_that_the_checkpoint_names(folder: Path, both: Any) -> None:
    """By hand: the same extractor, its regions, the teacher; None and [] are masked, not zeros."""
    images, captions = [pixels(0), None, pixels(2, (90, 50)), pixels(0)], [[CAPTIONS[0]], [CAPTIONS[1]], [], []]
    found = both.predict(images, captions, batch_size=1)
    extractor, teacher = RegionExtractor(SMALL, "random:3", 4), load_teacher(folder / "both")
    for i, (image, texts) in enumerate(zip(images[:3], captions[:3], strict=True)):
        regions = None if image is None else extractor([image])
        expected = (
            teacher.predict([texts]) if regions is None else teacher.predict([texts], regions.features, regions.mask)
        )
        np.testing.assert_allclose(found[i], expected[0], atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 1e-4 < np.abs(found[2] - found[3]).max(), "both parts are read"
    assert both.predict([], []).shape == (0, 8)


def test_a_student_reads_the_picture_itself(folder: Path, tmp_path: Path) -> None:
    """The three lines of the README; and by hand: picture and caption through the student's own parts, one by one."""
    Image.fromarray(pixels(0)).save(tmp_path / "photo.png")
    model = raymotion.load(str(folder / "student"))
    found = model.label(tmp_path / "photo.png", caption=CAPTIONS[0])
    student = load_student(folder / "student")
    seen = student.model.eval()

    def by_hand(picture: np.ndarray | None, text: str | None) -> np.ndarray:
        batch = student.tokenizer([text or ""], return_tensors="pt")
        resized = None if picture is None else Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR)
        shown = None if resized is None else torch.from_numpy(np.array(resized)[None])
        with torch.no_grad():
            return torch.sigmoid(seen(batch["input_ids"], batch["attention_mask"], shown))[0].numpy()

    np.testing.assert_allclose([found[name] for name in MIKELS_8.labels], by_hand(pixels(0), CAPTIONS[0]), atol=1e-5)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    images = [pixels(0), None, pixels(2, (90, 50)), pixels(1), None]
    captions = [[CAPTIONS[0]], [CAPTIONS[1]], [], CAPTIONS, [CAPTIONS[0]]]
    got = model.predict(images, captions, batch_size=2)  # the last pass has no picture at all
    for i in (0, 1, 2, 4):
        np.testing.assert_allclose(got[i], by_hand(images[i], captions[i][0] if captions[i] else None), atol=1e-5)
    np.testing.assert_allclose(
        got[3], (by_hand(images[3], CAPTIONS[0]) + by_hand(images[3], CAPTIONS[1])) / 2, atol=1e-5
    )
    assert np.abs(got[0] - got[4]).max() > 1e-3 and model.min_side == 32 and model.modalities == ("text", "image")
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
    with pytest.raises(InputError, match="is a student: it reads pictures itself, and would not use --weights"):
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
        (7, "a int is no picture"),
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
    with pytest.raises(InputError, match="captions alone, and would not use --weights"):
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
    info = save_checkpoint(
        folder, VisualBertTeacher(config, len(MIKELS_8)), tokenizer, MIKELS_8, modalities=["regions"],
        extractor=trained.to_dict(), training={},
    )  # fmt: skip
    assert predictor.find_extractor(info, None) == (trained, "default")
    (own / "pytorch_model.bin").write_bytes(b"others")
    with pytest.raises(InputError, match=r"--weights default are sha256:.*, the model was trained with sha256:"):
        predictor.find_extractor(info, None)


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
