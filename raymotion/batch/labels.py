"""The labelling job: sample table -> regions -> teacher -> pseudo-labels in Parquet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from raymotion import storage
from raymotion.batch.choice import choose_globally, judge, with_choice
from raymotion.batch.fusion_labels import COLUMNS, plan_fusion, with_vad
from raymotion.batch.job import JobSummary, run_job
from raymotion.batch.label_dataset import read_parts
from raymotion.batch.progress import ProgressKind
from raymotion.batch.regions import random_weights_notice
from raymotion.batch.spec import JobSettings, JobSpec, resolve_precision, with_its_access
from raymotion.config import digest_of
from raymotion.data.captions import readable
from raymotion.data.features import features_digest
from raymotion.data.parts import complete_job, part_names, running_job
from raymotion.data.path_kinds import wrong_kind
from raymotion.data.provenance import MADE_FROM, begun_at, read_made_from, require_same_pictures
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.checkpoint_files import FUSIONS
from raymotion.models.vision.regions import ExtractorIdentity, architecture
from raymotion.pipeline.label_stages import LoadRegions, NoEvidence, PredictEmotions, PredictWithStudent
from raymotion.pipeline.predictor import find_extractor, trained_identity
from raymotion.pipeline.stages import DecodeImages, ExtractRegions, Item, Stage, made_from
from raymotion.vocabulary import Vocabulary

# Share of unknown words in the captions from which on it is told.
MANY_UNKNOWN = 0.2


class LabelSettings(JobSettings):
    """Settings of `raymotion label`."""

    teacher: str = Field(description="checkpoint folder, of a teacher, a student or a fusion head")
    features: str | None = Field(
        None, description="folder of a features job (a fusion head: embeddings), instead of extracting in the stream"
    )
    weights: tuple[str, ...] = Field(
        (), description="weights files, where the checkpoint names a file's digest; NAME=FILE for one backbone"
    )
    ablation: str | None = Field(None, description="a fusion head: the streams that it may look at")
    selection: SelectionPolicy = Field(default_factory=SelectionPolicy)

    @field_validator("weights", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """One file, several, or none."""
        return () if value is None else (value,) if isinstance(value, str) else value


class LabelSink:
    """Pseudo-labels as rows.

    Columns: sample_id, image_uri, image_bytes and image_digest (of the picture that was read, null where none was; with
    cached features the one that they were made from), captions (those that were read), unknown_words (share of the
    words in all captions of the sample that the model does not know; null where it read none), probabilities (float32
    (L), vocabulary order), labels (chosen ones, vocabulary order), selected (whether the policy takes the row at all).
    Labels of a policy that needs the whole set are empty until `choose_globally` has run. A fusion head with VAD adds
    valence, arousal and dominance, float32 on EMOTIC's scale of 1 to 10.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        policy: SelectionPolicy,
        thresholds: Sequence[float] | None,
        reads_text: bool,
        vad: bool = False,
    ) -> None:
        self.vocabulary, self.policy, self.reads_text, self.vad = vocabulary, policy, reads_text, vad
        self.thresholds = None if thresholds is None else np.asarray(thresholds)

    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                *MADE_FROM,
                pa.field("captions", pa.list_(pa.string()), nullable=False),
                pa.field("unknown_words", pa.float32()),
                pa.field("probabilities", pa.list_(pa.float32(), len(self.vocabulary)), nullable=False),
                pa.field("labels", pa.list_(pa.string()), nullable=False),
                pa.field("selected", pa.bool_(), nullable=False),
            ],
            metadata=self.vocabulary.to_metadata(),
        )

    def encode(self, items: Sequence[Item]) -> pa.Table:
        size = len(self.vocabulary)
        matrix = np.array([item.output["probabilities"] for item in items], np.float32).reshape(len(items), size)
        ids = [item.row["sample_id"] for item in items]
        if self.policy.is_global:
            mask, selected = np.zeros(matrix.shape, bool), np.zeros(len(items), bool)
        else:
            mask, selected = self.policy.choose(matrix, ids, self.thresholds)
        captions = [
            item.output.get("captions", readable(item.row["captions"])) if self.reads_text else [] for item in items
        ]
        table = pa.table(
            [
                pa.array(ids, pa.string()),
                *made_from(items),
                pa.array(captions, pa.list_(pa.string())),
                pa.array([item.output.get("unknown_words") for item in items], pa.float32()),
                pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1), pa.float32()), size),
                pa.nulls(len(items), pa.list_(pa.string())),
                pa.nulls(len(items), pa.bool_()),
            ],
            names=self.schema().names,
        )
        table = with_choice(table, mask, selected, self.vocabulary).cast(self.schema())
        return with_vad(table, [item.output["vad"] for item in items]) if self.vad else table


