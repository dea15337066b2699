"""What a study found, in sentences and numbers: each is computed from the record, and each says what it rests on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymotion.learning.significance import headline
from raymotion.published.emotic_study import FINAL_MAP, PERSONS
from raymotion.report.study_folder import Stage, StudyFolder, Trial, number
from raymotion.report.study_inputs import random_backbones

# Fewer pairs say nothing of an order.
FEWEST_PAIRS = 5
# Readers drop a few dozen persons of EMOTIC; more than this share is another set.
SAME_DATA = 0.05
UNKNOWN = "–"
UNSCORED = "the test split was not scored yet"
UNSCORED_COMPLETE = "the samples have no test split, so nothing was scored on one"


def share_text(value: float | None, *, sign: bool = False, digits: int = 4) -> str:
    """A share of 1, as every page and line gives its metrics; a dash where it is not known."""
    if value is None or math.isnan(value):
        return UNKNOWN
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval(low: float | None, high: float | None, *, sign: bool = False) -> str:
    """`0.2900 to 0.3120`, or a dash."""
    return UNKNOWN if low is None or high is None else f"{share_text(low, sign=sign)} to {share_text(high, sign=sign)}"


def field_name(field: str) -> str:
    """A dotted field as a heading: `backbones.context` -> `context`, `loss.name` -> `loss`."""
    parts = [part for part in field.split(".") if part != "name"] or [field]
    return parts[-1]


def value_text(value: Any) -> str:
    """A field's value in a few characters."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {value_text(item)}" for key, item in value.items()) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def config_text(config: Mapping[str, Any], fields: Sequence[str] | None = None) -> str:
    """The values of a configuration, as the published tables name theirs: `swin / swin / efficientnet_b7`."""
    names = [name for name in (fields if fields is not None else config) if name in config]
    return " / ".join(value_text(config[name]) for name in names) or "as it was"


