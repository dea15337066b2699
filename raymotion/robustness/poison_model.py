"""A trained model with the data of its run: what it predicts, and the features that its last layer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from raymotion import storage
from raymotion.batch.cluster import available_cpus
from raymotion.errors import InputError
from raymotion.models.checkpoint import load_model
from raymotion.models.outputs.base import Output
from raymotion.models.recipe import TrainRecipe
from raymotion.models.training_set import TrainingSet

if TYPE_CHECKING:
    from torch import Tensor, nn


class OpenedModel:
    """A checkpoint and the samples of a training set, read exactly as training and its test read them.

    Args:
        recipe: of the run.
        data: prepared from its sample table, or from one whose pictures were changed.
    """

    def __init__(self, recipe: TrainRecipe, data: TrainingSet, folder: storage.PathLike) -> None:
        import torch

        from raymotion.train.batches import BatchLoader
        from raymotion.train.task import Task
        from raymotion.train.workers import Workers

        self.device = "cuda" if recipe.use_gpu is not False and torch.cuda.is_available() else "cpu"
        self.data, self.task = data, Task(recipe, data, threads=available_cpus())
        self.network: nn.Module = load_model(folder, self.device).network
        self.loader = BatchLoader(self.task, Workers(device=self.device), first_epoch=0)

    @property
    def output(self) -> Output:
        """The first output."""
        return self.task.outputs[0]

    @property
    def head(self) -> nn.Linear:
        """The last layer of the first output."""
        return self.task.kind.heads(self.network, self.task.outputs)[self.output.name]

    def predict_test(self) -> np.ndarray:
        """Returns decoded values of the first output, float32 (test rows, width)."""
        return self.loader.predict(self.network, "test")[self.output.name]

    def features(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what the last layer of the first output reads of some rows.

        Returns:
            float32 (rows, D), and which of the rows could be read, bool (rows,).
        """
        import torch

        from raymotion.train.probe import head_inputs

        found, there = [np.zeros((0, self.head.in_features), np.float32)], [np.zeros(0, dtype=bool)]
        with torch.no_grad():
            for arguments, known in self.loader.frozen(rows):
                own = head_inputs(self.network, {self.output.name: self.head}, arguments, self.task.outputs, len(known))
                found.append(own[self.output.name].numpy())
                there.append(known)
        return np.concatenate(found), np.concatenate(there)

    def arguments(self, rows: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yields the network's arguments for some rows in order, in batches."""
        for arguments, _ in self.loader.frozen(rows):
            yield arguments

    def features_of(self, arguments: Mapping[str, Any], pixels: Tensor) -> Tensor:
        """Returns the features (n, D) of pictures (n, S, S, 3), 0 to 255, with a gradient to them.

        Args:
            arguments: of the network for the same samples, whose pictures are replaced.
        """
        seen: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        try:
            self.network(**with_pixels(arguments, pixels))
        finally:
            hook.remove()
        return seen[-1].float()


def pixels_of(arguments: Mapping[str, Any]) -> Tensor:
    """Returns the pictures among a network's arguments, uint8 (n, S, S, 3).

    Raises:
        InputError: there are none, or several for each sample.
    """
    found = [own for value in arguments.values() for own in _tensors(value) if _is_picture(own)]
    if len(found) != 1:
        raise InputError(
            f"the model reads {'no pixels' if not found else f'{len(found)} pictures'} of a sample, and this attack "
            "changes one picture",
            remedy="Take a recipe that reads the whole picture alone, or another attack.",
        )
    return found[0]


def with_pixels(arguments: Mapping[str, Any], pixels: Tensor) -> dict[str, Any]:
    """Returns a network's arguments with other pictures."""
    return {
        name: [pixels if _is_picture(own) else own for own in value] if isinstance(value, list | tuple)
        else pixels if _is_picture(value) else value
        for name, value in arguments.items()
    }  # fmt: skip


def _tensors(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_picture(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8 and value.ndim == 4 and value.shape[3] == 3
