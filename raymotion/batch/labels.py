"""The labelling job: sample table -> regions -> teacher -> pseudo-labels in Parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from raymotion import storage
from raymotion.batch.choice import choose_globally, judge, with_choice
from raymotion.batch.job import JobSettings, JobSpec, JobSummary, resolve_precision, run_job
from raymotion.batch.progress import ProgressKind
from raymotion.batch.regions import random_weights_notice
from raymotion.batch.stages import DecodeImages, ExtractRegions, Failure, Item, Stage
from raymotion.config import digest_of
from raymotion.data.features import features_digest
from raymotion.errors import InputError
from raymotion.learning.selection import SelectionPolicy
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.predictor import find_extractor, trained_identity
from raymotion.models.regions import ExtractorIdentity, Regions, architecture
from raymotion.vocabulary import Vocabulary


class LabelSettings(JobSettings):
    """Settings of `raymotion label`."""

    teacher: str = Field(description="checkpoint folder, of a teacher or a student")
    features: str | None = Field(None, description="folder of a features job, instead of extracting in the stream")
    weights: str | None = Field(None, description="region extractor's weights, where the teacher names a file's digest")
    selection: SelectionPolicy = Field(default_factory=SelectionPolicy)


class LoadRegions:
    """Region features from a finished features job, in place of decoding and extracting."""

    name = "decode"  # the stage that brings the evidence in
    whole_shard = False

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def setup(self, threads: int, device: str) -> None:
        from raymotion.data.features import RegionFeatures

        self.features = RegionFeatures(self.folder)

    def process(self, items: Sequence[Item]) -> None:
        matrix, mask = self.features.get([item.row["sample_id"] for item in items])
        for item, features, present in zip(items, matrix, mask, strict=True):
            if item.row["sample_id"] in self.features:
                n = len(present)
                item.regions = Regions(features, np.zeros((n, 4), np.float32), np.zeros(n, np.float32), present)
            elif item.row["image_uri"] is not None:
                item.failure = Failure(
                    self.name,
                    "no_features",
                    "NoFeatures",
                    f"{self.folder} has no features of this sample: see its quarantine",
                )


class NoEvidence:
    """First stage for a teacher that reads captions alone: images are left where they are."""

    name = "decode"
    whole_shard = False

    def setup(self, threads: int, device: str) -> None:
        pass

    def process(self, items: Sequence[Item]) -> None:
        pass


class PredictEmotions:
    """Probabilities of each item, from its captions and regions.

    A whole shard at once: five captions of an image make five short texts, which fill the model's batches better
    than one or two images at a time would.
    """

    name = "teacher"
    whole_shard = True

    def __init__(self, teacher: str, fingerprint: str, count: int, dim: int) -> None:
        self.folder, self.fingerprint, self.count, self.dim = teacher, fingerprint, count, dim

    def setup(self, threads: int, device: str) -> None:
        import torch

        from raymotion.models.checkpoint import load_teacher

        torch.set_num_threads(threads)
        self.teacher = load_teacher(self.folder, device=device, expected_fingerprint=self.fingerprint)

    def process(self, items: Sequence[Item]) -> None:
        captions = [item.row["captions"] for item in items]
        batch = Regions.stack([item.regions for item in items], self.count, self.dim) if self.dim else None
        usable = self.teacher.usable(captions, batch.mask if batch else None)
        for item, good in zip(items, usable, strict=True):
            if not good:
                needs = " or ".join("a caption" if m == "text" else "an image" for m in self.teacher.info.modalities)
                item.failure = Failure(
                    self.name, "no_input", "NoInput", f"the teacher needs {needs}, and the sample has none"
                )
        chosen = np.flatnonzero(usable).tolist()
        if not chosen:
            return
        probabilities = self.teacher.predict(
            [captions[i] for i in chosen],
            batch.features[chosen] if batch else None,
            batch.mask[chosen] if batch else None,
        )
        for i, row in zip(chosen, probabilities, strict=True):
            items[i].output["probabilities"] = row
            items[i].regions = None


class PredictWithStudent:
    """Probabilities of each item from a student: picture and caption, no regions."""

    name = "student"
    whole_shard = False

    def __init__(self, student: str, fingerprint: str) -> None:
        self.folder, self.fingerprint = student, fingerprint

    def setup(self, threads: int, device: str) -> None:
        import torch

        from raymotion.models.checkpoint import load_student

        torch.set_num_threads(threads)
        self.student = load_student(self.folder, device=device, expected_fingerprint=self.fingerprint)

    def process(self, items: Sequence[Item]) -> None:
        captions = [item.row["captions"] for item in items]
        mask = np.array([item.pixels is not None for item in items])
        usable = self.student.usable(captions, mask)
        for item, good in zip(items, usable, strict=True):
            if not good:
                needs = " or ".join("a caption" if m == "text" else "an image" for m in self.student.info.modalities)
                item.failure = Failure(
                    self.name, "no_input", "NoInput", f"the student needs {needs}, and the sample has none"
                )
        chosen = [item for item, good in zip(items, usable, strict=True) if good]
        if not chosen:
            return
        size = self.student.model.image_size
        pixels = np.zeros((len(chosen), size, size, 3), np.uint8)
        for i, item in enumerate(chosen):
            if item.pixels is not None:
                pixels[i] = self.student.prepare(item.pixels)
                item.pixels = None
        probabilities = self.student.predict([item.row["captions"] for item in chosen], pixels, mask[usable])
        for item, row in zip(chosen, probabilities, strict=True):
            item.output["probabilities"] = row


class LabelSink:
    """Pseudo-labels as rows.

    Columns: sample_id, image_uri, captions (those that were read), probabilities (float32 (L), vocabulary order),
    labels (chosen ones, vocabulary order), selected (whether the policy takes the row at all). Labels of a policy that
    needs the whole set are empty until `choose_globally` has run.
    """

    def __init__(
        self, vocabulary: Vocabulary, policy: SelectionPolicy, thresholds: Sequence[float] | None, reads_text: bool
    ) -> None:
        self.vocabulary, self.policy, self.reads_text = vocabulary, policy, reads_text
        self.thresholds = None if thresholds is None else np.asarray(thresholds)

    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                pa.field("sample_id", pa.string(), nullable=False),
                pa.field("image_uri", pa.string()),
                pa.field("captions", pa.list_(pa.string()), nullable=False),
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
            [text for text in item.row["captions"] if text.strip()] if self.reads_text else [] for item in items
        ]
        table = pa.table(
            [
                pa.array(ids, pa.string()),
                pa.array([item.row["image_uri"] for item in items], pa.string()),
                pa.array(captions, pa.list_(pa.string())),
                pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1), pa.float32()), size),
                pa.nulls(len(items), pa.list_(pa.string())),
                pa.nulls(len(items), pa.bool_()),
            ],
            names=self.schema().names,
        )
        return with_choice(table, mask, selected, self.vocabulary).cast(self.schema())


def label(settings: LabelSettings, *, address: str | None = None, progress: ProgressKind = "auto") -> JobSummary:
    """Runs the labelling job; see `run_job` for resume and errors."""
    info = read_checkpoint_info(settings.teacher)
    extractor, weights = _extractor(info, settings)
    if settings.selection.policy == "class-thresholds" and info.thresholds is None:
        raise InputError(
            "holds no thresholds fitted on validation",
            path=settings.teacher,
            remedy="Train it with a validation split, or choose another --policy.",
        )
    is_student = info.architecture == "student"
    reads_pixels = "image" in info.modalities
    streams_images = reads_pixels or (extractor is not None and settings.features is None)

    def stages(device: str) -> tuple[Stage, ...]:
        if is_student:
            student = PredictWithStudent(storage.absolute(settings.teacher), info.fingerprint)
            return (DecodeImages(info.config["image_size"]) if reads_pixels else NoEvidence(), student)
        count, dim = (extractor.count, extractor.dim) if extractor else (0, 0)
        predict = PredictEmotions(storage.absolute(settings.teacher), info.fingerprint, count, dim)
        if extractor is None:
            return (NoEvidence(), predict)
        if settings.features is not None:
            return (LoadRegions(storage.absolute(settings.features)), predict)
        return (
            DecodeImages(architecture(extractor.name).min_side),
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

    def finish(folder: str) -> Mapping[str, Any]:
        more: dict[str, Any] = {}
        if settings.selection.is_global:
            more["choice"] = choose_globally(folder, folder, settings.selection, info.vocabulary, info.thresholds)
        more["collapse"] = judge(folder, info.vocabulary, info.prior, info.validation)
        return more

    spec = JobSpec(
        kind="labels",
        settings=settings,
        identity={
            "teacher": {"fingerprint": info.fingerprint, "vocabulary": info.vocabulary.fingerprint},
            "extractor": extractor.to_dict() if extractor else None,
            "features": features_digest(settings.features) if extractor and settings.features else None,
            "selection": settings.selection.model_dump(mode="json"),
            "thresholds": digest_of(info.thresholds) if settings.selection.policy == "class-thresholds" else None,
        },
        make_stages=stages,
        sink=LabelSink(info.vocabulary, settings.selection, info.thresholds, "text" in info.modalities),
        model={"teacher": info.to_dict(), "extractor": extractor.to_dict() if extractor else None},
        vocabulary=info.vocabulary,
        notices=tuple(notices),
        finish=finish,
        # A teacher that reads captions too does without the images that are not there.
        images="none" if not streams_images else "optional" if "text" in info.modalities else "required",
    )
    return run_job(spec, address=address, progress=progress)


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
        return find_extractor(info, settings.weights, remedy="Name that file as --weights, or give --features.")
    trained = trained_identity(info)
    own = _features_extractor(settings.features)
    if own != trained.to_dict():
        raise InputError(
            f"holds features of {own}, the teacher was trained on {trained.to_dict()}", path=settings.features
        )
    return trained, ""


def _features_record(folder: str) -> dict[str, Any]:
    path = storage.join(folder, "job.json")
    record = storage.read_json(path)
    if not isinstance(record, dict) or record.get("job") != "region-features":
        raise InputError("is not the record of a features job", path=path)
    if record.get("status") != "complete":
        raise InputError(
            "the features job is not complete", path=folder, remedy="Run the same `raymotion features` command again."
        )
    return record


def _features_extractor(folder: str) -> dict[str, Any]:
    return dict(_features_record(folder)["identity"]["extractor"])
