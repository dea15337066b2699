"""What an attack wants of a model's output: one class for each form of output, in `OBJECTIVES`.

An objective says for each picture whether the model had it right before (only such pictures count), what a search
minimises, and when it has succeeded. `Output.gives` names its class; another form of output is one more entry.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from raymotion.config import Metavar, Settings
from raymotion.errors import InputError, guess
from raymotion.learning.bootstrap import ratio
from raymotion.learning.metrics.retrieval import TIE, weighed_retrieval
from raymotion.models.checkpoint import CheckpointInfo
from raymotion.models.outputs.base import Output, Targets
from raymotion.models.outputs.dimensions import VALUES, Dimensions
from raymotion.models.outputs.embedding import GROUP, IMAGE, TEXT, Embedding
from raymotion.models.outputs.single_label import HARD

if TYPE_CHECKING:
    from torch import Tensor

# A probability of 0 has no logarithm; float32 knows smaller ones than this.
LEAST = 1e-37
# Of a number: how far it has to move, and how far off it may have been, in deviations of the training split; without
# these, in shares of the scale.
MOVE_SD, MOVE_SHARE = 0.25, 0.05
ERROR_SD, ERROR_SHARE = 1.0, 0.2
# Threshold of a label of a model that has fitted none, as in `raymotion evaluate`.
USUAL_THRESHOLD = 0.5

WRONG, NO_TARGET = "wrong before", "no target"


class Aim(Settings):
    """What an attack wants; which settings apply depends on the model's output."""

    target: Annotated[str, Metavar("LABEL")] | None = Field(
        None, description="of one label a picture: make the model say this one  [default: any but the true one]"
    )
    label: Annotated[str, Metavar("LABEL")] | None = Field(
        None,
        description="of several labels a picture: switch this one on or off  [default: off, any that the model gave "
        "rightly]",
    )
    dimension: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="of numbers: the one to push  [default: the first]"
    )
    push: Literal["down", "up"] | None = Field(None, description="of numbers: the direction  [default: down]")
    by: float | None = Field(
        None, gt=0, description="of numbers: how far, in units of the scale  [default: a quarter of the training "
        "split's standard deviation, or 5 % of the scale]",
    )  # fmt: skip
    within: float | None = Field(
        None, gt=0, description="of numbers: how far off the model may have been to count as right before, in units of "
        "the scale  [default: one standard deviation of the training split, or 20 % of the scale]",
    )  # fmt: skip


@dataclass(frozen=True)
class Goal:
    """The goal for one picture.

    Attributes:
        loss: maps decoded values, float tensor (n, width), to what a search minimises, (n,); differentiable.
        reached: maps decoded values, float32 (n, width), to bool (n,): the attack has succeeded.
    """

    loss: Callable[[Tensor], Tensor]
    reached: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rank:
    """Where a picture finds its own caption among those that the search compares it with.

    Attributes:
        rank: from 1; ties count against the own caption.
        own: captions of its image among them. pool: all of them.
    """

    rank: int
    own: int
    pool: int


