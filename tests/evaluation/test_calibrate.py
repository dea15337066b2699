"""`raymotion calibrate`: from labelled rows of two sources to a checkpoint with their temperatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from raymotion.batch.label_dataset import load_labels
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.learning.metrics.multilabel import bce
from raymotion.learning.selection import NEVER
from raymotion.learning.temperature import scale
from raymotion.models.checkpoint import read_checkpoint_info, sample_mark, save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.outputs.temperatures import Temperatures
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.pipeline.predictor import load
from raymotion.vocabulary import MIKELS_8

Runner = Callable[..., Any]
WORDS = ["caption", "another", "one", "and", *map(str, range(30))]
DRAWN = np.random.default_rng(0)
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 6))) for _ in range(400)]
SOURCES = ["news" if i % 2 else "web" for i in range(400)]
TRUE = {"news": 3.0, "web": 0.7}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and labels that are drawn from its probabilities, sharpened and flattened by source."""
    folder = tmp_path_factory.mktemp("calibrate")
    tokenizer = train_tokenizer([f"caption {i} and another one" for i in range(50)], size=120)
    torch.manual_seed(7)
    model = VisualBertTeacher(TeacherConfig(size="tiny", vocab_size=len(tokenizer)), 8).eval()  # type: ignore[call-arg]
    torch.nn.init.normal_(model.head.weight, std=1.0)
    captions = Captions(64, tokenizer=tokenizer)
    tokens = captions.tokens([[text] for text in TEXTS]).tensors("cpu")
    with torch.no_grad():
        found = model(**{name: value for name, value in tokens.items() if name != "owners"})
        model.head.weight.mul_(2 / found.std(dim=0)[:, None])
        model.head.bias.sub_(found.mean(dim=0)).mul_(2 / found.std(dim=0)).sub_(0.5)
    facts = {"prior": [0.3] * 8, "thresholds": [0.6] * 7 + [NEVER], "validation": None, "test": None}
    training = {"outputs": {"emotions": facts}, "data": {"seen": [sample_mark("own:3")]}}
    kind = get_kind("teacher-visualbert")
    save_checkpoint(folder / "teacher", kind, model, [captions], [MultiLabel(MIKELS_8)], training=training)
    p = load(folder / "teacher").predict(None, [[text] for text in TEXTS])
    rng = np.random.default_rng(1)
    truth = rng.random(p.shape) < scale(p, np.array([TRUE[name] for name in SOURCES]))
    rows = [
        {"sample_id": f"own:{i}", "group_id": f"own:{i}", "captions": [TEXTS[i]], "source": SOURCES[i],
         "labels": MIKELS_8.decode(np.flatnonzero(truth[i]).tolist()), "split": "test" if i >= 300 else None}
        for i in range(400)
    ]  # fmt: skip
    write_samples(folder / "samples.parquet", table_from_rows(rows, MIKELS_8))
    other = [{**row, "source": ["news", "web", "elsewhere"][i % 3], "split": None} for i, row in enumerate(rows[:30])]
    write_samples(folder / "other.parquet", table_from_rows(other, MIKELS_8))
    return folder


@pytest.fixture(scope="module")
def calibrated(made: Path) -> Path:
    from raymotion.evaluation.calibrate import CalibrateSettings, calibrate_checkpoint

    calibrate_checkpoint(
        CalibrateSettings(
            model=str(made / "teacher"), samples=str(made / "samples.parquet"), out=str(made / "by"), by="source"
        )  # type: ignore[call-arg]
    )
    return made / "by"


