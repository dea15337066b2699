"""The streams of a person in a picture: features of frozen backbones, or the crops themselves.

Features of different weights are not comparable, so the identity of a backbone must equal that in the checkpoint in
every field before it is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from raymotion import storage
from raymotion.bundled import with_digest
from raymotion.data.embedding_layout import COMMAND
from raymotion.data.embeddings import Embeddings, FeatureBlock
from raymotion.data.images.marks import Picture, fingerprints
from raymotion.data.samples import require_allowed_images
from raymotion.data.streams import ABLATIONS, CONTEXT, STREAMS
from raymotion.data.views.streams import crop
from raymotion.errors import InputError
from raymotion.models.inputs.base import Bound, Input, Prepared
from raymotion.models.inputs.person_crops import MASK, PersonReader
from raymotion.models.recipe import PictureDataSettings
from raymotion.models.vision.backbones import BackboneIdentity, fitted, identify

if TYPE_CHECKING:
    from raymotion.models.recipe import TrainRecipe

BOXED = STREAMS[1:]
LOOKS_AT = {"context": "the whole picture", "body": "the body's box", "face": "the face's box"}
NEEDS = {"context": "a picture", "body": "a body box", "face": "a face box"}


@dataclass(frozen=True)
class Stream:
    """One stream of a model.

    Attributes:
        stream: context, body or face.
        name: the user's name of the backbone.
        grid: side of the grid of spatial tokens; 0 for the pooled vector.
    """

    stream: str
    name: str
    identity: BackboneIdentity
    grid: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of one person."""
        return (self.grid**2, self.identity.token_dim) if self.grid else (self.identity.dim,)


@dataclass
class StreamEvidence:
    """The `Evidence` and `Draft` of persons.

    Attributes:
        argument: name of the network's argument for the list of arrays.
        order: all streams of the network, in order; the list has None for those without values.
        values: arrays (n, ...) of the streams in use.
        there: bool (n,) by stream: who has it.
    """

    argument: str
    order: tuple[str, ...]
    values: dict[str, np.ndarray]
    there: dict[str, np.ndarray]
    n: int
    weights: np.ndarray | None = None

    @property
    def shown(self) -> bool:
        """See `Draft`."""
        return True

    @property
    def mask(self) -> np.ndarray:
        """Bool (n, streams of the network); False for streams that are not in use."""
        none = np.zeros(self.n, dtype=bool)
        return np.stack([self.there.get(stream, none) for stream in self.order], axis=1)

    @property
    def present(self) -> np.ndarray:
        """See `Evidence`."""
        return np.asarray(self.mask.any(axis=1))

    def take(self, rows: np.ndarray) -> StreamEvidence:
        """See `Evidence`."""
        values = {name: own[rows] for name, own in self.values.items()}
        there = {name: own[rows] for name, own in self.there.items()}
        return StreamEvidence(self.argument, self.order, values, there, len(np.arange(self.n)[rows]))

    def hide(self, rows: np.ndarray) -> None:
        """See `Draft`."""
        self.there = {name: own & ~rows for name, own in self.there.items()}

    def tensors(self, device: str) -> dict[str, Any]:
        """See `Evidence`."""
        import torch

        # Read-only arrays, such as Ray's blocks, are copied, because torch warns about such tensors.
        arrays = [
            torch.from_numpy(own if own.flags.writeable else np.array(own)).to(device)
            if (own := self.values.get(stream)) is not None
            else None
            for stream in self.order
        ]
        return {self.argument: arrays, "mask": torch.from_numpy(self.mask).to(device)}

    def parts(self) -> Mapping[str, np.ndarray]:
        """See `Evidence`."""
        return self.there