def listing(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"


def pooled_sd(trials: Sequence[Trial]) -> float | None:
    """Standard deviation of one seed's validation mAP about its configuration's mean, pooled over configurations."""
    spreads = [trial.sd for trial in trials if trial.sd is not None and len(trial.seeds) > 1]
    return math.sqrt(math.fsum(sd * sd for sd in spreads) / len(spreads)) if spreads else None


def rank_correlation(stage: Stage) -> tuple[float, int] | None:
    """Spearman's correlation of our validation mAP with the published test mAP over the cells that both have.

    Returns:
        the correlation and the number of cells; None for fewer than `FEWEST_PAIRS`, or where one side is constant.
    """
    pairs = [(trial.mean, trial.published) for trial in stage.trials if trial.complete and trial.published is not None]
    if len(pairs) < FEWEST_PAIRS or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return None
    from scipy.stats import spearmanr

    ours, theirs = zip(*pairs, strict=True)
    return float(spearmanr(ours, theirs).statistic), len(pairs)


@dataclass(frozen=True)
class Comparison:
    """The joint search's best against the stages' best: gain in validation mAP, joint - staged, as shares.

    `tied`: the study did not take it for a difference, whatever the interval over images says.
    """

    gain: float
    low: float | None
    high: float | None
    reason: str
    tied: bool = False

    @property
    def verdict(self) -> str:
        if not self.tied and self.low is not None and self.low > 0:
            return "the joint search found a better configuration than the stages"
        if not self.tied and self.high is not None and self.high < 0:
            return "the joint search found nothing as good as the stages did"
        return "the joint search found nothing that can be told from what the stages found"


def comparison(study: StudyFolder) -> Comparison | None:
    """Staged against joint; None until both are decided."""
    entry = study.record.get("comparison") or {}
    difference, low, high = (number(entry.get(name)) for name in ("difference", "low", "high"))
    if difference is None:
        return None
    return Comparison(difference, low, high, str(entry.get("reason") or ""), bool(entry.get("tied")))


def verdict(study: StudyFolder) -> tuple[str, str]:
    """How page and terminal begin: "good", "unsure" or "bad", and one sentence."""
    parts, warnings, failures = [], cautions(study), []
    decided = [stage for stage in study.stages if stage.winner is not None]
    if not study.complete:
        warnings.append("the study is not complete")
        parts.append(f"Not complete: {len(decided)} stage{'' if len(decided) == 1 else 's'} decided so far")
    parts += [_first_sentence(stage) for stage in decided if stage.incumbent is None and stage.decided is not None]
    later = [stage for stage in decided if stage.incumbent is not None and stage.decided is not None]
    gained = [stage.name for stage in later if stage.decided]
    same = [stage.name for stage in later if not stage.decided]
    if gained and same:
        parts.append(f"of the later stages {listing(gained)} gained beyond noise and {listing(same)} did not")
    elif later:
        parts.append(f"{'every' if gained else 'no'} later stage gained beyond noise ({listing(gained or same)})")
    joint = comparison(study)
    if joint is not None:
        parts.append(
            f"{joint.verdict} ({share_text(joint.gain, sign=True)}, {interval(joint.low, joint.high, sign=True)})"
        )
    final = study.final
    if final is None:
        warnings.append("nothing was scored on test")
        parts.append(UNSCORED_COMPLETE if study.complete else UNSCORED)
    else:
        spread = "" if final.low is None else f" (95 % interval {interval(final.low, final.high)})"
        parts.append(
            f"test mAP is {share_text(final.mean)}{spread} where chance is {share_text(final.chance)} "
            f"and the published study reports {share_text(FINAL_MAP)} on EMOTIC"
        )
        if final.chance is not None and (final.low if final.low is not None else final.mean) <= final.chance:
            failures.append("no better than chance on test")
    if len(study.seeds) < 2:
        warnings.append("one seed says nothing of the spread between seeds")
    text = "; ".join(parts)
    text = f"{text[0].upper()}{text[1:]}."
    return headline({}, dict.fromkeys(("good", "bad"), text), failures=failures, warnings=warnings).state, text


def _first_sentence(stage: Stage) -> str:
    """Of a stage that nothing was carried into."""
    beaten, others = len(stage.beaten), sum(trial.against is not None for trial in stage.trials)
    if stage.decided:
        return f"in {stage.name} the leader beats every other choice beyond noise"
    if beaten:
        return (
            f"in {stage.name} the leader beats {beaten} of {others} other choices beyond noise and cannot be told "
            "from the rest"
        )
    return f"no choice of {stage.name} stands out from the noise"


def cautions(study: StudyFolder) -> list[str]:
    """Why the numbers cannot be set against published ones; a reader must not miss them."""
    found = []
    data = study.record.get("data") or {}
    persons = {name: number((data.get("splits") or {}).get(name, {}).get("persons")) for name in PERSONS}
    other = [
        name for name, n in persons.items() if n is not None and abs(n - PERSONS[name]) > SAME_DATA * PERSONS[name]
    ]
    if data.get("synthetic") or other:
        ours = " / ".join(UNKNOWN if n is None else f"{n:,.0f}" for n in persons.values())
        theirs = " / ".join(f"{n:,}" for n in PERSONS.values())
        kind = "SYNTHETIC DATA" if data.get("synthetic") else "NOT THE EMOTIC DATA SET (synthetic, or a part of it)"
        found.append(
            f"{kind}: {ours} persons in train / val / test, where EMOTIC has {theirs}. "
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


def notices(study: StudyFolder) -> list[str]:
    """What is missing, each in a sentence."""
    found = []
    status = study.record.get("status")
    if not study.complete:
        found.append(f"The study's status is {status or 'not recorded'}: this page shows what is there so far.")
    if len(study.seeds) < 2:
        found.append("One seed: nothing is known of the spread between seeds, and no difference is beyond it.")
    for stage in (*study.stages, *([study.joint] if study.joint else [])):
        failed = [trial for trial in stage.trials if trial.status == "failed"]
        if failed:
            plural = "" if len(failed) == 1 else "s"
            found.append(f"{stage.title}: {len(failed)} configuration{plural} failed and could not be compared.")
    left_out = [entry for part in (*study.record["stages"], study.record.get("joint") or {})
                for entry in part.get("left_out") or []]  # fmt: skip
    found += [f"Left out: {entry.get('reason')}." for entry in left_out]
    return found


def noise_sentences(study: StudyFolder) -> list[str]:
    """Seed spread against the differences that the stages turn on."""
    sentences = []
    sd = pooled_sd([trial for stage in study.stages for trial in stage.trials if trial.complete])
    if sd is not None:
        n = len(study.seeds)
        sentences.append(
            f"One seed's validation mAP scatters about its configuration's mean with a standard deviation of "
            f"{share_text(sd)}, the mean of {n} seeds with about {share_text(sd / math.sqrt(n))}."
        )
    leads = [(stage.name, stage.lead) for stage in study.stages if stage.lead is not None]
    told = [(name, found) for name, lead in leads if (found := lead.significant) is not None]
    if told:
        tied = [name for name, significant in told if not significant]
        sentences.append(
            f"The best configuration's lead over the second is noise in {len(tied)} of {len(told)} stages"
            f"{f' ({listing(tied)})' if tied else ''}, by the rule that the choices follow: the images, and twice the "
            "standard error between seeds."
        )
    sentences.append(
        "The published study has one seed for each configuration. A rerun of its first winner moved by 0.0012, "
        "and one network that it ran under two names differs by 0.0042; its own steps from stage to stage are "
        "+0.0004, 0.0000, +0.0034 and +0.0027."
    )
    return sentences
