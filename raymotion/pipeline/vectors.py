"""The stage of a job that takes vectors of a user's own over, in place of computing features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raymotion.data.embedding_layout import FeatureKey
from raymotion.data.streams import CONTEXT
from raymotion.data.vector_table import Shared, VectorIds, read_vectors
from raymotion.errors import InputError
from raymotion.pipeline.stages import Failure, Item, not_finite


class TakeVectors:
    """Looks up the vector of each item; stored in `item.output` by column, as `EmbedStreams` does.

    An item without a vector fails, unless it lacks the box of the stream: it has no such stream then.

    Args:
        path, id_column, vector_column: see `vector_table.read_vectors`. digest: of the file that the job began with.
        key: the features that the vectors are.
        shared: see `vector_table.VectorIds`.
    """

    name = "decode"  # as for every first stage
    whole_shard = False

    def __init__(
        self,
        path: str,
        id_column: str,
        vector_column: str,
        digest: str,
        key: FeatureKey,
        shared: Shared | None = None,
    ) -> None:
        self.path, self.id_column, self.vector_column = path, id_column, vector_column
        self.digest, self.key, self.shared = digest, key, shared

    def setup(self, threads: int, device: str) -> None:
        self.table = read_vectors(self.path, id_column=self.id_column, vector_column=self.vector_column)
        if self.table.digest != self.digest:
            raise InputError("has changed since the job began", path=self.path, remedy="Leave it alone meanwhile.")
        self.ids = VectorIds(self.table.ids)

    def process(self, items: Sequence[Item]) -> None:
        import pyarrow as pa

        names = {name: pa.array([item.row[name] for item in items], pa.string()) for name in ("sample_id", "image_uri")}
        table, of_picture = pa.table(names), self.key.stream == CONTEXT
        found = self.ids.match(table, by_picture=of_picture, shared=self.shared)
        for place, (item, row) in enumerate(zip(items, found.rows.tolist(), strict=True)):
            if self.key.stream != CONTEXT and item.row[f"{self.key.stream}_box"] is None:
                continue
            if row < 0:
                why = found.ambiguous.get(place)
                told = f"{self.path} has no vector of this sample" + ("" if why is None else f": {why}")
                item.failure = Failure("decode", "no_vector", "NoVector", told)
                continue
            with np.errstate(over="ignore"):
                half = self.table.vectors[row].astype(np.float16)
            if np.isfinite(half).all():
                item.output[self.key.column] = half[None]
            else:
                item.failure = not_finite(
                    "decode", f"the vector {self.table.ids[row]!r} holds NaN, infinity or more than float16 can"
                )
