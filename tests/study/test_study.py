"""A small study through real Ray Tune: its record, going on after a kill, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from raymotion import records, storage
from raymotion.batch.cluster import connect
from raymotion.cli.study import report
from raymotion.data.embedding_layout import FeatureKey
from raymotion.data.samples import read_samples, vocabulary_of, write_samples
from raymotion.data.streams import LEVELS, STREAMS
from raymotion.errors import InputError, RunFailed, SettingsMismatch
from raymotion.folders import lock as folder_lock
from raymotion.folders.owner import Owner
from raymotion.learning.paired import paired_map_gain
from raymotion.models.fusion.recipe import FusionRecipe
from raymotion.models.training_set import TrainingSet
from raymotion.published.metrics import from_text
from raymotion.study.data import ids_of
from raymotion.study.features import needs_of, require_features
from raymotion.study.record import JOINT, StudyFolder, StudyRecord, TrialRecord
from raymotion.study.run import run_study
from raymotion.study.settings import StudySettings
from raymotion.study.space import Stopping, base_recipe, read_spaces
from raymotion.study.stages import is_final
from raymotion.train.prepare import prepare_data

pytestmark = pytest.mark.timeout(400)  # on a busy machine Ray and its actors take a minute to start


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    write_features: Callable[..., tuple[str, str]],
    write_spaces: Callable[..., str],
) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_features(folder, 240)
    write_spaces(folder)
    return folder


def settings(place: Path, out: Path, **changes: Any) -> StudySettings:
    made: dict[str, Any] = {
        "spaces": str(place / "spaces"), "embeddings": [str(place / "embeddings")], "out": str(out), "seeds": 2,
        "cpus_per_trial": 2,
        "stages": ["backbones", "loss"], **changes,
    }  # fmt: skip
    return StudySettings.model_validate(made)


@pytest.fixture(scope="module")
def finished(place: Path, ray_local: Any) -> tuple[Path, StudyRecord, list[str]]:
    lines: list[str] = []
    record = run_study(settings(place, place / "out"), say=lines.append)
    return place / "out", record, lines


def data_of(place: Path) -> TrainingSet:
    return prepare_data(
        FusionRecipe.model_validate(
            {
                "kind": "fusion",
                "backbones": {"context": "poor", "body": "good", "face": "good"},
                "data": {"samples": str(place / "samples.parquet"), "embeddings": [str(place / "embeddings")]},
            }
        )
    )


def hard(data: TrainingSet) -> np.ndarray:
    return data.targets["emotions"].arrays["hard"]


def trials(out: Path) -> dict[str, tuple[int, int]]:
    """Attempts, and when it was last written, of each finished trial."""
    return {
        path.parent.name: (json.loads(path.read_text())["attempts"], path.stat().st_mtime_ns)
        for path in out.glob("trials/*/trial.json")
        if json.loads(path.read_text())["status"] != "running"
    }


@pytest.mark.slow
def test_a_study_leaves_its_whole_record(finished: tuple[Path, StudyRecord, list[str]], place: Path) -> None:
    out, record, lines = finished
    assert StudyFolder(out).require() == record and record.joint is not None and record.cost is not None
    assert record.status == "complete" and record.seeds == [0, 1] and record.published == "emotic_study"
    assert [stage.name for stage in record.stages] == ["backbones", "loss"]
    assert [len(stage.trials) for stage in record.stages] == [2, 3] and len(record.joint.trials) == 4
    winners = [stage.winner for stage in record.stages]
    assert winners[0].config["backbones.context"] == "good", "noise was carried on"
    # The control of a stage is the winner of the one before, and is not trained again.
    for before, stage in pairwise(record.stages):
        control = next(own for own in stage.trials if own.key == before.winner.key)
        assert control.reused_from == "backbones" and stage.winner.incumbent == control.key
        assert stage.fixed.items() <= before.winner.config.items()
    cost = record.cost
    assert cost.trials == 9 and cost.trained + cost.reused == 9 and cost.trained == len(trials(out))
    assert cost.epochs <= cost.epochs_without_stopping == cost.trained * 2 * 3
    assert all(attempts == 1 for attempts, _ in trials(out).values())
    # Weights are kept of what was carried on, and of nothing else; probabilities of every trial that was completed.
    kept = {path.parent.name for path in out.glob("trials/*/*.weights.safetensors")}
    assert kept == {part.winner.key for part in record.parts}
    assert not (out / ".data").exists() and not (out / ".tune").exists()
    assert any("carried on" in line for line in lines) and any(line.startswith("joint search") for line in lines)
    assert not any("\n" in line for line in lines)


@pytest.mark.slow
def test_choices_and_comparison_follow_from_validation(
    finished: tuple[Path, StudyRecord, list[str]], place: Path
) -> None:
    """Each number of the record again, from the probabilities that the trials left."""
    out, record, _ = finished
    data, folder = data_of(place), StudyFolder(out)
    rows = data.splits["val"]
    truth, groups = hard(data)[rows], [data.groups[row] for row in rows]
    ids = [data.sample_ids[row] for row in rows]
    for stage in record.stages:
        spreads = {own.key: own.score for own in stage.complete if own.score}
        leader = max(spreads, key=lambda key: spreads[key].mean)
        assert stage.winner.leader == leader == stage.trials[0].key
        for other in stage.winner.compared:
            one, two = (folder.validation(key, [0, 1], ids) for key in (leader, other.key))
            gain = paired_map_gain(truth, one, two, groups=groups)
            assert (other.difference, other.low) == (pytest.approx(gain.value), pytest.approx(gain.low))
            assert other.difference == pytest.approx(spreads[leader].mean - spreads[other.key].mean, abs=1e-6)
            pooled = [np.var(own.seeds, ddof=1) for own in spreads.values()]
            noise = 2 * np.sqrt(np.mean(pooled))  # of two seeds: sqrt(2 / 2)
            assert other.tied == (not other.low > 0 or other.difference <= noise)
        assert stage.winner.key in {leader, stage.winner.incumbent, *stage.winner.tied}
    compared = record.comparison
    assert compared is not None and compared.carried.key == record.stages[-1].winner.key
    known = {own.key: own.score.mean for stage in record.stages for own in stage.complete if own.score}
    assert compared.gap.key == max(known, key=lambda key: known[key])
    assert compared.gap.low <= compared.gap.difference <= compared.gap.high or compared.gap.difference == 0


@pytest.mark.slow
def test_test_is_scored_once_at_the_end_for_every_winner(
    finished: tuple[Path, StudyRecord, list[str]], place: Path
) -> None:
    """Defect 13.2. Chance stands beside every score, and all that comes before the end knows nothing of test."""
    _, record, _ = finished
    data = data_of(place)
    assert [own.name for own in record.entries] == ["backbones", "loss", JOINT]
    for own in record.entries:
        assert own.baseline == pytest.approx(hard(data)[data.splits["test"]].mean(axis=0).mean())
        assert own.score.low is not None and own.score.high is not None
        assert own.score.low < own.score.mean < own.score.high and len(own.score.seeds) == 2
        assert len(own.per_class) == 5
        found = [StudyFolder(finished[0]).predictions(own.key, "test", seed, own.files) for seed in record.seeds]
        assert all(predictions.sample_ids == ids_of(data, "test") for predictions in found)
    same = {own.key: own.score for own in record.entries}
    assert all(own.score == same[own.key] for own in record.entries)
    assert "test" not in record.model_dump_json(include={"stages", "joint", "comparison"})


@pytest.mark.slow
def test_the_winner_is_a_recipe_that_can_be_trained(finished: tuple[Path, StudyRecord, list[str]]) -> None:
    from raymotion.train.recipe import load_recipe

    out, record, _ = finished
    recipe = load_recipe(str(out / "winner.yaml"))
    assert isinstance(recipe, FusionRecipe)
    assert recipe.loss.name == record.stages[-1].winner.config["loss.name"]


@pytest.mark.slow
def test_the_report_of_a_real_study_says_what_its_record_says(
    finished: tuple[Path, StudyRecord, list[str]], tmp_path: Path
) -> None:
    """Page and CSV, from the command, against the numbers in study.json."""
    out, record, _ = finished
    result = CliRunner().invoke(report, [str(out), "--out", str(tmp_path / "report")])
    assert result.exit_code == 0, result.output
    page = html.unescape((tmp_path / "report" / "index.html").read_text())

    def rows(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((tmp_path / "report" / name).read_text())))

    for stage, row in zip(record.parts, rows("stages.csv"), strict=True):
        entry, score = record.on_test(stage), stage.chosen.score
        assert entry is not None and score is not None
        assert (row["stage"], row["key"]) == (stage.name, stage.winner.key)
        assert (float(row["val_score"]), float(row["test_score"])) == (score.mean, entry.score.mean)
        assert f"{score.mean:.4f} ± {score.sd:.4f}" in page
        assert f"{entry.score.mean:.4f} ± {entry.score.sd:.4f}" in page
    for number, stage in enumerate(record.stages, 1):
        found = rows(f"stage-{number}-{stage.name}.csv")
        assert [row["key"] for row in found] == [own.key for own in stage.trials] and stage.winner.reason in page
        for row, own in zip(found, stage.trials, strict=True):
            assert {name: row[name] for name in stage.varied} == own.config and row["status"] == own.status
            assert own.score is None or [float(one) for one in row["val_score_seeds"].split()] == own.score.seeds
            gap = stage.behind(own.key)
            assert row["leader_gain"] == ("" if gap is None else repr(gap.difference))
    final = record.final
    assert final is not None and record.comparison is not None and record.comparison.reason in page
    assert [float(row["ap"]) for row in rows("per_class.csv")] == [own.ap for own in final.per_class]
    # Measured again by the report, from the kept predictions and the sample table.
    metrics = from_text((tmp_path / "report" / "evaluation_metrics.txt").read_text())
    assert metrics.mean_ap == pytest.approx(final.score.mean, abs=1e-4)
    assert "NOT THE EMOTIC DATA SET" in page and "which emotions go together" in page.lower()


@pytest.mark.slow
def test_no_finished_trial_runs_again_after_a_kill_in_the_last_stage(
    finished: tuple[Path, StudyRecord, list[str]], place: Path, tmp_path: Path
) -> None:
    """What `kill -9` leaves: a stage in the record, one trial of the next under way, one not begun."""
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    record = StudyFolder(out).require()
    running, unknown = [own.key for own in record.stages[1].trials if own.reused_from is None][:2]
    cut = {"status": "running", "stages": record.stages[:1], "joint": None, "comparison": None, "test": None}
    StudyFolder(out).write(record.model_copy(update=cut))
    path = out / "trials" / running / "trial.json"
    records.write_record(path, {**records.read_record(path), "status": "running", "epochs": [], "best": []})
    shutil.rmtree(out / "trials" / unknown)
    before = trials(out)
    assert running not in before and unknown not in before and len(before) >= 2
    lines: list[str] = []
    again = run_study(settings(place, out), say=lines.append)
    after = trials(out)
    assert {key: after[key] for key in before} == before, "a finished trial ran again"
    assert after[running][0] == 2 and after[unknown][0] == 1
    assert [own.key for own in again.stages[1].trials] == [own.key for own in record.stages[1].trials]
    assert again.stages[1].winner.key == record.stages[1].winner.key
    means = [own.score.mean for own in record.entries]
    assert [own.score.mean for own in again.entries] == pytest.approx(means)


@pytest.mark.slow
def test_a_finished_study_is_not_run_again_and_takes_no_other_settings(
    finished: tuple[Path, StudyRecord, list[str]], place: Path
) -> None:
    out, record, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    lines: list[str] = []
    assert run_study(settings(place, out), say=lines.append) == record
    assert "nothing to do" in lines[0] and {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(SettingsMismatch, match=r"seeds: \[0, 1\] there, \[0, 1, 2\] here"):
        run_study(settings(place, out, seeds=3), say=lines.append)
    with pytest.raises(SettingsMismatch, match=r"optimiser\.lr: 0\.01 there, 0\.5 here"):
        run_study(settings(place, out, set=["optimiser.lr=0.5"]), say=lines.append)
    with pytest.raises(InputError, match="is not empty, and no study"):
        run_study(settings(place, place), say=lines.append)


@pytest.mark.slow
def test_choices_do_not_change_with_the_test_split(
    finished: tuple[Path, StudyRecord, list[str]], place: Path, ray_local: Any, tmp_path: Path
) -> None:
    """Defect 13.2: with every test label turned round, every score on validation and the choice stay what they were."""
    table = read_samples(place / "samples.parquet")
    vocabulary = vocabulary_of(table)
    assert vocabulary is not None
    turned = [
        [name for name in vocabulary.labels if name not in labels] if split == "test" else labels
        for labels, split in zip(table.column("labels").to_pylist(), table.column("split").to_pylist(), strict=True)
    ]
    index = table.schema.get_field_index("labels")
    field = table.schema.field(index)
    write_samples(tmp_path / "s.parquet", table.set_column(index, field, pa.array(turned, field.type)))
    _, before, _ = finished
    changed = settings(
        place, tmp_path / "out", stages=["backbones"], joint=False, samples=str(tmp_path / "s.parquet")
    )  # fmt: skip
    after = run_study(changed, say=lambda line: None)
    one, other = before.stages[0], after.stages[0]
    assert [own.score for own in one.trials] == [own.score for own in other.trials]
    assert one.winner.config.items() >= other.winner.config.items()
    scores = [record.entries[0].score.mean for record in (before, after)]
    assert not np.isclose(*scores), "the test labels were not read at the end either"


@pytest.mark.slow
def test_a_stage_in_which_everything_fails_ends_the_study_with_the_reasons(
    place: Path, ray_local: Any, tmp_path: Path, write_spaces: Callable[..., str]
) -> None:
    stage = {"stage": 1, "name": "one", "title": "One", "recipe": "RECIPE", "grid": {"optimiser.lr": [1e30]}}
    spaces = write_spaces(tmp_path, {"s.yaml": stage})
    with pytest.raises(RunFailed, match=r"all 1 configurations of one failed: .*retry-failed"):
        run_study(
            settings(place, tmp_path / "out", spaces=spaces, stages=None, joint=False, seeds=1), say=lambda line: None
        )
    (failed,) = (json.loads(path.read_text()) for path in (tmp_path / "out").glob("trials/*/trial.json"))
    assert failed["status"] == "failed" and failed["error"] and failed["attempts"] == 1


@pytest.mark.slow
def test_a_winner_whose_weights_are_gone_is_trained_again_while_ray_is_there(
    finished: tuple[Path, StudyRecord, list[str]], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end, with all stages known: Ray is entered for it, not before, and left again."""
    out, events = tmp_path / "out", list[str]()
    shutil.copytree(finished[0], out)
    before = finished[1]
    assert before.joint is not None
    StudyFolder(out).write(before.model_copy(update={"status": "running", "test": None}))
    winner = before.joint.winner.key
    (out / "trials" / winner / "seed-1.weights.safetensors").unlink()

    @contextlib.contextmanager
    def told(address: str | None, **options: Any) -> Iterator[None]:
        events.append("in")
        with connect(address, **options):
            yield
        events.append("out")

    monkeypatch.setattr("raymotion.study.run.connect", told)
    again = run_study(settings(place, out), say=lambda line: None)
    assert events == ["in", "out"] and trials(out)[winner][0] == 2
    means = [own.score.mean for own in before.entries]
    assert [own.score.mean for own in again.entries] == pytest.approx(means)


