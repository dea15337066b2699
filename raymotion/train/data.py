"""Samples as the arrays that the training loop reads.

Captions, ids, addresses and targets are small (100,000 samples are some ten MB): the driver makes them once and every
worker reads them from one file. Region features stay where they are, behind a memory map; pictures stay where they are
and are decoded as they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors.numpy import save

from raymotion import records, storage
from raymotion.config import digest_of, load_settings
from raymotion.data.captions import is_readable, readable
from raymotion.data.features import RegionFeatures
from raymotion.data.images.marks import Picture, fingerprints
from raymotion.data.samples import SPLITS, require_allowed_images, targets
from raymotion.errors import InputError
from raymotion.models.text.tokenizer import encode, known_captions, load_tokenizer, tokenizer_json, train_tokenizer
from raymotion.train.recipe import CaptionRecipe, StudentRecipe, TeacherRecipe
from raymotion.train.source import SPLIT_AGAIN, pseudo_labelled, require_positives, sample_table, source_of
from raymotion.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from raymotion.models.visualbert.network import TeacherConfig

# Imports neither torch nor transformers: Ray Train's controller imports this too, and need not wait for them.
ARRAYS, META, TOKENIZER = "arrays.safetensors", "data.json", "tokenizer.json"
AGAIN = "Run the same command again: it prepares the data again."
COLUMNS = ("pieces", "ends", "owners", "has_caption", "hard", "soft")


@dataclass
class TrainingData:
    """Samples that a model can learn from.

    Attributes:
        sample_ids: n ids.
        splits: train, val and test -> positions of their samples.
        pieces, ends: token ids of all captions in a row, and where each caption ends.
        owners: the sample of each caption; ascending. A sample without one has the empty caption.
        hard, soft: targets (n, L); `soft` are shares of annotators where the table has them, and the teacher's
            probabilities for pseudo-labels.
        image_uris: n addresses or None; empty for a model that reads no pictures.
        counts: rows of the table, and why some were left out.
    """

    sample_ids: list[str]
    splits: dict[str, np.ndarray]
    pieces: np.ndarray
    ends: np.ndarray
    owners: np.ndarray
    has_caption: np.ndarray
    hard: np.ndarray
    soft: np.ndarray
    vocabulary: Vocabulary
    tokenizer: PreTrainedTokenizerFast
    features_folder: str | None
    counts: dict[str, int]
    name: str = ""
    fingerprint: str = ""
    features: RegionFeatures | None = field(default=None, repr=False)
    image_uris: list[str | None] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        starts = np.concatenate(([0], self.ends[:-1])) if len(self.ends) else self.ends
        self.tokens: list[np.ndarray] = [self.pieces[a:b] for a, b in zip(starts, self.ends, strict=True)]
        self.first = np.searchsorted(self.owners, np.arange(len(self.sample_ids) + 1))
        if self.features_folder and self.features is None:
            self.features = RegionFeatures(self.features_folder)

    @property
    def modalities(self) -> list[str]:
        return [
            *(["text"] if self.has_caption[self.splits["train"]].any() else []),
            *(["regions"] if self.features is not None else []),
            *(["image"] if any(self.image_uris[row] for row in self.splits["train"] if self.image_uris) else []),
        ]

    @property
    def addresses(self) -> list[str | None]:
        """What a picture of each row is read by."""
        return self.image_uris

    def prior(self, *, soft: bool) -> np.ndarray:
        """Class rates of the training split, float32 (L,)."""
        return np.asarray((self.soft if soft else self.hard)[self.splits["train"]].mean(axis=0), dtype=np.float32)

    def captions_of(self, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """All captions of the given samples, and for each the position of its sample within `rows`."""
        chosen = [
            (position, i) for position, row in enumerate(rows) for i in range(self.first[row], self.first[row + 1])
        ]
        return [self.tokens[i] for _, i in chosen], np.array([position for position, _ in chosen], dtype=np.int64)

    def regions_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        if self.features is None:
            return None, None
        return self.features.get([self.sample_ids[row] for row in rows])

    def save(self, folder: str) -> None:
        """Writes what workers need; `load` reads it."""
        arrays = {name: getattr(self, name) for name in COLUMNS}
        arrays |= {f"split_{name}": rows for name, rows in self.splits.items()}
        data, tokenizer = save(arrays), tokenizer_json(self.tokenizer)
        storage.write_bytes(storage.join(folder, ARRAYS), data)
        storage.write_text(storage.join(folder, TOKENIZER), tokenizer)
        meta = {
            "kind": "captions", "sample_ids": self.sample_ids, "vocabulary": self.vocabulary.to_dict(),
            "features": self.features_folder, "counts": self.counts,
            "name": self.name, "fingerprint": self.fingerprint, "images": self.image_uris,
            "files": {ARRAYS: sha256(data).hexdigest(), TOKENIZER: sha256(tokenizer.encode()).hexdigest()},
        }  # fmt: skip
        records.write_record(storage.join(folder, META), meta)

    @classmethod
    def load(cls, folder: str) -> TrainingData:
        meta, found = read_saved(folder)
        arrays: dict[str, Any] = found
        records.read_bytes(storage.join(folder, TOKENIZER), meta["files"][TOKENIZER], remedy=AGAIN)
        return cls(
            sample_ids=meta["sample_ids"],
            splits={name: arrays[f"split_{name}"] for name in SPLITS},
            **{name: arrays[name] for name in COLUMNS},
            vocabulary=Vocabulary.from_dict(meta["vocabulary"]),
            tokenizer=load_tokenizer(storage.join(folder, TOKENIZER)),
            features_folder=meta["features"],
            counts=meta["counts"],
            name=meta["name"],
            fingerprint=meta["fingerprint"],
            image_uris=meta["images"],
        )


def read_saved(folder: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """data.json and the arrays that a kind of data has left in `folder`.

    Raises:
        Damaged: they are not what was written.
    """
    meta = records.read_record(storage.join(folder, META), needs_seal=True, remedy=AGAIN)
    return meta, records.read_arrays(storage.join(folder, ARRAYS), meta["files"][ARRAYS], remedy=AGAIN)


def prepare(recipe: CaptionRecipe) -> TrainingData:
    """Reads, checks and tokenises what the recipe trains on.

    Raises:
        InputError: no labels, no splits, a group in two splits, features of other samples or pictures, pictures that
            are not those that were labelled.
    """
    longest = _max_text_length(recipe)
    reads_pictures = isinstance(recipe, StudentRecipe)
    if isinstance(recipe, StudentRecipe) and recipe.data.labels:
        path = storage.absolute(recipe.data.labels)
        table, soft, vocabulary = pseudo_labelled(path, recipe.data.val_fraction, recipe.seed)
    else:
        path = storage.absolute(recipe.data.samples)
        table, soft, vocabulary = sample_table(path)
    folder = recipe.data.features if isinstance(recipe, TeacherRecipe) else None
    features = RegionFeatures(folder) if folder else None

    counts = {"rows": table.num_rows}
    if features is not None and (by_name := features.require_made_from(table).by_name):
        counts["compared_by_name_alone"] = by_name
    for column, reason in (("labels", "without_labels"), ("split", "without_split")):
        known = pc.is_valid(table.column(column))
        counts[reason] = table.num_rows - pc.sum(known).as_py()
        table, soft = table.filter(known), soft[np.asarray(known)]

    captions = [readable(own) for own in table.column("captions").to_pylist()]
    split_column = np.array(table.column("split").to_pylist())
    # The training split alone: a word that only test captions have is unknown, as it will be to the labelling job.
    tokenizer = _tokenizer(recipe, [text for row in np.flatnonzero(split_column == "train") for text in captions[row]])
    # A caption without a known word is none: any two of them are the same to the model.
    known = known_captions(tokenizer, captions, longest)
    counts["captions_of_unknown_words"] = sum(map(len, captions)) - sum(map(len, known))
    captions = known
    has_caption = np.array([bool(own) for own in captions], dtype=bool)
    if reads_pictures:
        require_allowed_images(table)
    image_uris = table.column("image_uri").to_pylist() if reads_pictures else []
    other = np.zeros(len(captions), dtype=bool)  # what there is besides a caption
    if features is not None:
        other = np.array([sample_id in features for sample_id in table.column("sample_id").to_pylist()])
        if not other.any():
            raise InputError(
                "holds features of none of the samples", path=features.folder, remedy=f"Extract them from {path}."
            )
    if reads_pictures:
        other |= np.array([uri is not None for uri in image_uris], dtype=bool)
    keep = has_caption | other
    counts["without_caption_and_image"] = int((~keep).sum())
    table, has_caption, soft = table.filter(pa.array(keep)), has_caption[keep], soft[keep]
    captions = [own or [""] for own, kept in zip(captions, keep, strict=True) if kept]
    image_uris = [uri for uri, kept in zip(image_uris, keep, strict=True) if kept] if reads_pictures else []
    split_column = split_column[keep]
    splits = {name: np.flatnonzero(split_column == name) for name in SPLITS}
    for name in ("train", "val"):
        if not len(splits[name]):
            raise InputError(
                f"has no sample of the split {name} with labels and a caption"
                + (" or features" if features else " or an image" if reads_pictures else ""),
                path=path,
                remedy=SPLIT_AGAIN,
            )
    hard = targets(table, vocabulary)
    require_positives(hard, splits, path)
    tokens = encode(tokenizer, [text for own in captions for text in own], longest)
    sample_ids = table.column("sample_id").to_pylist()
    data = TrainingData(
        sample_ids=sample_ids,
        splits=splits,
        pieces=np.array([piece for sequence in tokens for piece in sequence], dtype=np.int32),
        ends=np.cumsum([len(sequence) for sequence in tokens]),
        owners=np.repeat(np.arange(len(captions)), [len(own) for own in captions]),
        has_caption=has_caption,
        hard=hard,
        soft=soft,
        vocabulary=vocabulary,
        tokenizer=tokenizer,
        features_folder=None if features is None else features.folder,
        counts=counts,
        name=path.rstrip("/").rsplit("/", 1)[-1],
        features=features,
        image_uris=image_uris,
    )
    # Of what is learned, not of the file: the same samples, written by another version of Parquet, are the same data.
    # Where pictures lie is not what they are: names, sizes and digests count.
    data.fingerprint = digest_of(
        [sample_ids, captions, split_column.tolist(), np.round(soft, 6).tolist(), vocabulary.fingerprint,
         None if features is None else features.digest,
         *([fingerprints([Picture(uri) for uri in image_uris]), digest_of(data.hard.astype(int).tolist())]
           if reads_pictures else [])]
    )  # fmt: skip
    return data


def _max_text_length(recipe: CaptionRecipe) -> int:
    """The recipe's model settings, checked before anything else is done; the most word pieces the model reads."""
    if isinstance(recipe, StudentRecipe) and recipe.transfer is not None:
        return int(source_of(recipe.transfer).config["max_text_length"])
    from raymotion.models.student.network import StudentConfig
    from raymotion.models.visualbert.network import TeacherConfig

    config: type[StudentConfig | TeacherConfig] = StudentConfig if isinstance(recipe, StudentRecipe) else TeacherConfig
    try:
        return load_settings(config, options=recipe.model).max_text_length
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1)) from error


def _tokenizer(recipe: CaptionRecipe, captions: Sequence[str]) -> PreTrainedTokenizerFast:
    if isinstance(recipe, StudentRecipe) and recipe.transfer is not None:
        return load_tokenizer(storage.join(recipe.transfer.source, TOKENIZER))
    if recipe.tokenizer.source != "train":
        return load_tokenizer(recipe.tokenizer.source)
    pretrained = recipe.pretrained_text()
    if pretrained is not None:
        if storage.is_dir(pretrained) and {"tokenizer.json", "vocab.txt"} & set(storage.list_names(pretrained)):
            return load_tokenizer(pretrained)
        raise InputError(
            "a tokenizer trained here does not fit a pretrained model",
            remedy="Set tokenizer.source to the one that belongs to it, such as google-bert/bert-base-uncased.",
        )
    if not any(map(is_readable, captions)):
        captions = ["no caption"]  # regions alone: [CLS] [SEP] is all the text there is
    return train_tokenizer(captions, size=recipe.tokenizer.size)
