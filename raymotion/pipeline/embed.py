"""The stages of the embedding job: each picture is decoded once for all streams and backbones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymotion.data.embedding_layout import AUGMENTED_SPLIT, EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.streams import CONTEXT
from raymotion.data.views.streams import View, crop, render_view
from raymotion.models.inputs.streams import Stream
from raymotion.models.vision.backbones import BackboneIdentity
from raymotion.pipeline.stages import DecodeImages, Failure, Item, image_units, not_finite

if TYPE_CHECKING:
    from raymotion.models.vision.backbones import Backbone

# Version of the rendering of views; raised with each change, because features of different views are not comparable.
RENDERER = 1
# Crops per forward pass. On a CPU more crops only take more memory.
CHUNK_CPU, CHUNK_GPU = 32, 256


@dataclass(frozen=True)
class StreamPlan:
    """The features to compute.

    Attributes:
        streams: names of the backbones of each stream, in the order of `STREAMS`.
        identities: identity of each backbone, by name.
        views: number of views by level; "none" is first, with one view.
        tokens: side of the grid of spatial tokens; 0: none.
        seed: seed of the views.
    """

    streams: Mapping[str, tuple[str, ...]]
    identities: Mapping[str, BackboneIdentity]
    views: Mapping[str, int]
    tokens: int
    seed: int

    def layout(self) -> EmbeddingLayout:
        """Returns the layout of the job's parts."""
        shapes: dict[FeatureKey, FeatureShape] = {}
        for stream, names in self.streams.items():
            for name in names:
                for level, views in self.views.items():
                    own = self.identities[name]
                    shapes[FeatureKey(stream, name, level)] = FeatureShape(views, own.dim)
                    if self.tokens:
                        shape = FeatureShape(views, own.token_dim, self.tokens**2)
                        shapes[FeatureKey(stream, name, level, tokens=True)] = shape
        backbones = {name: identity.to_dict() for name, identity in self.identities.items()}
        return EmbeddingLayout(shapes, backbones, self.views, self.seed, self.tokens, RENDERER)


class DecodeOnce(DecodeImages):
    """`DecodeImages` at full size, once for consecutive items of an image.

    Boxes refer to pixels of the full picture, and small faces need its resolution.
    """

    def __init__(self, damaged: DamagedPolicy = "quarantine", *, required: bool = True) -> None:
        super().__init__(None, required=required, damaged=damaged)

    def ahead(self, items: Sequence[Item]) -> AbstractContextManager[None]:
        return super().ahead([unit[0] for unit in image_units(items)])

    def process(self, items: Sequence[Item]) -> None:
        for first, *others in image_units(items):
            super().process([first])
            for item in others:
                item.pixels, item.failure = first.pixels, first.failure
                item.mark, item.damage = first.mark, first.damage


@dataclass
class _Subject:
    """One picture or crop as input for the backbones of a stream.

    Attributes:
        pixels: uint8 (h, w, 3).
        image: key of the random mirroring, shared by all subjects in a picture.
        owner: key of the other random draws.
        items: the items that get its features.
    """

    pixels: np.ndarray
    image: str
    owner: str
    items: list[Item]

    def at(self, level: str) -> list[Item]:
        """Returns the items that get features of this level; augmented ones are only for the training split."""
        return [item for item in self.items if level == "none" or item.row["split"] == AUGMENTED_SPLIT]


