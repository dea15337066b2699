"""Batches of one worker: rows of the training set with their pictures, if any, and targets.

Each epoch draws its randomness from (seed, epoch, rank), so a resumed run sees the same batches as an uninterrupted
one. The pictures of all epochs form one stream, with training and validation in turn, so that no epoch waits for its
first batch to be decoded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.models.inputs.base import Draft, Evidence
from raymotion.models.inputs.reading import ABSENT, UNREADABLE, Pictures
from raymotion.models.outputs.base import Output, Targets
from raymotion.train.pictures import Portion, cached_pictures
from raymotion.train.schedule import batch_rows, epoch_rows
from raymotion.train.task import Batch, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raymotion.train.workers import Workers

# Limits as in a batch job: a few damaged files are tolerated, a wrong folder is not.
MAY_FAIL, ALWAYS_MAY_FAIL = 0.05, 3
JUDGED_FROM = 500


class BatchLoader:
    """The batches of one worker.

    Attributes:
        unreadable: row -> reason why its picture could not be read.
        kept: row -> damage in its picture, which was used as decoded (`data.damaged: keep`).
    """

    def __init__(self, task: Task, workers: Workers, *, first_epoch: int) -> None:
        self.task, self.workers, self.epoch = task, workers, first_epoch
        self.unreadable: dict[int, str] = {}
        self.kept: dict[int, str] = {}
        self.size = batch_rows(task.recipe, workers.world)
        self._source = task.streamed
        self._stream: Iterator[tuple[Portion, Pictures | None]] | None = None
        self._validation_due = False
        self._asked = 0
        splits = task.data.splits
        shown = np.concatenate([splits["train"], splits["val"]])
        self._own_pictures = 0 if self._source is None else int(self._source.present[shown].sum()) // workers.world

    def train(self, epoch: int) -> Iterator[Batch]:
        """Yields this worker's batches of the epoch; every worker has the same number."""
        task = self.task
        rng = np.random.default_rng([task.recipe.seed, epoch, self.workers.rank])
        for own in task.inputs.values():
            own.begin_epoch(task.recipe, epoch, task.data.splits["train"])
        self.epoch = epoch
        for portion in self._portions(epoch, "train"):
            yield self._batch(portion.rows, self._next(portion), rng, epoch)
        self._validation_due = True

    def frozen(self, rows: np.ndarray) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yields the network's arguments for these rows in order, with nothing augmented or hidden, and which of them
        have an input that could be read, bool (n,).

        Of several captions of a sample, one is drawn.
        """
        task, device = self.task, self.workers.device
        rng = np.random.default_rng([task.recipe.seed, self.workers.rank])
        size = self._frozen_size
        portions = [Portion("statistics", 0, rows[start : start + size]) for start in range(0, len(rows), size)]
        for portion, pictures in self._read(portions):
            self._record(portion, pictures)
            arguments: dict[str, Any] = {}
            there = np.zeros(len(portion.rows), dtype=bool)
            for own in task.inputs.values():
                draft = own.draft(portion.rows, rng, pictures if own.streamed else None)
                there |= draft.present
                arguments.update(draft.tensors(device))
            yield arguments, there

    def frozen_batches(self, rows: np.ndarray) -> int:
        """Returns how many times `frozen` yields on one of the workers that share these rows."""
        return math.ceil(len(rows) / self.workers.world / self._frozen_size)

    @property
    def _frozen_size(self) -> int:
        return self.size if self._source is not None else self.task.kind.chunk

    def predict(self, network: nn.Module, split: str) -> dict[str, np.ndarray]:
        """Returns decoded values (n, width) by output for this worker's rows of the split: `rows[rank::world]`."""
        return self.predict_each([lambda: network], split)[0]

    def predict_each(self, networks: Sequence[Callable[[], nn.Module]], split: str) -> list[dict[str, np.ndarray]]:
        """Returns the values of `predict` for each network; all predict a batch before the next one is read.

        Args:
            networks: return the networks, so that one may carry several weights in turn.
        """
        task = self.task
        parts: list[dict[str, list[np.ndarray]]] = [
            {own.name: [np.zeros((0, own.width), dtype=np.float32)] for own in task.outputs} for _ in networks
        ]
        half = task.kind.half and self.workers.device.startswith("cuda")
        for portion, pictures in self._evaluated(split):
            evidence = {name: own.evidence(portion.rows, pictures) for name, own in task.inputs.items()}
            precision = "bfloat16" if half else "float32"
            for network, found in zip(networks, parts, strict=True):
                for name, values in task.kind.predict(network(), evidence, task.outputs, precision=precision).items():
                    found[name].append(values)
        return [{name: np.concatenate(own) for name, own in found.items()} for found in parts]

    def evidence(self, parts: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, Evidence]]]:
        """Yields each of these lists of rows with the data of its inputs, as validation sees them; after training."""
        for portion, pictures in self._read([Portion("statistics", 0, rows) for rows in parts]):
            yield portion.rows, {name: own.evidence(portion.rows, pictures) for name, own in self.task.inputs.items()}

    def close(self) -> None:
        """Stops decoding ahead."""
        if self._stream is not None:
            cast(Any, self._stream).close()
            self._stream = None

    def _batch(self, rows: np.ndarray, pictures: Pictures | None, rng: np.random.Generator, epoch: int) -> Batch:
        import torch

        task, device = self.task, self.workers.device
        count = len(task.data.sample_ids)
        extra = rows[rows >= count] - count
        own = rows if not len(extra) else rows[rows < count]
        drafts: dict[str, Draft] = {
            name: prepared.draft(own, rng, pictures if prepared.streamed else None)
            for name, prepared in task.inputs.items()
        }
        self._withhold(drafts, rng)
        weights = [draft.weights for draft in drafts.values() if draft.weights is not None]
        # A sample of which no input could be read would teach the label to nothing, that is, to every sample.
        there = np.stack([draft.present for draft in drafts.values()]).any(axis=0)
        if not weights and not there.all():
            weights = [np.concatenate([there, np.ones(len(extra), dtype=bool)]).astype(np.float32)]
        if len(extra):
            assert task.extra is not None
            drafts = {name: task.extra.add(name, draft, extra) for name, draft in drafts.items()}
        inputs: dict[str, Any] = {}
        for draft in drafts.values():
            inputs.update(draft.tensors(device))
        return Batch(
            inputs,
            {output.name: self._targets(output, own, extra) for output in task.outputs},
            len(own) + len(extra),
            torch.from_numpy(weights[0]).to(device) if weights else None,
            epoch,
        )

    def _targets(self, output: Output, own: np.ndarray, extra: np.ndarray) -> dict[str, Tensor]:
        targets = self.task.data.targets_of(output)
        if not len(extra):
            return output.batch(targets, own, self.workers.device)
        assert self.task.extra is not None
        made, some = self.task.extra.targets(output, extra), targets.take(own)
        arrays = {
            name: np.concatenate([values, made[name].astype(values.dtype)]) for name, values in some.arrays.items()
        }
        known = np.concatenate([some.known, np.ones(len(extra), dtype=bool)])
        return output.batch(Targets(arrays, known), np.arange(len(known)), self.workers.device)

    def _withhold(self, drafts: dict[str, Draft], rng: np.random.Generator) -> None:
        """Randomly hides one input of samples that have several, so that the model learns to do without it."""
        dropout = self.task.recipe.data.dropout()
        names = [name for name in dropout if name in drafts and drafts[name].shown]
        if len(names) < 2:
            return
        # One draw per sample, so that at most one input is hidden. The last input takes the upper end.
        *others, last = names
        present = np.stack([drafts[name].present for name in names])
        draw = rng.random(present.shape[1])
        several = present.sum(axis=0) > 1
        low = 0.0
        for name in others:
            drafts[name].hide(several & (draw >= low) & (draw < low + dropout[name]))
            low += dropout[name]
        drafts[last].hide(several & (draw >= 1 - dropout[last]))

    def _portions(self, epoch: int, split: str) -> list[Portion]:
        task, workers, recipe = self.task, self.workers, self.task.recipe
        rows, size = task.data.splits[split], self.size
        if split == "train":
            made = task.extra.count if task.extra else 0
            if made:  # synthetic rows are numbered after all others
                rows = np.concatenate([rows, len(task.data.sample_ids) + np.arange(made)])
            rows = epoch_rows(
                rows, seed=recipe.seed, epoch=epoch, rank=workers.rank, world=workers.world,
                samples=task.samples_per_epoch,
            )  # fmt: skip
            for own in task.inputs.values():
                rows = own.arrange(rows, size, recipe, epoch, workers.rank)
        else:
            rows = rows[workers.rank :: workers.world]
            if not any(own.streamed for own in task.inputs.values()):
                size = task.kind.chunk
        return [Portion(split, epoch, rows[start : start + size]) for start in range(0, len(rows), size)]

    def _evaluated(self, split: str) -> Iterator[tuple[Portion, Pictures | None]]:
        """Yields this worker's rows of a split, in order. Validation after an epoch is part of the stream."""
        portions = self._portions(self.epoch, split)
        if split == "val" and self._validation_due:
            self._validation_due = False
            for portion in portions:
                yield portion, self._next(portion)
            return
        # After the last epoch the stream is exhausted, or has read ahead into an epoch that will not run.
        self.close()
        for portion, pictures in self._read(portions):
            if split == "val":  # after a probe, which reads the training split alone
                self._record(portion, pictures)
            yield portion, pictures

    def _read(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Pictures | None]]:
        task = self.task
        if self._source is None:
            yield from ((portion, None) for portion in portions)
            return
        reader: Any = task.reader()
        if getattr(task.recipe.data, "cache_images", False):
            cache = cached_pictures(
                cast(Any, task.recipe.data), self._source.image_uris, reader.size, threads=task.threads
            )
            reader = replace(reader, cache=cache)
        yield from task.source(portions, reader)

    def _next(self, expected: Portion) -> Pictures | None:
        if self._source is None:
            return None
        if self._stream is None:
            epochs = range(self.epoch, self.task.recipe.optimiser.epochs)
            self._stream = self._read(
                [p for epoch in epochs for split in ("train", "val") for p in self._portions(epoch, split)]
            )
        portion, pictures = next(self._stream)
        assert (portion.split, portion.epoch) == (expected.split, expected.epoch), "the stream is out of step"
        assert np.array_equal(portion.rows, expected.rows), "the stream is out of step"
        self._record(portion, pictures)
        return pictures

    def _record(self, portion: Portion, pictures: Pictures | None) -> None:
        if pictures is None:
            return
        self._asked += int((pictures.status != ABSENT).sum())
        bad = set(portion.rows[pictures.status == UNREADABLE].tolist())
        for row, reason in pictures.reasons.items():
            (self.unreadable if row in bad else self.kept)[row] = reason
        self._check_pictures()

    def _check_pictures(self) -> None:
        """Raises an `InputError` if too many of this worker's pictures could not be read.

        Checks only after `JUDGED_FROM` pictures, or all if there are fewer, because damaged files may be adjacent.
        """
        if self._asked < min(JUDGED_FROM, self._own_pictures):
            return
        asked = min(self._asked, self._own_pictures)
        if len(self.unreadable) > max(ALWAYS_MAY_FAIL, MAY_FAIL * asked):
            raise InputError(
                f"{len(self.unreadable)} of the first {asked} pictures could not be read "
                f"(such as {next(iter(self.unreadable.values()))})",
                path=self.task.data.name,
                remedy="Check the image folder.",
            )
