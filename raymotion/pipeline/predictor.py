"""Predictions in plain Python, without Ray.

    import raymotion
    model = raymotion.load("teacher/")
    model.label("photo.jpg", caption="A man laughs.")   # {"happy": 0.71, "joy": 0.42, ...}
    model.predict("photos/")                            # a DataFrame, one row for each picture of the folder
    model.predict(frame)                                # the same, for a DataFrame with a column of paths

`Predictor` serves all kinds of models and runs the stages of the labelling job in this process. Inputs that a model was
not trained on are ignored; `Predictor.not_read` reports them.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from raymotion import storage
from raymotion.data.captions import readable
from raymotion.data.images import decode as pictures
from raymotion.data.images.damage import DamagedPolicy
from raymotion.data.images.files import EXTENSIONS, list_pictures
from raymotion.data.readers.table import CAPTION_NAMES, IMAGE_NAMES
from raymotion.data.samples import read_samples
from raymotion.errors import InputError, NotFinite, RunFailed, located
from raymotion.models.checkpoint import CheckpointInfo, Model
from raymotion.models.ensemble import load_models
from raymotion.models.inputs.base import Input
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.streams import BOXED, PersonInput
from raymotion.models.outputs.base import Output
from raymotion.models.outputs.embedding import Embedding
from raymotion.pipeline.plan import Options, make_plan
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import DecodeImages, Item, Stage
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from PIL.Image import Image

CaptionLists: TypeAlias = Sequence[Sequence[str]]
Pictures: TypeAlias = Sequence["str | os.PathLike[str] | np.ndarray | Image | None"]
# Samples predicted together where captions are averaged.
TOGETHER = 64
# Boxes of one picture: "body" and "face" -> (x1, y1, x2, y2) in pixels of the whole, upright picture.
Boxes: TypeAlias = Mapping[str, Sequence[float]]


class Predictor:
    """A trained model of any kind.

    Attributes:
        damaged: treatment by `label` of pictures that decode incorrectly; see `decode.decode_rgb`.
        damage: damage in the last picture of `label`, if it was kept.
        numbers: valence, arousal, dominance from the last call of `label`, if the model predicts them besides labels.
    """

    def __init__(self, model: Model, *, device: str = "cpu", weights: Sequence[str] = ()) -> None:
        self.model, self.device = model, device
        self.damaged: DamagedPolicy = "quarantine"
        self.damage: str | None = None
        self.numbers: dict[str, float] | None = None
        self._used: list[Input] = [own for own in model.inputs if own.used]
        self._options = Options(weights=tuple(weights))
        # Stages with and without pictures; extractor and backbones are loaded for the first picture.
        self._built: dict[bool, list[Stage]] = {}
        make_plan(model.info, self._options, pictures=False)  # rejects options that the model does not use
        self._boxes_seen: Boxes | None = None

    def __repr__(self) -> str:
        labels = self.info.labels
        others = "vectors" if self._main.gives == "vectors" else "numbers"
        says = f"{len(self.vocabulary)} emotions ({self.vocabulary.name})" if labels is not None else others
        reads = ", ".join(self.reads)
        return f"<raymotion {self.info.kind.name} of {self.info.folder}: {reads} -> {says}, on {self.device}>"

    @property
    def info(self) -> CheckpointInfo:
        """Description of the checkpoint."""
        return self.model.info

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the labels; raises an `InputError` if the model has none."""
        return self.info.vocabulary

    @property
    def reads(self) -> tuple[str, ...]:
        """The inputs that it was trained on: captions, regions, picture, or the streams of a person."""
        return self.info.reads

    @property
    def reads_images(self) -> bool:
        """Whether it was trained on pictures, or on features of them."""
        return any(own.looks_at != "none" for own in self._used)

    @property
    def reads_text(self) -> bool:
        """Whether it was trained on captions."""
        return any(isinstance(own, Captions) for own in self._used)

    @property
    def min_side(self) -> int | None:
        """The shorter side in pixels that it resizes pictures to; larger JPEGs may be decoded at a reduced size.

        None if it needs the full picture, or none.
        """
        looking = [own for own in self._used if own.looks_at != "none"]
        sides = [own.min_side for own in looking if own.looks_at == "some" and own.min_side is not None]
        return max(sides) if sides and len(sides) == len(looking) else None

    @property
    def notes(self) -> list[str]:
        """Notes for readers of the predictions, about the model and the last call of `label`."""
        notes = [notice for own in self._used for notice in own.notices()]
        if self._boxes_seen is not None:
            for person in (own for own in self._used if isinstance(own, PersonInput)):
                streams = [own.stream for own in person.kept]
                masked = [name for name in streams if name in BOXED and name not in self._boxes_seen]
                left = ["whole picture" if name not in BOXED else name for name in streams if name not in masked]
                if masked:
                    notes.append(
                        f"No box of the {' and the '.join(masked)} was given: the model looked at the "
                        f"{' and the '.join(left)} alone."
                    )
        for name in dict.fromkeys(name for own in self.model.outputs for name in own.columns_read):
            notes.append(
                f"The model was calibrated by {name}: a sample without one, such as a single picture, gets the "
                "temperature of all."
            )
        return notes

    def usable(self, images: Pictures | None, captions: CaptionLists | None) -> np.ndarray:
        """Returns bool (n,): which samples have any input of the model."""
        own_images, own_captions = self._own(images, captions)
        looking = [own for own in self._used if own.looks_at != "none"]
        by_itself = any(not isinstance(own, PersonInput) or "context" in own.part_names for own in looking)
        there = np.array([image is not None and by_itself for image in own_images], dtype=bool)
        for own in self._used:
            if isinstance(own, Captions):
                there |= np.array([bool(texts) for texts in own.known(own_captions)], dtype=bool)
        return there

    def predict(
        self,
        samples: Pictures | str | os.PathLike[str] | pd.DataFrame | pa.Table | None,
        captions: CaptionLists | None = None,
        *,
        boxes: Sequence[Boxes | None] | None = None,
        batch_size: int = 16,
        progress: bool | None = None,
    ) -> Any:
        """Predicts many samples.

        Args:
            samples: a list of n pictures, each a path or an address, a Pillow picture, uint8 (height, width, 3) upright
                RGB, or None (or None for no pictures at all); a folder of pictures; a sample table (a .parquet); or a
                pandas DataFrame or Arrow table with a column of pictures (image_uri, path, file_name ...) and the other
                columns of a sample table that the model reads (captions, body_box, face_box, valence ...).
            captions: for a list of pictures, the captions of each, possibly none. Predictions of several captions are
                averaged.
            boxes: for a list of pictures, the boxes of each person, or None.
            batch_size: number of pictures per batch.
            progress: whether to show a bar. None: on a terminal and in a notebook.

        Returns:
            For a list of pictures, float32 (n, L) probabilities in vocabulary order, or the values of the first output
            of a model without a vocabulary. For a folder or table, a pandas DataFrame in the same order: sample_id,
            image_uri, a column for each label and each number (`p_NAME` if another column has its name) and for the
            vectors of each side (`image_embedding`; None where there is none), and `failure`, the reason for a missing
            prediction. The names of the labels are its `attrs["labels"]`.

        Raises:
            InputError: for a list, a sample has no input of the model (see `usable`) or cannot be processed; for a
                table, no column of the model's inputs is known by its name.
            NotFinite: the model returns NaN or infinity.
        """
        if isinstance(samples, str | os.PathLike):
            if not storage.is_dir(samples):
                return self.predict(read_samples(samples), captions, batch_size=batch_size, progress=progress)
            content = list_pictures(samples)
            if not content.pictures:
                raise InputError(f"holds no pictures ({', '.join(EXTENSIONS)})", path=samples, remedy="Check the path.")
            listed = [content.address(name) for name in content.pictures]
            items = [Item(_row(i, uri=path)) for i, path in enumerate(listed)]
            return self._framed(items, batch_size, progress)
        if hasattr(samples, "columns"):
            if captions is not None or boxes is not None:
                raise InputError(
                    "captions and boxes of a table are columns of it", remedy="Call them captions, body_box, face_box."
                )
            return self._framed(self._items_of(samples), batch_size, progress)
        if _is_one_picture(samples):
            raise InputError("one picture was given, not a list", remedy="Give [picture], or use `label`.")
        own_images, own_captions = self._own(samples, captions)
        if boxes is not None and len(boxes) != len(own_images):
            raise InputError(f"{len(own_images)} images have boxes for {len(boxes)}")
        items = []
        for i, (image, texts) in enumerate(zip(own_images, own_captions, strict=True)):
            own_boxes, is_file = None if boxes is None else boxes[i], isinstance(image, str | os.PathLike)
            uri = storage.absolute(cast(Any, image)) if is_file else None
            pixels = None if image is None or is_file else self._read(cast(Any, image))
            items.append(Item(_row(i, texts, own_boxes, uri=uri), pixels=pixels))
        first = self._main
        if not items:
            return np.zeros((0, first.width), np.float32)
        for i, item in enumerate(items):
            self._check_boxes(i, item)
        self._run(items, batch_size, progress)
        self._raise_first_failure(items)
        return np.stack([item.output[first.name] for item in items])

    def label(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image | None = None,
        caption: str | Sequence[str] | None = None,
        *,
        boxes: Boxes | None = None,
        values: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Predicts the probability of each emotion for one picture, its caption or captions, or both.

        Args:
            image: path, address (s3://...), Pillow picture, or uint8 array (height, width, 3) in RGB.
            boxes: boxes of the person's `body` and `face`, for models of persons: (x1, y1, x2, y2) in pixels. A stream
                without its box is masked.
            values: numbers of the sample table that the model reads, by column.

        Returns:
            Label -> probability in descending order; for a model without a vocabulary its numbers by name; for one of
            vectors the `similarity` of a picture and its captions, if both are given (`embed` returns the vectors).

        Raises:
            InputError: the picture cannot be read, or no input of the model is given.
        """
        item = self._run_one(image, [caption] if isinstance(caption, str) else list(caption or []), boxes, values)
        main = self._main
        others = [own for own in self.model.outputs if own is not main]
        found = {name: value for own in others for name, value in own.named(item.output[own.name]).items()}
        self.numbers = found or None
        return main.named(item.output[main.name])

    def _run_one(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image | None,
        captions: Sequence[str],
        boxes: Boxes | None = None,
        values: Mapping[str, float] | None = None,
    ) -> Item:
        """Predicts one sample; see `label` for errors."""
        persons = any(isinstance(own, PersonInput) for own in self._used)
        if boxes and not persons:
            raise InputError("this model looks at no boxes", path=self.info.folder, remedy="Leave them out.")
        # A given file must be a picture, even if the model does not use it.
        pixels = None if image is None else self._read(image)
        item = Item(
            _row(0, captions if self.reads_text else [], boxes, values),
            pixels=pixels if self.reads_images else None,
        )
        self._check_boxes(0, item)
        self._boxes_seen = dict(boxes or {}) if persons else None
        self._run([item], 1, False)
        if item.failure is not None and item.failure.reason == "no_input":
            if self.reads_text and readable(captions):
                raise InputError("no caption has a word that this model knows", path=self.info.folder)
            if image is not None and self.reads_images and not persons:
                raise InputError("the region extractor found nothing in the image", path=self.info.folder)
            raise InputError(f"this model reads {self._needs}, and none was given", path=self.info.folder)
        self._raise_first_failure([item])
        return item

    def embed(
        self,
        image: str | os.PathLike[str] | np.ndarray | Image | None = None,
        caption: str | Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the vectors of a picture, of its caption or captions, or of both, for a model that gives vectors.

        Args:
            image, caption: see `label`.

        Returns:
            side (`image`, `text`) -> unit vector (D,) float32, of the sides that are given.

        Raises:
            InputError: as `label`; the model gives no vectors, or reads nothing of what is given.
        """
        output = next((own for own in self.model.outputs if isinstance(own, Embedding)), None)
        if output is None:
            raise InputError(
                f"is a {self.info.kind.name} and gives no vectors", path=self.info.folder,
                remedy="Name a model of pictures and captions in one space.",
            )  # fmt: skip
        captions = [caption] if isinstance(caption, str) else list(caption or [])
        for given, read, what in (
            (bool(captions), self.reads_text, "captions"),
            (image is not None, self.reads_images, "pictures"),
        ):
            if given and not read:
                raise InputError(f"reads no {what}", path=self.info.folder)
        item = self._run_one(image, captions)
        sides = zip(output.sides, output.split(item.output[output.name][None]), strict=True)
        return {side: own[0] for side, own in sides if own.any()}

    def not_read(self, *, image: bool, caption: bool) -> list[str]:
        """Returns sentences about given inputs that are ignored because the model was not trained on them."""
        result = []
        if image and not self.reads_images:
            result.append("No image was read: this model was trained on captions alone.")
        if caption and not self.reads_text:
            result.append("No caption was read: this model was trained on images alone.")
        return result

    @property
    def _main(self) -> Output:
        return self.info.labels or self.model.outputs[0]

    @property
    def _needs(self) -> str:
        return " or ".join(own.noun if isinstance(own, PersonInput) else own.plural for own in self._used)

    def _own(self, images: Any, captions: CaptionLists | None) -> tuple[Pictures, CaptionLists]:
        """Returns images and captions for n samples, without inputs that the model does not read."""
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

    def _items_of(self, table: Any) -> list[Item]:
        names = {str(name) for name in getattr(table, "column_names", None) or table.columns}
        wanted = {name for own in self._used for name in own.columns}
        wanted |= {_column(names, IMAGE_NAMES)} if self.reads_images else set()
        wanted |= {_column(names, CAPTION_NAMES)} if self.reads_text else set()
        if names and not wanted & names:
            usual = ["image_uri"] * self.reads_images + ["captions"] * self.reads_text
            raise InputError(
                f"the table has no column of {self._needs} that is known by its name",
                remedy=f"Call it {' or '.join(usual)}; its columns are {', '.join(sorted(names))}.",
            )
        items = []
        for row in named_rows(table):
            picture = row["image_uri"]
            in_memory = picture is not None and not isinstance(picture, str)
            with located("the table", row=row["sample_id"]):
                pixels = self._read(picture) if in_memory and self.reads_images else None
            items.append(Item({**row, "image_uri": None if in_memory else picture}, pixels=pixels))
        return items

    def _check_boxes(self, number: int, item: Item) -> None:
        from raymotion.data.views.streams import crop

        if item.pixels is None:
            return
        for own in (one for one in self._used if isinstance(one, PersonInput)):
            for stream in own.kept:
                box = item.row.get(f"{stream.stream}_box")
                if box is not None and crop(item.pixels, box) is None:
                    raise InputError(
                        f"the {stream.stream} box of sample {number} lies outside of the picture of "
                        f"{item.pixels.shape[1]} x {item.pixels.shape[0]} pixels",
                        remedy="Give x1, y1, x2, y2 in its pixels.",
                    )

    def _stages(self, pictures: bool) -> list[Stage]:
        """Returns the stages of the labelling job, set up once with the loaded model."""
        if pictures not in self._built:
            import torch

            built = list(make_plan(self.info, self._options, pictures=pictures).make_stages("float32"))
            for stage in built:
                if isinstance(stage, Predict):
                    stage.use(self.model)
                else:
                    stage.setup(torch.get_num_threads(), self.device)
            self._built[pictures] = built
        return self._built[pictures]

    def _run(self, items: Sequence[Item], batch_size: int, progress: bool | None) -> None:
        pictures = any(item.pixels is not None or item.row["image_uri"] is not None for item in items)
        *before, last = self._stages(pictures)
        assert isinstance(last, Predict)
        last.batch_size = batch_size
        # With averaged captions, many samples together fill the batches better.
        size = max(batch_size, TOGETHER) if last.whole_shard else batch_size
        if progress is None:
            progress = len(items) > batch_size and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        with _bar(len(items), progress) as bar:
            for part in _grouped(items, size):
                for group in _grouped(part, batch_size):
                    for stage in before:
                        if isinstance(stage, DecodeImages):
                            live = [item for item in group if item.pixels is None and item.row["image_uri"] is not None]
                        else:
                            live = [item for item in group if item.failure is None]
                        if live:
                            stage.process(live)
                    if last.whole_shard:  # has features by now
                        _release(group)
                live = [item for item in part if item.failure is None]
                if live:
                    last.process(live)
                _release(part)
                bar.update(len(part))

    def _framed(self, items: list[Item], batch_size: int, progress: bool | None) -> pd.DataFrame:
        import pandas as pd

        self._run(items, batch_size, progress)
        columns: dict[str, list[Any]] = {
            name: [item.row[name] for item in items] for name in ("sample_id", "image_uri")
        }
        taken = {*columns, "failure"}
        labels: list[str] = []
        for own in self.model.outputs:
            if own.gives == "vectors":
                columns |= self._vector_columns(own, items)
                continue
            names = list(own.vocabulary.labels) if own.vocabulary is not None else list(own.named(np.zeros(own.width)))
            shown = [f"p_{name}" if name in taken else name for name in names]
            labels += shown if own.vocabulary is not None else []
            for j, name in enumerate(shown):
                columns[name] = [
                    float(item.output[own.name][j]) if item.failure is None else float("nan") for item in items
                ]
        columns["failure"] = [None if item.failure is None else item.failure.message for item in items]
        frame = pd.DataFrame(columns)
        frame.attrs["labels"] = labels
        return frame

    @staticmethod
    def _vector_columns(output: Output, items: Sequence[Item]) -> dict[str, list[Any]]:
        """Returns the columns of vectors, each an array (D,), or None where a sample has none."""
        nothing = np.zeros(output.width, np.float32)
        values = [item.output[output.name] if item.failure is None else nothing for item in items]
        found = output.columns(np.array(values, np.float32).reshape(len(items), output.width))
        return {
            name: [None if one is None else np.array(one, np.float32) for one in column.to_pylist()]
            for name, column in found.items()
        }

    def _raise_first_failure(self, items: Sequence[Item]) -> None:
        failed = [(i, item.failure) for i, item in enumerate(items) if item.failure is not None]
        if not failed:
            return
        place, failure = failed[0]
        assert failure is not None
        if failure.error == "NotFinite":
            raise NotFinite(
                f"{self.info.folder}: the model answers sample {place} with NaN or infinity"
                + (f" (and {len(failed) - 1} more of {len(items)})" if len(failed) > 1 else "")
                + ". It cannot label these: train it again, or give it other inputs"
            )
        if failure.reason == "no_input":
            raise InputError(
                f"this model reads {self._needs}, and sample {place} has none"
                + (f" (nor have {len(failed) - 1} more)" if len(failed) > 1 else ""),
                path=self.info.folder,
            )
        raise InputError(f"sample {place}: {failure.message}", path=self.info.folder)

    def _read(self, image: str | os.PathLike[str] | np.ndarray | Image) -> np.ndarray:
        def keep(error: Exception) -> None:
            self.damage = str(error)

        self.damage = None
        return read_picture(image, self.min_side, on_kept=keep if self.damaged == "keep" else None)


def _grouped(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _release(items: Sequence[Item]) -> None:
    for item in items:
        if item.row["image_uri"] is not None:  # decoded here; those of a long list would fill the memory
            item.pixels = None


def _bar(total: int, shown: bool) -> Any:
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # without ipywidgets the bar is text
        from tqdm.auto import tqdm

        return tqdm(total=total, disable=not shown, unit=" samples")


def named_rows(samples: Any, captions: CaptionLists | None = None) -> list[dict[str, Any]]:
    """Returns samples as rows of a sample table, without the columns that are missing.

    Args:
        samples: a DataFrame or Arrow table, whose columns of pictures and captions are found by their usual names, or
            a list of pictures, or one. Paths become absolute addresses; pictures in memory stay as they are, as
            `image_uri`.
        captions: for a list, the captions of each picture.

    Raises:
        InputError: the captions do not fit the pictures, or captions of a table are given apart.
    """
    if hasattr(samples, "columns"):
        if captions is not None:
            raise InputError("captions of a table are a column of it", remedy="Call the column captions.")
        given = samples.to_pylist() if hasattr(samples, "to_pylist") else samples.to_dict("records")
    else:
        one = _is_one_picture(samples) or isinstance(samples, str | os.PathLike)
        if not one and (isinstance(samples, Mapping) or not isinstance(samples, Iterable)):
            raise InputError(
                f"a {type(samples).__name__} is no list of pictures", remedy="Give paths, pictures, or a DataFrame."
            )
        pictures = [samples] if one else list(samples)
        texts: CaptionLists = [()] * len(pictures) if captions is None else captions
        if len(texts) != len(pictures):
            raise InputError(f"{len(pictures)} images have captions for {len(texts)}")
        ids = [os.fspath(own) if isinstance(own, str | os.PathLike) else str(i) for i, own in enumerate(pictures)]
        given = [
            {"sample_id": ids[i], "image_uri": own, "captions": texts[i]} for i, own in enumerate(pictures)
        ]  # fmt: skip
    names = [str(name) for name in (given[0] if given else ())]
    image, text = _column(names, IMAGE_NAMES), _column(names, CAPTION_NAMES)
    rows = []
    for number, cells in enumerate(given):
        own = {str(name): value for name, value in cells.items() if not _is_missing(value)}
        picture, said = own.get(image), own.get(text, [])
        if isinstance(picture, str | os.PathLike):
            picture = storage.absolute(picture)
        own |= {
            "sample_id": str(own.get("sample_id", number)),
            "image_uri": picture,
            "captions": [said] if isinstance(said, str) else list(said),
        }
        rows.append({**_row(number), **own})
    return rows


def _column(names: Iterable[str], usual: Sequence[str]) -> str:
    """Returns the column that is known by its name, else an empty string."""
    folded = {name.strip().casefold(): name for name in names}
    return next((folded[name] for name in usual if name in folded), "")


def _row(
    number: int,
    captions: Sequence[str] = (),
    boxes: Boxes | None = None,
    values: Mapping[str, float] | None = None,
    *,
    uri: str | None = None,
) -> dict[str, Any]:
    unknown = sorted(set(boxes or {}) - set(BOXED))
    if unknown:
        raise InputError(f"there is no box called {unknown[0]!r}", remedy=f"Give {' and '.join(BOXED)}.")
    return {
        "sample_id": str(number), "group_id": str(number), "image_uri": uri, "captions": list(captions),
        "split": None, **{f"{name}_box": (boxes or {}).get(name) for name in BOXED}, **(values or {}),
    }  # fmt: skip


def _is_missing(value: Any) -> bool:
    """Whether `value` is None, NaN, NaT or NA; no array and no list is."""
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _is_one_picture(samples: Any) -> bool:
    return hasattr(samples, "getbbox") or (isinstance(samples, np.ndarray) and samples.ndim in (2, 3))


def load(
    model: storage.PathLike | Sequence[storage.PathLike],
    *,
    device: str = "cpu",
    weights: str | Sequence[str] | None = None,
) -> Predictor:
    """Loads the model in a checkpoint folder (local or an address) for predictions on `device`.

    Args:
        model: the folder; several: the predictions of the models are averaged.
        weights: weights file of the region extractor or the backbones, if the checkpoint refers to a file by digest;
            `NAME=FILE` for one of several backbones.

    Raises:
        InputError: the checkpoint is missing, damaged, or of an unknown kind.
    """
    from raymotion.models.hub import refuse_hub_id

    folders = [model] if isinstance(model, str | os.PathLike) else list(model)
    if not folders:
        raise InputError("no model is named", remedy="Give the folder of a checkpoint, or a list of them.")
    for folder in folders:
        refuse_hub_id(folder)
    _check_device(device)
    files = [weights] if isinstance(weights, str) else list(weights or ())
    return Predictor(load_models(folders, device), device=device, weights=files)


def label_here(
    samples: Any,
    model: Predictor,
    *,
    captions: CaptionLists | None = None,
    batch_size: int = 16,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Labels many pictures in this process, into a DataFrame; see `raymotion.label`, which calls it."""
    is_path = isinstance(samples, str | os.PathLike)
    if hasattr(samples, "columns") or (is_path and storage.suffix(samples) not in EXTENSIONS):
        return model.predict(samples, captions, batch_size=batch_size, progress=progress)
    import pandas as pd

    rows = named_rows(samples, captions)
    columns = {
        name: pd.Series([row[name] for row in rows], dtype=object) for name in ("sample_id", "image_uri", "captions")
    }
    return model.predict(pd.DataFrame(columns), batch_size=batch_size, progress=progress)


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"there is no device {device!r}", remedy="Give cpu or cuda.") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("no GPU is in reach of PyTorch", remedy="Leave --device out, or give cpu.")


def read_picture(
    image: str | os.PathLike[str] | np.ndarray | Image,
    min_side: int | None = None,
    *,
    on_kept: Callable[[Exception], None] | None = None,
) -> np.ndarray:
    """Reads upright RGB pixels, uint8 (height, width, 3), from a file, an address, a Pillow picture or an array.

    Args:
        on_kept: if given, a damaged file is accepted as it decodes, and this is called with the error.

    Raises:
        InputError: the picture is missing, damaged, or not a picture.
        RunFailed: the store does not answer.
    """
    if isinstance(image, str | os.PathLike):
        return _read_file(os.fspath(image), min_side, on_kept)
    value: Any = image
    if not isinstance(value, np.ndarray):
        try:
            return pictures.upright_rgb(value)
        except (AttributeError, TypeError) as error:
            raise InputError(f"a {type(value).__name__} is not a picture", remedy="Give a path or an array.") from error
        except (OSError, SyntaxError) as error:  # Pillow reads pixels lazily
            raise InputError(f"the picture is damaged ({error})") from error
    if value.ndim == 2:
        value = np.repeat(value[:, :, None], 3, axis=2)
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or min(value.shape[:2]) < pictures.MIN_SIDE:
        raise InputError(
            f"an array of {value.dtype} and shape {value.shape} is not a picture",
            remedy="Give uint8 of shape (height, width, 3), RGB.",
        )
    return np.array(value)  # copied, because PyTorch warns about read-only arrays


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
