"""The page of a study: one HTML file that opens offline and runs no script."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from raymotion.published.emotic_study import FINAL_ARGMAX, FINAL_MAP
from raymotion.report import study_plots as plots
from raymotion.report import study_tables as tables
from raymotion.report.page import as_text, template
from raymotion.report.study_findings import (
    UNKNOWN,
    cautions,
    comparison,
    config_text,
    field_name,
    interval,
    listing,
    noise_sentences,
    notices,
    pooled_sd,
    rank_correlation,
    share_text,
    value_text,
    verdict,
)
from raymotion.report.study_folder import JOINT, Stage, StudyFolder, number, shown
from raymotion.report.study_scores import FinalScores


def render(study: StudyFolder, scores: FinalScores | None, why_not: str) -> str:
    """The page's HTML.

    Args:
        scores: from the final configuration's predictions; None, with the reason, where they are not there.
    """
    state, headline = verdict(study)
    untrustworthy = cautions(study)
    sd = pooled_sd([trial for stage in study.stages for trial in stage.trials if trial.complete])
    staged = _staged_winner(study)
    return template("study.html.j2").render(
        state=state,
        headline=headline,
        cautions=untrustworthy,
        notices=notices(study),
        persons=_persons(study),
        key_figures=_key_figures(study),
        facts=_facts(study),
        overview=tables.stage_overview(study),
        steps=image(plots.steps_figure(study, sd)),
        stages=[_stage(stage) for stage in study.stages],
        noise=tables.noise_table(study),
        noise_sentences=noise_sentences(study),
        joint=None if study.joint is None else _stage(study.joint),
        joint_figure=None if study.joint is None else image(plots.joint_figure(study.joint, staged)),
        joint_stopped=(study.record.get("joint") or {}).get("stopped"),
        comparison=_comparison(study),
        curves=image(plots.curves_figure(_curves(study))),
        final=study.final,
        final_config=_final_config(study),
        final_rows=_final_rows(study),
        classes=None if study.final is None else tables.class_table(study.final),
        class_figure=None
        if study.final is None
        else image(plots.class_figure(study.final, published=not untrustworthy)),
        comparable=not untrustworthy,
        argmax=_argmax(scores),
        why_not=why_not,
        prevalence=tables.prevalence_table(study),
        heat_maps=_heat_maps(study, scores),
        cost=_cost(study),
        provenance=_provenance(study),
        settings=json.dumps(shown(study.record.get("settings") or {}), indent=2, ensure_ascii=False),
    )


def image(data: bytes | None) -> str | None:
    """PNG bytes as a data address."""
    return None if data is None else "data:image/png;base64," + base64.b64encode(data).decode()


def _stage(stage: Stage) -> dict[str, Any]:
    found = rank_correlation(stage)
    complete = sum(trial.complete for trial in stage.trials)
    return {
        "title": stage.title,
        "name": stage.name,
        "reason": stage.reason or ("Nothing was chosen yet." if stage.winner is None else "No reason was recorded."),
        "counts": f"{complete} of {len(stage.trials)} configurations complete",
        "stopped": sum(trial.status == "stopped" for trial in stage.trials),
        "figure": image(plots.stage_figure(stage)) if stage.name != JOINT else None,
        "table": tables.stage_table(stage),
        "unmatched": tables.unmatched_table(stage),
        "correlation": None if found is None else (f"{found[0]:+.2f}".replace("-", "−"), found[1]),
        "published": len(stage.published),
        "matched": sum(trial.complete and trial.published is not None for trial in stage.trials),
        "fields": listing([field_name(name) for name in stage.varied]),
    }


def _staged_winner(study: StudyFolder) -> float | None:
    decided = [stage for stage in study.stages if stage.winner is not None]
    winner = decided[-1].trial(decided[-1].winner) if decided else None
    return None if winner is None else winner.mean


def _persons(study: StudyFolder) -> str:
    splits = (study.record.get("data") or {}).get("splits") or {}
    parts = [f"{as_text(splits[name].get('persons'))} {name}" for name in ("train", "val", "test") if name in splits]
    return ", ".join(parts) or "not recorded"


def _key_figures(study: StudyFolder) -> list[tuple[str, str]]:
    final, cost = study.final, study.record.get("cost") or {}
    staged = _staged_winner(study)
    spread = "" if final is None or final.low is None else f" ({interval(final.low, final.high)})"
    return [
        (f"test mAP{spread}", share_text(final.mean if final else None)),
        ("chance", share_text(final.chance if final else None)),
        ("published (EMOTIC)", share_text(FINAL_MAP)),
        ("validation mAP", share_text(staged)),
        ("configurations x seeds", f"{as_text(cost.get('trials'))} x {len(study.seeds)}"),
        ("epochs saved", _saved(cost)),
    ]


def _saved(cost: Mapping[str, Any]) -> str:
    run, planned = number(cost.get("epochs")), number(cost.get("epochs_without_stopping"))
    return UNKNOWN if run is None or not planned else f"{100 * (1 - run / planned):.0f} %"


def _facts(study: StudyFolder) -> list[tuple[str, str]]:
    data = study.record.get("data") or {}
    splits = data.get("splits") or {}
    images = [
        f"{as_text(splits[name].get('images'))} {name}" for name in splits if splits[name].get("images") is not None
    ]
    return [
        ("Samples", as_text(shown(data.get("samples")))),
        ("Persons", _persons(study)),
        ("Images", ", ".join(images) or "not recorded"),
        ("Labels", f"{len(study.labels)}"),
        ("Seeds", ", ".join(map(str, study.seeds)) or "not recorded"),
        (
            "Chosen on",
            "validation mAP, mean over seeds at each seed's best epoch; ties by paired bootstrap over images",
        ),
        ("Test was scored", as_text((study.record.get("test") or {}).get("scored_at"))),
    ]


def _comparison(study: StudyFolder) -> list[str]:
    joint = comparison(study)
    if joint is None:
        return []
    sentence = (
        f"Joint − staged on validation: {share_text(joint.gain, sign=True)} mAP "
        f"(95 % interval {interval(joint.low, joint.high, sign=True)}): {joint.verdict}."
    )
    return [sentence, *([joint.reason] if joint.reason else [])]


def _curves(study: StudyFolder) -> list[tuple[str, list[Mapping[str, Any]], list[int]]]:
    """The winners in the order of the stages, each once."""
    carried: dict[str, list[str]] = {}
    configs: dict[str, dict[str, Any]] = {}
    so_far: dict[str, Any] = {}
    for stage in (*study.stages, *([study.joint] if study.joint else [])):
        winner = stage.trial(stage.winner)
        if winner is None:
            continue
        so_far = {**({} if stage is study.joint else so_far), **winner.config}
        carried.setdefault(winner.key, []).append(stage.title)
        configs[winner.key] = dict(so_far)
    return [
        (f"{listing(names)}: {config_text(shown(configs[key]))}", study.epochs(key), study.best_epochs(key))
        for key, names in carried.items()
    ]


def _final_config(study: StudyFolder) -> list[tuple[str, str]]:
    return [] if study.final is None else [(name, value_text(shown(v))) for name, v in study.final.config.items()]


def _final_rows(study: StudyFolder) -> list[tuple[str, list[str]]]:
    """Test scores of every carried configuration; the last stage's is the final one."""
    return [
        (
            entry.name,
            [
                tables.with_spread(entry.mean, entry.sd),
                interval(entry.low, entry.high),
                share_text(entry.chance),
                share_text(entry.interpolated),
                *(share_text(number(entry.thresholded.get(name))) for name in ("micro_f1", "macro_f1")),
            ],
        )
        for entry in study.scored
    ]


