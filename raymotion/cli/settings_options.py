"""Creates click options from a settings class: name, type, limits, default and help come from its fields."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raymotion.config import Metavar

F = TypeVar("F", bound=Callable[..., Any])


def options_from(
    model: type[BaseModel],
    *,
    arguments: Sequence[str] = (),
    without: Collection[str] = (),
    names: Mapping[str, str] | None = None,
    required: bool = True,
) -> Callable[[F], F]:
    """Adds an option for each field of `model` to a command, in the order of the fields.

    `batch_size` becomes `--batch-size`. A bool is a flag (`--no-NAME` where the default is true), a `Literal` a choice,
    a tuple or list an option that may be repeated, and limits of numbers (`ge`, `gt`, `le`, `lt`) are checked. The help
    is the field's description followed by the default, unless it already ends in `[default: ...]`. An option that is
    not given is None, so that a settings file can supply it; pass the values to `config.load_settings`.

    Args:
        arguments: fields that become arguments instead of options, in this order.
        without: fields without an option.
        names: option names that differ from the field's: `{"kind": "format"}` gives `--format`.
        required: whether the parser requires fields without a default. False if a settings file may supply them.

    Raises:
        TypeError: a field's type is not supported.
    """

    def decorate(command: F) -> F:
        for name in reversed([*arguments, *(name for name in model.model_fields if name not in arguments)]):
            if name not in without:
                field = model.model_fields[name]
                option = (names or {}).get(name, name).replace("_", "-")
                command = _parameter(name, option, field, name in arguments, required and field.is_required())(command)
        return command

    return decorate


def _parameter(name: str, option: str, field: FieldInfo, is_argument: bool, required: bool) -> Callable[[F], F]:
    kind, marks, several = _unwrapped(field.annotation, list(field.metadata))
    metavar = next((str(mark) for mark in marks if isinstance(mark, Metavar)), None)
    if is_argument:
        metavar = metavar or option.upper()
        shown = f"[{metavar}]" if not field.is_required() else metavar
        return click.argument(name, required=required, metavar=shown)
    # Of settings that a file may hold too, click does not know which are required.
    marked = "  [required]" if field.is_required() and not required else ""
    common: dict[str, Any] = {"help": _help(field) + marked, "required": required}
    if kind is bool:
        off = field.default is True
        return click.option(
            f"--no-{option}" if off else f"--{option}", name, is_flag=True, flag_value=not off, default=None, **common
        )
    if several:
        common |= {"multiple": True, "callback": lambda _context, _parameter, value: value or None}
    return click.option(f"--{option}", name, type=_type(name, kind, marks), metavar=metavar, **common)


def _unwrapped(annotation: Any, marks: list[Any]) -> tuple[Any, list[Any], bool]:
    """Returns the type of one value without `Annotated`, `None` and sequence, its metadata, and if it is repeated."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _unwrapped(inner[0], [*marks, *inner[1:]])
    if origin in (Union, types.UnionType) and len(rest := [kind for kind in inner if kind is not type(None)]) == 1:
        return _unwrapped(rest[0], marks)
    if origin is list or (origin is tuple and inner[1:] == (...,)):
        kind, marks, _ = _unwrapped(inner[0], marks)
        return kind, marks, True
    return annotation, marks, False


def _type(name: str, kind: Any, marks: list[Any]) -> click.ParamType:
    if get_origin(kind) is Literal:
        return click.Choice(list(get_args(kind)))
    if kind is str:
        return click.STRING
    if kind is int or kind is float:
        limits: dict[str, Any] = {}
        for mark in marks:
            for end, (closed, opened) in {"min": ("ge", "gt"), "max": ("le", "lt")}.items():
                if hasattr(mark, closed) or hasattr(mark, opened):  # one of annotated_types.Ge, Gt, Le, Lt
                    limits |= {
                        end: getattr(mark, closed, getattr(mark, opened, None)),
                        f"{end}_open": hasattr(mark, opened),
                    }
        if not limits:
            return click.INT if kind is int else click.FLOAT
        return click.IntRange(**limits) if kind is int else click.FloatRange(**limits)
    raise TypeError(f"no option can stand for {name}: {kind}; leave it out with `without`")


def _help(field: FieldInfo) -> str:
    """Returns the description as a sentence, and the default."""
    text, told, rest = (field.description or "").partition("[default:")
    text = text.strip()
    if text.split(" ", 1)[0].rstrip(",.:;").isalpha():  # not a name, such as emotic-26
        text = text[:1].upper() + text[1:]
    if text and text[-1] != ".":
        text += "."
    default = field.get_default(call_default_factory=False)
    if told:
        return f"{text}  {told}{rest}"
    if field.is_required() or isinstance(default, bool) or default in (None, (), [], ""):
        return text
    values = default if isinstance(default, tuple | list) else [default]
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return f"{text}  [default: {shown}]"
