"""What the student brings to the training loop: captions as tokens, pictures as a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raymotion.learning.losses import bce as losses
from raymotion.learning.losses.distillation import distillation_loss
from raymotion.models.student.network import Student, StudentConfig, predict_tokens
from raymotion.models.student.start import initialise, transferred
from raymotion.models.visualbert.network import pad
from raymotion.train.data import TrainingData
from raymotion.train.loop import Batch, Workers, set_prior
from raymotion.train.picture_feed import PictureFeed, Source
from raymotion.train.pictures import READ, PictureReader, Pictures, Portion, cached_pictures, read_here
from raymotion.train.recipe import StudentRecipe


class StudentTask:
    """A `Task` of the training loop: picture and caption, human labels or a teacher's.

    Args:
        source: where pictures come from; None: decoded by `threads` threads of this process.
    """

    def __init__(
        self, recipe: StudentRecipe, data: TrainingData, *, source: Source | None = None, threads: int = 1
    ) -> None:
        self.recipe, self.data = recipe, data
        self.source = source or (lambda portions, reader: read_here(portions, data.image_uris, reader, threads=threads))
        self.threads = threads
        self.image_size = 0  # this and the next are known when the model is built
        self.transferred: set[str] = set()
        self.loss_weights = losses.class_weights(
            data.prior(soft=recipe.data.soft_targets).tolist(), recipe.class_weights, samples=len(data.splits["train"])
        )

    @property
    def samples_per_epoch(self) -> int:
        own = len(self.data.splits["train"])
        return own if self.recipe.data.epoch_samples is None else min(own, self.recipe.data.epoch_samples)

    def build(self) -> Student:
        """The untrained student. Its answer before the first step is the class prior."""
        recipe, data = self.recipe, self.data
        if recipe.transfer is None:
            config = StudentConfig.model_validate({**recipe.model, "vocab_size": len(data.tokenizer)})
            model = initialise(config, len(data.vocabulary), image_init=recipe.image_init, text_init=recipe.text_init)
        else:
            start = recipe.transfer
            model = transferred(start.source, start.depth, len(data.vocabulary), freeze=start.freeze)
            self.transferred = {name for block in model.blocks()[: start.depth] for name in block}
        set_prior(model.head, data.prior(soft=recipe.data.soft_targets))
        self.image_size = model.image_size
        return model

    def shape(self, model: nn.Module) -> dict[str, Any]:
        return dict(cast(Student, model).config.model_dump(mode="json"))

    def restore(self, shape: Mapping[str, Any]) -> Student:
        return Student(StudentConfig.model_validate(shape), len(self.data.vocabulary))

    def learning_rate(self, name: str) -> float:
        """The rate of parts that were trained elsewhere is `backbone_lr`, of those that start from nothing `lr`."""
        recipe, settings = self.recipe, self.recipe.optimiser
        # Of a BERT a GRU takes the word embeddings alone.
        text = "text.embedding." if recipe.model.get("text", "gru") == "gru" else "text."
        trained = (
            name in self.transferred
            or (recipe.image_init is not None and name.startswith("image."))
            or (recipe.text_init is not None and name.startswith(text))
        )
        return settings.backbone_lr if trained else settings.lr

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        distillation, smoothing = self.recipe.distillation, self.recipe.optimiser.label_smoothing
        weights = self.loss_weights.to(logits.device)
        if distillation is None:
            return losses.multilabel_bce(logits, batch.answers, class_weights=weights, label_smoothing=smoothing)
        soft = (distillation_loss(logits, batch.answers, temperature=distillation.temperature) * weights).mean()
        if distillation.weight == 1.0:
            return soft
        assert batch.hard is not None
        hard = losses.multilabel_bce(logits, batch.hard, class_weights=weights, label_smoothing=smoothing)
        return distillation.weight * soft + (1 - distillation.weight) * hard

    def cache(self) -> str | None:
        """File of all pictures, decoded, where the recipe asks for one."""
        if not self.recipe.data.cache_images:
            return None
        return cached_pictures(self.recipe, self.data.image_uris, self.image_size, threads=self.threads)

    def feed(self, workers: Workers, *, first_epoch: int) -> StudentFeed:
        return StudentFeed(self, workers, first_epoch)


class StudentFeed(PictureFeed):
    """A `Feed` of the training loop: captions from memory, pictures from the stream."""

    def __init__(self, task: StudentTask, workers: Workers, first_epoch: int) -> None:
        super().__init__(task.recipe, task.data, workers, first_epoch, task.samples_per_epoch)
        self.task, self.recipe, self.data = task, task.recipe, task.data

    def train(self, epoch: int) -> Iterator[Batch]:
        recipe, data = self.recipe, self.data
        rng = np.random.default_rng([recipe.seed, epoch, self.workers.rank])
        answers = data.soft if recipe.data.soft_targets else data.hard
        for portion, pictures in self.training(epoch):
            yield self._batch(portion.rows, pictures, answers, rng)

    def predict(self, model: nn.Module, split: str) -> np.ndarray:
        parts = [np.zeros((0, len(self.data.vocabulary)), dtype=np.float32)]
        student = cast(Student, model)
        for portion, pictures in self.evaluated(split):
            tokens, owners = self.data.captions_of(portion.rows)
            pixels, mask = self._present(pictures)
            parts.append(
                predict_tokens(
                    student, cast(list[list[int]], tokens), owners, len(portion.rows), pixels, mask,
                    pad_id=self.data.tokenizer.pad_token_id,
                )
            )  # fmt: skip
        return np.concatenate(parts)

    def read(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Pictures]]:
        settings = self.recipe.data
        reader = PictureReader(
            self.task.image_size, settings.augmentation, settings.smallest_crop, self.recipe.seed, self.task.cache(),
            settings.damaged,
        )  # fmt: skip
        yield from self.task.source(portions, reader)

    def _present(self, pictures: Pictures | None) -> tuple[np.ndarray | None, np.ndarray | None]:
        if pictures is None:
            return None, None
        return pictures.pixels, pictures.status == READ

    def _batch(
        self, rows: np.ndarray, pictures: Pictures | None, answers: np.ndarray, rng: np.random.Generator
    ) -> Batch:
        """One caption of each sample, drawn anew in every epoch, and its picture; now and then one is withheld."""
        data, settings, device = self.data, self.recipe.data, self.workers.device
        tokenizer = data.tokenizer
        chosen = [data.tokens[rng.integers(data.first[row], data.first[row + 1])] for row in rows]
        pixels, mask = self._present(pictures)
        if mask is not None:
            draw = rng.random(len(rows))
            both = mask & data.has_caption[rows]
            mask = mask & ~(both & (draw < settings.image_dropout))
            blank = np.array([tokenizer.cls_token_id, tokenizer.sep_token_id], dtype=np.int32)
            withheld = both & (draw >= 1 - settings.caption_dropout)
            chosen = [blank if hide else tokens for tokens, hide in zip(chosen, withheld, strict=True)]
        ids, attention = pad(cast(list[list[int]], chosen), pad_id=tokenizer.pad_token_id)
        if self.recipe.optimiser.word_dropout:
            word = (attention == 1) & (ids != tokenizer.cls_token_id) & (ids != tokenizer.sep_token_id)
            ids[word & (rng.random(ids.shape) < self.recipe.optimiser.word_dropout)] = tokenizer.unk_token_id
        return Batch(
            (
                torch.from_numpy(ids).to(device),
                torch.from_numpy(attention).to(device),
                # A copy: Ray's blocks are read-only, and torch warns of tensors on them.
                None if pixels is None else torch.from_numpy(np.array(pixels)).to(device),
                None if mask is None else torch.from_numpy(mask).to(device),
            ),
            torch.from_numpy(answers[rows]).to(device),
            hard=torch.from_numpy(data.hard[rows]).to(device),
        )
