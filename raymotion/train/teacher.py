"""What the teacher brings to the training loop: captions as tokens, regions behind a memory map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.learning.losses import bce as losses
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher, pad, predict_tokens
from raymotion.train.data import TrainingData
from raymotion.train.loop import Batch, Workers, set_prior
from raymotion.train.recipe import TeacherRecipe
from raymotion.train.schedule import batch_rows, epoch_rows


class TeacherTask:
    """A `Task` of the training loop: VisualBERT on captions and region features."""

    def __init__(self, recipe: TeacherRecipe, data: TrainingData) -> None:
        self.recipe, self.data = recipe, data
        # Of the transformer, known once it is built.
        self.layers, self.new_projection = 0, False
        self.loss_weights = losses.class_weights(
            data.prior(soft=recipe.data.soft_targets).tolist(), recipe.class_weights, samples=len(data.splits["train"])
        )

    @property
    def samples_per_epoch(self) -> int:
        return len(self.data.splits["train"])

    def build(self) -> VisualBertTeacher:
        """The untrained teacher. Its answer before the first step is the class prior."""
        data, recipe = self.data, self.recipe
        sizes: dict[str, Any] = {"vocab_size": len(data.tokenizer)}
        if data.features is not None:
            sizes["visual_dim"] = data.features.dim
        config = TeacherConfig.model_validate({"visual_dim": 1, **recipe.model, **sizes})
        labels = len(data.vocabulary)
        if recipe.init:
            model = VisualBertTeacher.from_pretrained(recipe.init, config, labels)
        elif recipe.text_init:
            model = VisualBertTeacher.from_text(recipe.text_init, config, labels)
        else:
            model = VisualBertTeacher(config, labels)
        self.layers, self.new_projection = model.config.layers, model.config.new_projection
        set_prior(model.head, data.prior(soft=recipe.data.soft_targets))
        return model

    def shape(self, model: nn.Module) -> dict[str, Any]:
        return dict(cast(VisualBertTeacher, model).config.model_dump(mode="json"))

    def restore(self, shape: Mapping[str, Any]) -> VisualBertTeacher:
        return VisualBertTeacher(TeacherConfig.model_validate(shape), len(self.data.vocabulary))

    def learning_rate(self, name: str) -> float:
        settings = self.recipe.optimiser
        if not name.startswith("backbone.") or (self.new_projection and "visual_projection" in name):
            return settings.lr  # what starts anew
        return settings.backbone_lr * settings.layer_decay ** self._depth(name)

    def _depth(self, name: str) -> int:
        """Layers above the parameter of this name."""
        if name.startswith("backbone.encoder.layer."):
            return self.layers - 1 - int(name.split(".")[3])
        return self.layers if name.startswith("backbone.embeddings.") else 0

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return losses.multilabel_bce(
            logits,
            batch.answers,
            class_weights=self.loss_weights.to(logits.device),
            label_smoothing=self.recipe.optimiser.label_smoothing,
        )

    def feed(self, workers: Workers, *, first_epoch: int) -> TeacherFeed:
        return TeacherFeed(self.recipe, self.data, workers)


class TeacherFeed:
    """A `Feed` of the training loop, from memory: every epoch can be asked for."""

    def __init__(self, recipe: TeacherRecipe, data: TrainingData, workers: Workers) -> None:
        self.recipe, self.data, self.workers = recipe, data, workers
        self.unreadable: dict[int, str] = {}  # it reads features, which another job has made of the pictures
        self.kept: dict[int, str] = {}

    def train(self, epoch: int) -> Iterator[Batch]:
        recipe, data, workers = self.recipe, self.data, self.workers
        rows = epoch_rows(data.splits["train"], seed=recipe.seed, epoch=epoch, rank=workers.rank, world=workers.world)
        rng = np.random.default_rng([recipe.seed, epoch, workers.rank])
        size = batch_rows(recipe, workers.world)
        answers = data.soft if recipe.data.soft_targets else data.hard
        if recipe.optimiser.group_by_length:
            lengths = np.array([len(data.tokens[first]) for first in data.first[rows]])
            rows = rows[length_groups(lengths, size, np.random.default_rng([recipe.seed, epoch, workers.rank, 1]))]
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            inputs = training_inputs(data, some, recipe, rng, workers.device)
            yield Batch(inputs, torch.from_numpy(answers[some]).to(workers.device))

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        rows = self.data.splits[split][self.workers.rank :: self.workers.world]
        return predict_rows(cast(VisualBertTeacher, model), self.data, rows)

    def close(self) -> None:
        pass


def length_groups(lengths: np.ndarray, size: int, rng: np.random.Generator, *, pool: int = 8) -> np.ndarray:
    """An order of n shuffled rows in which those of like length share a batch of `size`: positions (n,).

    Rows are sorted within pools of `pool` batches, and whole batches are shuffled, so that an epoch neither begins with
    the short ones nor sees the same batches again. The last batch, which may be smaller, stays the last.
    """
    pools = [
        start + np.argsort(lengths[start : start + pool * size], kind="stable")
        for start in range(0, len(lengths), pool * size)
    ]
    order = np.concatenate(pools)
    whole = len(order) // size
    shuffled = rng.permutation(whole)
    return np.concatenate((order[: whole * size].reshape(whole, size)[shuffled].ravel(), order[whole * size :]))


def training_inputs(
    data: TrainingData, rows: np.ndarray, recipe: TeacherRecipe, rng: np.random.Generator, device: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """One caption of each sample, drawn anew in every epoch, and its regions; now and then one of them is withheld."""
    tokenizer, settings = data.tokenizer, recipe.data
    chosen = [data.tokens[rng.integers(data.first[row], data.first[row + 1])] for row in rows]
    regions, mask = data.regions_of(rows)
    if regions is not None and mask is not None:
        draw = rng.random(len(rows))
        both = mask.any(axis=1) & data.has_caption[rows]
        mask = mask & ~(both & (draw < settings.region_dropout))[:, None]
        blank = np.array([tokenizer.cls_token_id, tokenizer.sep_token_id], dtype=np.int32)
        withheld = both & (draw >= 1 - settings.caption_dropout)
        chosen = [blank if hide else tokens for tokens, hide in zip(chosen, withheld, strict=True)]
    ids, attention = pad(cast(list[list[int]], chosen), pad_id=tokenizer.pad_token_id)
    if recipe.optimiser.word_dropout:
        word = (attention == 1) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
        ids[word & (rng.random(ids.shape) < recipe.optimiser.word_dropout)] = tokenizer.unk_token_id
    return (
        torch.from_numpy(ids).to(device),
        torch.from_numpy(attention).to(device),
        None if regions is None else torch.from_numpy(regions).to(device),
        None if mask is None else torch.from_numpy(mask).to(device),
    )


def predict_rows(model: VisualBertTeacher, data: TrainingData, rows: np.ndarray, *, chunk: int = 256) -> np.ndarray:
    """Probabilities (len(rows), L) of samples by position; the regions of `chunk` samples are in memory at a time."""
    parts = [np.zeros((0, len(data.vocabulary)), dtype=np.float32)]
    for start in range(0, len(rows), chunk):
        some = rows[start : start + chunk]
        tokens, owners = data.captions_of(some)
        regions, mask = data.regions_of(some)
        parts.append(
            predict_tokens(
                model,
                cast(list[list[int]], tokens),
                owners,
                len(some),
                regions,
                mask,
                pad_id=data.tokenizer.pad_token_id,
            )
        )
    return np.concatenate(parts)
