"""The joint space of pictures and captions: its towers, its start, training, and the bugs of the public study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image, ImageDraw
from scipy.linalg import eigh
from transformers import BertConfig, BertModel

from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.labels import LabelSettings, label
from raymotion.batch.search import SearchIndex
from raymotion.bundled import BUNDLES
from raymotion.config import load_settings
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.inputs.captions import Captions
from raymotion.models.joint.correlations import correlate
from raymotion.models.joint.recipe import JointRecipe
from raymotion.models.joint_emotions.recipe import JointEmotionsRecipe
from raymotion.models.outputs.embedding import Embedding
from raymotion.models.registry import get_kind
from raymotion.models.text.encoders import BertEncoder
from raymotion.models.text.tokenizer import load_tokenizer, tokenizer_json, train_tokenizer
from raymotion.models.text.words import words_of
from raymotion.models.vision.backbones import classifier_of, identify
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.train.task import Task
from raymotion.vocabulary import MIKELS_8

BACKBONE, SIZE, ROWS = "test_resnet", 32, 60
COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 220), "yellow": (230, 220, 50),
           "white": (250, 250, 250)}  # fmt: skip
PLACES = {"left": (2, 10), "right": (38, 10), "top": (20, 2), "bottom": (20, 38)}
BASE: dict[str, Any] = {
    "kind": "joint", "backbone": BACKBONE, "weights": "random:0", "size": SIZE, "pooled_stages": 2, "workers": 0,
    "use_gpu": False, "model": {"text": "lstm", "dim": 16, "image_hidden": [32], "text_size": 32, "embedding_size": 16},
    "optimiser": {"epochs": 1, "lr": 0.01, "batch_size": 18, "patience": 99},
}  # fmt: skip


def recipe_of(samples: str, embeddings: str | None = None, **changes: Any) -> Any:
    data = {"samples": samples, **({} if embeddings is None else {"embeddings": [embeddings]})}
    return load_settings(JointRecipe, options={**BASE, "data": data, **changes})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 pictures of a coloured square at a place, three of each, with two captions that say so in other words."""
    folder, rng, rows = tmp_path_factory.mktemp("squares"), np.random.default_rng(0), []
    for i in range(ROWS):
        colour, place = list(COLOURS)[i % 5], list(PLACES)[i // 5 % 4]
        picture = Image.fromarray(rng.integers(0, 40, (60, 60, 3), dtype=np.uint8))
        x, y = PLACES[place]
        ImageDraw.Draw(picture).rectangle((x, y, x + 18, y + 18), fill=COLOURS[colour])
        picture.save(folder / f"{i}.png")
        rows.append({
            "sample_id": f"s{i}", "group_id": f"g{i}", "image_uri": str(folder / f"{i}.png"), "source": "toy",
            "captions": [f"a {colour} square at the {place}", f"{place} in the picture there is a square of {colour}"],
            "split": ("train", "val", "test")[i // 20],
        })  # fmt: skip
    rows[3]["captions"] = []
    write_samples(folder / "samples.parquet", table_from_rows(rows, MIKELS_8))
    return str(folder / "samples.parquet")


@pytest.fixture(scope="module")
def embeddings(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("features") / "embeddings")
    embed(EmbeddingSettings(
        samples=samples, out=out, context=(BACKBONE,), backbone_weights=("random:0",), size=(str(SIZE),),
        pooled_stages=("2",), workers=0,
    ))  # fmt: skip
    return out


@pytest.fixture(scope="module")
def bert(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small BERT as its library writes it, with its tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    captions = [text for own in read_samples(samples).column("captions").to_pylist() for text in own]
    tokenizer = train_tokenizer(captions, size=120)
    torch.manual_seed(0)
    shape = BertConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    BertModel(shape).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(tokenizer))
    return str(folder)


def sentence(samples: str, embeddings: str | None, bert: str, **changes: Any) -> Any:
    model = {"dim": 8, "text": "sentence", **changes.pop("model", {})}
    return recipe_of(samples, embeddings, text_init=bert, model=model, **changes)


@pytest.fixture(scope="module")
def trained(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An LSTM beside a backbone whose pictures go through the model."""
    settings = {**BASE["optimiser"], "epochs": 25}
    return fit(recipe_of(samples, optimiser=settings), tmp_path_factory.mktemp("trained") / "m").info.folder


# --- what is learned -------------------------------------------------------------------------------------------------
def test_pictures_and_captions_find_each_other_far_above_chance(trained: str) -> None:
    """Systems.md 2.8.1 and 2.8.8: the public image side had no gradient, its text side was one constant: chance."""
    test = read_checkpoint_info(trained).test
    assert test is not None
    for direction in ("text_to_image", "image_to_text"):
        own = test["metrics"][f"{direction}_recall_at_5"]
        assert own["value"] > 2 * own["prior"] and own["low"] > own["prior"]
    assert test["pools"]["text_to_image"] == {"queries": 20, "pool": 20}


def test_both_towers_get_gradients_from_the_matching(samples: str) -> None:
    """Systems.md 2.8.1 and 2.8.2: a loss that does not depend on the picture teaches its side nothing."""
    recipe = recipe_of(samples)
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build()
    rows = task.data.splits["train"][:6]
    reader = task.reader()
    ((_, read),) = task.read(reader, rows, 6)
    arguments: dict[str, Any] = {}
    for name, own in task.inputs.items():
        arguments |= own.draft(rows, np.random.default_rng(0), read if name == "crops" else None).tensors("cpu")
    (output,) = task.outputs
    targets = output.batch(task.data.targets_of(output), rows, "cpu")
    task.criteria[output.name](network(**arguments), targets, epoch=0, weights=None).backward()
    for parameter in ("pictures.head.last.weight", "text_head.last.weight", "text.embedding.weight", "log_scale"):
        gradient = dict(network.named_parameters())[parameter].grad
        assert gradient is not None and float(gradient.abs().max()) > 0, parameter


def test_a_caption_says_the_same_beside_a_longer_one(trained: str) -> None:
    """Systems.md 2.8.9 and 2.8.10: the public vector was the LSTM's state after up to 40 steps of padding."""
    network: Any = load_model(trained).network
    ids, longer = torch.tensor([[2, 9, 11, 3]]), torch.randint(5, 40, (1, 20))
    alone = network.encode_texts(ids, torch.ones_like(ids))
    both = torch.cat([torch.nn.functional.pad(ids, (0, 16)), longer])
    mask = torch.ones_like(both)
    mask[0, 4:] = 0
    torch.testing.assert_close(network.encode_texts(both, mask)[:1], alone)


def test_what_is_frozen_stays_and_what_is_tuned_learns(
    samples: str, embeddings: str, bert: str, tmp_path: Path
) -> None:
    """Systems.md 2.8.12: frozen means in evaluation mode too."""
    start = BertModel.from_pretrained(bert).state_dict()
    for tuned in (False, True):
        recipe = sentence(samples, embeddings, bert, tuned_text=tuned)
        network: Any = load_model(fit(recipe, tmp_path / str(tuned)).info.folder).network
        own = network.text.model.state_dict()
        same = all(torch.equal(own[name], start[name]) for name in own)
        assert same is not tuned
        assert network.train().text.training is tuned


def test_a_probe_and_soft_targets_are_refused(samples: str) -> None:
    with pytest.raises(InputError, match="a joint space has none"):
        recipe_of(samples, probe={})
    with pytest.raises(InputError, match="the text tower would stay random"):
        recipe_of(samples, model={"text": "sentence"})
    with pytest.raises(InputError, match="start needs linear heads"):
        recipe_of(samples, start={})


# --- the start -------------------------------------------------------------------------------------------------------
def test_correlations_are_those_of_the_generalised_eigenproblem() -> None:
    """Against SciPy: Cxy Cyy^-1 Cyx w = rho^2 Cxx w, with both ridges."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    images = rng.normal(size=(40, 5))
    texts = images[owners] @ rng.normal(size=(5, 4)) + rng.normal(size=(len(owners), 4))
    image, text = correlate(*(torch.from_numpy(own) for own in (images, texts, owners)), 4, image_penalty=0.3,
                            text_penalty=0.2)  # fmt: skip
    x, y = images[owners] - images[owners].mean(0), texts - texts.mean(0)
    cxx, cyy, cxy = x.T @ x / len(x), y.T @ y / len(x), x.T @ y / len(x)
    cxx = cxx + 0.3 * np.trace(cxx) / 5 * np.eye(5)
    cyy = cyy + 0.2 * np.trace(cyy) / 4 * np.eye(4)
    squares, directions = eigh(cxy @ np.linalg.solve(cyy, cxy.T), cxx)
    for k in range(4):
        rho, own = np.sqrt(squares[::-1][k]), directions[:, ::-1][:, k]
        found = image.weight[k].numpy()
        assert np.abs(found) == pytest.approx(np.abs(own * rho), rel=1e-4)
    projected = x @ image.weight.numpy().T
    assert (images[owners] @ image.weight.numpy().T + image.bias.numpy()) == pytest.approx(projected, abs=1e-5)
    assert text.weight.shape == (4, 4)


def test_more_directions_than_there_are_say_nothing() -> None:
    x, y = torch.randn(20, 3), torch.randn(20, 6)
    image, text = correlate(x, y, torch.arange(20), 10, image_penalty=1, text_penalty=1)
    assert image.weight.shape == (10, 3) and not image.weight[3:].any() and not text.weight[3:].any()


def test_the_heads_begin_with_the_correlations_of_the_training_split(samples: str, embeddings: str, bert: str) -> None:
    recipe = sentence(samples, embeddings, bert, start={"image_penalty": 2.0}, model={"text_layers": [0, 2]})
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build()
    rows = task.data.splits["train"]
    pictures = torch.from_numpy(task.inputs["streams"].evidence(rows).values["context"]).float()
    tokens: Any = task.inputs["captions"].evidence(rows)
    given = tokens.tensors("cpu")
    with torch.no_grad():
        said = network.text(given["input_ids"], given["attention_mask"])
    assert said.shape[1] == 32
    x, y = network.pictures.head.standardised(pictures), network.text_head.standardised(said)
    assert float(x.square().mean()) == pytest.approx(1, rel=0.2)  # rows count once here, and per caption there
    image, text = correlate(x, y, torch.from_numpy(tokens.owners), 8, image_penalty=2.0, text_penalty=1.0)
    torch.testing.assert_close(
        network.pictures.head.last.weight.detach().abs(), image.weight.abs(), atol=2e-3, rtol=0.02
    )
    torch.testing.assert_close(network.text_head.last.weight.detach().abs(), text.weight.abs(), atol=2e-3, rtol=0.02)


def test_captions_are_read_once_and_say_the_same(
    samples: str, embeddings: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []
    monkeypatch.setattr(BertEncoder, "forward", counted(BertEncoder.forward, calls))
    recipe = sentence(samples, embeddings, bert, start={})
    task = Task(recipe, prepare_data(recipe))
    first: Any = task.build()
    bound: Any = task.inputs["captions"]
    assert sum(calls) == len({own.tobytes() for own in bound.tokens})
    given = bound.evidence(np.arange(len(bound.present))).tensors("cpu")
    said = first.text_numbers(given["input_ids"], given["attention_mask"])
    again: Any = task.build()
    assert torch.equal(again.text_numbers(given["input_ids"], given["attention_mask"]), said)
    assert torch.equal(again.text_head.last.weight, first.text_head.last.weight)
    assert sum(calls) == len({own.tobytes() for own in bound.tokens})
    # A model that is loaded reads them itself, and says the same.
    restored: Any = task.restore(task.shape_of(first))
    restored.load_state_dict(first.state_dict())
    torch.testing.assert_close(restored.eval().text_numbers(given["input_ids"], given["attention_mask"]), said)
    # Another caption is read when it is seen, and is not kept.
    ids = torch.tensor([[2, 9, 9, 9, 9, 3], [*bound.tokens[0].tolist()[:2], 3, 0, 0, 0]])
    mask = (ids != 0).long()
    torch.testing.assert_close(first.text_numbers(ids, mask), restored.text_numbers(ids, mask))


def counted(forward: Any, calls: list[int]) -> Any:
    def own(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        calls.append(len(input_ids))
        return forward(self, input_ids, attention_mask)

    return own


def test_two_trainings_end_in_the_same_weights_whether_captions_were_kept(
    samples: str, embeddings: str, bert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = sentence(samples, embeddings, bert, start={})
    infos = [fit(recipe, tmp_path / name).info for name in ("a", "b")]
    assert infos[0].fingerprint == infos[1].fingerprint
    assert len(list((tmp_path / "cache/raymotion/texts").glob("*/numbers.npy"))) == 1


@pytest.mark.skipif("tf_efficientnet_lite0" not in BUNDLES, reason="no bundle")
def test_a_classifier_of_imagenet_names_what_it_sees(shared_data: Path) -> None:
    weights = str(shared_data / "weights" / "tf_efficientnet_lite0.safetensors")
    weight, bias, names = classifier_of(identify("tf_efficientnet_lite0", weights), weights)
    assert weight.shape == (1000, 1280) and bias.shape == (1000,)
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


def test_a_backbone_that_names_nothing_is_refused(samples: str, embeddings: str, bert: str) -> None:
    recipe = sentence(samples, embeddings, bert, model={"class_names": 0.5})
    with pytest.raises(InputError, match="random weights, by which no class can be named"):
        Task(recipe, prepare_data(recipe)).build()


# --- labelling -------------------------------------------------------------------------------------------------------
def vectors_of(out: str, info: Any) -> dict[str, np.ndarray]:
    (output,) = info.outputs
    assert isinstance(output, Embedding)
    found: dict[str, np.ndarray] = {}
    for _, part in read_parts(out, ["sample_id", "image_embedding", "text_embedding"]):
        found |= dict(zip(part.column("sample_id").to_pylist(), output.values(part), strict=True))
    return found


def test_labels_are_two_vectors_and_null_where_a_side_is_absent(trained: str, samples: str, tmp_path: Path) -> None:
    table = read_samples(samples)
    keep = [f"s{i}" for i in (3, 4, 5)]
    some = table.filter(pa.array([own in keep for own in table.column("sample_id").to_pylist()]))
    path = str(tmp_path / "some.parquet")
    uris = some.column("image_uri").to_pylist()
    uris[1] = None
    write_samples(path, some.set_column(some.column_names.index("image_uri"), some.schema.field("image_uri"),
                                        pa.array(uris, pa.string())))  # fmt: skip
    out = str(tmp_path / "labels")
    summary = label(LabelSettings(samples=path, model=(trained,), out=out, workers=0))
    assert summary.counts["good"] == 3
    (part,) = [part for _, part in read_parts(out, ["sample_id", "image_embedding", "text_embedding"])]
    rows = {row["sample_id"]: row for row in part.to_pylist()}
    assert rows["s3"]["text_embedding"] is None and len(rows["s3"]["image_embedding"]) == 16
    assert rows["s4"]["image_embedding"] is None and np.linalg.norm(rows["s4"]["text_embedding"]) == pytest.approx(1)
    assert np.linalg.norm(rows["s5"]["image_embedding"]) == pytest.approx(1)
    assert part.schema.metadata[b"embedding"] == b'{"sides": ["image", "text"], "dim": 16}'


def test_several_captions_are_the_mean_of_their_directions(trained: str, samples: str) -> None:
    model = load_model(trained)
    captions, crops = model.inputs
    assert isinstance(captions, Captions)
    texts = read_samples(samples).column("captions").to_pylist()[5]

    class Row:
        def __init__(self, own: list[str]) -> None:
            self.row, self.pixels = {"captions": own}, None

    def said(*rows: list[str]) -> np.ndarray:
        items = [Row(own) for own in rows]
        return model.predict({own.name: own.collect(items) for own in model.inputs})["embedding"][:, 16:]

    one, two, both = said([texts[0]], [texts[1]], texts)
    mean = one + two
    assert both == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert one == pytest.approx(said([texts[0]])[0], abs=1e-5)
    assert crops.name == "crops"


def test_cached_vectors_and_pictures_give_the_same(samples: str, embeddings: str, bert: str, tmp_path: Path) -> None:
    info = fit(sentence(samples, embeddings, bert, start={}), tmp_path / "m").info
    found = []
    for number, features in enumerate((embeddings, None)):
        out = str(tmp_path / f"labels-{number}")
        label(LabelSettings(samples=samples, model=(info.folder,), out=out, features=features, workers=0))
        found.append(vectors_of(out, info))
    assert found[0].keys() == found[1].keys() and len(found[0]) == ROWS
    for name, own in found[0].items():
        assert own == pytest.approx(found[1][name], abs=5e-3), name


def test_the_same_seed_gives_the_same_weights(samples: str, tmp_path: Path) -> None:
    prints = [fit(recipe_of(samples), tmp_path / str(i)).info.fingerprint for i in range(2)]
    assert prints[0] == prints[1]


@pytest.mark.parametrize("loss", ["vse++", "siglip"])
def test_each_loss_trains(samples: str, embeddings: str, tmp_path: Path, loss: str) -> None:
    model = {**BASE["model"], **({"bias": -5.0} if loss == "siglip" else {})}
    recipe = recipe_of(
        samples, embeddings, loss={"name": loss}, model=model, optimiser={**BASE["optimiser"], "epochs": 8}
    )
    history = fit(recipe, tmp_path / "m").info.training["history"]
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    network: Any = load_model(str(tmp_path / "m")).network
    assert network.bias.requires_grad is (loss == "siglip") and float(network.bias.detach()) != -5.0


def test_the_card_says_what_it_is(trained: str) -> None:
    card = (Path(trained) / "README.md").read_text()
    assert "Joint space of pictures and captions" in card and "captions by an LSTM" in card
    assert get_kind("joint").title() in card


# --- emotions from the joint space ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def labelled(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pictures with the emotion of their colour."""
    table = read_samples(samples)
    rows = table.to_pylist()
    for i, row in enumerate(rows):
        row["labels"] = [MIKELS_8.labels[i % 5]]
    path = tmp_path_factory.mktemp("labelled") / "samples.parquet"
    write_samples(path, table_from_rows(rows, MIKELS_8))
    return str(path)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    lines = [f"{MIKELS_8.labels[i]}: ['a {colour} square', 'a square of {colour}']" for i, colour in enumerate(COLOURS)]
    lines += [f"{label}: ['in the picture']" for label in MIKELS_8.labels[5:]]
    path.write_text("\n".join(lines))
    return str(path)


def accuracy(out: str, labelled: str) -> float:
    truth = {row["sample_id"]: row["labels"][0] for row in read_samples(labelled).to_pylist()}
    hits = []
    for _, part in read_parts(out, ["sample_id", "probabilities"]):
        for row in part.to_pylist():
            best = MIKELS_8.labels[int(np.argmax(row["probabilities"]))]
            hits.append(best == truth[row["sample_id"]])
    assert len(hits) == ROWS
    return float(np.mean(hits))


def test_words_for_each_emotion_label_without_a_labelled_picture(
    trained: str, labelled: str, prompts: str, tmp_path: Path, runner: Any
) -> None:
    out = tmp_path / "emotions"
    done = runner("wrap", "joint-emotions", trained, "--vocabulary", "mikels-8", "--prompts", prompts, "--out", out)
    assert done.code == 0, done.err
    assert "No sample was looked at" in done.out
    label(LabelSettings(samples=labelled, model=(str(out),), out=str(tmp_path / "labels"), workers=0))
    assert accuracy(str(tmp_path / "labels"), labelled) > 0.4  # of five colours; chance 0.2
    assert "Zero-shot" in (out / "README.md").read_text()


def test_a_layer_on_the_vectors_is_a_logistic_regression(trained: str, labelled: str, tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    recipe = load_settings(JointEmotionsRecipe, options={
        "kind": "joint-emotions", "source": trained, "data": {"samples": labelled}, "workers": 0, "use_gpu": False,
        "probe": {"strengths": [1.0]}, "optimiser": {"epochs": 1},
    })  # fmt: skip
    info = fit(recipe, tmp_path / "m").info
    network: Any = load_model(info.folder).network
    before: Any = load_model(trained).network
    assert torch.equal(network.pictures.head.last.weight, before.pictures.head.last.weight)  # frozen
    table = read_samples(labelled)
    out = str(tmp_path / "vectors")
    label(LabelSettings(samples=labelled, model=(trained,), out=out, workers=0))
    found = vectors_of(out, read_checkpoint_info(trained))
    x = np.stack([found[own][:16] for own in table.column("sample_id").to_pylist()])
    training = np.array([own == "train" for own in table.column("split").to_pylist()])
    y = np.array([own[0] == MIKELS_8.labels[0] for own in table.column("labels").to_pylist()])
    reference = LogisticRegression(C=1.0, max_iter=1000).fit(x[training], y[training]).decision_function(x)
    with torch.no_grad():
        said = network.head(torch.from_numpy(x)).numpy()[:, 0]
    # The probe scales features to length 1 on average, and these have it.
    assert np.corrcoef(said, reference)[0, 1] > 0.99


def test_another_model_or_a_vocabulary_that_is_missing_is_refused(trained: str, tmp_path: Path, runner: Any) -> None:
    done = runner("wrap", "joint-emotions", trained, "--out", tmp_path / "x")
    assert done.code == 2 and "Give --vocabulary" in done.err
    done = runner("wrap", "joint-emotions", tmp_path, "--vocabulary", "mikels-8", "--out", tmp_path / "x")
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1


def test_words_of_the_prompts_that_the_space_does_not_know_are_told(
    trained: str, prompts: str, tmp_path: Path, runner: Any
) -> None:
    own, out = tmp_path / "prompts.yaml", tmp_path / "emotions"
    own.write_text(Path(prompts).read_text() + "\n")
    done = runner("wrap", "joint-emotions", trained, "--vocabulary", "mikels-8", "--prompts", own, "--out", out)
    assert done.code == 0 and "warning" not in done.err and "does not know" not in (out / "README.md").read_text()
    labels = list(MIKELS_8.labels)
    lines = [f"{label}: ['a {colour} square']" for label, colour in zip(labels[:5], COLOURS, strict=True)]
    lines += [f"{labels[5]}: ['square я']", f"{labels[6]}: ['square ж']", f"{labels[7]}: ['a sunset at the top']"]
    own.write_text("\n".join(lines))
    out = tmp_path / "more"
    done = runner("wrap", "joint-emotions", trained, "--vocabulary", "mikels-8", "--prompts", own, "--out", out)
    assert done.code == 0
    unknown, alike = done.err.strip().splitlines()
    assert "does not know these words of the texts: 'я', 'ж', 'sunset'." in unknown
    assert f"reads the texts of {labels[5]}, {labels[6]} as the same" in alike
    assert unknown.removeprefix("warning: ") in (out / "README.md").read_text()
    # Word pieces say something; a text of none that the space knows would say nothing.
    own.write_text("\n".join([*lines[:7], f"{labels[7]}: ['squares']"]))
    out = tmp_path / "pieces"
    done = runner("wrap", "joint-emotions", trained, "--vocabulary", "mikels-8", "--prompts", own, "--out", out)
    assert done.code == 0 and "does not know these words of the texts: 'я', 'ж', 'squares'." in done.err
    own.write_text(f"{labels[0]}: ['zebra!']")
    done = runner("wrap", "joint-emotions", trained, "--vocabulary", "mikels-8", "--prompts", own, "--out", out / "x")
    assert done.code == 2 and "knows no word of 'zebra!'" in done.err


def test_a_sentence_model_knows_the_words_of_its_own_tokenizer(samples: str, embeddings: str, bert: str) -> None:
    recipe = sentence(samples, embeddings, bert)
    assert recipe.tokenizer.source == "train" and recipe.tokenizer_source() == bert
    captions = Captions(64, tokenizer=load_tokenizer(bert))
    pieces = captions.tokenizer.tokenize("reds")
    assert len(pieces) > 1 and "[UNK]" not in pieces and len(captions.tokenizer) < recipe.tokenizer.size
    assert words_of(captions, {"settings": recipe.model_dump(mode="json")}, "reds я").unknown == ("я",)


def test_a_search_tells_words_that_the_space_does_not_know(
    trained: str, samples: str, tmp_path: Path, runner: Any
) -> None:
    out = str(tmp_path / "index")
    label(LabelSettings(samples=samples, model=(trained,), out=out, workers=0))
    done = runner("search", "a red zebra at the я", "--index", out, "--top", 2)
    assert done.code == 0 and len(done.out.splitlines()) == 4
    assert "warning: the model does not know 2 of the 6 words of the query ('zebra', 'я')" in done.err
    told = json.loads(runner("search", "a red zebra", "--index", out, "--json").out)
    assert told["unknown_words"] == ["zebra"] and told["words_not_read"] == []
    page = tmp_path / "page.html"
    assert runner("search", "a red zebra", "--index", out, "--html", page).code == 0
    assert "Warning: the model does not know 1 of the 3 words of the query" in page.read_text()
    assert not SearchIndex(out).search("a red square").warnings()
    assert repr(SearchIndex(out).search("red zebra")).startswith("warning: ")
    done = runner("search", "squares", "--index", out, "--top", 2)
    assert done.code == 0 and len(done.out.splitlines()) == 4
    assert "warning: the model does not know 1 of the 1 words of the query ('squares')" in done.err
    done = runner("search", "zebra я", "--index", out)
    assert done.code == 2 and "knows no word of the query: 'zebra', 'я'." in done.err
    assert len(done.err.strip().splitlines()) == 1
    done = runner("search", "red " * 70 + "square", "--index", out, "--top", 1)
    assert "longer than the model reads: it did not read 'square'\n" in done.err


# --- hubs -----------------------------------------------------------------------------------------------------------
def test_a_cosine_is_the_similarity_less_that_to_the_nearest_of_the_other_side(
    samples: str, embeddings: str, bert: str
) -> None:
    """CSLS by hand: half of cos - (r_picture + r_caption) / 2, with the training split as neighbours."""
    hubs = {"neighbours": 3, "pictures": 12, "captions": 30}
    recipe = sentence(samples, embeddings, bert, start={}, model={"hubs": hubs})
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build().eval()
    assert task.outputs[0].width == 2 * (8 + 4)
    training, rows = task.data.splits["train"], task.data.splits["val"]
    bound: Any = task.inputs["streams"]
    captions: Any = task.inputs["captions"]

    def plain(head: Any, numbers: torch.Tensor) -> np.ndarray:
        return torch.nn.functional.normalize(head(numbers), dim=1).numpy()

    with torch.no_grad():
        vectors = torch.from_numpy(bound.evidence(rows).values["context"]).float()
        given = captions.evidence(rows).tensors("cpu")
        said = network.text_numbers(given["input_ids"], given["attention_mask"])
        v, u = plain(network.pictures.head, vectors), plain(network.text_head, said)
        kept_v = plain(network.pictures.head, network.kept_pictures)
        kept_u = plain(network.text_head, network.kept_captions)
        found_v = torch.nn.functional.normalize(network.encode_pictures(vectors), dim=1).numpy()
        found_u = torch.nn.functional.normalize(network.encode_said(said), dim=1).numpy()
    assert (len(kept_v), len(kept_u)) == (12, 30)
    every = torch.from_numpy(bound.evidence(training).values["context"]).float().numpy()
    assert all((np.abs(every - own).sum(axis=1) < 1e-3).any() for own in network.kept_pictures.numpy())
    r_v = np.sort(v @ kept_u.T, axis=1)[:, -3:].mean(axis=1)
    r_u = np.sort(u @ kept_v.T, axis=1)[:, -3:].mean(axis=1)
    assert found_v @ found_u.T == pytest.approx((v @ u.T - (r_v[:, None] + r_u[None, :]) / 2) / 2, abs=1e-5)
    assert np.linalg.norm(found_v, axis=1) == pytest.approx(np.ones(len(v)))


def test_the_kept_vectors_follow_the_weights(samples: str, embeddings: str, bert: str, tmp_path: Path) -> None:
    recipe = sentence(samples, embeddings, bert, start={}, model={"hubs": {"pictures": 5}},
                      optimiser={**BASE["optimiser"], "epochs": 3})  # fmt: skip
    info = fit(recipe, tmp_path / "m").info
    network: Any = load_model(info.folder).network
    vectors = torch.randn(4, network.config.vector_dim)
    with torch.no_grad():
        before = network.encode_pictures(vectors)
        network.text_head.last.weight.mul_(-1)
        network.text_head.last.bias.mul_(-1)
        after = network.encode_pictures(vectors)
    assert torch.equal(before[:, :8], after[:, :8]) and not torch.allclose(before[:, 8], after[:, 8])
    assert "Similarities are corrected by 5 pictures" in (Path(info.folder) / "README.md").read_text()


def test_what_a_fused_optimiser_changed_is_seen_by_the_next_validation(
    samples: str, embeddings: str, bert: str
) -> None:
    """Its steps change weights without a mark on the tensors, by which the kept vectors would be taken for valid."""
    recipe = sentence(samples, embeddings, bert, start={}, model={"hubs": {}})
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build()
    rows = task.data.splits["val"]
    evidence = {name: own.evidence(rows) for name, own in task.inputs.items()}

    def said() -> np.ndarray:
        return task.kind.predict(network, evidence, task.outputs)["embedding"]

    network.train()
    said()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)
    for own in network.parameters():
        own.grad = torch.ones_like(own) if own.requires_grad else None
    network.train()
    optimiser.step()
    after = said()
    network._kept.clear()
    assert np.array_equal(after, said())


def test_one_row_and_absent_rows_do_not_enter_a_batch_norm(samples: str) -> None:
    recipe = recipe_of(samples, model={**BASE["model"], "batch_norm": True, "text_hidden": [8]})
    task = Task(recipe, prepare_data(recipe))
    network: Any = task.build().train()
    crops = torch.randint(0, 255, (3, SIZE, SIZE, 3), dtype=torch.uint8)
    ids = torch.tensor([[2, 9, 3], [2, 10, 3], [2, 3, 0]])
    masks = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])
    there = torch.tensor([[True], [False], [False]])
    norm = next(own for own in network.pictures.head.hidden if isinstance(own, torch.nn.BatchNorm1d))
    before = norm.running_var.clone()
    raw = network(ids, masks, crops=[crops], mask=there)
    assert torch.equal(norm.running_var, before) and not raw[1:, :16].any() and not raw[2, 16:32].any()
    assert raw[0, :16].any() and raw[:2, 16:32].any()


def test_a_picture_that_cannot_be_read_stops_no_training(samples: str, bert: str, tmp_path: Path) -> None:
    rows = read_samples(samples).to_pylist()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    rows[0]["image_uri"] = str(broken)
    path = tmp_path / "samples.parquet"
    write_samples(path, table_from_rows(rows, MIKELS_8))
    info = fit(sentence(str(path), None, bert, start={}, model={"hubs": {}}), tmp_path / "m").info
    assert info.model["kept_pictures"] == 18  # of 20, one without captions


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {**BASE["model"], "bias": -10}}, "is read by the loss siglip, not by infonce"),
        ({"model": {**BASE["model"], "temperature": 0.1}, "loss": {"name": "vse++"}}, "not read by the loss vse"),
        ({"model": {**BASE["model"], "temperature": 0.001}}, "temperature"),
        ({"workers": 12}, "leaves each of 12 workers a single sample"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(samples: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        recipe = recipe_of(samples, **changes)
        get_kind("joint").check_recipe(recipe)


def test_cached_features_of_an_untuned_backbone_are_refused(
    samples: str, embeddings: str, labelled: str, tmp_path: Path
) -> None:
    info = fit(recipe_of(samples, tuned_blocks=1), tmp_path / "m").info
    recipe = load_settings(JointEmotionsRecipe, options={
        "kind": "joint-emotions", "source": info.folder, "data": {"samples": labelled, "embeddings": [embeddings]},
    })  # fmt: skip
    with pytest.raises(InputError, match="whose last blocks it trained"):
        prepare_data(recipe)


def test_pictures_are_compared_with_pictures_without_the_correction(
    samples: str, embeddings: str, bert: str, tmp_path: Path
) -> None:
    info = fit(sentence(samples, embeddings, bert, start={}, model={"hubs": {}}), tmp_path / "m").info
    out = str(tmp_path / "index")
    label(LabelSettings(samples=samples, model=(info.folder,), out=out, workers=0))
    uri = read_samples(samples).to_pylist()[5]["image_uri"]
    found = SearchIndex(out).search(image=uri, top=ROWS)
    plain = {name: own[:8] / np.linalg.norm(own[:8]) for name, own in vectors_of(out, info).items()}
    assert found.hits[0].sample_id == "s5" and len(found.hits) == ROWS
    for hit in found.hits:
        assert hit.cosine == pytest.approx(float(plain[hit.sample_id] @ plain["s5"]), abs=1e-3)


def test_hubs_of_towers_that_learn_are_refused(samples: str) -> None:
    with pytest.raises(InputError, match="towers that are frozen"):
        recipe_of(samples, model={**BASE["model"], "hubs": {}})


def test_the_domain_check_knows_the_pictures_it_learned_from(
    samples: str, embeddings: str, bert: str, tmp_path: Path
) -> None:
    info = fit(sentence(samples, embeddings, bert, start={}, model={"hubs": {}}), tmp_path / "m").info
    assert info.domain is not None
    summary = label(LabelSettings(samples=samples, model=(info.folder,), out=str(tmp_path / "labels"),
                                  features=embeddings, workers=0))  # fmt: skip
    assert "holds no sample" not in summary.record["domain"]["headline"]


def test_a_checkpoint_holds_the_trained_weights_and_no_pickle(trained: str, samples: str, tmp_path: Path) -> None:
    """Systems.md 2.8.16: whole objects were pickled, and the test ran before the trained weights were loaded."""
    import pyarrow.parquet as pq

    names = sorted(path.name for path in Path(trained).iterdir())
    assert not [name for name in names if name.endswith((".pt", ".pth", ".pkl", ".bin"))]
    out = str(tmp_path / "labels")
    label(LabelSettings(samples=samples, model=(trained,), out=out, workers=0))
    info = read_checkpoint_info(trained)
    found = vectors_of(out, info)
    answers = pq.read_table(f"{trained}/answers.parquet")
    (output,) = info.outputs
    for name, own in zip(answers.column("sample_id").to_pylist(), output.values(answers), strict=True):
        assert own == pytest.approx(found[name], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_search_compares_spaces_by_their_ranks(
    ray_local: Any, samples: str, embeddings: str, tmp_path: Path, runner: Any
) -> None:
    """The targets of a joint space are groups, and its baseline is one vector for all."""
    recipe, space = tmp_path / "small.yaml", tmp_path / "space.yaml"
    recipe.write_text(yaml.safe_dump(BASE))
    space.write_text("name: rates\ntitle: t\ngrid:\n  optimiser.lr: [0.00001, 0.01]\n")
    out = tmp_path / "search"
    done = runner("tune", recipe, "--space", space, "--samples", samples, "--embeddings", embeddings, "--seeds", 1,
                  "--set", "optimiser.epochs=4", "--out", out)  # fmt: skip
    assert done.code == 0, done.err
    winner = yaml.safe_load((out / "winner.yaml").read_text())
    assert winner["optimiser"]["lr"] == 0.01 and "one vector for all" in done.out
