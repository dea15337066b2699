"""The student: its published shape, what is masked, its layers, what is frozen, and where it may start from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raymotion.errors import InputError
from raymotion.models.checkpoint import Model, load_model, save_checkpoint
from raymotion.models.inputs.base import Arrays
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.picture import PictureInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.student.config import StudentConfig
from raymotion.models.student.network import IMAGENET_MEAN, IMAGENET_STD, Student, predict_tokens
from raymotion.models.student.start import initialise, transferred
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.vocabulary import VALENCE_3

SIZE, PIECES = 32, 60
BERT = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 32,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "cnn+gru": {"embedding_size": 8, "text_size": 8},
    "cnn+bert": {"text": "bert", "bert": BERT},
    "resnet+gru": {"image": "test_resnet", "embedding_size": 8, "text_size": 8},  # batch norm
    "vit+bert": {"image": "test_vit", "text": "bert", "bert": BERT},  # tokens and positions outside of any module
    "efficientnet+gru": {"image": "test_efficientnet", "embedding_size": 8, "text_size": 8},
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny layers: a second thread costs more than it computes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(name: str, **more: Any) -> StudentConfig:
    shape = {"image_size": SIZE, "vocab_size": PIECES, "hidden_size": 16, "max_text_length": 16, **SHAPES[name], **more}
    return StudentConfig.model_validate(shape)


def student(name: str, *, seed: int = 0, **more: Any) -> Student:
    torch.manual_seed(seed)
    return Student(config(name, **more), 3)


def batch(n: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Word pieces (n, 8), the first of them real, and pictures."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, PIECES, (n, 8), generator=rng)
    attention = (torch.arange(8) < torch.tensor([3, 4, 5, 6, 7, 8])[torch.arange(n) % 6][:, None]).long()
    return ids, attention, torch.randint(0, 256, (n, SIZE, SIZE, 3), dtype=torch.uint8, generator=rng)


def test_the_published_student_has_its_published_parameters() -> None:
    model = Student(StudentConfig(), 29)
    counts = {
        name: sum(p.numel() for p in getattr(model, path).parameters())
        for name, path in (("convolutions", "image"), ("text", "text"), ("fc1", "fusion"), ("fc2", "head"))
    }
    # systems.md 1.4: embedding 3,906,816; GRU 296,448; convolutions 23,584; fc1 164,352; fc2 14,877.
    assert counts == {"convolutions": 23_584, "text": 3_906_816 + 296_448, "fc1": 164_352, "fc2": 14_877}
    assert model.config.image_size == 224


def test_the_output_is_a_logit() -> None:
    """The public one put a sigmoid before a loss that has its own: no answer of it could leave [0, 1]."""
    model = student("cnn+gru").eval()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([-9.0, 0.0, 9.0]))
        logits = model(*batch())
    assert logits[:, 0].max() < -5 and logits[:, 2].min() > 5
    tokenizer = train_tokenizer([f"{a}{b} day" for a in "abcdefgh" for b in "abcdefgh"], size=PIECES)
    own = student("cnn+gru", vocab_size=len(tokenizer))
    with torch.no_grad():
        own.head.weight.zero_()
        own.head.bias.copy_(torch.tensor([-2.0, 0.0, 2.0]))
    tokens = Captions(16, tokenizer=tokenizer).tokens([["ab day"]])
    probabilities = predict_tokens(own, tokens.tokens, tokens.owners, 1, None, None, decode=torch.sigmoid)
    np.testing.assert_allclose(probabilities, [[0.1192, 0.5, 0.8808]], atol=1e-4)


@pytest.mark.parametrize("name", ["cnn+gru", "cnn+bert"])
def test_what_follows_the_caption_is_not_read(name: str) -> None:
    model = student(name).eval()
    ids, attention, images = batch()
    with torch.no_grad():
        expected = model(ids, attention, images)
        other = torch.where(attention == 1, ids, torch.randint(5, PIECES, ids.shape))
        torch.testing.assert_close(model(other, attention, images), expected)
        longer = torch.cat((other, torch.full((6, 5), 9)), dim=1)
        more = torch.cat((attention, torch.zeros(6, 5, dtype=torch.long)), dim=1)
        torch.testing.assert_close(model(longer, more, images), expected, atol=1e-5, rtol=1e-4)
        # And what belongs to it is read, its last piece too.
        last = ids.clone()
        last[torch.arange(6), attention.sum(1) - 1] = 6 + (last[torch.arange(6), attention.sum(1) - 1] == 6).long()
        assert (model(last, attention, images) - expected).abs().sum(1).min() > 1e-6


def test_gru_state_is_that_of_pytorchs_own_cell_after_the_last_piece() -> None:
    """Step by step with the weights of the module: torch.nn.GRU's documented recurrence."""
    encoder = student("cnn+gru").eval().text
    ids, attention, _ = batch()
    cell = nn.GRUCell(8, 8)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in encoder.gru.state_dict().items()})  # type: ignore[union-attr]
    with torch.no_grad():
        got = encoder(ids, attention)
        for row in range(len(ids)):
            state = torch.zeros(8)
            for piece in ids[row, : int(attention[row].sum())]:
                state = cell(encoder.embedding.weight[piece], state)  # type: ignore[union-attr]
            torch.testing.assert_close(got[row], state, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["cnn+gru", "vit+bert"])
