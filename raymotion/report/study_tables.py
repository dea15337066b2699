"""The tables of a study's report: rows of texts for the page, and the same numbers in full precision as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymotion.report.study_findings import (
    UNKNOWN,
    config_text,
    field_name,
    interval,
    pooled_sd,
    share_text,
    shown,
    value_text,
)
from raymotion.study.record import MACRO_AP, Spread, StageRecord, StudyRecord, WinnerOnTest
from raymotion.text_table import csv_text


@dataclass(frozen=True)
class Cell:
    """A cell of a table; `kind` is a class of the style sheet, such as `better`."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def _cells(*texts: str | Cell) -> list[Cell]:
    return [text if isinstance(text, Cell) else Cell(text) for text in texts]


def with_spread(score: Spread | None) -> str:
    """Formats a score as `0.3135 ± 0.0020`; a dash if unknown."""
    if score is None:
        return UNKNOWN
    return share_text(score.mean) + ("" if score.sd is None else f" ± {share_text(score.sd)}")


def stage_overview(study: StudyRecord) -> Table:
    """Returns each stage's winner with its scores, and the published stages if there are any."""
    rows = []
    for stage in study.stages:
        entry, known = study.on_test(stage), study.published_stage(stage)
        row = _cells(
            stage.title,
            Cell(config_text(stage.chosen.config, stage.varied), "text"),
            with_spread(stage.chosen.score),
            _step_text(stage),
            _decision(stage),
            UNKNOWN if entry is None else f"{with_spread(entry.score)} ({interval(entry.score.low, entry.score.high)})",
        )
        if study.published:
            row += _cells(
                Cell(known.carried if known else UNKNOWN, "text"), share_text(known.test_map if known else None)
            )
        rows.append(row)
    metric = study.metric.title
    head = [
        "stage", "carried on", f"val {metric} ± sd", "leader’s gain over the incumbent", "verdict",
        f"test {metric} ± sd (95 % interval)",
    ]  # fmt: skip
    if study.published:
        head += ["published: carried on", "published test mAP"]
    return Table(head, rows)


def _step_text(stage: StageRecord) -> str:
    step, winner = stage.step, stage.winner
    if step is not None:
        return f"{share_text(step.difference, sign=True)} ({interval(step.low, step.high, sign=True)})"
    if winner.incumbent is None:
        return "no incumbent"
    return "the incumbent leads" if winner.leader == winner.incumbent else UNKNOWN


def _decision(stage: StageRecord) -> Cell:
    compared, tied = stage.winner.compared, len(stage.winner.tied)
    if stage.decided is None:
        unknown = all(other.seed_error is None for other in compared)
        return Cell("? seeds unknown" if unknown else "? not known", "unclear")
    others = "" if not tied else "; 1 other tied" if tied == 1 else f"; {tied} others tied"
    if stage.decided:
        return Cell(f"▲ beyond noise{others}", "better")
    leads = [stage.step] if stage.winner.incumbent is not None else compared
    if any(lead is not None and lead.low > 0 for lead in leads):
        return Cell("≈ gained less than seeds differ", "unclear")
    return Cell(f"≈ nothing gained{others}", "unclear")


def stage_table(study: StudyRecord, stage: StageRecord) -> Table:
    """Returns all configurations of a stage, best first."""
    known, labels = study.published_stage(stage), study.data.ranked
    head = [
        *(field_name(name) for name in stage.varied), f"val {study.metric.title} ± sd", "behind the leader",
        *(["published test mAP"] if known else []), *(["interpolated"] if labels else []), "epochs", "parameters",
    ]  # fmt: skip
    rows = []
    for trial in stage.trials:
        names = [Cell(value_text(shown(trial.config.get(name))), "text") for name in stage.varied]
        if trial.key == stage.winner.key:
            names[0] = Cell(f"✓ {names[0].text}", "text chosen")
        gap = stage.behind(trial.key)
        behind = Cell("leads") if trial.key == stage.winner.leader else Cell(UNKNOWN)
        if gap is not None:
            text = f"{share_text(gap.difference, sign=True)} ({interval(gap.low, gap.high, sign=True)})"
            behind = Cell(f"≈ {text}", "unclear") if gap.tied else Cell(text)
        elif not trial.complete:
            behind = Cell(trial.status, "unclear")
        rows.append(
            _cells(
                *names,
                with_spread(trial.score),
                behind,
                *([share_text(known.score_of(trial.config))] if known else []),
                *([share_text(trial.interpolated)] if labels else []),
                str(trial.epochs) + (f" (from {trial.reused_from})" if trial.reused_from else ""),
                f"{trial.parameters:,}" if trial.parameters else UNKNOWN,
            )
        )
    return Table(head, rows)


