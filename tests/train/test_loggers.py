"""Loggers of training runs: what they wrote is read back with each library's own reader, and compared with the run."""

from __future__ import annotations

import csv
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from raymotion import records, storage
from raymotion.config import load_settings
from raymotion.errors import InputError
from raymotion.folders.outputs import run_folder
from raymotion.loggers import background
from raymotion.loggers.logger import LoggedRun, Logger
from raymotion.loggers.mlflow import MlflowLogger
from raymotion.loggers.tensorboard import TensorBoardLogger
from raymotion.loggers.wandb import WandbLogger
from raymotion.models.checkpoint import CheckpointInfo, read_checkpoint_info
from raymotion.models.student.recipe import StudentRecipe
from raymotion.train.fit import LOGGED, fit
from raymotion.train.loop import Run

OWN = """
from raymotion.loggers.logger import Logger

class Notes(Logger):
    '''A list of what it was told.'''

    fails_at: list[int] = []
    waits: bool = False
    told: list = []

    def begin(self, run):
        TOLD.append(("begin", run.name, run.id, run.epoch))
        return run.id or "number one"

    def log(self, epoch, figures):
        if self.waits:
            WAIT.wait()
        if FAILS and FAILS.pop():
            raise ConnectionError("nobody\\nanswers")
        TOLD.append((epoch, dict(figures)))

    def end(self, status, summary):
        TOLD.append((status, dict(summary)))

import threading
TOLD, FAILS, WAIT = [], [], threading.Event()
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, write_set: Callable[..., str]) -> str:
    return write_set(tmp_path_factory.mktemp("set"), 32, captions=1)


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of a user, whose logger `Notes` writes down what it is told."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    import notes_of_a_user  # type: ignore[import-not-found]

    yield notes_of_a_user
    notes_of_a_user.WAIT.set()
    del sys.modules["notes_of_a_user"]


NOTES = "notes_of_a_user:Notes"


def mlflow_runs(uri: str, experiment: str = "raymotion") -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return [
        (run, {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics})
        for run in client.search_runs([found.experiment_id])
    ]


def mlflow_series(history: Mapping[str, Any]) -> dict[str, list[tuple[int, float]]]:
    return {name: sorted((own.step, own.value) for own in points) for name, points in history.items()}


def tensorboard_series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return {name: [(own.step, own.value) for own in read.Scalars(name)] for name in read.Tags()["scalars"]}


def tensorboard_text(folder: Path, name: str) -> str:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = accumulator.EventAccumulator(str(folder))
    read.Reload()
    return str(read.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode())


def wandb_records(folder: Path) -> list[Any]:
    """The records of the offline run in `folder`: a log in blocks of 32 KB, as LevelDB writes it, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found.append(Record.FromString(parts))
            parts = b""
    return found


def wandb_items(items: Any) -> dict[str, Any]:
    return {own.key or ".".join(own.nested_key): json.loads(own.value_json) for own in items}


def epochs_of(info: CheckpointInfo) -> list[dict[str, Any]]:
    return [{name: own for name, own in line.items() if name != "attempt"} for line in info.training["history"]]


def check_series(series: Mapping[str, list[tuple[int, float]]], info: CheckpointInfo, *, rel: float = 0) -> None:
    """Each epoch once, with the figures of training.json, and each validation metric beside its baseline."""
    history = epochs_of(info)
    figures = [name for name in history[0] if name != "epoch"]
    assert {"train_loss", "learning_rate", "val_bce", "val_macro_ap"} <= set(figures)
    assert [step for step, _ in series["samples_per_second"]] == [line["epoch"] for line in history]
    assert all(0 < own < 1e6 for _, own in series["samples_per_second"])
    for name in figures:
        expected = [(line["epoch"], pytest.approx(line[name], rel=rel or 1e-12)) for line in history]
        assert series[name] == expected, name
    assert info.validation is not None
    for name, metric in info.validation["metrics"].items():
        if f"val_{name}" in series:  # the evaluation at the end computes the class prior's figure on its own
            prior = pytest.approx(metric["prior"], rel=1e-5)
            assert series[f"val_{name}_baseline"] == [(line["epoch"], prior) for line in history], name


