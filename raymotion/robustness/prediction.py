"""A model's predictions for pictures in memory, by the stages of the labelling job.

Resizing, crops, normalisation and calibration are the model's own, as with any other picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raymotion.batch.memory import is_out_of_memory, release_memory
from raymotion.errors import InputError
from raymotion.models.checkpoint import Model
from raymotion.pipeline.ask import AskService
from raymotion.pipeline.predict import Predict
from raymotion.pipeline.stages import DecodeImages, Failure, Item, Stage


class PictureModel:
    """Predicts changed copies of a sample's picture.

    Args:
        stages: of `pipeline.plan.make_plan`, those that decode included, which are left out: pictures are given.
        output: name of the output to predict.

    Attributes:
        fitting: largest number of pictures at a time, by stage, once more did not fit into a GPU's memory. Whoever goes
            on with smaller pictures clears it.

    Raises:
        InputError: a service answers for the model, which would be asked thousands of times.
    """

    def __init__(self, stages: Sequence[Stage], output: str) -> None:
        if any(isinstance(stage, AskService) for stage in stages):
            raise InputError(
                "the model is a service, and each changed pixel would be a request to it",
                remedy="Attack a model of your own.",
            )
        self.stages = [stage for stage in stages if not isinstance(stage, DecodeImages)]
        self.output = output
        self.fitting: dict[str, int] = {}

    def setup(self, threads: int, device: str) -> None:
        """Loads the model, once in each worker."""
        for stage in self.stages:
            stage.setup(threads, device)

    @property
    def last(self) -> Predict:
        """The stage that predicts."""
        last = self.stages[-1]
        assert isinstance(last, Predict)
        return last

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self.last.model

    def items(self, row: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> list[Item]:
        """Returns an item for each picture, uint8 (height, width, 3), of a sample."""
        # Without an address: stages take neighbours with the same address for one picture.
        return [Item({**row, "image_uri": None}, pixels=picture) for picture in pictures]

    def predict(self, row: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, Failure | None]:
        """Predicts n pictures in place of a sample's own.

        Returns:
            Decoded values (n, width) float32, NaN where there is no prediction, and the first reason for that.
        """
        return self._predict(self.items(row, pictures))

    def predict_captions(self, captions: Sequence[Sequence[str]], batch_size: int = 64) -> np.ndarray:
        """Predicts n samples of captions alone; returns decoded values (n, width), NaN where there is no prediction."""
        items = [
            Item({"sample_id": str(i), "group_id": str(i), "image_uri": None, "captions": list(own), "split": None})
            for i, own in enumerate(captions)
        ]
        parts = [self._predict(items[i : i + batch_size])[0] for i in range(0, len(items), batch_size)]
        return np.concatenate(parts)

    def _predict(self, items: Sequence[Item]) -> tuple[np.ndarray, Failure | None]:
        for stage in self.stages:
            live = [item for item in items if item.failure is None]
            if live:
                self._process(stage, live)
        width = next(own.width for own in self.model.outputs if own.name == self.output)
        values = np.full((len(items), width), np.nan, np.float32)
        for i, item in enumerate(items):
            if item.failure is None:
                values[i] = item.output[self.output]
        return values, next((item.failure for item in items if item.failure is not None), None)

    def _process(self, stage: Stage, items: Sequence[Item]) -> None:
        """Runs one stage. Batches that do not fit into the memory of a GPU are halved until they do."""
        start = 0
        while start < len(items):
            some = items[start : start + self.fitting.get(stage.name, len(items))]
            try:
                stage.process(some)
            except Exception as error:
                if len(some) == 1 or not is_out_of_memory(error):
                    raise
            else:
                start += len(some)
                continue
            release_memory()  # here, where the error no longer holds the tensors of the batch
            self.fitting[stage.name] = len(some) // 2
