"""Where the vector of a picture comes from: cached features, or a backbone inside the model.

Shared by all kinds whose recipe is a `VectorRecipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from raymotion.data.streams import CONTEXT
from raymotion.errors import InputError
from raymotion.models.inputs.person_crops import PersonReader
from raymotion.models.inputs.streams import BoundStreams, CropInput, PreparedCrops, Stream, StreamInput
from raymotion.models.kind import Training
from raymotion.models.vector.recipe import VectorRecipe
from raymotion.models.vision.backbones import BackboneIdentity, build, identify

if TYPE_CHECKING:
    from torch import Tensor, nn


class ReadsPictures(Protocol):
    """A network that returns the vectors of pictures."""

    def vectors(
        self, features: Sequence[Tensor | None] | None = None, crops: Sequence[Tensor | None] | None = None
    ) -> Tensor:
        """Returns the vectors (n, D) float32 of cached features or of crops (n, size, size, 3) uint8."""

    def to(self, device: str) -> nn.Module:
        """As `nn.Module.to`."""


def vector_input(recipe: VectorRecipe) -> StreamInput | CropInput:
    """Returns the input that a recipe's vectors come from."""
    if recipe.data.embeddings:
        return StreamInput(
            folders=recipe.data.embeddings, chosen={CONTEXT: recipe.backbone}, level=recipe.augmentation,
            samples=recipe.data.samples,
        )  # fmt: skip
    return CropInput([Stream(CONTEXT, recipe.backbone, stated_identity(recipe))])


def vector_identity(recipe: VectorRecipe, training: Training) -> BackboneIdentity:
    """Returns the identity of the backbone of a run's vectors.

    Raises:
        InputError: the recipe states another backbone than that of the cached features.
    """
    bound = training.inputs.get("streams")
    if bound is None:
        return stated_identity(recipe)
    (found,) = cast(BoundStreams, bound).identities
    _require_same(recipe, found)
    return found


def backbone_of(recipe: VectorRecipe) -> Callable[[BackboneIdentity], Any]:
    """Returns a function that builds a backbone with the recipe's weights."""
    return lambda identity: build(identity, identity.weights if identity.is_random else recipe.weights)


def some_rows(recipe: VectorRecipe, training: Training, most: int | None = None) -> np.ndarray:
    """Returns at most `most` (`statistics_samples`) training rows with a picture, drawn at random, in order."""
    bound = next(own for name, own in training.inputs.items() if name in ("streams", "crops"))
    rows = training.data.splits["train"]
    rows = np.random.default_rng([recipe.seed, 1]).permutation(rows[bound.present[rows]])
    return np.sort(rows[: recipe.statistics_samples if most is None else most])


def picture_vectors(
    network: ReadsPictures, recipe: VectorRecipe, training: Training, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yields training rows, some at a time, with their vectors (n, D); without augmentation.

    Rows whose picture cannot be read are left out.
    """
    import torch

    if "streams" in training.inputs:
        bound = cast(BoundStreams, training.inputs["streams"])
        for start in range(0, len(rows), 4096):
            some = rows[start : start + 4096]
            yield some, torch.from_numpy(bound.streams[0].take(bound.rows[some])).float()
        return
    crops = cast(PreparedCrops, training.inputs["crops"])
    device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
    reader = PersonReader(crops.reader(recipe).identities, damaged=recipe.data.damaged)
    network.to(device).eval()
    with torch.no_grad():
        for some, read in training.read(reader, rows, 32):
            arguments = crops.evidence(some, read).tensors(device)
            there = arguments.pop("mask")[:, 0]
            if bool(there.any()):
                yield some[there.cpu().numpy()], network.vectors(crops=[arguments["crops"][0][there]]).cpu()
    network.to("cpu")


def stated_identity(recipe: VectorRecipe) -> BackboneIdentity:
    """Returns the identity of the backbone that a recipe names."""
    return identify(recipe.backbone, recipe.weights, size=recipe.size, pooled_stages=recipe.pooled_stages)


def _require_same(recipe: VectorRecipe, found: BackboneIdentity) -> None:
    """Raises an `InputError` if the recipe states another backbone than that of the cached features."""
    given = recipe.model_fields_set
    if "weights" in given and recipe.weights != "default":
        expected = stated_identity(recipe).weights
        if expected != found.weights:
            raise InputError(
                f"setting weights = {recipe.weights} ({expected}): the embeddings are of {found.weights}",
                remedy="Leave it out, or make them with these weights.",
            )
    for name in ("size", "pooled_stages"):
        own = getattr(recipe, name)
        if name in given and own is not None and own != getattr(found, name):
            raise InputError(
                f"setting {name} = {own}: the embeddings are of {name} {getattr(found, name)}",
                remedy=f"Leave it out, or make them with --{name.replace('_', '-')} {own}.",
            )
