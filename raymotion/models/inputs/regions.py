"""Region features: vectors of the boxes found by a detector, always the extractor of the training features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from raymotion.data.features import RegionFeatures
from raymotion.errors import InputError
from raymotion.models.inputs.base import Arrays, Bound, Draft, Evidence, Input, Prepared
from raymotion.models.vision.regions import ExtractorIdentity, Regions, architecture

if TYPE_CHECKING:
    import pyarrow as pa

    from raymotion.models.recipe import TrainRecipe


class _Shown(Arrays):
    """The `Draft` of region features."""

    def hide(self, rows: np.ndarray) -> None:
        self.values["region_mask"] = self.values["region_mask"] & ~rows[:, None]


class PreparedRegions(Prepared, Bound):
    """Region features of a training set, memory-mapped from their folder."""

    def __init__(self, features: RegionFeatures, sample_ids: Sequence[str], counts: Mapping[str, int] | None = None):
        self.features, self.sample_ids, self.counts = features, list(sample_ids), counts or {}
        self.present = np.array([sample_id in features for sample_id in sample_ids], dtype=bool)

    def take(self, rows: np.ndarray) -> PreparedRegions:
        return PreparedRegions(self.features, [self.sample_ids[row] for row in rows], self.counts)

    def described(self, training: np.ndarray) -> RegionInput:
        return RegionInput(ExtractorIdentity.from_dict(self.features.extractor, where=self.features.folder))

    def contents(self) -> list[Any]:
        return [self.features.digest]

    def evidence(self, rows: np.ndarray, read: Any = None) -> Evidence:
        return self._of(rows)

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> Draft:
        return self._of(rows)

    def _of(self, rows: np.ndarray) -> _Shown:
        features, mask = self.features.get([self.sample_ids[row] for row in rows])
        return _Shown("regions", np.asarray(mask.any(axis=1)), {"regions": features, "region_mask": mask})

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"features": self.features.folder, "sample_ids": self.sample_ids}, {}


class RegionInput(Input):
    """Region features of one extractor: `regions` (n, N, D) float32 and `region_mask` (n, N) bool.

    Args:
        identity: identity of the extractor; None takes it from `folder`, for training.
        folder: features job to train on.
    """

    name: ClassVar[str] = "regions"
    looks_at: ClassVar[str] = "some"
    noun = "an image"
    plural = "images"

    def __init__(self, identity: ExtractorIdentity | None, *, folder: str | None = None) -> None:
        self.known, self.folder = identity, folder
        self._features: RegionFeatures | None = None

    @property
    def identity(self) -> ExtractorIdentity:
        """Identity of the extractor of the features."""
        if self.known is None:
            self.known = ExtractorIdentity.from_dict(self.features.extractor, where=self.folder)
        return self.known

    @property
    def features(self) -> RegionFeatures:
        """The opened folder of the training features."""
        assert self.folder is not None
        if self._features is None:
            self._features = RegionFeatures(self.folder)
        return self._features

    @property
    def min_side(self) -> int | None:  # type: ignore[override]
        """The shorter side in pixels that the extractor resizes pictures to."""
        return architecture(self.identity.name).min_side

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.name, "extractor": self.identity.to_dict()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> RegionInput:
        return cls(ExtractorIdentity.from_dict(value.get("extractor"), where=where))

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedRegions:
        compared = self.features.require_made_from(table).by_name
        counts = {"compared_by_name_alone": compared} if compared else {}
        prepared = PreparedRegions(self.features, table.column("sample_id").to_pylist(), counts)
        if not prepared.present.any():
            raise InputError(
                "holds features of none of the samples", path=self.features.folder, remedy=f"Extract them from {where}."
            )
        return prepared

    def preparation(self) -> list[Any]:
        return [self.folder]

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedRegions:
        return PreparedRegions(RegionFeatures(meta["features"]), meta["sample_ids"])

    def collect(self, items: Sequence[Any]) -> Arrays:
        own = self.identity
        batch = Regions.stack([item.regions for item in items], own.count, own.dim)
        return Arrays(
            "regions", np.asarray(batch.mask.any(axis=1)), {"regions": batch.features, "region_mask": batch.mask}
        )

    def release(self, item: Any) -> None:
        item.regions = None

    def describe(self) -> list[str]:
        own = self.identity
        return [
            f"Region features: {own.name}, weights {own.weights}, {own.count} regions of {own.dim} numbers. Features "
            "of another extractor mean something else."
        ]

    def notices(self) -> list[str]:
        if self.identity.is_random:
            return ["The region extractor has random weights: what the model says of an image is for trials only."]
        return []


def random_weights_notice(identity: ExtractorIdentity) -> tuple[str, ...]:
    """Returns a warning about features of an untrained detector, if `identity` is one."""
    if not identity.is_random:
        return ()
    return (
        f"REGION FEATURES COME FROM RANDOM WEIGHTS ({identity.weights}): {identity.name} was not trained. "
        "They tell colours and textures apart, not objects: good for trying things out, not for results.",
    )
