"""Progress within an epoch: reported by the training loop, shown on a terminal."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from raymotion import storage
from raymotion.batch.progress import Progress, ProgressKind, duration
from raymotion.errors import RaymotionError
from raymotion.learning.metrics.multilabel import short_title

STEPS = "steps.json"  # in the run's folder: workers may be other processes, on other machines
LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 15.0


def interval(folder: str) -> float:
    """Returns the polling interval of files in `folder` in seconds; longer for object stores, where polls cost more."""
    return REMOTE_SECONDS if storage.is_remote(folder) else LOCAL_SECONDS


class Pace:
    """Reports the progress of a training run, at most once every `every` seconds, and at the end of an epoch's steps.

    `tell` receives `epoch` and `epochs`, `step` and `steps` (of the epoch; a step is one batch), `samples_per_second`,
    `loss` (mean of the epoch so far, None if not finite; left out while a probe computes features), `epoch_left`
    (seconds to the end of the epoch's steps), `left` (seconds to the end of the last epoch, without early stopping) and
    `at` (seconds since 1970). The rate and `epoch_left` exclude validation and the first step, which waits for data,
    compilers and caches.
    """

    def __init__(self, tell: Callable[[Mapping[str, Any]], None], *, every: float = LOCAL_SECONDS) -> None:
        self._tell, self._every = tell, every
        self._first: float | None = None  # end of the first step
        self._last = 0.0
        self._told = -every
        self._of = 0
        self._steps = self._samples = 0
        self._seconds = 0.0

    def begin(self, epoch: int, epochs: int, steps: int) -> None:
        """Starts an epoch (counted from 0) of `steps` steps; one of another length than the last has its own rate."""
        if self._first is not None and steps != self._of:
            self._first, self._steps, self._samples, self._seconds = None, 0, 0, 0.0
        self._epoch, self._epochs, self._of = epoch, epochs, steps
        self._last = time.monotonic()

    def step(self, number: int, samples: int, loss: float | None) -> None:
        """Records the end of step `number` (counted from 1), with `samples` summed over all workers.

        Args:
            loss: None where nothing is learned yet.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now
        else:
            self._steps, self._samples = self._steps + 1, self._samples + samples
            self._seconds += now - self._last
        self._last = now
        if now - self._told < self._every and number < self._of:
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
                **({} if loss is None else {"loss": loss if math.isfinite(loss) else None}),
                "epoch_left": self._seconds / self._steps * (self._of - number) if self._steps else None,
                "left": (now - self._first) / self._steps * to_come if self._steps else None,
                "at": time.time(),
            }
        )


def pace_file(run: str) -> Pace:
    """Returns a `Pace` that writes to the run's folder and ignores write failures."""
    path = storage.join(run, STEPS)

    def tell(news: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError, RaymotionError):
            storage.write_json(path, dict(news), durable=False)

    return Pace(tell, every=interval(run))


def read_pace(run: str) -> dict[str, Any] | None:
    """Returns the last report of `pace_file`; None if there is none or it cannot be read."""
    with contextlib.suppress(OSError, RaymotionError):
        path = storage.join(run, STEPS)
        if storage.exists(path):
            news = storage.read_json(path)
            return news if isinstance(news, dict) and "epoch" in news else None
    return None


def at_epoch(news: Mapping[str, Any]) -> str:
    """Formats the epoch, as in `epoch 3/20`."""
    return f"epoch {news['epoch']}/{news['epochs']}"


class TrainingProgress(Progress):
    """Shows the batches of the current epoch of one training run, with rate, loss and the time left."""

    def __init__(self, kind: ProgressKind) -> None:
        super().__init__(kind, total=None, done=0, title="training", unit="samples")
        self._news: Mapping[str, Any] | None = None
        self._validated = 0

    def stepped(self, news: Mapping[str, Any]) -> None:
        """Updates the display from a report of `Pace`."""
        self._news, self._waiting = news, ""
        self.title, self.done, self.total = f"training, {at_epoch(news)}", news["step"], news["steps"]
        self._show()

    def epoch_ended(self, metrics: Mapping[str, Any]) -> None:
        """Prints the metrics of an epoch on one line."""
        self._validated = int(metrics["epoch"])
        figures = {name.removeprefix("val_"): value for name, value in metrics.items() if name.startswith("val_")}
        validation = ", ".join(f"{short_title(name)} {value:.4f}" for name, value in figures.items())
        share = metrics.get("interpolate")
        self.say(
            f"epoch {metrics['epoch']:.0f}: training loss {metrics['train_loss']:.4f}, validation {validation}"
            f"{'' if share is None else f', interpolate {share:g}'} (best: epoch {metrics['best_epoch']:.0f})"
        )

    def warn(self, text: str) -> None:
        """Prints a warning, also where no progress is shown."""
        if self.kind == "none":
            print(f"warning: {text}", file=sys.stderr, flush=True)
        else:
            self.say(f"warning: {text}")

    def note(self) -> str:
        if self._news is None:
            return ""
        rate = self._news["samples_per_second"]
        speed = "" if rate is None else f", {rate:.1f} {self.unit}/s"
        loss = ""
        if "loss" in self._news:
            loss = ", loss not a number" if self._news["loss"] is None else f", loss {self._news['loss']:.4f}"
        validating = self.done == self.total and self._news["epoch"] > self._validated
        return f"batches{speed}{loss}" + (", validating" if validating else "")

    def left(self) -> float | None:
        return self._left("epoch_left")

    def _left(self, name: str) -> float | None:
        if self._news is None or self._news.get(name) is None:
            return None
        return max(0.0, float(self._news[name]) - (time.time() - self._news["at"]))

    def _status(self) -> str:
        more = self._news is not None and self._news["epoch"] < self._news["epochs"]
        whole = self._left("left") if more else None
        return super()._status() + (f" ({duration(whole)} for all epochs)" if whole else "")
