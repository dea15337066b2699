"""The tables of a study's report: rows of texts for the page, and the same numbers in full as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raymotion.published.emotic_study import FINAL_AP, published_stage
from raymotion.report.study_findings import (
    UNKNOWN,
    config_text,
    field_name,
    interval,
    pooled_sd,
    share_text,
    value_text,
)
from raymotion.report.study_folder import Scored, Stage, StudyFolder, number, shown


@dataclass(frozen=True)
class Cell:
    """A table's cell; `kind` is a class of the style sheet, such as `better`."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def _cells(*texts: str | Cell) -> list[Cell]:
    return [text if isinstance(text, Cell) else Cell(text) for text in texts]


def with_spread(mean: float | None, sd: float | None) -> str:
    """`31.35 ± 0.20`."""
    return share_text(mean) if sd is None or mean is None else f"{share_text(mean)} ± {share_text(sd)}"


def stage_overview(study: StudyFolder) -> Table:
    """The stages beside the published ones: what each carried on, and what it is worth."""
    scored = {entry.name: entry for entry in study.scored}
    rows = []
    for stage in study.stages:
        winner, entry = stage.trial(stage.winner), scored.get(stage.name)
        theirs, score = published_choice(stage)
        rows.append(
            _cells(
                stage.title,
                Cell(UNKNOWN if winner is None else config_text(winner.config, stage.varied), "text"),
                UNKNOWN if winner is None else with_spread(winner.mean, winner.sd),
                _step_text(stage),
                _decision(stage),
                UNKNOWN
                if entry is None
                else f"{with_spread(entry.mean, entry.sd)} ({interval(entry.low, entry.high)})",
                Cell(theirs, "text"),
                share_text(score),
            )
        )
    head = (
        "stage", "carried on", "val mAP ± sd", "leader’s gain over the incumbent", "verdict",
        "test mAP ± sd (95 % interval)", "published: carried on", "published test mAP",
    )  # fmt: skip
    return Table(head, rows)


def published_choice(stage: Stage) -> tuple[str, float | None]:
    """What the public study carried on in this stage, and its test mAP."""
    known = published_stage(stage.name)
    if known is not None:
        return known.carried, known.test_map
    if not stage.published:
        return UNKNOWN, None
    config, score = max(stage.published, key=lambda cell: cell[1])
    return config_text(config), score


def _step_text(stage: Stage) -> str:
    step = stage.step
    if step is not None:
        return f"{share_text(step.difference, sign=True)} ({interval(step.low, step.high, sign=True)})"
    if stage.incumbent is None:
        return "no incumbent"
    leader = stage.leader
    return "the incumbent leads" if leader is not None and leader.key == stage.incumbent else UNKNOWN


def _decision(stage: Stage) -> Cell:
    if stage.winner is None:
        return Cell("not yet" if stage.status != "complete" else "no winner", "unclear")
    if stage.decided is None:
        return Cell("? seeds unknown" if stage.seed_error is None else "? not known", "unclear")
    others = "" if not stage.tied else "; 1 other tied" if stage.tied == 1 else f"; {stage.tied} others tied"
    if stage.decided:
        return Cell(f"▲ beyond noise{others}", "better")
    leads = [stage.step] if stage.incumbent is not None else [trial.against for trial in stage.trials]
    if any(lead is not None and lead.low is not None and lead.low > 0 for lead in leads):
        return Cell("≈ gained less than seeds differ", "unclear")
    return Cell(f"≈ nothing gained{others}", "unclear")


def stage_table(stage: Stage) -> Table:
    """All configurations of a stage, best first."""
    head = [
        *(field_name(name) for name in stage.varied), "val mAP ± sd", "behind the leader", "published test mAP",
        "interpolated", "epochs", "parameters",
    ]  # fmt: skip
    rows = []
    for trial in stage.trials:
        names = [Cell(value_text(shown(trial.config.get(name))), "text") for name in stage.varied]
        if trial.key == stage.winner:
            names[0] = Cell(f"✓ {names[0].text}", "text chosen")
        against = trial.against
        behind: str | Cell = UNKNOWN
        if against is not None:
            text = f"{share_text(against.difference, sign=True)} ({interval(against.low, against.high, sign=True)})"
            behind = Cell(f"≈ {text}", "unclear") if against.tied else text
        elif not trial.complete:
            behind = Cell(trial.status, "unclear")
        elif trial is stage.leader:
            behind = "leads"
        rows.append(
            _cells(
                *names,
                with_spread(trial.mean, trial.sd),
                behind,
                share_text(trial.published),
                share_text(trial.interpolated),
                (UNKNOWN if trial.epochs is None else str(trial.epochs))
                + (f" (from {trial.reused_from})" if trial.reused_from else ""),
                UNKNOWN if trial.parameters is None else f"{trial.parameters:,}",
            )
        )
    return Table(head, rows)


def unmatched_table(stage: Stage) -> Table | None:
    """Published cells that the study did not run; None where there are none."""
    matched = [trial.config for trial in stage.trials if trial.published is not None]
    missing = [
        (config, score)
        for config, score in stage.published
        if not any(all(own.get(name) == config[name] for name in config) for own in matched)
    ]
    if not missing:
        return None
    missing.sort(key=lambda cell: -cell[1])
    return Table(
        ("published configuration", "published test mAP"),
        [_cells(config_text(config), share_text(score)) for config, score in missing],
    )


