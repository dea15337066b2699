"""Lists of what a command or a recipe can name: kinds, recipes, extractors, vocabularies, readers."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic import BaseModel

from raymotion.errors import InputError

# Listed after the kinds: a title, and a table of names as `module:table`.
TABLES = {
    "Inputs": "raymotion.models.inputs.table:INPUTS",
    "Outputs": "raymotion.models.outputs.table:OUTPUTS",
    "Losses of a multi-label output": "raymotion.learning.losses.multilabel:LOSSES",
    "Losses of one label": "raymotion.learning.losses.single_label:LOSSES",
    "Losses of numbers": "raymotion.learning.losses.dimensions:LOSSES",
    "Fusion networks": "raymotion.models.fusion.config:FUSIONS",
    "Backbones, besides all other names in timm": "raymotion.models.vision.backbones:ALIASES",
    "Loggers": "raymotion.loggers.logger:LOGGERS",
}


@click.command()
@click.argument("name", required=False)
def kinds(name: str | None) -> None:
    """List the kinds of model that can be trained, and their inputs, outputs and losses.

    With NAME, a kind: its description, and every setting of its recipe with type and default, as used with --set. Or an
    input, output, loss, fusion network or logger: its description, and its options. Your own kind is listed if its
    package is installed, and can be given as my_package.my_module:MyKind.

    \b
    Example:
      raymotion kinds
      raymotion kinds student
      raymotion kinds focal
    """
    from raymotion.models.registry import get_kind, kind_names

    if name is None:
        tables = {title: _entries(_load(address)) for title, address in TABLES.items()}
        _show({"Kinds": [(own, _kind_line(own)) for own in kind_names()], **tables})
    elif parts := {} if name in kind_names() else _parts_called(name):
        for title, part in parts.items():
            click.echo(f"{title}: {name}\n")
            options: Any = part if _is_settings(part) else getattr(part, "Options", None)
            rows = list(_settings(options)) if _is_settings(options) else []
            _show({"Options": rows} if rows else {}, inspect.getdoc(part) or name)
    else:
        kind = type(get_kind(name, may_import=True))
        _show({"Settings of its recipe": list(_settings(kind.recipe))}, inspect.getdoc(kind) or name)


def _parts_called(name: str) -> dict[str, Any]:
    """Returns title of the table -> class, for the inputs, losses ... of this name."""
    found = {}
    for title, address in TABLES.items():
        value = _load(address).get(name)
        place = getattr(value, "network", value)
        if isinstance(place, str) and ":" in place:
            place = _load(place)
        if isinstance(place, type):
            found[title] = place
    return found


def _is_settings(what: Any) -> bool:
    return isinstance(what, type) and issubclass(what, BaseModel)


@click.command()
def recipes() -> None:
    """List the recipes that come with raymotion, as `train`, `finetune` and `tune` take them by name.

    \b
    Example:
      raymotion recipes
    """
    from raymotion.config import recipes_folder

    _show({"Recipes": [(path.stem, _comment(path)) for path in sorted(recipes_folder().glob("*.yaml"))]})


@click.command()
def extractors() -> None:
    """List the region extractors, and the trained weights that installed packages hold.

    \b
    Example:
      raymotion extractors
    """
    from raymotion.bundled import BUNDLES, is_installed
    from raymotion.models.vision.regions import ARCHITECTURES, GRID

    missing = "; not installed: pip install 'raymotion[offline]'"
    grid = (f"{GRID}BACKBONE", "the last feature map of any timm model, cut into --count cells")
    found = [
        (name, f"{own.dim:,} numbers a region, default weights {own.published}") for name, own in ARCHITECTURES.items()
    ]
    bundles = [
        (f"bundled:{name}", own.about + ("" if is_installed(name) else missing)) for name, own in BUNDLES.items()
    ]
    _show({"Extractors": [*found, grid], "Weights": bundles})


@click.command()
def vocabularies() -> None:
    """List the vocabularies of emotions that raymotion knows, with their labels.

    \b
    Example:
      raymotion vocabularies
    """
    from raymotion.vocabulary import VOCABULARIES

    _show({"Vocabularies": [(name, ", ".join(own.labels)) for name, own in VOCABULARIES.items()]})


@click.command()
def readers() -> None:
    """List the readers of raw data, as `raymotion data prepare` takes them by name.

    \b
    Example:
      raymotion readers
    """
    from raymotion.data.readers.reader import READERS

    _show({"Readers": [(name, _summary(READERS.get(name))) for name in READERS.names()]})


def _show(sections: Mapping[str, list[tuple[str, str]]], text: str = "") -> None:
    formatter = click.HelpFormatter(max_width=120)
    if text:
        formatter.write_text(text)
    for title, rows in sections.items():
        _section(formatter, title, rows)
    click.echo(formatter.getvalue().strip())


def _kind_line(name: str) -> str:
    from raymotion.models.registry import get_kind

    try:
        return _summary(type(get_kind(name)))
    except InputError as error:  # the others are listed all the same
        return f"({error})"


def _comment(path: Path) -> str:
    """The first sentence of the comment that a YAML file begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines).partition(". ")[0].rstrip(".") + "."


def _section(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    with formatter.section(title):
        if any(told for _, told in rows):
            formatter.write_dl(rows, col_max=40)
        else:
            formatter.write_text(", ".join(name for name, _ in rows))


def _load(address: str) -> Any:
    """Imports the object at `module:attribute`."""
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


def _entries(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the names of a table, each with the first line of its docstring, or with the name it abbreviates."""
    return [(name, _entry(value)) for name, value in table.items()]


def _entry(value: Any) -> str:
    place = getattr(value, "network", value)  # of a fusion network
    if isinstance(place, type):
        return _summary(place)
    if not isinstance(place, str):
        return ""
    if ":" not in place:
        return place
    try:
        return _summary(_load(place))
    except Exception as error:  # the others are listed all the same
        return f"({place} cannot be imported: {error})"


def _summary(what: Any) -> str:
    return (inspect.getdoc(what) or "").partition("\n")[0]


def _settings(recipe: type[BaseModel], prefix: str = "", filled: BaseModel | None = None) -> Iterator[tuple[str, str]]:
    """Yields each field's dotted name, and its type, default and description; nested settings are flattened.

    Args:
        filled: the default of the field that holds these settings, whose values may differ from those of its class.
    """
    for name, field in recipe.model_fields.items():
        several = get_origin(field.annotation) in (tuple, list)
        kinds = [field.annotation, *(() if several else get_args(field.annotation))]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            own = field.get_default(call_default_factory=True)
            yield from _settings(inner[0], f"{prefix}{name}.", own if isinstance(own, BaseModel) else None)
            continue
        told = inspect.formatannotation(field.annotation)
        if not field.is_required():
            default = field.get_default(call_default_factory=True) if filled is None else getattr(filled, name)
            told += f" = {default!r}"
        yield f"{prefix}{name}", f"{told}. {field.description}" if field.description else told
