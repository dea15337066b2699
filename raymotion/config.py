"""Settings: builds one validated object from a YAML file and command-line overrides.

Every job and recipe defines its own pydantic model that inherits `Settings`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from raymotion import storage
from raymotion.errors import InputError, SettingsMismatch, guess


class Settings(BaseModel):
    """Base of all settings: rejects unknown names and numbers that are not finite; immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def digest(self, *, without: Iterable[str] = ()) -> str:
        """Returns 16 hex digits that identify the values of all settings, except those named in `without`."""
        return digest_of(self.model_dump(mode="json", exclude=set(without)))


class Metavar(str):
    """Placeholder for a setting's value in the help of its command: `Annotated[float, Metavar("SECONDS")]`."""


def _path_text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_path_text)]
File = Annotated[PathText, Metavar("FILE")]
Folder = Annotated[PathText, Metavar("FOLDER")]

S = TypeVar("S", bound=Settings)


def digest_of(value: Any) -> str:
    """Returns the first 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipes_folder() -> Path:
    """Returns the folder of the bundled recipes: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def read_yaml(path: storage.PathLike) -> dict[str, Any]:
    """Reads a YAML file that contains a mapping; an empty file gives an empty mapping."""
    try:
        value = yaml.safe_load(storage.read_text(path))
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # `when: 2024-13-45` raises a ValueError because it looks like a date
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        raise InputError(
            f"is not YAML: {getattr(error, 'problem', None) or error}" + (f" (line {line})" if line else ""), path=path
        ) from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"holds a {type(value).__name__}, not a mapping of settings", path=path)
    return value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Parses `("data.samples=x.parquet", "epochs=3")` into a nested mapping, with values as YAML scalars or lists."""
    result: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise InputError(f"--set {assignment!r} is not of the form name=value", remedy="Write --set data.batch=32.")
        try:
            value = yaml.safe_load(text) if text else ""
        except (yaml.YAMLError, ValueError):
            value = text  # e.g. a Windows path or a pattern: a plain string
        level = result
        *parents, last = (part.strip() for part in key.split("."))
        for part in parents:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise InputError(f"--set {assignment!r}: {part} was set to a value before")
        level[last] = value
    return result


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merges nested mappings recursively; later layers replace other values of earlier ones."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, Mapping):
                below = result.get(key)
                result[key] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                result[key] = value
    return result


def require_same_settings(
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    where: storage.PathLike,
    remedy: str = "Use the same settings, or another folder.",
    ignore: Container[str] = (),
) -> None:
    """Raises a `SettingsMismatch` unless a folder was made with the current settings.

    Both sides are compared as JSON: tuples equal lists, and a missing setting equals None.

    Args:
        old, new: nested mappings, of `where` and of this command.
        where: the folder, for the message.
        ignore: dotted names, such as "data.samples", that may differ.

    Raises:
        SettingsMismatch: lists up to five differences, as `name: OLD there, NEW here`.
    """
    there, here = _flat(json.loads(json.dumps(old))), _flat(json.loads(json.dumps(new)))
    differences = [
        f"{name}: {there.get(name, '(not set)')} there, {here.get(name, '(not set)')} here"
        for name in {**there, **here}
        if name not in ignore and there.get(name) != here.get(name)
    ]
    if differences:
        listed = "; ".join([*differences[:5], *(["..."] if len(differences) > 5 else [])])
        raise SettingsMismatch(f"was made with other settings ({listed})", path=where, remedy=remedy)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            result.update(_flat(item, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = item
    return result


def load_settings(
    model: type[S],
    *,
    file: storage.PathLike | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
) -> S:
    """Builds validated settings; options (other than None) override the file, and `--set` overrides both."""
    layers = [
        read_yaml(file) if file else {},
        {key: value for key, value in (options or {}).items() if value is not None},
        parse_assignments(assignments),
    ]
    try:
        return model.model_validate(merge(*layers))
    except ValidationError as error:
        raise InputError(first_problem(error, model), path=file) from error


def first_problem(error: ValidationError, model: type[BaseModel]) -> str:
    """Describes the first invalid setting, and names the known ones if there is no such setting."""
    problems = error.errors()
    first = problems[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        text = f"setting {name} is missing: give it on the command line or in --config"
    elif first["type"] == "extra_forbidden":
        fields = _fields_at(model, first["loc"][:-1])
        text = f"there is no setting {name}" + (f" (there are: {', '.join(fields)})" if fields else "")
        text += "." + hint if (hint := guess(str(first["loc"][-1]), fields)) else ""
    else:
        text = f"setting {name} = {first['input']!r}: {message_of(first)}" if name else message_of(first)
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def message_of(problem: Mapping[str, Any]) -> str:
    """Returns what is wrong, from one of `ValidationError.errors()`: our own messages without pydantic's prefix."""
    return str(problem["msg"]).removeprefix("Value error, ")


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
