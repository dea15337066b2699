"""Search spaces of a study: one YAML file per stage, and one for the joint search.

A stage varies a few dotted fields of the recipe over a grid; all other fields come from the winner of the stage before.
The joint search draws from the choices of all stages at once.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from raymotion import storage
from raymotion.config import Settings, digest_of, first_problem, load_settings, merge
from raymotion.errors import InputError
from raymotion.models.recipe import TrainRecipe
from raymotion.published.studies import published_study
from raymotion.study.record import JOINT, Configuration
from raymotion.train.recipe import find_recipe, kind_of, read_recipe

# Imports neither torch nor Ray, because the embedding job reads spaces too.
# A choice for each label: a list uses its values as labels, a mapping names each value.
Choices = list[Any] | dict[str, Any]
# The key of a configuration's trial, its varied fields, and all of its fields.
Cell = tuple[str, Configuration, Configuration]
# Fields that a study cannot vary: the data, the number of epochs (early stopping counts in the base's epochs), the
# metric that selects the best epoch (trials are compared by it), and the hardware.
NOT_SEARCHED = (
    "kind", "data.samples", "data.labels", "data.val_fraction", "data.features", "data.embeddings", "seed", "workers",
    "use_gpu", "autoscale", "failures", "loggers", "optimiser.epochs", "select_by",
)  # fmt: skip


class Stopping(Settings):
    """Early stopping by asynchronous successive halving (ASHA, Li et al. 2020).

    Attributes:
        grace_epochs: minimum number of epochs of every configuration.
        reduction_factor: one in this many continues from each rung.
    """

    grace_epochs: int = Field(5, ge=1)
    reduction_factor: float = Field(3.0, gt=1)


class Space(Settings, ABC):
    """Base of stages and the joint search.

    Attributes:
        recipe: the base recipe, unless the command names one.
        fixed: dotted field -> value, for this space only.
        stopping: None trains every configuration to its end.
        published: name of a published study to compare with (a module of `raymotion.published`).
    """

    name: str = Field("search", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = "Search"
    recipe: str | None = None
    fixed: dict[str, Any] = {}
    stopping: Stopping | None = Stopping()
    published: str | None = None

    @property
    @abstractmethod
    def options(self) -> dict[str, Choices]:
        """Dotted field -> its choices."""

    @model_validator(mode="after")
    def _says_something(self) -> Space:
        for name, choices in self.options.items():
            if not choices:
                raise ValueError(f"{name} has no choices")
            labels = labels_of(choices)
            if len({digest_of(label) for label in labels}) != len(labels):
                raise ValueError(f"{name} names a choice twice")
        for name in (*self.options, *self.fixed):
            # A choice of a whole group replaces all of it, so groups that contain such a field are refused too.
            if any(f"{name}.".startswith(f"{own}.") or own.startswith(f"{name}.") for own in NOT_SEARCHED):
                raise ValueError(f"{name} is a field that a study cannot vary")
        if not self.options:
            raise ValueError("it varies nothing")
        return self

    def configurations(self) -> Iterator[Configuration]:
        """Yields all combinations of the choices, by label."""
        for values in itertools.product(*(labels_of(choices) for choices in self.options.values())):
            yield dict(zip(self.options, values, strict=True))

    def draw(self, count: int, *, seed: int, refused: Any = None) -> list[Configuration]:
        """Draws `count` different configurations, or all if there are fewer; a longer draw begins with a shorter one.

        Args:
            refused: returns whether a configuration cannot be trained; another is drawn in its place.
        """
        sizes = [len(labels_of(choices)) for choices in self.options.values()]
        total, rng, seen = math.prod(sizes), np.random.default_rng([seed, 40]), set[int]()
        drawn: list[Configuration] = []
        while len(drawn) < count and len(seen) < total:
            number = int(rng.integers(total))
            if number in seen:
                continue
            seen.add(number)
            places = np.unravel_index(number, sizes)
            config = {
                name: labels_of(choices)[int(place)]
                for (name, choices), place in zip(self.options.items(), places, strict=True)
            }
            if refused is None or not refused(config):
                drawn.append(config)
        return drawn


class StageSpace(Space):
    """One stage: the grid of a few fields.

    Attributes:
        stage: its place in the study, from 1.
        samples: number of configurations drawn from the grid without replacement; None: the whole grid.
    """

    stage: int = Field(1, ge=1)
    grid: dict[str, Choices]
    samples: int | None = Field(None, ge=1)

    @property
    def options(self) -> dict[str, Choices]:
        return self.grid


class JointSpace(Space):
    """The joint search: all fields at once.

    Attributes:
        samples: number of configurations drawn without replacement; None: as many as the stages train.
    """

    choices: dict[str, Choices]
    samples: int | None = Field(None, ge=1)

    @property
    def options(self) -> dict[str, Choices]:
        return self.choices


@dataclass(frozen=True)
class Spaces:
    """A folder of spaces: the stages in order, and the joint search, if any."""

    folder: str
    stages: tuple[StageSpace, ...]
    joint: JointSpace | None
    files: Mapping[str, str]

    @property
    def all(self) -> tuple[Space, ...]:
        """The stages and the joint search."""
        return (*self.stages, *([self.joint] if self.joint else []))

    @property
    def fields(self) -> list[str]:
        """Every field that any space varies, in order of first appearance."""
        return list(dict.fromkeys(name for space in self.all for name in (*space.options, *space.fixed)))

    @property
    def published(self) -> str | None:
        """Name of the published study that the spaces repeat."""
        return next((space.published for space in self.all if space.published), None)

    def only(self, names: Sequence[str] | None, *, joint: bool = True) -> Spaces:
        """Returns only the named stages (None: all), with or without the joint search."""
        known = [stage.name for stage in self.stages]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise InputError(f"has no stage {unknown[0]!r} (there are: {', '.join(known)})", path=self.folder)
        chosen = tuple(stage for stage in self.stages if names is None or stage.name in names)
        return Spaces(self.folder, chosen, self.joint if joint else None, self.files)


def labels_of(choices: Choices) -> list[Any]:
    """Returns the labels of a field's choices."""
    return list(choices)


