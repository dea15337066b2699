"""The findings of a study, as sentences and numbers computed from its record."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymotion.learning.significance import headline
from raymotion.report.study_inputs import random_backbones
from raymotion.study.record import StageRecord, StudyRecord, TrialLine

# With fewer pairs a rank correlation is meaningless.
FEWEST_PAIRS = 5
# Readers drop a few dozen persons; a difference of more than this share means another data set.
SAME_DATA = 0.05
UNKNOWN = "–"
UNSCORED = "the test split was not scored yet"
UNSCORED_COMPLETE = "the samples have no test split, so nothing was scored on one"


def share_text(value: float | None, *, sign: bool = False, digits: int = 4) -> str:
    """Formats a metric as a share of 1, for pages and terminal; a dash if unknown."""
    if value is None or math.isnan(value):
        return UNKNOWN
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """Formats an interval as `0.2900 to 0.3120`; a dash if unknown."""
    return UNKNOWN if low is None or high is None else f"{share_text(low, sign=sign)} to {share_text(high, sign=sign)}"


def field_name(field: str) -> str:
    """Shortens a dotted field to a heading: `backbones.context` -> `context`, `loss.name` -> `loss`."""
    parts = [part for part in field.split(".") if part != "name"] or [field]
    return parts[-1]


def value_text(value: Any) -> str:
    """Formats a field's value."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items()) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def config_text(config: Mapping[str, Any], fields: Sequence[str] | None = None) -> str:
    """Formats the values of a configuration as in the published tables: `swin / swin / efficientnet_b7`."""
    names = [name for name in (fields if fields is not None else config) if name in config]
    return " / ".join(value_text(config[name]) for name in names) or "as it was"


