"""From a recipe to its data, and to the task that the training loop runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymotion import records, storage
from raymotion.batch.cluster import available_cpus
from raymotion.train.data import AGAIN, META, TrainingData, prepare
from raymotion.train.fusion_data import FusionData, prepare_fusion
from raymotion.train.recipe import (
    CaptionRecipe,
    FusionRecipe,
    FusionTunedRecipe,
    StudentRecipe,
    TeacherRecipe,
    TrainRecipe,
)
from raymotion.train.tuned_data import KIND, TunedData, prepare_tuned

if TYPE_CHECKING:
    from raymotion.train.loop import Task
    from raymotion.train.picture_feed import Source

Data = TrainingData | FusionData | TunedData


def prepare_data(recipe: TrainRecipe) -> Data:
    """Reads and checks what the recipe trains on."""
    if isinstance(recipe, FusionRecipe):
        return prepare_fusion(recipe)
    if isinstance(recipe, FusionTunedRecipe):
        return prepare_tuned(recipe)
    assert isinstance(recipe, CaptionRecipe)
    return prepare(recipe)


def load_data(folder: str) -> Data:
    """The data that were saved to `folder`, of any kind."""
    kind = records.read_record(storage.join(folder, META), needs_seal=True, remedy=AGAIN)["kind"]
    known: dict[str, type[FusionData] | type[TunedData]] = {"fusion": FusionData, KIND: TunedData}
    return known[kind].load(folder) if kind in known else TrainingData.load(folder)


def task_of(recipe: TrainRecipe, data: Data, *, source: Source | None = None) -> Task:
    """The task of a recipe's kind.

    Args:
        source: where pictures come from, for models that read them; None: decoded by threads of this process.
    """
    if isinstance(data, FusionData):
        from raymotion.train.fusion import FusionTask

        assert isinstance(recipe, FusionRecipe)
        return FusionTask(recipe, data)
    if isinstance(data, TunedData):
        from raymotion.train.fusion_tuned import TunedTask

        assert isinstance(recipe, FusionTunedRecipe)
        return TunedTask(recipe, data, source=source, threads=recipe.data.decode_tasks or available_cpus())
    if isinstance(recipe, TeacherRecipe):
        from raymotion.train.teacher import TeacherTask

        return TeacherTask(recipe, data)
    if isinstance(recipe, StudentRecipe):
        from raymotion.train.student import StudentTask

        return StudentTask(recipe, data, source=source, threads=recipe.data.decode_tasks or available_cpus())
    raise AssertionError(f"no task for recipes of kind {recipe.kind}")
