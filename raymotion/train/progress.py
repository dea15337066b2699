"""How far a training has come, between its epochs: told by the loop, shown on a terminal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from raymotion import storage
from raymotion.batch.progress import Progress, ProgressKind
from raymotion.errors import RaymotionError
from raymotion.learning.metrics.multilabel import short_title

STEPS = "steps.json"  # in the run's folder: workers may be other processes, on other machines
LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 15.0


def interval(folder: str) -> float:
    """Seconds between two looks at a file of `folder`: each costs a request where that is an object store."""
    return REMOTE_SECONDS if storage.is_remote(folder) else LOCAL_SECONDS


class Pace:
    """Tells where a training stands, at most once in `every` seconds.

    `tell` gets `epoch` and `epochs`, `step` and `steps` (of the epoch), `samples_per_second`, `loss` (the mean of the
    epoch so far, None if that is not a number), `left` (seconds to the end of the last epoch, should none be saved by
    stopping early) and `at` (seconds since 1970). The rate is that of the training steps from the second one on: the
    first waits for data, compilers and caches, and validation is no training.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None], *, every: float = LOCAL_SECONDS) -> None:
        self._tell, self._every = tell, every
        self._first: float | None = None  # end of the first step
        self._last = 0.0
        self._told = -every
        self._steps = self._samples = 0
        self._seconds = 0.0

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """An epoch, counted from 0, of so many steps begins."""
        self._epoch, self._epochs, self._of = epoch, epochs, steps
        self._last = time.monotonic()

    def step(self, number: int, samples: int, loss: float) -> None:
        """Step `number` of the epoch, counted from 1, has ended, over `samples` of all workers together."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        else:
            self._steps, self._samples = self._steps + 1, self._samples + samples
            self._seconds += now - self._last
        self._last = now
        if now - self._told < self._every:
            return
        self._told = now
        to_come = (self._epochs - self._epoch) * self._of - number
        self._tell(
            {
                "epoch": self._epoch + 1,
                "epochs": self._epochs,
                "step": number,
                "steps": self._of,
                "samples_per_second": self._samples / max(1e-9, self._seconds) if self._steps else None,
                "loss": loss if math.isfinite(loss) else None,
                "left": (now - self._first) / self._steps * to_come if self._steps else None,
                "at": time.time(),
            }
        )


def pace_file(run: str) -> Pace:
    """A pace that is written to the run's folder; what cannot be written is left out."""
    path = storage.join(run, STEPS)

    def tell(news: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError, RaymotionError):
            storage.write_json(path, dict(news), durable=False)

    return Pace(tell, every=interval(run))


def read_pace(run: str) -> dict[str, Any] | None:
    """What `pace_file` wrote last; None where there is nothing, or nothing that can be read."""
    with contextlib.suppress(OSError, RaymotionError):
        path = storage.join(run, STEPS)
        if storage.exists(path):
            news = storage.read_json(path)
            return news if isinstance(news, dict) and "epoch" in news else None
    return None


def at_epoch(news: Mapping[str, Any]) -> str:
    """As in `epoch 3/20`."""
    return f"epoch {news['epoch']}/{news['epochs']}"


class TrainingProgress(Progress):
    """The steps of one training; beside them the epoch, the rate and the loss."""

    def __init__(self, kind: ProgressKind) -> None:
        super().__init__(kind, total=None, done=0, title="training", unit="samples")
        self._news: Mapping[str, Any] | None = None

    def stepped(self, news: Mapping[str, Any]) -> None:
        """Takes what a `Pace` tells."""
        self._news, self._waiting = news, ""
        self.total = news["epochs"] * news["steps"]
        self.done = (news["epoch"] - 1) * news["steps"] + news["step"]
        self._show()

    def epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Prints an epoch's line."""
        figures = {name.removeprefix("val_"): value for name, value in metrics.items() if name.startswith("val_")}
        validation = ", ".join(f"{short_title(name)} {value:.4f}" for name, value in figures.items())
        self.say(
            f"epoch {metrics['epoch']:.0f}: training loss {metrics['train_loss']:.4f}, validation {validation} "
            f"(best: epoch {metrics['best_epoch']:.0f})"
        )

    def note(self) -> str:
        if self._news is None:
            return ""
        rate = self._news["samples_per_second"]
        speed = "" if rate is None else f", {rate:.1f} {self.unit}/s"
        loss = "not a number" if self._news["loss"] is None else f"{self._news['loss']:.4f}"
        return f"steps, {at_epoch(self._news)}{speed}, loss {loss}"

    def left(self) -> float | None:
        if self._news is None or self._news["left"] is None:
            return None
        return max(0.0, float(self._news["left"]) - (time.time() - self._news["at"]))
