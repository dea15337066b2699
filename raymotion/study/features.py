"""The cached features that a study reads, and the command that makes missing ones. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymotion import storage
from raymotion.data.embedding_layout import COMMAND, FeatureKey
from raymotion.data.embeddings import Embeddings
from raymotion.data.streams import LEVELS, STREAMS
from raymotion.errors import InputError
from raymotion.models.inputs.streams import StreamInput
from raymotion.models.recipe import TrainRecipe
from raymotion.study.space import (
    Space,
    Spaces,
    base_recipe,
    build_recipe,
    check_spaces,
    labels_of,
    read_spaces,
    value_at,
)
from raymotion.train.recipe import kind_of


def embedding_needs(folder: storage.PathLike) -> dict[str, Any]:
    """Returns the embeddings that a study over the spaces in a folder reads.

    Returns:
        `context`, `body` and `face`: names of backbones; `levels`: augmentation levels besides none; `tokens`: whether
        a fusion reads spatial tokens if available.
    """
    spaces = read_spaces(folder)
    base = base_recipe(spaces)
    check_spaces(spaces, base)
    return needs_of(spaces, base)


def needs_of(spaces: Spaces, base: TrainRecipe) -> dict[str, Any]:
    """Returns `embedding_needs` of spaces already read."""
    fields = [*(f"backbones.{stream}" for stream in STREAMS), "augmentation", "model.fusion"]
    start = base.model_dump(mode="json")
    needed: dict[str, list[Any]] = {name: [] for name in fields}
    possible = {name: [value_at(start, name)] for name in fields}

    def use(space: Space, own: dict[str, list[Any]]) -> dict[str, list[Any]]:
        varied = {name: labels_of(choices) for name, choices in space.options.items()}
        own = {**own, **{name: [value] for name, value in space.fixed.items() if name in own}}
        own.update({name: values for name, values in varied.items() if name in own})
        for name in fields:
            needed[name] += [value for value in own[name] if value not in needed[name]]
        return own

    for stage in spaces.stages:
        possible = use(stage, possible)
    if spaces.joint:
        use(spaces.joint, {name: [value_at(start, name)] for name in fields})
    return {
        **{stream: [name for name in needed[f"backbones.{stream}"] if name] for stream in STREAMS},
        "levels": [level for level in LEVELS if level != "none" and level in needed["augmentation"]],
        "tokens": any(
            _reads_tokens(base, spaces, str(name or "").removesuffix("_published")) for name in needed["model.fusion"]
        ),
    }


def _reads_tokens(base: TrainRecipe, spaces: Spaces, fusion: str) -> bool:
    """Returns whether the named network reads spatial tokens if available."""
    recipe = build_recipe(base, spaces, {"model.fusion": fusion}) if fusion else base
    return any(own.tokens for own in kind_of(recipe).checked_inputs(recipe) if isinstance(own, StreamInput))


def require_features(opened: Embeddings, spaces: Spaces, base: TrainRecipe, samples: str) -> None:
    """Raises one `InputError` that lists all missing features and gives the command that makes them as its remedy."""
    needs = needs_of(spaces, base)
    there = set(opened.keys)
    pairs = [(stream, name) for stream in STREAMS for name in needs[stream]]
    wanted = [FeatureKey(*pair, level) for pair in pairs for level in ("none", *needs["levels"])]
    if needs["tokens"]:
        # A head that reads a backbone's clean tokens also needs those of its augmented views.
        wanted += [
            FeatureKey(key.stream, key.backbone, key.level, True)
            for key in wanted
            if FeatureKey(key.stream, key.backbone, "none", True) in there
        ]
    missing = [key for key in wanted if key not in there]
    if not missing:
        return
    shown = ", ".join(key.column for key in missing[:6]) + (", ..." if len(missing) > 6 else "")
    raise InputError(
        f"lack {len(missing)} of the features that the study reads ({shown})",
        path=" and ".join(opened.folders),
        remedy=_command(opened, samples, pairs, missing, needs),
    )


def _command(
    opened: Embeddings,
    samples: str,
    pairs: Sequence[tuple[str, str]],
    missing: Sequence[FeatureKey],
    needs: dict[str, Any],
) -> str:
    """Returns how to make the missing features: in an additional folder, or all again in a new one.

    An embedding job always makes the clean features of its backbones, and two folders that are read together may not
    hold the same features. So missing levels or tokens of an existing backbone cannot be made separately.
    """
    new = [pair for pair in pairs if FeatureKey(*pair) in missing]
    beside = len(new) < len(pairs) and all((key.stream, key.backbone) in new for key in missing)
    options = [f"--{stream} {name}" for stream, name in (new if beside else pairs)]
    options += [f"--augment {level}" for level in needs["levels"]]
    views = {opened.views[level] for level in needs["levels"] if level in opened.views}
    if beside and len(views) == 1:
        options.append(f"--views {views.pop()}")
    if needs["tokens"] and (not beside or any(key.tokens for key in opened.keys)):
        options.append("--tokens 2")
    how = "Make them in a folder of their own, and name it too" if beside else "Make all in one folder, to name alone"
    return f"{how}: `{COMMAND} {samples} --out DIR {' '.join(options)}`."
