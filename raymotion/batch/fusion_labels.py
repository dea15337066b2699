"""Labelling with a fusion head: sample table -> crops -> frozen backbones -> head -> pseudo-labels, in one pass.

Each picture is decoded once for all its persons, and its context looked at once, as in the embedding job, whose stages
these are. Or the features come from a finished embedding job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.embeddings import COLUMNS
from raymotion.data.embedding_layout import FeatureKey, layout_of, require_complete, schema_of
from raymotion.data.features import features_digest
from raymotion.data.parts import part_names
from raymotion.data.provenance import BOXES, begun_at, read_made_from, require_same_pictures
from raymotion.data.samples import read_samples
from raymotion.data.views.streams import crop
from raymotion.errors import InputError
from raymotion.learning.vad import DIMENSIONS, SCALE
from raymotion.models.inputs.streams import StreamInput, find_weights, masks, needs, squares, stream_inputs
from raymotion.models.vision.regions import locate
from raymotion.pipeline.embed import CONTEXT, DecodeOnce, EmbedStreams, StreamPlan
from raymotion.pipeline.label_stages import FiniteAnswers
from raymotion.pipeline.stages import Failure, Item, Stage

if TYPE_CHECKING:
    from raymotion.batch.labels import LabelSettings
    from raymotion.models.checkpoint import CheckpointInfo

__all__ = ["COLUMNS", "FusionPlan", "plan_fusion", "with_vad"]


@dataclass(frozen=True)
class FusionPlan:
    """What labelling with a fusion head needs besides what every labelling needs.

    Attributes:
        inputs: streams that the head looks at, without those that an ablation leaves out.
        keys: with embeddings, where the features of each stream are.
        identity: for the job's identity.
        notices: what a user must know.
        check: raises where the embeddings are not of the samples that are to be labelled.
    """

    info: CheckpointInfo
    inputs: tuple[StreamInput, ...]
    weights: Mapping[str, str]
    folder: str | None
    keys: Mapping[str, FeatureKey]
    identity: Mapping[str, Any]
    notices: tuple[str, ...]
    check: Callable[[pa.Table], list[str]] | None = None

    @property
    def vad(self) -> bool:
        return bool((self.info.config["fusion"] if self.tuned else self.info.config).get("vad"))

    @property
    def tuned(self) -> bool:
        """Whether the head has its own backbones, which were tuned with it."""
        return self.info.architecture == "fusion-tuned"

    def stages(self, precision: str) -> tuple[Stage, ...]:
        if self.tuned:
            tuned = PredictWithTuned(self.info.folder, self.info.fingerprint, self.inputs, precision=precision)
            return (DecodeOnce(), tuned)
        head = PredictWithFusion(self.info.folder, self.info.fingerprint, self.inputs)
        if self.folder is not None:
            return (LoadEmbeddings(self.folder, self.keys, self.inputs), head)
        return (DecodeOnce(), EmbedForHead(self.inputs, self.weights, precision), head)

    def counts(self, folder: str, digest: str) -> dict[str, int]:
        """Samples that had each stream, of those that were labelled."""
        total: Counter[str] = Counter({own.stream: 0 for own in self.inputs})
        for commit in ledger.read_commits(folder, digest).values():
            total.update({own.stream: commit.tally.get(own.stream, 0) for own in self.inputs})
        return dict(total)


def plan_fusion(info: CheckpointInfo, settings: LabelSettings) -> FusionPlan:
    """Checks that the head's features can be made, or are in the embeddings that were named.

    Raises:
        InputError: weights of a backbone that are not named, or are others; embeddings of other backbones; samples
            without anything that the head looks at.
    """
    inputs = stream_inputs(info, settings.ablation)
    notices: list[str] = []
    if settings.ablation is not None:
        notices.append(f"Ablation {settings.ablation}: the head looked at {_list(inputs)} alone.")
    random = sorted({own.name for own in inputs if own.identity.is_random})
    tuned = info.architecture == "fusion-tuned"
    if tuned and (settings.weights or settings.features is not None):
        raise InputError(
            "holds its backbones itself: it has no use for features or weights of others",
            path=settings.teacher,
            remedy="Leave --features and --weights out.",
        )
    if random and not tuned:
        notices.append(f"The backbones {', '.join(random)} have random weights: what the head says is for trials only.")
    identity: dict[str, Any] = {}  # the backbones are in the checkpoint's fingerprint
    if settings.ablation is not None:
        identity["ablation"] = settings.ablation
    if settings.features is not None:
        if settings.weights:
            raise InputError("--weights and --features are given, and only one can be used", remedy="Leave one out.")
        folder = storage.absolute(settings.features)
        keys = _keys_in(folder, inputs)
        identity["features"] = features_digest(folder)
        return FusionPlan(info, inputs, {}, folder, keys, identity, tuple(notices), _made_from_check(folder, inputs))
    named = {} if tuned else find_weights(inputs, settings.weights, path=settings.teacher)
    weights = {name: locate(what) for name, what in named.items()}
    notices += _what_samples_lack(settings.samples, inputs)
    return FusionPlan(info, inputs, weights, None, {}, identity, tuple(notices))


def _made_from_check(folder: str, inputs: Sequence[StreamInput]) -> Callable[[pa.Table], list[str]]:
    """What raises where a folder's features are of other pictures, or of other boxes of the streams that are used."""

    def check(samples: pa.Table) -> list[str]:
        boxes = [box.name for box in BOXES if box.name in {f"{own.stream}_box" for own in inputs}]
        remedy = "Make the embeddings of these samples, or leave --features out."
        made = read_made_from(folder, part_names(folder), boxes=boxes, remedy=remedy)
        begun = begun_at(require_complete(folder))
        return require_same_pictures(
            samples, made, what="features", where=folder, remedy=remedy, boxes=boxes, since=begun
        ).notes()

    return check


