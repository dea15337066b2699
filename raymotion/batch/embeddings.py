"""The embedding job: sample table to features of the three streams, by frozen backbones, in Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from raymotion import storage
from raymotion.batch import ledger
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import JobSettings, JobSpec, resolve_precision, with_its_access
from raymotion.config import Metavar
from raymotion.data.embedding_layout import AUGMENTED_SPLIT, EmbeddingLayout, stored_rows
from raymotion.data.feature_store import feature_column
from raymotion.data.parts import running_job
from raymotion.data.provenance import BOXES
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.models.vision.backbones import BackboneIdentity, check_tokens, identify
from raymotion.pipeline.embed import CONTEXT, RENDERER, DecodeOnce, EmbedStreams, StreamPlan
from raymotion.pipeline.stages import Item, Stage, image_units, made_from
from raymotion.weights import locate

# Default side of the token grid for a study that uses tokens.
STUDY_TOKENS = 2
# Maximum size of the features of one shard in a worker's memory (twice that during writing).
SHARD_BYTES = 128 << 20
Backbone = Annotated[str, Metavar("BACKBONE")]
COLUMNS = ("group_id", "body_box", "face_box", "split")


class EmbeddingSettings(JobSettings):
    """Settings of `raymotion features embeddings`.

    `backbone_weights`, `size` and `pooled_stages` hold values for all backbones (`random:0`) or for one
    (`swin=weights.safetensors`); the last value for a backbone wins.
    """

    context: tuple[Backbone, ...] = Field((), description="backbone of the whole picture (repeatable)")
    body: tuple[Backbone, ...] = Field((), description="backbone of the body's crop (repeatable)")
    face: tuple[Backbone, ...] = Field((), description="backbone of the face's crop (repeatable)")
    augment: tuple[Literal["basic", "full"], ...] = Field(
        (), description="level of augmentation, besides none, for the split train (repeatable)  [default: none alone]"
    )
    views: int = Field(4, ge=1, description="views of each level of augmentation")
    tokens: int = Field(
        0,
        ge=0,
        description="side G of a grid of G x G spatial tokens, for attention fusion; 0: pooled features alone  "
        "[default: 0; with --study 2 where its spaces use tokens]",
    )
    backbone_weights: tuple[Annotated[str, Metavar("[NAME=]WHAT")], ...] = Field(
        (),
        description="'default' (timm's published weights), a state dict (.safetensors, .pth), a hub id, or "
        "'random:SEED'; for all backbones, or for NAME (repeatable)  [default: default]",
    )
    size: tuple[Annotated[str, Metavar("[NAME=]PIXELS")], ...] = Field(
        (),
        description="side of the square that backbones read, for all or for NAME (repeatable)  [default: each one's "
        "own]",
    )
    pooled_stages: tuple[Annotated[str, Metavar("[NAME=]N")], ...] = Field(
        (),
        description="the feature is the mean of the maps after each of N last stages, which know more of textures and "
        "places than the last layer alone; for all backbones or for NAME (repeatable)  [default: the last layer alone]",
    )
    seed: int = Field(0, description="seed of the augmented views")

    @field_validator("backbone_weights", "size", "pooled_stages", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """Accepts a single value as well as a list, such as `size: 96` in a YAML file."""
        return [str(item) for item in (value if isinstance(value, list | tuple) else [value])]

    def streams(self) -> dict[str, tuple[str, ...]]:
        """Returns the distinct backbones of each stream that has any, in the order of `STREAMS`."""
        chosen = {stream: tuple(dict.fromkeys(getattr(self, stream))) for stream in STREAMS}
        return {stream: names for stream, names in chosen.items() if names}

    def level_views(self) -> dict[str, int]:
        """Returns the number of views of each level; `none` has one."""
        return {"none": 1, **{level: self.views for level in ("basic", "full") if level in self.augment}}


def plan_streams(settings: EmbeddingSettings) -> tuple[StreamPlan, dict[str, str]]:
    """Returns the plan of the settings, and the weights of each backbone by name.

    Raises:
        InputError: no stream, an unknown backbone, an invalid size, or a backbone without the requested token grid.
    """
    streams = settings.streams()
    if not streams:
        raise InputError("no stream has a backbone", remedy="Give --context, --body or --face at least once.")
    names = tuple(dict.fromkeys(name for several in streams.values() for name in several))
    chosen = _by_name(settings.backbone_weights, names, "default")
    weights = {name: locate(what) for name, what in chosen.items()}  # workers may have another working directory
    sizes, stages = _by_name(settings.size, names, ""), _by_name(settings.pooled_stages, names, "0")
    identities: dict[str, BackboneIdentity] = {}
    for name in names:
        if sizes[name] and not (sizes[name].isdecimal() and int(sizes[name])):
            raise InputError(
                f"--size {sizes[name]} is neither pixels nor NAME=PIXELS with a backbone of this job",
                remedy=f"Write --size 96 or --size {name}=96; the backbones are {', '.join(names)}.",
            )
        if not stages[name].isdecimal():
            raise InputError(
                f"--pooled-stages {stages[name]} is neither a number nor NAME=NUMBER with a backbone of this job",
                remedy=f"Write --pooled-stages 3 or --pooled-stages {name}=3; the backbones are {', '.join(names)}.",
            )
        identities[name] = identify(
            name, weights[name], size=int(sizes[name]) if sizes[name] else None, pooled_stages=int(stages[name])
        )
        check_tokens(identities[name], settings.tokens)
    return StreamPlan(streams, identities, settings.level_views(), settings.tokens, settings.seed), weights


def _by_name(values: Sequence[str], names: Sequence[str], default: str) -> dict[str, str]:
    """Resolves `WHAT` and `NAME=WHAT` to one value per name. Only the job's backbones are NAMEs: paths may hold `=`."""
    general, special = default, {}
    for value in values:
        name, equals, what = value.partition("=")
        if equals and name in names:
            special[name] = what
        elif equals and not storage.exists(value):
            raise InputError(
                f"{value!r} is for a backbone that no stream of this job has",
                remedy=f"Leave it out, or name one of {', '.join(names)}.",
            )
        else:
            general = value
    return {name: special.get(name, general) for name in names}