class EmbedStreams:
    """Computes features of each item in all its streams, stored in `item.output` by column.

    The whole picture is embedded once for all its items, and a view is rendered once for all backbones of its stream.

    Attributes:
        tally: forward passes (rows through a backbone) by `STREAM/BACKBONE/LEVEL`.
    """

    name = "embed"
    whole_shard = False

    def __init__(self, plan: StreamPlan, weights: Mapping[str, str], precision: str) -> None:
        self.plan, self.weights, self.precision = plan, weights, precision
        self.tally: Counter[str] = Counter()

    def setup(self, threads: int, device: str) -> None:
        import torch

        from raymotion.models.vision.backbones import Backbone

        torch.set_num_threads(threads)
        self.chunk = CHUNK_CPU if device == "cpu" else CHUNK_GPU
        loaded: dict[BackboneIdentity, Backbone] = {}  # one backbone may have several names
        self.backbones: dict[str, Backbone] = {}
        for name, identity in self.plan.identities.items():
            if identity not in loaded:
                loaded[identity] = Backbone(identity, self.weights[name], device=device, precision=self.precision)
                # The first call is slow, so it belongs to the setup.
                loaded[identity](np.zeros((1, 3, identity.size, identity.size), np.float32), tokens=self.plan.tokens)
            self.backbones[name] = loaded[identity]

    def process(self, items: Sequence[Item]) -> None:
        units = image_units([item for item in items if item.pixels is not None])
        for stream, names in self.plan.streams.items():
            subjects = list(_subjects(units, stream))
            for level, views in self.plan.views.items():
                wanted = [subject for subject in subjects if subject.at(level)]
                for start, block in self._features(stream, names, level, views, wanted):
                    for key, values in block.items():
                        for subject, features in zip(wanted[start : start + len(values)], values, strict=True):
                            self._store(subject, key, features)

    def _features(
        self, stream: str, names: Sequence[str], level: str, views: int, subjects: Sequence[_Subject]
    ) -> Iterator[tuple[int, dict[FeatureKey, np.ndarray]]]:
        """Yields features (m, views, ...) of m subjects at a time, with the position of the first."""
        step = max(1, self.chunk // views)
        for start in range(0, len(subjects), step):
            some = subjects[start : start + step]
            rendered = [
                render_view(s.pixels, stream, View(level, number), seed=self.plan.seed, image=s.image, owner=s.owner)
                for s in some
                for number in range(views)
            ]
            block: dict[FeatureKey, np.ndarray] = {}
            for name in names:
                backbone = self.backbones[name]
                pixels = np.stack([backbone.prepare(view) for view in rendered])
                pooled, tokens = backbone(pixels, tokens=self.plan.tokens)
                self.tally[f"{stream}/{name}/{level}"] += len(pixels)
                block[FeatureKey(stream, name, level)] = pooled.reshape(len(some), views, -1)
                if tokens is not None:
                    shape = (len(some), views, *tokens.shape[1:])
                    block[FeatureKey(stream, name, level, tokens=True)] = tokens.reshape(shape)
            yield start, block

    def _store(self, subject: _Subject, key: FeatureKey, features: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        for item in subject.at(key.level):
            if np.isfinite(half).all():
                item.output[key.column] = half
            else:
                peak = float(np.abs(features).max())
                item.failure = not_finite(self.name, f"{key.column} reaches {peak:g}, more than float16 holds")


def _subjects(units: Sequence[Sequence[Item]], stream: str) -> Iterator[_Subject]:
    """Yields the subjects of a stream: each picture once, or the crop of each person with a box."""
    for unit in units:
        pixels, image = unit[0].pixels, str(unit[0].row["group_id"])
        assert pixels is not None
        if stream == CONTEXT:
            yield _Subject(pixels, image, image, list(unit))
            continue
        for item in unit:
            part = crop(pixels, item.row[f"{stream}_box"])
            if part is not None:
                yield _Subject(part, image, str(item.row["sample_id"]), [item])


class EmbedForHead:
    """`EmbedStreams` for streams with different grids of tokens; stores features by stream."""

    name = "embed"
    whole_shard = False

    def __init__(self, inputs: Sequence[Stream], weights: Mapping[str, str], precision: str) -> None:
        self.inputs = tuple(inputs)
        self.parts: list[EmbedStreams] = []
        for grid in sorted({own.grid for own in inputs}):
            some = [own for own in inputs if own.grid == grid]
            plan = StreamPlan(
                {own.stream: (own.name,) for own in some},
                {own.name: own.identity for own in some},
                {"none": 1},
                grid,
                0,
            )
            self.parts.append(EmbedStreams(plan, weights, precision))

    def setup(self, threads: int, device: str) -> None:
        for part in self.parts:
            part.setup(threads, device)

    def process(self, items: Sequence[Item]) -> None:
        for part in self.parts:
            part.process([item for item in items if item.failure is None])
        for item in items:
            found = item.output
            item.output = {}
            for own in self.inputs:
                features = found.get(FeatureKey(own.stream, own.name, tokens=own.grid > 0).column)
                if features is not None:
                    item.features[own.stream] = features[0]


class LoadEmbeddings:
    """Loads clean features from a finished embedding job, instead of decoding and embedding.

    Args:
        required: whether items without features fail even if they have no picture; otherwise the model masks them.
    """

    name = "decode"  # as for every first stage
    whole_shard = False

    def __init__(
        self, folder: str, keys: Mapping[str, FeatureKey], inputs: Sequence[Stream], *, required: bool = True
    ) -> None:
        self.folder, self.keys, self.inputs, self.required = folder, dict(keys), tuple(inputs), required

    def setup(self, threads: int, device: str) -> None:
        from raymotion.data.embeddings import Embeddings

        self.embeddings = Embeddings(self.folder)
        self.blocks = {
            stream: self.embeddings.block(stream, key.backbone, tokens=key.tokens) for stream, key in self.keys.items()
        }

    def process(self, items: Sequence[Item]) -> None:
        rows = self.embeddings.rows(item.row["sample_id"] for item in items)
        for item, row in zip(items, rows.tolist(), strict=True):
            if row < 0 and not self.required and item.row["image_uri"] is None:
                continue  # the model has another input, such as captions, and masks this one
            if row < 0:
                item.failure = Failure(
                    self.name,
                    "no_features",
                    "NoFeatures",
                    f"{self.folder} has no features of this sample: see its quarantine",
                )
                continue
            item.mark = self.embeddings.mark(row)
            for stream, block in self.blocks.items():
                if block.row_of[row] >= 0:
                    item.features[stream] = block.array[block.row_of[row], 0]
