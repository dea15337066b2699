"""Independent probabilities of the labels of a vocabulary: a picture may evoke several emotions, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion.data.samples import targets as label_targets
from raymotion.errors import InputError
from raymotion.learning.bootstrap import ratio
from raymotion.learning.losses.distillation import distillation_loss
from raymotion.learning.losses.multilabel import Link, MultiLabelLoss, link_of, make_loss
from raymotion.learning.metrics.average_precision import average_precision, chance_map, interpolated_by_class
from raymotion.learning.metrics.multilabel import LOWER_IS_BETTER, row_bce
from raymotion.learning.metrics.multilabel import bce as binary_cross_entropy
from raymotion.learning.metrics.multilabel import evaluate as evaluate_labels
from raymotion.learning.paired import SparseRanking
from raymotion.learning.selection import fit_class_thresholds
from raymotion.models.finite import is_number
from raymotion.models.outputs.base import DataFacts, Gives, Targets, array_digest, read_loss
from raymotion.models.outputs.labels import LabelOutput
from raymotion.models.outputs.temperatures import Temperatures
from raymotion.models.recipe import Distillation, LossSettings, MultiLabelRecipe
from raymotion.vocabulary import Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from torch import Tensor

HARD, SOFT = "hard", "soft"
# `NamedLoss.numbers` may keep a little away from 0 and 1.
CLOSE = 0.01


class MultiLabel(LabelOutput):
    """Probabilities (n, L) over a vocabulary.

    Its targets are `hard`, 0 or 1, and `soft`, the share of annotators or, for pseudo-labels, the teacher's
    probabilities.

    Args:
        loss: one of `learning.losses.multilabel.LOSSES`, which also determines the meaning of the network's numbers.
        distillation: learn `soft` with a temperature.
        soft: learn the soft targets and use them for validation.
        temperatures: calibration after training (`raymotion calibrate`).
    """

    kind_of_output: ClassVar[str] = "multilabel"
    gives: ClassVar[Gives] = "labels"
    selects: ClassVar[str] = "bce"
    metric_names: ClassVar[tuple[str, ...]] = ("bce", "macro_ap")
    lower_is_better = frozenset(LOWER_IS_BETTER)

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        name: str = "emotions",
        loss: LossSettings | None = None,
        distillation: Distillation | None = None,
        soft: bool = False,
        weight: float = 1.0,
        temperatures: Temperatures | None = None,
    ) -> None:
        self.name, self.loss, self.weight = name, loss or LossSettings(), weight
        self._vocabulary, self.distillation, self.soft = vocabulary, distillation, soft
        self.temperatures = temperatures

    @classmethod
    def of_recipe(cls, recipe: MultiLabelRecipe, facts: DataFacts) -> MultiLabel:
        """Returns the output of a recipe for the vocabulary of a sample table.

        Raises:
            InputError: the table has no vocabulary or no labels, or another vocabulary than the recipe names.
        """
        if facts.vocabulary is None or not facts.labelled:
            raise InputError("has no labels to learn from", path=facts.where)
        if (named := getattr(recipe, "vocabulary", None)) is not None:
            read_vocabulary(named).require_same(facts.vocabulary, here="the recipe", there=facts.where)
        return cls(facts.vocabulary, loss=recipe.loss, distillation=recipe.distillation, soft=recipe.data.soft_targets)

    @property
    def columns_read(self) -> tuple[str, ...]:
        own = self.temperatures
        return () if own is None or own.column is None else (own.column,)

    def adjust(self, values: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
        if (own := self.temperatures) is None:
            return values
        return own.apply(values, [None if own.column is None else row.get(own.column) for row in rows])

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind_of_output, "name": self.name, "vocabulary": self.vocabulary.to_dict(),
            "loss": self.loss.model_dump(mode="json"),
            **({} if self.temperatures is None else {"temperatures": self.temperatures.to_dict()}),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> MultiLabel:
        vocabulary = Vocabulary.from_dict(value.get("vocabulary") or {}, where=where)
        loss = read_loss(value, where=where)
        try:
            link_of(loss.name, loss.options)
        except InputError as error:
            raise InputError(f"the output {value.get('name')}: {error.reason}", path=where) from error
        stated = value.get("temperatures")
        temperatures = None if stated is None else Temperatures.from_dict(stated, where=where)
        return cls(vocabulary, name=str(value["name"]), loss=loss, temperatures=temperatures)

    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        known = np.asarray(pc.is_valid(table.column("labels")))
        rows = table.filter(pa.array(known))
        shape = (table.num_rows, self.width)
        hard, soft = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        hard[known] = label_targets(rows, self.vocabulary)
        soft[known] = label_targets(rows, self.vocabulary, soft=True) if given is None else given[known]
        return Targets({HARD: hard, SOFT: soft}, known)

    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        """Raises an `InputError` unless both splits have a label, for learning and for average precision."""
        for name in ("train", "val"):
            if not targets.arrays[HARD][splits[name]].any():
                count = len(splits[name])
                raise InputError(
                    f"not one of the {count} sample{'s' if count != 1 else ''} of the split {name} has a label",
                    path=where,
                    remedy="Label more samples, or split them otherwise (another --seed of `raymotion data prepare`).",
                )

    def contents(self, targets: Targets) -> list[Any]:
        # Rounded, because versions of Parquet may differ in the last digit.
        arrays = (targets.arrays[HARD].astype(np.int8), np.round(targets.arrays[SOFT], 6))
        return [self.vocabulary.fingerprint, *map(array_digest, arrays)]

    def learned(self, targets: Targets) -> np.ndarray:
        """Returns the targets (n, L) for training and validation."""
        return targets.arrays[SOFT if self.soft else HARD]

    def rates(self, targets: Targets, training: np.ndarray, *, soft: bool | None = None) -> np.ndarray:
        """Returns class rates of the training rows, float32 (L,), for the learned targets unless `soft` is given."""
        own = self.learned(targets) if soft is None else targets.arrays[SOFT if soft else HARD]
        return np.asarray(own[training].mean(axis=0), dtype=np.float32)

    def first_numbers(self, targets: Targets, training: np.ndarray) -> Tensor | None:
        """Returns the numbers of the class prior: else the first epochs only learn that most labels are rare."""
        import torch

        link, rates = self._link, torch.from_numpy(self.rates(targets, training))
        if link.numbers is None:
            return None
        numbers = link.numbers(rates)
        if not isinstance(numbers, torch.Tensor) or numbers.shape != rates.shape:
            told = tuple(numbers.shape) if isinstance(numbers, torch.Tensor) else type(numbers).__name__
            raise InputError(f"the loss {self.loss.name}: numbers returns {told}, not a tensor of {tuple(rates.shape)}")
        there_and_back = link.probabilities(numbers[None])[0]
        if not bool(((there_and_back - rates).abs() <= CLOSE).all()):
            worst = int((there_and_back - rates).abs().nan_to_num(nan=1e9).argmax())
            raise InputError(
                f"the loss {self.loss.name}: probabilities(numbers(p)) of p = {float(rates[worst]):.3g} is "
                f"{float(there_and_back[worst]):.3g}",
                remedy="Let `numbers` be the inverse of `probabilities`.",
            )
        return numbers

    def correlation(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """See `Output`. A label that never or always applies correlates with nothing."""
        own = self.learned(targets)[training].astype(np.float64)
        spread = own.std(axis=0)
        scaled = (own - own.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
        found = scaled.T @ scaled / max(1, len(own))
        np.fill_diagonal(found, 1.0)
        return np.asarray(found)

    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        import torch

        return {
            "learned": torch.from_numpy(self.learned(targets)[rows]).to(device),
            HARD: torch.from_numpy(targets.arrays[HARD][rows]).to(device),
        }

    def criterion(self, targets: Targets, training: np.ndarray) -> LabelCriterion:
        if self.distillation is not None and not self._link.logits:
            raise InputError(
                f"a model of the loss {self.loss.name} gives no logits to divide by distillation.temperature",
                remedy="Choose another loss, or leave distillation out.",
            )
        loss = make_loss(
            self.loss.name,
            rates=self.rates(targets, training),
            samples=len(training),
            options=self.loss.options,
        )
        return LabelCriterion(loss, self.distillation)

    @cached_property
    def _link(self) -> Link:
        return link_of(self.loss.name, self.loss.options)

    def decode(self, raw: Tensor) -> Tensor:
        values = self._link.probabilities(raw)
        if not self._link.logits and not values.isfinite().all() and raw.isfinite().all():
            raise InputError(
                f"the loss {self.loss.name} makes NaN or infinity of the network's numbers, which are finite",
                remedy="Let its method `probabilities` return values from 0 to 1.",
            )
        return values

    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        if len(values) and not (values.min() >= 0 and values.max() <= 1):
            raise InputError(
                f"the loss {self.loss.name} turns the network's numbers into probabilities of {values.min():.3g} to "
                f"{values.max():.3g}",
                remedy="Let its method `probabilities` return values from 0 to 1.",
            )
        hard = targets.arrays[HARD][rows]
        columns = np.flatnonzero(hard.sum(axis=0) > 0)
        return {
            "bce": binary_cross_entropy(self.learned(targets)[rows], values),
            "macro_ap": float(np.mean([average_precision(hard[:, j], values[:, j]) for j in columns])),
        }

    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns the class prior."""
        return self.rates(targets, training)

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        if metric == "macro_ap":
            return SparseRanking.of(targets.arrays[HARD][rows] > 0, values, units)
        losses = row_bce(self.learned(targets)[rows].astype(np.float64), values.astype(np.float64))
        total, size = np.bincount(units, losses), np.bincount(units)
        return lambda counts: ratio(counts @ total, counts @ size)

    def evaluate(
        self,
        targets: Targets,
        rows: np.ndarray,
        values: np.ndarray,
        *,
        training: np.ndarray,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        hard = targets.arrays[HARD][rows]
        found = evaluate_labels(
            hard,
            values,
            prior=self.rates(targets, training),
            labels=self.vocabulary.labels,
            seed=seed,
            soft_targets=targets.arrays[SOFT][rows] if self.soft else None,
            groups=groups,
        ).to_dict()
        there = np.flatnonzero(hard.sum(axis=0) > 0)
        interpolated = float(np.mean(interpolated_by_class(hard, values)[there])) if len(there) else None
        return {**found, "interpolated_map": interpolated, "chance_map": chance_map(hard.mean(axis=0))}

    def facts(
        self, targets: Targets, splits: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns `prior`, the training rates of the hard labels, and `thresholds`, fitted on validation.

        A model that learned other targets (soft, or smoothed ones) also has their rates, `learned_rates`.
        """
        hard = targets.arrays[HARD]
        prior, own = self.rates(targets, splits["train"], soft=False), self.distillation
        learned = self.rates(targets, splits["train"])
        if own is None:
            learned = self._link.targets(learned)
        elif own.weight < 1.0:  # see LabelCriterion
            learned = own.weight * learned + (1.0 - own.weight) * self._link.targets(prior)
        same = np.array_equal(learned, prior)
        return {
            **({} if same and not self.soft else {"learned_rates": [float(rate) for rate in learned]}),
            "prior": [float(rate) for rate in prior],
            "thresholds": [float(own) for own in fit_class_thresholds(hard[splits["val"]], predicted["val"])],
        }

    def check_facts(self, facts: Mapping[str, Any], *, where: str) -> None:
        # A threshold above 1 is never reached; it means that validation had no positive of that label.
        for name, highest in (("prior", 1.0), ("learned_rates", 1.0), ("thresholds", 1e9)):
            values = facts.get(name)
            if values is None:
                continue
            numbers = isinstance(values, list) and len(values) == self.width and all(map(is_number, values))
            if not numbers or any(not 0 <= v <= highest for v in values):
                raise InputError(
                    f"{name} is not a list of {self.width} numbers from 0 to {highest:g}, one of each label", path=where
                )

    def describe(self) -> list[str]:
        own = self.vocabulary
        return [f"Emotions: {own.name}, {len(own.labels)} labels ({own.fingerprint}).",
                *([] if self.temperatures is None else [self.temperatures.describe()])]  # fmt: skip


class LabelCriterion:
    """A loss on the network's numbers (n, L), optionally mixed with distillation (Hinton et al. 2015)."""

    def __init__(self, loss: MultiLabelLoss, distillation: Distillation | None) -> None:
        self.loss, self.distillation = loss, distillation

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        own = self.distillation
        if own is None:
            return self.loss(raw.float(), targets["learned"], epoch=epoch, weights=weights)
        terms = distillation_loss(raw, targets["learned"], temperature=own.temperature)
        if self.loss.by_class is not None:
            terms = terms * self.loss.by_class.to(terms.device)
        soft = terms.mean() if weights is None else (weights @ terms / weights.sum().clamp(min=1e-12)).mean()
        if own.weight == 1.0:
            return soft
        hard = self.loss(raw.float(), targets[HARD], epoch=epoch, weights=weights)
        return own.weight * soft + (1 - own.weight) * hard
