"""Samples as a fusion model reads them that learns end to end: targets and boxes in memory, pictures by address."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raymotion.config import digest_of, load_settings
from raymotion.data.images.marks import Picture, fingerprints
from raymotion.data.samples import require_allowed_images
from raymotion.data.streams import STREAMS
from raymotion.errors import InputError
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.fusion.config import FusionConfig, streams_of, wants_tokens
from raymotion.models.fusion_tuned.recipe import FusionTunedRecipe
from raymotion.models.vision.backbones import BackboneIdentity, identify
from raymotion.train.fusion_data import PersonData, labelled_persons, read_persons
from raymotion.vocabulary import Vocabulary

KIND = "fusion-tuned"
BOXED = STREAMS[1:]


@dataclass(kw_only=True)
class TunedData(PersonData):
    """Persons in pictures.

    Attributes:
        image_uris: n addresses.
        boxes: `body` and `face` -> x1, y1, x2, y2 in pixels of the full picture, float32 (n, 4); NaN: there is none.
        head: shape of the fusion head, `FusionConfig` as a mapping.
        identities: stream -> identity of its backbone, as a mapping.
    """

    image_uris: list[str | None]
    boxes: dict[str, np.ndarray]
    head: dict[str, Any]
    identities: dict[str, dict[str, Any]]

    # What the run's bookkeeping asks of every kind of data.
    @property
    def features_folder(self) -> None:
        return None

    @cached_property
    def addresses(self) -> list[dict[str, Any]]:
        """Of each person, for `PersonReader`."""
        boxes = {
            name: [None if np.isnan(box).any() else box.tolist() for box in own] for name, own in self.boxes.items()
        }
        fields = (self.image_uris, self.groups, self.sample_ids, boxes["body"], boxes["face"])
        return [dict(zip(("uri", "image", "person", *BOXED), own, strict=True)) for own in zip(*fields, strict=True)]

    def read_identities(self) -> dict[str, BackboneIdentity]:
        """The backbones of the streams that are looked at, in their order: not of those an ablation leaves out."""
        kept = streams_of(FusionConfig.model_validate(self.head))
        return {stream: BackboneIdentity.from_dict(self.identities[stream]) for stream in kept}

    def save(self, folder: str) -> None:
        """Writes what workers need; `load` reads it."""
        meta = {"images": self.image_uris, "head": self.head, "identities": self.identities, "features": None}
        self.write(folder, KIND, {f"box_{name}": own for name, own in self.boxes.items()}, meta)

    @classmethod
    def load(cls, folder: str) -> TunedData:
        fields, arrays, meta = read_persons(folder)
        return cls(
            **fields,
            image_uris=meta["images"],
            boxes={name: arrays[f"box_{name}"] for name in BOXED},
            head=meta["head"],
            identities=meta["identities"],
        )


def prepare_tuned(recipe: FusionTunedRecipe) -> TunedData:
    """Reads and checks what the recipe trains on, and with which backbones and head.

    Raises:
        InputError: no labels, no splits, an image in two splits, no pictures, no box for a stream that the recipe
            names; a backbone that timm has not, or weights; an `init` of other backbones or another vocabulary.
    """
    persons, table = labelled_persons(
        recipe.data.samples,
        lambda table: np.asarray(pc.is_valid(table.column("image_uri"))),
        "picture",
        "Prepare the samples with their images.",
    )
    require_allowed_images(table)
    chosen = recipe.backbones.chosen()
    boxes = {name: _boxes(table.column(f"{name}_box")) for name in BOXED}
    for stream in BOXED:
        if stream in chosen and np.isnan(boxes[stream]).any(axis=1).all():
            raise InputError(
                f"has no {stream} box",
                path=recipe.data.samples,
                remedy="Find faces with `raymotion data faces`, or set backbones.face to null."
                if stream == "face"
                else "Use samples with boxes (`raymotion data prepare emotic`), or set backbones.body to null.",
            )
    identities = {
        stream: identify(name, getattr(recipe.weights, stream), size=getattr(recipe.sizes, stream))
        for stream, name in chosen.items()
    }
    if recipe.init is None:
        head, start = _new_head(recipe, identities), None
    else:
        info = read_checkpoint_info(recipe.init)
        head, start = _head_of(info, recipe, identities, persons["vocabulary"]), info.fingerprint
    data = TunedData(
        **persons,
        image_uris=table.column("image_uri").to_pylist(),
        boxes=boxes,
        head=head.model_dump(mode="json"),
        identities={stream: own.to_dict() for stream, own in identities.items()},
    )
    data.fingerprint = digest_of(
        [*data.contents(), [np.round(np.nan_to_num(own, nan=-1.0), 2).tolist() for own in boxes.values()],
         fingerprints([Picture(uri) for uri in data.image_uris]), data.identities, start]
    )  # fmt: skip
    return data


def _boxes(column: pa.ChunkedArray) -> np.ndarray:
    """(n, 4) float32; NaN where there is none."""
    nothing = [np.nan] * 4
    return np.array([nothing if box is None else box for box in column.to_pylist()], np.float32).reshape(-1, 4)


def _new_head(recipe: FusionTunedRecipe, identities: dict[str, BackboneIdentity]) -> FusionConfig:
    shape: dict[str, Any] = {**recipe.model, "dims": {stream: own.dim for stream, own in identities.items()}}
    if recipe.tokens:
        if not wants_tokens(str(recipe.model.get("fusion", FusionConfig.model_fields["fusion"].default))):
            raise InputError("tokens are set, and this fusion reads pooled features", remedy="Set tokens to 0.")
        shape["tokens"] = dict.fromkeys(identities, recipe.tokens**2)
        shape["token_dims"] = {stream: own.token_dim for stream, own in identities.items()}
    try:
        return load_settings(FusionConfig, options=shape)
    except InputError as error:
        raise InputError(error.reason.replace("setting ", "setting model.", 1), remedy=error.remedy) from error


def _head_of(
    info: CheckpointInfo, recipe: FusionTunedRecipe, identities: dict[str, BackboneIdentity], vocabulary: Vocabulary
) -> FusionConfig:
    """The shape of the head that training goes on from, which must be of these backbones and labels."""

    def refuse(reason: str, remedy: str) -> None:
        raise InputError(reason, path=info.folder, remedy=remedy)

    if info.architecture != "fusion":
        refuse(f"is a {info.architecture}, and init takes a fusion head", "Train one on cached features.")
    if info.vocabulary != vocabulary:
        refuse(
            f"knows {info.vocabulary.name} ({info.vocabulary.fingerprint}), the samples {vocabulary.name} "
            f"({vocabulary.fingerprint})",
            "Take a head of the same vocabulary.",
        )
    config = FusionConfig.model_validate(info.config)
    if list(config.dims) != list(identities):
        refuse(
            f"reads the streams {', '.join(config.dims)}, the recipe {', '.join(identities)}",
            "Name a backbone for these streams, and for no other.",
        )
    for stream, own in identities.items():
        trained = BackboneIdentity.from_dict((info.backbones or {})[stream]["identity"])
        if trained != own:
            refuse(
                f"was trained on {stream} features of {trained.name} ({trained.weights}, {trained.size} pixels), the "
                f"recipe begins with {own.name} ({own.weights}, {own.size} pixels)",
                f"Set backbones.{stream}, weights.{stream} and sizes.{stream} to those.",
            )
    shape = config.model_dump(mode="json")
    for name, value in recipe.model.items():
        if name != "dropout" and shape.get(name) != value:
            refuse(
                f"has model.{name} {shape.get(name)!r}, the recipe {value!r}",
                f"Leave model.{name} out: with init the shape comes from the checkpoint.",
            )
    sides: Sequence[int] = [round(count**0.5) for count in config.tokens.values() if count]
    if recipe.tokens and set(sides) != {recipe.tokens}:
        refuse("reads another number of tokens than the recipe says", "Leave tokens out: the head knows them.")
    return FusionConfig.model_validate({**shape, "dropout": recipe.model.get("dropout", config.dropout)})
