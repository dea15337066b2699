"""Division of the CPUs between training workers and the tasks that decode pictures for them."""

from __future__ import annotations

from dataclasses import dataclass

from raymotion.errors import InputError
from raymotion.models.recipe import PictureDataSettings, TrainRecipe


@dataclass(frozen=True)
class Ingest:
    """Logical CPUs of a training worker, and of each of the `tasks` concurrent tasks that decode pictures for it."""

    worker_cpus: float = 1.0
    tasks: int = 1
    task_cpus: float = 1.0


def plan_ingest(recipe: TrainRecipe, nodes: list[dict[str, float]], *, decodes: bool) -> Ingest:
    """Divides the cluster's CPUs between training workers and decoding tasks.

    A worker that took the last CPU would wait forever for pictures, so each takes half a CPU if there are too few.

    Raises:
        InputError: even then no CPU is left for decoding.
    """
    if not decodes:
        return Ingest()
    wanted = recipe.data.decode_tasks if isinstance(recipe.data, PictureDataSettings) else None
    if recipe.autoscale:  # the current nodes do not limit the plan: pending tasks make the autoscaler start nodes
        return Ingest(1.0, wanted or 4, 1.0)
    total = sum(node.get("CPU", 0) for node in nodes)
    spare = total - recipe.workers
    if spare >= recipe.workers:
        return Ingest(1.0, wanted or max(1, int(spare // recipe.workers)), 1.0)
    if total < 0.5 * recipe.workers + 0.5:
        raise InputError(
            f"{recipe.workers} workers of half a CPU leave none of the cluster's {total:g} CPUs to decode pictures",
            remedy="Lower --workers, or add nodes.",
        )
    return Ingest(0.5, wanted or 1, 0.5)
