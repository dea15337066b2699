"""What the recipes of all kinds of models say: one YAML file for each training run.

Needs nothing heavy: the command line reads recipes before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from raymotion import storage
from raymotion.config import Settings
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError


class DataSettings(Settings):
    """What to train on.

    Attributes:
        samples: sample table with labels and splits.
        soft_targets: learn the share of annotators where the table has it, instead of 0 and 1.
    """

    samples: str = ""
    soft_targets: bool = False

    def dropout(self) -> Mapping[str, float]:
        """Input -> how often a training sample that has another input too is shown without it."""
        return {}


class PictureDataSettings(DataSettings):
    """How pictures are read while a model trains.

    Attributes:
        damaged: a picture that decodes, but not to what was stored. quarantine: left out, as one that cannot be read.
            keep: shown as it decodes.
        decode_tasks: how many pictures (batches of persons) are decoded at once for each worker; None: as the cores
            allow.
    """

    damaged: DamagedPolicy = "quarantine"
    decode_tasks: int | None = Field(None, ge=1)


class OptimiserSettings(Settings):
    """AdamW with linear warm-up and cosine decay, unless something else is asked for.

    Attributes:
        kind: adamw, or adam: weight decay as a part of the gradient (Kingma and Ba 2015).
        lr: of what starts from nothing. backbone_lr: of what was trained elsewhere.
        schedule: cosine: down to 0 after the warm-up; constant: none after it; step: a tenth after 35 % of the steps,
            and again after 70 %.
        warmup: share of all steps. clip: largest gradient norm; None: as they come.
        accumulate: batches whose gradients make one step, where a larger batch does not fit into memory.
        patience: epochs without a better validation score before it stops.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float | None = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)
    epochs: int = Field(15, ge=1)
    patience: int = Field(5, ge=1)


class LossSettings(Settings):
    """`name`: a loss that fits the output (`raymotion models` lists them); `options`: its own."""

    name: str = "bce"
    options: dict[str, Any] = Field(default_factory=dict)


class Distillation(Settings):
    """Hinton et al. (2015), for independent labels; see `learning.losses.distillation`.

    Attributes:
        temperature: both sides' logits are divided by it. 1 keeps the teacher's probabilities as they are.
        weight: of the soft part; the rest is the loss on the hard labels.
    """

    temperature: float = Field(2.0, gt=0)
    weight: float = Field(1.0, ge=0, le=1)


class Transfer(Settings):
    """Layers from another model of the same kind.

    Yosinski et al., "How transferable are features in deep neural networks?", 2014.

    Attributes:
        source: its checkpoint; shape and tokenizer come from there too.
        depth: how many layers are copied, from the input on (`Kind.layers`); 0: none, training from scratch. The
            others start anew, the head always.
        freeze: whether the copied layers stay as they are (AnB), or are fine-tuned at `backbone_lr` (AnB+).
    """

    source: str
    depth: int = Field(ge=0)
    freeze: bool = False


class TrainRecipe(Settings):
    """One training run: what every kind of model shares.

    Attributes:
        kind: name of the kind of model.
        model: the shape, in fields of the kind's own config. Vocabulary and input sizes are filled in from the data.
        select_by: what the best epoch is chosen by, on validation: a metric of the first output, or `OUTPUT.METRIC`;
            last: the last epoch is taken, whatever it scores; None: the first output's own metric.
        workers: Ray Train workers; 0 trains in this process, without Ray.
        use_gpu: None takes GPUs where the cluster has them.
        autoscale: the cluster starts nodes for workers that wait, so a plan that does not fit now is not refused.
        failures: how often a crashed worker group is started again.
    """

    # Settings that say where data lie, not what they are: a run may go on after its data moved.
    places: ClassVar[tuple[str, ...]] = ("data.samples", "data.labels", "data.features", "data.embeddings")
    # Fields that name weights or checkpoints: workers run in other folders, so local paths are made absolute.
    paths: ClassVar[tuple[str, ...]] = ("init",)

    kind: str
    data: DataSettings = DataSettings()
    model: dict[str, Any] = Field(default_factory=dict)
    optimiser: OptimiserSettings = OptimiserSettings()
    select_by: str | None = None
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0)
    use_gpu: bool | None = None
    autoscale: bool = False
    failures: int = Field(2, ge=0)

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result: all but where and how often it is tried."""
        settings = self.model_dump(mode="json", exclude={"workers", "use_gpu", "autoscale", "failures"})
        settings["data"].pop("decode_tasks", None)
        return settings

    def require_data(self, path: str) -> None:
        """Raises an `InputError` unless the recipe at `path` says what to train on."""
        if not self.data.samples:
            raise InputError(
                "names no sample table",
                path=path,
                remedy="Give one: --samples samples.parquet (see `raymotion data prepare`).",
            )

    def sources(self) -> dict[str, str]:
        """Checkpoints that the result depends on, by the setting that names them."""
        return {}

    def with_absolute_paths(self) -> Self:
        """The recipe with local paths that mean the same in other folders."""
        return self.model_copy(update={name: absolute_paths(getattr(self, name, None)) for name in self.paths})


class MultiLabelRecipe(TrainRecipe):
    """What models share that answer with a probability of each emotion.

    Attributes:
        loss: any of `learning.losses.multilabel`.
        distillation: learn the soft targets with a temperature; None: the plain loss on hard or soft targets.
    """

    loss: LossSettings = LossSettings()
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _distils_something(self) -> Self:
        if self.distillation is not None and not self.data.soft_targets:
            raise ValueError("distillation learns soft targets: set data.soft_targets too")
        of_hard = self.loss.name != "bce" or self.loss.options.get("label_smoothing")
        if self.distillation is not None and self.distillation.weight == 1 and of_hard:
            raise ValueError("the loss is of hard labels, and distillation.weight 1 learns none of them")
        return self


def absolute_paths(value: Any) -> Any:
    """`value` with every local path in it that exists made absolute: a text, or the texts of a settings object."""
    if isinstance(value, str):
        return storage.absolute(value) if os.path.exists(value) else value
    if isinstance(value, Settings):
        return value.model_copy(update={name: absolute_paths(own) for name, own in value})
    return value
