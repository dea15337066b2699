"""`raymotion label`, `select`, `export`, `features`: what they print, and one line for every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raymotion.data.samples import table_from_rows, write_samples
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.vocabulary import SOCRATIS_29


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "t"
    tokenizer = train_tokenizer([f"words of caption {i}" for i in range(40)], size=100)
    torch.manual_seed(0)
    config = TeacherConfig.model_validate({"size": "tiny", "vocab_size": len(tokenizer)})
    model = VisualBertTeacher(config, 29)
    inputs = [Captions(64, tokenizer=tokenizer)]
    save_checkpoint(folder, get_kind("teacher-visualbert"), model, inputs, [MultiLabel(SOCRATIS_29)], training={})
    return str(folder)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(folder / f"{i}.png")
    rows = (
        {
            "sample_id": f"x:{i}", "group_id": f"x:{i}", "image_uri": str(folder / f"{i}.png"),
            "captions": [f"caption {i}"], "source": "x",
        }
        for i in range(3)
    )  # fmt: skip
    write_samples(tmp_path / "s.parquet", table_from_rows(rows))
    return tmp_path / "s.parquet"


def test_the_first_line_is_the_verdict_and_a_second_run_does_nothing(
    ray_local: Any, runner: Callable[..., Any], samples: Path, teacher: str, tmp_path: Path
) -> None:
    (tmp_path / "label.yaml").write_text(f"model: {teacher}\nworkers: 1\nselection: {{count: 2}}\n")
    command = ["label", samples, "--out", tmp_path / "o", "--config", tmp_path / "label.yaml", "--set", "shard_rows=2"]
    first = runner(*command)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    assert lines[0].startswith("No collapse found, with a reservation: 3 images are too few")
    assert "is not known" in lines[1] and lines[1].endswith("holds no sample of its training data.")
    assert "note: The model was trained on captions alone" in lines[2]
    assert f"3 in = 3 good + 0 in quarantine -> {tmp_path / 'o'}" in first.out
    assert first.err == "", "quiet where no terminal is"
    again = runner(*command)
    assert again.code == 0 and "is complete already: nothing to do." in again.out
    other = runner(*command, "--count", "5")
    assert other.code == 2 and "selection.count: 2 there, 5 here" in other.err and other.err.count("\n") == 1

    chosen = runner("select", tmp_path / "o", "--policy", "threshold", "--threshold", "0", "--out", tmp_path / "all")
    assert chosen.code == 0 and f"3 of 3 images selected, {3 * 29} labels" in chosen.out
    exported = runner("export", tmp_path / "o", "--out", tmp_path / "o.csv")
    assert exported.code == 0 and len((tmp_path / "o.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere", "--out", "OUT"], "nowhere: no such checkpoint"),
        (["--out", "OUT"], "setting model is missing"),
        (["--model", "TEACHER"], "setting out is missing"),
        (["--model", "TEACHER", "--out", "OUT", "--set", "worker=3"], "there is no setting worker (there are:"),
        (["--model", "TEACHER", "--out", "OUT", "--set", "shard_rows=many"], "setting shard_rows = 'many': "),
        (["--model", "TEACHER", "--out", "OUT", "--config", "absent.yaml"], "absent.yaml: no such file"),
        (["--model", "TEACHER", "--out", "OUT", "--policy", "class-thresholds"], "holds no thresholds fitted"),
        (["--model", "TEACHER", "--out", "IMAGES/0.png"], "0.png is a file, not a folder"),
    ],
)
def test_mistakes_are_one_line(
    runner: Callable[..., Any], samples: Path, teacher: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    places = {"OUT": str(tmp_path / "o"), "TEACHER": teacher}
    given = [places.get(a, a).replace("IMAGES", str(tmp_path / "images")) for a in arguments]
    outcome = runner("label", samples, *given)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1 and message in outcome.err
    assert not list((tmp_path / "o").rglob("part-*"))


def test_samples_that_are_no_sample_table(runner: Callable[..., Any], teacher: str, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("this is text")
    outcome = runner("label", tmp_path / "t.parquet", "--model", teacher, "--out", tmp_path / "o")
    assert outcome.code == 2 and "t.parquet: is not a readable Parquet file" in outcome.err


def test_debug_shows_where(runner: Callable[..., Any], samples: Path, tmp_path: Path) -> None:
    outcome = runner("label", samples, "--model", "nowhere", "--out", tmp_path / "o", "--debug")
    assert outcome.code == 2 and "Traceback" in outcome.err
    assert "nowhere: no such checkpoint" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--extractor", "yolo"], "no region extractor is called 'yolo'"),
        (["--weights", "absent.pth"], "absent.pth: no such weights file"),
        (["--weights", "random", "--count", "0"], "--count"),
    ],
)
def test_mistakes_of_features(
    runner: Callable[..., Any], samples: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = runner("features", "regions", samples, "--out", tmp_path / "f", *arguments)
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


def test_a_folder_that_is_no_labelled_set(runner: Callable[..., Any], tmp_path: Path) -> None:
    for command in (["select", tmp_path, "--out", tmp_path / "b"], ["export", tmp_path, "--out", tmp_path / "b"]):
        outcome = runner(*command)
        assert outcome.code == 2 and "_job.json" in outcome.err, outcome.err


def test_an_option_of_another_policy_is_a_mistake(runner: Callable[..., Any], samples: Path, teacher: str) -> None:
    outcome = runner("label", samples, "--model", teacher, "--out", samples.parent / "o", "--threshold", "0.3")
    assert outcome.code == 2 and "threshold is not used by the policy top-per-image" in outcome.err


def test_a_folder_of_other_files_is_not_written_into(runner: Callable[..., Any], samples: Path, teacher: str) -> None:
    outcome = runner("label", samples, "--model", teacher, "--out", samples.parent / "images")
    assert outcome.code == 2 and "holds 0.png, but no _job.json" in outcome.err
    assert sorted(path.name for path in (samples.parent / "images").iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_input_is_not_overwritten(runner: Callable[..., Any], samples: Path) -> None:
    captions = samples.parent / "captions.jsonl"
    captions.write_text('{"file": "0.png", "caption": "black"}\n')
    prepare = ["data", "prepare", "folder", samples.parent / "images", "--captions", captions]
    outcome = runner(*prepare, "--out", captions)
    assert outcome.code == 2 and "exists already and is not a sample table" in outcome.err
    assert captions.read_text().startswith("{")
    captions.write_text('{"file": "elsewhere/0.png", "caption": "black"}\n')
    outcome = runner(*prepare, "--out", samples.parent / "mine.parquet")
    assert outcome.code == 2 and "'elsewhere/0.png', for example, is not there" in outcome.err
