"""What a training run, or a comparison of several, has done so far, from the folders of their state."""

from __future__ import annotations

import time

from raymotion import records, storage
from raymotion.batch.status import COMPLETE, RUNNING, UNKNOWN, Status, state_of
from raymotion.folders.outputs import run_folder
from raymotion.models.checkpoint import is_checkpoint, read_checkpoint_info
from raymotion.train.fit import PROGRESS, SETTINGS
from raymotion.train.progress import at_epoch, read_pace
from raymotion.train.runs import MOST_SHOWN, PLAN, RUNS


def is_training(out: storage.PathLike) -> bool:
    """Returns whether `out` is a checkpoint, or the state of its training lies beside it."""
    return is_checkpoint(out) or storage.exists(storage.join(run_folder(out), SETTINGS))


def is_comparison(folder: storage.PathLike) -> bool:
    """Returns whether a folder is that of a command which trains several runs: `crossfit`, say, or `attack poison`."""
    return storage.exists(storage.join(folder, PLAN))


def comparison_status(folder: storage.PathLike) -> Status:
    """Returns the status of a comparison of several runs.

    Raises:
        Damaged: its record cannot be read.
    """
    target = storage.absolute(folder)
    plan = records.read_record(storage.join(target, PLAN))
    names = list(plan["runs"])
    open_ = [name for name in names if not is_checkpoint(storage.join(target, RUNS, name))]
    ended = not open_ and storage.exists(storage.join(target, plan["record"]))
    state, who = state_of(target, COMPLETE if ended else RUNNING)
    begun = [(name, read_pace(run_folder(storage.join(target, RUNS, name)))) for name in open_]
    lines = [f"{name}: {at_epoch(pace)}" for name, pace in begun if pace is not None]
    if len(lines) > MOST_SHOWN:
        lines = [*lines[:MOST_SHOWN], f"and {len(lines) - MOST_SHOWN} more in training"]
    if not open_ and not ended:
        lines.append("All runs are trained; the results are not written yet.")
    return Status(plan["title"], state, len(names) - len(open_), len(names), "runs", who, lines=lines)


def training_status(out: storage.PathLike) -> Status:
    """Returns the status of the training run whose checkpoint is, or will be, `out`.

    Raises:
        InputError: its record cannot be read.
    """
    target = storage.absolute(out)
    if is_checkpoint(target):
        info = read_checkpoint_info(target)
        epochs = len(info.training.get("history") or [])
        best = info.training.get("best_epoch")
        lines = [f"{info.kind.name}, fingerprint {info.fingerprint}"] + ([f"best epoch: {best}"] if best else [])
        what = "wrapped model" if info.training.get("wrapped") else "training"
        return Status(what, COMPLETE, epochs, None, "epochs", lines=lines)
    run = run_folder(target)
    state, who = state_of(target, RUNNING)
    settings = records.read_record(storage.join(run, SETTINGS))
    total = (settings.get("optimiser") or {}).get("epochs")
    lines, done, rate, left = [], 0, None, None
    if storage.exists(storage.join(run, PROGRESS)):
        metrics = records.read_record(storage.join(run, PROGRESS))
        done = int(metrics.get("epoch", 0))
        figures = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name.startswith("val_"))
        lines.append(f"epoch {done}: {figures} (best: epoch {metrics.get('best_epoch', 0):.0f})")
    if (pace := read_pace(run)) is not None and state in (RUNNING, UNKNOWN):
        speed = pace.get("samples_per_second")
        told = "" if speed is None else f", {speed:.1f} samples/s"
        lines.append(f"step {pace['step']:,} of {pace['steps']:,} in epoch {pace['epoch']}{told}")
        if pace.get("left") is not None:
            left = max(0.0, pace["left"] - (time.time() - pace["at"]))
    return Status("training", state, done, total, "epochs", who, rate, left, lines)
