"""The stages of the labelling job that are a teacher's or a student's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from raymotion.errors import NotFinite
from raymotion.models.finite import finite_rows
from raymotion.models.vision.regions import Regions
from raymotion.pipeline.stages import Failure, Item, not_finite

if TYPE_CHECKING:
    from raymotion.models.loaded import LoadedStudent, Teacher

# Answers of NaN after which a model that has given no other is called useless, instead of row after row.
MOST_WITHOUT_ANSWER = 4
CAPTION = "a caption with a word that it knows"


class FiniteAnswers:
    """Sorts out what a model answers with NaN or infinity, in one worker.

    Args:
        stage: name of the stage, for the failures.
        folder: of the model, for the error.
    """

    def __init__(self, stage: str, folder: str) -> None:
        self.stage, self.folder = stage, folder
        self.good = self.bad = 0

    def keep(self, items: Sequence[Item], answers: np.ndarray) -> list[tuple[Item, np.ndarray]]:
        """The items with a finite answer, and the answer (its row of `answers`); the others fail.

        Raises:
            NotFinite: the model has not given one finite answer yet.
        """
        kept = []
        for item, row, good in zip(items, answers, finite_rows(answers), strict=True):
            if good:
                kept.append((item, row))
            else:
                item.failure = not_finite(self.stage, "the model answers with NaN or infinity")
        self.good, self.bad = self.good + len(kept), self.bad + len(items) - len(kept)
        if not self.good and self.bad >= MOST_WITHOUT_ANSWER:
            raise NotFinite(
                f"{self.folder}: the model answers with NaN or infinity to all of the first {self.bad} samples. It can "
                "label nothing: train it again, with a lower learning rate"
            )
        return kept


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
                item.mark = self.features.mark(item.row["sample_id"])
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
        self.answers = FiniteAnswers(self.name, teacher)

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
                needs = " or ".join(CAPTION if m == "text" else "an image" for m in self.teacher.info.modalities)
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
        note_captions(self.teacher, items)
        for item, row in self.answers.keep([items[i] for i in chosen], probabilities):
            item.output["probabilities"] = row
            item.regions = None


class PredictWithStudent:
    """Probabilities of each item from a student: picture and caption, no regions."""

    name = "student"
    whole_shard = False

    def __init__(self, student: str, fingerprint: str) -> None:
        self.folder, self.fingerprint = student, fingerprint
        self.answers = FiniteAnswers(self.name, student)

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
                needs = " or ".join(CAPTION if m == "text" else "an image" for m in self.student.info.modalities)
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
        probabilities = self.student.predict([item.row["captions"] for item in chosen], pixels, mask[usable])
        # Not before: a batch that fails is run again by item, and would find captions alone.
        note_captions(self.student, chosen)
        for item, row in self.answers.keep(chosen, probabilities):
            item.pixels, item.output["probabilities"] = None, row


def note_captions(model: Teacher | LoadedStudent, items: Sequence[Item]) -> None:
    """Notes on each item which of its captions the model read, and what share of all their words it does not know."""
    captions = [item.row["captions"] for item in items]
    known, shares = model.known_captions(captions), model.unknown_share(captions)
    for item, own, share in zip(items, known, shares, strict=True):
        item.output["captions"], item.output["unknown_words"] = own, share
