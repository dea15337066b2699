"""Settings of a study, and of a single search."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raymotion.config import File, Folder, Metavar, PathText, Settings


class SearchSettings(Settings):
    """Settings that a study and a single search share."""

    out: Folder = Field(description="folder of the record and the winner; may be an s3:// address")
    samples: File | None = Field(None, description="sample table  [default: the recipe's, or that of the embeddings]")
    labels: Folder | None = Field(
        None, description="pseudo-labels of `raymotion label` to learn from, in place of --samples"
    )
    features: Folder | None = Field(None, description="region features of the same samples")
    embeddings: list[Folder] = Field(
        [], description="features of `raymotion features embeddings`; repeat for several of the same samples"
    )
    seeds: int = Field(3, ge=1, description="trainings of each configuration, with seeds from the recipe's on")
    epochs: int | None = Field(None, ge=1, description="most epochs (optimiser.epochs)  [default: the recipe's]")
    early_stopping: bool = Field(
        True, description="train all configurations to their end; by default ASHA stops some of them early"
    )
    concurrent: int | None = Field(None, ge=1, description="configurations at a time  [default: as many as fit]")
    cpus_per_trial: float = Field(1.0, gt=0, description="CPUs of a configuration")
    gpus_per_trial: float | None = Field(
        None, ge=0, description="GPUs of a configuration  [default: 0.25 where there are any]"
    )
    autoscale: bool = Field(
        False,
        description="let the cluster start nodes for configurations that wait; needs --concurrent, and "
        "--gpus-per-trial where no GPU is up yet",
    )
    retry_failed: bool = Field(False, description="train those again that failed before")
    set: list[Annotated[str, Metavar("NAME=VALUE")]] = Field(
        [], description="override one setting of the recipe (repeatable)"
    )


class StudySettings(SearchSettings):
    """Settings of a study."""

    spaces: Annotated[PathText, Metavar("SPACES")] = Field(description="YAML files of the stages")
    recipe: Annotated[str, Metavar("RECIPE")] | None = Field(
        None, description="recipe that the choices are laid over  [default: the one that the spaces name]"
    )
    stages: list[Annotated[str, Metavar("NAME")]] | None = Field(
        None, description="run only this stage (repeatable)  [default: all]"
    )
    joint: bool = Field(True, description="run the joint search after the stages; --no-joint leaves it out")
    ties: Literal["incumbent", "highest"] = Field(
        "incumbent", description="what a stage carries on where validation tells no difference"
    )


class TuneSettings(SearchSettings):
    """Settings of a single search, over one file of choices."""

    recipe: Annotated[str, Metavar("RECIPE")] = Field(description="recipe that the choices are laid over")
    space: File = Field(description="YAML file of the choices, such as tune_spaces/teacher-small.yaml")

    def as_study(self) -> StudySettings:
        """Returns the settings of a study with this one stage."""
        return StudySettings(**self.model_dump(exclude={"space"}), spaces=self.space, joint=False)
