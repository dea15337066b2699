"""From a recipe to the task that the training loop runs."""

from __future__ import annotations

from raymotion.train.data import TrainingData
from raymotion.train.loop import Task
from raymotion.train.recipe import TeacherRecipe, TrainRecipe


def task_of(recipe: TrainRecipe, data: TrainingData) -> Task:
    """The task of a recipe's kind."""
    if isinstance(recipe, TeacherRecipe):
        from raymotion.train.teacher import TeacherTask

        return TeacherTask(recipe, data)
    raise AssertionError(f"no task for recipes of kind {recipe.kind}")
