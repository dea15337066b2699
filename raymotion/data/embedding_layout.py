"""Format of the parts of an embedding job, shared by the job and the reader."""

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
# Only training samples have augmented views: validation scores on augmented images would be meaningless.
AUGMENTED_SPLIT = "train"


@dataclass(frozen=True)
class FeatureKey:
    """Identifies one block of features. `backbone` is the name given by the user: an alias or a timm name."""

    stream: str
    backbone: str
    level: str = "none"
    tokens: bool = False

    @property
    def column(self) -> str:
        """Name of the Parquet column: `context/swin/none`, `context/swin/none/tokens`."""
        return "/".join((self.stream, self.backbone, self.level)) + ("/tokens" if self.tokens else "")


@dataclass(frozen=True)
class FeatureShape:
    """Shape of one sample's features: (views, dim), or (views, count, dim) if count is not 0."""

    views: int
    dim: int
    count: int = 0

    @property
    def of_sample(self) -> tuple[int, ...]:
        """Shape of one sample's features."""
        return (self.views, self.count, self.dim) if self.count else (self.views, self.dim)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.of_sample)


@dataclass(frozen=True)
class EmbeddingLayout:
    """Description of the parts of an embedding job; stored in their metadata.

    Columns:

    - sample_id, group_id, split.
    - context_of: sample_id of the row in the same part that holds the context features of this row's image, or null if
      there are none. They are written once per image, since repeating them would double the time to write and read.
    - image_uri, image_bytes, image_digest, body_box, face_box: provenance of the row (see provenance.py).
    - For each key, a nullable fixed-size list of float16, views first. Null: the sample lacks the stream or, for levels
      other than none, is outside the training split.

    Attributes:
        shapes: shape of the features of each key.
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
        """Box columns that the features depend on: those of the available streams other than the whole image."""
        streams = {key.stream for key in self.shapes}
        return tuple(box.name for box in BOXES if box.name.removesuffix("_box") in streams)

    @property
    def drawn_by(self) -> tuple[int, int] | None:
        """Seed and renderer of the augmented views; None without augmented views."""
        return (self.seed, self.renderer) if any(key.level != "none" for key in self.shapes) else None

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary for JSON."""
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
        """Restores a layout from `to_dict`; `where` is the file, for messages.

        Raises:
            InputError: the record is invalid or of another version.
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
    """Returns the _job.json of a complete embedding job, or raises an `InputError` that names the command to run."""
    return require_features(folder, "embeddings", what="embedding job", command=COMMAND)


def schema_of(path: str) -> pa.Schema:
    """Reads the schema of a part."""
    with storage.open_parquet(path, remedy=VERIFY) as parquet:
        return parquet.schema_arrow


def layout_of(schema: pa.Schema, path: object) -> EmbeddingLayout:
    """Returns the layout from a part's metadata, after checking it against the columns."""
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
    """Counts the stored rows of each key, without nulls; reads only the footers."""
    counts: dict[FeatureKey, int] = {}
    for name in part_names(folder):
        path = storage.join(folder, name)
        with storage.open_parquet(path, remedy=VERIFY) as parquet:
            layout, metadata = layout_of(parquet.schema_arrow, path), parquet.metadata
            # The path of a list's values is NAME.list.element; names of backbones may also contain dots.
            paths = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
            place = {path.rsplit(".", 2)[0]: i for i, path in enumerate(paths) if path.count(".") >= 2}
            for key, shape in layout.shapes.items():
                counts.setdefault(key, 0)
                for group in range(metadata.num_row_groups):
                    values = metadata.row_group(group).column(place[key.column]).num_values
                    # Parquet counts a null list as one value, any other as its length.
                    counts[key] += (values - metadata.row_group(group).num_rows) // max(1, shape.size - 1)
    return counts