def spaces_folder() -> Path:
    """Returns the folder of the bundled spaces: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "tune_spaces"
    return inside if inside.is_dir() else package.parent / "tune_spaces"


def read_spaces(folder: storage.PathLike) -> Spaces:
    """Reads the spaces in a folder: its `*.yaml`, with the joint search in `joint.yaml`; or the one stage in a file.

    Raises:
        InputError: there are no spaces, or one is invalid; names the file and the field.
    """
    path = str(folder)
    if not storage.is_remote(path) and not Path(path).exists() and Path(path).parts[:1] == ("tune_spaces",):
        path = str(spaces_folder().joinpath(*Path(path).parts[1:]))  # works outside a checkout's root, too
    single = path.endswith((".yaml", ".yml"))
    names = [] if single else [name for name in storage.list_names(path) if name.endswith(".yaml")]
    stages: dict[int, StageSpace] = {}
    joint: JointSpace | None = None
    files: dict[str, str] = {}
    for file in [path] if single else [storage.join(path, name) for name in names]:
        space: Space
        if not single and file.endswith(f"/{JOINT}.yaml"):
            space = joint = load_settings(JointSpace, file=file, options={"name": JOINT})
        else:
            space = stage = load_settings(StageSpace, file=file)
            if stage.stage in stages:
                raise InputError(f"is stage {stage.stage}, as {stages[stage.stage].name} is", path=file)
            stages[stage.stage] = stage
        if space.name in files or (space.name == JOINT and space is not joint):
            raise InputError(f"a space is called {space.name} already", path=file, remedy="Give it another name.")
        if space.published:
            published_study(space.published, where=file)
        files[space.name] = file
    if not stages:
        raise InputError("holds no stage of a study", path=folder, remedy="Name a folder such as tune_spaces/emotic/.")
    found = Spaces(path, tuple(stages[number] for number in sorted(stages)), joint, files)
    for what, said in (
        ("start from several recipes", {space.recipe for space in found.all if space.recipe}),
        ("name several published studies", {space.published for space in found.all if space.published}),
    ):
        if len(said) > 1:
            raise InputError(f"its spaces {what} ({', '.join(sorted(said))})", path=folder)
    return found


def base_recipe(
    spaces: Spaces,
    assignments: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    *,
    recipe: str | None = None,
) -> TrainRecipe:
    """Reads the base recipe of the spaces and applies options and `--set`.

    Args:
        recipe: replaces the one that the spaces name.

    Raises:
        InputError: no recipe is named, or it does not exist.
    """
    named = recipe or next((space.recipe for space in spaces.all if space.recipe), None)
    if named is None:
        raise InputError("names no recipe", path=spaces.folder, remedy="Write `recipe: NAME`, or give --recipe.")
    return read_recipe(find_recipe(named), options=dict(options or {}), assignments=tuple(assignments))


def build_recipe(base: TrainRecipe, spaces: Spaces, config: Configuration, *, where: object = None) -> TrainRecipe:
    """Returns `base` with the fields of `config` replaced.

    Args:
        config: dotted field -> label of a choice in any of the spaces, or a value.

    Raises:
        InputError: the recipe rejects a value; names the field.
    """
    layers: list[Mapping[str, Any]] = [base.model_dump(mode="json")]
    for name, label in config.items():
        value = _value(spaces, name, label)
        # A choice of a whole group replaces it, including fields that an earlier choice set.
        if isinstance(value, Mapping):
            layers = [_without(merge(*layers), name)]
        layers.append(_nested(name, value))
    try:
        recipe = type(base).model_validate(merge(*layers))
        kind_of(recipe).check_recipe(recipe)
    except ValidationError as error:
        name = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(f"{_fields(config, name)}: {first_problem(error, type(base))}", path=where) from error
    except InputError as error:
        raise InputError(f"{_fields(config)}: {error.reason}", path=where, remedy=error.remedy) from error
    return recipe


def check_spaces(spaces: Spaces, base: TrainRecipe) -> None:
    """Builds the recipe of every single choice, so that invalid choices are reported before anything runs.

    Raises:
        InputError: names the file and the field.
    """
    prepared = _preparation(base)
    for space in spaces.all:
        where = spaces.files[space.name]
        for name, choices in space.options.items():
            for label in labels_of(choices):
                recipe = build_recipe(base, spaces, {**space.fixed, name: label}, where=where)
                # A combination may be refused although the choice itself is valid.
                if refusal(recipe) is None and _preparation(recipe) != prepared:
                    raise InputError(
                        f"{name} = {label!r}: the data would have to be prepared anew, and a study prepares them once",
                        path=where,
                        remedy=f"Leave {name} out, and give its value with --set.",
                    )


def _preparation(recipe: TrainRecipe) -> list[Any]:
    """Returns the settings that determine how a recipe's data are prepared."""
    texts = None if recipe.probe is None else recipe.probe.labels
    kind = kind_of(recipe)
    inputs = [[own.name, own.preparation()] for own in kind.checked_inputs(recipe)]
    return [texts, recipe.data.model_dump(mode="json").get("holdout_domain"), inputs, kind.targets_settings(recipe)]


