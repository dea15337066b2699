"""From a recipe to the task that the training loop runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raymotion.batch.cluster import available_cpus
from raymotion.train.data import TrainingData
from raymotion.train.recipe import StudentRecipe, TeacherRecipe, TrainRecipe

if TYPE_CHECKING:
    from raymotion.train.loop import Task
    from raymotion.train.student import Source


def task_of(recipe: TrainRecipe, data: TrainingData, *, source: Source | None = None) -> Task:
    """The task of a recipe's kind.

    Args:
        source: where a student's pictures come from; None: decoded by threads of this process.
    """
    if isinstance(recipe, TeacherRecipe):
        from raymotion.train.teacher import TeacherTask

        return TeacherTask(recipe, data)
    if isinstance(recipe, StudentRecipe):
        from raymotion.train.student import StudentTask

        return StudentTask(recipe, data, source=source, threads=recipe.data.decode_tasks or available_cpus())
    raise AssertionError(f"no task for recipes of kind {recipe.kind}")