class Objective(ABC):
    """Base of all objectives.

    Attributes:
        gives: the form of output that it attacks.
        reads: settings of `Aim` that apply.
        metric: the main metric, whose drop is reported. higher_is_better: of it. resampling_inflates: its values in
            bootstrap resamples are too high, because equal pictures are ranked side by side. metric_is_share: it is a
            share of the pictures.
        reads_captions: whether loss and success depend on the captions of the sample; without them a search is faster.
        needs_gallery: whether `gather` has to be called first, with what the model says of the captions of all samples;
            then each picture has a rank in these captions, of which the main metric is computed.
        output: the attacked output.
    """

    gives: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    metric: str
    higher_is_better: bool = True
    resampling_inflates: ClassVar[bool] = False
    metric_is_share: ClassVar[bool] = False
    reads_captions: ClassVar[bool] = True
    needs_gallery: ClassVar[bool] = False

    def __init__(self, output: Output, aim: Aim, info: CheckpointInfo) -> None:
        self.output, self.aim, self.info = output, aim, info
        for name, value in aim:
            if value is not None and name not in self.reads:
                raise InputError(
                    f"--{name} does not apply: the model's output {output.name} gives {GIVES[self.gives]}",
                    path=info.folder,
                    remedy=f"Leave it out{''.join(f', or use --{own}' for own in sorted(self.reads))}.",
                )
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Reads the settings.

        Raises:
            InputError: a label or a dimension is unknown.
        """

    @property
    @abstractmethod
    def sentence(self) -> str:
        """Says when an attack has succeeded."""

    @property
    @abstractmethod
    def right_before(self) -> str:
        """Says which pictures count."""

    @abstractmethod
    def truths(self, targets: Targets) -> np.ndarray:
        """Returns what is true of n samples, float32 (n, width or 1); NaN where it is not known."""

    def gather(self, values: np.ndarray, truths: np.ndarray) -> None:
        """Takes what the model says of the captions alone of all samples, (n, width), and what is true of them."""

    @abstractmethod
    def goal(self, truth: np.ndarray, clean: np.ndarray) -> Goal | str:
        """Returns the goal for one picture, or why it does not count.

        Args:
            truth: of the sample, one row of `truths`.
            clean: (width,) what the model says of the unchanged picture.
        """

    @abstractmethod
    def says(self, values: np.ndarray, truth: np.ndarray) -> str:
        """Returns what the model says of a picture, in words, from its decoded values (width,)."""

    def rank(self, values: np.ndarray, truth: np.ndarray) -> Rank | None:
        """Returns where a picture with the decoded values (width,) finds its caption; None unless `needs_gallery`, and
        of a sample without a caption."""
        return None

    @abstractmethod
    def weighed(
        self, targets: Targets, values: np.ndarray, ranks: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Prepares the main metric of n pictures for resampling; see `Output.weighed`.

        Args:
            values: (n, width) decoded. ranks: (n,) of `rank`; 0 where there is none.
            units: (n,) the group of each picture.
        """

    def constant(self, truths: np.ndarray) -> float | None:
        """Returns the main metric of the best constant answer to n samples, from their `truths`; None if there is none,
        or if its chance depends on captions (`Rank`)."""
        return None

    def describe(self) -> dict[str, Any]:
        """Returns the objective as JSON values."""
        return {
            "output": self.output.name, "gives": self.gives, "success": self.sentence, "counted": self.right_before,
            **self.aim.model_dump(exclude_none=True),
        }  # fmt: skip

    def _position(self, label: str, option: str) -> int:
        vocabulary = self.output.vocabulary
        assert vocabulary is not None
        if label not in vocabulary.labels:
            raise InputError(
                f"--{option} {label!r} is no label of {vocabulary.name}.{guess(label, vocabulary.labels)}",
                path=self.info.folder,
                remedy=f"Choose from {', '.join(vocabulary.labels)}.",
            )
        return vocabulary.labels.index(label)