def unmatched_table(study: StudyRecord, stage: StageRecord) -> Table | None:
    """Returns published configurations that the study did not run; None if there are none."""
    known = study.published_stage(stage)
    missing = [
        (cell, score)
        for cell, score in (known.cells if known else ())
        if not any(all(own.config.get(name) == cell[name] for name in cell) for own in stage.trials)
    ]
    if not missing:
        return None
    missing.sort(key=lambda pair: -pair[1])
    return Table(
        ("published configuration", "published test mAP"),
        [_cells(config_text(config), share_text(score)) for config, score in missing],
    )


def noise_table(study: StudyRecord) -> Table:
    """Returns the spread between seeds and the differences between configurations."""
    rows = []
    for stage in study.stages:
        means = [own.score.mean for own in stage.complete if own.score is not None]
        rows.append(
            _cells(
                stage.title,
                f"{len(means)} of {len(stage.trials)}",
                share_text(pooled_sd(stage.trials)),
                share_text(abs(means[0] - means[1])) if len(means) > 1 else UNKNOWN,
                share_text(abs(means[0] - means[-1])) if len(means) > 1 else UNKNOWN,
                str(len(stage.winner.tied)) if stage.winner.compared else UNKNOWN,
            )
        )
    return Table(
        ("stage", "compared", "sd between seeds", "best − second", "best − worst", "tied with the leader"), rows
    )


def winner_table(study: StudyRecord) -> Table:
    """Returns test scores of the stages' winners; that of the last stage is the final configuration."""
    metric, labels, one = study.metric, study.data.ranked, study.data.one_label
    head = ["winner of", f"{metric.title} ± sd", "95 % interval", metric.baseline]
    head += ["mAP"] if labels and metric != MACRO_AP else []
    head += ["interpolated mAP", "micro F1", "macro F1"] if labels else ["accuracy", "macro F1"] if one else []
    rows = []
    for own in study.entries:
        name = Cell(own.name)
        if study.final is not None and own.name == study.final.name and len(study.entries) > 1:
            name = Cell(f"{own.name} (final)", "chosen")
        row = _cells(
            name, with_spread(own.score), interval(own.score.low, own.score.high), share_text(own.baseline)
        )  # fmt: skip
        row += _cells(share_text(own.mean_ap)) if labels and metric != MACRO_AP else []
        if labels:
            f1 = (own.thresholded.get(of) for of in ("micro_f1", "macro_f1"))
            row += _cells(share_text(own.interpolated), *map(share_text, f1))
        if one:
            row += _cells(*(share_text(own.thresholded.get(of)) for of in ("accuracy", "macro_f1")))
        rows.append(row)
    return Table(head, rows)


def class_table(study: StudyRecord, final: WinnerOnTest) -> Table:
    """Returns the average precision of each label on test, most frequent first, with chance and published values."""
    published = study.published_study
    head = ["emotion", "AP", "interpolated", "chance", "gain over chance", "positives"]
    rows = []
    for own in sorted(final.per_class, key=lambda own: -own.prevalence):
        gain = None if own.ap is None else own.ap - own.prevalence
        row = _cells(
            own.label,
            "undefined" if own.ap is None else share_text(own.ap),
            share_text(own.interpolated),
            share_text(own.prevalence),
            Cell(share_text(gain, sign=True), "worse" if gain is not None and gain <= 0 else ""),
            f"{own.positives:,}",
        )
        rows.append(row + (_cells(share_text(published.final_ap.get(own.label))) if published else []))
    return Table(head + (["published AP"] if published else []), rows)


