"""The runs of a sweep over poison rates as trials of one Ray Tune run: one trial for each rate and seed.

Trials differ in their data, not in their settings, so no scheduler stops any early. Each writes a checkpoint
(`train.fit`), which is all that is read of it: a trial that was interrupted resumes from its own state, and one that
has finished is not given to Tune again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import ray
from ray import tune

from raymotion import storage
from raymotion.batch.cluster import connect
from raymotion.errors import InputError, RaymotionError, RunFailed
from raymotion.models.checkpoint import CheckpointInfo, is_checkpoint, read_checkpoint_info
from raymotion.models.recipe import TrainRecipe
from raymotion.stores.access import Access, current
from raymotion.study.search import QUIET, EndOnFault
from raymotion.train.recipe import kind_of
from raymotion.train.runs import RUNS, Named, run_all, train_one

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

    def folder(run: R) -> str:
        return storage.join(target, RUNS, run.name)

    here = [(run, recipe) for run, recipe in recipes if is_checkpoint(folder(run))]
    for run, info in run_all(here, target, address, parallel=False):  # compares their settings
        ended(run, info)
    scratch = storage.join(target, RUNS, TRIALS)
    storage.remove_tree(scratch)  # of a sweep that was killed
    left = {run.name: (run, recipe) for run, recipe in recipes if run not in {own for own, _ in here}}
    if not left:
        return
    with connect(address):
        os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
        wants_gpu = next(iter(left.values()))[1].use_gpu is not False
        gpus = 1 if wants_gpu and ray.cluster_resources().get("GPU", 0) >= 1 else 0

        def told(name: str) -> None:
            run, _ = left[name]
            if is_checkpoint(folder(run)):
                ended(run, read_checkpoint_info(folder(run)))

        specs = [
            {
                "name": name, "kind": type(kind_of(recipe)), "recipe": recipe.model_dump(mode="json"),
                "out": folder(run), "access": asdict(current()),
            }
            for name, (run, recipe) in left.items()
        ]  # fmt: skip
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
    lost = [name for name, (run, _) in left.items() if not is_checkpoint(folder(run))]
    if lost:
        reason = _first(results.errors[0]) if results.errors else "its checkpoint is not seen here"
        raise RunFailed(f"run {lost[0]} failed ({reason}); the same command goes on")


def _trial(config: dict[str, Any]) -> None:
    """Trains one run, in a process with one CPU, and reports the epoch that it kept, or why it failed."""
    spec = config["trial"]
    try:
        train_one(spec["kind"], spec["recipe"], spec["out"], Access(**spec["access"]))
    except RaymotionError as error:
        tune.report({"fault": f"{error.exit_code} {error}"})
        return
    tune.report({"best_epoch": int(read_checkpoint_info(spec["out"]).training["best_epoch"])})


def _name(trial: Any) -> str:
    return str(trial.config["trial"]["name"]) if "trial" in trial.config else str(trial.trial_id)


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
