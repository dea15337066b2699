"""What a study says on a terminal: how far a stage is, what it ended with, what it was all worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raymotion.batch.progress import Progress, ProgressKind
from raymotion.study.record import COMPLETE, FAILED, STOPPED, TrialRecord

MOST_TIES = 4


class StageProgress(Progress):
    """Counts the configurations of a stage on standard error; beside them those in training, and the best so far."""

    def __init__(self, kind: ProgressKind, *, title: str, total: int, done: Sequence[TrialRecord], epochs: int) -> None:
        super().__init__(kind, total=total, done=len(done), title=title, unit="configurations")
        self.epochs = epochs
        self.training: dict[str, int] = {}
        self.best = max((record.mean for record in done if record.status == COMPLETE), default=0.0)

    def note(self) -> str:
        epochs = list(self.training.values())
        span = "" if not epochs else f"{min(epochs)}" if min(epochs) == max(epochs) else f"{min(epochs)}-{max(epochs)}"
        under_way = f"{len(epochs)} in training (epoch {span} of {self.epochs}), " if epochs else ""
        return f"{under_way}best val mAP {self.best:.4f}"

    def epoch_ended(self, key: str, epoch: int) -> None:
        """A configuration's epoch has ended, and another begins."""
        self.training[key] = epoch + 1
        self._waiting = ""
        self._show()

    def ended(self, record: TrialRecord) -> None:
        """Counts one configuration."""
        if record.status == COMPLETE:
            self.best = max(self.best, record.mean)
        self.training.pop(record.key, None)
        self.advance(1, 0)


def named(config: Mapping[str, Any]) -> str:
    """A configuration in a few words: its values."""
    return " / ".join(str(value) for value in config.values())


def stage_lines(stage: Mapping[str, Any], title: str) -> list[str]:
    """The end of a stage: what it carries on, and why."""
    trials = stage["trials"]
    counts = {status: sum(own["status"] == status for own in trials) for status in (STOPPED, FAILED)}
    reused = sum(own["reused_from"] is not None for own in trials)
    about = [f"{n} {what}" for n, what in ((counts[STOPPED], "stopped early"), (counts[FAILED], "failed"),
                                           (reused, "known from before")) if n]  # fmt: skip
    seeds = max((len(own["val_macro_ap"]["seeds"]) for own in trials), default=1)
    winner = next(own for own in trials if own["key"] == stage["winner"]["key"])
    lines = [
        f"{title}: {len(trials)} configurations x {seeds} seeds" + (f" ({', '.join(about)})" if about else "")
        + f", {stage['seconds']:.0f} s",
        f"  carried on   {named(winner['config'])}: val mAP {plus_minus(winner['val_macro_ap'])}",
    ]  # fmt: skip
    if stage.get("published_best") is not None:
        lines.append(f"  published     {stage['published_best']:.4f} on test (one seed, its own backbones and data)")
    tied = [other["key"] for other in stage["winner"]["compared"] if other["tied"]]
    if tied:
        names = {own["key"]: named(own["config"]) for own in trials}
        shown = "; ".join(names[key] for key in tied[:MOST_TIES])
        lines.append(f"  tied          {len(tied)}: {shown}" + ("; ..." if len(tied) > MOST_TIES else ""))
    lines.append(f"  why           {stage['winner']['reason']}")
    lines += [f"  failed        {reason}" for reason in sorted({own["error"] for own in trials if own.get("error")})]
    lines += [f"  left out      {own['reason']}" for own in stage.get("left_out", [])]
    return [line.replace("carried on   ", "carried on    ") for line in lines]


def end_lines(record: Mapping[str, Any]) -> list[str]:
    """The end of a study: every winner on test, beside chance and the published figures."""
    test = record.get("test") or {"entries": []}
    published = {stage["name"]: stage.get("published_best") for stage in record["stages"]}
    rows = [("test", "mAP ± sd over seeds", "95 % over images", "interpolated", "chance", "published")]
    for own in test["entries"]:
        score = own["map"]
        interval = "" if score["low"] is None else f"{score['low']:.4f} to {score['high']:.4f}"
        there = published.get(own["name"])
        rows.append(
            (own["name"], plus_minus(score), interval, f"{own['interpolated']['mean']:.4f}", f"{own['chance']:.4f}",
             "" if there is None else f"{there:.4f}")
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not test["entries"]:
        lines = ["the samples have no test split: nothing was scored on one"]
    if record.get("comparison"):
        lines.append(record["comparison"]["reason"])
    cost = record["cost"]
    lines.append(
        f"{cost['trained']} configurations trained, {cost['reused']} known from before, "
        f"{cost['stopped']} stopped early: {cost['epochs']} epochs "
        f"of {cost['epochs_without_stopping']}, {cost['seconds']:.0f} s"
    )
    return lines


def plus_minus(score: Mapping[str, Any]) -> str:
    return f"{score['mean']:.4f}" + ("" if score["sd"] is None else f" ± {score['sd']:.4f}")


Say = Callable[[str], None]
