"""`raymotion models`: what a recipe can name, read from the tables that training reads."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, get_args

import click
from pydantic import BaseModel

from raymotion.errors import InputError

KINDS = "raymotion.models.registry:KINDS"
# What is listed: a title, and a table of names as `module:table`.
TABLES = {
    "Kinds": KINDS,
    "Inputs": "raymotion.models.inputs.table:INPUTS",
    "Outputs": "raymotion.models.outputs.table:OUTPUTS",
    "Losses of a multi-label output": "raymotion.learning.losses.multilabel:LOSSES",
    "Region extractors": "raymotion.models.vision.regions:ARCHITECTURES",
    "Backbones, beside every other name of timm's": "raymotion.models.vision.backbones:ALIASES",
}


@click.command()
@click.argument("name", required=False)
def models(name: str | None) -> None:
    """List the kinds of model that can be trained, and their inputs, outputs and losses.

    With NAME, a kind: what it is, and every setting of its recipe with type and default, as --set takes it. A kind that
    is not listed is named by its address, my_package.my_module:MyKind.

    \b
    Example:
      raymotion models
      raymotion models student
    """
    formatter = click.HelpFormatter(max_width=120)
    if name is None:
        for title, address in TABLES.items():
            _section(formatter, title, _entries(_load(address)))
    else:
        kind = _find(name)
        formatter.write_text(inspect.getdoc(kind) or name)
        _section(formatter, "Settings of its recipe", list(_settings(kind.recipe)))
    click.echo(formatter.getvalue().strip())


def _section(formatter: click.HelpFormatter, title: str, rows: list[tuple[str, str]]) -> None:
    with formatter.section(title):
        formatter.write_dl(rows, col_max=40)


def _load(address: str) -> Any:
    """What `module:attribute` names."""
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


def _entries(table: Any) -> list[tuple[str, str]]:
    """The names of a table, each with the first line about the class that it stands for, or with what it is short for.

    Names that stand for neither share one line.
    """
    if not (isinstance(table, Mapping) and all(isinstance(value, str) for value in table.values())):
        return [(", ".join(table), "")]
    return [(name, _first_line(value) if ":" in value else value) for name, value in table.items()]


def _first_line(address: str) -> str:
    try:
        return (inspect.getdoc(_load(address)) or "").partition("\n")[0]
    except (ImportError, AttributeError) as error:  # somebody else's: it does not hide the others
        return f"cannot be imported: {error}"


def _find(name: str) -> Any:
    kinds = _load(KINDS)
    if name not in kinds and ":" not in name:
        raise InputError(f"no kind of model is called {name!r}", remedy=f"Choose from {', '.join(kinds)}.")
    try:
        return _load(kinds.get(name, name))
    except (ImportError, AttributeError) as error:
        raise InputError(f"the kind {name} cannot be imported: {error}", remedy="Write module:Class.") from error


def _settings(recipe: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name of each field, and its type, default and description; a field of settings gives those inside it."""
    for name, field in recipe.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner:
            yield from _settings(inner[0], f"{prefix}{name}.")
            continue
        told = inspect.formatannotation(field.annotation)
        if not field.is_required():
            told += f" = {field.get_default(call_default_factory=True)!r}"
        yield f"{prefix}{name}", f"{told}. {field.description}" if field.description else told
