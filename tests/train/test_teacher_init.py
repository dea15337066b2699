"""Pretrained starts of the teacher, from a folder to a checkpoint: a BERT for its text, and the published system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.models.inputs.captions import length_groups
from raymotion.models.text.tokenizer import load_tokenizer, tokenizer_json, train_tokenizer
from raymotion.models.visualbert.recipe import TeacherRecipe
from raymotion.train.fit import fit
from raymotion.train.prepare import prepare_data
from raymotion.train.recipe import load_recipe
from raymotion.train.schedule import schedule
from raymotion.train.task import Task
from raymotion.vocabulary import Vocabulary

LABELS = Vocabulary("mood-2", ("happy", "sad"))
CAPTIONS = {"happy": "a sunny party at the lake", "sad": "a grey funeral in the rain"}
TOKENIZER = train_tokenizer(CAPTIONS.values(), size=120, min_frequency=1)
SIZES = {"vocab_size": len(TOKENIZER), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 24, "max_position_embeddings": 40}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("samples") / "s.parquet"
    rows = [
        {"sample_id": f"s:{i}", "group_id": f"s:{i}", "captions": [CAPTIONS[mood]], "labels": [mood], "source": "test",
         "split": ("train", "train", "train", "val", "test")[i % 5]}
        for i, mood in enumerate(np.random.default_rng(0).choice(LABELS.labels, size=80))
    ]  # fmt: skip
    write_samples(path, table_from_rows(rows, LABELS))
    return str(path)


def save(folder: Path, kind: str, **settings: Any) -> str:
    """A checkpoint as transformers writes it, with its tokenizer."""
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, kind.replace("Model", "Config"))(**SIZES, **settings)
    getattr(transformers, kind)(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json(TOKENIZER))
    return str(folder)


def test_a_bert_becomes_a_teacher_that_predicts(samples: str, tmp_path: Path, said: Callable[..., np.ndarray]) -> None:
    text = save(tmp_path / "bert", "BertModel")
    recipe = TeacherRecipe.model_validate(
        {
            "data": {"samples": samples}, "text_init": text, "workers": 0, "use_gpu": False,
            "model": {"pooling": "mean-output", "pooled_layers": 2, "frozen_layers": 1, "max_text_length": 20},
            "optimiser": {"lr": 0.05, "backbone_lr": 2e-3, "batch_size": 8, "epochs": 8, "group_by_length": True,
                          "layer_decay": 0.5},
        }
    )  # fmt: skip
    result = fit(recipe, tmp_path / "out")
    kept = (tmp_path / "out/tokenizer.json").read_text()
    assert kept == tokenizer_json(load_tokenizer(text))  # that of the checkpoint's own folder
    probabilities = said(tmp_path / "out", [[CAPTIONS["happy"]], [CAPTIONS["sad"]]])
    assert probabilities[0, 0] > 0.8 and probabilities[1, 1] > 0.8
    validation = result.info.validation
    assert validation is not None and validation["metrics"]["macro_ap"]["value"] == pytest.approx(1.0)
    # What is frozen is the source's to the last bit, and the rest learned.
    source, own = load_file(Path(text, "model.safetensors")), load_file(tmp_path / "out" / "model.safetensors")
    same = {name for name, value in source.items() if torch.equal(value, own[f"backbone.{name}"])}
    assert {name for name in source if "layer.0." in name or name.endswith("word_embeddings.weight")} <= same
    assert not any("layer.1." in name and name.endswith("dense.weight") for name in same)


def test_rates_fall_from_the_head_down(samples: str, tmp_path: Path) -> None:
    recipe = TeacherRecipe.model_validate(
        {"data": {"samples": samples}, "text_init": save(tmp_path, "BertModel"), "model": {"max_text_length": 20},
         "optimiser": {"lr": 0.5, "backbone_lr": 0.1, "layer_decay": 0.5}}
    )  # fmt: skip
    task = Task(recipe, prepare_data(recipe))
    network = task.build()
    layer, embeddings = "backbone.encoder.layer.{}.output.dense.weight", "backbone.embeddings.{}.weight"
    for name, rate in (
        ("head.weight", 0.5), (embeddings.format("visual_projection"), 0.5), ("backbone.pooler.dense.weight", 0.1),
        (layer.format(1), 0.1), (layer.format(0), 0.05), (embeddings.format("word_embeddings"), 0.025),
    ):  # fmt: skip
        assert task.learning_rate(network, name) == pytest.approx(rate)


def test_the_published_recipe_trains_one_linear_layer_and_takes_the_last_epoch(samples: str, tmp_path: Path) -> None:
    init = save(tmp_path / "vb", "VisualBertModel", visual_embedding_dim=1)
    recipe = load_recipe(
        "teacher-visualbert-published",
        options={"data": {"samples": samples}, "init": init, "tokenizer": {"source": init}, "workers": 0, "seed": 3},
        assignments=("optimiser.epochs=7", "use_gpu=false"),
    )
    settings = recipe.optimiser
    # systems.md 1.3: Adam at 1e-2, batches of 64, captions of 32 pieces, nothing else.
    assert (settings.kind, settings.lr, settings.batch_size, settings.schedule) == ("adam", 1e-2, 64, "constant")
    assert recipe.model["max_text_length"] == 32 and recipe.model["dropout"] == 0
    result = fit(recipe, tmp_path / "out")
    assert result.info.training["best_epoch"] == len(result.info.training["history"]) == 7
    source, own = load_file(Path(init, "model.safetensors")), load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(value, own[f"backbone.{name}"]) for name, value in source.items())
    # One full batch of 48 rows an epoch: Adam's first steps are of the size of the rate, so the bias moved by about 7.
    assert set(own) - {f"backbone.{name}" for name in source} == {"head.weight", "head.bias"}
    prior = torch.logit(torch.tensor(result.info.prior))
    assert 0 < (own["head.bias"] - prior).abs().max() <= 7 * 1e-2 + 1e-4


def test_a_tokenizer_is_needed_that_fits(samples: str, tmp_path: Path) -> None:
    text = save(tmp_path / "bert", "BertModel")
    Path(text, "tokenizer.json").unlink()
    recipe = TeacherRecipe.model_validate(
        {"data": {"samples": samples}, "text_init": text, "model": {"max_text_length": 20}, "workers": 0}
    )
    with pytest.raises(InputError, match=r"tokenizer\.source"):
        fit(recipe, tmp_path / "out")


def test_constant_schedule_by_hand() -> None:
    # Ten steps, two of warm-up: 1/3, 2/3, then all of the rate.
    factors = [schedule(step, 10, 0.2, "constant") for step in range(10)]
    assert factors == pytest.approx([1 / 3, 2 / 3, *[1.0] * 8])
    assert {schedule(step, 10, 0.0, "constant") for step in range(10)} == {1.0}


@given(st.lists(st.integers(2, 64), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 5))
def test_length_groups_are_a_permutation_of_like_lengths(lengths: list[int], size: int, seed: int) -> None:
    values = np.array(lengths)
    order = length_groups(values, size, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(values)))

    def padded(rows: np.ndarray) -> int:
        return sum(len(rows[a : a + size]) * int(values[rows[a : a + size]].max()) for a in range(0, len(rows), size))

    # Sorted within pools of whole batches: never more padding than as they came. (A smaller last batch may cost some.)
    whole = values[: len(values) // size * size]
    if len(whole):
        order = length_groups(whole, size, np.random.default_rng(seed))
        assert padded(order) <= padded(np.arange(len(whole)))
