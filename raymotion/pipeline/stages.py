"""Stages: the steps that a worker applies to samples, in order.

A stage is a plain class, independent of Ray: `setup()` runs once in the worker's process, `process(items)` for each
batch. It records failures on the items, and raises only errors that are not the fault of a single row.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raymotion.data.images import fetch_ahead
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.decode import ImageError, read_picture
from raymotion.data.images.marks import PictureMark, mark_of
from raymotion.data.provenance import MADE_FROM
from raymotion.errors import InputError
from raymotion.models.vision.regions import ExtractorIdentity, Regions

MESSAGE_LIMIT = 500  # characters; messages go into files row by row


@dataclass(frozen=True)
class Failure:
    """Reason why a row is quarantined: the stage, a short code for counts, the class of the error, and its message."""

    stage: str
    reason: str
    error: str
    message: str

    @classmethod
    def of(cls, stage: str, error: Exception) -> Failure:
        """Converts an error in a stage to a failure."""
        reason = error.reason if isinstance(error, ImageError) else "stage_error"
        text = str(error).strip() or type(error).__name__
        return cls(stage, reason, type(error).__name__, text[:MESSAGE_LIMIT])


def not_finite(stage: str, message: str) -> Failure:
    """Returns the failure of a row for which a model returned NaN or infinity."""
    return Failure(stage, "not_finite", "NotFinite", message)


@dataclass
class Item:
    """One sample in the pipeline.

    Attributes:
        row: its row of the sample table.
        failure: set by the stage that failed; later stages skip the item.
        damage: damage in its picture, if the picture is used nonetheless (`--damaged keep`).
        mark: size and digest of the picture's bytes; None if no picture was read.
        pixels: uint8 (height, width, 3), from decoding until the last stage that needs them.
        regions: regions of its picture.
        features: features by stream.
        question: the picture as a service is asked about it, until it answers.
        answer: values (width,) float32 of a service.
        output: values for the job's output columns.
    """

    row: dict[str, Any]
    failure: Failure | None = None
    damage: str | None = None
    mark: PictureMark | None = None
    pixels: np.ndarray | None = None
    regions: Regions | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)
    question: bytes | None = None
    answer: np.ndarray | None = None
    output: dict[str, Any] = field(default_factory=dict)


def image_units(items: Sequence[Item]) -> list[list[Item]]:
    """Groups consecutive items with the same image_uri; an item without one forms its own unit."""
    units: list[list[Item]] = []
    for item in items:
        uri = item.row["image_uri"]
        if units and uri is not None and units[-1][0].row["image_uri"] == uri:
            units[-1].append(item)
        else:
            units.append([item])
    return units


def made_from(items: Sequence[Item]) -> list[pa.Array]:
    """Returns the columns `MADE_FROM` of some items, which identify their pictures."""
    values = (
        [item.row["image_uri"] for item in items],
        [None if item.mark is None else item.mark.size for item in items],
        [None if item.mark is None else item.mark.digest for item in items],
    )
    return [pa.array(column, own.type) for column, own in zip(values, MADE_FROM, strict=True)]


class Stage(Protocol):
    """Interface of stages. Instances are pickled and sent to a worker before `setup`, so they contain only settings.

    A stage may count e.g. forward passes in an attribute `tally`, a Counter that the worker clears before each shard
    and writes to its commit. A stage that reads files may have a method `ahead(items)`, which returns a context that
    prefetches the files of these items. One that samples what it reads has `begin(shard, rows)`, called before a shard
    of which to keep so many rows, and `sample()`, which returns them (`learning.domain.DomainSample`) or None.
    """

    name: str
    whole_shard: bool  # whether process() gets all items of a shard at once, after the stages that take batches

    def setup(self, threads: int, device: str) -> None:
        """Loads models and data, once in each worker."""

    def process(self, items: Sequence[Item]) -> None:
        """Processes items that have not failed before; sets results or failures on them."""


class DecodeImages:
    """Fetches and decodes the picture of each item.

    Args:
        min_side: resolution of the model; larger JPEGs may be decoded at a reduced size.
        required: whether items without an address fail; otherwise they pass without pixels, and the model masks them.
        damaged: treatment of pictures that decode incorrectly; see `decode_rgb`.
    """

    name = "decode"
    whole_shard = False

    def __init__(
        self, min_side: int | None = None, *, required: bool = False, damaged: DamagedPolicy = "quarantine"
    ) -> None:
        self.min_side, self.required, self.damaged = min_side, required, damaged

    def setup(self, threads: int, device: str) -> None:
        pass

    def ahead(self, items: Sequence[Item]) -> AbstractContextManager[None]:
        """Prefetches the pictures of these items for the duration of the block, each once per unit."""
        return fetch_ahead.shared().ahead(item.row["image_uri"] for item in items)

    def process(self, items: Sequence[Item]) -> None:
        for item in items:
            uri = item.row["image_uri"]
            if uri is None:
                if self.required:
                    item.failure = Failure(self.name, "no_image", "NoImage", "the sample has no image_uri")
                continue
            kept: list[ImageError] = []
            try:
                data, item.pixels = read_picture(
                    uri, fetch=fetch_ahead.shared().fetch, min_side=self.min_side, damaged=self.damaged,
                    on_kept=kept.append,
                )  # fmt: skip
                item.mark = mark_of(data)
                item.damage = f"{kept[0].reason}: {kept[0]}"[:MESSAGE_LIMIT] if kept else None
            except ImageError as error:
                item.failure = Failure.of(self.name, error)


class ExtractRegions:
    """Extracts region features of items with pixels."""

    name = "regions"
    whole_shard = False

    def __init__(self, identity: ExtractorIdentity, weights: str, precision: str) -> None:
        self.identity, self.weights, self.precision = identity, weights, precision

    def setup(self, threads: int, device: str) -> None:
        import torch

        from raymotion.models.vision.regions import RegionExtractor

        torch.set_num_threads(threads)
        own = self.identity
        self.extractor = RegionExtractor(own.name, self.weights, own.count, device=device, precision=self.precision)
        if self.extractor.identity != own:
            raise InputError(
                f"the weights are {self.extractor.identity.weights} here, and were {own.weights} when the job began",
                path=self.weights,
                remedy="Give every node the same file, and leave it alone while the job runs.",
            )
        self.extractor([np.zeros((64, 64, 3), np.uint8)])  # the first call is slow, so it belongs to the setup

    def process(self, items: Sequence[Item]) -> None:
        seen = [item for item in items if item.pixels is not None]
        if not seen:
            return
        pictures = [item.pixels for item in seen if item.pixels is not None]
        for item, regions in zip(seen, self.extractor(pictures), strict=True):
            wrong = _beyond_float16(regions)
            if wrong is None:
                item.regions = regions
            else:
                item.failure = not_finite(self.name, wrong)


def _beyond_float16(regions: Regions) -> str | None:
    """Returns why a picture's regions cannot be stored (features in float16), or None if they can."""
    peak = float(np.abs(regions.features).max(initial=0.0))
    if not peak <= np.finfo(np.float16).max:  # also True for NaN
        return f"the features reach {peak:g}, more than float16 holds"
    if not (np.isfinite(regions.boxes).all() and np.isfinite(regions.scores).all()):
        return "boxes or scores are NaN or infinite"
    return None


class LoadRegions:
    """Loads region features from a finished features job, instead of decoding and extracting."""

    name = "decode"  # as for every first stage
    whole_shard = False

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, threads: int, device: str) -> None:
        from raymotion.data.features import RegionFeatures

        self.features = RegionFeatures(self.folder)

    def process(self, items: Sequence[Item]) -> None:
        matrix, mask = self.features.get([item.row["sample_id"] for item in items])
        for item, features, present in zip(items, matrix, mask, strict=True):
            if item.row["sample_id"] in self.features:
                n = len(present)
                item.mark = self.features.mark(item.row["sample_id"])
                item.regions = Regions(features, np.zeros((n, 4), np.float32), np.zeros(n, np.float32), present)
            elif item.row["image_uri"] is not None:
                item.failure = Failure(
                    self.name,
                    "no_features",
                    "NoFeatures",
                    f"{self.folder} has no features of this sample: see its quarantine",
                )


class NoEvidence:
    """Empty first stage for models that read no pictures."""

    name = "decode"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        pass
