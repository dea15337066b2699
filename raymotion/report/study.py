"""`raymotion study report`: a study's folder as one page, its tables as CSV, and the published study's text file."""

from __future__ import annotations

from dataclasses import dataclass

from raymotion import storage
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.report import study_tables as tables
from raymotion.report.study_findings import cautions, config_text, interval, notices, share_text, shown, verdict
from raymotion.report.study_page import render
from raymotion.report.study_scores import final_scores
from raymotion.study.record import StudyFolder, StudyRecord

PAGE = "index.html"


@dataclass(frozen=True)
class StudySummary:
    """What the page says, for a terminal.

    Attributes:
        state: "good", "unsure" or "bad"; headline: the verdict, one sentence.
        warnings: why the numbers cannot be compared with published ones, and what is missing.
        lines: the table of the stages.
        files: what was written, by name.
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

    Files: `index.html` (needs no network and runs no script), `stages.csv`, one table for each stage and the joint
    search, `per_class.csv`, and where the study repeats a published one and predictions on test are kept
    `evaluation_metrics.txt`, the mean over seeds, and one such file for each seed.

    Raises:
        InputError: the folder is no study, or a file in it is damaged.
    """
    place = StudyFolder(folder)
    study = place.require()
    scores, why_not = final_scores(place, study)
    files = {PAGE: render(place, study, scores, why_not), "stages.csv": tables.overview_csv(study)}
    for number, stage in enumerate(study.stages, 1):
        files[f"stage-{number}-{stage.name}.csv"] = tables.stage_csv(study, stage)
    if study.joint is not None:
        files["joint.csv"] = tables.stage_csv(study, study.joint)
    if study.final is not None:
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


def _lines(study: StudyRecord) -> list[str]:
    """The stages as a table for a terminal."""
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
    widths = [max(len(row[i]) for row in rows) for i in keep]
    lines = [
        "  ".join(row[i].ljust(w) if i < 2 else row[i].rjust(w) for i, w in zip(keep, widths, strict=True)).rstrip()
        for row in rows
    ]
    chance = study.final.chance if study.final else None
    return [*lines, f"{study.metric.title}; chance on test {share_text(chance)}"]
