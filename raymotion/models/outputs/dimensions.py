"""Numbers on a stated scale: valence, arousal, dominance.

Networks predict value / h, where h is the largest absolute value of the scale: 0 .. 1 for a scale of 1 to 10, -1 .. 1
for a scale of -3 to 3. Those of a standardised output predict (value - mean) / standard deviation, both of the training
split; those of a raw one predict the value. Decoded values are on the scale itself; those beyond its ends are moved
there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from raymotion.data.samples import DIMENSIONS, attach_scale, scale_of
from raymotion.errors import InputError
from raymotion.learning.losses.dimensions import make_dimension_loss, reads_sd
from raymotion.learning.metrics.dimensions import LEAST_SPREAD, evaluate_dimensions, weighed_figures
from raymotion.models.finite import is_number
from raymotion.models.outputs.base import DataFacts, Gives, Output, Targets, array_digest, read_loss
from raymotion.models.recipe import LossSettings

if TYPE_CHECKING:
    from torch import Tensor

VALUES, SD = "values", "sd"


def column_mean(values: np.ndarray) -> np.ndarray:
    """Returns the means (D,) of the known values in (n, D); NaN for a column without any."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    total = np.where(known, values.astype(np.float64), 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def read_numbers(table: pa.Table, names: Sequence[str], scale: tuple[float, float], *, where: object) -> np.ndarray:
    """Returns number columns of a sample table on `scale`, float32 (n, D); NaN where unknown.

    Raises:
        InputError: the table has such numbers and does not state their scale.
    """
    columns = [np.asarray(table.column(name).to_numpy(), dtype=np.float32) for name in names]
    values, there = np.stack(columns, axis=1), scale_of(table, where=where)
    if np.isnan(values).all() or there == scale:
        return values
    low, high = scale
    if there is None:
        raise InputError(
            f"does not state the scale of {', '.join(names)}, and the model's is {low:g} to {high:g}",
            path=where,
            remedy="Prepare it again: `raymotion data prepare` writes the scale of the data set.",
        )
    share = (values.astype(np.float64) - there[0]) / (there[1] - there[0])
    return np.asarray(low + share * (high - low), dtype=np.float32)


def conversion_notice(
    table: pa.Table, names: Sequence[str], scale: tuple[float, float], *, where: object
) -> str | None:
    """Returns a notice if `read_numbers` converts the numbers of a table, else None."""
    there = scale_of(table, where=where)
    if there is None or there == scale:
        return None
    are = "is" if len(names) == 1 else "are"
    return (
        f"{', '.join(names)} {are} on a scale of {there[0]:g} to {there[1]:g} in the table, and {are} converted to the "
        f"model's, {scale[0]:g} to {scale[1]:g}."
    )


