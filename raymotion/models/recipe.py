"""What the recipes of all kinds of models say."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from raymotion.config import Settings
from raymotion.errors import InputError


class DataSettings(Settings):
    """What to train on.

    Attributes:
        samples: sample table with labels and splits.
        soft_targets: learn the share of annotators where the table has it, instead of 0 and 1.
    """

    samples: str = ""
    soft_targets: bool = False


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


class TrainRecipe(Settings):
    """One training run: what every kind of model shares.

    Attributes:
        model: the shape, in fields of the kind's own config. Vocabulary and input sizes are filled in from the data.
        select_by: what the best epoch is chosen by, on validation; last: the last one is taken, whatever it scores.
        workers: Ray Train workers; 0 trains in this process, without Ray.
        use_gpu: None takes GPUs where the cluster has them.
        autoscale: the cluster starts nodes for workers that wait, so a plan that does not fit now is not refused.
        failures: how often a crashed worker group is started again.
    """

    kind: str
    data: DataSettings = DataSettings()
    model: dict[str, Any] = Field(default_factory=dict)
    optimiser: OptimiserSettings = OptimiserSettings()
    select_by: Literal["bce", "macro_ap", "last"] = "bce"
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0)
    use_gpu: bool | None = None
    autoscale: bool = False
    failures: int = Field(2, ge=0)

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result: all but where and how often it is tried."""
        return self.model_dump(mode="json", exclude={"workers", "use_gpu", "autoscale", "failures"})

    def require_data(self, path: str) -> None:
        """Raises an `InputError` unless the recipe at `path` says what to train on."""
        if not self.data.samples:
            raise InputError(
                "names no sample table",
                path=path,
                remedy="Give one: --samples samples.parquet (see `raymotion data prepare`).",
            )
