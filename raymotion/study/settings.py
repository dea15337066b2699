"""The settings of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raymotion.config import Settings


class StudySettings(Settings):
    """One study.

    Attributes:
        spaces: folder of the stages' YAML files. samples: the table; None: the one that the embeddings were made of.
        seeds: how many, from the recipe's on. epochs: None: the recipe's.
        stages: names of those that run; None: all. joint: whether the joint search runs.
        ties: what is carried forward where validation tells no difference, see `study.select_winner`.
        concurrent: configurations in training at a time; None: as many as fit. cpus_per_trial, gpus_per_trial: of each;
            None: a quarter of a GPU where there are any.
        autoscale: the cluster starts nodes for trials that wait.
        retry_failed: train those again that failed before.
        set: assignments over the recipe, `optimiser.lr=3e-4`.
    """

    spaces: str
    out: str
    embeddings: list[str] = Field(min_length=1)
    samples: str | None = None
    seeds: int = Field(3, ge=1)
    epochs: int | None = Field(None, ge=1)
    stages: list[str] | None = None
    joint: bool = True
    early_stopping: bool = True
    ties: Literal["incumbent", "highest"] = "incumbent"
    concurrent: int | None = Field(None, ge=1)
    cpus_per_trial: float = Field(1.0, gt=0)
    gpus_per_trial: float | None = Field(None, ge=0)
    autoscale: bool = False
    retry_failed: bool = False
    set: list[str] = []
