"""Number columns of the sample table, e.g. predicted valence, standardised by the training split."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raymotion.config import digest_of
from raymotion.data.samples import NUMBERS, PREDICTED
from raymotion.errors import InputError
from raymotion.models.finite import is_number
from raymotion.models.inputs.base import Arrays, Bound, Draft, Evidence, Input, Prepared

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe


class _Shown(Arrays):
    """The `Draft` of numbers."""

    def hide(self, rows: np.ndarray) -> None:
        self.values["value_mask"] = self.values["value_mask"] & ~rows[:, None]
        self.values["values"] = np.where(rows[:, None], np.float32(0), self.values["values"])


class PreparedValues(Prepared, Bound):
    """Standardised numbers (n, C) float32; NaN where unknown."""

    def __init__(self, values: np.ndarray, source: ValuesInput) -> None:
        self.values, self.source = values, source
        self.present = np.asarray(np.isfinite(values).any(axis=1))

    def take(self, rows: np.ndarray) -> PreparedValues:
        return PreparedValues(self.values[rows], self.source)

    def described(self, training: np.ndarray) -> ValuesInput:
        return self.source

    def contents(self) -> list[Any]:
        return [np.round(np.nan_to_num(self.values, nan=-1e9), 5).tolist()]

    def evidence(self, rows: np.ndarray, read: Any = None) -> Evidence:
        return _shown(self.values[rows])

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        return _shown(self.values[rows])

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return self.source.to_dict(), {"values": self.values}


def _shown(values: np.ndarray) -> _Shown:
    known = np.isfinite(values)
    filled = np.where(known, values, np.float32(0)).astype(np.float32)
    return _Shown("values", known.any(axis=1), {"values": filled, "value_mask": known})


class ValuesInput(Input):
    """Number columns. The network is called with `values` (n, C) float32 and `value_mask` (n, C) bool.

    Args:
        names: columns of the sample table: valence, arousal, dominance, `*_sd` or `predicted_*` of one.
        mean, std: of each column in the training split, for standardisation; None before training.
    """

    name: ClassVar[str] = "values"

    def __init__(
        self, names: Sequence[str], mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        unknown = [name for name in names if name not in (*NUMBERS, *PREDICTED)]
        if unknown or not names:
            raise InputError(
                f"{unknown or names} are not number columns", remedy=f"Choose from {', '.join((*NUMBERS, *PREDICTED))}."
            )
        self.names = self.columns = tuple(names)
        self.mean = None if mean is None else np.asarray(mean, dtype=np.float64)
        self.std = None if std is None else np.asarray(std, dtype=np.float64)
        self.noun = f"a number for {' or '.join(names)}"
        self.plural = f"numbers ({', '.join(names)})"

    def to_dict(self) -> dict[str, Any]:
        assert self.mean is not None and self.std is not None
        return {
            "type": self.name, "columns": list(self.names), "mean": self.mean.tolist(), "std": self.std.tolist()
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> ValuesInput:
        names: Any = value.get("columns")
        numbers = [value.get("mean"), value.get("std")]
        good = isinstance(names, list) and all(isinstance(name, str) for name in names) and all(
            isinstance(own, list) and len(own) == len(names) and all(map(is_number, own)) for own in numbers
        )  # fmt: skip
        if not good:
            raise InputError("values: columns, mean and std are not lists of one length", path=where)
        return cls(names, *numbers)

    def _standardised(self, raw: np.ndarray) -> np.ndarray:
        assert self.mean is not None and self.std is not None
        return np.asarray((raw - self.mean) / self.std, dtype=np.float32)

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedValues:
        raw = np.stack([_column(table, name) for name in self.names], axis=1)
        training = raw[np.array([split == "train" for split in table.column("split").to_pylist()], dtype=bool)]
        if self.mean is None:
            known = np.isfinite(training)
            count = np.maximum(known.sum(axis=0), 1)
            mean = np.where(known, training, 0.0).sum(axis=0) / count
            std = np.sqrt((np.where(known, training - mean, 0.0) ** 2).sum(axis=0) / count)
            # Constant columns carry no information; avoids a division by zero.
            self.mean, self.std = mean, np.where(std < 1e-9, 1.0, std)
        return PreparedValues(self._standardised(raw), self)

    def preparation(self) -> list[Any]:
        return list(self.names)

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedValues:
        return PreparedValues(arrays["values"], type(self).from_dict(meta, where=folder, folder=folder))

    def collect(self, items: Sequence[Any]) -> Arrays:
        rows = [[item.row.get(name) for name in self.names] for item in items]
        raw = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
        return _shown(self._standardised(raw.reshape(len(items), len(self.names))))

    def describe(self) -> list[str]:
        return [f"Numbers: {', '.join(self.names)}, standardised by the training split."]


class PredictedInput(ValuesInput):
    """Numbers that another model predicted out of fold, for training; a trained model predicts them itself.

    So no table that is labelled needs the columns, and those that it has are not read: they may be another model's.

    Args:
        marks: by column, `prediction_marks` of what that model predicted; a training table with other numbers is
            refused. None: of a trained model, which reads no table.
        model: its checkpoint, for the message.
    """

    name: ClassVar[str] = "predicted"

    def __init__(
        self,
        names: Sequence[str],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        *,
        marks: Mapping[str, Sequence[str]] | None = None,
        model: str = "",
    ) -> None:
        super().__init__(names, mean, std)
        self.columns = ()
        self.marks, self.model = marks, model

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedValues:
        """See `Input`.

        Raises:
            InputError: a number is not what the model predicted for that sample without having seen it.
        """
        ids = table.column("sample_id").to_pylist()
        for name, marks in (self.marks or {}).items():
            values, known = _column(table, name), set(marks)
            told = np.flatnonzero(np.isfinite(values))
            own = prediction_marks([ids[row] for row in told], values[told])
            foreign = [row for row, mark in zip(told.tolist(), own, strict=True) if mark not in known]
            if foreign:
                raise InputError(
                    f"{name} of {len(foreign):,} of {len(told):,} samples is not what {self.model} predicted out of "
                    f"fold, of {ids[foreign[0]]} for example",
                    path=where,
                    remedy="Take samples.parquet and model of one and the same `raymotion crossfit`.",
                )
        return super().prepare(table, recipe, where=where)

    def preparation(self) -> list[Any]:
        return [*super().preparation(), digest_of({name: sorted(own) for name, own in (self.marks or {}).items()})]

    def collect(self, items: Sequence[Any]) -> Arrays:
        return _shown(np.full((len(items), len(self.names)), np.nan, dtype=np.float32))

    def describe(self) -> list[str]:
        return [f"Numbers: {', '.join(self.names)}; for training out of fold, else predicted by the regressor inside."]


def prediction_marks(sample_ids: Sequence[str], values: np.ndarray) -> list[str]:
    """Returns 10 hex digits for each sample and what was predicted for it; values (n,), compared to six digits."""
    told = zip(sample_ids, np.asarray(values, dtype=np.float32).tolist(), strict=True)
    return [hashlib.sha256(f"{own}\0{value:.6g}".encode()).hexdigest()[:10] for own, value in told]


def _column(table: pa.Table, name: str) -> np.ndarray:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table.column(name).to_numpy(), dtype=np.float64)