class PersonInput(Input):
    """Base of `StreamInput` and `CropInput`.

    Args:
        streams: streams of the network, in the order of `STREAMS`.
        ablation: key of `ABLATIONS`: the streams that the model was trained on.
    """

    looks_at: ClassVar[str] = "all"
    columns = ("group_id", "body_box", "face_box", "split")
    plural = "images"

    def __init__(self, streams: Sequence[Stream], *, ablation: str = "all") -> None:
        self.streams, self.ablation = tuple(streams), ablation
        self.kept = tuple(own for own in self.streams if own.stream in ABLATIONS[ablation])

    @property
    def order(self) -> tuple[str, ...]:
        """All streams of the network."""
        return tuple(own.stream for own in self.streams)

    @property
    def part_names(self) -> tuple[str, ...]:
        return tuple(own.stream for own in self.kept)

    @property
    def noun(self) -> str:  # type: ignore[override]
        """Any one of these suffices."""
        return " or ".join(NEEDS[own.stream] for own in self.kept)

    def to_dict(self) -> dict[str, Any]:
        streams = {
            own.stream: {"name": own.name, "identity": own.identity.to_dict(), "grid": own.grid} for own in self.streams
        }
        return {"type": self.name, "streams": streams, "ablation": self.ablation}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], *, where: str, folder: str) -> Self:
        described, ablation = value.get("streams"), value.get("ablation", "all")
        if not isinstance(described, dict) or not described or ablation not in [*ABLATIONS]:
            raise InputError(f"{cls.name}: does not say where the features of its streams come from", path=where)
        streams = []
        for stream, own in described.items():
            named = isinstance(own, dict) and isinstance(own.get("name"), str) and isinstance(own.get("identity"), dict)
            if not named or stream not in STREAMS or type(own.get("grid", 0)) is not int or own.get("grid", 0) < 0:
                raise InputError(f"{cls.name}.{stream} does not name a backbone and its identity", path=where)
            identity = BackboneIdentity.from_dict(own["identity"], where=where)
            streams.append(Stream(stream, own["name"], identity, own.get("grid", 0)))
        return cls(streams, ablation=ablation)

    def without(self, ablation: str, *, where: object = None) -> Self:
        """Returns a copy that reads only the streams of an ablation.

        Raises:
            InputError: the ablation is unknown, or leaves no stream.
        """
        if ablation not in ABLATIONS:
            raise InputError(f"no ablation is called {ablation!r}", remedy=f"Choose from {', '.join(ABLATIONS)}.")
        fewer = type(self)(self.streams, ablation=self.ablation)
        fewer.kept = tuple(own for own in self.kept if own.stream in ABLATIONS[ablation])
        if not fewer.kept:
            kept = " and ".join(own.stream for own in self.kept)
            raise InputError(f"looks at {kept} alone, and ablation {ablation} leaves nothing of that", path=where)
        return fewer

    def describe(self) -> list[str]:
        lines = ["A stream that is missing (no face found) is masked."]
        for own in self.kept:
            identity = own.identity
            lines.append(
                f"{own.stream.capitalize()} ({LOOKS_AT[own.stream]}): {own.name} = {identity.name}, weights "
                f"{identity.weights}, {identity.size} pixels, "
                + (f"{own.grid**2} tokens of {identity.token_dim} numbers." if own.grid else f"{identity.dim} numbers.")
            )
        if self.ablation != "all":
            names = " and ".join(own.stream for own in self.kept)
            lines.append(f"Ablation `{self.ablation}`: it looks at {names} alone.")
        return lines