@with_its_access
def label(settings: LabelSettings, *, address: str | None = None, progress: ProgressKind = "auto") -> JobSummary:
    """Runs the labelling job; see `run_job` for resume and errors."""
    info = read_checkpoint_info(settings.teacher)
    if settings.selection.policy == "class-thresholds" and info.thresholds is None:
        raise InputError(
            "holds no thresholds fitted on validation",
            path=settings.teacher,
            remedy="Train it with a validation split, or choose another --policy.",
        )
    spec = _fusion_spec(info, settings) if info.architecture in FUSIONS else _caption_spec(info, settings)
    return run_job(spec, address=address, progress=progress)


def input_columns(info: CheckpointInfo, features: str | None) -> tuple[str, ...]:
    """Columns of the sample table that labelling reads besides those that every job reads."""
    return COLUMNS if info.architecture in FUSIONS and features is None else ()


def _fusion_spec(info: CheckpointInfo, settings: LabelSettings) -> JobSpec:
    """The job of a fusion head: persons, and their places in pictures."""
    plan = plan_fusion(info, settings)
    columns = input_columns(info, settings.features)

    def stages(device: str) -> tuple[Stage, ...]:
        return plan.stages(resolve_precision(settings, device))

    def finish(folder: str) -> Mapping[str, Any]:
        digest = running_job(folder)["digest"]
        return {**_finish(info, settings, folder, plan.notices), "with": plan.counts(folder, digest)}

    return JobSpec(
        kind="labels",
        settings=settings,
        identity={**_identity(info, settings), **plan.identity},
        make_stages=stages,
        sink=LabelSink(info.vocabulary, settings.selection, info.thresholds, False, plan.vad),
        model={"teacher": info.to_dict(), "extractor": None},
        vocabulary=info.vocabulary,
        notices=plan.notices,
        finish=finish,
        images="none" if settings.features is not None else "required",
        columns=columns,
        keep_images_together=bool(columns),
        check=plan.check,
        default_batch=(16, 64),
    )


def _caption_spec(info: CheckpointInfo, settings: LabelSettings) -> JobSpec:
    """The job of a teacher or a student: pictures and captions."""
    if settings.ablation is not None:
        raise InputError(
            f"is a {info.architecture}, and ablations are of the streams of a fusion head",
            path=settings.teacher,
            remedy="Leave --ablation out.",
        )
    extractor, weights = _extractor(info, settings)
    is_student = info.architecture == "student"
    reads_pixels = "image" in info.modalities
    streams_images = reads_pixels or (extractor is not None and settings.features is None)

    def stages(device: str) -> tuple[Stage, ...]:
        if is_student:
            student = PredictWithStudent(storage.absolute(settings.teacher), info.fingerprint)
            return (
                DecodeImages(info.config["image_size"], damaged=settings.damaged) if reads_pixels else NoEvidence(),
                student,
            )
        count, dim = (extractor.count, extractor.dim) if extractor else (0, 0)
        predict = PredictEmotions(storage.absolute(settings.teacher), info.fingerprint, count, dim)
        if extractor is None:
            return (NoEvidence(), predict)
        if settings.features is not None:
            return (LoadRegions(storage.absolute(settings.features)), predict)
        return (
            DecodeImages(architecture(extractor.name).min_side, damaged=settings.damaged),
            ExtractRegions(extractor, weights, resolve_precision(settings, device)),
            predict,
        )

    notices: list[str] = []
    kind = "student" if is_student else "teacher"
    if extractor is None and not reads_pixels:
        notices.append(f"The {kind} was trained on captions alone: it labels from the captions, and no image was read.")
    elif extractor is not None:
        notices.extend(random_weights_notice(extractor))
    if "text" not in info.modalities:
        notices.append(f"The {kind} was trained on images alone: it labels from the images, and no caption was read.")
    return JobSpec(
        kind="labels",
        settings=settings,
        identity={
            **_identity(info, settings),
            "extractor": extractor.to_dict() if extractor else None,
            "features": features_digest(settings.features) if extractor and settings.features else None,
        },
        make_stages=stages,
        sink=LabelSink(info.vocabulary, settings.selection, info.thresholds, "text" in info.modalities),
        model={"teacher": info.to_dict(), "extractor": extractor.to_dict() if extractor else None},
        vocabulary=info.vocabulary,
        notices=tuple(notices),
        finish=lambda folder: {**_finish(info, settings, folder, notices), **_words(folder, kind, notices)},
        check=_features_check(settings.features) if extractor and settings.features else None,
        # A teacher that reads captions too does without the images that are not there.
        images="none" if not streams_images else "optional" if "text" in info.modalities else "required",
    )