@pytest.fixture(scope="module")
def logged(
    samples: str, tmp_path_factory: pytest.TempPathFactory, student_recipe: Callable[..., StudentRecipe]
) -> tuple[Path, CheckpointInfo]:
    """One run with all three, and its checkpoint."""
    for name in ("tensorboard", "mlflow", "sqlalchemy", "wandb"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("logged")
    given = [
        "tensorboard",
        {"name": "mlflow", "tracking_uri": f"sqlite:///{folder}/m.db", "experiment": "mine", "tags": {"who": "me"}},
        {"name": "wandb", "mode": "offline", "folder": str(folder), "group": "some", "tags": ["a"]},
    ]
    recipe = student_recipe(samples, loggers=given)
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        info = fit(recipe, folder / "out" / "student", warn=lines.append).info
    assert lines == []
    return folder, info


@pytest.mark.slow
def test_mlflow_has_the_figures_of_the_run(logged: tuple[Path, CheckpointInfo], samples: str) -> None:
    folder, info = logged
    ((run, history),) = mlflow_runs(f"sqlite:///{folder}/m.db", "mine")
    check_series(mlflow_series(history), info)
    assert (run.info.run_name, run.info.status) == ("student", "FINISHED")
    assert run.data.tags["checkpoint"] == str(folder / "out" / "student") and run.data.tags["who"] == "me"
    best = info.training["best_epoch"]
    assert run.data.metrics["best_epoch"] == best
    assert run.data.metrics["best_val_bce"] == info.training["history"][best - 1]["val_bce"]
    given = run.data.params
    assert given["data.samples"] == samples and given["optimiser.lr"] == "0.005" and given["kind"] == "student"
    assert given["model.channels"] == "[4, 8]" and given["data_fingerprint"] == info.training["data"]["fingerprint"]
    settings = info.training["settings"]
    # A group of settings, such as optimiser.plateau, is logged field by field.
    plain = {f"optimiser.{name}" for name, value in settings["optimiser"].items() if not isinstance(value, dict)}
    assert plain <= set(given) and given["optimiser.plateau.patience"] == "3"
    assert not [name for name in given if "logger" in name]


def test_tensorboard_has_the_figures_of_the_run(logged: tuple[Path, CheckpointInfo]) -> None:
    folder, info = logged
    place = folder / "out" / "tensorboard" / "student"
    series = tensorboard_series(place)
    check_series(series, info, rel=1e-6)
    best, last = info.training["best_epoch"], len(info.training["history"])
    assert series["best_epoch"] == [(last, best)]
    assert series["best_val_bce"] == [(last, pytest.approx(info.training["history"][best - 1]["val_bce"], rel=1e-6))]
    assert tensorboard_text(place, "checkpoint") == info.folder and tensorboard_text(place, "status") == "complete"
    raw = b"".join(path.read_bytes() for path in place.iterdir())
    assert b"_hparams_/session_start_info" in raw and b"optimiser.lr" in raw and b"_hparams_/session_end_info" in raw


def test_wandb_has_the_figures_of_the_run(logged: tuple[Path, CheckpointInfo]) -> None:
    folder, info = logged
    (place,) = (folder / "wandb").glob("offline-run-*")
    found = wandb_records(place)
    (run, *_) = [own.run for own in found if own.WhichOneof("record_type") == "run"]
    assert (run.display_name, run.project, run.run_group, list(run.tags)) == ("student", "raymotion", "some", ["a"])
    config = {own.key: json.loads(own.value_json) for own in run.config.update}
    assert config["kind"] == "student" and config["optimiser"]["lr"] == 0.005
    lines = [wandb_items(own.history.item) for own in found if own.WhichOneof("record_type") == "history"]
    series = {name: [(line["_step"], line[name]) for line in lines] for name in lines[0]}
    check_series(series, info)
    summary: dict[str, Any] = {}
    for own in found:
        if own.WhichOneof("record_type") == "summary":
            summary |= wandb_items(own.summary.update)
    assert summary["best_epoch"] == info.training["best_epoch"] and summary["checkpoint"] == info.folder
    assert summary["status"] == "complete"


def test_the_checkpoint_does_not_know_its_loggers(logged: tuple[Path, CheckpointInfo]) -> None:
    info = logged[1]
    for path in Path(info.folder).glob("*"):
        content = path.read_bytes()
        assert b"sqlite:" not in content and b"loggers" not in content and b"wandb" not in content, path.name
    assert not os.path.exists(run_folder(info.folder))


def test_other_loggers_are_no_other_run(
    logged: tuple[Path, CheckpointInfo], samples: str, student_recipe: Callable[..., StudentRecipe]
) -> None:
    _, info = logged
    plain = student_recipe(samples)
    assert plain.result_settings() == student_recipe(samples, loggers=["tensorboard"]).result_settings()
    again = fit(plain, info.folder)
    assert again.already_done and again.info.fingerprint == info.fingerprint


class Stopped(Exception):
    pass


def stop_before(monkeypatch: pytest.MonkeyPatch, epoch: int, error: type[BaseException] = Stopped) -> None:
    step = Run.step

    def stops(self: Run) -> Any:
        if self.state.epoch + 1 == epoch:
            raise error("as if killed")
        return step(self)

    monkeypatch.setattr(Run, "step", stops)


@pytest.mark.parametrize("behind", [0, 1], ids=["stopped", "killed-before-its-record"])
def test_a_resumed_run_goes_on_in_the_same_place(
    samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student_recipe: Callable[..., Any], behind: int
) -> None:
    for name in ("tensorboard", "mlflow", "sqlalchemy"):
        pytest.importorskip(name)
    out, uri = tmp_path / "student", f"sqlite:///{tmp_path}/m.db"
    recipe = student_recipe(
        samples, loggers=["tensorboard", {"name": "mlflow", "tracking_uri": uri}], optimiser={"epochs": 4}
    )
    with monkeypatch.context() as patch:
        stop_before(patch, 3)
        with pytest.raises(Stopped):
            fit(recipe, out)
    ((run, history),) = mlflow_runs(uri)
    first = run.info.run_id
    assert run.info.status == "FAILED" and [step for step, _ in mlflow_series(history)["val_bce"]] == [1, 2]
    record = storage.join(run_folder(out), LOGGED)
    known = records.read_record(record)
    assert [own["epoch"] for own in known.values()] == [2, 2]
    # The next command begins within the same second, by which TensorBoard's files are named.
    (first_file,) = (tmp_path / "tensorboard" / "student").iterdir()
    began = float(first_file.name.split(".")[3])
    same_second = SimpleNamespace(**{**vars(time), "time": lambda: began})
    monkeypatch.setattr("tensorboardX.event_file_writer.time", same_second)
    for own in known.values():
        own["epoch"] -= behind
    records.write_record(record, known)

    result = fit(recipe, out)
    assert result.resumed_from == 2
    ((run, history),) = mlflow_runs(uri)
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    check_series(mlflow_series(history), result.info)
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["student"]
    check_series(tensorboard_series(tmp_path / "tensorboard" / "student"), result.info, rel=1e-6)


def test_an_interrupted_run_is_told_as_that_and_a_new_logger_gets_all_epochs(
    samples: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student_recipe: Callable[..., Any], notes: Any
) -> None:
    out = tmp_path / "student"
    with monkeypatch.context() as patch:
        stop_before(patch, 3, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            fit(student_recipe(samples, loggers=[NOTES]), out)
    assert [own[0] for own in notes.TOLD] == ["begin", 1, 2, "interrupted"]
    notes.TOLD.clear()
    info = fit(student_recipe(samples, loggers=[NOTES, {"name": NOTES, "fails_at": [99]}]), out).info
    begun = [own for own in notes.TOLD if own[0] == "begin"]
    assert begun == [("begin", "student", "number one", 2), ("begin", "student", None, 0)]
    epochs = [own[0] for own in notes.TOLD if isinstance(own[0], int)]
    assert sorted(epochs) == [1, 2, 3, 3] and [own[0] for own in notes.TOLD[-2:]] == ["complete", "complete"]
    lines = {own[0]: own[1] for own in notes.TOLD if isinstance(own[0], int)}
    assert [lines[line["epoch"]]["val_bce"] for line in epochs_of(info)] == [
        line["val_bce"] for line in epochs_of(info)
    ]


def test_a_logger_that_fails_for_a_while_catches_up_after_one_warning(
    samples: str, tmp_path: Path, student_recipe: Callable[..., Any], notes: Any
) -> None:
    notes.FAILS.extend([True, False])  # taken from the end
    warnings: list[str] = []
    info = fit(student_recipe(samples, loggers=[NOTES]), tmp_path / "student", warn=warnings.append).info
    assert [own[0] for own in notes.TOLD] == ["begin", 1, 2, 3, "complete"]
    assert notes.TOLD[-1][1]["best_epoch"] == info.training["best_epoch"]
    assert warnings == [
        f"logger {NOTES} failed (ConnectionError: nobody); training goes on, and the logger is tried again after each "
        "epoch"
    ]


def test_a_logger_that_never_works_costs_no_training(
    samples: str, tmp_path: Path, student_recipe: Callable[..., Any], notes: Any
) -> None:
    notes.FAILS.extend([True] * 99)
    warnings: list[str] = []
    plain = fit(student_recipe(samples), tmp_path / "plain").info
    info = fit(student_recipe(samples, loggers=[NOTES]), tmp_path / "student", warn=warnings.append).info
    assert info.fingerprint == plain.fingerprint and len(info.training["history"]) == 3
    assert len(warnings) == 2 and "training goes on" in warnings[0]
    assert warnings[1] == f"logger {NOTES}: 3 of 3 epochs are not logged"


def test_a_logger_that_never_answers_is_left_behind(
    samples: str, tmp_path: Path, student_recipe: Callable[..., Any], notes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "PATIENCE", 0.5)
    warnings: list[str] = []
    fit(student_recipe(samples, loggers=[{"name": NOTES, "waits": True}]), tmp_path / "student", warn=warnings.append)
    assert len(warnings) == 1 and "no answer" in warnings[0]
    assert [
        thread.name for thread in threading.enumerate() if thread.name == "raymotion-loggers" and not thread.daemon
    ] == []
    assert not os.path.exists(run_folder(tmp_path / "student"))


def test_a_server_that_is_down(
    samples: str, tmp_path: Path, student_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    logger = {"name": "mlflow", "tracking_uri": "http://127.0.0.1:9"}
    info = fit(student_recipe(samples, loggers=[logger]), tmp_path / "student", warn=warnings.append).info
    assert len(info.training["history"]) == 3
    assert "logger mlflow failed" in warnings[0] and "127.0.0.1" in warnings[0] and "\n" not in warnings[0]
    assert warnings[1:] == ["logger mlflow: 3 of 3 epochs are not logged"]


@pytest.mark.parametrize("module, logger", [("mlflow", "mlflow"), ("wandb", "wandb"), ("tensorboardX", "tensorboard")])
def test_a_logger_that_is_not_installed_is_told_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: Callable[..., Any], module: str, logger: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    done = runner(
        "train", "student-demo", "--samples", tmp_path / "not there.parquet", "--out", tmp_path / "out",
        "--set", f"loggers=[{logger}]",
    )  # fmt: skip
    assert done.code == 2, done
    assert f"the logger {logger} needs" in done.err and "pip install 'raymotion[loggers]'" in done.err
    assert "not there" not in done.err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given, told",
    [
        ("tensorbord", "no logger is called 'tensorbord'"),
        ("[{tracking_uri: x}]", "names no logger"),
        ("[3]", "names no logger"),
        ("[{name: mlflow, uri: x}]", "logger mlflow: there is no setting uri (there are: name, tracking_uri,"),
        ("[{name: wandb, mode: maybe}]", "logger wandb: setting mode = 'maybe'"),
        ("[{name: mlflow, experiment: ''}]", "logger mlflow: setting experiment = ''"),
        ("[tensorboard, tensorboard]", "tensorboard is listed twice"),
        ("[{name: mlflow, tracking_uri: 'http://me:secret@host'}]", "holds a password, which does not belong"),
        ("[no_such_module:Logger]", "cannot be imported"),
        ("[raymotion.loggers.logger:LoggedRun]", "is not a logger"),
        ("[raymotion.loggers.logger:Logger]", "does not define"),
    ],
)
def test_a_wrong_logger_is_told(tmp_path: Path, runner: Callable[..., Any], given: str, told: str) -> None:
    done = runner("train", "student-demo", "--samples", "s.parquet", "--out", tmp_path, "--set", f"loggers={given}")
    assert done.code == 2 and told in done.err, done.err
    assert "Traceback" not in done.err and len(done.err.strip().splitlines()) == 1


def test_a_password_is_not_repeated(tmp_path: Path, runner: Callable[..., Any]) -> None:
    uri = "http://me:hunter2@host"
    done = runner(
        "train", "student-demo", "--samples", "s", "--out", tmp_path,
        "--set", f"loggers=[{{name: mlflow, tracking_uri: '{uri}'}}]",
    )  # fmt: skip
    assert done.code == 2 and "hunter2" not in done.err + done.out


@pytest.mark.parametrize(
    "given, expected",
    [
        ("tensorboard", [TensorBoardLogger(name="tensorboard")]),
        (["wandb", {"name": "mlflow", "experiment": "e"}], [
            WandbLogger(name="wandb"), MlflowLogger(name="mlflow", experiment="e"),
        ]),
        ([], []),
    ],
)  # fmt: skip
def test_a_recipe_keeps_its_loggers(tmp_path: Path, given: Any, expected: list[Logger]) -> None:
    """Through YAML, through JSON for another process, and as `winner.yaml` is written."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"kind": "student", "loggers": given}))
    recipe = load_settings(StudentRecipe, file=tmp_path / "r.yaml")
    assert list(recipe.loggers) == expected
    for dumped in (recipe.model_dump(mode="json"), recipe.model_dump(mode="json", exclude_defaults=True)):
        assert StudentRecipe.model_validate(json.loads(json.dumps(dumped))) == recipe
    assert recipe.without_loggers().loggers == ()


def test_tensorboard_writes_here_alone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    logger = TensorBoardLogger(name="tensorboard")
    with pytest.raises(InputError, match="this machine only"):
        logger.check("s3://bucket/teacher")
    TensorBoardLogger(name="tensorboard", folder=str(tmp_path)).check("s3://bucket/teacher")


def test_two_runs_of_one_name_are_two_for_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    ids = []
    for _ in range(2):
        logger = TensorBoardLogger(name="tensorboard")
        ids.append(logger.begin(LoggedRun("student", str(tmp_path / "student"), {"a": {"b": None}})))
        logger.log(1, {"x": 0.5})
        logger.end("complete", {})
    assert [Path(own).name for own in ids] == ["student", "student-2"]
    assert all(tensorboard_series(Path(own))["x"] == [(1, 0.5)] for own in ids)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("workers", [1, 2])
def test_ray_workers_log_each_epoch_once(
    ray_local: Any, samples: str, tmp_path: Path, student_recipe: Callable[..., Any], notes: Any, workers: int
) -> None:
    """The user's class is known to this process alone; epochs are far shorter than the polls."""
    out = tmp_path / "student"
    warnings: list[str] = []
    recipe = student_recipe(samples, workers=workers, loggers=[NOTES], optimiser={"epochs": 5})
    fit(recipe, out, warn=warnings.append)
    history = epochs_of(read_checkpoint_info(out))
    assert warnings == [] and [own[0] for own in notes.TOLD] == ["begin", 1, 2, 3, 4, 5, "complete"]
    for line, (epoch, figures) in zip(history, notes.TOLD[1:-1], strict=True):
        assert line == {"epoch": epoch, **{name: figures[name] for name in line if name != "epoch"}}
        assert figures["samples_per_second"] > 0 and 0 <= figures["learning_rate"] <= 5e-3


def test_the_logger_of_the_docs(
    samples: str, tmp_path: Path, student_recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
    own = page[page.index("## A logger of your own") :]
    code, settings = (own.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))
    (tmp_path / "my_logger.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    warnings: list[str] = []
    info = fit(student_recipe(samples, **yaml.safe_load(settings)), tmp_path / "out", warn=warnings.append).info
    with open("figures.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert warnings == []
    for line in epochs_of(info):
        assert [str(line["epoch"]), "val_bce", str(line["val_bce"])] in lines
    assert ["0", "status", "complete"] in lines and ["0", "checkpoint", info.folder] in lines
    del sys.modules["my_logger"]


def test_the_loggers_of_the_docs_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loggers.md").read_text()
    recipe = StudentRecipe.model_validate(yaml.safe_load(page.split("```yaml\n")[1].split("```")[0]))
    assert [own.name for own in recipe.loggers] == ["tensorboard", "mlflow", "wandb"]