def with_needs(options: Mapping[str, Any], needs: Mapping[str, Any]) -> dict[str, Any]:
    """Merges options with the needs of a study (`study.features.embedding_needs`): the union of backbones and levels.

    Args:
        options: by name; None and empty lists count as not given.
        needs: lists of backbones by stream; `levels`; and `tokens`, whether any head uses spatial tokens.
    """
    levels = [level for level in needs.get("levels", ()) if level != "none"]
    wanted = {**{stream: needs.get(stream, ()) for stream in STREAMS}, "augment": levels}
    merged = dict(options)
    for name, values in wanted.items():
        named = [value for value in values if value is not None]
        merged[name] = tuple(dict.fromkeys([*named, *(options.get(name) or ())]))
    if needs.get("tokens") and options.get("tokens") is None:
        merged["tokens"] = STUDY_TOKENS
    return merged


class EmbeddingSink:
    """Features as rows; see `EmbeddingLayout` for the columns."""

    def __init__(self, layout: EmbeddingLayout) -> None:
        self.layout = layout

    def encode(self, items: Sequence[Item]) -> pa.Table:
        holders: list[int | None] = []  # for each row, the row with the context features of its image
        for unit in image_units(items):
            first = len(holders)
            # A row of the training split if there is one, since only those have augmented views.
            best = next((i for i, item in enumerate(unit) if item.row["split"] == AUGMENTED_SPLIT), 0)
            has = any(key.stream == CONTEXT for key in self.layout.shapes)
            holders += [first + best if has else None] * len(unit)
        ids = [item.row["sample_id"] for item in items]
        columns: list[pa.Array] = [
            pa.array(ids, pa.string()),
            pa.array([item.row["group_id"] for item in items], pa.string()),
            pa.array([item.row["split"] for item in items], pa.string()),
            pa.array([None if holder is None else ids[holder] for holder in holders], pa.string()),
            *made_from(items),
            *(pa.array([item.row[box.name] for item in items], box.type) for box in BOXES),
        ]
        for key, shape in self.layout.shapes.items():
            values = np.zeros((len(items), *shape.of_sample), np.float16)
            has_none = np.ones(len(items), dtype=bool)
            for row, item in enumerate(items):
                features = item.output.get(key.column)
                if features is not None and (key.stream != CONTEXT or holders[row] == row):
                    values[row], has_none[row] = features, False
            columns.append(feature_column(values, pa.list_(pa.float16(), shape.size), has_none))
        return pa.table(columns, schema=self.layout.schema())