def _identity(info: CheckpointInfo, settings: LabelSettings) -> dict[str, Any]:
    """What decides the labels, whatever the model is."""
    return {
        "teacher": {"fingerprint": info.fingerprint, "vocabulary": info.vocabulary.fingerprint},
        "selection": settings.selection.model_dump(mode="json"),
        "thresholds": digest_of(info.thresholds) if settings.selection.policy == "class-thresholds" else None,
    }


def _finish(info: CheckpointInfo, settings: LabelSettings, folder: str, notices: Sequence[str]) -> dict[str, Any]:
    """What job.json says of the finished labels."""
    more: dict[str, Any] = {}
    if settings.selection.is_global:
        more["choice"] = choose_globally(folder, folder, settings.selection, info.vocabulary, info.thresholds)
    more["collapse"] = judge(folder, info.vocabulary, info.prior, info.validation, notices)
    return more


def _words(folder: str, kind: str, notices: Sequence[str]) -> dict[str, Any]:
    """What job.json says of the words that the model does not know, and its notices with one where they are many."""
    shares = np.concatenate(
        [part.column("unknown_words").drop_null().to_numpy() for _, part in read_parts(folder, ["unknown_words"])]
        or [np.zeros(0)]
    )
    if not len(shares):
        return {}
    mean, many = float(shares.mean()), int((shares > MANY_UNKNOWN).sum())
    told = list(notices)
    if mean > MANY_UNKNOWN:
        told.append(
            f"The {kind} does not know {mean:.0%} of the words in the captions, and labels from the others: are the "
            "captions in the language that it was trained on?"
        )
    words = {"mean_share": round(mean, 4), "rows": len(shares), "rows_with_many": many, "many": MANY_UNKNOWN}
    return {"unknown_words": words, "notices": told}


def _extractor(info: CheckpointInfo, settings: LabelSettings) -> tuple[ExtractorIdentity | None, str]:
    """The extractor that the model was trained with, and where its weights are; None for one that reads no regions."""
    if info.architecture == "student" and (settings.features or settings.weights):
        raise InputError(
            "is a student, and reads pictures: it has no use for region features",
            path=settings.teacher,
            remedy="Leave --features and --weights out.",
        )
    if "regions" not in info.modalities:
        if settings.features is not None:
            raise InputError(
                "was trained on captions alone, and would not look at --features",
                path=settings.teacher,
                remedy="Leave --features out, or train a teacher with data.features.",
            )
        return None, ""
    if settings.features is None:
        if len(settings.weights) > 1:
            raise InputError("--weights is given twice, and a region extractor has one file", remedy="Name one.")
        weights = settings.weights[0] if settings.weights else None
        return find_extractor(info, weights, remedy="Name that file as --weights, or give --features.")
    trained = trained_identity(info)
    own = _features_extractor(settings.features)
    if own != trained.to_dict():
        raise InputError(
            f"holds features of {own}, the teacher was trained on {trained.to_dict()}", path=settings.features
        )
    return trained, ""


def _features_record(folder: str) -> dict[str, Any]:
    other = wrong_kind(folder, "regions")
    if other is not None:
        raise other
    return complete_job(folder, "region-features", what="features job", command="raymotion features regions")


def _features_check(folder: str) -> Callable[[pa.Table], list[str]]:
    """What raises where the region features are of other pictures than the samples that are to be labelled."""

    def check(samples: pa.Table) -> list[str]:
        remedy = "Extract the features of these samples, or leave --features out."
        made = read_made_from(folder, part_names(folder), remedy=remedy)
        begun = begun_at(_features_record(folder))
        return require_same_pictures(
            samples, made, what="features", where=folder, remedy=remedy, since=begun
        ).notes()  # fmt: skip

    return check


def _features_extractor(folder: str) -> dict[str, Any]:
    return dict(_features_record(folder)["identity"]["extractor"])
