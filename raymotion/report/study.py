"""`raymotion study report`: a study's folder as one page, its tables as CSV, and the published study's text file."""

from __future__ import annotations

from dataclasses import dataclass

from raymotion import storage
from raymotion.errors import InputError
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.published.metrics import to_text
from raymotion.report import study_tables as tables
from raymotion.report.study_findings import cautions, config_text, interval, notices, share_text, verdict
from raymotion.report.study_folder import StudyFolder, load_study, shown
from raymotion.report.study_page import render
from raymotion.report.study_scores import final_scores

PAGE, METRICS = "index.html", "evaluation_metrics.txt"


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
    search, `per_class.csv`, and where the final configuration's predictions on test are kept `evaluation_metrics.txt`,
    the mean over seeds, and `evaluation_metrics-seed-S.txt`, as the public study writes its one run.

    Raises:
        InputError: the folder is no study, or a file in it is damaged.
    """
    study = load_study(folder)
    scores, why_not = final_scores(study)
    files = {PAGE: render(study, scores, why_not), "stages.csv": tables.overview_csv(study)}
    for place, stage in enumerate(study.stages, 1):
        files[f"stage-{place}-{stage.name}.csv"] = tables.stage_csv(stage)
    if study.joint is not None:
        files["joint.csv"] = tables.stage_csv(study.joint)
    if study.final is not None:
        files["per_class.csv"] = tables.class_csv(study.final)
    if scores is not None:
        files[METRICS] = to_text(scores.mean)
        files |= {f"evaluation_metrics-seed-{seed}.txt": to_text(run) for seed, run in scores.runs.items()}
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


def _lines(study: StudyFolder) -> list[str]:
    """The stages as a table for a terminal."""
    overview = tables.stage_overview(study)
    rows = [list(overview.head), *([cell.text for cell in row] for row in overview.rows)]
    if study.joint is not None:
        joint = {entry.name: entry for entry in study.scored}.get(study.joint.name)
        winner = study.joint.trial(study.joint.winner)
        test = (
            "–" if joint is None else f"{tables.with_spread(joint.mean, joint.sd)} ({interval(joint.low, joint.high)})"
        )
        val = "–" if winner is None else tables.with_spread(winner.mean, winner.sd)
        own = "–" if winner is None else config_text(shown(winner.config), study.joint.varied)
        rows.append([study.joint.title, own, val, "", "", test, "", ""])
    keep = (0, 1, 2, 4, 5, 7)
    widths = [max(len(row[i]) for row in rows) for i in keep]
    lines = [
        "  ".join(row[i].ljust(w) if i < 2 else row[i].rjust(w) for i, w in zip(keep, widths, strict=True)).rstrip()
        for row in rows
    ]
    chance = study.final.chance if study.final else None
    return [*lines, f"mAP; chance on test {share_text(chance)}"]
