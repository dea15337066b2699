"""The features job: sample table to region features in Parquet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import pyarrow as pa
from pydantic import Field

from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import JobSettings, JobSpec, resolve_precision, with_its_access
from raymotion.config import Metavar
from raymotion.data.feature_store import feature_column
from raymotion.data.features import METADATA_KEY
from raymotion.data.provenance import MADE_FROM
from raymotion.models.inputs.regions import random_weights_notice
from raymotion.models.vision.regions import ExtractorIdentity, Regions, architecture, identify
from raymotion.pipeline.stages import DecodeImages, ExtractRegions, Item, Stage, made_from
from raymotion.weights import locate


class RegionSettings(JobSettings):
    """Settings of `raymotion features regions`."""

    extractor: Annotated[str, Metavar("NAME")] = Field(
        "fasterrcnn_resnet50_fpn_v2",
        description="detector: frcnn-vg-r101-c4 (VisualBERT's, 2,048 numbers a region), fasterrcnn_resnet50_fpn_v2, "
        "fasterrcnn_resnet50_fpn, fasterrcnn_mobilenet_v3_large_fpn or fasterrcnn_mobilenet_v3_large_320_fpn (1,024); "
        "or grid:BACKBONE, any timm model, whose last feature map is cut into --count cells",
    )
    weights: str = Field(
        "default",
        description="its weights: 'default' (the published ones), a state dict (.safetensors, .pth), 'bundled:NAME' "
        "(in an installed package) or 'random:SEED'; for frcnn-vg-r101-c4 also a folder with config.yaml and "
        "pytorch_model.bin, or a hub id (OWNER/NAME)",
    )
    count: int = Field(36, ge=1, description="regions per image")


class RegionSink:
    """Region features as rows.

    Columns: sample_id; image_uri, image_bytes, image_digest: the image read; features, float16 (N * D); boxes, float32
    (N * 4), relative to width and height; scores, float32 (N); mask, bool (N). They are flat fixed-size lists, which
    every Parquet reader supports; N and D are in the schema's metadata.
    """

    def __init__(self, identity: ExtractorIdentity) -> None:
        self.identity = identity

    def schema(self) -> pa.Schema:
        """Returns the schema of the parts."""
        n, d = self.identity.count, self.identity.dim
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                *MADE_FROM,
                pa.field("features", pa.list_(pa.float16(), n * d), nullable=False),
                pa.field("boxes", pa.list_(pa.float32(), n * 4), nullable=False),
                pa.field("scores", pa.list_(pa.float32(), n), nullable=False),
                pa.field("mask", pa.list_(pa.bool_(), n), nullable=False),
            ],
            metadata={METADATA_KEY: json.dumps(self.identity.to_dict()).encode()},
        )

    def encode(self, items: Sequence[Item]) -> pa.Table:
        schema, identity = self.schema(), self.identity
        batch = Regions.stack([item.regions for item in items], identity.count, identity.dim)
        columns: list[pa.Array] = [pa.array([item.row["sample_id"] for item in items], pa.string()), *made_from(items)]
        for name in ("features", "boxes", "scores", "mask"):
            columns.append(feature_column(getattr(batch, name), schema.field(name).type))
        return pa.table(columns, schema=schema)


@with_its_access
def extract_regions(
    settings: RegionSettings, *, address: str | None = None, progress: ProgressKind = "auto"
) -> JobSummary:
    """Runs the features job; see `run_job` for resume and errors."""
    identity = identify(settings.extractor, settings.weights, settings.count)

    def stages(device: str) -> tuple[Stage, ...]:
        return (
            DecodeImages(architecture(settings.extractor).min_side, required=True, damaged=settings.damaged),
            ExtractRegions(identity, locate(settings.weights), resolve_precision(settings, device)),
        )

    spec = JobSpec(
        kind="region-features",
        settings=settings,
        identity={"extractor": identity.to_dict()},
        make_stages=stages,
        sink=RegionSink(identity),
        model={"extractor": identity.to_dict()},
        notices=random_weights_notice(identity),
    )
    return run_job(spec, address=address, progress=progress)