def refusal(recipe: TrainRecipe) -> str | None:
    """Returns why a combination of individually valid settings cannot be trained; None if it can."""
    try:  # for example a fusion of two streams when the ablation or the backbones leave only one
        kind_of(recipe).checked_inputs(recipe)
    except InputError as error:
        return error.reason
    return None


def trial_key(recipe: TrainRecipe, seeds: Sequence[int], data_fingerprint: str) -> str:
    """Returns 16 hex digits of everything that determines a trial's result; the location of the data does not."""
    settings = result_settings(recipe)
    del settings["seed"]
    return digest_of({"recipe": settings, "seeds": list(seeds), "data": data_fingerprint})


def result_settings(recipe: TrainRecipe) -> dict[str, Any]:
    """Returns the settings that determine a result, without the location of the data."""
    settings = recipe.result_settings()
    settings["data"] = {name: own for name, own in settings["data"].items() if f"data.{name}" not in recipe.places}
    return settings


def first_configuration(spaces: Spaces, base: TrainRecipe) -> Configuration:
    """Returns the base recipe's value of every field that any space varies, by label if the choices have labels."""
    start: Configuration = {}
    for name in spaces.fields:
        named = [space.options[name] for space in spaces.all if isinstance(space.options.get(name), dict)]
        labels = [label for choices in named for label in labels_of(choices)]
        same = (label for label in labels if build_recipe(base, spaces, {name: label}) == base)
        start[name] = next(same, value_at(base.model_dump(mode="json"), name))
    return start


def value_at(value: Any, name: str) -> Any:
    """Returns the value at a dotted name of a nested mapping; None if there is none."""
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _value(spaces: Spaces, name: str, label: Any) -> Any:
    """Returns the value of a field's label."""
    for space in spaces.all:
        choices = space.options.get(name)
        if isinstance(choices, dict) and isinstance(label, str) and label in choices:
            return choices[label]
    return label


def _nested(name: str, value: Any) -> dict[str, Any]:
    first, dot, rest = name.partition(".")
    return {first: _nested(rest, value) if dot else value}


def _without(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    first, dot, rest = name.partition(".")
    left = {key: item for key, item in value.items() if key != first}
    if dot and isinstance(value.get(first), Mapping):
        left[first] = _without(value[first], rest)
    return left


def _fields(config: Configuration, name: str = "") -> str:
    fields = {key: value for key, value in config.items() if name.startswith(key) or key.startswith(name)} or config
    return ", ".join(f"{key} = {value!r}" for key, value in fields.items())
