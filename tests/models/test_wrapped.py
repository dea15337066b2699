"""Models of transformers, made and saved here with random weights: wrapped, they say what transformers says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTForImageClassification,
)

import raymotion
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.data.views.pictures import render
from raymotion.errors import InputError
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.vocabulary import VALENCE_3

TEXT = "a photo that evokes picture of scene full positive neutral negative . happy sea"
WORDS = TEXT.split()
CLASSES = ["joy", "amusement", "boredom", "grief"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def save_processors(folder: Path, side: int = 16) -> None:
    """A tokenizer of whole words, and an image processor."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=MEAN, image_std=STD
    ).save_pretrained(folder)


def towers(**more: Any) -> dict[str, Any]:
    text = {
        "vocab_size": 4 + len(WORDS), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 16,
        "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    return {"text_config": {**text, **more}, "vision_config": {**vision, **more}}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "clip"
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(**towers(), projection_dim=24)).save_pretrained(folder)
    save_processors(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "siglip"
    torch.manual_seed(1)
    model = SiglipModel(SiglipConfig(**towers()))
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-1.0)
    model.save_pretrained(folder)
    save_processors(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "classifier"
    torch.manual_seed(2)
    names = dict(enumerate(CLASSES))
    config = ViTConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8,
        id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    model = ViTForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=1.0)
    model.save_pretrained(folder)
    save_processors(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng, paths = tmp_path_factory.mktemp("photos"), np.random.default_rng(0), []
    for i in range(24):
        small = rng.integers(0, 255, (4, 5, 3), np.uint8)
        small[..., 0] = np.clip(small[..., 0] * 0.2 + (i % 2) * 180, 0, 255)  # every second one is red
        paths.append(folder / f"{i:02d}.png")
        Image.fromarray(small).resize((40, 32)).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def samples(photos: list[Path]) -> Path:
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"g{i}", "source": "t", "image_uri": str(path),
            "split": ("train", "train", "train", "train", "val", "val", "test", "test")[i % 8],
            "labels": ["negative" if i % 2 else "positive"] + (["neutral"] if i % 3 == 0 else []),
        }
        for i, path in enumerate(photos)
    ]  # fmt: skip
    path = photos[0].parent / "samples.parquet"
    write_samples(path, table_from_rows(rows, VALENCE_3))
    return path


def pixels_of(photo: Path) -> torch.Tensor:
    """The picture as a square, normalised by hand."""
    square = render(np.array(Image.open(photo)), 16).astype(np.float32) / 255
    return torch.from_numpy(((square - MEAN) / STD).astype(np.float32)).permute(2, 0, 1)[None]


def wrapped(runner: Callable[..., Any], *arguments: Any) -> Any:
    done = runner("wrap", *arguments)
    assert done.code == 0, done.err
    return raymotion.load(arguments[arguments.index("--out") + 1])


def test_a_clip_says_the_softmax_that_transformers_says(
    clip: Path, photos: list[Path], tmp_path: Path, runner: Callable[..., Any]
) -> None:
    template = "a photo that evokes {}."
    model = wrapped(
        runner, "zero-shot", clip, "--vocabulary", "valence-3", "--templates", template, "--out", tmp_path / "m"
    )
    theirs, tokenizer = AutoModel.from_pretrained(clip).eval(), PreTrainedTokenizerFast.from_pretrained(clip)
    texts = tokenizer([template.replace("{}", name) for name in VALENCE_3.labels], padding=True, return_tensors="pt")
    for photo in photos[:3]:
        with torch.no_grad():
            found = theirs(
                input_ids=texts["input_ids"], attention_mask=texts["attention_mask"], pixel_values=pixels_of(photo)
            ).logits_per_image.softmax(dim=-1)
        said = model.label(photo)
        assert [said[name] for name in VALENCE_3.labels] == pytest.approx(found[0].tolist(), abs=1e-5)
    card = (tmp_path / "m" / "README.md").read_text()
    assert "nothing of it was fitted" in card and "24" in str(load_model(tmp_path / "m").network.texts.shape)
    assert not [name for name in load_model(tmp_path / "m").network.state_dict() if "text_model" in name]


