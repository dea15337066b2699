"""One stage on Ray Tune: configurations in, their records out.

A Tune trial is one configuration, whose seeds train side by side, so that early stopping judges a mean over seeds and
Tune's own cost is paid once for all of them. What earlier runs, or earlier stages, have finished is not given to Tune:
its results are told to the scheduler, whose rungs then are what they were. Nothing that Tune saves is ever read, so no
pickle is opened and no snapshot has to be fresh.
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
from raymotion.models.kind import Kind
from raymotion.stores.access import Access, current
from raymotion.study.record import MACRO_AP, Metric, StudyFolder, TrialRecord, machine_fault
from raymotion.study.space import Stopping

if TYPE_CHECKING:
    from raymotion.study.trial import Trial

# What a trial reports after each epoch: see `study.trial.Trial.step`.
SCORE = "score"
# What `raymotion study run` and `raymotion tune` call a plan's workers, CPUs and GPUs.
OPTIONS = ("--concurrent", "--cpus-per-trial", "--gpus-per-trial")
# Tune's own logs, snapshots and notices: none of them is read, and each costs time or a line on the terminal.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "8", "TUNE_WARN_THRESHOLD_S": "60", "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "60", "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Resources:
    """What a trial takes, how many run at a time (None: as many as fit), and whether the cluster starts nodes."""

    cpus: float = 1.0
    gpus: float | None = None
    concurrent: int | None = None
    autoscale: bool = False

    def placement(self, nodes: list[dict[str, float]]) -> Placement:
        """What each trial gets, and room for it on `nodes`.

        Raises:
            InputError: there is no room, or an autoscaling cluster would have to be asked what it could start.
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
    """Tune's view of a `study.trial.Trial`. The actor serves one after the other: torch is imported once."""

    current: Trial | None = None

    def setup(self, config: dict[str, Any]) -> None:
        # Nothing is begun here: Tune sets up actors for trials that it then gives to another actor.
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

        Access(**self.spec["access"]).apply()  # on a cluster that ran before, this process has not inherited it
        keep_freed_memory()
        torch.set_num_threads(max(1, round(self.spec["cpus"])))
        device = "cuda" if self.spec["gpus"] and torch.cuda.is_available() else "cpu"
        kind = of_class(self.spec["kind"])
        recipe = kind.recipe.model_validate(self.spec["recipe"])
        data = study_data(StudyFolder(self.spec["study"]).data, kind.inputs(recipe))
        return Trial(self.spec, kind, data, metric=Metric.model_validate(self.spec["metric"]), device=device)

    def step(self) -> dict[str, Any]:
        try:
            if self.current is None:
                self.current = self._begin()
            result = self.current.step()
        except Exception as error:
            # A full disk or a store that is down fails no trial: the search ends, and the trial starts anew.
            if (fault := machine_fault(error, self.spec["study"])) is None:
                raise
            return {"epoch": 0, SCORE: 0.0, "fault": fault, "done": True}
        return {**result, "done": result["finished"]}

    def cleanup(self) -> None:
        if self.current is not None:
            self.current.close()
            self.current = None

    # Trials start anew after a crash: there is nothing to save.
    def save_checkpoint(self, checkpoint_dir: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


class Recorder(tune.Callback):
    """Writes down how trials end that do not know it themselves: stopped by the scheduler, or killed."""

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
    """Ends the search when a trial meets a fault of the machine."""

    def __init__(self) -> None:
        self.fault: str | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.fault = self.fault or result.get("fault")
        return "fault" in result

    def stop_all(self) -> bool:
        return self.fault is not None


@dataclass(frozen=True)
class FinishedTrial:
    """Stands for a finished trial towards a scheduler, which asks for nothing but its id."""

    trial_id: str


def scheduler_of(
    stopping: Stopping | None, epochs: int, finished: Sequence[TrialRecord] = (), metric: Metric = MACRO_AP
) -> TrialScheduler:
    """ASHA over epochs (None: no early stopping), which has seen what the finished trials reported, in their order."""
    if stopping is None or stopping.grace_epochs >= epochs:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr="epoch", metric=SCORE, mode="max" if metric.higher_is_better else "min", max_t=epochs,
        grace_period=stopping.grace_epochs, reduction_factor=stopping.reduction_factor,
    )  # fmt: skip
    replay(scheduler, finished)
    return scheduler


def replay(scheduler: ASHAScheduler, finished: Sequence[TrialRecord]) -> None:
    """Tells a scheduler what trials reported that are over. What it would decide of them is decided already."""
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
) -> None:
    """Trains the configurations of `specs` (see `study.trial.Trial`), on the Ray that is connected.

    Each leaves its record in the study's folder. `ended` is called for each, and `epoch_ended` with key and
    number of each epoch before the last.

    Raises:
        InputError: a trial that can never be placed. RunFailed: Tune itself failed.
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
    tuner = tune.Tuner(
        tune.with_resources(TrialTrainable, {"CPU": plan.cpus, "GPU": plan.gpus}),
        param_space={"trial": tune.grid_search(given)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            # Where as many run as fit, Tune is better not told: it only keeps the actors for which trials wait.
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
            callbacks=[Recorder(folder, ended, epoch_ended)],
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
    if faults.fault is not None:
        raise RunFailed(faults.fault)


def _short(trial: Any) -> str:
    return str(trial.config["trial"]["key"]) if "trial" in trial.config else str(trial.trial_id)
