"""Loggers of a study: what Ray's callbacks wrote is read back, and compared with the records of the trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raymotion.errors import InputError
from raymotion.study.record import MACRO_AP, Epoch, StudyFolder, TrialRecord
from raymotion.study.run import run_study
from raymotion.study.settings import StudySettings

pytestmark = pytest.mark.timeout(400)  # on a busy machine Ray and its actors take a minute to start


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    write_features: Callable[..., tuple[str, str]],
    write_spaces: Callable[..., str],
    stages: dict[str, Any],
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    _, embeddings = write_features(folder, persons=120)
    space = {"stage3.yaml": {**stages["stage3.yaml"], "grid": {"loss.name": ["bce", "dice"]}}}
    return {"spaces": write_spaces(folder, space), "embeddings": [embeddings], "seeds": 2, "joint": False}


def loggers_of(folder: Path) -> str:
    value = [
        {"name": "tensorboard", "folder": str(folder / "tb")},
        {"name": "mlflow", "tracking_uri": f"sqlite:///{folder}/m.db"},
        {"name": "wandb", "mode": "offline", "folder": str(folder)},
    ]
    return f"loggers={json.dumps(value)}"


@pytest.mark.slow
def test_each_trial_is_a_run_of_its_study(
    ray_local: Any, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(name)
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    record = run_study(
        StudySettings(out=tmp_path / "a study", set=[loggers_of(tmp_path)], **inputs), progress="none", say=said.append
    )
    assert not [line for line in said if "logger" in line]
    folder = StudyFolder(tmp_path / "a study")
    trials = {own.key: folder.read_trial(own.key) for own in record.stages[0].trials}
    assert len(trials) == 2
    metric, baseline = f"val_{record.metric.name}", record.baseline
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/m.db")
    experiment = client.get_experiment_by_name("raymotion")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == trials.keys()
    assert {path.name for path in (tmp_path / "tb" / "a study").iterdir()} == trials.keys()
    offline = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(offline) == 2
    for key, trial in trials.items():
        assert trial is not None and trial.status == "complete"
        run = runs[key]
        assert run.info.status == "FINISHED" and run.data.tags["study"] == "a study"
        assert run.data.params["loss/name"] == trial.config["loss.name"] and run.data.params["stage"] == "loss"
        assert not [name for name in run.data.params if "logger" in name or "access" in name]
        events = EventAccumulator(str(tmp_path / "tb" / "a study" / key))
        events.Reload()
        expected = {
            metric: [sum(own.score) / 2 for own in trial.epochs],  # type: ignore[arg-type]
            f"{metric}_seed1": [own.score[1] for own in trial.epochs],
            f"best_{metric}": [own.best for own in trial.epochs],
            "train_loss": [sum(own.train_loss) / 2 for own in trial.epochs],  # type: ignore[arg-type]
            f"{metric}_baseline": [baseline] * len(trial.epochs),
        }
        for name, values in expected.items():
            points = client.get_metric_history(run.info.run_id, name)
            steps = list(range(1, len(trial.epochs) + 1))
            assert [(own.step, own.value) for own in points] == list(zip(steps, map(pytest.approx, values)))
            scalars = events.Scalars(f"ray/tune/{name}")
            assert [own.step for own in scalars] == steps
            assert [own.value for own in scalars] == pytest.approx(values, rel=1e-6)
        (own,) = (path.read_bytes() for path in offline if path.name.startswith(f"run-{key}-"))
        assert b"a study" in own and metric.encode() in own and key.encode() in own
    assert "loggers" in (tmp_path / "a study" / "winner.yaml").read_text()

    again: list[str] = []
    monkeypatch.setattr("raymotion.study.run.require_loggers", lambda *_: None)
    run_study(StudySettings(out=tmp_path / "a study", **inputs), progress="none", say=again.append)
    assert "is finished already" in again[0], "a study without loggers is the same study"


@pytest.mark.slow
def test_a_logger_that_fails_costs_no_study(
    ray_local: Any, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    given = "loggers=[{name: mlflow, tracking_uri: 'http://127.0.0.1:9'}]"
    record = run_study(StudySettings(out=tmp_path / "out", set=[given], **inputs), progress="none", say=said.append)
    assert record.complete
    (warning,) = [line for line in said if "logger" in line]
    assert warning.startswith("warning: logger mlflow failed (") and "the search goes on without it" in warning


def test_a_missing_package_is_told_before_the_data_are_read(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("raymotion.study.run.prepare_data", lambda _: pytest.fail("the data were read"))
    settings = StudySettings(out=tmp_path / "out", set=["loggers=[mlflow]"], **inputs)
    with pytest.raises(InputError, match=r"the logger mlflow needs mlflow-skinny.*raymotion\[loggers\]"):
        run_study(settings, progress="none", say=print)


OWN = """
from ray import tune
from raymotion.loggers.logger import Logger