def _argmax(scores: FinalScores | None) -> list[tuple[str, str, str]]:
    if scores is None:
        return []
    mean = scores.mean
    ours = (mean.accuracy, mean.precision, mean.recall, mean.f1)
    names = ("Accuracy", "Precision, weighted", "Recall, weighted", "F1, weighted")
    return [(name, f"{a:.4f}", f"{b:.4f}") for name, a, b in zip(names, ours, FINAL_ARGMAX, strict=True)]


def _heat_maps(study: StudyFolder, scores: FinalScores | None) -> list[tuple[str, str | None]]:
    if scores is None:
        return []
    found = [
        (
            "Which emotions the annotators gave together. The diagonal is 1.",
            plots.heat_map(scores.true, study.labels, title="What is true", across="share who also truly have"),
        )
    ]
    if scores.said is not None:
        found.append(
            (
                "Which emotions the model gave to them, at thresholds from validation. The diagonal is recall; a dark "
                "column is an emotion that is given to nearly everybody.",
                plots.heat_map(scores.said, study.labels, title="What was predicted", across="share who were given"),
            )
        )
    return [(text, image(data)) for text, data in found]


def _cost(study: StudyFolder) -> list[tuple[str, str]]:
    cost = study.record.get("cost") or {}
    seconds = number(cost.get("seconds"))
    time = "not recorded" if seconds is None else f"{seconds:,.0f} s" if seconds < 120 else f"{seconds / 60:,.1f} min"
    run, planned = cost.get("epochs"), cost.get("epochs_without_stopping")
    return [
        ("Configurations asked for", as_text(cost.get("trials"))),
        ("Trained", as_text(cost.get("trained"))),
        ("Reused from an earlier stage", as_text(cost.get("reused"))),
        ("Stopped early", as_text(cost.get("stopped"))),
        ("Epochs run, over all seeds", as_text(run)),
        ("Epochs without early stopping", as_text(planned)),
        ("Epochs saved", _saved(cost)),
        ("Time", time),
    ]


def _provenance(study: StudyFolder) -> list[tuple[str, str]]:
    identity, versions = study.record.get("identity"), study.record.get("versions")
    rows = [("Status", as_text(study.record.get("status")))]
    if isinstance(identity, Mapping):
        rows += [
            (str(name), as_text(shown(value))) for name, value in identity.items() if not isinstance(value, Mapping)
        ]
    if isinstance(versions, Mapping):
        rows += [(f"Version of {name}", str(version)) for name, version in versions.items()]
    return rows
