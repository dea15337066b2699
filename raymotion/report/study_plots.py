"""Figures of a study's report as PNG bytes. Every score is a share of 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion.report.plots import BAR, INK, LINE, MARK, SOFT, ClassLine, class_figure, new_figure, png, style_axes
from raymotion.report.study_findings import config_text, shown
from raymotion.study.record import Epoch, StageRecord, StudyRecord, TrialLine, TrialRecord, WinnerOnTest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIED, GOOD = "#e3ecf7", "#1f7a44"
# The colours differ in both hue and lightness.
SEED_COLOURS = ("#2f6db3", "#9a3c00", "#1f7a44", "#7a4bb0", "#57606a")
NAMES_SHOWN = 60


def stage_figure(stage: StageRecord, metric: str) -> bytes | None:
    """Draws all configurations of a stage, best on top: a dot for each seed, their range, the mean; ties shaded.

    Returns None if no configuration has a score.
    """
    scored = [(own, own.score) for own in reversed(stage.trials) if own.score is not None]
    if not scored:
        return None
    trials = [own for own, _ in scored]
    figure = new_figure(9.6, 1.25 + 0.3 * len(trials))
    axes = figure.subplots()
    for place, (trial, score) in enumerate(scored):
        complete, chosen = trial.complete, trial.key == stage.winner.key
        colour = MARK if chosen else BAR if complete else SOFT
        if trial.key in (stage.winner.leader, *stage.winner.tied):
            axes.axhspan(place - 0.5, place + 0.5, color=TIED, linewidth=0)
        seeds = score.seeds
        axes.plot([min(seeds), max(seeds)], [place, place], color=colour, linewidth=1.4, alpha=0.6)
        face = colour if complete else "white"
        axes.plot(seeds, [place] * len(seeds), "o", markerfacecolor=face, markeredgecolor=colour, markersize=5)
        axes.plot(score.mean, place, "|", color=colour, markersize=15, markeredgewidth=2.4)
    axes.set_yticks(range(len(trials)), [_name(trial, stage) for trial in trials])
    axes.set(ylim=(-0.6, len(trials) - 0.4), xlabel=f"validation {metric}")
    handles = [
        ("o", BAR, BAR, "one seed"), ("|", BAR, BAR, "mean over seeds"), ("|", MARK, MARK, "carried on"),
        ("s", TIED, TIED, "leader, and what is tied with it"),
    ]  # fmt: skip
    if any(not trial.complete for trial in trials):
        handles.append(("o", "white", SOFT, "stopped early"))
    for marker, face, edge, label in handles:
        axes.plot(
            [], [], marker, markerfacecolor=face, markeredgecolor=edge, label=label, linestyle="none",
            markersize=12 if marker == "|" else 7, markeredgewidth=2.4 if marker == "|" else 1,
        )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9, columnspacing=1.2)
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    for tick, trial in zip(axes.get_yticklabels(), trials, strict=True):
        tick.set_fontweight("bold" if trial.key == stage.winner.key else "normal")
    return png(figure)


def _name(trial: TrialLine, stage: StageRecord) -> str:
    text = config_text(shown(trial.config), stage.varied)
    return text if len(text) <= NAMES_SHOWN else text[: NAMES_SHOWN - 1] + "…"


def steps_figure(study: StudyRecord, seed_sd: float | None) -> bytes | None:
    """Draws the gain of each stage's leader over its incumbent, with noise and the published gains."""
    rows = [stage for stage in study.stages if stage.winner.incumbent is not None]
    if not rows:
        return None
    figure = new_figure(7.6, 1.5 + 0.5 * len(rows))
    axes = figure.subplots()
    published = study.published_study
    theirs, noise = (published.steps(), published.noise) if published else ({}, 0.0)
    axes.axvline(0, color=SOFT, linewidth=1)
    if seed_sd is not None:
        axes.axvspan(-seed_sd, seed_sd, color=TIED, linewidth=0, label="one seed’s standard deviation")
    for end in (-1, 1) if published else ():
        axes.axvline(
            end * noise, color=MARK, linewidth=1, linestyle=(0, (4, 3)),
            label="published noise: one network, two runs" if end > 0 else None,
        )  # fmt: skip
    for place, stage in enumerate(reversed(rows)):
        step = stage.step
        if step is not None:
            axes.plot([step.low, step.high], [place, place], color=BAR, alpha=0.5, linewidth=4)
        axes.plot(0.0 if step is None else step.difference, place, "o", color=BAR, markersize=7)
        if stage.name in theirs:
            axes.plot(theirs[stage.name], place, "D", markerfacecolor="white", markeredgecolor=MARK, markersize=7)
    axes.plot([], [], "o-", color=BAR, linewidth=4, alpha=0.8, label="ours, validation, 95 % interval")
    if published:
        axes.plot([], [], "D", markerfacecolor="white", markeredgecolor=MARK, label="published step, test")
    axes.set_yticks(range(len(rows)), [stage.title for stage in reversed(rows)])
    axes.set(
        ylim=(-0.6, len(rows) - 0.4), xlabel=f"gain of the stage’s leader over its incumbent, {study.metric.title}"
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    style_axes(axes)
    return png(figure)


def joint_figure(joint: StageRecord, staged: float | None, metric: str) -> bytes | None:
    """Draws the validation score of each configuration of the joint search over its epochs and its size."""
    trials = [trial for trial in joint.trials if trial.mean is not None]
    if not trials:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.6, 4.4)
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    fields = (("epochs run", [trial.epochs for trial in trials]), ("parameters", [t.parameters for t in trials]))
    for axes, (title, values) in zip(panels, fields, strict=True):
        for trial, x in zip(trials, values, strict=True):
            chosen = trial.key == joint.winner.key
            colour = MARK if chosen else BAR
            face = colour if trial.complete else "none"
            axes.plot(
                x, trial.mean or 0, "D" if chosen else "o", markerfacecolor=face, markeredgecolor=colour,
                markersize=9 if chosen else 6, alpha=1 if chosen else 0.8, zorder=4 if chosen else 3,
            )  # fmt: skip
        if staged is not None:
            axes.axhline(staged, color=GOOD, linewidth=1.4, linestyle=(0, (5, 3)))
        axes.set_xlabel(title)
        style_axes(axes)
    panels[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    known = [trial.parameters for trial in trials if trial.parameters]
    if known and max(known) > 8 * min(known):
        panels[1].set_xscale("log")
    panels[0].set_ylabel(f"validation {metric}")
    for marker, face, edge, label in (
        ("o", BAR, BAR, "complete"), ("o", "none", BAR, "stopped early"), ("D", MARK, MARK, "joint winner"),
    ):  # fmt: skip
        panels[0].plot([], [], marker, markerfacecolor=face, markeredgecolor=edge, label=label)
    if staged is not None:
        panels[0].plot([], [], color=GOOD, linewidth=1.4, linestyle=(0, (5, 3)), label="stages’ winner")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return png(figure)


def curves_figure(curves: Sequence[tuple[str, TrialRecord]], metric: str) -> bytes | None:
    """Draws training loss and validation score by epoch, a line for each seed; one row for each (title, trial)."""
    curves = [(title, trial) for title, trial in curves if trial.epochs]
    if not curves:
        return None
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(9.6, 0.7 + 2.5 * len(curves))
    grid = np.atleast_2d(figure.subplots(len(curves), 2, squeeze=False))
    for (title, trial), (left, right) in zip(curves, grid, strict=True):
        at, best = [epoch.epoch for epoch in trial.epochs], [own.epoch for own in trial.best]
        for axes, name in ((left, "train_loss"), (right, "score")):
            for seed, values in enumerate(_by_seed(trial.epochs, name)):
                colour = SEED_COLOURS[seed % len(SEED_COLOURS)]
                axes.plot(at, values, color=colour, linewidth=1.5, marker=".", markersize=4)
                if axes is right and seed < len(best) and best[seed] in at:
                    place = at.index(best[seed])
                    axes.plot(at[place], values[place], "o", color=colour, markersize=7)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel("epoch")
            style_axes(axes)
        left.set(ylabel="training loss")
        right.set(ylabel=f"validation {metric}")
        left.set_title(title if len(title) <= 110 else title[:109] + "…", loc="left", fontsize=10, color=INK)
    return png(figure)


def _by_seed(epochs: Sequence[Epoch], name: str) -> np.ndarray:
    """Returns an array (seeds, epochs), NaN after a seed has stopped."""
    rows = [[np.nan if value is None else value for value in getattr(epoch, name)] for epoch in epochs]
    return np.array(rows, dtype=np.float64).T


def final_figure(final: WinnerOnTest, *, published: Mapping[str, float]) -> bytes | None:
    """Draws the average precision of each label on test, most frequent on top, with chance and published values."""
    if not final.per_class:
        return None
    rows = sorted(final.per_class, key=lambda own: -own.prevalence)
    return class_figure(
        [ClassLine(own.label, own.ap, own.prevalence, own.ap, own.prevalence) for own in rows],
        title="Average precision on test",
        value="mean over seeds",
        baseline="chance: share of samples",
        published=published,
    )


def heat_map(shares: np.ndarray, labels: Sequence[str], *, title: str, across: str) -> bytes:
    """Draws a matrix (L, L) of shares in [0, 1] with label names; unknown (NaN) rows stay white."""
    from matplotlib.colors import LinearSegmentedColormap

    side = 2.6 + 0.24 * len(labels)
    figure = new_figure(side + 0.5, side)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("house", ["#ffffff", "#9dbfe3", BAR, "#12325a"])
    picture = axes.imshow(np.ma.masked_invalid(shares), cmap=colours, vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel=across, ylabel="of the samples that truly have")
    axes.set_title(title, fontsize=11)
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=LINE, linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=8, colors=INK)
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.02)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("share", fontsize=9)
    return png(figure)