def test_several_templates_are_averaged_as_directions(clip: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    (tmp_path / "prompts.yaml").write_text(yaml.safe_dump({"positive": ["happy", "a happy scene"]}))
    wrapped(
        runner, "zero-shot", clip, "--vocabulary", "valence-3", "--prompts", tmp_path / "prompts.yaml",
        "--templates", "a {}", "--templates", "picture of {}", "--out", tmp_path / "m",
    )  # fmt: skip
    theirs, tokenizer = AutoModel.from_pretrained(clip).eval(), PreTrainedTokenizerFast.from_pretrained(clip)
    texts = {
        "negative": ["a negative", "picture of negative"],
        "neutral": ["a neutral", "picture of neutral"],
        "positive": ["happy", "a happy scene"],
    }
    own = load_model(tmp_path / "m").network.get_buffer("texts")
    for row, name in enumerate(VALENCE_3.labels):
        parts = []
        for text in texts[name]:
            words = tokenizer([text], return_tensors="pt")
            with torch.no_grad():
                found = theirs.get_text_features(words["input_ids"], attention_mask=words["attention_mask"])
            parts.append(torch.nn.functional.normalize(found.pooler_output[0], dim=0))
        expected = torch.nn.functional.normalize(torch.stack(parts).mean(dim=0), dim=0)
        torch.testing.assert_close(own[row], expected, atol=1e-5, rtol=0)


def test_a_siglip_says_a_sigmoid_of_each(
    siglip: Path, photos: list[Path], tmp_path: Path, runner: Callable[..., Any]
) -> None:
    model = wrapped(
        runner, "zero-shot", siglip, "--vocabulary", "valence-3", "--templates", "a {}", "--out", tmp_path / "m"
    )
    theirs, tokenizer = AutoModel.from_pretrained(siglip).eval(), PreTrainedTokenizerFast.from_pretrained(siglip)
    texts = tokenizer(
        [f"a {name}" for name in VALENCE_3.labels], padding="max_length", max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        found = theirs(input_ids=texts["input_ids"], pixel_values=pixels_of(photos[0])).logits_per_image.sigmoid()
    said = model.label(photos[0])
    assert [said[name] for name in VALENCE_3.labels] == pytest.approx(found[0].tolist(), abs=1e-5)


MAPPING = {
    "from": "classes", "to": "valence-3",
    "map": {"joy": ["positive"], "amusement": ["positive"], "boredom": ["neutral"], "grief": ["negative"]},
}  # fmt: skip


def test_a_classifier_says_its_own_classes_or_what_they_mean(
    classifier: Path, photos: list[Path], tmp_path: Path, runner: Callable[..., Any]
) -> None:
    plain = wrapped(runner, "hf-classifier", classifier, "--out", tmp_path / "plain")
    theirs = ViTForImageClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        p = theirs(pixel_values=pixels_of(photos[0])).logits.softmax(dim=-1)[0].tolist()
    said = plain.label(photos[0])
    assert [said[name] for name in CLASSES] == pytest.approx(p, abs=1e-5)
    assert list(read_checkpoint_info(tmp_path / "plain").vocabulary.labels) == CLASSES
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAPPING))
    mapped = wrapped(
        runner, "hf-classifier", classifier, "--vocabulary", "valence-3", "--mapping", tmp_path / "map.yaml",
        "--out", tmp_path / "mapped",
    )  # fmt: skip
    said = mapped.label(photos[0])
    # Classes that exclude each other add up.
    assert said["positive"] == pytest.approx(p[0] + p[1], abs=1e-5)
    assert (said["neutral"], said["negative"]) == (pytest.approx(p[2], abs=1e-5), pytest.approx(p[3], abs=1e-5))


