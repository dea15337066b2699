"""The loggers of a recipe in a study: Ray Tune's own callbacks, with one run for each configuration."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune

from raymotion import storage
from raymotion.loggers import background
from raymotion.loggers.background import Background
from raymotion.loggers.logger import Logger
from raymotion.loggers.mlflow import MlflowLogger
from raymotion.loggers.tensorboard import TensorBoardLogger, free_folder
from raymotion.loggers.wandb import WandbLogger
from raymotion.study.record import Metric, TrialRecord


class TrialView:
    """What a callback sees of a Tune trial: the recipe instead of raymotion's own packing.

    Attributes:
        trial_id: of this start of the trial; one that starts again is another run.
        config: the whole recipe, with the seeds and the stage.
        evaluated_params: the fields that the study varies.
        local_path: folder of the callback's own files.
        experiment_dir_name: name of the study.
    """

    def __init__(self, spec: Mapping[str, Any], study: str, place: str) -> None:
        self.key = str(spec["key"])
        self.trial_id = f"{self.key}-{uuid.uuid4().hex[:8]}"
        recipe = {name: own for name, own in spec["recipe"].items() if name != "loggers"}
        self.config = {**recipe, "seeds": list(spec["seeds"]), "stage": spec["stage"]}
        self.evaluated_params = dict(spec["config"])
        self.local_path, self.experiment_dir_name = place, study

    def init_local_path(self) -> None:
        """Creates the folder."""
        os.makedirs(self.local_path, exist_ok=True)

    def __str__(self) -> str:
        return self.key


@dataclass
class _Called:
    """A callback, what it sees of each trial, and where its files lie."""

    name: str
    callback: tune.Callback
    place: Callable[[str], str]
    views: dict[str, TrialView] = field(default_factory=dict)
    failed: bool = False


class LoggedTrials(tune.Callback):
    """Passes the trials of one search on to the callbacks of its loggers, in a thread of its own.

    A callback that raises is left out from then on, with one warning; the search goes on.

    Args:
        folder: the study's folder.
        baseline: of the metric; None: unknown.
    """

    def __init__(
        self,
        loggers: Sequence[Logger],
        folder: str,
        *,
        metric: Metric,
        baseline: float | None,
        warn: Callable[[str], None],
    ) -> None:
        self._study, self._metric, self._baseline, self._warn = _name(folder), f"val_{metric.name}", baseline, warn
        self._each = [_Called(own.name, *callback_of(own, folder)) for own in loggers]
        self._told: dict[str, int] = {}
        self._closed = False
        self._background = Background()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles a copy that it never uses

    def setup(self, *args: Any, **info: Any) -> None:
        self._do(lambda own: own.callback.setup(*args, **info))

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key, spec = trial.trial_id, trial.config["trial"]
        again = key in self._told
        self._told[key] = 0

        def start(own: _Called) -> None:
            if again:  # its process died: what follows is another run
                own.callback.on_trial_error(iteration, [], own.views[key])
            own.views[key] = TrialView(spec, self._study, own.place(spec["key"]))
            own.callback.on_trial_start(iteration, [], own.views[key])

        self._do(start)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        key = trial.trial_id
        if "record" not in result:
            return
        figures = self._figures(TrialRecord.model_validate_json(result["record"]))
        if figures["training_iteration"] > self._told[key]:  # the last report of a failed trial has no new epoch
            self._told[key] = int(figures["training_iteration"])
            self._do(lambda own: own.callback.on_trial_result(iteration, [], own.views[key], dict(figures)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result or {}
        failed = "record" in result and TrialRecord.model_validate_json(result["record"]).status == "failed"
        self._end(iteration, trial, failed)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._end(iteration, trial, True)

    def _end(self, iteration: int, trial: Any, failed: bool) -> None:
        key = trial.trial_id

        def end(own: _Called) -> None:
            if (view := own.views.pop(key, None)) is not None:
                told = own.callback.on_trial_error if failed else own.callback.on_trial_complete
                told(iteration, [], view)

        self._told.pop(key, None)
        self._do(end)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._do(lambda own: own.callback.on_experiment_end([]))
        self.close()

    def close(self) -> None:
        """Waits for the loggers, at most `background.PATIENCE` seconds."""
        if self._closed:
            return
        self._closed = True
        if not self._background.close(background.PATIENCE):
            names = ", ".join(own.name for own in self._each)
            self._warn(f"logger {names}: no answer for {background.PATIENCE:.0f} s; the search goes on without")

    def _figures(self, record: TrialRecord) -> dict[str, float]:
        if not record.epochs:
            return {"training_iteration": 0}
        last, metric = record.epochs[-1], self._metric
        scores = {seed: score for seed, score in zip(record.seeds, last.score, strict=True) if score is not None}
        losses = [loss for loss in last.train_loss if loss is not None]
        found = {
            "training_iteration": last.epoch,
            "train_loss": sum(losses) / len(losses),
            metric: sum(scores.values()) / len(scores),
            f"best_{metric}": last.best,
            **{f"{metric}_seed{seed}": score for seed, score in scores.items()},
        }
        return found if self._baseline is None else {**found, f"{metric}_baseline": self._baseline}

    def _do(self, call: Callable[[_Called], None]) -> None:
        def each() -> None:
            for own in self._each:
                if own.failed:
                    continue
                try:
                    call(own)
                except Exception as error:
                    own.failed = True
                    reason = (str(error).strip().splitlines() or [""])[0]
                    self._warn(
                        f"logger {own.name} failed ({type(error).__name__}: {reason}); the search goes on without it"
                    )

        self._background.do(each)


def callback_of(logger: Logger, folder: str) -> tuple[tune.Callback, Callable[[str], str]]:
    """Returns the callback that logs the trials of a study, and the folder of its files for a trial's key.

    Raises:
        InputError: the logger has none.
    """
    study = _name(folder)
    if isinstance(logger, TensorBoardLogger):
        from ray.tune.logger import TBXLoggerCallback

        place = storage.join(logger.place(folder), study)
        return TBXLoggerCallback(), lambda key: free_folder(place, key)
    if isinstance(logger, MlflowLogger):
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        tags = {**logger.tags, "study": study}
        uri, experiment = logger.tracking_uri, logger.experiment
        return MLflowLoggerCallback(uri, experiment_name=experiment, tags=tags), _here
    if isinstance(logger, WandbLogger):
        return _wandb(logger, study), _here
    return logger.study_callback(study, folder), _here


def _wandb(logger: WandbLogger, study: str) -> tune.Callback:
    from ray.air.integrations.wandb import WANDB_MODE_ENV_VAR, WandbLoggerCallback, _WandbLoggingActor

    class Writer(_WandbLoggingActor):
        def run(self) -> None:
            super().run()
            self._wandb.teardown()  # waits for the files: Ray kills this process, and its writer with it, right after

    class Wandb(WandbLoggerCallback):
        _logger_actor_cls = Writer
        error: Exception | None = None

        def setup(self, *args: Any, **kwargs: Any) -> None:
            with _environment(WANDB_MODE_ENV_VAR, logger.mode):  # without it, Ray asks for a key even offline
                super().setup(*args, **kwargs)

        def _cleanup_logging_actor(self, trial: Any) -> None:
            """Notes how the logging process of a trial ended, which Ray's own version does not look at."""
            done, _ = ray.wait([self._trial_logging_futures[trial]], timeout=0)
            try:
                if not done:
                    raise TimeoutError(f"{trial} was not written in time")
                ray.get(done)
            except Exception as error:
                self.error = error
            super()._cleanup_logging_actor(trial)

        def _cleanup_logging_actors(self, timeout: int = 0, kill_on_timeout: bool = False) -> None:
            self.error = None
            super()._cleanup_logging_actors(timeout, kill_on_timeout)
            if self.error is not None:
                raise self.error

    return Wandb(
        project=logger.project, group=logger.group or study, entity=logger.entity, tags=logger.tags or None,
        mode=logger.mode, dir=logger.folder and storage.absolute(logger.folder),
        upload_timeout=int(background.PATIENCE * 0.75),
    )  # fmt: skip


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None and before is None:
            del os.environ[name]
        elif before is not None:
            os.environ[name] = before


def _here(key: str) -> str:
    return os.getcwd()


def _name(folder: str) -> str:
    return folder.rstrip("/").rsplit("/", 1)[-1]
