"""One stage on Ray Tune: trains configurations and writes their records.

A Tune trial is one configuration whose seeds train side by side, so that early stopping uses the mean over seeds and
Tune's overhead is paid once per configuration. Finished trials are not given to Tune; their results are replayed to the
scheduler, which restores its rungs. Nothing that Tune saves is ever read, so no pickle is opened and no snapshot has to
be recent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raymotion import storage
from raymotion.batch.cluster import Placement, node_resources, plan_placement
from raymotion.errors import InputError, RunFailed
from raymotion.loggers.logger import Logger
from raymotion.models.kind import Kind
from raymotion.stores.access import Access, current
from raymotion.study.loggers import LoggedTrials
from raymotion.study.record import MACRO_AP, Metric, StudyFolder, TrialRecord, machine_fault
from raymotion.study.space import Stopping

if TYPE_CHECKING:
    from raymotion.study.trial import Trial

# Key of the score that a trial reports after each epoch; see `study.trial.Trial.step`.
SCORE = "score"
# Option names of `raymotion study run` and `raymotion tune` for a plan's workers, CPUs and GPUs.
OPTIONS = ("--concurrent", "--cpus-per-trial", "--gpus-per-trial")
# Turns off Tune's logs, snapshots and notices, which nobody reads and which cost time or lines on the terminal.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "8", "TUNE_WARN_THRESHOLD_S": "60", "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "60", "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """Resources per trial, number of concurrent trials (None: as many as fit), and whether the cluster autoscales."""

    cpus: float = 1.0
    gpus: float | None = None
    concurrent: int | None = None
    autoscale: bool = False

    def placement(self, nodes: list[dict[str, float]]) -> Placement:
        """Returns the resources of each trial and their placement on `nodes`.

        Raises:
            InputError: the nodes lack room, or `gpus` is not set and an autoscaling cluster has no GPU yet.
        """
        gpus = self.gpus
        if gpus is None:
            there = any(node.get("GPU", 0) for node in nodes)
            if self.autoscale and not there:
                raise InputError(
                    "an autoscaling cluster does not tell whether it could start nodes with a GPU",
                    remedy=f"Give {OPTIONS[2]} (0: train on CPUs).",
                )
            gpus = 0.25 if there else 0.0
        return plan_placement(self.concurrent, self.cpus, gpus, nodes=nodes, autoscale=self.autoscale, options=OPTIONS)


class TrialTrainable(tune.Trainable):
    """Adapts `study.trial.Trial` to Tune. One actor runs many trials in turn, so that torch is imported once."""

    current: Trial | None = None

    def setup(self, config: dict[str, Any]) -> None:
        # Starts nothing here, because Tune sets up actors for trials that it then gives to another actor.
        self.spec = config["trial"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def _begin(self) -> Trial:
        import torch

        from raymotion.batch.memory import keep_freed_memory
        from raymotion.models.registry import of_class
        from raymotion.study.data import study_data
        from raymotion.study.trial import Trial

        Access(**self.spec["access"]).apply()  # not inherited on a cluster that was already running
        keep_freed_memory()
        torch.set_num_threads(max(1, round(self.spec["cpus"])))
        device = "cuda" if self.spec["gpus"] and torch.cuda.is_available() else "cpu"
        kind = of_class(self.spec["kind"])
        recipe = kind.recipe.model_validate(self.spec["recipe"])
        data = study_data(StudyFolder(self.spec["study"]).data, kind.checked_inputs(recipe))
        return Trial(self.spec, kind, data, metric=Metric.model_validate(self.spec["metric"]), device=device)

    def step(self) -> dict[str, Any]:
        try:
            if self.current is None:
                self.current = self._begin()
            result = self.current.step()
        except Exception as error:
            # A full disk or an unreachable store does not fail the trial: the search ends, and the trial runs again.
            if (fault := machine_fault(error, self.spec["study"])) is None:
                raise
            return {"epoch": 0, SCORE: 0.0, "fault": fault, "done": True}
        return {**result, "done": result["finished"]}

    def cleanup(self) -> None:
        if self.current is not None:
            self.current.close()
            self.current = None

    # Trials restart from scratch after a crash, so there is nothing to save.
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


class Recorder(tune.Callback):
    """Records the end of trials that cannot record it themselves: stopped by the scheduler, or killed."""

    def __init__(
        self,
        folder: StudyFolder,
        ended: Callable[[TrialRecord], None],
        epoch_ended: Callable[[str, int], None] = lambda key, epoch: None,
    ) -> None:
        self.folder, self.ended, self.epoch_ended = folder, ended, epoch_ended

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "ended": print, "epoch_ended": print}  # Tune pickles a copy that it never uses

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "fault" in result:
            return
        if not result.get("done"):
            self.epoch_ended(trial.config["trial"]["key"], int(result["epoch"]))
            return
        record = TrialRecord.model_validate_json(result["record"])
        if not result["finished"]:
            record.status, record.order = "stopped", time.time()
            self.folder.write_trial(record)
        self.ended(record)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        spec = trial.config["trial"]
        record = self.folder.read_trial(spec["key"])
        if record is None:
            record = TrialRecord(**{name: spec[name] for name in ("key", "config", "seeds", "stage")}, attempts=1)
        if not record.finished:
            record.status, record.order = "failed", time.time()
            record.error = "its process died twice, of too little memory perhaps"
            self.folder.write_trial(record)
        self.ended(record)


class EndOnFault(tune.Stopper):
    """Ends the search when a trial reports a machine fault."""

    def __init__(self) -> None:
        self.fault: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.fault = self.fault or result.get("fault")
        return "fault" in result

    def stop_all(self) -> bool:
        return self.fault is not None


@dataclass(frozen=True)
class FinishedTrial:
    """Represents a finished trial to a scheduler, which uses only its id."""

    trial_id: str


def scheduler_of(
    stopping: Stopping | None, epochs: int, finished: Sequence[TrialRecord] = (), metric: Metric = MACRO_AP
) -> TrialScheduler:
    """Builds the ASHA scheduler over epochs (None: no early stopping) and replays the finished trials to it."""
    if stopping is None or stopping.grace_epochs >= epochs:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="epoch", metric=SCORE, mode="max" if metric.higher_is_better else "min", max_t=epochs,
        grace_period=stopping.grace_epochs, reduction_factor=stopping.reduction_factor,
    )  # fmt: skip
    replay(scheduler, finished)
    return scheduler


def replay(scheduler: ASHAScheduler, finished: Sequence[TrialRecord]) -> None:
    """Replays the reports of finished trials to a scheduler, and ignores its decisions about them."""
    for record in sorted(finished, key=lambda record: record.order):
        results = [{"epoch": epoch.epoch, SCORE: epoch.best} for epoch in record.epochs]
        if not results:
            continue
        trial: Any = FinishedTrial(record.key)
        scheduler.on_trial_add(None, trial)
        for result in results[:-1]:
            scheduler.on_trial_result(None, trial, result)
        scheduler.on_trial_complete(None, trial, results[-1])


def search(
    specs: Sequence[dict[str, Any]],
    folder: StudyFolder,
    *,
    scheduler: TrialScheduler,
    resources: Resources,
    metric: Metric,
    kind: type[Kind],
    ended: Callable[[TrialRecord], None],
    epoch_ended: Callable[[str, int], None] = lambda key, epoch: None,
    loggers: Sequence[Logger] = (),
    baseline: float | None = None,
    warn: Callable[[str], None] = print,
) -> None:
    """Trains the configurations of `specs` (see `study.trial.Trial`) on the connected Ray.

    Each trial writes its record to the study's folder. `ended` is called for each trial, and `epoch_ended` with the key
    and number of each epoch before the last. `baseline` of the metric is logged beside it; `warn` receives the
    warnings about loggers that fail.

    Raises:
        InputError: a trial can never be placed.
        RunFailed: Tune failed, or a trial reported a machine fault.
    """
    if not specs:
        return
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    plan = resources.placement(node_resources())
    filesystem, path = storage.arrow_filesystem(folder.scratch)
    more = {"study": folder.path, "cpus": plan.cpus, "gpus": plan.gpus, "access": asdict(current())}
    more["metric"], more["kind"] = metric.model_dump(), kind
    given = [{**spec, **more} for spec in specs]
    faults = EndOnFault()
    logged = [LoggedTrials(loggers, folder.path, metric=metric, baseline=baseline, warn=warn)] if loggers else []
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, {"CPU": plan.cpus, "GPU": plan.gpus}),
        param_space={"trial": tune.grid_search(given)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            # None if as many run as fit: with a limit, Tune keeps only the actors for which trials wait.
            max_concurrent_trials=resources.concurrent,
            reuse_actors=True,
            trial_name_creator=_short,
            trial_dirname_creator=_short,
        ),
        run_config=tune.RunConfig(
            name=f"run-{int(time.time() * 1000):x}",
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            callbacks=[Recorder(folder, ended, epoch_ended), *logged],
            stop=faults,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if (fault := machine_fault(error, folder.path)) is not None:
            raise RunFailed(fault) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunFailed(
            f"the search failed ({reason}); what is finished stays, and the same command goes on"
        ) from error
    finally:
        for own in logged:
            own.close()
    if faults.fault is not None:
        raise RunFailed(faults.fault)


def _short(trial: Any) -> str:
    return str(trial.config["trial"]["key"]) if "trial" in trial.config else str(trial.trial_id)