def test_what_an_earlier_stage_stopped_is_trained_again(tmp_path: Path) -> None:
    """Else it silently could not win where `stopping: null` promises that each is trained to its end."""
    study: Any = SimpleNamespace(settings=SimpleNamespace(retry_failed=False), folder=StudyFolder(tmp_path))
    stopped = TrialRecord(key="k", config={}, seeds=[0], stage="fusion", status="stopped")
    assert is_final(study, stopped, "fusion", Stopping())
    assert not is_final(study, stopped, "joint", Stopping()) and not is_final(study, stopped, "fusion", None)
    assert is_final(study, stopped.model_copy(update={"status": "failed"}), "joint", None)


def keys_of(command: str) -> set[FeatureKey]:
    """What `raymotion features embeddings` makes, from its options as the remedy gives them."""
    words = shlex.split(command)
    given = list(pairwise(words))
    pairs = [(stream, name) for stream in STREAMS for word, name in given if word == f"--{stream}"]
    levels = ["none", *(name for word, name in given if word == "--augment")]
    kinds = [False, True] if "--tokens" in words else [False]
    return {FeatureKey(*pair, level, tokens) for pair in pairs for level in levels for tokens in kinds}


@pytest.mark.parametrize(
    ("lost", "beside"),
    [
        (lambda key: key.backbone == "test_vit", True),  # a backbone that --set named
        (lambda key: key.stream == "face", True),
        (lambda key: key.level == "full", False),
        (lambda key: key.tokens and key.level != "none", False),  # each would fail in stage 4, where tokens won
        (lambda key: True, False),
    ],
)
def test_the_remedy_for_missing_features_makes_them(lost: Callable[[FeatureKey], bool], beside: bool) -> None:
    """And where it is to be read beside the folder that there is, nothing that this one has: that is refused."""
    spaces = read_spaces("tune_spaces/emotic-small")
    base = base_recipe(spaces, ["backbones.face=test_vit"])  # stage 1 varies face: it is the choices that count
    streams = {stream: list(needs_of(spaces, base)[stream]) for stream in STREAMS}
    needed = {FeatureKey(stream, name, level, tokens) for stream, names in streams.items() for name in names
              for level in LEVELS for tokens in (False, True)}  # fmt: skip
    there = {key for key in needed if not lost(key)}
    opened: Any = SimpleNamespace(keys=tuple(there), folders=("e",), views={"none": 1, "basic": 8, "full": 8})
    with pytest.raises(InputError, match="lack") as error:
        require_features(opened, spaces, base, "s.parquet")
    made = keys_of(str(error.value.remedy).split("`")[1])
    if beside:
        assert made == needed - there and "--views 8" in str(error.value)
    else:
        assert made == needed and "alone" in str(error.value)
    require_features(SimpleNamespace(keys=tuple(needed), folders=("e",), views={}), spaces, base, "s.parquet")  # type: ignore[arg-type]


