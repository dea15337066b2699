"""Takes random samples of what a model reads, and writes them as files (`learning.domain`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import records, storage
from raymotion.errors import Damaged
from raymotion.learning.domain import STATISTICS, DomainSample
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST = float(np.finfo(np.float16).max)


class _RandomRows:
    """Keeps `most` of all rows that it is given, each with the same chance."""

    def __init__(self, most: int, seed: Sequence[int]) -> None:
        self.most, self.rng = most, np.random.default_rng(seed)
        self.keys = np.zeros(0)
        self.rows: np.ndarray | None = None

    def add(self, count: int, take: Callable[[np.ndarray], np.ndarray]) -> None:
        """Draws among `count` more rows, of which `take` returns those at some positions."""
        keys = np.concatenate([self.keys, self.rng.random(count)])
        kept = np.argsort(keys, kind="stable")[: self.most]
        old, new = kept[kept < len(self.keys)], kept[kept >= len(self.keys)]
        rows = take(new - len(self.keys))
        self.rows = rows if self.rows is None else np.concatenate([self.rows[old], rows])
        self.keys = keys[np.concatenate([old, new])]


class DomainSampler:
    """Keeps some random rows of what the last layer reads, and statistics of as many random samples.

    The rows depend on the seed and on what was predicted, so a shard that is done again gives the same ones.

    Args:
        most: number of rows, and of samples.
        group: of all rows; also the seed.
    """

    def __init__(self, most: int, group: int) -> None:
        self.group = group
        self._features, self._statistics = (_RandomRows(most, [group, number]) for number in (0, 1))

    @contextlib.contextmanager
    def watching(self, kind: Kind, network: nn.Module, outputs: Sequence[Output]) -> Iterator[None]:
        """Samples the predictions of the block, unless it fails. Predictions stay as they are."""
        seen: list[Tensor] = []
        head = kind.heads(network, outputs)[outputs[0].name]
        # Only kept here: copied after the block, and only the rows that are drawn.
        hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        try:
            yield
        finally:
            hook.remove()
        for values in seen:
            self._add_features(values.flatten(0, -2))

    def _add_features(self, values: Tensor) -> None:
        import torch

        def take(places: np.ndarray) -> np.ndarray:
            chosen = values[torch.from_numpy(places).to(values.device)]
            # Nearly all features are far below the limit of float16; it is the same on both sides.
            return chosen.float().clamp(-LARGEST, LARGEST).cpu().numpy().astype(np.float16)

        self._features.add(len(values), take)

    def add_statistics(self, count: int, statistics: Mapping[str, np.ndarray]) -> None:
        """Samples the statistics of `count` samples; see `DomainSample.statistics`."""
        table = np.full((count, len(STATISTICS)), np.nan, np.float32)
        for place, name in enumerate(STATISTICS):
            if name in statistics:
                table[:, place] = statistics[name]
        self._statistics.add(count, lambda places: table[places])

    def sample(self) -> DomainSample | None:
        """Returns what was kept; None if nothing was predicted."""
        features, table = self._features.rows, self._statistics.rows
        if features is None:
            return None
        features = features[np.isfinite(features).all(axis=1)]
        own = {} if table is None else {
            name: table[:, place] for place, name in enumerate(STATISTICS) if np.isfinite(table[:, place]).any()
        }  # fmt: skip
        return DomainSample(features, np.full(len(features), self.group, np.int32), own)


def to_bytes(sample: DomainSample) -> bytes:
    """Returns a sample as a safetensors file."""
    from safetensors.numpy import save

    arrays = {"features": sample.features, "groups": sample.groups}
    arrays |= {f"statistics {name}": own for name, own in sample.statistics.items()}
    return save({name: np.ascontiguousarray(own) for name, own in arrays.items()})


def read_sample(path: storage.PathLike, sha256: str, *, remedy: str) -> DomainSample:
    """Reads the file of `to_bytes`.

    Raises:
        Damaged: it is missing, or is not the file with this digest.
    """
    arrays: Mapping[str, Any] = records.read_arrays(path, sha256, remedy=remedy)
    features, groups = arrays.get("features"), arrays.get("groups")
    if (
        features is None or groups is None or features.ndim != 2 or features.dtype != np.float16
        or groups.shape != features.shape[:1] or not np.isfinite(features).all()
    ):  # fmt: skip
        raise Damaged("is not a sample of features", path=path, remedy=remedy)
    named = {name: arrays[f"statistics {name}"] for name in STATISTICS if f"statistics {name}" in arrays}
    return DomainSample(features, groups, named)
