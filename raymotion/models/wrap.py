"""Makes the checkpoint of a model that needs no training."""

from __future__ import annotations

from raymotion import storage
from raymotion.errors import InputError
from raymotion.folders.lock import one_writer_of
from raymotion.models.checkpoint import CheckpointInfo, is_checkpoint, save_checkpoint
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import get_kind


@one_writer_of("out", beside=True)
def wrap_model(recipe: TrainRecipe, out: storage.PathLike) -> CheckpointInfo:
    """Writes the checkpoint of `Kind.wrap`, without training.

    Raises:
        InputError: the model cannot be read, or `out` holds something.
    """
    target = storage.absolute(out)
    if is_checkpoint(target) or storage.list_entries(target):
        raise InputError("is not empty", path=target, remedy="Name another folder, or remove it.")
    kind, recipe = get_kind(recipe.kind), recipe.with_absolute_paths()
    network, inputs, outputs = kind.wrap(recipe)
    settings = recipe.model_dump(mode="json", exclude={"data", "optimiser", "model", "loggers"})
    return save_checkpoint(target, kind, network, inputs, outputs, training={"settings": settings, "wrapped": True})