def test_missing_features_are_told_at_once_with_the_command(place: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    shipped = os.path.join(os.path.dirname(__file__), "..", "..", "tune_spaces", "emotic-small")
    with pytest.raises(InputError, match=r"lack 24 of the features .*--body test_vit .*--augment full") as error:
        run_study(settings(place, tmp_path / "out", spaces=shipped, stages=None), say=lines.append)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists() and not lines


@pytest.mark.parametrize("ended", [None, "failed", "running", "complete", "stopped"])
def test_a_study_binds_its_folder_once_a_trial_has_come_to_an_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Any
) -> None:
    out = StudyFolder(tmp_path / "out")

    def no_ray(*_: object, **__: object) -> None:
        raise RunFailed("Ray did not start")

    monkeypatch.setattr("raymotion.study.run.connect", no_ray)
    with pytest.raises(RunFailed, match="Ray did not start"):
        run_study(settings(place, tmp_path / "out"), say=lambda line: None)
    if ended:
        out.write_trial(TrialRecord(key="k", config={}, seeds=[0, 1], status=ended))
    with pytest.raises(SettingsMismatch if ended in ("complete", "stopped") else RunFailed):
        run_study(settings(place, tmp_path / "out", seeds=1), say=lambda line: None)
    assert (out.read_trial("k") is not None) is (ended in ("complete", "stopped"))


