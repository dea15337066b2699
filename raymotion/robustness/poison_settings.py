"""The settings of a poisoning experiment. Imports nothing heavy: the command line reads them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from raymotion.config import Metavar, Settings

Attack = Literal["trigger", "flip", "collision"]
Share = Annotated[float, Field(ge=0, le=1), Metavar("SHARE")]
# The attacks that read a setting; all read those that are not here.
ONLY_OF: dict[str, tuple[Attack, ...]] = {
    "patch": ("trigger",),
    "attacked": ("collision",),
    "max_change": ("collision",),
    "max_pixels": ("collision",),
    "iterations": ("collision",),
    "closeness": ("collision",),
}


def rate_name(rate: float) -> str:
    """Returns the name of a rate's folder."""
    return "clean" if not rate else f"rate-{rate:g}"


class PoisonSettings(Settings):
    """What is poisoned, how, and how much of it."""

    attack: Attack = Field(
        "trigger",
        description="trigger: a patch in the picture, and the target label (added to the others, where several may "
        "apply). flip: the target label in place of the source label (without one: of all labels), the picture stays. "
        "collision: the picture alone is changed, its label stays true (Shafahi et al. 2018)",
    )
    target: Annotated[str, Metavar("LABEL")] | None = Field(
        None,
        description="label that the attacker wants to be said; collision may leave it out: then each attacked picture "
        "has one of its own",
    )
    source: Annotated[str, Metavar("LABEL")] | None = Field(
        None, description="only samples of this label are to be mistaken.  [default: of any other label]"
    )
    rates: tuple[Share, ...] = Field(
        (0.0, 0.01, 0.05, 0.15),
        description="shares of the training split to poison (repeatable); 0, the clean model, is always among them",
    )
    seeds: int = Field(3, ge=1, description="runs of each rate, with the recipe's seeds 0, 1 ...")
    attack_seed: int = Field(0, ge=0, description="seed of the draw of poisoned rows and attacked pictures")
    patch: float = Field(
        0.2, gt=0, le=0.5, description="trigger: side of the patch, as a share of the picture's shorter side"
    )
    attacked: int = Field(10, ge=1, description="collision: number of test pictures that are to be mistaken")
    max_change: int = Field(
        16,
        ge=1,
        le=255,
        description="collision: largest change of any colour value, in levels of 0 to 255 (L-infinity)",
    )
    max_pixels: float = Field(
        0.5, gt=0, le=1, description="collision: largest share of a picture's pixels that may change"
    )
    iterations: int = Field(200, ge=1, description="collision: steps of the forward-backward splitting")
    closeness: float = Field(
        0.1, ge=0, description="collision: weight of staying close to the base picture, against the features' distance"
    )
    defences: bool = Field(True, description="leave out how many of the poisons three defences find")

    @field_validator("rates")
    @classmethod
    def _with_the_clean_one(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        names = [rate_name(rate) for rate in value]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a rate is named twice: more than one has the folder {twice[0]}")
        if not any(value):
            raise ValueError("nothing is poisoned: name a rate above 0")
        return tuple(sorted({0.0, *value}))

    @model_validator(mode="after")
    def _all_are_read(self) -> PoisonSettings:
        """Refuses settings that this attack does not read, wherever they were set."""
        unread = [
            name for name, attacks in ONLY_OF.items() if name in self.model_fields_set and self.attack not in attacks
        ]
        if unread:
            raise ValueError(f"the attack {self.attack} does not read {', '.join(unread)}: leave them out")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> PoisonSettings:
        if self.target is None and self.attack != "collision":
            raise ValueError(f"the attack {self.attack} needs a target: the label that is to be said (--target LABEL)")
        if self.target is not None and self.target == self.source:
            raise ValueError(f"source and target are both {self.target!r}")
        return self

    @property
    def poisoned(self) -> tuple[float, ...]:
        """The rates above 0, in order."""
        return tuple(rate for rate in self.rates if rate)
