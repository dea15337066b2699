"""Temperatures that `raymotion calibrate` fits to a checkpoint's probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raymotion.errors import InputError
from raymotion.learning.temperature import scale
from raymotion.models.finite import is_number


@dataclass(frozen=True)
class Temperatures:
    """One temperature for all rows, and others for rows of some domains.

    Attributes:
        all: temperature of rows of other domains, or of none that is known.
        column: column of the sample table that names the domain of a row, or None.
        by: value of `column` -> temperature.
    """

    all: float
    column: str | None = None
    by: Mapping[str, float] = field(default_factory=dict)

    def apply(self, probabilities: np.ndarray, domains: Sequence[Any]) -> np.ndarray:
        """Returns probabilities (n, L) scaled for rows of these n domains, float32; see `learning.temperature`."""
        own = np.array([self.by.get(domain, self.all) for domain in domains], dtype=np.float64)
        return scale(probabilities, own).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Returns the entry `temperatures` of an output in config.json."""
        return {"all": self.all, "column": self.column, "by": dict(sorted(self.by.items()))}

    @classmethod
    def from_dict(cls, value: Any, *, where: str) -> Temperatures:
        """Reads the form of `to_dict`.

        Raises:
            InputError: a temperature is not a number above 0, or the column is no name.
        """
        own = value if isinstance(value, Mapping) else {}
        by, column = own.get("by"), own.get("column")
        if not isinstance(by, Mapping) or not (column is None or isinstance(column, str)) or (by and column is None):
            raise InputError("temperatures are not {all, column, by}", path=where)
        for number in (own.get("all"), *by.values()):
            if not is_number(number) or number <= 0:
                raise InputError(f"a temperature is {number!r}, not a number above 0", path=where)
        return cls(float(own["all"]), column, {str(name): float(number) for name, number in by.items()})

    def describe(self) -> str:
        """Returns a sentence for the model card."""
        by = ", ".join(f"{name} {number:.3f}" for name, number in sorted(self.by.items()))
        others = f"; by {self.column}: {by}; rows of any other {self.column} get the first" if self.by else ""
        return f"Probabilities are calibrated after training by a temperature of {self.all:.3f}{others}."
