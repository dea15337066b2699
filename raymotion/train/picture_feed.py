"""What feeds that read pictures share: all epochs as one stream, training and validation one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from raymotion.errors import InputError
from raymotion.train.loop import Workers
from raymotion.train.pictures import ABSENT, UNREADABLE, Pictures, Portion, Reader
from raymotion.train.recipe import TrainRecipe
from raymotion.train.schedule import batch_rows, epoch_rows

if TYPE_CHECKING:
    from raymotion.train.data import TrainingData
    from raymotion.train.tuned_data import TunedData

# Portions in order -> portions with their pictures: threads of this process, or Ray Data.
Source = Callable[[Sequence[Portion], Reader], Iterator[tuple[Portion, Pictures]]]
# As in a batch job: a few damaged files are to be expected, a wrong folder is not.
MAY_FAIL, ALWAYS_MAY_FAIL = 0.05, 3
JUDGED_FROM = 500


class PictureFeed:
    """A `Feed` of the training loop without its batches.

    Args:
        samples: of an epoch, on all workers together.

    Attributes:
        unreadable: row -> why its picture could not be read.
        kept: row -> what is damaged in its picture, which was shown as it decodes (`data.damaged: keep`).
        reads_pictures: False: no row has one, and portions come without.
    """

    def __init__(
        self, recipe: TrainRecipe, data: TrainingData | TunedData, workers: Workers, first_epoch: int, samples: int
    ) -> None:
        self.settings, self.answers, self.workers, self.samples = recipe, data, workers, samples
        # Otherwise every epoch of a set of captions alone would look for pictures.
        self.reads_pictures = any(uri is not None for uri in data.image_uris)
        self.epoch = first_epoch
        self.validation_due = False
        self.stream: Iterator[tuple[Portion, Pictures | None]] | None = None
        self.size = batch_rows(recipe, workers.world)
        self.unreadable: dict[int, str] = {}
        self.kept: dict[int, str] = {}
        self.asked = 0
        shown = [row for split in ("train", "val") for row in data.splits[split] if self.reads_pictures]
        self.own_pictures = sum(data.image_uris[row] is not None for row in shown) // workers.world

    def read(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Pictures]]:
        """The portions with their pictures, from wherever they come."""
        raise NotImplementedError

    def training(self, epoch: int) -> Iterator[tuple[Portion, Pictures | None]]:
        """This worker's batches of the epoch."""
        self.epoch = epoch
        for portion in self._portions(epoch, "train"):
            yield portion, self._next(portion)
        self.validation_due = True

    def evaluated(self, split: str) -> Iterator[tuple[Portion, Pictures | None]]:
        """This worker's rows of a split, in order. Validation after an epoch is part of the stream."""
        portions = self._portions(self.epoch, split)
        if split == "val" and self.validation_due:
            self.validation_due = False
            for portion in portions:
                yield portion, self._next(portion)
            return
        # After the last epoch: the stream has run out, or is ahead in an epoch that never comes.
        self.close()
        yield from self._read(portions)

    def close(self) -> None:
        """Stops whatever decodes ahead."""
        if self.stream is not None:
            cast(Any, self.stream).close()
            self.stream = None

    def _portions(self, epoch: int, split: str) -> list[Portion]:
        splits, workers = self.answers.splits, self.workers
        if split == "train":
            rows = epoch_rows(
                splits["train"], seed=self.settings.seed, epoch=epoch, rank=workers.rank, world=workers.world,
                samples=self.samples,
            )  # fmt: skip
        else:
            rows = splits[split][workers.rank :: workers.world]
        return [Portion(split, epoch, rows[a : a + self.size]) for a in range(0, len(rows), self.size)]

    def _read(self, portions: Sequence[Portion]) -> Iterator[tuple[Portion, Pictures | None]]:
        if self.reads_pictures:
            yield from self.read(portions)
        else:
            yield from ((portion, None) for portion in portions)

    def _next(self, expected: Portion) -> Pictures | None:
        if self.stream is None:
            epochs = range(self.epoch, self.settings.optimiser.epochs)
            self.stream = self._read(
                [p for epoch in epochs for split in ("train", "val") for p in self._portions(epoch, split)]
            )
        portion, pictures = next(self.stream)
        assert (portion.split, portion.epoch) == (expected.split, expected.epoch), "the stream is out of step"
        assert np.array_equal(portion.rows, expected.rows), "the stream is out of step"
        if pictures is not None:
            self.asked += int((pictures.status != ABSENT).sum())
            bad = set(portion.rows[pictures.status == UNREADABLE].tolist())
            for row, reason in pictures.reasons.items():
                (self.unreadable if row in bad else self.kept)[row] = reason
            self._check_pictures()
        return pictures

    def _check_pictures(self) -> None:
        """Ends the run when too many of the pictures that this worker asked for could not be read.

        Judged from half a thousand pictures on, or all of them where there are fewer: damaged files may lie together.
        """
        if self.asked < min(JUDGED_FROM, self.own_pictures):
            return
        if len(self.unreadable) > max(ALWAYS_MAY_FAIL, MAY_FAIL * min(self.asked, self.own_pictures)):
            raise InputError(
                f"{len(self.unreadable)} of the first {min(self.asked, self.own_pictures)} pictures could not be read "
                f"(such as {next(iter(self.unreadable.values()))})",
                path=self.answers.name,
                remedy="Check the image folder.",
            )
