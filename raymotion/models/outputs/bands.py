"""Labels of intervals of a number: valence as negative, neutral or positive, with the ends of the neutral band stated.

One public study called a picture neutral whose valence was exactly 50 on a scale of 0 to 100. Not one of 730 was, so
its model of three classes learned two (systems.md 4.5). Here each band is an interval with room in it, and training is
refused without a sample in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from raymotion.data.samples import DIMENSIONS, attach_vocabulary
from raymotion.errors import InputError
from raymotion.models.finite import is_number
from raymotion.models.outputs.base import DataFacts, Targets, read_loss
from raymotion.models.outputs.dimensions import conversion_notice, read_numbers
from raymotion.models.outputs.single_label import HARD, SOFT, WEIGHT, SingleLabel
from raymotion.models.recipe import LossSettings
from raymotion.vocabulary import Vocabulary

BANDS_3 = ("negative", "neutral", "positive")


class Bands(SingleLabel):
    """Probabilities (n, B) of the bands of a number, of which each row sums to 1.

    The targets are read from the number's column, in whatever scale the table states; a row without the number has no
    target. Band b holds values from edges[b - 1], inclusive, to edges[b], exclusive; the first begins at the lowest
    value of the scale, and the last includes the highest. The labels of the table, if it has any, are not looked at.

    Args:
        dimension: column of the sample table: valence, arousal or dominance.
        edges: B - 1 limits between bands, on `scale`, increasing.
        labels: names of the B bands, from low to high; they are its vocabulary.
        scale: lowest and highest value of the dimension.
        loss: one of `learning.losses.single_label.LOSSES`.

    Raises:
        InputError: edges that do not increase, that leave a band without room, or that do not fit the labels.
    """

    kind_of_output: ClassVar[str] = "bands"
    reads_labels: ClassVar[bool] = False

    def __init__(
        self,
        dimension: str,
        edges: Sequence[float],
        labels: Sequence[str] = BANDS_3,
        *,
        scale: tuple[float, float],
        name: str = "emotions",
        loss: LossSettings | None = None,
        weight: float = 1.0,
    ) -> None:
        if dimension not in DIMENSIONS:
            raise InputError(f"{dimension} is not a dimension", remedy=f"Choose from {', '.join(DIMENSIONS)}.")
        self.dimension, self.edges, self.scale = dimension, tuple(map(float, edges)), scale
        shown = ", ".join(f"{edge:g}" for edge in self.edges) or "none"
        if len(labels) != len(self.edges) + 1 or not self.edges:
            raise InputError(
                f"{len(labels)} bands ({', '.join(labels)}) need {len(labels) - 1} edges between them, not {shown}",
                remedy="Give two bands at least, and one edge less than bands.",
            )
        low, high = scale
        limits = np.array([low, *self.edges, high], dtype=np.float32)
        if not np.isfinite(limits).all() or (np.diff(limits) <= 0).any():
            raise InputError(
                f"the edges of the bands of {dimension}, {shown}, are not increasing numbers between {low:g} and "
                f"{high:g}, the ends of its scale",
                remedy="A band of one value alone never applies: give each an interval.",
            )
        super().__init__(Vocabulary(f"{dimension}-bands", tuple(labels)), name=name, loss=loss, weight=weight)

    @classmethod
    def of_facts(
        cls,
        facts: DataFacts,
        dimension: str = "valence",
        edges: Sequence[float] = (),
        labels: Sequence[str] = BANDS_3,
        *,
        loss: LossSettings | None = None,
        **options: Any,
    ) -> Bands:
        """Returns the output for the scale of a sample table, on which the edges are.

        Raises:
            InputError: the table states no scale, or the edges do not fit it.
        """
        if facts.scale is None:
            raise InputError(
                f"does not state the scale of {dimension}",
                path=facts.where,
                remedy="Only tables of data sets with such ratings do. If yours has them, prepare it again.",
            )
        try:
            return cls(dimension, edges, labels, scale=facts.scale, loss=loss, **options)
        except InputError as error:
            raise InputError(error.reason, path=facts.where, remedy=error.remedy) from error

    @property
    def target_noun(self) -> str:
        return self.dimension

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(), "dimension": self.dimension, "edges": list(self.edges), "scale": list(self.scale)
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Bands:
        vocabulary = Vocabulary.from_dict(value.get("vocabulary") or {}, where=where)
        edges, scale = (value.get(name) for name in ("edges", "scale"))
        good = all(isinstance(own, list) and all(map(is_number, own)) for own in (edges, scale))
        if not good or not isinstance(edges, list) or not isinstance(scale, list) or len(scale) != 2:
            raise InputError(f"the output {value.get('name')} does not state edges and scale of its bands", path=where)
        ends, loss = (float(scale[0]), float(scale[1])), read_loss(value, where=where)
        try:
            return cls(
                str(value.get("dimension")), edges, vocabulary.labels, scale=ends, name=str(value["name"]), loss=loss
            )
        except InputError as error:
            raise InputError(error.reason, path=where, remedy=error.remedy) from error

    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        """See `Output`. Rows without the number have no target."""
        values = read_numbers(table, (self.dimension,), self.scale, where=where)[:, 0]
        known = np.asarray(~np.isnan(values))
        hard = np.zeros((len(values), self.width), np.float32)
        hard[known, self.band_of(values[known])] = 1.0
        soft = hard.copy()
        if given is not None:
            soft[known] = given[known] / np.maximum(given[known].sum(axis=1, keepdims=True), 1e-12)
        return Targets({HARD: hard, SOFT: soft, WEIGHT: np.ones(len(values), np.float32)}, known)

    def band_of(self, values: np.ndarray) -> np.ndarray:
        """Returns the band (n,) of each of the numbers (n,), which are on its scale."""
        # Tables hold float32, in which 4.1 is less than 4.1: compare in float32.
        return np.digitize(np.asarray(values, np.float32), np.asarray(self.edges, np.float32))

    def labelled(self, table: pa.Table, *, where: object) -> pa.Table:
        """See `Output`: the labels are those of the bands, in place of any others."""
        targets = self.read(table, where=where)
        bands = targets.arrays[HARD].argmax(axis=1).tolist()
        names = [[self.vocabulary.labels[b]] if known else None for b, known in zip(bands, targets.known, strict=True)]
        for name, own in (("labels", pa.array(names, pa.list_(pa.string()))), ("label_weights", None)):
            place = table.schema.get_field_index(name)
            field = table.schema.field(place)
            values = pa.nulls(table.num_rows, field.type) if own is None else own.cast(field.type)
            table = table.set_column(place, field, values)
        return attach_vocabulary(table, self.vocabulary)

    def conversion(self, table: pa.Table, *, where: object = None) -> str | None:
        return conversion_notice(table, (self.dimension,), self.scale, where=where)

    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        """Raises an `InputError` unless validation has a target, and each band one in training."""
        for split in ("train", "val"):
            if not targets.known[splits[split]].any():
                raise InputError(
                    f"no sample of the split {split} has {self.dimension}",
                    path=where,
                    remedy="Use a table that has it, or split it otherwise.",
                )
        count = targets.arrays[HARD][splits["train"]].sum(axis=0)
        empty = [label for label, own in zip(self.intervals, count, strict=True) if not own]
        if empty:
            raise InputError(
                f"no training sample has {self.dimension} of the band {empty[0]}",
                path=where,
                remedy="Choose other edges, or leave the band out.",
            )

    def contents(self, targets: Targets) -> list[Any]:
        return [self.dimension, list(self.edges), list(self.scale), *super().contents(targets)]

    @property
    def intervals(self) -> list[str]:
        """The bands in words: `negative [1, 3.5)`."""
        ends = [self.scale[0], *self.edges, self.scale[1]]
        return [
            f"{label} [{ends[i]:g}, {ends[i + 1]:g}{']' if i == len(self.edges) else ')'}"
            for i, label in enumerate(self.vocabulary.labels)
        ]

    def describe(self) -> list[str]:
        return [f"One band of {self.dimension}: {', '.join(self.intervals)}. The probabilities sum to 1."]
