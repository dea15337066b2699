"""Early stopping goes on where it was: a scheduler told of finished trials decides as one that saw them live."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from raymotion.cli.study import run
from raymotion.errors import InputError
from raymotion.study.record import COMPLETE, STOPPED, Epoch, TrialRecord
from raymotion.study.search import SCORE, EndOnFault, Resources, TrialTrainable, scheduler_of
from raymotion.study.space import Stopping

EPOCHS = 9


@dataclass(frozen=True)
class Told:
    trial_id: str


def live(scheduler: Any, name: str, curve: list[float], order: int) -> TrialRecord:
    """Runs a trial against a scheduler as Tune does; returns its record."""
    trial = Told(name)
    scheduler.on_trial_add(None, trial)
    record = TrialRecord(key=name, config={}, seeds=[0], order=order, status="complete")
    best = 0.0
    for epoch, value in enumerate(curve, 1):
        best = max(best, value)
        record.epochs.append(Epoch(epoch=epoch, best=best, score=[value], train_loss=[0.0]))
        result = {"epoch": epoch, SCORE: best}
        if epoch < len(curve) and scheduler.on_trial_result(None, trial, result) == "STOP":
            record.status = "stopped"
            break
    scheduler.on_trial_complete(None, trial, result)
    return record


@given(
    seed=st.integers(0, 1000),
    trials=st.integers(2, 12),
    before=st.integers(0, 12),
    grace=st.integers(1, 4),
    factor=st.sampled_from([2.0, 3.0, 4.0]),
)
def test_replayed_trials_count_as_if_they_had_just_run(
    seed: int, trials: int, before: int, grace: int, factor: float
) -> None:
    curves = np.cumsum(np.random.default_rng(seed).normal(0.02, 0.05, (trials, EPOCHS)), axis=1).round(2).tolist()
    stopping = Stopping(grace_epochs=grace, reduction_factor=factor)
    one = scheduler_of(stopping, EPOCHS)
    undisturbed = [live(one, f"t{i}", curve, i) for i, curve in enumerate(curves)]
    # Cut off after some trials: those are read from their records, in whatever order the folder lists them.
    other = scheduler_of(stopping, EPOCHS, list(reversed(undisturbed[:before])))
    for i in range(min(before, trials), trials):
        again = live(other, f"t{i}", curves[i], i)
        assert (again.status, again.epochs) == (undisturbed[i].status, undisturbed[i].epochs)


def test_a_bad_start_is_stopped_by_what_earlier_runs_did() -> None:
    lines = [Epoch(epoch=epoch, best=0.5, score=[0.5], train_loss=[0.0]) for epoch in range(1, EPOCHS + 1)]
    good = [TrialRecord(key=f"g{i}", config={}, seeds=[0], status="complete", order=i, epochs=lines) for i in range(4)]
    assert live(scheduler_of(Stopping(grace_epochs=2), EPOCHS, good), "bad", [0.1] * EPOCHS, 9).status == STOPPED
    assert live(scheduler_of(Stopping(grace_epochs=2), EPOCHS), "bad", [0.1] * EPOCHS, 9).status == COMPLETE


def test_a_study_on_an_autoscaling_cluster_says_what_it_wants_and_is_told_only_what_it_can_say() -> None:
    """GPU workers that are started on demand: nothing may be trained on the head's CPUs without a word."""
    head = [{"CPU": 2.0}]
    known = {option for param in run.params for option in param.opts}
    for refused in (Resources(gpus=0.25), Resources(autoscale=True, concurrent=4), Resources(gpus=1, autoscale=True)):
        with pytest.raises(InputError) as error:
            refused.placement(head)
        named = set(re.findall(r"--[a-z-]+", str(error.value)))
        assert named and named <= known, named
    plan = Resources(gpus=0.25, concurrent=4, autoscale=True).placement(head)
    assert (plan.workers, plan.gpus) == (4, 0.25)
    assert Resources().placement(head).gpus == 0.0 and Resources().placement([{"CPU": 8.0, "GPU": 1.0}]).gpus == 0.25


def test_no_early_stopping_where_there_is_none_or_no_room_for_it() -> None:
    assert type(scheduler_of(None, 20)) is FIFOScheduler
    assert type(scheduler_of(Stopping(grace_epochs=5), 5)) is FIFOScheduler
    assert isinstance(scheduler_of(Stopping(grace_epochs=5), 20), ASHAScheduler)


def test_a_fault_of_the_machine_ends_the_search_and_no_trial() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    trainable = object.__new__(TrialTrainable)
    trainable.spec, trainable.current = {"study": "/study"}, SimpleNamespace(step=full)
    result = trainable.step()
    assert result["done"] and result["fault"].startswith("/study: no space left on the device")
    stopper = EndOnFault()
    assert not stopper("a", {SCORE: 0.5}) and not stopper.stop_all()
    assert stopper("a", result) and stopper.stop_all() and stopper.fault == result["fault"]