def test_pictures_reach_the_encoder_normalised(name: str) -> None:
    model = student(name).eval()
    seen: list[torch.Tensor] = []
    model.image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ids, attention, images = batch()
    model(ids, attention, images)
    if name == "cnn+gru":
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    else:
        own = model.image.model.default_cfg  # type: ignore[union-attr]
        mean, std = own["mean"], own["std"]
    expected = (images.numpy() / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(seen[0].numpy(), expected.transpose(0, 3, 1, 2), atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["cnn+gru", "resnet+gru"])
def test_what_stands_behind_a_mask_does_not_matter(name: str, training: bool) -> None:
    """Not for its own sample, and, through batch norm's statistics, not for the others either."""
    ids, attention, images = batch()
    mask = torch.tensor([True, False, True, True, False, True])
    noise = torch.where(mask[:, None, None, None], images, torch.randint_like(images, 256))
    results, statistics = [], []
    for pictures in (images, noise):
        model = student(name).train(training)
        results.append(model(ids, attention, pictures, mask))
        statistics.append({k: v for k, v in model.state_dict().items() if "running" in k or "num_batches" in k})
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(statistics[0], statistics[1])
    # The learned vector stands in its place: no picture at all gives the same.
    model = student(name).train(training)
    none = model(ids, attention, None, None)
    torch.testing.assert_close(model(ids, attention, noise, torch.zeros(6, dtype=torch.bool)), none)
    torch.testing.assert_close(results[0].detach()[~mask], none.detach()[~mask])
    assert (results[0] - none)[mask].abs().sum(1).min() > 1e-7
    with torch.no_grad():
        model.no_image += 1.0
    changed = (model(ids, attention, images, mask) - results[0]).abs().sum(1) > 1e-4
    assert changed.tolist() == (~mask).tolist()


def test_a_missing_caption_is_the_learned_vector() -> None:
    model = student("cnn+gru").eval()
    ids, attention, images = batch()
    empty = attention.clone()
    empty[0] = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0])  # [CLS] [SEP]
    other = ids.clone()
    other[0] = 7
    with torch.no_grad():
        before = model(ids, empty, images)
        torch.testing.assert_close(model(other, empty, images)[0], before[0])
        torch.testing.assert_close(before[1:], model(ids, attention, images)[1:])
        model.no_text += 1.0
        assert ((model(ids, empty, images) - before).abs().sum(1) > 1e-4).tolist() == [True] + [False] * 5


@pytest.mark.parametrize("name", SHAPES)
def test_layers_are_a_partition_of_the_state_from_input_to_output(name: str) -> None:
    model = student(name)
    blocks = model.blocks()
    names = [name for block in blocks for name in block]
    assert len(names) == len(set(names)) and set(names) == set(model.state_dict())
    assert all(blocks) and blocks[-1] == ["head.weight", "head.bias"] and "fusion.weight" in blocks[-2]
    place = {name: i for i, block in enumerate(blocks) for name in block}
    # In each tower a layer lies no lower than the one that feeds it.
    text = (
        [f"text.model.encoder.layer.{i}.attention.self.query.weight" for i in range(3)]
        if "bert" in name
        else ["text.embedding.weight", "text.gru.weight_ih_l0"]
    )
    stems = {"cnn": "layers.0.weight", "resnet": "model.conv1.0.weight", "vit": "model.patch_embed.proj.weight"}
    image = {
        "cnn": [f"image.layers.{i}.weight" for i in range(3)],
        "vit": [f"image.model.blocks.{i}.attn.qkv.weight" for i in range(6)],
    }
    for tower in (text, image.get(name.split("+")[0], [])):
        places = [place[name] for name in tower]
        assert places == sorted(places) and len(set(places)) == len(places)
    stem = stems.get(name.split("+")[0])
    assert stem is None or place[f"image.{stem}"] == 0 or f"image.{stem}" not in place
    for path in place:  # statistics beside the weights that they belong to
        if path.endswith("running_mean"):
            assert place[path] == place[path.replace("running_mean", "weight")]