def _list(inputs: Sequence[StreamInput]) -> str:
    return " and ".join(own.stream for own in inputs)


def _what_samples_lack(samples: str, inputs: Sequence[StreamInput]) -> list[str]:
    table = read_samples(samples)
    lacking = [
        own.stream
        for own in inputs
        if own.stream != CONTEXT and table.column(f"{own.stream}_box").null_count == table.num_rows
    ]
    if len(lacking) == len(inputs):
        boxes = " or a ".join(f"{stream}_box" for stream in lacking)
        raise InputError(
            f"no sample has a {boxes}, and the head looks at nothing else",
            path=samples,
            remedy="Prepare a table that has them (`raymotion data prepare emotic`, `raymotion data faces`).",
        )
    return [f"No sample has a {stream}_box: the head's {stream} stream was masked for all." for stream in lacking]


def _keys_in(folder: str, inputs: Sequence[StreamInput]) -> dict[str, FeatureKey]:
    """Where an embedding folder holds the features of each stream: by the backbone's identity, whatever its name."""
    require_complete(folder)
    part = next(iter(part_names(folder)), None)
    if part is None:
        raise InputError("holds no data/*.parquet", path=folder)
    layout = layout_of(schema_of(storage.join(folder, part)), folder)
    keys: dict[str, FeatureKey] = {}
    for own in inputs:
        for key, shape in layout.shapes.items():
            same = dict(layout.backbones[key.backbone]) == own.identity.to_dict()
            if same and (key.stream, key.level, shape.count) == (own.stream, "none", own.grid**2):
                keys[own.stream] = key
        if own.stream not in keys:
            grid = f" with {own.grid} x {own.grid} tokens" if own.grid else ""
            named = layout.backbones.get(own.name)
            other = (
                f"; its {own.name} has {_difference(own, named)}" if named and named != own.identity.to_dict() else ""
            )
            raise InputError(
                f"holds no features of the {own.stream} by {own.identity.name} ({own.identity.weights}, "
                f"{own.identity.size} pixels){grid}, which the head was trained on{other}",
                path=folder,
                remedy="Make the embeddings with that backbone, or leave --features out.",
            )
    return keys


def _difference(own: StreamInput, named: Mapping[str, Any]) -> str:
    trained = own.identity.to_dict()
    return ", ".join(f"{field} {named.get(field)}" for field in trained if named.get(field) != trained[field])


class EmbedForHead:
    """`EmbedStreams` for streams that may differ in their grids of tokens; leaves the features by stream."""

    name = "embed"
    whole_shard = False

    def __init__(self, inputs: Sequence[StreamInput], weights: Mapping[str, str], precision: str) -> None:
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
        pixels = [item.pixels for item in items]
        for part in self.parts:
            left = [item for item in items if item.failure is None]
            for item, picture in zip(items, pixels, strict=True):
                item.pixels = picture
            part.process(left)
        for item in items:
            item.pixels = None
            found = item.output
            item.output = {}
            for own in self.inputs:
                features = found.get(FeatureKey(own.stream, own.name, tokens=own.grid > 0).column)
                if features is not None:
                    item.output[own.stream] = features[0]