def noise_table(study: StudyFolder) -> Table:
    """Seed spread beside the differences between configurations."""
    rows = []
    for stage in study.stages:
        complete = [trial for trial in stage.trials if trial.complete]
        means = [trial.mean for trial in complete if trial.mean is not None]
        rows.append(
            _cells(
                stage.title,
                f"{len(complete)} of {len(stage.trials)}",
                share_text(pooled_sd(complete)),
                share_text(means[0] - means[1]) if len(means) > 1 else UNKNOWN,
                share_text(means[0] - means[-1]) if len(means) > 1 else UNKNOWN,
                str(stage.tied) if any(trial.against for trial in complete) else UNKNOWN,
            )
        )
    return Table(
        ("stage", "compared", "sd between seeds", "best − second", "best − worst", "tied with the leader"), rows
    )


def class_table(final: Scored) -> Table:
    """Average precision of each emotion on test, the most frequent first, beside chance and the published."""
    head = ("emotion", "AP", "interpolated", "chance", "gain over chance", "positives", "published AP (S5)")
    rows = []
    for entry in sorted(final.per_class, key=lambda entry: -(number(entry.get("prevalence")) or 0.0)):
        ap, chance = number(entry.get("ap")), number(entry.get("prevalence"))
        gain = None if ap is None or chance is None else ap - chance
        rows.append(
            _cells(
                str(entry["label"]),
                "undefined" if ap is None else share_text(ap),
                share_text(number(entry.get("interpolated"))),
                share_text(chance),
                Cell(share_text(gain, sign=True), "worse" if gain is not None and gain <= 0 else ""),
                f"{int(entry.get('positives') or 0):,}",
                share_text(FINAL_AP.get(str(entry["label"]))),
            )
        )
    return Table(head, rows)


def prevalence_table(study: StudyFolder) -> Table | None:
    """Share of persons with each emotion, by split; None where it is not recorded."""
    rates = (study.record.get("data") or {}).get("prevalence") or {}
    splits = [name for name in ("train", "val", "test") if len(rates.get(name) or ()) == len(study.labels)]
    if not splits or not study.labels:
        return None
    order = sorted(range(len(study.labels)), key=lambda j: -float(rates[splits[0]][j]))
    rows = []
    for j in order:
        values = [float(rates[name][j]) for name in splits]
        ratio = f"{values[-1] / values[0]:.1f} ×" if len(values) > 1 and values[0] > 0 else UNKNOWN
        rows.append(_cells(study.labels[j], *(f"{100 * value:.1f} %" for value in values), ratio))
    return Table(("emotion", *splits, f"{splits[-1]} / {splits[0]}"), rows)


def csv_text(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV; None is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue()


def stage_csv(stage: Stage) -> str:
    """Every configuration of a stage with its numbers in full, as shares."""
    head = [
        *stage.varied, "status", "val_map", "val_map_sd", "val_map_seeds", "val_interpolated", "leader_gain",
        "leader_gain_low", "leader_gain_high", "tied", "epochs", "parameters", "seconds", "reused_from",
        "published_test_map", "key",
    ]  # fmt: skip
    rows = []
    for trial in stage.trials:
        gap = trial.against
        rows.append(
            [
                *(value_text(shown(trial.config.get(name))) for name in stage.varied),
                trial.status, trial.mean, trial.sd, " ".join(map(repr, trial.seeds)), trial.interpolated,
                *((gap.difference, gap.low, gap.high, gap.tied) if gap else (None,) * 4),
                trial.epochs, trial.parameters, trial.seconds, trial.reused_from, trial.published, trial.key,
            ]
        )  # fmt: skip
    return csv_text(head, rows)


def overview_csv(study: StudyFolder) -> str:
    """One line for each stage, and for the joint search: what it chose, on validation and on test, as shares."""
    head = (
        "stage", "configuration", "val_map", "val_map_sd", "leader_gain", "leader_gain_low", "leader_gain_high",
        "beyond_noise", "test_map", "test_map_sd", "test_map_low", "test_map_high", "test_interpolated",
        "published_configuration", "published_test_map", "key",
    )  # fmt: skip
    scored = {entry.name: entry for entry in study.scored}
    rows = []
    for stage in (*study.stages, *([study.joint] if study.joint else [])):
        winner, test, step = stage.trial(stage.winner), scored.get(stage.name), stage.step
        theirs, score = published_choice(stage)
        rows.append(
            [
                stage.name,
                None if winner is None else config_text(shown(winner.config), stage.varied),
                *((winner.mean, winner.sd) if winner else (None, None)),
                *((step.difference, step.low, step.high) if step else (None,) * 3),
                stage.decided if stage is not study.joint else None,
                *((test.mean, test.sd, test.low, test.high, test.interpolated) if test else (None,) * 5),
                None if score is None else theirs,
                score,
                stage.winner,
            ]
        )
    return csv_text(head, rows)


def class_csv(final: Scored) -> str:
    """Average precision of each emotion in the vocabulary's order, as shares."""
    names = ("label", "ap", "interpolated", "prevalence", "positives")
    rows = [[*(entry.get(name) for name in names), FINAL_AP.get(str(entry["label"]))] for entry in final.per_class]
    return csv_text([*names, "published_ap"], rows)