class StreamInput(PersonInput):
    """Features of the streams from frozen backbones, float16 as stored by the embedding job.

    Args:
        folders: embedding jobs to train on.
        chosen: stream -> backbone to train on.
        tokens: read spatial tokens where they are cached.
        level: augmentation level of the cached training views, one of which is drawn in each epoch.
    """

    name: ClassVar[str] = "streams"

    def __init__(
        self,
        streams: Sequence[Stream] = (),
        *,
        ablation: str = "all",
        folders: Sequence[str] = (),
        chosen: Mapping[str, str] | None = None,
        tokens: bool = False,
        level: str = "none",
        samples: str = "",
    ) -> None:
        super().__init__(streams, ablation=ablation)
        self.folders, self.chosen, self.tokens = list(folders), dict(chosen or {}), tokens
        self.level, self.samples = level, samples

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedStreams:
        embeddings = Embeddings(self.folders)
        rows = embeddings.rows(table.column("sample_id").to_pylist())
        if not (rows >= 0).any():
            raise InputError(
                "none of the labelled samples has embeddings",
                path=where,
                remedy=f"Make them from it: raymotion features embeddings {self.samples or where} ...",
            )
        compared = embeddings.require_made_from(table).by_name
        counts = {"compared_by_name_alone": compared} if compared else {}
        return PreparedStreams([storage.absolute(folder) for folder in self.folders], rows, embeddings, counts)

    def bind(self, prepared: Prepared, training: np.ndarray) -> BoundStreams:
        assert isinstance(prepared, PreparedStreams)
        return BoundStreams(self, prepared, training)

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedStreams:
        return PreparedStreams(meta["features"], arrays["rows"])

    def collect(self, items: Sequence[Any]) -> StreamEvidence:
        values, there = {}, {}
        for own in self.kept:
            features, present = np.zeros((len(items), *own.shape), np.float16), np.zeros(len(items), dtype=bool)
            for row, item in enumerate(items):
                if own.stream in item.features:
                    features[row], present[row] = item.features[own.stream], True
            values[own.stream], there[own.stream] = features, present
        return StreamEvidence("features", self.order, values, there, len(items))

    def release(self, item: Any) -> None:
        item.features = {}

    def notices(self) -> list[str]:
        random = sorted({own.name for own in self.kept if own.identity.is_random})
        if not random:
            return []
        return [f"The backbones {', '.join(random)} have random weights: what the model says is for trials only."]


