"""Finds a recipe by name, applies command-line overrides and validates it as a recipe of its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raymotion import storage
from raymotion.config import load_settings, read_yaml, recipes_folder
from raymotion.errors import InputError, guess
from raymotion.models.kind import Kind
from raymotion.models.outputs.base import DataFacts
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import get_kind, kind_names

# No heavy imports: the command line reads recipes before it needs torch.


def find_recipe(name: str) -> str:
    """Returns the path of a recipe: `name` itself if it is a file or an address, else the bundled recipe `name`."""
    if storage.is_remote(name) or Path(name).is_file():
        return name
    shipped = recipes_folder() / (Path(name).name if name.endswith(".yaml") else f"{name}.yaml")
    # recipes/NAME.yaml works from any folder, not only from the root of a checkout.
    if Path(name).parent in (Path("."), Path("recipes")) and shipped.is_file():
        return str(shipped)
    known = sorted(path.stem for path in recipes_folder().glob("*.yaml"))
    hint = guess(str(name), known).lstrip()
    remedy = f"{hint} Give a YAML file, or one of: {', '.join(known) or 'none'}.".lstrip()
    raise InputError("no such recipe", path=name, remedy=remedy)


def kind_of(recipe: TrainRecipe) -> Kind:
    """Returns the kind of a recipe."""
    return get_kind(recipe.kind)


def require_independent_labels(recipe: TrainRecipe, facts: DataFacts) -> None:
    """Raises an `InputError` unless the recipe's first output are labels that apply independently, ranked one by one.

    Args:
        facts: of the sample table that it is trained on.
    """
    first = kind_of(recipe).checked_outputs(recipe, facts, prepared=True)[0]
    if first.gives != "labels":
        what = "one label a sample" if first.gives == "one_label" else "no labels to rank"
        raise InputError(
            f"the recipe predicts {first.name}, {what}",
            path=facts.where,
            remedy="This comparison is of multi-label models: mAP and AUC of each label.",
        )


def require_loggers(recipe: TrainRecipe, out: str) -> None:
    """Raises an `InputError` if a logger of the recipe is not installed, or cannot log what is written to `out`."""
    for logger in recipe.loggers:
        logger.check(out)


def load_recipe(name: str, *, options: dict[str, Any] | None = None, assignments: tuple[str, ...] = ()) -> TrainRecipe:
    """Loads the recipe `name` and applies options and `--set` assignments.

    Raises:
        InputError: unknown recipe or kind, unknown or invalid setting, or no samples.
    """
    path = find_recipe(name)
    recipe = read_recipe(path, options=options, assignments=assignments)
    recipe.require_data(path)
    return recipe


def read_recipe(path: str, *, options: dict[str, Any] | None = None, assignments: tuple[str, ...] = ()) -> TrainRecipe:
    """Reads a recipe like `load_recipe`, but does not require it to name its training data.

    A custom kind may be named as `kind: package.module:Class`; it is then imported and registered.
    """
    named = read_yaml(path).get("kind")
    if not isinstance(named, str):
        raise InputError(
            "names no kind of model", path=path, remedy=f"Write one of kind: {', kind: '.join(kind_names())}."
        )
    kind = get_kind(named, path=path, may_import=True)
    return load_settings(
        kind.recipe, file=path, options={**(options or {}), "kind": kind.name}, assignments=assignments
    )
