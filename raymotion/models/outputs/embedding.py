"""A joint space: for each sample one unit vector of each of two sides, such as a picture and its captions.

A network returns the vectors of both sides, the logarithm of the scale (the inverse temperature) and a bias, which the
losses of `learning.losses.contrastive` read: `Embedding.raw_of` puts them together. A side that a sample lacks is a
vector of zeros, which is no direction; in Parquet it is null.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from raymotion.data.captions import readable
from raymotion.errors import InputError
from raymotion.learning.losses.contrastive import make_contrastive_loss
from raymotion.learning.metrics.multilabel import Evaluation
from raymotion.learning.metrics.retrieval import LOWER_IS_BETTER as LOWER
from raymotion.learning.metrics.retrieval import (
    RETRIEVAL_METRICS,
    Ranks,
    evaluate_retrieval,
    rank_queries,
    retrieval_metrics,
    weighed_retrieval,
)
from raymotion.models.outputs.base import Gives, Output, Targets, array_digest, read_loss
from raymotion.models.recipe import LossSettings

if TYPE_CHECKING:
    from torch import Tensor

IMAGE, TEXT = "image", "text"
GROUP = "group"
# Key of the schema's metadata that describes the vectors.
METADATA = b"embedding"
LARGEST = 65_536
# Larger numbers of validation samples are compared in parts of this size, so that an epoch's metrics stay affordable.
POOL = 5000
# Mean cosine of two samples of a side from which its vectors are nearly one direction.
ONE_DIRECTION = 0.99


class Embedding(Output):
    """Unit vectors (n, 2 D) of two sides, the first D numbers of the first side; zeros for a side that is absent.

    Args:
        dim: D.
        sides: names of the two sides; `text` needs a caption. The columns are `SIDE_embedding`.
        added: the last numbers of each side that only say something beside the other side, and nothing of two
            vectors of one side; they count in `dim`.
        loss: one of `learning.losses.contrastive.LOSSES`.
    """

    kind_of_output: ClassVar[str] = "embedding"
    gives: ClassVar[Gives] = "vectors"
    selects: ClassVar[str] = "mrr"
    metric_names: ClassVar[tuple[str, ...]] = RETRIEVAL_METRICS
    lower_is_better = LOWER
    nullable: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        *,
        sides: tuple[str, str] = (IMAGE, TEXT),
        name: str = "embedding",
        added: int = 0,
        loss: LossSettings | None = None,
        weight: float = 1.0,
    ) -> None:
        if len(sides) != 2 or sides[0] == sides[1]:
            raise InputError(f"an embedding has two sides of different names, not {', '.join(sides)}")
        self.dim, self.sides, self.name, self.weight = dim, tuple(sides), name, weight
        self.added = added
        self.loss = loss or LossSettings(name="infonce")

    @property
    def width(self) -> int:
        return 2 * self.dim

    @property
    def raw_width(self) -> int:
        """The vectors, the logarithm of the scale, and the bias."""
        return self.width + 2

    def raw_of(self, first: Tensor, second: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        """Returns what a network returns for this output, (n, raw_width).

        Args:
            first, second: (n, D) vectors of any length; zeros for a side that is absent.
            log_scale, bias: scalars.
        """
        import torch

        told = torch.stack([log_scale.reshape(()), bias.reshape(())]).float().expand(len(first), 2)
        return torch.cat([first.float(), second.float(), told], dim=1)

    @property
    def target_noun(self) -> str:
        return "captions" if TEXT in self.sides else "samples"

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": self.kind_of_output, "name": self.name, "dim": self.dim, "sides": list(self.sides),
            **({"added": self.added} if self.added else {}), "loss": self.loss.model_dump(mode="json"),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str) -> Embedding:
        dim, sides = value.get("dim"), value.get("sides")
        if type(dim) is not int or not 1 <= dim <= LARGEST:
            raise InputError(f"the output {value.get('name')} has vectors of {dim!r} numbers", path=where)
        added = value.get("added", 0)
        if type(added) is not int or not 0 <= added < dim:
            raise InputError(f"the output {value.get('name')} has {added!r} added numbers of {dim}", path=where)
        if not isinstance(sides, list) or len(sides) != 2 or not all(isinstance(s, str) and s for s in sides):
            raise InputError(f"the output {value.get('name')} does not name its two sides", path=where)
        try:
            loss = read_loss(value, where=where)
            return cls(dim, sides=(sides[0], sides[1]), name=str(value["name"]), added=added, loss=loss)
        except InputError as error:
            raise InputError(error.reason, path=where, remedy=error.remedy) from error

    def read(self, table: pa.Table, *, where: object, given: np.ndarray | None = None) -> Targets:
        """Returns the group of each sample; samples without a caption have no target if a side is `text`."""
        _, groups = np.unique(np.array(table.column("group_id").to_pylist(), dtype=str), return_inverse=True)
        known = np.ones(table.num_rows, dtype=bool)
        if TEXT in self.sides:
            known = np.array([bool(readable(own)) for own in table.column("captions").to_pylist()], dtype=bool)
        return Targets({GROUP: groups.astype(np.int64).reshape(-1)}, known)

    def require(self, targets: Targets, splits: Mapping[str, np.ndarray], *, where: str) -> None:
        for split in ("train", "val"):
            if len(np.unique(targets.arrays[GROUP][splits[split]])) < 2:
                raise InputError(
                    f"the split {split} has fewer than two images with {self.target_noun}: nothing to tell apart",
                    path=where,
                    remedy="Add some, or split the table otherwise.",
                )

    def contents(self, targets: Targets) -> list[Any]:
        return [list(self.sides), array_digest(targets.arrays[GROUP])]

    def batch(self, targets: Targets, rows: np.ndarray, device: str) -> dict[str, Tensor]:
        import torch

        known = targets.known[rows].astype(np.float32)
        return {
            GROUP: torch.from_numpy(targets.arrays[GROUP][rows]).to(device),
            "known": torch.from_numpy(known).to(device),
        }

    def criterion(self, targets: Targets, training: np.ndarray) -> Callable[..., Tensor]:
        compare = make_contrastive_loss(self.loss.name, self.loss.options)

        def loss(raw: Tensor, targets: Mapping[str, Tensor], *, epoch: int, weights: Tensor | None) -> Tensor:
            first, second = self._sides(raw)
            own = targets["known"] if weights is None else targets["known"] * weights
            return compare(first, second, targets[GROUP], raw[0, -2].exp(), raw[0, -1], own)

        return loss

    def _sides(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the unit vectors (n, D) of both sides."""
        import torch

        vectors = raw[:, : self.width].float()
        first, second = (torch.nn.functional.normalize(own, dim=1) for own in vectors.split(self.dim, dim=1))
        return first, second

    def decode(self, raw: Tensor) -> Tensor:
        import torch

        return torch.cat(self._sides(raw), dim=1)

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the vectors of both sides, (n, D) each."""
        return values[:, : self.dim], values[:, self.dim :]

    def both_ways(self, values: np.ndarray, groups: np.ndarray) -> dict[str, tuple[Ranks, np.ndarray]]:
        """Ranks each side of n samples for the other.

        Args:
            values: (n, 2 D). groups: (n,) of the samples; those of one group belong together.

        Returns:
            By direction (`text_to_image`), the ranks of the queries and their rows in `values`. Samples that lack a
            side are no queries of it, and no items; queries whose group has no item are left out.
        """
        sides = dict(zip(self.sides, self.split(values), strict=True))
        there = {name: (own != 0).any(axis=1) for name, own in sides.items()}
        found = {}
        for query, item in (self.sides[::-1], self.sides):
            items = np.flatnonzero(there[item])
            rows = np.flatnonzero(there[query] & np.isin(groups, groups[items]))
            if len(rows):
                ranks = rank_queries(sides[query][rows], sides[item][items], groups[rows], groups[items])
                found[f"{query}_to_{item}"] = ranks, rows
        return found

    def _ranks(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ranks of both directions together, and the position in `rows` of each query."""
        groups = targets.arrays[GROUP][rows]
        ranks, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        # Of equal size, as ranks depend on that of the pool.
        for some in np.array_split(np.arange(len(rows)), max(1, -(-len(rows) // POOL))):
            for own, queries in self.both_ways(values[some], groups[some]).values():
                ranks.append(own.ranks)
                places.append(some[queries])
        return np.concatenate(ranks), np.concatenate(places)

    def metrics(self, targets: Targets, rows: np.ndarray, values: np.ndarray) -> dict[str, float]:
        """Computes the metrics of `learning.metrics.retrieval` over the queries of both directions.

        A sample has one vector of each side: the mean direction of its captions, not each of them.
        """
        return retrieval_metrics(self._ranks(targets, rows, values)[0])

    def weighed(
        self, metric: str, targets: Targets, rows: np.ndarray, values: np.ndarray, units: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Prepares a metric for bootstrap intervals: queries are drawn, from the pool as it is."""
        ranks, places = self._ranks(targets, rows, values)
        if not len(ranks):
            return lambda counts: np.full(len(counts), np.nan)
        drawn = units[places]
        measure, groups = weighed_retrieval(ranks, drawn), int(drawn.max()) + 1
        return lambda counts: measure(counts[:, :groups])[metric]

    def baseline(self, targets: Targets, training: np.ndarray) -> np.ndarray:
        """Returns one direction for every sample: it is last, because equal similarities count against a model."""
        found = np.zeros(self.width, dtype=np.float32)
        found[[0, self.dim]] = 1.0
        return found

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
        """Computes the metrics of each direction, named `text_to_image_recall_at_1`, and the size of each pool."""
        numbers = targets.arrays[GROUP][rows]
        metrics: dict[str, Any] = {}
        pools: dict[str, Any] = {}
        for direction, (ranks, queries) in self.both_ways(values, numbers).items():
            found = evaluate_retrieval(ranks, groups=[str(number) for number in numbers[queries]], seed=seed)
            metrics |= {f"{direction}_{name}": own for name, own in found.metrics.items()}
            pools[direction] = {"queries": len(queries), "pool": ranks.pool}
        return {**Evaluation(samples=len(rows), metrics=metrics, seed=seed).to_dict(), "pools": pools}

    def spread_notice(self, values: np.ndarray, facts: Mapping[str, Any]) -> str | None:
        """Returns a notice about a side whose vectors are nearly one direction: they tell no sample from another."""
        for side, own in zip(self.sides, self.split(values), strict=True):
            there = own[(own != 0).any(axis=1)].astype(np.float64)
            n = len(there)
            if n < 2:
                continue
            # Of unit vectors, the squared length of their sum is n plus the cosines of all ordered pairs.
            mean = float((np.square(there.sum(axis=0)).sum() - n) / (n * (n - 1)))
            if mean > ONE_DIRECTION:
                return (
                    f"The {side} vectors of {n:,} samples are nearly one direction (mean cosine of two {mean:.3f}): "
                    "they tell no sample from another."
                )
        return None

    def columns(self, values: np.ndarray) -> dict[str, pa.Array]:
        found = {}
        for side, own in zip(self.sides, self.split(values), strict=True):
            there = (own != 0).any(axis=1)
            flat = pa.array(np.ascontiguousarray(own, dtype=np.float32).reshape(-1), pa.float32())
            found[f"{side}_embedding"] = pa.FixedSizeListArray.from_arrays(flat, self.dim, mask=pa.array(~there))
        return found

    def values(self, table: pa.Table) -> np.ndarray:
        found = np.zeros((table.num_rows, self.width), dtype=np.float32)
        for number, side in enumerate(self.sides):
            column = table.column(f"{side}_embedding").combine_chunks()
            there = np.flatnonzero(np.asarray(column.is_valid()))
            flat = np.asarray(column.drop_null().flatten(), dtype=np.float32)
            found[there, number * self.dim : (number + 1) * self.dim] = flat.reshape(len(there), self.dim)
        return found

    def metadata(self) -> dict[bytes, bytes]:
        told = {"sides": list(self.sides), "dim": self.dim, **({"added": self.added} if self.added else {})}
        return {METADATA: json.dumps(told).encode()}

    def named(self, values: np.ndarray) -> dict[str, float]:
        """Returns the cosine of the two sides, `similarity`; nothing if one is absent."""
        first, second = self.split(values[None])
        if not (first.any() and second.any()):
            return {}
        return {"similarity": float((first * second).sum())}

    def describe(self) -> list[str]:
        return [
            f"A joint space of {self.dim} numbers: one unit vector of each {' and of its '.join(self.sides)}, compared "
            "by their cosine."
        ]

    def describe_training(self) -> list[str]:
        return [f"Loss of {self.name}: `{self.loss.name}`."]
