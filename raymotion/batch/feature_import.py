"""The import job: vectors of a user's own to the folder that the embedding job writes, checked and complete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from raymotion.batch.embeddings import COLUMNS, EmbeddingSink, embedding_figures, random_weights_notices
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import JobSettings, JobSpec, with_its_access
from raymotion.config import File, Metavar
from raymotion.data.embedding_layout import EmbeddingLayout, FeatureKey, FeatureShape
from raymotion.data.streams import CONTEXT
from raymotion.data.text_rows import shown
from raymotion.data.vector_table import Shared, VectorIds, VectorTable, read_vectors, shared_by_pictures
from raymotion.errors import InputError
from raymotion.models.vision.backbones import identify
from raymotion.pipeline.embed import RENDERER
from raymotion.pipeline.stages import Stage
from raymotion.pipeline.vectors import TakeVectors

# Ambiguous names that a message shows.
EXAMPLES = 3


class ImportSettings(JobSettings):
    """Settings of `raymotion features import`."""

    vectors: File = Field(description="Parquet file with an id and a vector in each row")
    backbone: Annotated[str, Metavar("BACKBONE")] = Field(
        description="the timm model that made the vectors: models that learn from them read pictures through it"
    )
    weights: str = Field(
        "default",
        description="its weights: 'default' (timm's published ones), a state dict (.safetensors, .pth), a hub id, or "
        "'bundled:NAME' (in an installed package)",
    )
    size: int | None = Field(None, ge=1, description="side of the square that it read, in pixels  [default: its own]")
    pooled_stages: int = Field(
        0, ge=0, description="the vector is the mean of the maps after each of so many last stages; 0: the last layer"
    )
    stream: Literal["context", "body", "face"] = Field("context", description="what the backbone saw of the picture")
    id_column: Annotated[str, Metavar("NAME")] | None = Field(
        None,
        description="column of ids: sample ids, with or without the data set, or names of pictures  [default: by name "
        "(sample_id, image, file_name ...)]",
    )
    vector_column: Annotated[str, Metavar("NAME")] | None = Field(
        None, description="column of vectors, lists of numbers  [default: by name (embedding ...), or the only one]"
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="actors; 0: this process, without Ray, which is fastest for most files  [default: 0; as many as "
        "fit with --address]",
    )

    def runs_here(self, rows: int, address: str | None) -> bool:
        """Returns whether the job runs in this process: always, unless actors or a cluster are asked for."""
        return super().runs_here(0, address)


@with_its_access
def import_vectors(
    settings: ImportSettings, *, address: str | None = None, progress: ProgressKind = "auto"
) -> JobSummary:
    """Writes vectors as the embedding job would; see `run_job` for resume and errors.

    A sample without a vector, or whose vector is not finite in float16, goes into quarantine; more of them than
    `max_failed` allows are refused before anything is written. Pictures are not read: the folder records their
    addresses, and no digests.

    Raises:
        InputError: the vectors are not as long as the backbone's, match too few samples, or two samples of one picture
            have different ones.
    """
    table = read_vectors(settings.vectors, id_column=settings.id_column, vector_column=settings.vector_column)
    identity = identify(settings.backbone, settings.weights, size=settings.size, pooled_stages=settings.pooled_stages)
    if table.dim != identity.dim:
        raise InputError(
            f"{table.vector_column} has {table.dim:,} numbers, a feature of {settings.backbone} has {identity.dim:,}",
            path=settings.vectors,
            remedy="Name the backbone that made them, and --pooled-stages as it was.",
        )
    key = FeatureKey(settings.stream, settings.backbone)
    layout = EmbeddingLayout(
        {key: FeatureShape(1, table.dim)}, {settings.backbone: identity.to_dict()}, {"none": 1}, 0, 0, RENDERER
    )

    # Of the whole table, of which a worker sees a shard; found by the check, which comes first.
    whole: dict[str, Any] = {}

    def stages(device: str) -> tuple[Stage, ...]:
        return (TakeVectors(table.path, table.id_column, table.vector_column, table.digest, key, whole["shared"]),)

    def check(samples: pa.Table) -> list[str]:
        whole["shared"] = shared_by_pictures(samples)
        whole["matched"], notices = _check(settings, table, samples, whole["shared"])
        return notices

    def finish(folder: str) -> dict[str, Any]:
        figures = embedding_figures(folder, layout)
        return {**figures, "embeddings": {**figures["embeddings"], "matched": whole["matched"]}}

    spec = JobSpec(
        kind="embeddings",
        settings=settings,
        identity={
            "vectors": {"sha256": table.digest, "id": table.id_column, "vector": table.vector_column},
            "stream": settings.stream,
            "backbones": layout.to_dict()["backbones"],
        },
        make_stages=stages,
        sink=EmbeddingSink(layout),
        model={"backbones": layout.to_dict()["backbones"]},
        notices=(
            f"The vectors were not made by raymotion: they are said to be {settings.backbone}'s.",
            *random_weights_notices({settings.backbone: identity}),
        ),
        finish=finish,
        images="none",
        columns=COLUMNS,
        keep_images_together=True,
        check=check,
        gpu=False,
        default_batch=(64, 64),
    )
    return run_job(spec, address=address, progress=progress)


def _check(
    settings: ImportSettings, table: VectorTable, samples: pa.Table, shared: Shared
) -> tuple[dict[str, int], list[str]]:
    """Compares ids with the samples; returns how many were matched how, and notices on those that were not."""
    of_picture = settings.stream == CONTEXT
    found = VectorIds(table.ids).match(samples, by_picture=of_picture, shared=shared)
    ids = samples.column("sample_id").to_pylist()
    wanted = np.ones(len(ids), dtype=bool)
    if of_picture:
        _require_one_per_picture(settings, table, samples, found.rows)
    else:
        wanted = samples.column(f"{settings.stream}_box").is_valid().to_numpy(zero_copy_only=False)
        if not wanted.any():
            raise InputError(
                f"no sample has a {settings.stream}_box, so there is no {settings.stream}", path=settings.samples
            )
    without = np.flatnonzero((found.rows < 0) & wanted)
    by_name = np.flatnonzero(found.by_file_name & wanted)
    unclear = [row for row in without.tolist() if row in found.ambiguous]
    notices = []
    if len(without):
        told = f"{len(without):,} of {len(ids):,} samples have no vector, such as {shown(ids[int(without[0])])}"
        if unclear:
            some = "; ".join(f"{shown(ids[row])}: {found.ambiguous[row]}" for row in unclear[:EXAMPLES])
            told += f"; {len(unclear):,} of them because a name is ambiguous ({some})"
        if len(without) == len(ids) or len(without) > settings.rows_that_may_fail(len(ids)):
            raise InputError(
                f"{told}; the file has {len(table.ids):,}, such as {shown(table.ids[0])}",
                path=settings.vectors,
                remedy=("Give sample ids or addresses as ids" if len(unclear) == len(without) else "Check --id-column")
                + ("." if len(without) == len(ids) else ", or let --max-failed 1 put them into quarantine."),
            )
        notices.append(f"{told}: they are in quarantine.")
    if len(by_name):
        row = int(by_name[0])
        notices.append(
            f"{len(by_name):,} of {len(ids):,} samples were matched by file name alone, such as {shown(ids[row])} with "
            f"{shown(table.ids[found.rows[row]])}: make sure that these are the same pictures."
        )
    left = sorted(set(range(len(table.ids))) - set(found.rows.tolist()))
    if left:
        notices.append(
            f"{len(left):,} of {len(table.ids):,} vectors match no sample, such as {shown(table.ids[left[0]])}."
        )
    matched = int(np.count_nonzero((found.rows >= 0) & wanted))
    counts = {
        "by_id": matched - len(by_name), "by_file_name": len(by_name), "without": len(without),
        "ambiguous": len(unclear),
    }  # fmt: skip
    return counts, notices


def _require_one_per_picture(
    settings: ImportSettings, table: VectorTable, samples: pa.Table, found: np.ndarray
) -> None:
    """A context feature is stored once for each picture: its samples must have the same vector."""
    first: dict[str, int] = {}
    for row, uri in enumerate(samples.column("image_uri").to_pylist()):
        if uri is None or found[row] < 0:
            continue
        before = first.setdefault(uri, row)
        if found[before] != found[row] and not np.array_equal(
            table.vectors[found[before]], table.vectors[found[row]], equal_nan=True
        ):
            ids = samples.column("sample_id")
            raise InputError(
                f"{ids[before].as_py()} and {ids[row].as_py()} are of one picture, and have different vectors",
                path=settings.vectors,
                remedy="Give --stream body or face for vectors of persons.",
            )


def describe(record: Mapping[str, Any]) -> list[str]:
    """Returns the closing lines of the command from its _job.json."""
    found = record["embeddings"]
    (key,) = found["keys"]
    lines = [
        f"{found['samples']:,} samples, {key['rows']:,} vectors of {key['dim']:,} numbers as "
        f"{key['stream']}/{key['backbone']}; {found['bytes'] / 1e6:.1f} MB"
    ]
    matched = found.get("matched")  # not in folders of earlier versions
    if matched is not None:
        lines.append(f"matched: {matched['by_id']:,} by id or address, {matched['by_file_name']:,} by file name alone")
    return lines
