"""Loggers of experiments: what a recipe names under `loggers`, and the base class of one's own.

A logger runs in the process of the command, never in a worker: credentials and packages are needed there alone, and a
slow server delays no training step.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from raymotion.config import Settings, first_problem
from raymotion.errors import InputError
from raymotion.registry import Registry

LOGGERS: dict[str, str] = {
    "tensorboard": "raymotion.loggers.tensorboard:TensorBoardLogger",
    "wandb": "raymotion.loggers.wandb:WandbLogger",
    "mlflow": "raymotion.loggers.mlflow:MlflowLogger",
}
Status = Literal["complete", "interrupted", "failed"]


@dataclass(frozen=True)
class LoggedRun:
    """A training run, as a logger sees it at its beginning.

    Attributes:
        name: the name of the checkpoint's folder.
        out: address of the checkpoint; nothing lies there yet.
        parameters: the whole recipe, as nested JSON values.
        id: what `Logger.begin` returned when an earlier command began this run; None: the run is new.
        epoch: the last epoch that was logged; 0: none.
    """

    name: str
    out: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    id: str | None = None
    epoch: int = 0

    @property
    def flat(self) -> dict[str, Any]:
        """The parameters by dotted name."""
        return dict(_flat(self.parameters))


class Logger(Settings, ABC):
    """Sends the figures of training runs to an experiment tracker.

    The fields of a subclass are its options in a recipe. What it needs during a run (a client, a file) belongs into
    private attributes (`_client: Any = None`). Secrets belong into the environment: fields are stored in plain text.
    A method that raises does not end the training: the user is warned once, and it is called again after each epoch.

    Attributes:
        name: what the recipe calls it.
        packages: the modules that it imports, each with the name of its package.
    """

    packages: ClassVar[Mapping[str, str]] = {}
    name: str

    @property
    def needs(self) -> Mapping[str, str]:
        """The `packages` that these options need."""
        return self.packages

    def check(self, out: str) -> None:
        """Raises an `InputError` if a run whose checkpoint is written to `out` cannot be logged."""
        missing = [package for module, package in self.needs.items() if importlib.util.find_spec(module) is None]
        if missing:
            own = type(self).__module__.startswith(f"{__package__}.")
            raise InputError(
                f"the logger {self.name} needs {' and '.join(missing)}, which is not installed",
                remedy="pip install " + ("'raymotion[loggers]'" if own else " ".join(missing)),
            )

    @abstractmethod
    def begin(self, run: LoggedRun) -> str:
        """Begins to log a run, or continues it, and returns the id by which a later command can continue it."""

    @abstractmethod
    def log(self, epoch: int, figures: Mapping[str, float]) -> None:
        """Logs an epoch, counted from 1. Epochs come in order, each once."""

    @abstractmethod
    def end(self, status: Status, summary: Mapping[str, float | str]) -> None:
        """Ends the run; `summary` has the checkpoint's address, and of a complete run the best epoch and its metric."""

    def study_callback(self, study: str, folder: str) -> Any:
        """Returns a `ray.tune.Callback` that logs the trials of a study; raymotion's own loggers use those of Ray.

        Args:
            study: name of the study.
            folder: the study's folder.
        """
        raise InputError(
            f"the logger {self.name} cannot log a study",
            remedy="Define study_callback in its class, or leave it out: --set loggers=[].",
        )


_loggers: Registry[Logger] = Registry("logger", Logger, "raymotion.loggers", lambda: LOGGERS)  # type: ignore[type-abstract]


def logger_names() -> list[str]:
    """Returns the names of all known loggers: raymotion's own and those of installed packages."""
    return _loggers.names()


def get_logger(name: str) -> type[Logger]:
    """Returns the logger of this name, or imports the one that `module:Class` names.

    Raises:
        InputError: it is unknown, cannot be imported, or lacks a method.
    """
    found = _loggers.get(name)
    if found.__abstractmethods__:
        raise InputError(
            f"the logger {name} does not define {', '.join(sorted(found.__abstractmethods__))}",
            remedy="Add it to the class.",
        )
    return found


def read_loggers(value: Any) -> Any:
    """Reads the loggers of a recipe: a name, or a list of names and of mappings with `name` and options.

    Raises:
        InputError: a logger is unknown, an option of it is wrong, or two entries are equal.
    """
    entries = list(value) if isinstance(value, list | tuple) else [value]
    found = [_read(entry) for entry in entries]
    for number, own in enumerate(found):
        if own in found[:number]:
            raise InputError(f"setting loggers: {own.name} is listed twice", remedy="Give the two different options.")
    return tuple(found)


def _read(entry: Any) -> Logger:
    if isinstance(entry, Logger):
        return entry
    options = {"name": entry} if isinstance(entry, str) else entry
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        told = f"the entry with {', '.join(map(str, options))}" if isinstance(options, Mapping) else repr(entry)
        raise InputError(
            f"setting loggers: {told} names no logger",
            remedy=f"Write a name ({', '.join(logger_names())}), or {{name: ..., OPTION: ...}}.",
        )
    logger = get_logger(options["name"])
    try:
        return logger.model_validate(dict(options))
    except ValidationError as error:
        raise InputError(f"logger {options['name']}: {first_problem(error, logger)}") from error


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, own in value.items():
        if isinstance(own, Mapping) and own:
            yield from _flat(own, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", own
