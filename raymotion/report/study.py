"""`raymotion study report`: a study's folder as one page, its tables as CSV, and the published study's text file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raymotion import storage
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.report import study_plots as plots
from raymotion.report import study_tables as tables
from raymotion.report.plots import data_address
from raymotion.report.rendering import as_text, template
from raymotion.report.study_findings import (
    UNKNOWN,
    cautions,
    config_text,
    field_name,
    interval,
    listing,
    matched,
    noise_sentences,
    notices,
    pooled_sd,
    rank_correlation,
    share_text,
    shown,
    value_text,
    verdict,
)
from raymotion.report.study_scores import FinalScores, final_scores
from raymotion.study.record import JOINT, Cost, StageRecord, StudyFolder, StudyRecord, TrialRecord
from raymotion.text_table import table_lines

PAGE = "index.html"


@dataclass(frozen=True)
class StudySummary:
    """Summary of the page, for a terminal.

    Attributes:
        state: "good", "unsure" or "bad"; headline: the verdict, one sentence.
        warnings: why the numbers cannot be compared with published ones, and missing parts.
        lines: the table of the stages.
        files: names of the files written.
    """

    out: str
    state: str
    headline: str
    warnings: list[str]
    lines: list[str]
    files: list[str]


@one_writer_of("out")
def write_study_report(folder: storage.PathLike, out: storage.PathLike) -> StudySummary:
    """Writes the report of a study, complete or not, to the folder `out`.

    Files: `index.html` (without scripts or network access), `stages.csv`, one table for each stage and the joint
    search, and `per_class.csv` for labels. If the study repeats a published one and its test predictions are kept, also
    `evaluation_metrics.txt` with the mean over seeds, and one such file for each seed.

    Raises:
        InputError: the folder is not a study, a file in it is damaged, or `out` holds other files.
    """
    place = StudyFolder(folder)
    study = place.require()
    scores, why_not = final_scores(place, study)
    files = {PAGE: _render(place, study, scores, why_not), "stages.csv": tables.overview_csv(study)}
    for number, stage in enumerate(study.stages, 1):
        files[f"stage-{number}-{stage.name}.csv"] = tables.stage_csv(study, stage)
    if study.joint is not None:
        files["joint.csv"] = tables.stage_csv(study, study.joint)
    if study.final is not None and study.final.per_class:
        files["per_class.csv"] = tables.class_csv(study, study.final)
    if scores is not None:
        files |= scores.files
    outputs.require_replaceable(storage.join(out, PAGE), "a report", outputs.is_page)
    there = set(storage.list_names(out))
    strange = [] if PAGE in there else sorted(there & set(files))
    if strange:
        raise InputError(f"holds {strange[0]}, which is not part of a report", path=out, remedy="Use a fresh --out.")
    for name, text in files.items():
        storage.write_text(storage.join(out, name), text)
    state, headline = verdict(study)
    return StudySummary(
        out=storage.join(out, PAGE),
        state=state,
        headline=headline,
        warnings=[*cautions(study), *notices(study), *([why_not] if why_not and study.complete else [])],
        lines=_lines(study),
        files=list(files),
    )


def _render(folder: StudyFolder, study: StudyRecord, scores: FinalScores | None, why_not: str) -> str:
    """Renders the page's HTML.

    Args:
        scores: from the final configuration's predictions; None if there are none.
        why_not: the reason why there are none.
    """
    state, headline = verdict(study)
    untrustworthy = cautions(study)
    metric, final, published = study.metric.title, study.final, study.published_study
    sd = pooled_sd([trial for stage in study.stages for trial in stage.trials])
    staged = study.stages[-1].chosen.mean if study.stages else None
    comparable = {} if published is None or untrustworthy else published.final_ap
    return template("study.html.j2").render(
        state=state,
        headline=headline,
        metric=metric,
        published=published,
        cautions=untrustworthy,
        remarks=notices(study),
        notices=[],
        samples=_samples(study),
        labels=study.data.ranked,
        lower_is_better=not study.metric.higher_is_better,
        # A single search has no comparison between searches.
        single=len(study.stages) == 1 and study.joint is None and not study.settings.get("joint", True),
        key_figures=_key_figures(study, staged),
        facts=_facts(study),
        overview=tables.stage_overview(study),
        steps=_image(plots.steps_figure(study, sd)),
        stages=[_stage(study, stage) for stage in study.stages],
        noise=tables.noise_table(study),
        noise_sentences=noise_sentences(study),
        joint=None if study.joint is None else _stage(study, study.joint),
        joint_figure=None if study.joint is None else _image(plots.joint_figure(study.joint, staged, metric)),
        comparison=_comparison(study),
        curves=_image(plots.curves_figure(_curves(folder, study), metric)),
        final=final,
        final_config=[] if final is None else [(name, value_text(shown(v))) for name, v in final.config.items()],
        winners=tables.winner_table(study),
        classes=None if final is None else tables.class_table(study, final),
        class_figure=None if final is None else _image(plots.final_figure(final, published=comparable)),
        comparable=not untrustworthy,
        argmax=_argmax(study, scores),
        why_not=why_not,
        prevalence=tables.prevalence_table(study),
        heat_maps=_heat_maps(study, scores),
        cost=_cost(study.cost),
        provenance=_provenance(study),
        settings=json.dumps(shown(study.settings), indent=2, ensure_ascii=False),
    )


def _image(data: bytes | None) -> str | None:
    """Converts PNG bytes to a data URL."""
    return None if data is None else data_address(data)


def _stage(study: StudyRecord, stage: StageRecord) -> dict[str, Any]:
    found, known = rank_correlation(study, stage), study.published_stage(stage)
    return {
        "title": stage.title,
        "name": stage.name,
        "reason": stage.winner.reason,
        "counts": f"{len(stage.complete)} of {len(stage.trials)} configurations complete",
        "stopped": stage.count("stopped"),
        "figure": _image(plots.stage_figure(stage, study.metric.title)) if stage.name != JOINT else None,
        "table": tables.stage_table(study, stage),
        "unmatched": tables.unmatched_table(study, stage),
        "correlation": None if found is None else (f"{found[0]:+.2f}".replace("-", "−"), found[1]),
        "published": known is not None,
        "matched": len(matched(study, stage)),
        "fields": listing([field_name(name) for name in stage.varied]),
    }


def _samples(study: StudyRecord) -> str:
    splits = study.data.splits
    return ", ".join(f"{as_text(splits[name].samples)} {name}" for name in ("train", "val", "test") if name in splits)


def _key_figures(study: StudyRecord, staged: float | None) -> list[tuple[str, str]]:
    final, cost, metric, published = study.final, study.cost, study.metric.title, study.published_study
    spread = "" if final is None or final.score.low is None else f" ({interval(final.score.low, final.score.high)})"
    return [
        (f"test {metric}{spread}", share_text(final.score.mean if final else None)),
        (study.metric.baseline, share_text(final.baseline if final else None)),
        *([(f"published ({published.data})", share_text(published.final_map))] if published else []),
        (f"validation {metric}", share_text(staged)),
        ("configurations x seeds", f"{as_text(cost.trials if cost else None)} x {len(study.seeds)}"),
        ("epochs saved", _saved(cost)),
    ]


def _saved(cost: Cost | None) -> str:
    if cost is None or not cost.epochs_without_stopping:
        return UNKNOWN
    return f"{100 * (1 - cost.epochs / cost.epochs_without_stopping):.0f} %"


def _facts(study: StudyRecord) -> list[tuple[str, str]]:
    data = study.data
    metric = study.metric.title
    return [
        ("Sample table", as_text(shown(data.samples))),
        ("Samples", _samples(study)),
        ("Images", ", ".join(f"{as_text(own.images)} {name}" for name, own in data.splits.items())),
        *([("Labels", f"{len(data.labels)}")] if data.labels else []),
        ("Seeds", ", ".join(map(str, study.seeds))),
        (
            "Chosen on",
            f"validation {metric}, mean over seeds at each seed's best epoch; ties by paired bootstrap over images",
        ),
        ("Test was scored", as_text(study.test.scored_at if study.test else None)),
    ]


def _comparison(study: StudyRecord) -> list[str]:
    joint = study.comparison
    if joint is None:
        return []
    gap = joint.gap
    sentence = (
        f"Joint − staged on validation: {share_text(gap.difference, sign=True)} {study.metric.title} "
        f"(95 % interval {interval(gap.low, gap.high, sign=True)}): {joint.verdict}."
    )
    return [sentence, joint.reason]


def _curves(folder: StudyFolder, study: StudyRecord) -> list[tuple[str, TrialRecord]]:
    """Returns the winners in the order of the stages, without duplicates, if the records of their trials are kept."""
    carried: dict[str, list[str]] = {}
    configs: dict[str, dict[str, Any]] = {}
    so_far: dict[str, Any] = {}
    for stage in study.parts:
        winner = stage.chosen
        so_far = {**({} if stage is study.joint else so_far), **winner.config}
        carried.setdefault(winner.key, []).append(stage.title)
        configs[winner.key] = dict(so_far)
    found = [(f"{listing(names)}: {config_text(shown(configs[key]))}", folder.read_trial(key))
             for key, names in carried.items()]  # fmt: skip
    return [(title, trial) for title, trial in found if trial is not None]


def _argmax(study: StudyRecord, scores: FinalScores | None) -> list[tuple[str, str, str]]:
    published = study.published_study
    if scores is None or published is None:
        return []
    mean = scores.published
    ours = (mean.accuracy, mean.precision, mean.recall, mean.f1)
    names = ("Accuracy", "Precision, weighted", "Recall, weighted", "F1, weighted")
    return [(name, f"{a:.4f}", f"{b:.4f}") for name, a, b in zip(names, ours, published.final_argmax, strict=True)]


def _heat_maps(study: StudyRecord, scores: FinalScores | None) -> list[tuple[str, str | None]]:
    if scores is None:
        return []
    labels = study.data.labels
    return [
        (
            "Which emotions the annotators gave together. The diagonal is 1.",
            _image(plots.heat_map(scores.true, labels, title="What is true", across="share who also truly have")),
        ),
        (
            "Which emotions the model gave to them, at thresholds from validation. The diagonal is recall; a dark "
            "column is an emotion that is given to nearly all.",
            _image(plots.heat_map(scores.predicted, labels, title="What was predicted", across="share who were given")),
        ),
    ]


def _cost(cost: Cost | None) -> list[tuple[str, str]]:
    if cost is None:
        return []
    time = f"{cost.seconds:,.0f} s" if cost.seconds < 120 else f"{cost.seconds / 60:,.1f} min"
    return [
        ("Configurations asked for", as_text(cost.trials)),
        ("Trained", as_text(cost.trained)),
        ("Reused from an earlier stage", as_text(cost.reused)),
        ("Stopped early", as_text(cost.stopped)),
        ("Epochs run, over all seeds", as_text(cost.epochs)),
        ("Epochs without early stopping", as_text(cost.epochs_without_stopping)),
        ("Epochs saved", _saved(cost)),
        ("Time", time),
    ]


def _provenance(study: StudyRecord) -> list[tuple[str, str]]:
    identity = study.identity.items()
    return [
        ("Status", study.status),
        *((name, as_text(shown(value))) for name, value in identity if not isinstance(value, Mapping)),
        *((f"Version of {name}", version) for name, version in study.versions.items()),
    ]


def _lines(study: StudyRecord) -> list[str]:
    """Formats the stages as a table for a terminal."""
    overview = tables.stage_overview(study)
    rows = [list(overview.head), *([cell.text for cell in row] for row in overview.rows)]
    if (joint := study.joint) is not None:
        entry, winner = study.on_test(joint), joint.chosen
        test = "–"
        if entry is not None:
            test = f"{tables.with_spread(entry.score)} ({interval(entry.score.low, entry.score.high)})"
        config = config_text(shown(winner.config), joint.varied)
        rows.append([joint.title, config, tables.with_spread(winner.score), "", "", test, "", ""])
    keep = [0, 1, 2, 4, 5, *([7] if study.published else [])]
    head, *body = [[row[i] for i in keep] for row in rows]
    score, metric = study.final.baseline if study.final else None, study.metric
    lower = "" if metric.higher_is_better else ", lower is better"
    return [
        *table_lines(head, body, left=(0, 1)), f"{metric.title}{lower}; {metric.baseline} on test {share_text(score)}"
    ]  # fmt: skip


def configuration_lines(study: StudyRecord, stage: StageRecord) -> list[str]:
    """Formats the configurations of a stage, best first, and the baseline as a table for a terminal."""
    table, width = tables.stage_table(study, stage), len(stage.varied)
    rows = [[cell.text for cell in row] for row in table.rows]
    baseline = [study.metric.baseline, *[""] * (width - 1), share_text(study.baseline)]
    rows.append([*baseline, *[""] * (len(table.head) - len(baseline))])
    return table_lines(table.head, rows, left=range(width))
