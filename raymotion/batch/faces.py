"""The face job: adds face boxes, found by a detector inside the body boxes, to a sample table.

The state of an unfinished run is kept next to the output (`.NAME.run`), and the same command resumes it. The boxes are
joined to the table by sample_id, and the table is written atomically at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from raymotion import storage
from raymotion.batch.job import run_job
from raymotion.batch.progress import ProgressKind
from raymotion.batch.spec import JobSettings, JobSpec, with_its_access
from raymotion.config import File, Metavar
from raymotion.data.faces.assign import MIN_SIDE, find_faces
from raymotion.data.faces.detectors import DetectorIdentity, FaceDetector, build, identify
from raymotion.data.parts import part_names
from raymotion.data.provenance import MADE_FROM
from raymotion.data.samples import BOX, read_samples, require_table_or_nothing, write_samples
from raymotion.errors import Damaged, RaymotionError, SettingsMismatch
from raymotion.folders import outputs
from raymotion.folders.lock import one_writer_of
from raymotion.pipeline.embed import DecodeOnce
from raymotion.pipeline.stages import Item, Stage, image_units, made_from

FOUND = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        *MADE_FROM,
        pa.field("face_box", BOX),
        pa.field("score", pa.float32()),
    ]
)


class FaceSettings(JobSettings):
    """Settings of `raymotion data faces`."""

    out: File = Field(description="sample table to write (Parquet; local path or s3://)")
    detector: Annotated[str, Metavar("NAME")] = Field(
        "cascade",
        description="face detector: cascade (OpenCV's Haar cascades, which come with it: upright faces, from the front "
        "or the side) or yunet (a small network; needs --weights)",
    )
    weights: File | None = Field(
        None, description="weights of yunet: face_detection_yunet_2023mar.onnx (local path or s3://)"
    )
    min_score: float | None = Field(
        None,
        ge=0,
        le=1,
        description="leave out faces of a lower score. A lower one finds more faces, and more that are none  [default: "
        "0.7 for cascade, 0.6 for yunet]",
    )
    min_side: Annotated[float, Metavar("PIXELS")] = Field(MIN_SIDE, ge=1, description="leave smaller faces out")
    overwrite_boxes: bool = Field(False, description="search for the faces of all samples, and drop their face boxes")
    # Detectors run on the CPU, so do not reserve a GPU.
    gpus_per_worker: float | None = Field(0, ge=0)


@dataclass(frozen=True)
class FaceReport:
    """Results of the face job; the five counts add up to the rows of the table.

    Attributes:
        found: face boxes found in this job.
        kept: face boxes already in the table.
        none: samples searched without finding a face.
        unreadable: samples whose image could not be read; their rows are unchanged.
        no_image: samples without an image.
        by_reason: failed rows by reason.
        detector: identity of the detector.
    """

    found: int
    kept: int
    none: int
    unreadable: int
    no_image: int
    by_reason: Mapping[str, int]
    detector: DetectorIdentity


class DetectFaces:
    """Assigns faces to all persons of an image at once, so that no two share one; existing boxes are kept."""

    name = "detect"
    whole_shard = False

    def __init__(self, identity: DetectorIdentity, weights: str | None, min_side: float, overwrite: bool) -> None:
        self.identity, self.weights, self.min_side, self.overwrite = identity, weights, min_side, overwrite
        self.detector: FaceDetector | None = None

    def setup(self, threads: int, device: str) -> None:
        import cv2

        cv2.setNumThreads(threads)
        self.detector = build(self.identity, self.weights)

    def process(self, items: Sequence[Item]) -> None:
        assert self.detector is not None
        for unit in image_units(items):
            picture = unit[0].pixels
            if picture is None:
                continue
            wanting = [item for item in unit if self.overwrite or item.row["face_box"] is None]
            taken = [tuple(item.row["face_box"]) for item in unit if not any(item is other for other in wanting)]
            bodies = [None if item.row["body_box"] is None else tuple(item.row["body_box"]) for item in wanting]
            faces = find_faces(picture, bodies, self.detector, taken=taken, min_side=self.min_side)
            for item, face in zip(wanting, faces, strict=True):
                item.output["face"] = face


class FaceSink:
    """Encodes sample_id, the searched image, face_box (null: none found) and score."""

    def encode(self, items: Sequence[Item]) -> pa.Table:
        faces = [item.output.get("face") for item in items]
        columns = [
            pa.array([item.row["sample_id"] for item in items], pa.string()),
            *made_from(items),
            pa.array([None if face is None else list(face.box) for face in faces], BOX),
            pa.array([None if face is None else face.score for face in faces], pa.float32()),
        ]
        return pa.table(columns, schema=FOUND)


@with_its_access
@one_writer_of("settings.out", beside=True)
def detect_faces(settings: FaceSettings, *, address: str | None = None, progress: ProgressKind = "auto") -> FaceReport:
    """Fills in missing face boxes of `settings.samples` and writes the table to `settings.out`.

    Rows of unreadable images are unchanged. With `overwrite_boxes` every sample is searched, and its box is null if no
    face is found.

    Raises:
        InputError: before any work: unreadable input, missing weights of the detector, or an output that exists and is
            not a sample table.
        RunFailed: more rows failed than `max_failed` allows; the same command resumes.
    """
    if settings.weights is not None:  # workers may have another working directory
        settings = settings.model_copy(update={"weights": storage.absolute(settings.weights)})
    identity = identify(settings.detector, settings.weights, settings.min_score)
    samples = read_samples(settings.samples)
    _require_free(settings.out)
    searched = _to_search(samples, settings.overwrite_boxes)
    boxes: dict[str, list[float] | None] = {}
    by_reason: Mapping[str, int] = {}
    run = outputs.run_folder(settings.out)
    if searched.num_rows:
        boxes, by_reason = _run(settings, identity, searched, run, address, progress)
    table, counts = _joined(samples, boxes, set(searched.column("sample_id").to_pylist()), settings.overwrite_boxes)
    write_samples(settings.out, table)
    with contextlib.suppress(OSError, RaymotionError):  # the table is written, so do not fail here
        outputs.remove_claimed(run)
    return FaceReport(**counts, by_reason=by_reason, detector=identity)


def _require_free(out: str) -> None:
    """Checks before any work that the output is a sample table or absent, and is writable."""
    require_table_or_nothing(out)
    folder = storage.parent(storage.absolute(out))
    storage.make_dir(folder)
    storage.probe_writable(folder)


def _to_search(samples: pa.Table, overwrite: bool) -> pa.Table:
    """Returns all rows of the images with a missing face box; existing boxes there are excluded from the search."""
    with_image = pc.is_valid(samples.column("image_uri"))
    if overwrite:
        return samples.filter(with_image)
    lacking = pc.and_(with_image, pc.is_null(samples.column("face_box")))
    uris = pc.unique(samples.column("image_uri").filter(lacking))
    return samples.filter(pc.and_(with_image, pc.is_in(samples.column("image_uri"), value_set=uris)))


def _run(
    settings: FaceSettings,
    identity: DetectorIdentity,
    searched: pa.Table,
    run: str,
    address: str | None,
    progress: ProgressKind,
) -> tuple[dict[str, list[float] | None], Mapping[str, int]]:
    """Runs the job; returns the face box (or None) of each sample whose image was read, and failures by reason."""
    table, folder = storage.join(run, "samples.parquet"), storage.join(run, "faces")
    stages: tuple[Stage, ...] = (
        DecodeOnce(settings.damaged),
        DetectFaces(identity, settings.weights, settings.min_side, settings.overwrite_boxes),
    )
    spec = JobSpec(
        kind="faces",
        settings=settings.model_copy(update={"samples": table, "out": folder}),
        identity={
            "detector": {"name": identity.name, "weights": identity.weights, "min_score": identity.min_score},
            "min_side": settings.min_side,
            "overwrite_boxes": settings.overwrite_boxes,
        },
        make_stages=lambda device: stages,
        sink=FaceSink(),
        columns=("body_box", "face_box"),
        keep_images_together=True,
    )
    outputs.claim(run)
    write_samples(table, searched)
    try:
        summary = run_job(spec, address=address, progress=progress)
    except (SettingsMismatch, Damaged):  # left by a run with other settings or input, or damaged
        outputs.remove_claimed(run)
        outputs.claim(run)
        write_samples(table, searched)
        summary = run_job(spec, address=address, progress=progress)
    boxes: dict[str, list[float] | None] = {}
    for name in part_names(folder):
        part = storage.read_table(storage.join(folder, name), ["sample_id", "face_box"])
        boxes.update(zip(part.column("sample_id").to_pylist(), part.column("face_box").to_pylist(), strict=True))
    return boxes, summary.counts["by_reason"]


def _joined(
    samples: pa.Table, boxes: Mapping[str, list[float] | None], searched: set[str], overwrite: bool
) -> tuple[pa.Table, dict[str, int]]:
    """Joins the boxes to `samples` by sample_id; returns the table and the counts of `FaceReport`."""
    counts = dict.fromkeys(("found", "kept", "none", "unreadable", "no_image"), 0)
    column: list[list[float] | None] = []
    for row in samples.select(["sample_id", "image_uri", "face_box"]).to_pylist():
        sample_id, box = row["sample_id"], row["face_box"]
        if box is not None and not overwrite:
            counts["kept"] += 1
        elif sample_id in boxes:
            box = boxes[sample_id]
            counts["none" if box is None else "found"] += 1
        else:
            counts["unreadable" if sample_id in searched else "no_image"] += 1
        column.append(box)
    index = samples.schema.get_field_index("face_box")
    return samples.set_column(index, samples.schema.field("face_box"), pa.array(column, BOX)), counts