def test_a_study_that_lost_its_folder_leaves_it_to_the_new_owner(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "BEAT", 0.05)

    def taken_over(*_: object, **__: object) -> None:
        storage.write_json(tmp_path / "out" / folder_lock.LOCK, asdict(replace(Owner.here(), token="theirs")))
        time.sleep(20)

    monkeypatch.setattr("raymotion.study.run.connect", taken_over)
    with pytest.raises(RunFailed, match="another process took this folder over"):
        run_study(settings(place, tmp_path / "out"), say=lambda line: None)
    record = StudyFolder(tmp_path / "out").read()
    assert record is not None and record.status == "running"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_a_disk_that_is_full_fails_no_trial(place: Path, tmp_path: Path) -> None:
    """One of 100 KB; then it is made larger, and the same command goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", disk], check=False).returncode:
        pytest.skip("may not mount a disk")
    try:
        with pytest.raises(RunFailed, match="no space left on the device"):
            run_study(settings(place, disk / "out", stages=["backbones"], joint=False), say=lambda line: None)
        assert not [path for path in disk.glob("out/trials/*/trial.json") if b'"failed"' in path.read_bytes()]
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        record = run_study(settings(place, disk / "out", stages=["backbones"], joint=False), say=lambda line: None)
        assert record.complete
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
