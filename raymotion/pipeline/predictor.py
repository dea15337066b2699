"""A checkpoint in plain Python: pictures and captions in, probabilities out. No Ray.

    import raymotion
    model = raymotion.load("teacher/")
    model.label("photo.jpg", caption="A man laughs.")  # {"happy": 0.71, "joy": 0.42, ...}

One interface for every kind of checkpoint; `LOADERS` says which architecture is opened how. What a model was not
trained to read is not shown to it, and `Predictor.not_read` says so.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import storage
from raymotion.data.captions import readable
from raymotion.data.images import decode as pictures
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError, RunFailed
from raymotion.models import checkpoint
from raymotion.models.checkpoint import CheckpointInfo, LoadedStudent, Teacher
from raymotion.models.checkpoint_files import FUSIONS
from raymotion.models.finite import require_finite_rows
from raymotion.models.vision.regions import ExtractorIdentity, RegionExtractor, Regions, architecture, identify
from raymotion.vocabulary import Vocabulary
from raymotion.weights import locate

if TYPE_CHECKING:
    from PIL.Image import Image

Captions = Sequence[Sequence[str]]
Pictures = Sequence[np.ndarray | None]
# Of one picture: "body" and "face", each (x1, y1, x2, y2) in pixels of the whole, upright picture.
Boxes = Mapping[str, Sequence[float]]


class Predictor(ABC):
    """A trained model, whatever its architecture.

    Attributes:
        info: all that its checkpoint says.
        min_side: the shorter side in pixels that it resizes pictures to; larger JPEGs may be decoded at a fraction.
        reads_images: whether it was trained on pictures, or on features of them.
        reads_text: whether it was trained on captions.
        damaged: what `label` does with a picture that decodes, but not to what was stored; see `images.decode_rgb`.
        damage: what is damaged in the picture that `label` saw last, where it was kept.
    """

    info: CheckpointInfo
    min_side: int | None = None
    reads_images: bool
    reads_text: bool
    damaged: DamagedPolicy = "quarantine"
    damage: str | None = None
    # Valence, arousal and dominance of what `label` saw last, for a model that predicts them.
    vad: dict[str, float] | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self.info.vocabulary

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.info.modalities

    @property
    def notes(self) -> list[str]:
        """What a reader of the probabilities has to know of this model."""
        return []

    @abstractmethod
    def _predict(self, images: Pictures, captions: Captions, batch_size: int) -> np.ndarray:
        """`predict`, for samples that are all usable and of which nothing is given that the model does not read."""

    def usable(self, images: Pictures | None, captions: Captions | None) -> np.ndarray:
        """Which samples hold anything that the model reads, bool (n,)."""
        own_images, own_captions = self._own(images, captions)
        return np.array(
            [
                image is not None or bool(texts)
                for image, texts in zip(own_images, self._known(own_captions), strict=True)
            ],
            dtype=bool,
        )

    def _known(self, captions: Captions) -> Captions:
        """For each sample those of its captions that say something to the model."""
        return [readable(own) for own in captions]

    def predict(self, images: Pictures | None, captions: Captions | None, *, batch_size: int = 16) -> np.ndarray:
        """Probabilities (n, L) float32 in vocabulary order.

        Args:
            images: n pictures, each uint8 (height, width, 3) upright RGB, or None where there is none. None: no sample
                has one.
            captions: the captions of each of the n samples, possibly none. Probabilities of several are averaged.
            batch_size: pictures a forward pass.

        Raises:
            InputError: a sample has nothing that the model reads (`usable` tells which).
            NotFinite: the model answers with NaN or infinity.
        """
        own_images, own_captions = self._own(images, captions)
        if not own_images:
            return np.zeros((0, len(self.vocabulary)), np.float32)
        absent = np.flatnonzero(~self.usable(images, captions))
        if len(absent):
            raise InputError(
                f"this model reads {self._reads}, and sample {absent[0]} has none"
                + (f" (nor have {len(absent) - 1} more)" if len(absent) > 1 else ""),
                path=self.info.folder,
            )
        return require_finite_rows(self._predict(own_images, own_captions, batch_size), self.info.folder)

    def label(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image | None = None,
        caption: str | Sequence[str] | None = None,
        *,
        boxes: Boxes | None = None,
    ) -> dict[str, float]:
        """Probability of each emotion, the highest first, for one picture, its caption or captions, or both.

        Args:
            image: path, address (s3://...), Pillow picture, or uint8 array (height, width, 3) in RGB.
            boxes: for a fusion head, where the person's `body` and `face` are: (x1, y1, x2, y2) in pixels. A stream
                without its box is masked.

        Raises:
            InputError: the picture cannot be read (the reason is said), or nothing is given that the model reads.
        """
        if boxes:
            raise InputError("this model looks at no boxes", path=self.info.folder, remedy="Leave them out.")
        captions = [caption] if isinstance(caption, str) else list(caption or [])
        # A file that is named has to be a picture, also where the model would not look at it.
        pixels = None if image is None else self._read(image)
        if not self.usable([pixels], [captions])[0]:
            unknown = self.reads_text and bool(readable(captions))
            raise InputError(
                "no caption has a word that this model knows"
                if unknown
                else f"this model reads {self._reads}, and none was given",
                path=self.info.folder,
            )
        return self._by_probability(self.predict([pixels], [captions])[0])

    def _read(self, image: str | os.PathLike[str] | np.ndarray | Image) -> np.ndarray:
        def keep(error: Exception) -> None:
            self.damage = str(error)

        self.damage = None
        return read_picture(image, self.min_side, on_kept=keep if self.damaged == "keep" else None)

    def _by_probability(self, probabilities: np.ndarray) -> dict[str, float]:
        order = np.argsort(-probabilities, kind="stable")
        return {self.vocabulary.labels[i]: float(probabilities[i]) for i in order.tolist()}

    def not_read(self, *, image: bool, caption: bool) -> list[str]:
        """Sentences on what was given and not looked at, because the model was not trained on it."""
        result = []
        if image and not self.reads_images:
            result.append("No image was read: this model was trained on captions alone.")
        if caption and not self.reads_text:
            result.append("No caption was read: this model was trained on images alone.")
        return result

    @property
    def _reads(self) -> str:
        kinds = ["captions"] * self.reads_text + ["images"] * self.reads_images
        return " or ".join(kinds)

    def _own(self, images: Pictures | None, captions: Captions | None) -> tuple[Pictures, Captions]:
        """Both for n samples, without what the model does not read."""
        if images is None and captions is None:
            raise InputError("neither images nor captions were given")
        n = len(images if images is not None else captions or [])
        if images is not None and captions is not None and len(captions) != n:
            raise InputError(f"{n} images have captions for {len(captions)}", remedy="Give each image its own list.")
        if any(isinstance(texts, str) for texts in captions or []):
            raise InputError("captions are a list of texts for each sample, not one text")
        return (
            images if images is not None and self.reads_images else [None] * n,
            captions if captions is not None and self.reads_text else [[]] * n,
        )


class TeacherPredictor(Predictor):
    """A VisualBERT teacher, with the region extractor that it was trained with, built when the first picture comes."""

    def __init__(self, teacher: Teacher, device: str, weights: str | None) -> None:
        self.teacher, self.info, self.device = teacher, teacher.info, device
        self.reads_images, self.reads_text = teacher.uses_regions, "text" in teacher.info.modalities
        self._weights = weights
        if self.reads_images:
            self.min_side = architecture(trained_identity(self.info).name).min_side
        elif weights is not None:
            raise InputError(
                "was trained on captions alone, and would not use --weights",
                path=self.info.folder,
                remedy="Leave them out.",
            )

    @property
    def notes(self) -> list[str]:
        if self.reads_images and trained_identity(self.info).is_random:
            return ["The region extractor has random weights: what the model says of an image is for trials only."]
        return []

    @cached_property
    def extractor(self) -> RegionExtractor:
        identity, weights = find_extractor(self.info, self._weights)
        return RegionExtractor(identity.name, weights, identity.count, device=self.device)

    def _known(self, captions: Captions) -> Captions:
        return self.teacher.known_captions(captions)

    def _predict(self, images: Pictures, captions: Captions, batch_size: int) -> np.ndarray:
        seen = [i for i, image in enumerate(images) if image is not None]
        if not seen:
            return self.teacher.predict(captions, batch_size=batch_size)
        singles: list[Regions | None] = [None] * len(images)
        for start in range(0, len(seen), batch_size):
            chosen = seen[start : start + batch_size]
            batch = self.extractor([image for i in chosen if (image := images[i]) is not None])
            for i, regions in zip(chosen, batch, strict=True):
                singles[i] = regions
        regions = Regions.stack(singles, self.extractor.count, self.extractor.dim)
        empty = np.flatnonzero(~self.teacher.usable(captions, regions.mask))
        if len(empty):
            raise InputError(f"the region extractor found nothing in image {empty[0]}, and it has no caption")
        return self.teacher.predict(captions, regions.features, regions.mask, batch_size=batch_size)


class StudentPredictor(Predictor):
    """A student: it reads pictures itself, at its own size."""

    def __init__(self, student: LoadedStudent) -> None:
        self.student, self.info = student, student.info
        self.reads_images, self.reads_text = (name in student.info.modalities for name in ("image", "text"))
        if self.reads_images:
            self.min_side = student.model.image_size

    def _known(self, captions: Captions) -> Captions:
        return self.student.known_captions(captions)

    def _predict(self, images: Pictures, captions: Captions, batch_size: int) -> np.ndarray:
        size = self.student.model.image_size
        parts = []
        for start in range(0, len(images), batch_size):  # no more resized pictures in memory than a pass needs
            some = images[start : start + batch_size]
            mask = np.array([image is not None for image in some])
            pixels = np.zeros((len(some), size, size, 3), np.uint8) if mask.any() else None
            for i, image in enumerate(some):
                if image is not None and pixels is not None:
                    pixels[i] = self.student.prepare(image)
            parts.append(
                self.student.predict(
                    captions[start : start + batch_size], pixels, mask if mask.any() else None, batch_size=batch_size
                )
            )
        return np.concatenate(parts)


def load(folder: storage.PathLike, *, device: str = "cpu", weights: str | Sequence[str] | None = None) -> Predictor:
    """The model in a checkpoint folder (local or an address), ready to predict on `device`.

    Args:
        weights: the weights file of the region extractor or the backbones, where the checkpoint names a file's digest;
            `NAME=FILE` for one of several backbones.

    Raises:
        InputError: no checkpoint is there, a file of it is damaged, or it is of an architecture nobody knows.
    """
    from raymotion.models.hub import refuse_hub_id

    refuse_hub_id(folder)
    _check_device(device)
    # Only this one value, not the whole of `read_checkpoint_info`: that hashes the weights, and the opener does too.
    path = storage.join(storage.absolute(folder), checkpoint.CONFIG)
    config = storage.read_json(path) if storage.exists(path) else None
    named = config.get("architecture") if isinstance(config, dict) else None
    files = [weights] if isinstance(weights, str) else list(weights or ())
    if named in FUSIONS:
        from raymotion.pipeline.fusion_predictor import FusionPredictor

        return FusionPredictor(checkpoint.load_any_fusion(folder, device=device), device, files)
    if named in LOADERS:
        if len(files) > 1:
            raise InputError("has one weights file, and --weights is given twice", path=folder, remedy="Name one.")
        return LOADERS[named](folder, device, files[0] if files else None)
    checkpoint.read_checkpoint_info(folder)  # says what is wrong with it, if anything is
    raise InputError(
        f"is a {named}, which cannot predict by itself",
        path=folder,
        remedy=f"Give one of {', '.join([*LOADERS, *FUSIONS])}.",
    )


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"there is no device {device!r}", remedy="Give cpu or cuda.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU is in reach of PyTorch", remedy="Leave --device out, or give cpu.")


def _load_teacher(folder: storage.PathLike, device: str, weights: str | None) -> Predictor:
    return TeacherPredictor(checkpoint.load_teacher(folder, device=device), device, weights)


def _load_student(folder: storage.PathLike, device: str, weights: str | None) -> Predictor:
    if weights is not None:
        raise InputError(
            "is a student: it reads pictures itself, and would not use --weights", path=folder, remedy="Leave them out."
        )
    return StudentPredictor(checkpoint.load_student(folder, device=device))


Opener = Callable[[storage.PathLike, str, "str | None"], Predictor]

# architecture -> how it is opened. A new kind of checkpoint adds a line here.
LOADERS: dict[str, Opener] = {"visualbert-teacher": _load_teacher, "student": _load_student}


def trained_identity(info: CheckpointInfo) -> ExtractorIdentity:
    """The region extractor that a checkpoint was trained with."""
    if info.extractor is None:
        raise InputError("was trained on regions, but does not say whose", path=info.folder)
    return ExtractorIdentity.from_dict(info.extractor, where=info.folder)


def find_extractor(
    info: CheckpointInfo, weights: str | None, *, remedy: str = "Name that file as --weights."
) -> tuple[ExtractorIdentity, str]:
    """The region extractor that a checkpoint was trained with, and where its weights are.

    Args:
        weights: what the user named (see `regions.identify`); None: what the checkpoint itself says, which is enough
            for published and random weights, not for a file.
        remedy: what to do where that is not enough.

    Raises:
        InputError: the weights come from a file and none is named, or `weights` are others.
    """
    trained = trained_identity(info)
    source = trained.weights
    if weights is None:
        if source.startswith("random:"):
            weights = source
        # Visual Genome's detector is named by the digest of its file wherever that came from: most likely it is the
        # published one, and the comparison below tells if not.
        elif source.startswith("torchvision:") or architecture(trained.name).is_published_as_file:
            weights = "default"
        else:
            raise InputError(
                f"was trained on regions of {trained.name} with weights from a file ({source[:19]}...)",
                path=info.folder,
                remedy=remedy,
            )
    offered = identify(trained.name, weights, trained.count)
    if offered != trained:
        raise InputError(
            f"--weights {weights} are {offered.weights}, the model was trained with {trained.weights}",
            remedy="Use the weights that its features came from.",
        )
    return trained, locate(weights)


def read_picture(
    image: str | os.PathLike[str] | np.ndarray | Image,
    min_side: int | None = None,
    *,
    on_kept: Callable[[Exception], None] | None = None,
) -> np.ndarray:
    """Upright RGB pixels, uint8 (height, width, 3), of a file, an address, a Pillow picture or an array.

    Args:
        on_kept: if given, a damaged file that decodes is read as it decodes, and this is called with what is wrong.

    Raises:
        InputError: it is missing, damaged, or no picture.
        RunFailed: the store that it is in does not answer.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(os.fspath(image), min_side, on_kept)
    value: Any = image
    if not isinstance(value, np.ndarray):
        try:
            return pictures.upright_rgb(value)
        except (AttributeError, TypeError) as error:
            raise InputError(f"a {type(value).__name__} is no picture", remedy="Give a path or an array.") from error
        except (OSError, SyntaxError) as error:  # Pillow reads the pixels only now
            raise InputError(f"the picture is damaged ({error})") from error
    if value.ndim == 2:
        value = np.repeat(value[:, :, None], 3, axis=2)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or min(value.shape[:2]) < pictures.MIN_SIDE:
        raise InputError(
            f"an array of {value.dtype} and shape {value.shape} is no picture",
            remedy="Give uint8 of shape (height, width, 3), RGB.",
        )
    return np.array(value)  # a copy: PyTorch warns of arrays that may not be written to


def _read_file(path: str, min_side: int | None, on_kept: Callable[[Exception], None] | None) -> np.ndarray:
    try:
        policy: DamagedPolicy = "quarantine" if on_kept is None else "keep"
        where = storage.absolute(path)
        return pictures.read_picture(where, min_side=min_side, damaged=policy, on_kept=on_kept)[1]
    except pictures.ImageUnreachable as error:
        raise RunFailed(str(error)) from error
    except pictures.ImageMissing as error:
        raise InputError(str(error), remedy="Check the path.") from error
    except pictures.ImageError as error:
        spoilt = isinstance(error, pictures.ImageDamaged | pictures.ImageTruncated)
        remedy = "Fetch it again; --damaged keep reads what can be decoded." if spoilt and on_kept is None else None
        raise InputError(f"is not a readable picture ({error})", path=path, remedy=remedy) from error
