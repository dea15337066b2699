"""What a fusion head brings to the training loop: cached features of frozen backbones, gathered by row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.config import load_settings
from raymotion.data.embedding_layout import COMMAND
from raymotion.data.embeddings import FeatureBlock
from raymotion.errors import InputError
from raymotion.learning.losses.multilabel import MultiLabelLoss, make_loss
from raymotion.learning.resample import Resampled, resample
from raymotion.learning.vad import SCALE, vad_loss, vad_mean
from raymotion.models.fusion.network import FusionConfig, FusionHead, wants_tokens
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.train.fusion_data import FusionData
from raymotion.train.loop import Batch, Workers, set_prior
from raymotion.train.schedule import batch_rows, epoch_rows

CHUNK = 1024


@dataclass(frozen=True)
class StreamFeatures:
    """Where one stream's features are: `clean` of every sample, `views` of the training ones."""

    stream: str
    clean: FeatureBlock
    views: FeatureBlock | None

    def take(self, rows: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
        """Features float16 (n, D) or (n, T, D) of rows of the embeddings; zeros where a sample lacks the stream.

        Args:
            numbers: which cached view of each row; None takes the clean one.
        """
        block = self.clean if self.views is None or numbers is None else self.views
        positions = block.row_of[rows]
        flat = block.array.reshape(-1, *block.array.shape[2:])
        number = 0 if numbers is None or self.views is None else numbers % block.views
        taken = np.take(flat, np.maximum(positions, 0) * block.views + number, axis=0)
        taken[positions < 0] = 0
        return taken


class FusionTask:
    """A `Task` of the training loop: a fusion head on the cached features of up to three streams."""

    def __init__(self, recipe: FusionRecipe, data: FusionData) -> None:
        self.recipe, self.data = recipe, data
        self.backbones = recipe.backbones.chosen()
        try:
            config = load_settings(FusionConfig, options={**recipe.model, "dims": dict.fromkeys(self.backbones, 1)})
        except InputError as error:
            raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error
        self.uses_tokens = wants_tokens(config.fusion)
        self.streams = [self._features(stream, name) for stream, name in self.backbones.items()]
        self.mask = data.mask(list(self.backbones))
        self.criterion = make_loss(
            recipe.loss.name,
            rates=data.prior(soft=recipe.data.soft_targets),
            samples=len(data.splits["train"]),
            options=recipe.loss.options,
        )
        self.vad = config.vad

    def _features(self, stream: str, backbone: str) -> StreamFeatures:
        embeddings, level = self.data.embeddings, self.recipe.augmentation
        tokens = self.uses_tokens and any(
            key.stream == stream and key.backbone == backbone and key.tokens for key in embeddings.keys
        )
        clean = embeddings.block(stream, backbone, tokens=tokens)
        if level == "none":
            return StreamFeatures(stream, clean, None)
        views = embeddings.block(stream, backbone, level, tokens=tokens)
        rows = self.data.rows[self.data.splits["train"]]
        # A job makes views of what is in the split train when it runs; the table may have been split anew since.
        without = int(((clean.row_of[rows] >= 0) & (views.row_of[rows] < 0)).sum())
        if without:
            raise InputError(
                f"{without} of the {len(rows)} training samples have {stream} features of {backbone} and no "
                f"{level} views of them: they were not in the split train when the embeddings were made",
                path=" and ".join(self.data.folders),
                remedy=f"Make them of this table: `{COMMAND} {self.recipe.data.samples or 'SAMPLES'} --out DIR "
                f"--{stream} {backbone} --augment {level}`, or set augmentation to none.",
            )
        return StreamFeatures(stream, clean, views)

    @cached_property
    def resampled(self) -> Resampled | None:
        """Synthetic training rows, from the clean features of the training split alone; the same for every head.

        Made when training asks for them: a head that only predicts does without. Their features are not kept, but mixed
        batch by batch (`synthetic`): a search keeps what many settings and seeds gave, of the width of all streams.
        """
        settings, data = self.recipe.resampling, self.data
        if settings.method == "none":
            return None
        soft = self.recipe.data.soft_targets
        key = ("resampled", settings.model_dump_json(), tuple(self.backbones.items()), self.recipe.seed, soft)
        if key not in data.memory:
            rows = data.splits["train"]
            # Neighbours are looked for among pooled features, whatever the head reads.
            pooled = [data.embeddings.block(stream, name) for stream, name in self.backbones.items()]
            features = [StreamFeatures("", block, None).take(data.rows[rows]) for block in pooled]
            data.memory[key] = resample(
                features,
                self.mask[rows],
                (data.soft if soft else data.hard)[rows],
                settings,
                seed=self.recipe.seed,
                labels=data.vocabulary.labels,
                mix=False,
            )
        return cast(Resampled, data.memory[key])

    def synthetic(self, made: Resampled, chosen: np.ndarray) -> list[np.ndarray]:
        """Features of each stream for some synthetic rows, float32; 0 where one of the two parents lacks the stream."""
        rows = self.data.rows[self.data.splits["train"]]
        first, second = (rows[made.parents[chosen, i]] for i in (0, 1))
        result = []
        for number, own in enumerate(self.streams):
            shape = (-1, *[1] * (own.clean.array.ndim - 2))
            share, has = made.shares[chosen].reshape(shape), made.mask[chosen, number].reshape(shape)
            result.append(has * (share * own.take(first) + (1 - share) * own.take(second)))
        return result

    @property
    def samples_per_epoch(self) -> int:
        return len(self.data.splits["train"]) + (len(self.resampled.targets) if self.resampled else 0)

    def build(self) -> FusionHead:
        """The untrained head. Where its answers are logits, the first one is the class prior."""
        data, recipe = self.data, self.recipe
        dims = {own.stream: own.clean.dim for own in self.streams}
        tokens = {own.stream: own.clean.array.shape[2] for own in self.streams if own.clean.array.ndim == 4}
        config = FusionConfig.model_validate(
            {**recipe.model, "dims": dims, "tokens": tokens, "token_dims": {name: dims[name] for name in tokens}}
        )
        head = FusionHead(config, len(data.vocabulary))
        if not config.fusion.endswith("_published"):
            statistics = {own.stream: self._statistics(own) for own in self.streams}
            head.set_statistics(
                {name: mean for name, (mean, _) in statistics.items()},
                {name: std for name, (_, std) in statistics.items()},
            )
            if float(self.criterion.probabilities(torch.zeros(1, 1))) == 0.5:  # logits, not probabilities themselves
                set_prior(head.head, data.prior(soft=recipe.data.soft_targets))
            set_vad_prior(head, data.vad[data.splits["train"]])
        return head

    def _statistics(self, own: StreamFeatures) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each feature, (D,) float32, over the training samples that have the stream."""
        data = self.data
        key = ("statistics", own.stream, self.backbones[own.stream], own.clean.array.ndim)
        if key not in data.memory:
            rows = data.rows[data.splits["train"]]
            rows = rows[own.clean.row_of[rows] >= 0]
            total, squares, count = np.zeros(own.clean.dim), np.zeros(own.clean.dim), 0
            for start in range(0, len(rows), CHUNK):
                some = torch.from_numpy(own.take(rows[start : start + CHUNK])).float().reshape(-1, own.clean.dim)
                # Sums of a chunk in float32, which the features are not exact enough to miss; of all in float64.
                total += some.sum(dim=0).double().numpy()
                squares += some.square_().sum(dim=0).double().numpy()
                count += len(some)
            mean = total / max(1, count)
            std = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
            # A feature that never varies tells nothing, and would be divided by nothing.
            std[std < 1e-6] = 1.0
            data.memory[key] = (torch.from_numpy(mean).float(), torch.from_numpy(std).float())
        return cast(tuple[Tensor, Tensor], data.memory[key])

    def shape(self, model: nn.Module) -> dict[str, Any]:
        return dict(cast(FusionHead, model).config.model_dump(mode="json"))

    def restore(self, shape: Mapping[str, Any]) -> FusionHead:
        return FusionHead(FusionConfig.model_validate(shape), len(self.data.vocabulary))

    def learning_rate(self, name: str) -> float:
        return self.recipe.optimiser.lr

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return emotion_loss(self.criterion, logits, batch, vad_weight=self.recipe.vad_weight if self.vad else None)

    def feed(self, workers: Workers, *, first_epoch: int) -> FusionFeed:
        return FusionFeed(self, workers)


def emotion_loss(criterion: MultiLabelLoss, logits: Tensor, batch: Batch, *, vad_weight: float | None) -> Tensor:
    """The loss of labels, and with a weight that of the valence, arousal and dominance behind them."""
    labels = batch.answers.shape[1]
    loss = criterion(logits[:, :labels].float(), batch.answers, epoch=batch.epoch, weights=batch.weights)
    if vad_weight is not None and batch.vad is not None:
        loss = loss + vad_weight * vad_loss(logits[:, labels:].float(), batch.vad)
    return loss


def set_vad_prior(head: FusionHead, training: np.ndarray) -> None:
    """Makes the means of `training`, (n, 3) as annotated, the first answer: a few epochs do not climb there from 0."""
    if head.vad_head is not None:
        means = np.nan_to_num(vad_mean(training) / SCALE, nan=0.5)
        with torch.no_grad():
            head.vad_head.bias.copy_(torch.from_numpy(means))


class FusionFeed:
    """A `Feed` of the training loop, from memory maps: every epoch can be asked for."""

    def __init__(self, task: FusionTask, workers: Workers) -> None:
        self.task, self.workers = task, workers
        self.unreadable: dict[int, str] = {}
        self.kept: dict[int, str] = {}

    def train(self, epoch: int) -> Iterator[Batch]:
        task, workers = self.task, self.workers
        recipe, data = task.recipe, task.data
        count = len(data.sample_ids)
        made = len(task.resampled.targets) if task.resampled else 0
        train = data.splits["train"]
        pool = np.concatenate([train, count + np.arange(made)])  # synthetic rows stand behind all others
        rows = epoch_rows(pool, seed=recipe.seed, epoch=epoch, rank=workers.rank, world=workers.world)
        # One number for all streams of a person: the streams of a view are mirrored together. Drawn by place in the
        # training split: rows of other splits, which a search may leave out, change nothing.
        numbers = np.zeros(count, dtype=np.int64)
        numbers[train] = np.random.default_rng([recipe.seed, epoch, 1]).integers(0, 1 << 30, size=len(train))
        size = batch_rows(recipe, workers.world)
        answers = data.soft if recipe.data.soft_targets else data.hard
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            own = some[some < count]
            features = [stream.take(data.rows[own], numbers[own]) for stream in task.streams]
            mask, targets, vad = task.mask[own], answers[own], data.vad[own]
            if task.resampled is not None and len(own) < len(some):
                extra = some[some >= count] - count
                features = [
                    np.concatenate([a, b.astype(a.dtype)])
                    for a, b in zip(features, task.synthetic(task.resampled, extra), strict=True)
                ]
                mask = np.concatenate([mask, task.resampled.mask[extra]])
                targets = np.concatenate([targets, task.resampled.targets[extra].astype(targets.dtype)])
                vad = np.concatenate([vad, np.full((len(extra), 3), np.nan, dtype=vad.dtype)])
            yield Batch(
                self._inputs(features, mask),
                torch.from_numpy(targets).to(workers.device),
                vad=torch.from_numpy(vad).to(workers.device) if task.vad else None,
                epoch=epoch,
            )

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        task, data = self.task, self.task.data
        rows = data.splits[split][self.workers.rank :: self.workers.world]
        labels = len(data.vocabulary)
        parts = [torch.zeros(0, labels + 3 * task.vad)]
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for start in range(0, len(rows), CHUNK):
                some = rows[start : start + CHUNK]
                features = [stream.take(data.rows[some]) for stream in task.streams]
                output = model(*self._inputs(features, task.mask[some])).float()
                parts.append(torch.cat([task.criterion.probabilities(output[:, :labels]), output[:, labels:]], 1).cpu())
        model.train(was_training)
        return torch.cat(parts).numpy()

    def close(self) -> None:
        pass

    def _inputs(self, features: list[np.ndarray], mask: np.ndarray) -> tuple[list[Tensor], Tensor]:
        device = self.workers.device
        return [torch.from_numpy(own).to(device) for own in features], torch.from_numpy(mask).to(device)
