"""Terminal output of a study: progress of a stage, its result, and the final scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raymotion.batch.progress import Progress, ProgressKind
from raymotion.study.record import COMPLETE, MACRO_AP, Metric, Spread, StageRecord, StudyRecord, TrialRecord
from raymotion.text_table import table_lines

MOST_TIES = 4


class StageProgress(Progress):
    """Counts a stage's configurations on standard error, and shows those in training and the best score so far."""

    def __init__(
        self,
        kind: ProgressKind,
        *,
        title: str,
        total: int,
        done: Sequence[TrialRecord],
        epochs: int,
        metric: Metric,
    ) -> None:
        super().__init__(kind, total=total, done=len(done), title=title, unit="configurations")
        self.epochs, self.metric = epochs, metric
        self.training: dict[str, int] = {}
        self.means = [record.mean for record in done if record.status == COMPLETE]

    def note(self) -> str:
        """Returns the text beside the count."""
        epochs = list(self.training.values())
        span = "" if not epochs else f"{min(epochs)}" if min(epochs) == max(epochs) else f"{min(epochs)}-{max(epochs)}"
        under_way = f"{len(epochs)} in training (epoch {span} of {self.epochs}), " if epochs else ""
        best = f"{max(self.means, key=self.metric.gain):.4f}" if self.means else "none yet"
        return f"{under_way}best val {self.metric.title} {best}"

    def epoch_ended(self, key: str, epoch: int) -> None:
        """Records that a configuration has finished an epoch and begins another."""
        self.training[key] = epoch + 1
        self._waiting = ""
        self._show()

    def ended(self, record: TrialRecord) -> None:
        """Counts a finished configuration."""
        if record.status == COMPLETE:
            self.means.append(record.mean)
        self.training.pop(record.key, None)
        self.advance(1, 0)


def named(config: Mapping[str, Any]) -> str:
    """Formats a configuration as its values."""
    return " / ".join(str(value) for value in config.values())


def stage_lines(record: StudyRecord, stage: StageRecord, of: int) -> list[str]:
    """Returns the lines printed at the end of a stage: the configuration carried forward, and why.

    Args:
        of: number of stages.
    """
    numbered = stage.name if of == 1 else f"stage {stage.stage} of {of}, {stage.name}"
    title = "joint search" if stage.stage is None else numbered
    reused = sum(own.reused_from is not None for own in stage.trials)
    counts = (
        (stage.count("stopped"), "stopped early"),
        (stage.count("failed"), "failed"),
        (reused, "known from before"),
    )
    about = ", ".join(f"{n} {what}" for n, what in counts if n)
    winner, metric = stage.winner, record.metric.title
    score = "" if stage.chosen.score is None else plus_minus(stage.chosen.score)
    rows = [("chosen" if of == 1 else "carried on", f"{named(stage.chosen.config)}: val {metric} {score}")]
    known = record.published_stage(stage)
    if known is not None:
        rows.append(("published", f"{known.test_map:.4f} on test (one seed, its own backbones and data)"))
    if winner.tied:
        names = {own.key: named(own.config) for own in stage.trials}
        shown = "; ".join(names[key] for key in winner.tied[:MOST_TIES])
        rows.append(("tied", f"{len(winner.tied)}: {shown}" + ("; ..." if len(winner.tied) > MOST_TIES else "")))
    rows.append(("why", winner.reason))
    rows += [("failed", reason) for reason in sorted({own.error for own in stage.trials if own.error})]
    rows += [("left out", own.reason) for own in stage.left_out]
    return [
        f"{title}: {len(stage.trials)} configurations x {len(record.seeds)} seeds"
        + (f" ({about})" if about else "")
        + f", {stage.seconds:.0f} s",
        *(f"  {what:<13} {text}" for what, text in rows),
    ]


def end_lines(record: StudyRecord) -> list[str]:
    """Returns the lines printed at the end of a study: every winner's test score, the baseline and published scores."""
    metric, published, rows = record.metric, record.published_study, []
    for own in record.entries:
        low, high = own.score.low, own.score.high
        row = {
            "test": own.name,
            f"{metric.title} ± sd over seeds": plus_minus(own.score),
            "95 % over images": "" if low is None or high is None else f"{low:.4f} to {high:.4f}",
            metric.baseline: _number(own.baseline),
        }
        if record.data.ranked:
            row |= {} if metric == MACRO_AP else {"mAP": _number(own.mean_ap)}
            row["interpolated"] = _number(own.interpolated)
        if published is not None:
            known = published.stage(own.name)
            row["published"] = _number(None if known is None else known.test_map)
        rows.append(row)
    lines = ["the samples have no test split: nothing was scored on one"]
    if rows:
        lines = table_lines(list(rows[0]), [list(row.values()) for row in rows])
    if record.comparison:
        lines.append(record.comparison.reason)
    if (cost := record.cost) is not None:
        lines.append(
            f"{cost.trained} configurations trained, {cost.reused} known from before, {cost.stopped} stopped early: "
            f"{cost.epochs} epochs of {cost.epochs_without_stopping}, {cost.seconds:.0f} s"
        )
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def plus_minus(score: Spread) -> str:
    """Formats a score, as in `0.3135 ± 0.0020`."""
    return f"{score.mean:.4f}" + ("" if score.sd is None else f" ± {score.sd:.4f}")


Say = Callable[[str], None]
