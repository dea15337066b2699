"""The runs of a sweep over poison rates as trials of one Ray Tune run: one trial for each rate and seed.

Trials differ in their data, not in their settings, so no scheduler stops any early. Each writes a checkpoint
(`train.fit`), which is all that is read of it: a trial that was interrupted resumes from its own state, and one that
has finished is not given to Tune again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ray import tune

from raymotion import storage
from raymotion.errors import InputError, RaymotionError, RunFailed
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.recipe import TrainRecipe
from raymotion.study.search import QUIET, EndOnFault
from raymotion.train.runs import RUNS, Named, cluster_for, result_of, run_all, train_one, training_of, unfinished

R = TypeVar("R", bound=Named)
TRIALS = ".tune"  # folder of Tune's own files, in that of the runs; nothing in it is read


class Told(tune.Callback):
    """Tells the name of each trial that has trained its model."""

    def __init__(self, told: Callable[[str], None]) -> None:
        self.told = told

    def __getstate__(self) -> dict[str, Any]:
        return {"told": print}  # Tune pickles a copy that it never uses

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **more: Any) -> None:
        if "fault" not in trial.last_result:
            self.told(str(trial.config["trial"]["name"]))


def sweep(
    recipes: Sequence[tuple[R, TrainRecipe]],
    target: str,
    address: str | None,
    ended: Callable[[R, CheckpointInfo], None],
) -> None:
    """Trains each recipe into `target`/runs, as many at once as there are CPUs (or GPUs, if any).

    Those that are finished come first.

    Args:
        ended: receives each run with its checkpoint.

    Raises:
        RunFailed: a trial failed; the same call goes on. Else the error of a run, as `fit` raises it.
    """
    left = unfinished(recipes, target)
    here = [(run, recipe) for run, recipe in recipes if run.name not in left]
    for run, info in run_all(here, target, address, parallel=False):  # compares their settings
        ended(run, info)
    scratch = storage.join(target, RUNS, TRIALS)
    storage.remove_tree(scratch)  # of a sweep that was killed
    if not left:
        return
    done: set[str] = set()

    def told(name: str) -> None:
        if name not in unfinished([left[name]], target):  # Tune takes an error here for one of the trial
            done.add(name)
            ended(left[name][0], result_of(left[name][0], target))

    with cluster_for(left.values(), address) as gpus:
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        specs = [{"name": name, "train": training_of(run, recipe, target)} for name, (run, recipe) in left.items()]
        faults = EndOnFault()
        filesystem, path = storage.arrow_filesystem(scratch)
        tuner = tune.Tuner(
            tune.with_resources(_trial, {"CPU": 1, "GPU": gpus}),
            param_space={"trial": tune.grid_search(specs)},
            tune_config=tune.TuneConfig(trial_name_creator=_name, trial_dirname_creator=_name),
            run_config=tune.RunConfig(
                name=f"run-{int(time.time() * 1000):x}", storage_path=path, storage_filesystem=filesystem, verbose=0,
                callbacks=[Told(told)], stop=faults, failure_config=tune.FailureConfig(max_failures=2),
            ),
        )  # fmt: skip
        try:
            results = tuner.fit()
        except Exception as error:
            raise RunFailed(f"the sweep failed ({_first(error)}); the same command goes on") from error
        finally:
            storage.remove_tree(scratch)
    if faults.fault is not None:
        code, _, text = faults.fault.partition(" ")
        raise InputError(text) if code == "2" else RunFailed(text)
    for run, recipe in (own for name, own in left.items() if name not in done):
        if results.errors and unfinished([(run, recipe)], target):
            raise RunFailed(f"run {run.name} failed ({_first(results.errors[0])}); the same command goes on")
        ended(run, result_of(run, target))


def _trial(config: dict[str, Any]) -> None:
    """Trains one run, in a process with one CPU, and reports the epoch that it kept, or why it failed."""
    spec = config["trial"]
    try:
        train_one(*spec["train"])
    except RaymotionError as error:
        tune.report({"fault": f"{error.exit_code} {error}"})
        return
    _, _, folder, _ = spec["train"]
    tune.report({"best_epoch": int(read_checkpoint_info(folder).training["best_epoch"])})


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["name"]) if "trial" in trial.config else str(trial.trial_id)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
