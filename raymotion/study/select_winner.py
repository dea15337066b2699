"""Which configuration a stage carries on: by validation alone, and with no more confidence than the data allow.

The public study carries on whatever scores highest, one seed each; its gaps are smaller than what a second run of the
same configuration changes (31.23 against 31.35). Here a difference counts if it survives a paired bootstrap over the
validation images and is more than two of its standard errors between seeds. What does not differ is a tie, and a tie
keeps what there was: a change needs evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raymotion.errors import RunFailed
from raymotion.learning.paired import PairedGain, paired_map_gain
from raymotion.learning.significance import is_significant, seed_error

Ties = Literal["incumbent", "highest"]


@dataclass(frozen=True)
class Candidate:
    """A complete trial.

    Attributes:
        maps: best validation mAP of each seed. probabilities: of those epochs, (seeds, n, L).
        name: what it is called in sentences.
    """

    key: str
    maps: Sequence[float]
    probabilities: np.ndarray = field(repr=False)
    parameters: int
    name: str = ""

    @property
    def mean(self) -> float:
        return float(np.mean(self.maps))


@dataclass(frozen=True)
class Compared:
    """The leader's lead over another candidate, in mAP.

    Attributes:
        low, high: its 95 % interval over images. seed_error: its standard error between seeds; None of one seed.
        tied: whether images or seeds alone could have made it.
    """

    key: str
    difference: float
    low: float
    high: float
    tied: bool
    seed_error: float | None = None

    @property
    def noise(self) -> str:
        """What the difference is held against, for sentences."""
        seeds = "" if self.seed_error is None else f", seeds ±{2 * self.seed_error:.4f}"
        return f"95 % over images {self.low:+.4f} to {self.high:+.4f}{seeds}"


@dataclass(frozen=True)
class Choice:
    """What is carried on, why, and what it was compared with."""

    key: str
    leader: str
    incumbent: str | None
    reason: str
    compared: list[Compared]

    @property
    def tied(self) -> list[str]:
        """Keys of the candidates that the data do not tell from the leader."""
        return [other.key for other in self.compared if other.tied]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    candidates: Sequence[Candidate],
    targets: np.ndarray,
    *,
    groups: Sequence[str],
    incumbent: str | None = None,
    ties: Ties = "incumbent",
    resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """The configuration to carry on.

    The leader has the highest mean over the seeds. Those over which its lead is not significant
    (`learning.significance.is_significant`) are tied with it; of one seed, what the images say is all there is. Among
    the tied: the incumbent, else the one with the fewest parameters, else the higher mean.

    Args:
        targets: validation's, (n, L) of 0 and 1. groups: the image of each person; resamples draw whole images.
        incumbent: key of what the stage before carried on.
        ties: `highest` takes the leader whatever is tied with it.

    Raises:
        RunFailed: nothing to choose from.
    """
    if not candidates:
        raise RunFailed("no configuration of this stage was trained to its end")
    ranked = sorted(candidates, key=lambda own: (-own.mean, own.parameters, own.key))
    leader, others = ranked[0], ranked[1:]
    compared = []
    error = seed_error([own.maps for own in candidates])
    for other in others:
        gain = paired_map_gain(
            targets, leader.probabilities, other.probabilities, groups=groups, resamples=resamples, seed=seed
        )
        compared.append(judged(other.key, gain, error))
    tied = [leader, *(own for own, result in zip(others, compared, strict=True) if result.tied)]
    kept = next((own for own in tied if own.key == incumbent), None)
    if ties == "highest" or len(tied) == 1:
        chosen = leader
    else:
        chosen = kept or min(tied, key=lambda own: (own.parameters, -own.mean))
    lead = {other.key: result for other, result in zip(others, compared, strict=True)}
    return Choice(
        chosen.key,
        leader.key,
        incumbent,
        _reason(chosen, leader, ranked, lead, None if ties == "highest" else incumbent, ties),
        compared,
    )


def judged(key: str, gain: PairedGain, error: float | None) -> Compared:
    """A gain over another candidate, and whether it is one."""
    value = gain.value or 0.0
    tied = is_significant(value, error, tied=gain.tied) is False
    return Compared(key, value, gain.low or 0.0, gain.high or 0.0, tied, error)


def _reason(
    chosen: Candidate,
    leader: Candidate,
    ranked: Sequence[Candidate],
    lead: dict[str, Compared],
    incumbent: str | None,
    rule: Ties,
) -> str:
    """One sentence, with the numbers it rests on."""
    if len(ranked) == 1:
        return f"{_name(leader)} is the only one that was trained to its end (mAP {leader.mean:.4f})."
    ties = [own for own in ranked if own.key in lead and lead[own.key].tied]
    if chosen is leader:
        second = ranked[1]
        gap = lead[second.key]
        text = (
            f"{_name(leader)} leads with mAP {leader.mean:.4f}; the next, {_name(second)}, is {gap.difference:.4f} "
            f"behind ({gap.noise})"
        )
        if not ties:
            return text + ", which is a difference."
        if rule == "highest":
            why = "a tie goes to the highest here"
        else:
            smallest = all(own.parameters > chosen.parameters for own in ties)
            small = "it is the smallest of the tied" if smallest else "none of the tied is smaller"
            why = "it was carried in" if chosen.key == incumbent else small
        return text + f"; {_count(ties)} tied with it, and {why}."
    gap = lead[chosen.key]
    if chosen.key == incumbent:
        why = "which is no evidence for a change: it stays"
    else:
        sizes = f"{chosen.parameters:,} weights, not {leader.parameters:,}"
        why = f"which is a tie, and it is the smallest of the tied ({sizes})"
    return f"{_name(leader)} scores {gap.difference:.4f} more than {_name(chosen)} ({gap.noise}), {why}."


def _count(ties: Sequence[Candidate]) -> str:
    return "1 other is" if len(ties) == 1 else f"{len(ties)} others are"


def _name(own: Candidate) -> str:
    return own.name or own.key
