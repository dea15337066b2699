"""Stages: the parts that one worker runs a sample through, one after the other.

A stage is a plain class: `setup()` once in the worker's process, `process(items)` for each batch. It runs, and is
tested, without Ray. It notes on an item why that item failed, and raises only what is not one row's fault.
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
    """Why a row ends in quarantine: where, a short code that is counted, the error's class, and its message."""

    stage: str
    reason: str
    error: str
    message: str

    @classmethod
    def of(cls, stage: str, error: Exception) -> Failure:
        """What `error` in `stage` is written down as."""
        reason = error.reason if isinstance(error, ImageError) else "stage_error"
        text = str(error).strip() or type(error).__name__
        return cls(stage, reason, type(error).__name__, text[:MESSAGE_LIMIT])


def not_finite(stage: str, message: str) -> Failure:
    """Of a row for which a model gave NaN or infinity."""
    return Failure(stage, "not_finite", "NotFinite", message)


@dataclass
class Item:
    """One sample on its way through the stages.

    Attributes:
        row: its row of the sample table.
        failure: set once by the stage where it failed; later stages leave it alone.
        damage: what is wrong with its picture, where the picture is used nonetheless (`--damaged keep`).
        mark: size and digest of the bytes that the picture was read from; None where none was read.
        pixels: uint8 (height, width, 3) between decoding and the last stage that looks.
        regions: regions of this one picture.
        features: features of its streams, by stream.
        output: values for the job's output columns.
    """

    row: dict[str, Any]
    failure: Failure | None = None
    damage: str | None = None
    mark: PictureMark | None = None
    pixels: np.ndarray | None = None
    regions: Regions | None = None
    features: dict[str, np.ndarray] = field(default_factory=dict)
    output: dict[str, Any] = field(default_factory=dict)


def image_units(items: Sequence[Item]) -> list[list[Item]]:
    """Runs of items that follow each other and have one image_uri; an item without one is a unit of its own."""
    units: list[list[Item]] = []
    for item in items:
        uri = item.row["image_uri"]
        if units and uri is not None and units[-1][0].row["image_uri"] == uri:
            units[-1].append(item)
        else:
            units.append([item])
    return units


def made_from(items: Sequence[Item]) -> list[pa.Array]:
    """The columns `MADE_FROM` of some items: which pictures they were made from."""
    values = (
        [item.row["image_uri"] for item in items],
        [None if item.mark is None else item.mark.size for item in items],
        [None if item.mark is None else item.mark.digest for item in items],
    )
    return [pa.array(column, own.type) for column, own in zip(values, MADE_FROM, strict=True)]


class Stage(Protocol):
    """What a worker runs; instances are sent to it by pickle before `setup`, so they hold settings only.

    A stage that counts something (forward passes) does so in an attribute `tally`, a Counter, which the worker empties
    before each shard and writes into its commit. One that reads files may have a method `ahead(items)`, a context in
    which it fetches what these items need.
    """

    name: str
    whole_shard: bool  # process() gets all items of a shard at once, after the stages that take batches

    def setup(self, threads: int, device: str) -> None:
        """Loads what is needed, once in each worker."""

    def process(self, items: Sequence[Item]) -> None:
        """Fills in, or fails, items none of which has failed before."""


class DecodeImages:
    """Fetches and decodes the picture of each item.

    Args:
        min_side: the model's own resolution; larger JPEGs may be decoded at a fraction of their size.
        required: whether an item without an address fails (else it passes without pixels, and the model masks it).
        damaged: what becomes of a picture that decodes, but not to what was stored; see `decode_rgb`.
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
        """Fetches the pictures of these items, each once for its unit, while the block lasts."""
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
    """Region features of each item that has pixels, which are dropped then."""

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
        self.extractor([np.zeros((64, 64, 3), np.uint8)])  # the first call is slow: part of getting ready

    def process(self, items: Sequence[Item]) -> None:
        seen = [item for item in items if item.pixels is not None]
        if not seen:
            return
        pictures = [item.pixels for item in seen if item.pixels is not None]
        for item, regions in zip(seen, self.extractor(pictures), strict=True):
            wrong = _beyond_float16(regions)
            if wrong is None:
                item.regions, item.pixels = regions, None
            else:
                item.failure = not_finite(self.name, wrong)


def _beyond_float16(regions: Regions) -> str | None:
    """What float16, in which features are stored, cannot hold of one picture's regions; None if it holds all."""
    peak = float(np.abs(regions.features).max(initial=0.0))
    if not peak <= np.finfo(np.float16).max:  # NaN is not either
        return f"the features reach {peak:g}, more than float16 holds"
    if not (np.isfinite(regions.boxes).all() and np.isfinite(regions.scores).all()):
        return "boxes or scores are NaN or infinite"
    return None


class LoadRegions:
    """Region features from a finished features job, in place of decoding and extracting."""

    name = "decode"  # the stage that brings the evidence in
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
    """First stage of a model that reads no pictures: they are left where they are."""

    name = "decode"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        pass