def prevalence_table(study: StudyRecord) -> Table | None:
    """Returns the share of samples with each label, by split; None if not recorded, and for numbers."""
    labels, rates = study.data.labels, study.data.prevalence
    if not labels:
        return None
    splits = [name for name in ("train", "val", "test") if len(rates.get(name, ())) == len(labels)]
    if not splits:
        return None
    rows = []
    for j in sorted(range(len(labels)), key=lambda j: -rates[splits[0]][j]):
        values = [rates[name][j] for name in splits]
        ratio = f"{values[-1] / values[0]:.1f} ×" if len(values) > 1 and values[0] > 0 else UNKNOWN
        rows.append(_cells(labels[j], *(f"{100 * value:.1f} %" for value in values), ratio))
    return Table(("emotion", *splits, f"{splits[-1]} / {splits[0]}"), rows)


def stage_csv(study: StudyRecord, stage: StageRecord) -> str:
    """Returns all configurations of a stage as CSV in full precision, as shares."""
    head = [
        *stage.varied, "status", "val_score", "val_score_sd", "val_score_seeds", "val_interpolated", "leader_gain",
        "leader_gain_low", "leader_gain_high", "tied", "epochs", "parameters", "seconds", "reused_from",
        "published_test_map", "key",
    ]  # fmt: skip
    known, rows = study.published_stage(stage), []
    for trial in stage.trials:
        gap, score = stage.behind(trial.key), trial.score
        rows.append(
            [
                *(value_text(shown(trial.config.get(name))) for name in stage.varied),
                trial.status,
                *((score.mean, score.sd, " ".join(map(repr, score.seeds))) if score else (None,) * 3),
                trial.interpolated,
                *((gap.difference, gap.low, gap.high, gap.tied) if gap else (None,) * 4),
                trial.epochs, trial.parameters, trial.seconds, trial.reused_from,
                known.score_of(trial.config) if known else None, trial.key,
            ]
        )  # fmt: skip
    return csv_text(head, rows)


def overview_csv(study: StudyRecord) -> str:
    """Returns the winner of each stage and of the joint search as CSV, with validation and test scores as shares."""
    head = (
        "stage", "configuration", "val_score", "val_score_sd", "leader_gain", "leader_gain_low", "leader_gain_high",
        "beyond_noise", "test_score", "test_score_sd", "test_score_low", "test_score_high", "test_baseline",
        "test_interpolated",
        "published_configuration", "published_test_map", "key",
    )  # fmt: skip
    rows = []
    for stage in study.parts:
        score, test, step, known = stage.chosen.score, study.on_test(stage), stage.step, study.published_stage(stage)
        rows.append(
            [
                stage.name,
                config_text(shown(stage.chosen.config), stage.varied),
                *((score.mean, score.sd) if score else (None,) * 2),
                *((step.difference, step.low, step.high) if step else (None,) * 3),
                stage.decided if stage is not study.joint else None,
                *((test.score.mean, test.score.sd, test.score.low, test.score.high, test.baseline, test.interpolated)
                  if test else (None,) * 6),
                *((known.carried, known.test_map) if known else (None,) * 2),
                stage.winner.key,
            ]
        )  # fmt: skip
    return csv_text(head, rows)


def class_csv(study: StudyRecord, final: WinnerOnTest) -> str:
    """Returns the average precision of each label as CSV, in the vocabulary's order, as shares."""
    names, published = ("label", "ap", "interpolated", "prevalence", "positives"), study.published_study
    rows = [
        [*(getattr(own, name) for name in names), published.final_ap.get(own.label) if published else None]
        for own in final.per_class
    ]
    return csv_text([*names, "published_ap"], rows)