class OneLabel(Objective):
    """The answer to a picture is one label: another one is to be the most probable, or the target."""

    gives = "one_label"
    reads = frozenset({"target"})
    metric = "accuracy"
    metric_is_share = True

    def prepare(self) -> None:
        self.place = None if self.aim.target is None else self._position(self.aim.target, "target")

    @property
    def sentence(self) -> str:
        return "the true label is no longer the answer" if self.place is None else f"the answer is {self.aim.target}"

    @property
    def right_before(self) -> str:
        return "pictures whose true label was the answer"

    def truths(self, targets: Targets) -> np.ndarray:
        return np.where(targets.known[:, None], targets.arrays[HARD], np.nan).astype(np.float32)

    def goal(self, truth: np.ndarray, clean: np.ndarray) -> Goal | str:
        if np.isnan(truth).any():
            return NO_TARGET
        true, place = int(truth.argmax()), self.place
        if true == place:
            return f"it is {self.aim.target}"
        if int(clean.argmax()) != true:
            return WRONG
        # Of the label that is to win, and of the most probable other one: logarithms, because a sure model's
        # probabilities of 1 and 0 hardly differ.
        one = true if place is None else place
        sign = 1.0 if place is None else -1.0
        others = np.flatnonzero(np.arange(len(clean)) != one)

        def loss(values: Tensor) -> Tensor:
            logs = values.double().clamp(min=LEAST).log()
            return sign * (logs[:, one] - logs[:, others].amax(dim=1))

        def reached(values: np.ndarray) -> np.ndarray:
            return np.asarray((values.argmax(axis=1) == one) == (place is not None))

        return Goal(loss, reached)

    def says(self, values: np.ndarray, truth: np.ndarray) -> str:
        place = int(values.argmax())
        assert self.output.vocabulary is not None
        return f"{self.output.vocabulary.labels[place]} {values[place]:.2f}"

    def weighed(
        self, targets: Targets, values: np.ndarray, ranks: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        return self.output.weighed("accuracy", targets, np.arange(len(values)), values, units)

    def constant(self, truths: np.ndarray) -> float | None:
        known = truths[~np.isnan(truths).any(axis=1)]
        return float(known.mean(axis=0).max()) if len(known) else None


class Labels(Objective):
    """Each label is given from its own threshold on: one is to cross it."""

    gives = "labels"
    reads = frozenset({"label"})
    metric = "mAP"
    resampling_inflates = True

    def prepare(self) -> None:
        fitted = self.info.facts(self.output.name).get("thresholds")
        self.thresholds = np.full(self.output.width, USUAL_THRESHOLD) if fitted is None else np.asarray(fitted)
        self.place = None if self.aim.label is None else self._position(self.aim.label, "label")
        if self.place is not None and not 0 < self.thresholds[self.place] < 1:
            raise InputError(
                f"--label {self.aim.label}: validation had too few samples of it for a threshold, so it never changes",
                path=self.info.folder,
                remedy="Choose another label.",
            )

    @property
    def sentence(self) -> str:
        if self.place is None:
            return "one of the labels that the model gave rightly is no longer given"
        return f"the label {self.aim.label} is given where it was not, or no longer given where it was"

    @property
    def right_before(self) -> str:
        if self.place is None:
            return "pictures with a label that the model gave rightly"
        return f"pictures for which the model was right about {self.aim.label}"

    def truths(self, targets: Targets) -> np.ndarray:
        return np.where(targets.known[:, None], targets.arrays[HARD], np.nan).astype(np.float32)

    def goal(self, truth: np.ndarray, clean: np.ndarray) -> Goal | str:
        if np.isnan(truth).any():
            return NO_TARGET
        given, right = clean >= self.thresholds, truth > 0
        if self.place is None:
            places = np.flatnonzero(given & right)
            if not len(places):
                return WRONG
            upwards = False
        else:
            places = np.array([self.place])
            if given[self.place] != right[self.place]:
                return WRONG
            upwards = not given[self.place]
        limits = self.thresholds[places]

        def loss(values: Tensor) -> Tensor:
            import torch

            p = values[:, places].double()
            # In log-odds, where steps near 0 and 1 are not lost.
            margins = p.clamp(min=LEAST).log() - (1 - p).clamp(min=1e-12).log()
            margins = margins - torch.as_tensor(np.log(np.maximum(limits, LEAST) / np.maximum(1 - limits, 1e-12)))
            return -margins[:, 0] if upwards else margins.amin(dim=1)

        def reached(values: np.ndarray) -> np.ndarray:
            return np.asarray(((values[:, places] >= limits) == upwards).any(axis=1))

        return Goal(loss, reached)

    def says(self, values: np.ndarray, truth: np.ndarray) -> str:
        assert self.output.vocabulary is not None
        labels = self.output.vocabulary.labels
        if self.place is not None:
            p, limit = values[self.place], self.thresholds[self.place]
            return f"{'' if p >= limit else 'not '}{labels[self.place]} ({p:.2f}, from {limit:.2f})"
        chosen = np.flatnonzero(values >= self.thresholds)
        return ", ".join(f"{labels[j]} {values[j]:.2f}" for j in chosen.tolist()) or "no label"

    def weighed(
        self, targets: Targets, values: np.ndarray, ranks: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        return self.output.weighed("macro_ap", targets, np.arange(len(values)), values, units)

    def constant(self, truths: np.ndarray) -> float | None:
        known = truths[~np.isnan(truths).any(axis=1)]
        rates = known.mean(axis=0) if len(known) else np.zeros(1)
        return float(rates[rates > 0].mean()) if rates.any() else None


class Numbers(Objective):
    """A number on a scale is to move."""

    gives = "numbers"
    reads = frozenset({"dimension", "push", "by", "within"})
    higher_is_better = False

    def prepare(self) -> None:
        output, aim = cast(Dimensions, self.output), self.aim
        name = aim.dimension or output.names[0]
        if name not in output.names:
            raise InputError(
                f"--dimension {name!r}: the model predicts {', '.join(output.names)}.{guess(name, output.names)}",
                path=self.info.folder,
                remedy="Choose one of them.",
            )
        self.name, self.place, self.upwards = name, output.names.index(name), aim.push == "up"
        low, high = output.scale
        sds = self.info.facts(output.name).get("sd")
        sd = None if sds is None else sds[self.place]
        self.by = aim.by or (MOVE_SD * sd if sd else MOVE_SHARE * (high - low))
        self.within = aim.within or (ERROR_SD * sd if sd else ERROR_SHARE * (high - low))
        self.metric = f"mean absolute error of {name}"

    @property
    def sentence(self) -> str:
        way = "up" if self.upwards else "down"
        return f"{self.name} moves {way} by {self.by:.3g} or more, to a larger error"

    @property
    def right_before(self) -> str:
        return f"pictures whose {self.name} was predicted within {self.within:.3g} of the truth"

    def truths(self, targets: Targets) -> np.ndarray:
        return np.asarray(targets.arrays[VALUES], np.float32)

    def goal(self, truth: np.ndarray, clean: np.ndarray) -> Goal | str:
        place, before = self.place, float(clean[self.place])
        if np.isnan(truth[place]):
            return NO_TARGET
        if abs(before - truth[place]) > self.within:
            return WRONG
        low, high = cast(Dimensions, self.output).scale
        if (high - before if self.upwards else before - low) < self.by:
            return "at the end of the scale"
        sign, error = -1.0 if self.upwards else 1.0, abs(before - float(truth[place]))

        def reached(values: np.ndarray) -> np.ndarray:
            after = values[:, place].astype(np.float64)
            # A move towards the truth, and not as far beyond it, misleads nobody.
            return np.asarray((sign * (before - after) >= self.by) & (np.abs(after - truth[place]) > error))

        return Goal(lambda values: sign * values[:, place].double(), reached)

    def says(self, values: np.ndarray, truth: np.ndarray) -> str:
        return f"{self.name} {values[self.place]:.2f}"

    def weighed(
        self, targets: Targets, values: np.ndarray, ranks: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        error = np.abs(targets.arrays[VALUES][:, self.place].astype(np.float64) - values[:, self.place])
        known = ~np.isnan(error)
        total = np.bincount(units[known], error[known], minlength=int(units.max()) + 1)
        size = np.bincount(units[known], minlength=int(units.max()) + 1)
        return lambda counts: ratio(counts @ total, counts @ size)

    def constant(self, truths: np.ndarray) -> float | None:
        known = truths[~np.isnan(truths[:, self.place]), self.place].astype(np.float64)
        return float(np.abs(known - np.median(known)).mean()) if len(known) else None

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(), "dimension": self.name, "push": "up" if self.upwards else "down", "by": self.by,
            "within": self.within,
        }  # fmt: skip


class Vectors(Objective):
    """A picture is to find the caption of another picture before its own."""

    gives = "vectors"
    reads = frozenset()
    # The picture's side of a joint space knows nothing of the captions, which `gather` has.
    reads_captions = False
    needs_gallery = True
    metric = "R@1 of captions"
    metric_is_share = True

    def prepare(self) -> None:
        output = cast(Embedding, self.output)
        if set(output.sides) != {IMAGE, TEXT}:
            raise InputError(
                f"has a space of {' and '.join(output.sides)}, and an attack needs pictures that find captions",
                path=self.info.folder,
            )

    @property
    def sentence(self) -> str:
        return "the caption of another picture is as near as its own, or nearer"

    @property
    def right_before(self) -> str:
        return "pictures whose own caption was the nearest"

    def truths(self, targets: Targets) -> np.ndarray:
        groups = targets.arrays[GROUP].astype(np.float32)[:, None]
        return np.where(targets.known[:, None], groups, np.nan).astype(np.float32)

    def gather(self, values: np.ndarray, truths: np.ndarray) -> None:
        self.texts, self.groups = self._side(values, TEXT), truths[:, 0]
        there = np.isfinite(self.texts).all(axis=1) & (self.texts != 0).any(axis=1) & ~np.isnan(self.groups)
        self.texts, self.groups = self.texts[there], self.groups[there]

    def _side(self, values: Any, side: str) -> Any:
        """Returns the vectors (n, D) of one side."""
        output = cast(Embedding, self.output)
        start = output.sides.index(side) * output.dim
        return values[:, start : start + output.dim]

    def goal(self, truth: np.ndarray, clean: np.ndarray) -> Goal | str:
        own = self.groups == truth[0]
        if not own.any():
            return NO_TARGET
        if own.all():
            return "no other picture"
        if self._rank(clean, own)[0] > 1:
            return WRONG

        def loss(values: Tensor) -> Tensor:
            import torch

            similar = self._side(values, IMAGE).double() @ torch.from_numpy(self._wide_texts).T
            return similar[:, own].amax(dim=1) - similar[:, ~own].amax(dim=1)

        def reached(values: np.ndarray) -> np.ndarray:
            return np.array([self._rank(one, own)[0] > 1 for one in values], dtype=bool)

        return Goal(loss, reached)

    @cached_property
    def _wide_texts(self) -> np.ndarray:
        """The captions' vectors in float64; they do not change after `gather`."""
        return self.texts.astype(np.float64)

    def rank(self, values: np.ndarray, truth: np.ndarray) -> Rank | None:
        own = self.groups == truth[0]
        return Rank(self._rank(values, own)[0], int(own.sum()), len(own)) if own.any() else None

    def _rank(self, values: np.ndarray, own: np.ndarray) -> tuple[int, float]:
        """Returns the rank of the own caption of one picture, where ties count against it, and its cosine."""
        similar = self._wide_texts @ self._side(values[None], IMAGE)[0].astype(np.float64)
        best = float(similar[own].max())
        return 1 + int((similar[~own] >= best - TIE).sum()), best

    def says(self, values: np.ndarray, truth: np.ndarray) -> str:
        own = self.groups == truth[0]
        if not own.any():
            return "no caption"
        rank, cosine = self._rank(values, own)
        return f"own caption at rank {rank} of {len(own):,} (cosine {cosine:.2f})"

    def weighed(
        self, targets: Targets, values: np.ndarray, ranks: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        # Of the ranks that the search saw: captions of pictures that nobody could read are among its competitors.
        rows = np.flatnonzero(ranks)
        if not len(rows):
            return lambda counts: np.full(len(counts), np.nan)
        measure, many = weighed_retrieval(ranks[rows], units[rows]), int(units[rows].max()) + 1
        return lambda counts: measure(counts[:, :many])["recall_at_1"]


GIVES = {
    "one_label": "one label a picture", "labels": "labels that apply independently", "numbers": "numbers",
    "vectors": "vectors in a joint space",
}  # fmt: skip
OBJECTIVES: Mapping[str, type[Objective]] = {own.gives: own for own in (OneLabel, Labels, Numbers, Vectors)}


def make_objective(info: CheckpointInfo, aim: Aim, output: str | None = None) -> Objective:
    """Returns the objective of an attack on one output of a model.

    Args:
        output: its name; None: the first that can be attacked.

    Raises:
        InputError: there is no such output, it cannot be attacked, or a setting does not apply to it.
    """
    names = [own.name for own in info.outputs]
    if output is not None and output not in names:
        raise InputError(
            f"has no output {output!r}.{guess(output, names)}", path=info.folder, remedy=f"Choose {' or '.join(names)}."
        )
    able = [own for own in info.outputs if own.gives in OBJECTIVES and output in (None, own.name)]
    if not able:
        raise InputError(
            f"gives {', '.join(own.gives for own in info.outputs)}, and attacks are on {', '.join(OBJECTIVES)}",
            path=info.folder,
        )
    return OBJECTIVES[able[0].gives](able[0], aim, info)
