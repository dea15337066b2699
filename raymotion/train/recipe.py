"""What a recipe may say: one YAML file per model that this project trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from raymotion import storage
from raymotion.config import Settings, load_settings
from raymotion.errors import InputError

# Imports nothing heavy: the command line reads recipes before torch is needed.


class DataSettings(Settings):
    """What to train on.

    Attributes:
        samples: sample table with labels and splits.
        features: folder of region features, or None for captions alone.
        soft_targets: learn the share of annotators where the table has it, instead of 0 and 1.
        caption_dropout, region_dropout: how often a training sample that has both is shown without one of them, so that
            the teacher knows what to do where it is missing.
    """

    samples: str = ""
    features: str | None = None
    soft_targets: bool = False
    caption_dropout: float = Field(0.1, ge=0, le=0.5)
    region_dropout: float = Field(0.1, ge=0, le=0.5)


class TokenizerSettings(Settings):
    """`source`: hub id, file or folder, or `train`: learned from the training captions, `size` pieces at most."""

    source: str = "train"
    size: int = Field(4000, ge=100)


class OptimiserSettings(Settings):
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        lr: of the head. backbone_lr: of the transformer and its embeddings.
        warmup: share of all steps. clip: largest gradient norm.
        word_dropout: share of the caption's word pieces hidden behind [UNK] in training.
        patience: epochs without a better validation score before it stops.
    """

    lr: float = Field(1e-3, gt=0)
    backbone_lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, le=1)
    clip: float = Field(1.0, gt=0)
    batch_size: int = Field(32, ge=1)
    epochs: int = Field(15, ge=1)
    patience: int = Field(5, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    word_dropout: float = Field(0.0, ge=0, lt=1)


class TrainRecipe(Settings):
    """One training run.

    Attributes:
        init: hub id or folder of a pretrained VisualBERT for the backbone; None starts from random weights.
        model: fields of `models.visualbert.TeacherConfig`, and `size: tiny | small | base`. The vocabulary and the
            region size are filled in from tokenizer and features.
        select_by: what the best epoch is chosen by, on validation.
        workers: Ray Train workers; 0 trains in this process, without Ray.
        use_gpu: None takes GPUs where the cluster has them.
        autoscale: the cluster starts nodes for workers that wait, so a plan that does not fit now is not refused.
        failures: how often a crashed worker group is started again.
    """

    kind: Literal["teacher-visualbert"] = "teacher-visualbert"
    data: DataSettings = DataSettings()
    init: str | None = None
    model: dict[str, Any] = Field(default_factory=lambda: {"size": "small"})
    tokenizer: TokenizerSettings = TokenizerSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    class_weights: Literal["none", "inverse", "sqrt_inverse", "effective"] = "none"
    select_by: Literal["bce", "macro_ap"] = "bce"
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0)
    use_gpu: bool | None = None
    autoscale: bool = False
    failures: int = Field(2, ge=0)

    def result_settings(self) -> dict[str, Any]:
        """The settings that decide the result: all but where and how often it is tried."""
        return self.model_dump(mode="json", exclude={"workers", "use_gpu", "autoscale", "failures"})


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
    recipe = load_settings(TrainRecipe, file=path, options=options, assignments=assignments)
    if not recipe.data.samples:
        raise InputError(
            "names no sample table",
            path=path,
            remedy="Give one: --samples samples.parquet (see `raymotion data prepare`).",
        )
    return recipe