@with_its_access
def embed(settings: EmbeddingSettings, *, address: str | None = None, progress: ProgressKind = "auto") -> JobSummary:
    """Runs the embedding job; see `run_job` for resume and errors.

    Every image is fetched and decoded once for all streams and backbones. Levels other than `none` are computed for the
    split train only. Adds to _job.json: `forward_passes` (rows through a backbone, by STREAM/BACKBONE/LEVEL),
    `forward_passes_minimum` (one for each distinct image or crop and view, counted in the parts) and `embeddings` (a
    summary of the features).
    """
    plan, weights = plan_streams(settings)
    layout = plan.layout()

    def stages(device: str) -> tuple[Stage, ...]:
        # Models are loaded in the workers; a resume compares their identities.
        return (DecodeOnce(settings.damaged), EmbedStreams(plan, weights, resolve_precision(settings, device)))

    def check(samples: pa.Table) -> None:
        _check_samples(settings, plan, samples)

    described = layout.to_dict()
    row_bytes = sum(2 * shape.size for shape in layout.shapes.values())
    identity = {
        "streams": {stream: list(names) for stream, names in plan.streams.items()},
        "backbones": described["backbones"],
        "views": dict(plan.views),
        "tokens": plan.tokens,
        "seed": plan.seed,
        "renderer": RENDERER,
    }
    spec = JobSpec(
        kind="embeddings",
        settings=settings,
        identity=identity,
        make_stages=stages,
        sink=EmbeddingSink(layout),
        model={"backbones": described["backbones"]},
        notices=random_weights_notices(plan.identities),
        finish=lambda folder: embedding_figures(folder, layout),
        columns=COLUMNS,
        keep_images_together=True,
        check=check,
        default_batch=(16, 64),
        most_shard_rows=max(8, min(256, SHARD_BYTES // row_bytes)),
    )
    return run_job(spec, address=address, progress=progress)


def _check_samples(settings: EmbeddingSettings, plan: StreamPlan, samples: pa.Table) -> None:
    if settings.augment:
        train = pc.sum(pc.equal(samples.column("split"), AUGMENTED_SPLIT)).as_py()
        if not train:
            raise InputError(
                "no sample is of the split train, and --augment makes views of that split alone",
                path=settings.samples,
                remedy="Prepare the table with splits, or leave --augment out.",
            )
    for stream in plan.streams:
        if stream != CONTEXT and samples.column(f"{stream}_box").null_count == samples.num_rows:
            raise InputError(
                f"no sample has a {stream}_box, so there is no {stream} to look at",
                path=settings.samples,
                remedy=_how_to_get(stream, settings.samples),
            )


def _how_to_get(stream: str, samples: str) -> str:
    """Returns the remedy for a table without boxes of a stream."""
    without = f"or leave the stream {stream} out, of the options and of the recipe and spaces that --study names."
    if stream == "face":
        return f"Find them: `raymotion data faces {samples} --out faces.parquet`, and name that table; {without}"
    return f"Prepare a table that has them, {without}"


def random_weights_notices(identities: Mapping[str, BackboneIdentity]) -> tuple[str, ...]:
    """Returns the warning about features of untrained backbones, if any."""
    random = [f"{name} ({identity.weights})" for name, identity in identities.items() if identity.is_random]
    if not random:
        return ()
    return (
        f"FEATURES COME FROM RANDOM WEIGHTS: {', '.join(random)} not trained. They tell colours and textures apart, "
        "not people or moods: good for trying things out, not for results.",
    )


def embedding_figures(folder: str, layout: EmbeddingLayout) -> dict[str, Any]:
    """Returns the entries for _job.json on the finished parts."""
    commits = ledger.read_commits(folder, running_job(folder)["digest"])
    passes: dict[str, int] = {}
    for commit in commits.values():
        for name, count in commit.tally.items():
            if name == ledger.DAMAGED_KEPT:
                continue
            passes[name] = passes.get(name, 0) + count
    stored = stored_rows(folder)
    clean = {key.stream: rows for key, rows in stored.items() if key.level == "none"}
    return {
        "forward_passes": dict(sorted(passes.items())),
        "forward_passes_minimum": {
            key.column: rows * layout.shapes[key].views for key, rows in stored.items() if not key.tokens
        },
        "embeddings": {
            "samples": sum(commit.good for commit in commits.values()),
            "with": clean,
            "bytes": sum(commit.bytes for commit in commits.values()),
            "keys": [{**asdict(key), **asdict(shape), "rows": stored[key]} for key, shape in layout.shapes.items()],
        },
    }


def describe(record: Mapping[str, Any]) -> list[str]:
    """Returns the closing lines of the command from its _job.json."""
    found = record["embeddings"]
    streams = {"context": "images", "body": "bodies", "face": "faces"}
    counted = ", ".join(f"{found['with'][name]:,} {word}" for name, word in streams.items() if name in found["with"])
    lines = [f"{found['samples']:,} samples: {counted}; {found['bytes'] / 1e6:.1f} MB"]
    features: dict[str, list[Mapping[str, Any]]] = {}
    for key in found["keys"]:
        features.setdefault(f"{key['stream']}/{key['backbone']}", []).append(key)
    for name, keys in features.items():
        levels = [f"{k['level']} {k['rows']:,} x {k['views']}" for k in keys if not k["tokens"]]
        grid = next((f", and {k['count']} tokens of {k['dim']:,}" for k in keys if k["tokens"]), "")
        lines.append(f"  {name}: {keys[0]['dim']:,} numbers{grid}; rows x views: {', '.join(levels)}")
    passes, least = (sum(record[name].values()) for name in ("forward_passes", "forward_passes_minimum"))
    ratio = passes / least if least else 1.0
    lines.append(
        f"{passes:,} forward passes; {least:,} is the least that these features take "
        f"(one for each image or crop, backbone and view): ratio {ratio:.3f}"
    )
    return lines