@pytest.mark.parametrize("name", ["cnn+gru", "resnet+gru", "vit+bert"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_frozen_weights_and_statistics_do_not_move_and_the_others_do(name: str, share: float) -> None:
    model = student(name, dropout=0.1)
    blocks = model.blocks()
    depth = round(share * (len(blocks) - 1))
    model.freeze(depth)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    ids, attention, images = batch()
    mask = torch.tensor([True] * 5 + [False])
    attention[4, 2:] = 0
    for _ in range(3):
        model.train()  # as the loop says in every epoch
        loss = (model(ids, attention, images, mask) ** 2).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.eval()
    frozen = {name for block in blocks[:depth] for name in block}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not moved & frozen
    # A key's bias does nothing in attention: softmax is the same for all shifts. Pieces that were not read stay, too.
    assert {path for path in set(before) - frozen - moved if "key.bias" not in path} == set()


@pytest.mark.parametrize("name", ["resnet+gru", "vit+bert"])
def test_frozen_layers_answer_as_in_evaluation(name: str) -> None:
    """Dropout and batch norm of the frozen part are off in training; those above are on."""
    more = {"bert": {**BERT, "hidden_dropout_prob": 0.5}} if "bert" in name else {}
    model = student(name, **more)
    ids, attention, images = batch()
    last = len(model.blocks()) - 2  # all of both towers
    model.freeze(last)
    model.train()
    pictures, texts = model.encode_images(images, None, 6), model.encode_texts(ids, attention)
    model.eval()
    torch.testing.assert_close(pictures, model.encode_images(images, None, 6))
    torch.testing.assert_close(texts, model.encode_texts(ids, attention))
    model.freeze(1)
    model.train()
    on = [path for path, module in model.named_modules() if module.training and not list(module.children())]
    assert any(path.startswith("image.") for path in on) and any(path.startswith("text.") for path in on)
    first = {path.rpartition(".")[0] for path in model.blocks()[0]}
    assert first.isdisjoint(on)


def save(folder: Path, model: Student, tokenizer: Any, **training: Any) -> None:
    inputs = [Captions(model.config.max_text_length, tokenizer=tokenizer), PictureInput(model.image_size)]
    save_checkpoint(folder, get_kind("student"), model, inputs, [MultiLabel(VALENCE_3)], training=training)


def made(folder: Path, name: str = "cnn+gru", *, seed: int = 0, **more: Any) -> tuple[Student, Any]:
    """A checkpoint of an untrained student whose answers differ from sample to sample."""
    tokenizer = train_tokenizer(["a sunny day", "a gloomy day by the sea", "plain"] * 3, size=PIECES)
    torch.manual_seed(seed)
    model = initialise(config(name, vocab_size=len(tokenizer), **more), 3)
    nn.init.normal_(model.head.weight, std=3.0)
    save(folder, model, tokenizer, seed=seed)
    return model, tokenizer


def predict(
    model: Model, captions: list[list[str]], images: np.ndarray, mask: np.ndarray, batch_size: int | None = None
) -> np.ndarray:
    own = model.info.input("captions")
    assert isinstance(own, Captions)
    pictures = Arrays("picture", mask, {"images": images, "image_mask": mask})
    evidence = {"captions": own.tokens(captions), "picture": pictures}
    return model.predict(evidence, batch_size=batch_size)["emotions"]


CAPTIONS = [["a sunny day", "plain"], ["a gloomy day by the sea"], [], ["  "]]


@pytest.mark.parametrize("name", ["cnn+gru", "resnet+gru", "cnn+bert"])
def test_a_checkpoint_predicts_as_the_model_did(name: str, tmp_path: Path) -> None:
    model, tokenizer = made(tmp_path / "s", name)
    images = batch(4)[2].numpy()
    mask = np.array([True, True, True, False])
    loaded = load_model(tmp_path / "s", kind="student")
    got = predict(loaded, CAPTIONS, images, mask)
    own = Captions(16, tokenizer=tokenizer).tokens(CAPTIONS)
    expected = predict_tokens(model, own.tokens, own.owners, 4, images, mask, decode=torch.sigmoid, pad_id=own.pad_id)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert loaded.network.config == model.config and not loaded.network.training
    # A sample's answer is the mean over its captions, and does not depend on its neighbours.
    singles = [predict(loaded, [[text]], images[:1], mask[:1]) for text in CAPTIONS[0]]
    np.testing.assert_allclose(got[0], np.mean(singles, axis=0)[0], atol=1e-5)
    one_by_one = [predict(loaded, CAPTIONS[i : i + 1], images[i : i + 1], mask[i : i + 1])[0] for i in range(4)]
    np.testing.assert_allclose(got, one_by_one, atol=1e-5)
    np.testing.assert_allclose(predict(loaded, CAPTIONS, images, mask, 3), got, atol=1e-5)
    assert (own.present | mask).tolist() == [True, True, True, False]


def test_what_is_no_whole_student_is_one_line(tmp_path: Path, rebind: Callable[[Path], None]) -> None:
    made(tmp_path / "s")
    with pytest.raises(InputError, match="is a student, not a teacher-visualbert"):
        load_model(tmp_path / "s", kind="teacher-visualbert")
    with pytest.raises(InputError, match="changed since the job began"):
        load_model(tmp_path / "s", expected_fingerprint="0" * 16)
    weights = load_file(tmp_path / "s/model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "no_text"}, tmp_path / "s/model.safetensors")
    rebind(tmp_path / "s")
    with pytest.raises(InputError, match=r"model\.safetensors: lacks weight no_text"):
        load_model(tmp_path / "s")
    save_file({**weights, "head.bias": torch.zeros(4)}, tmp_path / "s/model.safetensors")
    rebind(tmp_path / "s")
    with pytest.raises(InputError, match=r"weight head\.bias has shape \(4,\), config\.json says \(3,\)"):
        load_model(tmp_path / "s")
    shape = json.loads((tmp_path / "s/config.json").read_text())
    shape["model"]["text_size"] = -1
    (tmp_path / "s/config.json").write_text(json.dumps(shape))
    rebind(tmp_path / "s")
    with pytest.raises(InputError, match=r"config\.json: model\.text_size"):
        load_model(tmp_path / "s")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT as somebody would publish it, with a pooler that the student has no use for."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(5)
    BertModel(BertConfig(vocab_size=PIECES, **BERT)).save_pretrained(folder)
    return folder


def test_text_from_a_published_bert(bert: Path) -> None:
    published = load_file(bert / "model.safetensors")
    gru = initialise(config("cnn+gru"), 3, text_init=str(bert))
    assert gru.config.embedding_size == 16
    assert torch.equal(gru.text.embedding.weight, published["embeddings.word_embeddings.weight"])  # type: ignore[union-attr]
    # The recipe need not repeat the shape: that comes with the weights.
    whole = initialise(config("cnn+bert", bert=None), 3, text_init=str(bert))
    own = whole.text.model.state_dict()  # type: ignore[union-attr]
    assert own.keys() == {name for name in published if not name.startswith("pooler.")}
    assert all(torch.equal(own[name], published[name]) for name in own)
    # The config that a checkpoint keeps makes a model of the same shape again.
    Student(whole.config, 3).load_state_dict(whole.state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", "no pretrained model there"),
        ("other pieces", "was trained with 60 word pieces, the tokenizer has 61"),
        ("other kind", "is a gpt2, not a bert"),
        ("no layer 2", r"lacks \d+ weights, such as encoder\.layer\.2\."),
    ],
)
def test_text_that_does_not_fit(bert: Path, tmp_path: Path, damage: str, message: str) -> None:
    shape = json.loads((bert / "config.json").read_text())
    weights = load_file(bert / "model.safetensors")
    if damage == "other kind":
        shape = {"model_type": "gpt2", "vocab_size": PIECES}
    if damage == "no layer 2":
        weights = {name: value for name, value in weights.items() if "layer.2." not in name}
    if damage != "absent":
        (tmp_path / "config.json").write_text(json.dumps(shape))
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    wanted = config("cnn+bert", vocab_size=PIECES + (damage == "other pieces"), bert=None)
    with pytest.raises(InputError, match=message):
        initialise(wanted, 3, text_init=str(tmp_path / ("absent" if damage == "absent" else "")))


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("classifier", [True, False])
def test_pictures_from_a_timm_state_dict(name: str, classifier: bool, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(9)
    donor = timm.create_model(name, num_classes=7 if classifier else 0)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    size = int(donor.default_cfg["input_size"][-1])  # the positions of a transformer are of its size
    shape = config("resnet+gru", image=name, image_size=size)
    model = initialise(shape, 3, image_init=str(tmp_path / "w.safetensors")).eval()
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    donor.reset_classifier(0)
    with torch.no_grad():
        expected = donor.eval()((images.permute(0, 3, 1, 2) - model.mean) / model.std)
        torch.testing.assert_close(model.encode_images(images, None, 2), expected)


def test_pictures_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    import timm

    weights = timm.create_model("test_resnet", num_classes=0).state_dict()
    first, second, *_ = weights
    wrong = {name: value for name, value in weights.items() if name != first}
    wrong |= {"foreign.weight": torch.zeros(2), second: torch.zeros(3, 3, 3)}
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as told:
        initialise(config("resnet+gru"), 3, image_init=str(tmp_path / "w.safetensors"))
    assert all(
        part in str(told.value)
        for part in (f"1 missing ({first})", "1 unknown (foreign.weight)", f"1 of another shape ({second})")
    )
    with pytest.raises(InputError, match="the student's image encoder is its own cnn"):
        initialise(config("cnn+gru"), 3, image_init=str(tmp_path / "w.safetensors"))
    with pytest.raises(InputError, match="resnet_of_dreams"):
        student("resnet+gru", image="resnet_of_dreams")


def test_a_model_of_fixed_size_is_made_for_the_pictures_or_refused() -> None:
    """Found by hand: a transformer for 224 pixels met its first batch of another size in the middle of training."""
    model = student("vit+bert", image="vit_tiny_patch16_224", image_size=48, text="gru", bert=None).train()
    ids, attention, _ = batch(2)
    assert model(ids, attention, torch.zeros(2, 48, 48, 3, dtype=torch.uint8)).shape == (2, 3)
    with pytest.raises(InputError, match=r"test_maxvit reads no pictures of 40 pixels.*160"):
        student("resnet+gru", image="test_maxvit", image_size=40)


def test_one_picture_is_enough_for_batch_norm() -> None:
    model = student("resnet+gru").train()
    ids, attention, images = batch()
    only = torch.tensor([False, True, False, False, False, False])
    assert torch.isfinite(model(ids, attention, images, only)).all()


def test_layers_of_another_student_are_taken_from_the_input_on_and_the_head_never(tmp_path: Path) -> None:
    donor, _ = made(tmp_path / "a")
    blocks, theirs = donor.blocks(), donor.state_dict()
    assert len(blocks) == 5
    scratch: dict[str, torch.Tensor] = {}
    for depth in range(5):
        torch.manual_seed(3)
        own = transferred(donor, depth, 3, freeze=True)
        scratch = own.state_dict() if depth == 0 else scratch
        copied = {name for block in blocks[:depth] for name in block}
        for name, value in own.state_dict().items():
            drawn = value.count_nonzero() > 0  # the learned vectors begin at zero in both
            assert torch.equal(value, theirs[name]) == (name in copied or not drawn), (depth, name)
            # Above the cut nothing is as the donor, or the network of this seed, began: only then is it cut in two.
            if depth and name not in copied and drawn:
                assert not torch.equal(value, scratch[name])
        assert {n for n, p in own.named_parameters() if not p.requires_grad} == copied
    with pytest.raises(InputError, match=r"has 5 layers, the head among them; 5 cannot be transferred.*at most 4"):
        transferred(donor, 5, 3)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"image": "hf-hub:someone/model"}, "is not the name of a timm model"),
        ({"image": "local-dir:/tmp/model"}, "is not the name of a timm model"),
        ({"text": "bert", "bert": {"attn_implementation": "someone/kernel"}}, "attn_implementation"),
        ({"text": "bert", "bert": {"hidden_size": 100, "num_attention_heads": 12}}, "is not a multiple of"),
        ({"text": "bert", "bert": {"max_position_embeddings": 16}, "max_text_length": 64}, "16 positions"),
    ],
)
def test_a_checkpoint_names_shapes_and_no_code(
    shape: dict[str, object], reason: str, tmp_path: Path, rebind: Callable[[Path], None]
) -> None:
    """What someone hands over is opened without fetching, or running, anything that it names."""
    model = Student(config("cnn+gru"), 3)
    tokenizer = train_tokenizer(["a sunny day"], size=100, min_frequency=1)
    model.config = model.config.model_copy(update={"vocab_size": len(tokenizer)})
    save(tmp_path / "s", model, tokenizer)
    written = json.loads((tmp_path / "s" / "config.json").read_text())
    written["model"] = {**written["model"], **shape}
    for name in ("channels", "embedding_size", "text_size"):
        written["model"].pop(name, None)
    (tmp_path / "s" / "config.json").write_text(json.dumps(written))
    rebind(tmp_path / "s")
    with pytest.raises(InputError, match=reason):
        load_model(tmp_path / "s")
