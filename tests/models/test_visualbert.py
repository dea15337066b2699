"""The teacher masks what is missing, freezes what is frozen, and answers the same in whatever company."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raymotion import storage
from raymotion.errors import InputError
from raymotion.models.inputs.captions import Captions, pad
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.text.tower import read_text_tower
from raymotion.models.visualbert.config import TeacherConfig
from raymotion.models.visualbert.network import VisualBertTeacher, predict_tokens

LABELS, REGIONS, DIM = 5, 4, 12
POOLINGS = ("cls", "mean-output", "mean", "cls+mean")
CAPTIONS = ["a happy dog on the beach", "a sad man in the rain", "two children laugh loudly at the sea in the evening"]
TOKENIZER = train_tokenizer(CAPTIONS, size=150, min_frequency=1)


def make(pooling: str = "cls", **settings: object) -> VisualBertTeacher:
    torch.manual_seed(0)
    config = TeacherConfig.model_validate(
        {"size": "tiny", "vocab_size": len(TOKENIZER), "visual_dim": DIM, "pooling": pooling, **settings}
    )
    model = VisualBertTeacher(config, LABELS)
    # Weights of trained size: fresh ones are so small that leaks would hide below any tolerance.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.eval()


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(TOKENIZER), (3, 7), generator=generator)
    regions = torch.randn(3, REGIONS, DIM, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    return ids, torch.ones_like(ids), regions, mask


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("behind", [1e4, float("nan"), float("inf")])
def test_what_stands_behind_the_mask_does_not_count(pooling: str, normalize: bool, behind: float) -> None:
    model = make(pooling, normalize_regions=normalize)
    ids, attention, regions, mask = inputs()
    other = regions.clone()
    other[~mask] = behind
    with torch.inference_mode():
        a, b = model(ids, attention, regions, mask), model(ids, attention, other, mask)
        seen = regions.clone()
        seen[0, 0, ::2] += 1.0
        c = model(ids, attention, seen, mask)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    assert (a[0] - c[0]).abs().max() > 1e-3  # regions that are there do count


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_and_masked_images_change_nothing(pooling: str) -> None:
    model = make(pooling)
    ids, attention, regions, mask = inputs()
    longer = torch.cat([ids, torch.full((3, 9), 17)], dim=1)  # not even pad ids: only the mask says so
    longer_attention = torch.cat([attention, torch.zeros(3, 9, dtype=torch.long)], dim=1)
    with torch.inference_mode():
        short, long = model(ids, attention, regions, mask), model(longer, longer_attention, regions, mask)
        without, masked = model(ids, attention), model(ids, attention, regions, torch.zeros_like(mask))
    torch.testing.assert_close(short, long, atol=1e-5, rtol=0)
    torch.testing.assert_close(without, masked, atol=1e-5, rtol=0)
    torch.testing.assert_close(short[2], without[2], atol=1e-5, rtol=0)


def test_frozen_means_frozen_whatever_the_loop_does() -> None:
    model = make(freeze_backbone=True, dropout=0.5)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    ids, attention, regions, mask = inputs()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, weight_decay=0.1)
    pooled = []
    for _ in range(3):
        model.train()
        assert not any(module.training for module in model.backbone.modules())
        assert model.dropout.training
        pooled.append(model._pooled(ids, attention, regions, mask))
        model(ids, attention, regions, mask).sum().backward()
        optimiser.step()
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())
    assert torch.equal(pooled[0], pooled[-1]) and not pooled[0].requires_grad
    assert model.head.weight.grad is not None


def test_backbone_from_a_pretrained_folder(tmp_path: Path) -> None:
    from transformers import VisualBertModel

    config = TeacherConfig(
        hidden_size=32, layers=2, heads=4, intermediate_size=48, vocab_size=len(TOKENIZER), visual_dim=DIM
    )
    torch.manual_seed(5)
    published = VisualBertModel(config.transformer())
    published.save_pretrained(tmp_path / "full")
    asked = TeacherConfig(vocab_size=len(TOKENIZER), visual_dim=DIM, max_text_length=20)
    teacher = VisualBertTeacher.from_pretrained(str(tmp_path / "full"), asked, LABELS)
    assert (teacher.config.hidden_size, teacher.config.layers, teacher.config.max_text_length) == (32, 2, 20)
    loaded = teacher.backbone.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in published.state_dict().items())
    # Another detector: only the projection of the regions starts anew.
    other = VisualBertTeacher.from_pretrained(
        str(tmp_path / "full"), asked.model_copy(update={"visual_dim": DIM + 1}), LABELS
    )
    changed = {n for n, v in other.backbone.state_dict().items() if not torch.equal(v, loaded[n][..., : v.shape[-1]])
               if v.shape == loaded[n].shape}  # fmt: skip
    assert changed <= {"embeddings.visual_projection.bias"}
    assert other.backbone.embeddings.visual_projection.weight.shape == (32, DIM + 1)


def test_pretrained_that_does_not_fit(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=99, **tiny)).save_pretrained(tmp_path / "bert")
    make().backbone.save_pretrained(tmp_path / "small")
    fits = TeacherConfig(vocab_size=len(TOKENIZER))
    for source, config, reason in (
        ("bert", fits, "bert"),
        ("small", TeacherConfig(vocab_size=77), "tokenizer has 77"),
        ("absent", fits, "no pretrained model"),
    ):
        with pytest.raises(InputError, match=reason):
            VisualBertTeacher.from_pretrained(str(tmp_path / source), config, LABELS)
    (tmp_path / "small" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match="is damaged or cut off"):
        VisualBertTeacher.from_pretrained(str(tmp_path / "small"), fits, LABELS)


def test_a_sample_without_a_caption_is_not_present_and_still_has_a_text() -> None:
    own = Captions(64, tokenizer=TOKENIZER).tokens([[CAPTIONS[0], CAPTIONS[1]], [" "], []])
    assert own.present.tolist() == [True, False, False] and own.owners.tolist() == [0, 0, 1, 2]
    assert own.tokens[2] == own.tokens[3] == [TOKENIZER.cls_token_id, TOKENIZER.sep_token_id]


def predict(
    model: VisualBertTeacher, captions: list[list[str]], regions: np.ndarray, mask: np.ndarray, *, batch_size: int
) -> np.ndarray:
    own = Captions(64, tokenizer=TOKENIZER).tokens(captions)
    return predict_tokens(
        model, own.tokens, own.owners, len(captions), regions, mask, decode=torch.sigmoid, pad_id=own.pad_id,
        batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.parametrize("pooling", POOLINGS)
def test_predict_averages_captions_and_keeps_order_in_any_company(pooling: str) -> None:
    model = make(pooling)
    captions = [[CAPTIONS[2], CAPTIONS[0]], [CAPTIONS[1]], [], ["  ", CAPTIONS[0]]]
    rng = np.random.default_rng(1)
    regions = rng.normal(size=(4, REGIONS, DIM)).astype(np.float32)
    mask = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=bool)
    together = predict(model, captions, regions, mask, batch_size=2)
    assert together.shape == (4, LABELS) and together.dtype == np.float32
    # By hand: each caption by itself, through the forward pass, then the mean of the probabilities.
    with torch.inference_mode():
        for i, own in enumerate(captions):
            texts = [text for text in own if text.strip()] or [""]
            by_hand = [
                torch.sigmoid(
                    model(
                        *(torch.from_numpy(a) for a in pad([TOKENIZER(text)["input_ids"]])),
                        torch.from_numpy(regions[i : i + 1]),
                        torch.from_numpy(mask[i : i + 1]),
                    )
                )[0].numpy()
                for text in texts
            ]
            np.testing.assert_allclose(together[i], np.mean(by_hand, axis=0), atol=1e-5)
    np.testing.assert_array_equal(together, predict(model, captions, regions, mask, batch_size=2))


def test_sizes_and_their_limits() -> None:
    base = TeacherConfig.model_validate({"size": "base"})
    assert (base.hidden_size, base.layers, base.heads, base.intermediate_size) == (768, 12, 12, 3072)
    assert TeacherConfig.model_validate({"size": "base", "layers": 3}).layers == 3
    for bad in ({"size": "huge"}, {"hidden_size": 10, "heads": 4}, {"colour": 1}):
        with pytest.raises(ValidationError):
            TeacherConfig.model_validate(bad)


def test_published_base_has_the_parameters_of_the_published_checkpoint() -> None:
    # uclanlp/visualbert-vqa-coco-pre without its pre-training head: BERT-base's 109,482,240, and for the image two
    # token types and 512 positions of 768, and a projection from 2048.
    with torch.device("meta"):
        model = VisualBertTeacher(TeacherConfig.model_validate({"size": "base"}), 29)
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert backbone == 109_482_240 + (2 + 512) * 768 + 2048 * 768 + 768


# --- a BERT as the start ---------------------------------------------------------------------------------------------

BERT: dict[str, Any] = {
    "vocab_size": len(TOKENIZER), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 30, "layer_norm_eps": 0.01, "hidden_act": "relu",
    "hidden_dropout_prob": 0.2,
}  # fmt: skip
ASKED = TeacherConfig(vocab_size=len(TOKENIZER), visual_dim=DIM, max_text_length=20, pooling="mean-output")


def bert(kind: str = "BertModel", **settings: object) -> Any:
    import transformers

    torch.manual_seed(3)
    return getattr(transformers, kind)(transformers.BertConfig(**{**BERT, **settings})).eval()


def test_text_tower_reads_as_the_bert_it_started_from(tmp_path: Path) -> None:
    source = bert()
    source.save_pretrained(tmp_path)
    teacher = VisualBertTeacher.from_text(str(tmp_path), ASKED, LABELS).eval()
    assert (teacher.config.hidden_size, teacher.config.layers, teacher.config.max_positions) == (24, 2, 30)
    ids, attention, regions, mask = inputs()
    attention[1, 4:] = 0
    with torch.inference_mode():
        expected = source(ids, attention)
        own = teacher.backbone(ids, attention)
        logits = teacher(ids, attention)
        # The pooling of sentence-transformers, [CLS] and [SEP] included.
        mean = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(expected[0], attention, strict=True)])
        by_hand = teacher.head(mean)
        torch.testing.assert_close(
            own.last_hidden_state[attention.bool()], expected[0][attention.bool()], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(own.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)
        torch.testing.assert_close(logits, by_hand, atol=1e-5, rtol=0)
        # Regions count where they are, and only there.
        seen = teacher(ids, attention, regions, mask)
    assert (seen[0] - logits[0]).abs().max() > 1e-3
    torch.testing.assert_close(seen[2], logits[2], atol=1e-5, rtol=0)
    table = teacher.backbone.embeddings
    assert torch.equal(table.visual_position_embeddings.weight, source.embeddings.position_embeddings.weight)
    assert torch.equal(table.visual_token_type_embeddings.weight, source.embeddings.token_type_embeddings.weight)


@pytest.mark.parametrize("layout", ["BertForMaskedLM", "one token type", "0_Transformer"])
def test_text_tower_from_other_layouts(tmp_path: Path, layout: str) -> None:
    if layout == "BertForMaskedLM":
        model = bert("BertForMaskedLM")
        model.save_pretrained(tmp_path)
        source = model.bert
    else:
        source = bert(type_vocab_size=1 if layout == "one token type" else 2)
        folder = tmp_path / ("0_Transformer" if layout == "0_Transformer" else ".")
        source.save_pretrained(folder)
        if layout == "0_Transformer":
            (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "0_Transformer"}]')
    teacher = VisualBertTeacher.from_text(str(tmp_path), ASKED, LABELS).eval()
    ids, attention, *_ = inputs()
    with torch.inference_mode():
        expected = source(ids, attention).last_hidden_state
        torch.testing.assert_close(teacher.backbone(ids, attention).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_text_tower_that_does_not_fit(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name, settings in (("fits", {}), ("relative", {"position_embedding_type": "relative_key"})):
        bert(**settings).save_pretrained(tmp_path / name)
    config = json.loads((tmp_path / "relative" / "config.json").read_text())
    (tmp_path / "relative" / "config.json").write_text(json.dumps(config | {"position_embedding_type": "relative_key"}))
    bert().save_pretrained(tmp_path / "lacking")
    weights = load_file(tmp_path / "lacking" / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    make().backbone.save_pretrained(tmp_path / "visual")
    bert().save_pretrained(tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut off")
    for source, change, reason in (
        ("absent", {}, "no pretrained model"),
        ("relative", {}, "relative_key"),
        ("lacking", {}, r"lacks 1 weights, such as encoder\.layer\.1\.output\.dense\.weight"),
        ("visual", {}, "visual_bert, not a bert.*init"),
        ("cut", {}, "is damaged or cut off"),
        ("fits", {"vocab_size": 77}, "tokenizer has 77"),
        ("fits", {"max_text_length": 31}, "reads 30 word pieces"),
        ("fits", {"frozen_layers": 3}, "frozen_layers is 3, the model has 2 layers"),
    ):
        with pytest.raises(InputError, match=f"(?s){reason}"):
            VisualBertTeacher.from_text(str(tmp_path / source), ASKED.model_copy(update=change), LABELS)


def test_frozen_layers_stay_and_the_others_learn(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    teacher = VisualBertTeacher.from_text(str(tmp_path), ASKED.model_copy(update={"frozen_layers": 1}), LABELS)
    before = {name: value.clone() for name, value in teacher.backbone.state_dict().items()}
    ids, attention, regions, mask = inputs()
    optimiser = torch.optim.SGD([p for p in teacher.parameters() if p.requires_grad], lr=1.0)
    teacher.train()
    assert not teacher.backbone.encoder.layer[0].training and teacher.backbone.encoder.layer[1].training
    teacher(ids, attention, regions, mask).square().sum().backward()
    optimiser.step()
    changed = {name for name, value in teacher.backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith(("encoder.layer.1.", "embeddings.visual_")) for name in changed)
    assert {"encoder.layer.1.output.dense.weight", "embeddings.visual_projection.weight"} <= changed


def test_frozen_bert_still_learns_to_see(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    teacher = VisualBertTeacher.from_text(str(tmp_path), ASKED.model_copy(update={"freeze_backbone": True}), LABELS)
    ids, attention, regions, mask = inputs()
    teacher.train()
    teacher(ids, attention, regions, mask).square().sum().backward()
    with_gradient = {name for name, parameter in teacher.named_parameters() if parameter.grad is not None}
    projection = {f"backbone.embeddings.visual_projection.{kind}" for kind in ("weight", "bias")}
    assert with_gradient == {"head.weight", "head.bias", *projection}


def test_last_layers_side_by_side(tmp_path: Path) -> None:
    source = bert()
    source.save_pretrained(tmp_path)
    teacher = VisualBertTeacher.from_text(str(tmp_path), ASKED.model_copy(update={"pooled_layers": 3}), LABELS).eval()
    ids, attention, *_ = inputs()
    with torch.inference_mode():
        states = source(ids, attention, output_hidden_states=True).hidden_states
        by_hand = teacher.head(torch.cat([state.mean(1) for state in states], dim=1))
        torch.testing.assert_close(teacher(ids, attention), by_hand, atol=1e-5, rtol=0)
    for bad in ({"pooled_layers": 4}, {"pooled_layers": 2, "pooling": "cls"}):
        with pytest.raises((InputError, ValidationError), match="pooled_layers"):
            VisualBertTeacher(TeacherConfig(**{**ASKED.model_dump(), **bad}), LABELS)


def test_text_tower_from_an_object_store(tmp_path: Path, s3: str) -> None:
    source = bert()
    source.save_pretrained(tmp_path)
    for file in ("config.json", "model.safetensors"):
        storage.write_bytes(f"{s3}/bert/{file}", (tmp_path / file).read_bytes())
    tower = read_text_tower(f"{s3}/bert")
    assert all(torch.equal(tower.weights[name], value) for name, value in source.state_dict().items())
    with pytest.raises(InputError, match=r"no config\.json"):
        read_text_tower(f"{s3}/nothing")
