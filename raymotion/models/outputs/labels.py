"""What outputs over a vocabulary share: one probability of each label, in one column."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raymotion.models.outputs.base import Output
from raymotion.models.recipe import LossSettings
from raymotion.vocabulary import Vocabulary


class LabelOutput(Output):
    """Base of the outputs over a vocabulary.

    Attributes:
        loss: the loss that it is trained with.
    """

    loss: LossSettings
    _vocabulary: Vocabulary

    @property
    def width(self) -> int:
        return len(self._vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def columns(self, values: np.ndarray) -> dict[str, pa.Array]:
        flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), pa.float32())
        return {self._column: pa.FixedSizeListArray.from_arrays(flat, self.width)}

    @property
    def _column(self) -> str:
        return "probabilities" if self.name == "emotions" else f"{self.name}_probabilities"

    def values(self, table: pa.Table) -> np.ndarray:
        column = table.column(self._column).combine_chunks()
        array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
        return np.array(array.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, self.width))

    def metadata(self) -> dict[bytes, bytes]:
        return self.vocabulary.to_metadata()

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Returns label -> probability in descending order."""
        order = np.argsort(-values, kind="stable")
        return {self.vocabulary.labels[i]: float(values[i]) for i in order.tolist()}

    def describe_training(self) -> list[str]:
        loss = self.loss
        options = ", ".join(f"{name} {value}" for name, value in loss.options.items())
        return [f"Loss `{loss.name}`{f' ({options})' if options else ''}."]