TOLD = []

class Callback(tune.Callback):
    def on_trial_start(self, iteration, trials, trial, **info):
        TOLD.append(("start", str(trial), trial.config["loss"], trial.evaluated_params))
    def on_trial_result(self, iteration, trials, trial, result, **info):
        TOLD.append((str(trial), result))
    def on_trial_complete(self, iteration, trials, trial, **info):
        TOLD.append(("complete", str(trial)))
    def on_trial_error(self, iteration, trials, trial, **info):
        TOLD.append(("error", str(trial)))

class ForTrainings(Logger):
    def begin(self, run): ...
    def log(self, epoch, figures): ...
    def end(self, status, summary): ...

class ForStudies(ForTrainings):
    def study_callback(self, study, folder):
        return Callback()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    import sys

    (tmp_path / "callbacks_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    import callbacks_of_a_user  # type: ignore[import-not-found]

    yield callbacks_of_a_user
    del sys.modules["callbacks_of_a_user"]


def test_a_users_logger_without_a_callback_is_told(own: Any, inputs: dict[str, Any], tmp_path: Path) -> None:
    settings = StudySettings(out=tmp_path / "out", set=["loggers=[callbacks_of_a_user:ForTrainings]"], **inputs)
    with pytest.raises(InputError, match=r"cannot log a study\. Define study_callback"):
        run_study(settings, progress="none", say=print)


class TuneTrial:
    """The parts of a Tune trial that callbacks read."""

    def __init__(self, key: str) -> None:
        spec = {"key": key, "recipe": {"loss": {"name": "bce"}}, "seeds": [0, 1], "stage": "loss", "config": {"a": 1}}
        self.trial_id, self.config, self.last_result = f"tune-{key}", {"trial": spec}, {}


def result(key: str, epochs: int, status: Any = "running") -> dict[str, Any]:
    done = [
        Epoch(epoch=k, score=[0.5, None if k == 3 else 0.7], train_loss=[1.0, None if k == 3 else 2.0], best=0.6)
        for k in range(1, epochs + 1)
    ]
    record = TrialRecord(key=key, config={"a": 1}, seeds=[0, 1], epochs=done, status=status)
    return {"epoch": epochs, "record": record.model_dump_json()}


def test_trials_that_fail_or_start_again(own: Any, tmp_path: Path) -> None:
    """A dead process begins another run; the last report of a failed trial has no new epoch."""
    from raymotion.loggers.logger import get_logger
    from raymotion.study.loggers import LoggedTrials

    logger = get_logger("callbacks_of_a_user:ForStudies")(name="callbacks_of_a_user:ForStudies")
    logged = LoggedTrials([logger], str(tmp_path), metric=MACRO_AP, baseline=0.3, warn=pytest.fail)
    first, second = TuneTrial("one"), TuneTrial("two")
    for trial, epochs in ((first, 1), (second, 1), (second, 2), (second, 3)):
        if epochs == 1:
            logged.on_trial_start(0, [], trial)
        logged.on_trial_result(0, [], trial, result(trial.trial_id, epochs))
    logged.on_trial_start(0, [], first)
    logged.on_trial_result(0, [], first, result("one", 1))
    for trial, status in ((first, "failed"), (second, "complete")):
        trial.last_result = result("x", 1, status)
        logged.on_trial_result(0, [], trial, trial.last_result)
        logged.on_trial_complete(0, [], trial)
    logged.on_experiment_end([])
    assert [own for own in own.TOLD if own[0] in ("start", "complete", "error")] == [
        ("start", "one", {"name": "bce"}, {"a": 1}), ("start", "two", {"name": "bce"}, {"a": 1}), ("error", "one"),
        ("start", "one", {"name": "bce"}, {"a": 1}), ("error", "one"), ("complete", "two"),
    ]  # fmt: skip
    figures = {
        "training_iteration": 1, "train_loss": 1.5, "val_macro_ap": pytest.approx(0.6), "best_val_macro_ap": 0.6,
        "val_macro_ap_seed0": 0.5, "val_macro_ap_seed1": 0.7, "val_macro_ap_baseline": 0.3,
    }  # fmt: skip
    assert [told[1] for told in own.TOLD if told[0] == "one"] == [figures, figures]
    last = [told[1] for told in own.TOLD if told[0] == "two"][-1]
    assert last["training_iteration"] == 3 and "val_macro_ap_seed1" not in last and last["val_macro_ap"] == 0.5