def test_a_convolutional_classifier_whose_config_names_no_size(
    photos: list[Path], tmp_path: Path, runner: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    names = {0: "positive", 1: "Neutral", 2: "negative"}
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=names,
        label2id={name: i for i, name in names.items()}, problem_type="multi_label_classification",
    )  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    save_processors(tmp_path / "resnet")
    model = wrapped(runner, "hf-classifier", tmp_path / "resnet", "--vocabulary", "valence-3", "--out", tmp_path / "m")
    theirs = ResNetForImageClassification.from_pretrained(tmp_path / "resnet").eval()
    with torch.no_grad():
        p = theirs(pixel_values=pixels_of(photos[0])).logits.sigmoid()[0].tolist()
    said = model.label(photos[0])
    assert [said[name.lower()] for name in names.values()] == pytest.approx(p, abs=1e-5)


@pytest.mark.slow
def test_it_labels_a_table_with_the_command_of_every_model(
    clip: Path, samples: Path, tmp_path: Path, ray_local: Any, runner: Callable[..., Any]
) -> None:
    model = wrapped(runner, "zero-shot", clip, "--vocabulary", "valence-3", "--out", tmp_path / "m")
    done = runner(
        "label", samples, "--model", tmp_path / "m", "--out", tmp_path / "labels", "--workers", 1, "--address", "auto"
    )
    assert done.code == 0 and "24 in = 24 good" in done.out, done.err
    table = pd.read_parquet(tmp_path / "labels").set_index("sample_id")
    said = model.label(pd.read_parquet(samples)["image_uri"][5])
    assert table["probabilities"]["s5"].tolist() == pytest.approx([said[name] for name in VALENCE_3.labels], abs=1e-4)


@pytest.mark.parametrize("name", ["zero-shot", "hf-classifier"])
def test_calibration_learns_a_temperature_and_biases_and_nothing_else(
    clip: Path, classifier: Path, samples: Path, tmp_path: Path, runner: Callable[..., Any], name: str
) -> None:
    source = {"zero-shot": clip, "hf-classifier": classifier}[name]
    more: list[Any] = []
    if name == "hf-classifier":
        (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAPPING))
        more = ["--set", f"mapping={tmp_path / 'map.yaml'}"]
    done = runner(
        "train", name, "--samples", samples, "--set", f"source={source}", *more, "--set", "use_gpu=false",
        "--workers", 0, "--epochs", 3, "--out", tmp_path / "m",
    )  # fmt: skip
    assert done.code == 0, done.err
    model = load_model(tmp_path / "m")
    assert model.info.model["calibrated"] and float(model.network.temperature) != 0
    assert "calibrated on labelled samples" in (tmp_path / "m" / "README.md").read_text()
    auto = {"zero-shot": CLIPModel, "hf-classifier": ViTForImageClassification}[name]
    theirs = auto.from_pretrained(source).state_dict()
    for key, value in model.network.inner.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)
    labels = pd.read_parquet(samples).query("split == 'train'")["labels"]
    prior = [np.mean([name in own for own in labels]) for name in VALENCE_3.labels]
    assert list(model.info.prior or ()) == pytest.approx(prior, abs=1e-6)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["zero-shot", "{clip}"], r"no emotions of its own.*--vocabulary"),
        (["zero-shot", "{clip}", "--vocabulary", "valence-3", "--templates", "joy"], r"'joy' has no single \{\}"),
        (["zero-shot", "{clip}", "--vocabulary", "mikels-8"], r"same embedding for 'a photo that evokes amusement\.'"),
        (["zero-shot", "{classifier}", "--vocabulary", "valence-3"], r"does not compare pictures with texts"),
        (["zero-shot", "{empty}", "--vocabulary", "valence-3"], r"empty: no model there.*save_pretrained"),
        (["zero-shot", "nowhere", "--vocabulary", "valence-3"], r"nowhere: no such folder.*hub id"),
        (["hf-classifier", "{clip}"], r"is a clip, which has no classes.*wrap zero-shot"),
        (["hf-classifier", "{classifier}", "--vocabulary", "valence-3"], r"no class .* called .*--mapping FILE"),
        (["hf-classifier", "{classifier}", "--mapping", "{mapping}"], r"--mapping is given without --vocabulary"),
        (
            ["hf-classifier", "{classifier}", "--vocabulary", "valence-3", "--mapping", "{mapping}"],
            r"bad\.yaml: no class means negative",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_wrapped_is_told_in_one_line(
    clip: Path, classifier: Path, tmp_path: Path, runner: Callable[..., Any], arguments: list[str], told: str
) -> None:
    (tmp_path / "empty").mkdir()
    bad = {**MAPPING, "map": {**MAPPING["map"], "grief": None}}  # type: ignore[dict-item]
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(bad))
    places = {"clip": clip, "classifier": classifier, "empty": tmp_path / "empty", "mapping": tmp_path / "bad.yaml"}
    done = runner("wrap", *(text.format(**places) for text in arguments), "--out", tmp_path / "m")
    assert done.code == 2 and re.search(told, done.err), done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1 and not (tmp_path / "m").exists()


