"""Settings shared by the recipes of all kinds of models. A recipe is one YAML file per training run.

Imports nothing heavy: the command line reads recipes before it imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_serializer, field_validator, model_validator

from raymotion import storage
from raymotion.config import Settings, load_settings, merge
from raymotion.data.domains import parse_domain
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError
from raymotion.loggers.logger import Logger, read_loggers
from raymotion.models.text.label_texts import names_a_file

S = TypeVar("S", bound=Settings)


def as_list(value: Any) -> Any:
    """Returns one number as a list, for settings that take one or several."""
    return (value,) if isinstance(value, int | float) else value


class DataSettings(Settings):
    """The training data.

    Attributes:
        samples: sample table with labels and splits.
        soft_targets: learn the share of annotators, where the table has it, instead of 0 and 1.
        holdout_domain: domains of the table, each `COLUMN=VALUE` (`source=my-set`), that are neither trained on nor
            validated on: all of their rows are the test split, and their images appear nowhere else.
    """

    samples: str = ""
    soft_targets: bool = False
    holdout_domain: tuple[str, ...] = ()

    @field_validator("holdout_domain", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("holdout_domain")
    @classmethod
    def _domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted({"=".join(parse_domain(own)) for own in value}))

    def dropout(self) -> Mapping[str, float]:
        """Returns input -> probability of withholding it from a training sample that has another input too."""
        return {}


class PictureDataSettings(DataSettings):
    """How pictures are read during training.

    Attributes:
        damaged: treatment of pictures that decode incorrectly. quarantine: leave out, like unreadable ones. keep: use
            as decoded.
        decode_tasks: number of pictures (batches of persons) decoded at once for each worker; None: as the cores
            allow.
    """

    damaged: DamagedPolicy = "quarantine"
    decode_tasks: int | None = Field(None, ge=1)


class WholePictureSettings(PictureDataSettings):
    """The training data of a model that reads whole pictures (`models.inputs.picture`).

    Attributes:
        image_dropout: probability of withholding the picture of a training sample that has another input too.
        augmentation: of training pictures. none: the whole picture. basic: a random crop, mirrored with probability
            1/2. full: colours vary too.
        smallest_crop: smallest random crop, as a share of the picture's area.
        cache_images: decode every picture once into a file of raw pixels shared by all runs on the same data; for
            small sets and many runs, with `workers: 0`.
        epoch_samples: samples between two validations (and checkpoints); None: all samples.
    """

    image_dropout: float = Field(0.1, ge=0, le=0.5)
    augmentation: Literal["none", "basic", "full"] = "basic"
    smallest_crop: float = Field(0.5, gt=0, le=1)
    cache_images: bool = False
    epoch_samples: int | None = Field(None, ge=1)

    def dropout(self) -> Mapping[str, float]:
        return {"picture": self.image_dropout, **super().dropout()}


class Plateau(Settings):
    """When `schedule: plateau` lowers the learning rate, as Keras' `ReduceLROnPlateau` does.

    Attributes:
        factor: of the learning rate; by default the square root of 0.1.
        patience: epochs without a better validation score before each reduction.
        min_delta: how much better a score has to be.
        lowest: the learning rate falls no further.
    """

    factor: float = Field(0.1**0.5, gt=0, lt=1)
    patience: int = Field(3, ge=1)
    min_delta: float = Field(1e-4, ge=0)
    lowest: float = Field(5e-7, ge=0)


class OptimiserSettings(Settings):
    """By default, AdamW with linear warm-up and cosine decay.

    Attributes:
        kind: adamw, or adam with weight decay as a part of the gradient (Kingma and Ba 2015).
        lr: learning rate of new weights. backbone_lr: learning rate of pretrained weights.
        schedule: after the warm-up: cosine: decay to 0; constant: no decay; step: a tenth after each of the shares
            `step_at` of all steps; plateau: lower whenever validation stops improving, by `plateau`.
        step_at: by default 35 % and 70 %, as every seven of the public EMOTIC study's twenty epochs.
        warmup: share of all steps. clip: largest gradient norm; None: no clipping.
        accumulate: number of batches per step, for batches that do not fit into memory.
        patience: epochs without a better validation score before training stops. min_delta: how much better it has to
            be to count; the best epoch is the best one in any case.
        average: validate and keep an average of the weights (and normalisation statistics) over the steps, while
            training goes on from the last ones. ema: an exponential one; swa: a uniform one (Izmailov et al. 2018).
        ema_decay: per step; the average reaches back about 1 / (1 - ema_decay) steps.
        swa_from: share of all steps after which the uniform average starts; before, the last weights are kept.
        l2_sp: factor of the penalty |weights - start|^2 / 2 on pretrained weights (`Kind.pretrained`), in place of
            their weight decay (Li et al. 2018); the last layer is left out.
        interpolate: shares a of the training in the weights that are kept: (1 - a) start + a trained, after averaging
            (WiSE-FT, Wortsman et al. 2022). Of several, each epoch keeps the best on validation. The start are the
            weights before fine-tuning, after the probe where there is one.
    """

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    schedule: Literal["cosine", "constant", "step", "plateau"] = "cosine"
    step_at: tuple[float, ...] = (0.35, 0.7)
    plateau: Plateau = Plateau()
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float | None = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    accumulate: int = Field(1, ge=1)
    epochs: int = Field(15, ge=1)
    patience: int = Field(5, ge=1)
    min_delta: float = Field(0.0, ge=0)
    average: Literal["none", "ema", "swa"] = "none"
    ema_decay: float = Field(0.99, ge=0, lt=1)
    swa_from: float = Field(0.5, ge=0, lt=1)
    l2_sp: float = Field(0.0, ge=0)
    interpolate: tuple[float, ...] = (1.0,)

    @field_validator("interpolate", "step_at", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return as_list(value)

    @field_validator("step_at")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < a < 1 for a in value) or list(value) != sorted(set(value)):
            raise ValueError("step_at is one rising share or more of all steps, between 0 and 1")
        return value

    @field_validator("interpolate")
    @classmethod
    def _shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 <= share <= 1 for share in value) or max(value) == 0:
            raise ValueError("interpolate is one number or more from 0 (the start) to 1 (trained), not 0 alone")
        return value

    @model_validator(mode="after")
    def _plateau_is_used(self) -> Self:
        if self.schedule != "plateau" and self.plateau != Plateau():
            raise ValueError("plateau means something only with schedule plateau")
        if self.schedule != "step" and self.step_at != OptimiserSettings.model_fields["step_at"].default:
            raise ValueError("step_at means something only with schedule step")
        if self.schedule == "plateau" and self.plateau.patience >= self.patience:
            raise ValueError(
                f"plateau.patience {self.plateau.patience} is not below patience {self.patience}: training would stop "
                "before its rate falls"
            )
        return self


class Probe(Settings):
    """A linear probe: in place of the first epoch, the last layer is fitted to what the other weights say as they are.

    With one epoch the model is that probe. Further epochs fine-tune from it, which distorts pretrained features less
    than a random last layer does (LP-FT, Kumar et al. 2022).

    Attributes:
        strengths: inverse of the L2 penalty, as scikit-learn's `C`, for features of length 1 on average; of several,
            the best on validation.
        coupling: 0 fits each label alone. Else the prior covariance of the labels' weights is the correlation of the
            labels in training, to this power, so that rare ones lean on those that occur with them (multi-task
            learning, Bonilla et al. 2007).
        labels: texts that say what each label means: `names`, a YAML file, or a bundled one (`socratis-29`). The
            weights are then drawn to the features of these texts, by as much as fits the training split, and not to 0.
        samples: largest number of training samples that it is fitted to.
    """

    strengths: tuple[float, ...] = (1.0,)
    coupling: float = Field(0.0, ge=0, le=1)
    labels: str | None = None
    samples: int = Field(100_000, ge=1)

    @field_validator("strengths", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        return as_list(value)

    @field_validator("strengths")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) <= 0:
            raise ValueError("strengths are one number or more above 0")
        return value


class LossSettings(Settings):
    """`name`: a loss for the output (`raymotion kinds` lists them); `options`: arguments of the loss."""

    name: str = "bce"
    options: dict[str, Any] = Field(default_factory=dict)


class Distillation(Settings):
    """Hinton et al. (2015), for independent labels; see `learning.losses.distillation`.

    Attributes:
        temperature: divides the logits of both models. 1 keeps the teacher's probabilities.
        weight: weight of the soft loss; the rest is the loss on the hard labels.
    """

    temperature: float = Field(2.0, gt=0)
    weight: float = Field(1.0, ge=0, le=1)


class Transfer(Settings):
    """Copies layers from another model of the same kind.

    Yosinski et al., "How transferable are features in deep neural networks?", 2014.

    Attributes:
        source: checkpoint of the other model, which also supplies shape and tokenizer.
        depth: number of layers to copy, from the input on (`Kind.layers`); 0 trains from scratch. The other layers,
            and always the head, are initialised anew.
        freeze: whether the copied layers are frozen (AnB) or fine-tuned at `backbone_lr` (AnB+).
    """

    source: str
    depth: int = Field(ge=0)
    freeze: bool = False


class TrainRecipe(Settings):
    """One training run: the settings that all kinds of models share.

    Attributes:
        kind: name of the kind of model.
        model: the shape, in fields of the kind's own config. Vocabulary and input sizes are filled in from the data.
        probe: fit the last layer before training; None: start from an untrained one.
        select_by: validation metric that selects the best epoch: a metric of the first output, or `OUTPUT.METRIC`;
            last: use the last epoch; None: the default metric of the first output.
        workers: Ray Train workers; 0 trains in this process, without Ray.
        use_gpu: None uses GPUs if the cluster has any.
        autoscale: the cluster starts nodes on demand, so a plan that does not fit yet is accepted.
        failures: how often a crashed worker group is restarted.
        loggers: where the figures of each epoch are logged (tensorboard, wandb, mlflow or your own): a name, or a list
            of names and of mappings with `name` and options. They do not change the result.
    """

    # Locations of the data: a run may resume after its data moved.
    places: ClassVar[tuple[str, ...]] = ("data.samples", "data.labels", "data.features", "data.embeddings")
    # Fields that name weights or checkpoints: workers run in other folders, so local paths are made absolute.
    paths: ClassVar[tuple[str, ...]] = ("init",)

    kind: str
    data: DataSettings = DataSettings()
    model: dict[str, Any] = Field(default_factory=dict)
    optimiser: OptimiserSettings = OptimiserSettings()
    probe: Probe | None = None
    select_by: str | None = None
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0)
    use_gpu: bool | None = None
    autoscale: bool = False
    failures: int = Field(2, ge=0)
    loggers: tuple[Logger, ...] = ()

    @field_validator("loggers", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return read_loggers(value)

    @field_serializer("loggers")
    def _with_options(self, value: tuple[Logger, ...]) -> list[dict[str, Any]]:
        """Keeps the options of each class, of which pydantic knows the base alone."""
        return [own.model_dump(mode="json", exclude_defaults=True) for own in value]

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, value: Any) -> Any:
        """Keeps what a field's own default states where only other settings of its group are given.

        Without it, a default `LossSettings(name="discrete")` with `{"options": ...}` would become another loss.
        """
        if not isinstance(value, Mapping):
            return value
        filled = dict(value)
        for name, field in cls.model_fields.items():
            default, given = field.default, value.get(name)
            if isinstance(default, Settings) and isinstance(given, Mapping):
                filled[name] = merge(default.model_dump(include=default.model_fields_set), given)
        return filled

    @model_validator(mode="after")
    def _probe_fits(self) -> Self:
        own, last = self.optimiser, self.select_by == "last"
        changed = [
            name for name, used in (("average", own.average != "none"), ("l2_sp", bool(own.l2_sp)),
                                    ("interpolate", own.interpolate != (1.0,))) if used
        ]  # fmt: skip
        if self.probe is not None and own.epochs == 1 and changed:
            raise ValueError(
                f"a probe with optimiser.epochs 1 takes no step of training, so optimiser.{changed[0]} would do nothing"
            )
        several = [("probe.strengths", self.probe is not None and len(self.probe.strengths) > 1),
                   ("optimiser.interpolate", len(own.interpolate) > 1)]  # fmt: skip
        if last and (names := [name for name, many in several if many]):
            raise ValueError(f"select_by last chooses nothing on validation: give {names[0]} one value")
        return self

    @model_validator(mode="after")
    def _caches_here(self) -> Self:
        if isinstance(self.data, WholePictureSettings) and self.data.cache_images and self.workers:
            raise ValueError("data.cache_images is for workers: 0; Ray Data decodes for the others")
        return self

    def result_settings(self) -> dict[str, Any]:
        """Returns the settings that determine the result: all but those of where and how often to run, and loggers."""
        settings = self.model_dump(mode="json", exclude={"workers", "use_gpu", "autoscale", "failures", "loggers"})
        settings["data"].pop("decode_tasks", None)
        return settings

    def require_data(self, path: str) -> None:
        """Raises an `InputError` unless the recipe at `path` names a sample table."""
        if not self.data.samples:
            raise InputError(
                "names no sample table",
                path=path,
                remedy="Give one: --samples samples.parquet (see `raymotion data prepare`).",
            )

    def without_loggers(self) -> Self:
        """Returns the recipe as workers get it, which log nothing and need not know the loggers."""
        return self.model_copy(update={"loggers": ()})

    def sources(self) -> dict[str, str]:
        """Returns the checkpoints that the result depends on, by the setting that names them."""
        return {}

    def with_absolute_paths(self) -> Self:
        """Returns the recipe with absolute local paths."""
        update = {name: absolute_paths(getattr(self, name, None)) for name in self.paths}
        if self.probe is not None and self.probe.labels is not None and names_a_file(self.probe.labels):
            update["probe"] = absolute_paths(self.probe)
        return self.model_copy(update=update)


class MultiLabelRecipe(TrainRecipe):
    """Settings shared by models that predict a probability for each emotion.

    Attributes:
        loss: any of `learning.losses.multilabel`.
        distillation: learn soft targets with a temperature; None: the plain loss on hard or soft targets.
    """

    loss: LossSettings = LossSettings()
    distillation: Distillation | None = None

    @model_validator(mode="after")
    def _distils_something(self) -> Self:
        if self.distillation is not None and not self.data.soft_targets:
            raise ValueError("distillation learns soft targets: set data.soft_targets too")
        # Of the loss, only class weights are used then.
        options = {name: value for name, value in self.loss.options.items() if name != "class_weights"}
        of_hard = self.loss.name != LossSettings().name or any(options.values())
        if self.distillation is not None and self.distillation.weight == 1 and of_hard:
            raise ValueError("the loss is of hard labels, and distillation.weight 1 learns none of them")
        return self


class SingleLabelRecipe(TrainRecipe):
    """Settings shared by models that predict one label of a vocabulary.

    Attributes:
        loss: any of `learning.losses.single_label`.
        vote_weights: weigh each training sample by the share of annotators who agree with its label (`label_weights`).
    """

    loss: LossSettings = LossSettings(name="cross_entropy")
    vote_weights: bool = False


def absolute_paths(value: Any) -> Any:
    """Makes existing local paths absolute, in a string or in the strings of a settings object."""
    if isinstance(value, str):
        return storage.absolute(value) if os.path.exists(value) else value
    if isinstance(value, Settings):
        return value.model_copy(update={name: absolute_paths(own) for name, own in value})
    return value


def shape_of(config: type[S], recipe: TrainRecipe, **sizes: object) -> S:
    """Returns the recipe's `model` as the config of its network, with sizes from the data.

    Raises:
        InputError: a setting is invalid; the message names it with the prefix `model.`.
    """
    try:
        return load_settings(config, options={**recipe.model, **sizes})
    except InputError as error:
        reason = error.reason
        named = reason.replace("setting ", "setting model.", 1) if "setting " in reason else f"setting model: {reason}"
        raise InputError(named, remedy=error.remedy) from error
