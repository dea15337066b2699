"""The layout of the parts of an embedding job, shared by the job and the reader."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from raymotion import storage
from raymotion.data.feature_store import require_features
from raymotion.data.parts import VERIFY, part_names
from raymotion.data.provenance import BOXES, MADE_FROM, require_columns
from raymotion.errors import InputError

METADATA_KEY = b"raymotion.embeddings"
LAYOUT_VERSION = 2
COMMAND = "raymotion features embeddings"
# Only training samples have augmented views: validation scores on augmented pictures would be invalid.
AUGMENTED_SPLIT = "train"


@dataclass(frozen=True)
class FeatureKey:
    """The key of one block of features. `backbone` is named as the user did: an alias or a timm name."""

    stream: str
    backbone: str
    level: str = "none"
    tokens: bool = False

    @property
    def column(self) -> str:
        """The name of the Parquet column: `context/swin/none`, `context/swin/none/tokens`."""
        return "/".join((self.stream, self.backbone, self.level)) + ("/tokens" if self.tokens else "")


@dataclass(frozen=True)
class FeatureShape:
    """The shape of one sample's features: (views, dim), or (views, count, dim) if count is not 0."""

    views: int
    dim: int
    count: int = 0

    @property
    def of_sample(self) -> tuple[int, ...]:
        """The shape of one sample's features."""
        return (self.views, self.count, self.dim) if self.count else (self.views, self.dim)

    @property
    def size(self) -> int:
        """The number of values of one sample."""
        return math.prod(self.of_sample)


@dataclass(frozen=True)
class EmbeddingLayout:
    """The contents of the parts of an embedding job; stored in their metadata.

    Columns: sample_id; group_id; split; context_of, the sample_id of the row in the same part with the context features
    of this row's image, or null if there are none (they are stored once for each image, because repeated ones take
    twice as long to write and to read); image_uri, image_bytes and image_digest of the picture that was read, and
    body_box and face_box as they were (see provenance.py); and for each key one nullable fixed-size list of float16,
    views first. Null means that the sample lacks the stream or, for levels other than none, is outside the training
    split.

    Attributes:
        shapes: shape of each key.
        backbones: identity of each backbone by its name in the keys.
        views: number of views of each level.
        seed: seed of the augmentation.
        token_grid: side of the grid of spatial tokens, 0 if there are none.
        renderer: version of the augmentation.
    """

    shapes: Mapping[FeatureKey, FeatureShape]
    backbones: Mapping[str, Mapping[str, Any]]
    views: Mapping[str, int]
    seed: int
    token_grid: int = 0
    renderer: int = 1

    @property
    def boxes(self) -> tuple[str, ...]:
        """The box columns that the features depend on: those of all streams except the whole picture."""
        streams = {key.stream for key in self.shapes}
        return tuple(box.name for box in BOXES if box.name.removesuffix("_box") in streams)

    @property
    def drawn_by(self) -> tuple[int, int] | None:
        """Seed and renderer of the augmented views; None without such views."""
        return (self.seed, self.renderer) if any(key.level != "none" for key in self.shapes) else None

    def to_dict(self) -> dict[str, Any]:
        """Returns the layout as JSON values."""
        return {
            "version": LAYOUT_VERSION,
            "keys": [{**asdict(key), **asdict(shape)} for key, shape in self.shapes.items()],
            "backbones": {name: dict(identity) for name, identity in self.backbones.items()},
            "views": dict(self.views),
            "seed": self.seed,
            "token_grid": self.token_grid,
            "renderer": self.renderer,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], *, where: object = None) -> EmbeddingLayout:
        """Reads the form of `to_dict`; `where` is its file, for messages.

        Raises:
            InputError: it is invalid, or was written by another version.
        """
        if record.get("version") != LAYOUT_VERSION:
            raise InputError(
                f"has embeddings of layout {record.get('version')}, this version reads {LAYOUT_VERSION}",
                path=where,
                remedy=f"Make it again with `{COMMAND}`.",
            )
        try:
            shapes = {
                FeatureKey(str(key["stream"]), str(key["backbone"]), str(key["level"]), bool(key["tokens"])): (
                    FeatureShape(int(key["views"]), int(key["dim"]), int(key["count"]))
                )
                for key in record["keys"]
            }
            return cls(
                shapes,
                dict(record["backbones"]),
                {str(level): int(views) for level, views in record["views"].items()},
                int(record["seed"]),
                int(record["token_grid"]),
                int(record["renderer"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"its description of the embeddings is damaged ({error!r})", path=where) from error

    def schema(self) -> pa.Schema:
        """Returns the schema of the parts."""
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                pa.field("group_id", pa.string(), nullable=False),
                pa.field("split", pa.string()),
                pa.field("context_of", pa.string()),
                *MADE_FROM,
                *BOXES,
                *(pa.field(key.column, pa.list_(pa.float16(), shape.size)) for key, shape in self.shapes.items()),
            ],
            metadata={METADATA_KEY: json.dumps(self.to_dict(), sort_keys=True).encode()},
        )


def require_complete(folder: storage.PathLike) -> dict[str, Any]:
    """Returns the record of a complete embedding job; raises an `InputError` with the command to run."""
    return require_features(folder, "embeddings", what="embedding job", command=COMMAND)


def schema_of(path: str) -> pa.Schema:
    """Reads the schema of a part."""
    with storage.open_parquet(path, remedy=VERIFY) as parquet:
        return parquet.schema_arrow


def layout_of(schema: pa.Schema, path: object) -> EmbeddingLayout:
    """Returns the layout from a part's metadata, checked against its columns."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise InputError("holds no embeddings", path=path, remedy=f"Make it with `{COMMAND}`.")
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"its description of the embeddings is no JSON ({error})", path=path) from error
    layout = EmbeddingLayout.from_dict(record if isinstance(record, dict) else {}, where=path)
    for key, shape in layout.shapes.items():
        if key.column not in schema.names:
            raise InputError(f"has no column {key.column}", path=path)
        kind = schema.field(key.column).type
        if not pa.types.is_fixed_size_list(kind) or kind.value_type != pa.float16() or kind.list_size != shape.size:
            raise InputError(f"column {key.column} is {kind}, not a list of {shape.size} float16", path=path)
    missing = {"sample_id", "split", "context_of"} - set(schema.names)
    if missing:
        raise InputError(f"lacks the columns {', '.join(sorted(missing))}", path=path)
    require_columns(schema, path, boxes=[box.name for box in BOXES], remedy=f"Make it again with `{COMMAND}`.")
    return layout


def stored_rows(folder: storage.PathLike) -> dict[FeatureKey, int]:
    """Returns the number of rows of each key (nulls not counted), read from the footers only."""
    counts: dict[FeatureKey, int] = {}
    for name in part_names(folder):
        path = storage.join(folder, name)
        with storage.open_parquet(path, remedy=VERIFY) as parquet:
            layout, metadata = layout_of(parquet.schema_arrow, path), parquet.metadata
            # The path of the values of a list is NAME.list.element, and names of backbones may contain dots.
            paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            place = {path.rsplit(".", 2)[0]: i for i, path in enumerate(paths) if path.count(".") >= 2}
            for key, shape in layout.shapes.items():
                counts.setdefault(key, 0)
                for group in range(metadata.num_row_groups):
                    values = metadata.row_group(group).column(place[key.column]).num_values
                    # Parquet counts a null list as one value, any other as its length.
                    counts[key] += (values - metadata.row_group(group).num_rows) // max(1, shape.size - 1)
    return counts