class PreparedStreams(Prepared):
    """Row of each sample in the embeddings, int64 (n,), or -1. Features stay on disk."""

    def __init__(
        self, folders: list[str], rows: np.ndarray, opened: Embeddings | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self.folders, self.rows, self._opened, self.counts = folders, rows, opened, counts or {}
        self.present = np.asarray(rows >= 0)

    @property
    def embeddings(self) -> Embeddings:
        """The opened folders."""
        if self._opened is None:
            self._opened = Embeddings(self.folders)
        return self._opened

    def take(self, rows: np.ndarray) -> PreparedStreams:
        return PreparedStreams(self.folders, self.rows[rows], self._opened, self.counts)

    def contents(self) -> list[Any]:
        return [self.embeddings.digest]

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return {"features": self.folders}, {"rows": self.rows}


@dataclass(frozen=True)
class StreamFeatures:
    """Features of one stream: `clean` of every sample, `views` of the training samples."""

    stream: str
    clean: FeatureBlock
    views: FeatureBlock | None

    def take(self, rows: np.ndarray, numbers: np.ndarray | None = None) -> np.ndarray:
        """Returns features float16 (n, D) or (n, T, D) for rows of the embeddings; zeros for a missing stream.

        Args:
            numbers: number of the cached view for each row; None takes the clean features.
        """
        block = self.clean if self.views is None or numbers is None else self.views
        positions = block.row_of[rows]
        flat = block.array.reshape(-1, *block.array.shape[2:])
        number = 0 if numbers is None or self.views is None else numbers % block.views
        taken = np.take(flat, np.maximum(positions, 0) * block.views + number, axis=0)
        taken[positions < 0] = 0
        return taken


class BoundStreams(Bound):
    """The features that one recipe reads.

    Attributes:
        streams: features of the network's streams, in order.
        mask: bool (n, S).
    """

    def __init__(self, source: StreamInput, prepared: PreparedStreams, training: np.ndarray) -> None:
        self.source, self.prepared = source, prepared
        self.present = prepared.present
        self.streams = [self._features(stream, name, training) for stream, name in source.chosen.items()]
        backbones, where = prepared.embeddings.backbones, " and ".join(prepared.folders)
        self.identities = [BackboneIdentity.from_dict(backbones[name], where=where) for name in source.chosen.values()]
        self.mask = np.stack([prepared.embeddings.mask(own.stream)[prepared.rows] for own in self.streams], axis=1)
        self.numbers = np.zeros(len(prepared.rows), dtype=np.int64)

    @property
    def rows(self) -> np.ndarray:
        """Row of each sample in the embeddings, or -1."""
        return self.prepared.rows

    def _features(self, stream: str, backbone: str, training: np.ndarray) -> StreamFeatures:
        embeddings, level = self.prepared.embeddings, self.source.level
        tokens = self.source.tokens and any(
            key.stream == stream and key.backbone == backbone and key.tokens for key in embeddings.keys
        )
        clean = embeddings.block(stream, backbone, tokens=tokens)
        if level == "none":
            return StreamFeatures(stream, clean, None)
        views = embeddings.block(stream, backbone, level, tokens=tokens)
        rows = self.prepared.rows[training]
        # An embedding job makes views of the split train at its time; the table may have been split again since.
        without = int(((clean.row_of[rows] >= 0) & (views.row_of[rows] < 0)).sum())
        if without:
            raise InputError(
                f"{without} of the {len(rows)} training samples have {stream} features of {backbone} and no "
                f"{level} views of them: they were not in the split train when the embeddings were made",
                path=" and ".join(self.prepared.folders),
                remedy=f"Make them of this table: `{COMMAND} {self.source.samples or 'SAMPLES'} --out DIR "
                f"--{stream} {backbone} --augment {level}`, or set augmentation to none.",
            )
        return StreamFeatures(stream, clean, views)

    def described(self, training: np.ndarray) -> StreamInput:
        streams = [
            Stream(stream, name, identity, round(own.clean.tokens**0.5))
            for own, identity, (stream, name) in zip(
                self.streams, self.identities, self.source.chosen.items(), strict=True
            )
        ]
        return StreamInput(streams, ablation=self.source.ablation)

    def begin_epoch(self, recipe: TrainRecipe, epoch: int, training: np.ndarray) -> None:
        # One number for all streams of a person, because the streams of a view are mirrored together. Drawn by position
        # in the training split, so that rows of other splits, which a search may leave out, do not matter.
        drawn = np.random.default_rng([recipe.seed, epoch, 1]).integers(0, 1 << 30, size=len(training))
        self.numbers[training] = drawn

    def evidence(self, rows: np.ndarray, read: Any = None) -> StreamEvidence:
        return self._of([own.take(self.rows[rows]) for own in self.streams], self.mask[rows])

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> StreamEvidence:
        features = [own.take(self.rows[rows], self.numbers[rows]) for own in self.streams]
        return self._of(features, self.mask[rows])

    def _of(self, features: Sequence[np.ndarray], mask: np.ndarray) -> StreamEvidence:
        names = [own.stream for own in self.streams]
        values = dict(zip(names, features, strict=True))
        there = {name: mask[:, number] for number, name in enumerate(names)}
        return StreamEvidence("features", tuple(names), values, there, len(mask))

    def with_mixed(
        self, drawn: StreamEvidence, parents: np.ndarray, shares: np.ndarray, has: np.ndarray
    ) -> StreamEvidence:
        """Appends synthetic persons, each a mixture of two others, to `drawn`.

        Args:
            parents: (m, 2) rows of the embeddings.
            shares: (m,) share of the first parent.
            has: bool (m, S), True where both parents have the stream.
        """
        values, there = {}, {}
        for number, own in enumerate(self.streams):
            shape = (-1, *[1] * (own.clean.array.ndim - 2))
            share, both = shares.reshape(shape), has[:, number].reshape(shape)
            made = both * (share * own.take(parents[:, 0]) + (1 - share) * own.take(parents[:, 1]))
            before = drawn.values[own.stream]
            values[own.stream] = np.concatenate([before, made.astype(before.dtype)])
            there[own.stream] = np.concatenate([drawn.there[own.stream], has[:, number]])
        return StreamEvidence(drawn.argument, drawn.order, values, there, drawn.n + len(parents))


class CropInput(PersonInput):
    """The crops of the streams, uint8 (n, size, size, 3) each, for a model with its own backbones."""

    name: ClassVar[str] = "crops"
    data_settings = PictureDataSettings

    def prepare(self, table: pa.Table, recipe: TrainRecipe, *, where: str) -> PreparedCrops:
        require_allowed_images(table)
        boxes = {name: _boxes(table.column(f"{name}_box")) for name in BOXED}
        if not np.asarray(pc.is_valid(table.column("image_uri"))).any():
            raise InputError(
                "none of the labelled samples has picture", path=where, remedy="Prepare the samples with their images."
            )
        for stream in self.order:
            if stream in BOXED and np.isnan(boxes[stream]).any(axis=1).all():
                raise InputError(
                    f"has no {stream} box",
                    path=where,
                    remedy="Find faces with `raymotion data faces`, or set backbones.face to null."
                    if stream == "face"
                    else "Use samples with boxes (`raymotion data prepare emotic`), or set backbones.body to null.",
                )
        columns = (table.column(name).to_pylist() for name in ("image_uri", "group_id", "sample_id"))
        uris, groups, ids = columns
        return PreparedCrops(self, uris, groups, ids, boxes)

    def preparation(self) -> list[Any]:
        return [self.to_dict()]

    def load(self, folder: str, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PreparedCrops:
        boxes = {name: arrays[f"box_{name}"] for name in BOXED}
        source = CropInput.from_dict(meta["input"], where=folder, folder=folder)
        return PreparedCrops(source, meta["images"], meta["groups"], meta["sample_ids"], boxes)

    def collect(self, items: Sequence[Any]) -> StreamEvidence:
        values, there = {}, {}
        for own in self.kept:
            size = own.identity.size
            pixels, present = np.zeros((len(items), size, size, 3), np.uint8), np.zeros(len(items), dtype=bool)
            for row, item in enumerate(items):
                picture = item.pixels
                if picture is not None and own.stream != CONTEXT:
                    picture = crop(picture, item.row[f"{own.stream}_box"])
                if picture is not None:
                    pixels[row] = np.asarray(fitted(Image.fromarray(np.ascontiguousarray(picture)), own.identity))
                    present[row] = True
            values[own.stream], there[own.stream] = pixels, present
        return StreamEvidence("crops", self.order, values, there, len(items))

    def release(self, item: Any) -> None:
        item.pixels = None


class PreparedCrops(Prepared, Bound):
    """Addresses and boxes of persons; crops are cut batch by batch.

    Attributes:
        boxes: `body` and `face` -> x1, y1, x2, y2 in pixels of the full picture, float32 (n, 4); NaN if missing.
    """

    streamed: ClassVar[bool] = True

    def __init__(
        self,
        source: CropInput,
        image_uris: list[str | None],
        groups: list[str],
        sample_ids: list[str],
        boxes: dict[str, np.ndarray],
    ) -> None:
        self.source, self.image_uris, self.groups, self.sample_ids = source, image_uris, groups, sample_ids
        self.boxes = boxes
        self.present = np.array([uri is not None for uri in image_uris], dtype=bool)
        known = {name: [None if np.isnan(box).any() else box.tolist() for box in own] for name, own in boxes.items()}
        fields = (image_uris, groups, sample_ids, known["body"], known["face"])
        # For `PersonReader`.
        self.addresses = [
            dict(zip(("uri", "image", "person", *BOXED), own, strict=True)) for own in zip(*fields, strict=True)
        ]

    def take(self, rows: np.ndarray) -> PreparedCrops:
        def some(values: list[Any]) -> list[Any]:
            return [values[row] for row in rows]

        boxes = {name: own[rows] for name, own in self.boxes.items()}
        return PreparedCrops(self.source, some(self.image_uris), some(self.groups), some(self.sample_ids), boxes)

    def described(self, training: np.ndarray) -> CropInput:
        return self.source

    def contents(self) -> list[Any]:
        boxes = [np.round(np.nan_to_num(own, nan=-1.0), 2).tolist() for own in self.boxes.values()]
        pictures = fingerprints([Picture(uri) for uri in self.image_uris])
        return [boxes, pictures, self.source.to_dict()]

    def reader(self, recipe: Any) -> PersonReader:
        """Returns the reader for the recipe's streams and augmentation."""
        identities = {own.stream: own.identity for own in self.source.kept}
        return PersonReader(identities, recipe.augmentation, recipe.seed, recipe.data.damaged)

    def evidence(self, rows: np.ndarray, read: Any = None) -> StreamEvidence:
        names = [own.stream for own in self.source.kept]
        values = {name: read.arrays[name] for name in names}
        there = {name: read.arrays[MASK][:, number] for number, name in enumerate(names)}
        return StreamEvidence("crops", self.source.order, values, there, len(rows))

    def draft(self, rows: np.ndarray, rng: np.random.Generator, read: Any = None) -> StreamEvidence:
        drawn = self.evidence(rows, read)
        # Persons with an unreadable picture are excluded; otherwise the model would learn their labels as the answer to
        # missing evidence.
        if not read.readable.all():
            drawn.weights = read.readable.astype(np.float32)
        return drawn

    def save(self, folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        arrays = {f"box_{name}": own for name, own in self.boxes.items()}
        meta = {"images": self.image_uris, "groups": self.groups, "sample_ids": self.sample_ids}
        return {**meta, "input": self.source.to_dict()}, arrays


def _boxes(column: pa.ChunkedArray) -> np.ndarray:
    """Returns (n, 4) float32; NaN for missing boxes."""
    nothing = [np.nan] * 4
    return np.array([nothing if box is None else box for box in column.to_pylist()], np.float32).reshape(-1, 4)


def find_weights(streams: Sequence[Stream], weights: Sequence[str] = (), *, path: object = None) -> dict[str, str]:
    """Returns backbone -> weights, as `Backbone` takes them.

    The checkpoint identifies published, bundled and random weights, but of another file only its digest.

    Args:
        weights: `FILE` for all backbones with weights from a file, or `NAME=FILE` for one.
        path: the checkpoint, for messages.

    Raises:
        InputError: a file is not given or has another digest, or timm's description of the backbone has changed.
    """
    identities = {own.name: own.identity for own in streams}
    general, special = None, {}
    for value in weights:
        name, equals, what = value.partition("=")
        if equals and name in identities:
            special[name] = what
        else:
            general = value
    files = [name for name, identity in identities.items() if identity.weights.startswith("sha256:")]
    if general is not None and not files:
        raise InputError(
            "has no backbone with weights from a file, and would not use --weights", path=path, remedy="Leave them out."
        )
    found = {}
    for name, identity in identities.items():
        given = special.get(name, general if name in files else None) or with_digest(identity.weights)
        if given is None and name in files:
            raise InputError(
                f"reads features of {name} with weights from a file ({identity.weights})",
                path=path,
                remedy=f"Name that file: --weights {name}=FILE.",
            )
        given = given or (identity.weights if identity.is_random else "default")
        offered = identify(
            identity.name, given, size=identity.size, fit=identity.fit, pooled_stages=identity.pooled_stages
        )
        if offered != identity:
            ours, theirs = offered.to_dict(), identity.to_dict()
            field = next(field for field in theirs if ours[field] != theirs[field])
            raise InputError(
                f"was trained on features of {name} with {field} {theirs[field]}, here it is {ours[field]}",
                path=path,
                remedy="Use the weights that its features came from."
                if field == "weights"
                else "Install the version of timm that its features came from.",
            )
        found[name] = given
    return found