class Dimensions(Output):
    """Numbers (n, D) on a scale.

    Args:
        names: columns of the sample table: valence, arousal, dominance.
        scale: lowest and highest value.
        loss: one of `learning.losses.dimensions.LOSSES`; a kind whose recipe has a setting for it passes that here.
        numbers: what the network predicts: `share`, `standardised` or `raw` (see the module).
    """

    kind_of_output: ClassVar[str] = "dimensions"
    gives: ClassVar[Gives] = "numbers"
    selects: ClassVar[str] = "ccc"
    metric_names: ClassVar[tuple[str, ...]] = ("mae", "rmse", "r2", "pearson", "ccc")
    lower_is_better = frozenset({"mae", "rmse"})

    def __init__(
        self,
        names: Sequence[str] = DIMENSIONS,
        *,
        scale: tuple[float, float],
        name: str = "vad",
        loss: LossSettings | None = None,
        weight: float = 1.0,
        numbers: Literal["share", "standardised", "raw"] = "share",
    ) -> None:
        unknown = [own for own in names if own not in DIMENSIONS]
        if unknown or not names:
            raise InputError(f"{unknown or names} are not dimensions", remedy=f"Choose from {', '.join(DIMENSIONS)}.")
        self.names, self.scale, self.name, self.weight = tuple(names), scale, name, weight
        self.loss = loss or LossSettings(name="smooth_l1")
        self.numbers = numbers
        # value = centre + unit x number; of a standardised output known after `fit`.
        self.centre = np.zeros(len(self.names))
        self.unit = np.full(len(self.names), 1.0 if numbers == "raw" else max(abs(own) for own in scale))

    @classmethod
    def of_facts(cls, facts: DataFacts, names: Sequence[str] = DIMENSIONS, **options: Any) -> Dimensions:
        """Returns the output for the scale of a sample table.

        Raises:
            InputError: the table states no scale.
        """
        if facts.scale is None:
            raise InputError(
                f"does not state the scale of {', '.join(names)}",
                path=facts.where,
                remedy="Only tables of data sets with such ratings do. If yours has them, prepare it again.",
            )
        return cls(names, scale=facts.scale, **options)

    @property
    def width(self) -> int:
        return len(self.names)

    @property
    def target_noun(self) -> str:
        return " or ".join(self.names)

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind_of_output, "name": self.name, "names": list(self.names), "scale": list(self.scale),
            "loss": self.loss.model_dump(mode="json"),
            **self._numbers_to_dict(),
        }  # fmt: skip

    def _numbers_to_dict(self) -> dict[str, Any]:
        if self.numbers == "share":
            return {}
        return {"standardised": {"mean": self.centre.tolist(), "sd": self.unit.tolist()}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Dimensions:
        names, scale = value.get("names"), value.get("scale")
        good = isinstance(scale, list) and len(scale) == 2 and all(map(is_number, scale)) and scale[0] < scale[1]
        if not good or not isinstance(names, list):
            raise InputError(
                f"the output {value.get('name')} does not state its dimensions and their scale", path=where
            )
        assert isinstance(scale, list)
        loss, ends = read_loss(value, where=where), (float(scale[0]), float(scale[1]))
        try:
            found = cls(names, scale=ends, name=str(value["name"]), loss=loss)
        except InputError as error:
            raise InputError(error.reason, path=where, remedy=error.remedy) from error
        if (stated := value.get("standardised")) is not None:
            numbers = [stated.get(name) if isinstance(stated, dict) else None for name in ("mean", "sd")]
            if not all(isinstance(n, list) and len(n) == found.width and all(map(is_number, n)) for n in numbers):
                raise InputError(f"the output {found.name} does not say by what it was standardised", path=where)
            found.numbers, found.centre, found.unit = "standardised", *(np.array(n, dtype=np.float64) for n in numbers)
            if (found.unit <= 0).any():
                raise InputError(f"the output {found.name} was standardised by an sd that is not above 0", path=where)
        return found

    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        arrays = {VALUES: read_numbers(table, self.names, self.scale, where=where)}
        # Whatever the loss, because a search reads the targets once for several.
        if any(f"{name}_sd" in table.column_names for name in self.names):
            arrays[SD] = self._read_sd(table, where)
        return Targets(arrays, np.asarray(~np.isnan(arrays[VALUES]).all(axis=1)))

    def _read_sd(self, table: pa.Table, where: object) -> np.ndarray:
        """Returns the standard deviations of the ratings (n, D) on this output's scale; NaN where none is stated."""
        found = np.full((table.num_rows, self.width), np.nan, dtype=np.float32)
        for j, name in enumerate(self.names):
            if f"{name}_sd" in table.column_names:
                found[:, j] = table.column(f"{name}_sd").to_numpy()
        low, high = scale_of(table, where=where) or self.scale
        return np.asarray(found * ((self.scale[1] - self.scale[0]) / (high - low)), dtype=np.float32)

    def conversion(self, table: pa.Table, *, where: object = None) -> str | None:
        return conversion_notice(table, self.names, self.scale, where=where)

    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        for split in ("train", "val"):
            if not targets.known[splits[split]].any():
                raise InputError(
                    f"no sample of the split {split} has {' or '.join(self.names)}",
                    path=where,
                    remedy="Use a table that has them, or split it otherwise.",
                )

    def contents(self, targets: Targets) -> list[Any]:
        arrays = [np.round(np.nan_to_num(own, nan=-1e9), 4) for own in targets.arrays.values()]
        return [list(self.names), list(self.scale), *map(array_digest, arrays)]

    def fit(self, targets: Targets, training: np.ndarray) -> None:
        """Takes mean and standard deviation of the training rows, if the output is standardised.

        Raises:
            InputError: the training rows have one and the same value of a dimension, or none.
        """
        if self.numbers != "standardised":
            return
        own = targets.arrays[VALUES][training].astype(np.float64)
        mean = column_mean(own)
        sd = np.sqrt(column_mean((own - mean) ** 2))
        for name, value in zip(self.names, sd, strict=True):
            if not value > 0:
                raise InputError(f"the training rows do not differ in {name}: there is nothing to learn")
        self.centre, self.unit = mean, sd

    def mean(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns the means (D,) of the training split, on the scale; NaN where no value is known."""
        return column_mean(targets.arrays[VALUES][training])

    def first_numbers(self, targets: Targets, training: np.ndarray) -> Tensor | None:
        """Returns the numbers of the training means, which a few epochs would not reach from 0."""
        import torch

        if self.numbers == "raw":
            return None
        return torch.from_numpy((self.baseline(targets, training) - self.centre) / self.unit).float()

    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        import torch

        return {name: torch.from_numpy(own[rows]).to(device) for name, own in targets.arrays.items()}

    def criterion(self, targets: Targets, training: np.ndarray) -> DimensionCriterion:
        usual: np.ndarray | None = None
        if reads_sd(self.loss.name):
            own = targets.arrays.get(SD, np.full((len(targets.known), self.width), np.nan))
            usual = column_mean(own[training])
            if missing := [name for name, sd in zip(self.names, usual, strict=True) if np.isnan(sd)]:
                raise InputError(
                    f"no training sample states {missing[0]}_sd, which the loss {self.loss.name} weighs ratings by",
                    remedy="Prepare the table with the spread of its ratings, or choose another loss.",
                )
        return DimensionCriterion(self, usual)

    def decode(self, raw: Tensor) -> Tensor:
        # A straight line knows no ends, but no rating lies beyond them.
        import torch

        unit, centre = (torch.from_numpy(own).float().to(raw.device) for own in (self.unit, self.centre))
        return (raw.float() * unit + centre).clamp(*self.scale)

    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns the means of the training rows, or the middle of the scale where no value is known."""
        return np.nan_to_num(self.mean(targets, training), nan=sum(self.scale) / 2)

    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Averages each metric over the dimensions with known values; constant predictions have a correlation of 0."""
        found = weighed_figures(targets.arrays[VALUES][rows], values, np.zeros(len(rows), dtype=np.int64))
        return {name: float(np.nan_to_num(own[0])) for name, own in found(np.ones((1, 1))).items()}

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        figures = weighed_figures(targets.arrays[VALUES][rows], values, units)
        return lambda counts: figures(counts)[metric]

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
        truth = targets.arrays[VALUES][rows]
        return {
            **evaluate_dimensions(
                truth, values, training_mean=self.mean(targets, training), names=self.names, groups=groups, seed=seed
            ).to_dict(),
            "scale": list(self.scale),
        }

    def facts(
        self, targets: Targets, splits: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
    ) -> dict[str, Any]:
        """Returns `mean` and `sd` of each dimension in the training split; None where no value is known."""
        own = targets.arrays[VALUES][splits["train"]].astype(np.float64)
        mean = column_mean(own)
        sd = np.sqrt(column_mean((own - mean) ** 2))
        return {
            name: [float(v) if math.isfinite(v) else None for v in values] for name, values in
            (("mean", mean), ("sd", sd))
        }  # fmt: skip

    def check_facts(self, facts: Mapping[str, Any], *, where: str) -> None:
        for name in ("mean", "sd"):
            values = facts.get(name)
            if values is not None and not (
                isinstance(values, list)
                and len(values) == self.width
                and all(v is None or is_number(v) for v in values)
            ):
                raise InputError(f"{name} is not a number for each of {', '.join(self.names)}", path=where)

    def spread_notice(self, values: np.ndarray, facts: Mapping[str, Any]) -> str | None:
        """Returns a notice if the predictions (n, D) are nearly constant, else None."""
        told = facts.get("sd") or [None] * self.width
        flat = [
            name
            for name, sd, own in zip(self.names, told, values.astype(np.float64).std(axis=0), strict=True)
            if sd and own < LEAST_SPREAD * sd
        ]
        if not flat:
            return None
        return (
            f"The model says nearly the same {' and '.join(flat)} for every sample: the predictions vary less than a "
            "tenth as much as the values that it was trained on."
        )

    def columns(self, values: np.ndarray) -> dict[str, pa.Array]:
        return {
            name: pa.array(np.ascontiguousarray(values[:, j], dtype=np.float32), pa.float32())
            for j, name in enumerate(self.names)
        }

    def values(self, table: pa.Table) -> np.ndarray:
        return np.stack([np.asarray(table.column(name).to_numpy(), dtype=np.float32) for name in self.names], axis=1)

    def metadata(self) -> dict[bytes, bytes]:
        empty = attach_scale(pa.table({}), self.scale)
        return dict(empty.schema.metadata)

    def named(self, values: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self.names, values, strict=True)}

    def describe(self) -> list[str]:
        return [f"{', '.join(self.names).capitalize()} on a scale of {self.scale[0]:g} to {self.scale[1]:g}."]

    def describe_training(self) -> list[str]:
        return [f"Loss of {', '.join(self.names)}: `{self.loss.name}`."]


class DimensionCriterion:
    """A loss on the network's numbers, averaged over the known ones.

    Args:
        usual: standard deviation of the ratings of a number that states none, (D,), for a loss that reads them.
    """

    def __init__(self, output: Dimensions, usual: np.ndarray | None = None) -> None:
        self.output, self.usual = output, usual
        self.loss = make_dimension_loss(output.loss.name, output.loss.options)

    def __call__(self, raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
        import torch

        def on(own: np.ndarray) -> Tensor:
            return torch.from_numpy(np.asarray(own, np.float32)).to(raw.device)

        unit, sd = on(self.output.unit), None
        if SD in targets and self.usual is not None:
            stated = targets[SD].float()
            sd = torch.where(stated.isnan(), on(self.usual), stated) / unit
        return self.loss(raw, (targets[VALUES].float() - on(self.output.centre)) / unit, weights, sd)