def test_the_command_tells_what_was_gained_on_held_out_rows(made: Path, tmp_path: Path, runner: Runner) -> None:
    words = ("calibrate", made / "teacher", made / "samples.parquet", "--by", "source", "--out", tmp_path / "own")
    done = runner(*words)
    assert done.code == 0, done.err
    assert "1 of these 300 rows were trained on" in done.out and "wrote" in done.out
    record = json.loads((tmp_path / "own" / "training.json").read_text())
    everything, news, web = record["calibration"]["domains"]
    assert (everything["domain"], everything["rows"], news["rows"], web["rows"]) == ("all", 300, 150, 150)
    assert news["temperature"] == pytest.approx(3.0, rel=0.25) and web["temperature"] == pytest.approx(0.7, rel=0.25)
    for own in (news, web):
        assert own["after"] < own["global_after"] and own["after"] < own["before"] and own["gain_low"] > 0
        assert f"{own['before']:.4f}" in done.out and f"{own['after']:.4f}" in done.out
    own = record["outputs"]["emotions"]
    assert own["validation"]["metrics"]["bce"]["value"] == pytest.approx(everything["after"], abs=1e-6)
    assert own["thresholds"][-1] == NEVER
    t = read_checkpoint_info(tmp_path / "own").outputs[0].temperatures  # type: ignore[attr-defined]
    assert own["thresholds"][0] == pytest.approx(float(scale(np.array([[0.6]]), t.all)[0, 0]))
    card = (tmp_path / "own" / "README.md").read_text()
    assert f"by source: news {news['temperature']:.3f}" in card and "cross-validation" in card
    again = runner(*words[:-1], tmp_path / "again")
    assert again.code == 0
    for name in ("model.safetensors", "config.json", "training.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert runner(*words).code == 2, "nothing is written over"


@pytest.mark.slow
def test_label_evaluate_and_predict_use_the_temperature_of_the_row(
    made: Path, calibrated: Path, tmp_path: Path, runner: Runner
) -> None:
    raw, info = load(made / "teacher"), read_checkpoint_info(calibrated)
    assert info.fingerprint != raw.info.fingerprint
    output = info.outputs[0]
    assert isinstance(output, MultiLabel) and output.temperatures is not None
    own = output.temperatures
    table = pq.read_table(made / "other.parquet")
    p = raw.predict(table)[list(MIKELS_8.labels)].to_numpy()
    expected = scale(p, np.array([own.by.get(name, own.all) for name in table.column("source").to_pylist()]))
    words = ("--model", calibrated, "--workers", 0, "--out", tmp_path / "labels")
    assert runner("label", made / "other.parquet", *words).code == 0
    labelled = load_labels(tmp_path / "labels")
    ids, _ = labelled.pictures()
    order = [table.column("sample_id").to_pylist().index(name) for name in ids]
    assert labelled.probabilities == pytest.approx(expected[order], abs=1e-4)
    assert load(calibrated).predict(table)[list(MIKELS_8.labels)].to_numpy() == pytest.approx(expected, abs=1e-4)
    one = load(calibrated).label(caption=TEXTS[0])
    assert one == pytest.approx({name: scale(p[:1], own.all)[0, j] for j, name in enumerate(MIKELS_8.labels)}, abs=1e-4)
    told = runner("predict", calibrated, "--caption", TEXTS[0])
    assert told.code == 0 and "calibrated by source" in told.out
    # Test rows, which the temperatures were not fitted to.
    for _ in range(2):  # a second run finds the same rows
        words = ("evaluate", calibrated, made / "samples.parquet", "--workers", 0, "--bootstrap", 20)
        done = runner(*words, "--out", tmp_path / "evaluation")
        assert done.code == 0, done.err
    assert runner("evaluate", made / "teacher", *words[2:], "--out", tmp_path / "before").code == 0
    found = [
        json.loads((tmp_path / name / "evaluation.json").read_text())["results"]["metrics"]["bce"]["value"]
        for name in ("before", "evaluation")
    ]
    assert found[1] < found[0] - 0.02


def test_a_mean_of_models_calibrates_each_first(made: Path, calibrated: Path, tmp_path: Path, runner: Runner) -> None:
    words = ("--model", made / "teacher", "--model", calibrated, "--workers", 0, "--out", tmp_path / "labels")
    done = runner("label", made / "other.parquet", *words)
    assert done.code == 0, done.err
    table = pq.read_table(made / "other.parquet")
    each = [load(path).predict(table)[list(MIKELS_8.labels)].to_numpy() for path in (made / "teacher", calibrated)]
    labelled = load_labels(tmp_path / "labels")
    order = [table.column("sample_id").to_pylist().index(name) for name in labelled.pictures()[0]]
    assert labelled.probabilities == pytest.approx(np.mean(each, axis=0)[order], abs=1e-4)


def test_calibrating_again_replaces_the_temperatures(
    made: Path, calibrated: Path, tmp_path: Path, runner: Runner
) -> None:
    assert runner("calibrate", calibrated, made / "samples.parquet", "--out", tmp_path / "one").code == 0
    assert runner("calibrate", made / "teacher", made / "samples.parquet", "--out", tmp_path / "two").code == 0
    first, second = (read_checkpoint_info(tmp_path / name) for name in ("one", "two"))
    assert first.outputs[0].to_dict() == second.outputs[0].to_dict()
    assert first.thresholds == pytest.approx(second.thresholds, abs=1e-9)


def test_what_is_refused_in_one_line(made: Path, tmp_path: Path, runner: Runner) -> None:
    done = runner("calibrate", made / "teacher", made / "other.parquet", "--by", "source", "--out", tmp_path / "a")
    assert done.code == 2 and "has 10 labelled images of source" in done.err and done.err.count("\n") == 1
    rows = [{"sample_id": "a", "group_id": "a", "source": "x", "captions": ["one"]}]
    write_samples(tmp_path / "bare.parquet", table_from_rows(rows))
    done = runner("calibrate", made / "teacher", tmp_path / "bare.parquet", "--out", tmp_path / "a")
    assert done.code == 2 and "no labels to fit to" in done.err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "value", [None, {}, {"all": 0, "by": {}}, {"all": 1.0, "by": {"x": -1}, "column": "source"},
              {"all": 1.0, "by": {"x": 2.0}}, {"all": 1.0, "by": [], "column": "source"}, {"all": True, "by": {}}],
)  # fmt: skip
def test_a_config_with_other_temperatures_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="temperature"):
        Temperatures.from_dict(value, where="config.json")


def test_the_form_in_config_is_read_back() -> None:
    own = Temperatures(1.5, "source", {"b": 2.0, "a": 0.5})
    assert Temperatures.from_dict(json.loads(json.dumps(own.to_dict())), where="") == own
    p = np.array([[0.2], [0.2], [0.2]])
    truth = own.apply(p, ["b", "c", None])
    assert truth[0, 0] == pytest.approx(1 / 3) and truth[1, 0] == truth[2, 0] and bce(p, p) > 0


def test_temperatures_by_split_are_refused_since_no_row_would_get_one(
    made: Path, tmp_path: Path, runner: Runner
) -> None:
    words = ("calibrate", made / "teacher", made / "samples.parquet", "--out", tmp_path / "own")
    done = runner(*words, "--by", "split")
    assert done.code == 2 and "split" in done.err and not (tmp_path / "own").exists()
    told = " ".join(runner("calibrate", "--help").out.split())
    assert "rows of test are not used" in told
