"""Probabilities of the labels of a vocabulary of which exactly one applies: they sum to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from raymotion.data.samples import vocabulary_of
from raymotion.errors import InputError
from raymotion.learning.losses.single_label import make_class_loss
from raymotion.learning.metrics.single_label import class_metrics, evaluate_classes, weighed_class_metrics
from raymotion.models.finite import is_number
from raymotion.models.outputs.base import DataFacts, Gives, Targets, array_digest, read_loss
from raymotion.models.outputs.labels import LabelOutput
from raymotion.models.recipe import LossSettings, SingleLabelRecipe
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

HARD, SOFT, WEIGHT = "hard", "soft", "weight"


class SingleLabel(LabelOutput):
    """Probabilities (n, L) of which each row sums to 1.

    Its targets are `hard`, one 1 in each row; `soft`, what the annotators said as a distribution; and `weight` (n,),
    the share of annotators who agree with the label.

    Args:
        loss: one of `learning.losses.single_label.LOSSES`.
        soft: learn the soft targets, and use them for the log loss of validation.
        weighted: weigh each training sample by its share of annotators.
    """

    kind_of_output: ClassVar[str] = "single_label"
    gives: ClassVar[Gives] = "one_label"
    selects: ClassVar[str] = "log_loss"
    metric_names: ClassVar[tuple[str, ...]] = ("log_loss", "accuracy", "macro_f1")
    lower_is_better = frozenset({"log_loss"})

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        name: str = "emotions",
        loss: LossSettings | None = None,
        soft: bool = False,
        weighted: bool = False,
        weight: float = 1.0,
    ) -> None:
        self.name, self.loss, self.weight = name, loss or LossSettings(name="cross_entropy"), weight
        self._vocabulary, self.soft, self.weighted = vocabulary, soft, weighted

    @classmethod
    def of_recipe(cls, recipe: SingleLabelRecipe, facts: DataFacts) -> SingleLabel:
        """Returns the output of a recipe for the vocabulary of a sample table.

        Raises:
            InputError: the table has no vocabulary or no labels.
        """
        if facts.vocabulary is None or not facts.labelled:
            remedy = "Ratings are for a model of numbers, or of bands of one." if facts.scale else None
            raise InputError("has no labels to learn from", path=facts.where, remedy=remedy)
        return cls(facts.vocabulary, loss=recipe.loss, soft=recipe.data.soft_targets, weighted=recipe.vote_weights)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind_of_output, "name": self.name, "vocabulary": self.vocabulary.to_dict(),
            "loss": self.loss.model_dump(mode="json"),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> SingleLabel:
        vocabulary = Vocabulary.from_dict(value.get("vocabulary") or {}, where=where)
        return cls(vocabulary, name=str(value["name"]), loss=read_loss(value, where=where))

    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        """See `Output`. A row without any label has no target.

        Raises:
            InputError: a row has several labels, none of which has the largest weight.
        """
        own = vocabulary_of(table, where=where)
        if own is not None:
            self.vocabulary.require_same(own, here="the model", there=str(where))
        n = table.num_rows
        hard, soft = np.zeros((n, self.width), np.float32), np.zeros((n, self.width), np.float32)
        weight = np.ones(n, np.float32)
        known = np.zeros(n, dtype=bool)
        columns = (table.column(name).to_pylist() for name in ("labels", "label_weights"))
        for row, (labels, weights) in enumerate(zip(*columns, strict=True)):
            if not labels:
                continue
            shares = np.ones(len(labels)) if weights is None else np.array(weights, dtype=np.float64)
            first = np.flatnonzero(shares == shares.max())
            if len(first) > 1:
                raise InputError(
                    f"has the labels {', '.join(labels)}, and a model of one label learns one",
                    path=where,
                    row=row,
                    remedy="Keep one label for each row, or train a model of several (a multilabel output).",
                )
            places = [self.vocabulary.index(label) for label in labels]
            hard[row, places[first[0]]], known[row] = 1.0, True
            weight[row] = shares.max()
            soft[row] = self._distribution(np.array(places), shares)
        if given is not None:
            soft[known] = given[known] / np.maximum(given[known].sum(axis=1, keepdims=True), 1e-12)
        return Targets({HARD: hard, SOFT: soft, WEIGHT: weight}, known)

    def _distribution(self, places: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Returns what the annotators said as a distribution (L,); who agrees with no label may mean any other."""
        found = np.zeros(self.width)
        found[places] = shares
        rest = max(0.0, 1.0 - shares.sum())
        others = np.ones(self.width, dtype=bool)
        others[places] = False
        if others.any():
            found[others] += rest / others.sum()
        return found / found.sum()

    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        for name in ("train", "val"):
            if not targets.known[splits[name]].any():
                raise InputError(
                    f"no sample of the split {name} has a label",
                    path=where,
                    remedy="Label more samples, or split them otherwise (another --seed of `raymotion data prepare`).",
                )

    def contents(self, targets: Targets) -> list[Any]:
        arrays = (targets.arrays[HARD].astype(np.int8), *(np.round(targets.arrays[own], 6) for own in (SOFT, WEIGHT)))
        return [self.vocabulary.fingerprint, *map(array_digest, arrays)]

    def learned(self, targets: Targets) -> np.ndarray:
        """Returns the targets (n, L) for training and validation."""
        return targets.arrays[SOFT if self.soft else HARD]

    def rates(self, targets: Targets, training: np.ndarray, *, soft: bool | None = None) -> np.ndarray:
        """Returns the share of each label in the training rows that have one, float32 (L,): see `MultiLabel.rates`."""
        own = self.learned(targets) if soft is None else targets.arrays[SOFT if soft else HARD]
        return np.asarray(own[training[targets.known[training]]].mean(axis=0), dtype=np.float32)

    def first_numbers(self, targets: Targets, training: np.ndarray) -> Tensor:
        """Returns the logits of the class prior; of a label that never occurs, as if it had once."""
        import torch

        rates = np.maximum(self.rates(targets, training), 1.0 / (len(training) + 1))
        return torch.from_numpy(np.log(rates))

    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        import torch

        weight = targets.arrays[WEIGHT][rows] if self.weighted else np.ones(len(rows), np.float32)
        return {
            "learned": torch.from_numpy(self.learned(targets)[rows]).to(device),
            WEIGHT: torch.from_numpy(weight * targets.known[rows].astype(np.float32)).to(device),
        }

    def criterion(self, targets: Targets, training: np.ndarray) -> ClassCriterion:
        return ClassCriterion(self, self.rates(targets, training))

    def decode(self, raw: Tensor) -> Tensor:
        return raw.float().softmax(dim=1)

    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        known = targets.known[rows]
        return class_metrics(self.learned(targets)[rows][known], values[known], hard=targets.arrays[HARD][rows][known])

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        known = targets.known[rows]
        hard, learned = targets.arrays[HARD][rows][known], self.learned(targets)[rows][known]
        if not len(hard):
            return lambda counts: np.full(len(counts), np.nan)
        measure = weighed_class_metrics(learned, values[known], hard=hard, units=units[known])
        groups = int(units[known].max()) + 1  # later ones have no known row
        return lambda counts: measure(counts[:, :groups])[metric]

    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns the class prior."""
        return self.rates(targets, training)

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
        known = targets.known[rows]
        return evaluate_classes(
            targets.arrays[HARD][rows][known],
            values[known],
            prior=self.rates(targets, training, soft=False),
            labels=self.vocabulary.labels,
            soft_targets=targets.arrays[SOFT][rows][known] if self.soft else None,
            soft_prior=self.rates(targets, training, soft=True) if self.soft else None,
            seed=seed,
            groups=None if groups is None else [group for group, own in zip(groups, known, strict=True) if own],
        ).to_dict()

    def facts(
        self, targets: Targets, splits: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns `prior`, the share of each label in the training split."""
        return {"prior": [float(rate) for rate in self.rates(targets, splits["train"], soft=False)]}

    def check_facts(self, facts: Mapping[str, Any], *, where: str) -> None:
        values = facts.get("prior")
        if values is None:
            return
        good = isinstance(values, list) and len(values) == self.width and all(map(is_number, values))
        if not good or any(not 0 <= v <= 1 for v in values):
            raise InputError(f"prior is not a list of {self.width} numbers from 0 to 1, one of each label", path=where)

    def describe(self) -> list[str]:
        own = self.vocabulary
        return [f"One of {own.name}, {len(own.labels)} labels ({own.fingerprint}): the probabilities sum to 1."]


class ClassCriterion:
    """A loss on logits (n, L), over the samples that have a label."""

    def __init__(self, output: SingleLabel, rates: np.ndarray) -> None:
        self.loss = make_class_loss(output.loss.name, output.loss.options, rates=rates)

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        own = targets[WEIGHT] if weights is None else targets[WEIGHT] * weights
        return self.loss(raw, targets["learned"], own)
