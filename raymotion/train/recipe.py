"""What a recipe may say: one YAML file per model that this project trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from raymotion import storage
from raymotion.config import Settings, load_settings, read_yaml
from raymotion.data.images.damage import DamagedPolicy
from raymotion.errors import InputError
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.fusion_tuned.recipe import FusionTunedRecipe
from raymotion.models.recipe import DataSettings, OptimiserSettings, TrainRecipe

# Imports nothing heavy: the command line reads recipes before torch is needed.


class CaptionDataSettings(DataSettings):
    """What a model that reads captions trains on.

    Attributes:
        caption_dropout: how often a training sample that has a picture too is shown without its caption, so that the
            model knows what to do where it is missing.
    """

    caption_dropout: float = Field(0.1, ge=0, le=0.5)


class TeacherDataSettings(CaptionDataSettings):
    """What a teacher trains on.

    Attributes:
        features: folder of region features, or None for captions alone.
        region_dropout: as caption_dropout, for the regions.
    """

    features: str | None = None
    region_dropout: float = Field(0.1, ge=0, le=0.5)


class TokenizerSettings(Settings):
    """`source`: hub id, file or folder, or `train`: learned from the training captions, `size` pieces at most."""

    source: str = "train"
    size: int = Field(4000, ge=100)


class CaptionOptimiserSettings(OptimiserSettings):
    """What the optimiser of a model that reads captions has besides.

    Attributes:
        word_dropout: share of the caption's word pieces hidden behind [UNK] in training.
    """

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    word_dropout: float = Field(0.0, ge=0, lt=1)


class CaptionRecipe(TrainRecipe):
    """What models that read captions share."""

    data: CaptionDataSettings = CaptionDataSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    optimiser: CaptionOptimiserSettings = CaptionOptimiserSettings()
    class_weights: Literal["none", "inverse", "sqrt_inverse", "effective"] = "none"

    def pretrained_text(self) -> str | None:
        """Hub id or folder of the text model that training starts from: its tokenizer is the one to use."""
        return None


class TeacherOptimiserSettings(CaptionOptimiserSettings):
    """What a teacher's optimiser has besides.

    Attributes:
        layer_decay: each layer of the transformer learns at this multiple of the rate of the one above it (Howard and
            Ruder 2018); the embeddings lie below the first. The top one has backbone_lr.
        group_by_length: captions of like length share a batch, so that less of it is padding: a third faster on a CPU.
    """

    layer_decay: float = Field(1.0, gt=0, le=1)
    group_by_length: bool = False


class TeacherRecipe(CaptionRecipe):
    """A VisualBERT with a multi-label head.

    Attributes:
        init: hub id or folder of a pretrained VisualBERT for the backbone.
        text_init: hub id or folder of a BERT for its text tower; None of the two starts from random weights.
        model: fields of `models.visualbert.TeacherConfig`, and `size: tiny | small | base`.
    """

    kind: Literal["teacher-visualbert"] = "teacher-visualbert"
    data: TeacherDataSettings = TeacherDataSettings()
    optimiser: TeacherOptimiserSettings = TeacherOptimiserSettings()
    init: str | None = None
    text_init: str | None = None
    model: dict[str, Any] = Field(default_factory=lambda: {"size": "small"})

    def pretrained_text(self) -> str | None:
        return self.init or self.text_init


class StudentDataSettings(CaptionDataSettings):
    """What a student trains on: samples that people labelled, or pseudo-labels.

    Attributes:
        labels: folder of `raymotion label`, in place of `samples`. With `soft_targets` the teacher's probabilities are
            learned, else the labels that its policy chose.
        val_fraction: share of the pseudo-labelled images that validate how well student and teacher agree.
        image_dropout: as caption_dropout, for the picture.
        augmentation: of training pictures. none: the whole picture. basic: a random crop, mirrored every second time.
            full: colours vary too.
        smallest_crop: of a random crop, as a share of the picture's area.
        cache_images: decode every picture once, into a file of raw pixels that all runs on the same data share; for
            small sets and many runs, with `workers: 0`.
        damaged: a picture that decodes, but not to what was stored. quarantine: left out, as one that cannot be read.
            keep: shown as it decodes.
        epoch_samples: samples between two validations (and checkpoints); None: all of them.
        decode_tasks: how many pictures are decoded at once for each worker; None: as the cores allow.
    """

    labels: str | None = None
    val_fraction: float = Field(0.05, gt=0, lt=1)
    image_dropout: float = Field(0.1, ge=0, le=0.5)
    augmentation: Literal["none", "basic", "full"] = "basic"
    smallest_crop: float = Field(0.5, gt=0, le=1)
    cache_images: bool = False
    damaged: DamagedPolicy = "quarantine"
    epoch_samples: int | None = Field(None, ge=1)
    decode_tasks: int | None = Field(None, ge=1)


class Distillation(Settings):
    """Hinton et al. (2015), for independent labels; see `learning.distillation.distillation_loss`.

    Attributes:
        temperature: both sides' logits are divided by it. 1 keeps the teacher's probabilities as they are.
        weight: of the soft part; the rest is the loss on the hard labels.
    """

    temperature: float = Field(2.0, gt=0)
    weight: float = Field(1.0, ge=0, le=1)


class Transfer(Settings):
    """Layers from another student (Yosinski et al., "How transferable are features in deep neural networks?", 2014).

    Attributes:
        source: checkpoint of the student; shape and tokenizer come from there too.
        depth: how many layers are copied, from the input on (`Student.blocks`); 0: none, training from scratch. The
            others start anew, the head always.
        freeze: whether the copied layers stay as they are (AnB), or are fine-tuned at `backbone_lr` (AnB+).
    """

    source: str
    depth: int = Field(ge=0)
    freeze: bool = False


class StudentRecipe(CaptionRecipe):
    """A student that reads picture and caption.

    Attributes:
        model: fields of `models.student.StudentConfig`.
        image_init: weights file of the image encoder, or `timm` for those that timm publishes; None: random.
        text_init: hub id or folder of a BERT. A GRU takes its table of word embeddings, a BERT encoder all of it.
        distillation: learn the soft targets with a temperature; None: the plain loss on hard or soft targets.
        transfer: start from layers of another student.
    """

    kind: Literal["student"] = "student"
    data: StudentDataSettings = StudentDataSettings()
    image_init: str | None = None
    text_init: str | None = None
    distillation: Distillation | None = None
    transfer: Transfer | None = None

    @model_validator(mode="after")
    def _one_start(self) -> StudentRecipe:
        if self.transfer is not None and (self.model or self.image_init or self.text_init):
            raise ValueError("with transfer, shape and weights come from its source: leave model and *_init out")
        return self

    @model_validator(mode="after")
    def _distils_something(self) -> StudentRecipe:
        if self.distillation is not None and not self.data.soft_targets:
            raise ValueError("distillation learns soft targets: set data.soft_targets too")
        if self.distillation is not None and self.optimiser.label_smoothing and self.distillation.weight == 1:
            raise ValueError("optimiser.label_smoothing smooths hard labels, and distillation.weight 1 learns none")
        return self

    def result_settings(self) -> dict[str, Any]:
        settings = super().result_settings()
        del settings["data"]["decode_tasks"]
        return settings

    @model_validator(mode="after")
    def _caches_here(self) -> StudentRecipe:
        if self.data.cache_images and self.workers:
            raise ValueError("data.cache_images is for workers: 0; Ray Data decodes for the others")
        return self

    def pretrained_text(self) -> str | None:
        return self.text_init

    def require_data(self, path: str) -> None:
        if bool(self.data.samples) == bool(self.data.labels):
            raise InputError(
                "names both samples and labels" if self.data.samples else "names no data",
                path=path,
                remedy="Give either --samples samples.parquet or --labels FOLDER (of `raymotion label`).",
            )


KINDS: dict[str, type[TrainRecipe]] = {
    "teacher-visualbert": TeacherRecipe, "student": StudentRecipe, "fusion": FusionRecipe,
    "fusion-tuned": FusionTunedRecipe,
}  # fmt: skip


def recipes_folder() -> Path:
    """The recipes that come with raymotion: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> str:
    """Path of a recipe: `name` itself if it is a file or an address, else the one of that name that comes along."""
    if storage.is_remote(name) or Path(name).is_file():
        return name
    shipped = recipes_folder() / (Path(name).name if name.endswith(".yaml") else f"{name}.yaml")
    # recipes/NAME.yaml works from any folder, not only from the root of a checkout.
    if Path(name).parent in (Path("."), Path("recipes")) and shipped.is_file():
        return str(shipped)
    known = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
    raise InputError("no such recipe", path=name, remedy=f"Give a YAML file, or one of: {', '.join(known) or 'none'}.")


def load_recipe(name: str, *, options: dict[str, Any] | None = None, assignments: tuple[str, ...] = ()) -> TrainRecipe:
    """The recipe `name` with options and `--set` assignments laid over it.

    Raises:
        InputError: no such recipe, an unknown or bad setting, no samples.
    """
    path = find_recipe(name)
    kind = read_yaml(path).get("kind", "teacher-visualbert")
    if kind not in KINDS:
        raise InputError(
            f"no model is of the kind {kind!r}",
            path=path,
            remedy=f"Write kind: {' or kind: '.join(KINDS)}.",
        )
    recipe = load_settings(KINDS[kind], file=path, options=options, assignments=assignments)
    recipe.require_data(path)
    return recipe
