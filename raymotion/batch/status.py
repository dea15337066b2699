"""What a running, finished or dead piece of work has done so far, from its folder alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.progress import duration
from raymotion.data.parts import JOB, running_job
from raymotion.folders.lock import owner_of
from raymotion.pipeline.ask import spent, spent_text

COMPLETE, RUNNING, INTERRUPTED, FAILED, DEAD, UNKNOWN = (
    "complete", "running", "interrupted", "failed", "dead", "running, as far as can be told from here",
)  # fmt: skip


@dataclass(frozen=True)
class Status:
    """The progress of a job, a training run or a study.

    Attributes:
        what: e.g. `labels`, `training`, `cross-fit`.
        state: complete, running, interrupted, failed, or dead (its process ended without saying so).
        who: the process that works on it, or the last one; "" if unknown.
        done, total: in `unit`; total is None if it is not known.
        per_second: rate of the current or last run, None if unknown.
        left: seconds left at this rate, None if unknown or if nobody works on it.
        lines: more, e.g. the quarantine by reason.
    """

    what: str
    state: str
    done: int
    total: int | None
    unit: str
    who: str = ""
    per_second: float | None = None
    left: float | None = None
    lines: Sequence[str] = field(default_factory=list)

    def text(self) -> list[str]:
        """Returns the lines for a terminal, the state first."""
        count = f"{self.done:,}" + ("" if self.total is None else f" of {self.total:,}") + f" {self.unit}"
        if self.total:
            count += f" ({100 * self.done / self.total:.0f} %)"
        rate = "" if self.per_second is None else f", {self.per_second:.1f} {self.unit}/s"
        left = "" if self.left is None else f", about {duration(self.left)} left"
        lines = [f"{self.what}: {self.state}", f"  {count}{rate}{left}"]
        if self.who:
            lines.append(f"  {'by' if self.state in (RUNNING, UNKNOWN) else 'last by'} {self.who}")
        if self.state in (INTERRUPTED, DEAD):
            lines.append("  The same command goes on.")
        elif self.state == FAILED:
            lines.append("  What is done stays; once the cause below is mended, the same command goes on.")
        return [*lines, *(f"  {line}" for line in self.lines)]


def state_of(folder: storage.PathLike, recorded: str) -> tuple[str, str]:
    """Returns the state of work whose record says `recorded`, and the process that holds or held the folder."""
    owner = owner_of(folder)
    who = "" if owner is None else owner.describe()
    if recorded != RUNNING:
        return recorded, who
    lives = False if owner is None else owner.lives()
    return (UNKNOWN if lives is None else RUNNING if lives else DEAD), who


def is_job(folder: storage.PathLike) -> bool:
    """Returns whether a folder is that of a batch job."""
    return storage.exists(storage.join(folder, JOB)) or storage.exists(storage.join(folder, f"_{JOB}"))


def job_status(folder: storage.PathLike) -> Status:
    """Returns the status of a batch job.

    Raises:
        Damaged: its record or a commit cannot be read.
    """
    place = storage.absolute(folder)
    record = running_job(place)
    commits = ledger.read_commits(place, record["digest"])
    total, done = record["input"]["rows"], sum(commit.rows for commit in commits.values())
    state, who = state_of(place, record["status"])
    run = record["runs"][-1] if record["runs"] else {}
    rate = _rate(run, done, len(commits), running=state in (RUNNING, UNKNOWN))
    reasons: Counter[str] = Counter()
    tally: Counter[str] = Counter()
    for commit in commits.values():
        reasons.update(commit.by_reason)
        tally.update(commit.tally)
    lines = [f"quarantine: {count:,} {reason}" for reason, count in reasons.most_common()]
    if usage := spent(tally, (record.get("model") or {}).get("service") or {}):
        lines.append(f"asked so far: {spent_text(usage)}")
    if state == COMPLETE and (domain := record.get("domain")):
        lines.append(domain["headline"])
    if reason := run.get("reason"):
        lines.append(f"its last run ended: {reason}")
    left = (total - done) / rate if rate and state in (RUNNING, UNKNOWN) else None
    return Status(record["job"], state, done, total, "rows", who, rate, left, lines)


def _rate(run: dict[str, object], done: int, shards: int, *, running: bool) -> float | None:
    """Returns rows per second of a run, from its start, which includes the start of the workers."""
    before, started = run.get("resumed_from_shards"), run.get("started")
    if not isinstance(before, int) or not isinstance(started, str) or not shards:
        return None
    seconds = run.get("seconds")
    if not isinstance(seconds, int | float):
        if not running:
            return None
        seconds = time.time() - datetime.fromisoformat(started).timestamp()
    now = done * (shards - before) / shards  # shards are of nearly the same size
    return now / seconds if now > 0 and seconds > 0 else None