class LoadEmbeddings:
    """Clean features from a finished embedding job, in place of decoding and embedding."""

    name = "decode"  # the stage that brings the evidence in
    whole_shard = False

    def __init__(self, folder: str, keys: Mapping[str, FeatureKey], inputs: Sequence[StreamInput]) -> None:
        self.folder, self.keys, self.inputs = folder, dict(keys), tuple(inputs)

    def setup(self, threads: int, device: str) -> None:
        from raymotion.data.embeddings import Embeddings

        self.embeddings = Embeddings(self.folder)
        self.blocks = {
            stream: self.embeddings.block(stream, key.backbone, tokens=key.tokens) for stream, key in self.keys.items()
        }

    def process(self, items: Sequence[Item]) -> None:
        rows = self.embeddings.rows(item.row["sample_id"] for item in items)
        for item, row in zip(items, rows.tolist(), strict=True):
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
                    item.output[stream] = block.array[block.row_of[row], 0]


class PredictWithFusion:
    """Probabilities of each item, from the features of its streams; those that it lacks are masked.

    A batch that fails is run again by item (`worker._process`): nothing of an item changes before it is answered.

    Attributes:
        tally: how many of the labelled items had each stream.
    """

    name = "fusion"
    whole_shard = False

    def __init__(
        self, folder: str, fingerprint: str, inputs: Sequence[StreamInput], *, precision: str = "float32"
    ) -> None:
        self.folder, self.fingerprint, self.inputs, self.precision = folder, fingerprint, tuple(inputs), precision
        self.tally: Counter[str] = Counter()
        self.answers = FiniteAnswers(self.name, folder)

    def setup(self, threads: int, device: str) -> None:
        import torch

        from raymotion.models.checkpoint import load_any_fusion

        torch.set_num_threads(threads)
        self.head = load_any_fusion(self.folder, device=device, expected_fingerprint=self.fingerprint)

    def process(self, items: Sequence[Item]) -> None:
        chosen: list[Item] = []
        for item in items:
            if any(own.stream in item.output for own in self.inputs):
                chosen.append(item)
            else:
                item.failure = self._no_input()
        if not chosen:
            return
        features, there = {}, {}
        for own in self.inputs:
            stream = own.stream
            shape = (own.grid**2, own.identity.token_dim) if own.grid else (own.identity.dim,)
            values, present = np.zeros((len(chosen), *shape), np.float16), np.zeros(len(chosen), dtype=bool)
            for i, item in enumerate(chosen):
                if stream in item.output:
                    values[i], present[i] = item.output[stream], True
            features[stream], there[stream] = values, present
        self._answer(chosen, features, there)

    def _no_input(self) -> Failure:
        reason = f"the head needs {needs(self.inputs)}, and the sample has none"
        return Failure(self.name, "no_input", "NoInput", reason)

    def _answer(
        self, items: Sequence[Item], features: Mapping[str, np.ndarray], there: Mapping[str, np.ndarray]
    ) -> None:
        mask = masks(tuple(self.head.config.dims), there, len(items))
        answers = self.head.predict(features, mask, precision=self.precision)
        width = len(self.head.vocabulary)
        kept = self.answers.keep(items, answers)
        good = np.array([item.failure is None for item in items], dtype=bool)
        for stream, present in there.items():
            self.tally[stream] += int((present & good).sum())
        for item, row in kept:
            item.pixels = None
            for own in self.inputs:
                item.output.pop(own.stream, None)
            item.output["probabilities"] = row[:width]
            if len(row) > width:
                item.output["vad"] = row[width:]


class PredictWithTuned(PredictWithFusion):
    """`PredictWithFusion` for a head with its own backbones: it reads the crops themselves."""

    def process(self, items: Sequence[Item]) -> None:
        chosen: list[Item] = []
        crops: dict[str, list[np.ndarray | None]] = {own.stream: [] for own in self.inputs}
        for item in items:
            picture = item.pixels
            assert picture is not None
            found = {
                stream: picture if stream == CONTEXT else crop(picture, item.row[f"{stream}_box"]) for stream in crops
            }
            if all(part is None for part in found.values()):
                item.failure = self._no_input()
                continue
            chosen.append(item)
            for stream, part in found.items():
                crops[stream].append(part)
        if not chosen:
            return
        pixels, there = squares(self.inputs, crops)
        self._answer(chosen, pixels, there)


def with_vad(table: pa.Table, outputs: Sequence[np.ndarray]) -> pa.Table:
    """The table with three more columns, valence, arousal and dominance, float32 on EMOTIC's scale of 1 to 10."""
    values = np.array(outputs, np.float32).reshape(len(outputs), 3) * SCALE
    for j, name in enumerate(DIMENSIONS):
        table = table.append_column(pa.field(name, pa.float32(), nullable=False), pa.array(values[:, j], pa.float32()))
    return table