def test_a_model_that_lacks_weights_is_refused(clip: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    """transformers draws them at random with a warning in a log."""
    from safetensors.torch import load_file, save_file

    for path in clip.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    done = runner("wrap", "zero-shot", tmp_path, "--vocabulary", "valence-3", "--out", tmp_path / "out")
    assert done.code == 2 and "lacks 1 weights, such as visual_projection.weight" in done.err


def test_a_checkpoint_that_names_a_foreign_class_is_refused(
    clip: Path, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    wrapped(runner, "zero-shot", clip, "--vocabulary", "valence-3", "--out", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["model"]["source"]["model_type"] = "os.system"
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError):
        load_model(tmp_path / "m")


def test_many_pictures_in_a_notebook(
    classifier: Path, photos: list[Path], samples: Path, tmp_path: Path, runner: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A folder, paths, pictures in memory, a table: the same answers, wherever one stands."""
    model = wrapped(runner, "hf-classifier", classifier, "--out", tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    folder = raymotion.label(photos[0].parent, model)
    assert folder["image_uri"].tolist() == [str(path) for path in photos] and folder["failure"].isna().all()
    single = [model.label(path) for path in photos[:3]]
    for row, said in enumerate(single):
        assert folder.loc[row, CLASSES].tolist() == pytest.approx([said[name] for name in CLASSES], abs=1e-6)
    paths = raymotion.label([photos[1], str(tmp_path / "gone.jpg")], tmp_path / "m")
    assert paths.loc[0, CLASSES].tolist() == pytest.approx(folder.loc[1, CLASSES].tolist(), abs=1e-6)
    assert "no file at" in paths.loc[1, "failure"] and np.isnan(paths.loc[1, "joy"])
    for table in (samples, pd.read_parquet(samples)):
        assert raymotion.label(table, model)["sample_id"].tolist() == [f"s{i}" for i in range(24)]
    mixed = model.predict([photos[0], Image.open(photos[1]), np.array(Image.open(photos[2]))])
    assert mixed == pytest.approx(folder.loc[:2, CLASSES].to_numpy(), abs=1e-6)
    assert len(raymotion.label([], model)) == 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        raymotion.label(tmp_path / "empty", model)


def test_what_a_notebook_hands_in(
    classifier: Path, photos: list[Path], tmp_path: Path, runner: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Paths of each sort, pictures in memory, arrays, and frames with a column that any name of a path has."""
    model = wrapped(runner, "hf-classifier", classifier, "--out", tmp_path / "m")
    expected = model.predict(photos[:3])
    arrays = np.stack([np.array(Image.open(path).convert("RGB").resize((40, 30))) for path in photos[:3]])
    of_arrays = model.predict(list(arrays))
    assert not np.allclose(of_arrays, expected, atol=1e-6), "other pixels, another answer"
    names = [str(path) for path in photos[:3]]
    monkeypatch.chdir(photos[0].parent)
    for given, answer in {
        "arrays": (arrays, of_arrays),
        "generator": ((path for path in photos[:3]), expected),
        "series": (pd.Series(names), expected),
        "one path": (photos[0], expected[:1]),
        "one picture": (Image.open(photos[0]), expected[:1]),
        "one array": (arrays[0], of_arrays[:1]),
        "mixed": ([names[0], Image.open(photos[1]), arrays[2]], [*expected[:2], of_arrays[2]]),
        "column path": (pd.DataFrame({"path": photos[:3], "who": list("abc")}), expected),
        "column File_Name": (pd.DataFrame({"File_Name": [path.name for path in photos[:3]]}), expected),
        "column image": (pd.DataFrame({"image": [Image.open(path) for path in photos[:3]]}), expected),
        "arrow": (pa.table({"url": names}), expected),
    }.values():
        frame = raymotion.label(given, model)
        assert frame.attrs["labels"] == CLASSES and frame["failure"].isna().all()
        assert frame[CLASSES].to_numpy() == pytest.approx(np.array(answer), abs=1e-6)
    holes = raymotion.label(pd.DataFrame({"path": [names[0], None, float("nan"), pd.NA]}, dtype=object), model)
    assert holes["failure"].isna().tolist() == [True, False, False, False]
    with pytest.raises(InputError, match=r"no column of images .*Call it image_uri; its columns are caption, who"):
        raymotion.label(pd.DataFrame({"who": names, "caption": names}), model)
    with pytest.raises(InputError, match="row 1: a int is not a picture"):
        raymotion.label(pd.DataFrame({"path": [names[0], 7]}), model)
    for odd in (5, {"path": names}):
        with pytest.raises(InputError, match="is no list of pictures"):
            raymotion.label(odd, model)
    with pytest.raises(InputError, match="one picture was given, not a list"):
        model.predict(arrays[0])
    pd.DataFrame({"path": names}).to_csv(tmp_path / "t.csv")
    for out in (None, tmp_path / "out"):
        with pytest.raises(InputError, match="data prepare table"):
            raymotion.label(tmp_path / "t.csv", model, out=out)
        with pytest.raises(InputError, match="no such file"):
            raymotion.label(tmp_path / "gone", model, out=out)
    capsys.readouterr()
    model.predict(photos[:5], batch_size=2)
    assert capsys.readouterr().err == "", "no bar where nobody looks"
    model.predict(photos[:5], batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err
    assert repr(model).startswith("<raymotion hf-classifier of ") and "picture -> 4 emotions" in repr(model)


@pytest.mark.slow
def test_a_labelled_folder_from_python(
    classifier: Path, photos: list[Path], samples: Path, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    """The same answers as in a DataFrame, in the folder that the command writes; the same call goes on."""
    model = wrapped(runner, "hf-classifier", classifier, "--out", tmp_path / "m")
    frame = raymotion.label(photos[0].parent, model)
    given = {
        "folder": photos[0].parent, "list": photos, "frame": pd.DataFrame({"path": photos}), "table": samples,
    }  # fmt: skip
    for name, what in given.items():
        out = tmp_path / name
        done = raymotion.label(what, model, out=out, workers=0, selection={"policy": "threshold", "threshold": 0.3})
        labels = raymotion.open_labels(out)
        assert done.counts["good"] == len(photos) == len(labels) and str(out) in done._repr_html_()
        assert labels[CLASSES].to_numpy() == pytest.approx(frame[CLASSES].to_numpy(), abs=1e-5)
        chosen = [[c for c in CLASSES if row[c] >= 0.3] for _, row in labels.iterrows()]
        assert [list(own) for own in labels["labels"]] == chosen
        again = raymotion.label(what, model, out=out, workers=0, selection={"policy": "threshold", "threshold": 0.3})
        assert again.already_complete
    assert not (tmp_path / "table.samples.parquet").exists(), "a sample table is read where it is"
    assert raymotion.label(photos[0], model, out=tmp_path / "one").counts["good"] == 1
    with pytest.raises(InputError, match="samples of another run"):
        raymotion.label(photos[:3], model, out=tmp_path / "list")
    with pytest.raises(InputError, match="picture 0 is in memory"):
        raymotion.label([Image.open(photos[0])], model, out=tmp_path / "memory")
    with pytest.raises(InputError, match="workers is for a labelled folder"):
        raymotion.label(photos, model, workers=0)
    with pytest.raises(InputError, match="polcy"):
        raymotion.label(photos, model, out=tmp_path / "typo", polcy="threshold")
    with pytest.raises(InputError, match="device is for a DataFrame"):
        raymotion.label(photos, model, out=tmp_path / "gpu", device="cuda")


PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "happy", "sad", "dog", "rain", "##s", "by", "the", "sea"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of the transformers library that classifies texts, with its own tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "reader"
    torch.manual_seed(5)
    names = dict(enumerate(CLASSES))
    config = BertConfig(
        vocab_size=len(PIECES), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, id2label=names, label2id={name: i for i, name in names.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    BertTokenizer(vocab={name: i for i, name in enumerate(PIECES)}).save_pretrained(folder)
    return folder


def test_a_text_classifier_reads_captions_and_averages_them(
    reader: Path, tmp_path: Path, ray_local: Any, runner: Callable[..., Any]
) -> None:
    model = wrapped(runner, "hf-text-classifier", reader, "--out", tmp_path / "m")
    theirs = BertForSequenceClassification.from_pretrained(reader).eval()
    tokenizer = AutoTokenizer.from_pretrained(reader)
    captions = [["A happy dog"], ["rain", "a sad dog by the sea"], ["dogs by the rain by the sea"]]
    expected = []
    for own in captions:
        with torch.no_grad():
            each = [theirs(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=-1)[0] for text in own]
        expected.append(torch.stack(each).mean(dim=0).numpy())
    assert model.predict(None, captions) == pytest.approx(np.stack(expected), abs=1e-5)
    assert model.reads == ("captions",) and "reads captions alone" in (tmp_path / "m" / "README.md").read_text().lower()
    rows = [{"sample_id": str(i), "group_id": str(i), "source": "t", "captions": own} for i, own in enumerate(captions)]
    write_samples(tmp_path / "s.parquet", table_from_rows(rows))
    done = runner("label", tmp_path / "s.parquet", "--model", tmp_path / "m", "--out", tmp_path / "l", "--workers", 0)
    assert done.code == 0, done.err
    found = pd.read_parquet(tmp_path / "l")["probabilities"]
    assert np.stack(found.tolist()) == pytest.approx(np.stack(expected), abs=1e-5)


def test_a_text_classifier_is_calibrated(reader: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    (tmp_path / "map.yaml").write_text(yaml.safe_dump(MAPPING))
    texts = ["a happy dog", "a sad dog by the rain", "the sea"]
    rows = [
        {
            "sample_id": f"s{i}", "group_id": f"g{i}", "source": "t", "captions": [texts[i % 3], texts[(i + 1) % 3]],
            "split": ("train", "train", "val", "test")[i % 4], "labels": [VALENCE_3.labels[i % 3]],
        }
        for i in range(24)
    ]  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows, VALENCE_3))
    done = runner(
        "train", "hf-text-classifier", "--samples", tmp_path / "s.parquet", "--set", f"source={reader}",
        "--set", f"mapping={tmp_path / 'map.yaml'}", "--set", "use_gpu=false", "--workers", 0, "--epochs", 2,
        "--out", tmp_path / "m",
    )  # fmt: skip
    assert done.code == 0, done.err
    model = load_model(tmp_path / "m")
    assert model.info.model["calibrated"] and float(model.network.temperature) != 0
    theirs = BertForSequenceClassification.from_pretrained(reader).state_dict()
    for key, value in model.network.inner.state_dict().items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=0)


def test_a_text_classifier_of_another_tokenizer_is_refused(
    clip: Path, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    done = runner("wrap", "hf-text-classifier", clip, "--vocabulary", "valence-3", "--out", tmp_path / "m")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