def listing(names: Sequence[str]) -> str:
    """Joins names as `a`, `a and b`, or `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def shown(value: Any) -> Any:
    """Shortens the paths and addresses in a recorded value to their last part."""
    if isinstance(value, Mapping):
        return {str(key): shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    if isinstance(value, str):
        without_hosts = re.sub(r"[a-zA-Z0-9+]+://(?:[^\s/'\"]+/)*", "", value)
        return re.sub(r"(?<![\w.)])/(?:[^\s/'\"]+/)+", "", without_hosts)
    return value


def pooled_sd(trials: Sequence[TrialLine]) -> float | None:
    """Computes the standard deviation of validation scores between seeds, pooled over configurations."""
    spreads = [own.score.sd for own in trials if own.complete and own.score is not None and own.score.sd is not None]
    return math.sqrt(math.fsum(sd * sd for sd in spreads) / len(spreads)) if spreads else None


def matched(study: StudyRecord, stage: StageRecord) -> list[tuple[TrialLine, float]]:
    """Returns the complete trials that the published study also ran, with its test mAP."""
    known = study.published_stage(stage)
    pairs = [(own, known.score_of(own.config)) for own in stage.complete] if known else []
    return [(own, score) for own, score in pairs if score is not None]


def rank_correlation(study: StudyRecord, stage: StageRecord) -> tuple[float, int] | None:
    """Computes Spearman's correlation of our validation score with the published test mAP over common configurations.

    Returns:
        The correlation and the number of configurations; None for fewer than `FEWEST_PAIRS`, or if one side is
        constant.
    """
    pairs = [(own.mean, score) for own, score in matched(study, stage)]
    if len(pairs) < FEWEST_PAIRS or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr

    ours, theirs = zip(*pairs, strict=True)
    return float(spearmanr(ours, theirs).statistic), len(pairs)


def verdict(study: StudyRecord) -> tuple[str, str]:
    """Returns the headline of page and terminal: "good", "unsure" or "bad", and one sentence."""
    parts, warnings, failures = [], cautions(study), []
    if not study.complete:
        warnings.append("the study is not complete")
        stages = len(study.stages)
        parts.append(f"Not complete: {stages} stage{'' if stages == 1 else 's'} decided so far")
    decided = [stage for stage in study.stages if stage.decided is not None]
    parts += [_first_sentence(stage) for stage in decided if stage.winner.incumbent is None]
    later = [stage for stage in decided if stage.winner.incumbent is not None]
    gained = [stage.name for stage in later if stage.decided]
    same = [stage.name for stage in later if not stage.decided]
    if gained and same:
        parts.append(f"of the later stages {listing(gained)} gained beyond noise and {listing(same)} did not")
    elif later:
        parts.append(f"{'every' if gained else 'no'} later stage gained beyond noise ({listing(gained or same)})")
    if (joint := study.comparison) is not None:
        gap = joint.gap
        low_high = interval(gap.low, gap.high, sign=True)
        parts.append(f"{joint.verdict} ({share_text(gap.difference, sign=True)}, {low_high})")
    final, published = study.final, study.published_study
    if final is None:
        warnings.append("nothing was scored on test")
        parts.append(UNSCORED_COMPLETE if study.complete else UNSCORED)
    else:
        score, baseline, metric = final.score, final.baseline, study.metric
        text = f"test {metric.title} is {share_text(score.mean)}"
        text += "" if score.low is None else f" (95 % interval {interval(score.low, score.high)})"
        text += "" if metric.higher_is_better else ", lower is better"
        text += "" if baseline is None else f", and {metric.baseline} scores {share_text(baseline)}"
        if published is not None:
            text += f"; the published study reports {share_text(published.final_map)} on {published.data}"
        parts.append(text)
        worst = score.low if metric.higher_is_better else score.high
        if baseline is not None and metric.gain((score.mean if worst is None else worst) - baseline) <= 0:
            failures.append(f"no better than {metric.baseline} on test")
    if len(study.seeds) < 2:
        warnings.append("one seed says nothing of the spread between seeds")
    text = "; ".join(parts)
    text = f"{text[0].upper()}{text[1:]}."
    return headline({}, dict.fromkeys(("good", "bad"), text), failures=failures, warnings=warnings).state, text


def _first_sentence(stage: StageRecord) -> str:
    """Describes a stage without an incumbent from an earlier stage."""
    beaten, others = sum(other.significant is True for other in stage.winner.compared), len(stage.winner.compared)
    if stage.decided:
        return f"in {stage.name} the leader beats every other choice beyond noise"
    if beaten:
        return (
            f"in {stage.name} the leader beats {beaten} of {others} other choices beyond noise and cannot be told "
            "from the rest"
        )
    return f"no choice of {stage.name} stands out from the noise"


def cautions(study: StudyRecord) -> list[str]:
    """Returns prominent warnings: why the numbers cannot be compared with published ones, or mean little."""
    found = []
    published = study.published_study
    if published is not None:
        theirs = published.persons
        ours = {name: study.data.splits[name].samples if name in study.data.splits else 0 for name in theirs}
        if any(abs(ours[name] - theirs[name]) > SAME_DATA * theirs[name] for name in theirs):
            numbers = [" / ".join(f"{n:,}" for n in persons.values()) for persons in (ours, theirs)]
            found.append(
                f"NOT THE {published.data} DATA SET (synthetic, or a part of it): {numbers[0]} persons in "
                f"{' / '.join(theirs)}, where {published.data} has {numbers[1]}. "
                "Published figures stand beside ours to show the form of the table; the two cannot be compared."
            )
    untrained = random_backbones(study)
    if untrained:
        found.append(
            f"RANDOM BACKBONES: {listing(untrained)} {'was' if len(untrained) == 1 else 'were'} never trained. Such "
            "features tell colours and textures apart, no more; the study shows that the machinery works, not how well "
            "emotions can be told."
        )
    return found


def notices(study: StudyRecord) -> list[str]:
    """Returns one sentence for each missing part."""
    found = []
    if not study.complete:
        found.append(f"The study's status is {study.status}: this page shows what is there so far.")
    if len(study.seeds) < 2:
        found.append("One seed: nothing is known of the spread between seeds, and no difference is beyond it.")
    for stage in study.parts:
        if failed := stage.count("failed"):
            plural = "" if failed == 1 else "s"
            found.append(f"{stage.title}: {failed} configuration{plural} failed and could not be compared.")
    return [*found, *(f"Left out: {own.reason}." for stage in study.parts for own in stage.left_out)]


def noise_sentences(study: StudyRecord) -> list[str]:
    """Compares the spread between seeds with the differences that decide the stages."""
    sentences = []
    sd = pooled_sd([own for stage in study.stages for own in stage.trials])
    if sd is not None:
        n = len(study.seeds)
        sentences.append(
            f"One seed's validation {study.metric.title} scatters about its configuration's mean with a standard "
            f"deviation of {share_text(sd)}, the mean of {n} seeds with about {share_text(sd / math.sqrt(n))}."
        )
    leads = [(stage.name, stage.lead.significant) for stage in study.stages if stage.lead is not None]
    known = [(name, significant) for name, significant in leads if significant is not None]
    if known:
        tied = [name for name, significant in known if not significant]
        sentences.append(
            f"The best configuration's lead over the second is noise in {len(tied)} of {len(known)} stages"
            f"{f' ({listing(tied)})' if tied else ''}, by the rule that the choices follow: the images, and twice the "
            "standard error between seeds."
        )
    published = study.published_study
    return [*sentences, *([published.noise_sentence] if published else [])]
