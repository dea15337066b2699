"""A model behind an endpoint labels with the commands of every model; a server that misbehaves is told apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import raymotion
from raymotion.batch.labels import LabelSettings
from raymotion.batch.labels import label as run_job
from raymotion.models.checkpoint import read_checkpoint_info

Label = Callable[..., Any]


@pytest.fixture
def label(runner: Callable[..., Any], samples: Path, tmp_path: Path) -> Label:
    """`label(checkpoint, *options, out="labels")` -> the outcome of the command, in this process and without Ray."""

    def run(model: Path, *options: object, out: str = "labels") -> Any:
        return runner("label", samples, "--model", model, "--out", tmp_path / out, "--workers", 0, *options)

    return run


def job(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "_job.json").read_text()))


def quarantine(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((out / "_quarantine").glob("*.pq"))])


def test_the_pictures_are_labelled_by_what_the_server_sees(
    server: Any, wrap: Any, label: Label, samples: Path, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    model = wrap("--image-size", 120, "--prompt-price", 2, "--completion-price", 10)
    done = label(model, "--shard-rows", 5)
    assert done.code == 0 and "12 in = 12 good" in done.out, done.err
    named = raymotion.open_labels(tmp_path / "labels").set_index("sample_id")
    for row in range(12):
        pixels = np.asarray(Image.open(tmp_path / "pictures" / f"{row:02d}.png")).mean(axis=(0, 1)) / 255
        assert named.loc[f"{row:02d}", ["red", "green", "blue"]].astype(float).to_numpy() == pytest.approx(
            pixels, abs=0.01
        )
    assert sorted(server.rows()) == list(range(12))

    trial, *others = server.asked
    assert trial.row is None and all(own.row is not None for own in others)
    for own in others:
        assert own.picture.size == (120, 80) and own.body["temperature"] == 0 and own.body["seed"] == 0
        (text,) = [part["text"] for part in own.body["messages"][0]["content"] if part["type"] == "text"]
        assert all(f"- {name}\n" in text for name in ("blue", "red", "green")) and '{"blue": 0.0, "red": 0.0' in text
        asked_for = own.body["response_format"]
        assert asked_for["type"] == "json_schema" and asked_for["json_schema"]["strict"] is True
        assert asked_for["json_schema"]["schema"]["required"] == ["blue", "red", "green"]
        assert own.headers["authorization"] == "Bearer EMPTY"

    # Each answer has 41 to 48 characters; the server counts one token for four.
    written = sum(len(json.dumps(own.shares)) // 4 for own in others)
    usage = job(tmp_path / "labels")["usage"]
    assert usage == {
        "requests": 12, "retries": 0, "answers": 12, "prompt_tokens": 1200, "completion_tokens": written,
        "answers_by_format": {"json_schema": 12}, "answers_without_usage": 0,
        "cost": pytest.approx((1200 * 2 + written * 10) / 1e6),
    }  # fmt: skip
    told = f"1,200 prompt + {written} completion tokens, cost 0.00"
    assert told in done.out and told in (tmp_path / "labels" / "_README.md").read_text()
    assert told in runner("status", tmp_path / "labels").out
    assert job(tmp_path / "labels")["model"]["service"]["endpoint"] == server.address

    frame = raymotion.label(samples, model)
    for name in ("red", "green", "blue"):
        assert frame.set_index("sample_id")[name].to_numpy() == pytest.approx(named[name].to_numpy(), abs=1e-6)
    done = runner("predict", model, tmp_path / "pictures" / "11.png", "--json")
    assert json.loads(done.out)["emotions"][0]["label"] == "red", done.err
    done = runner("evaluate", model, samples, "--out", tmp_path / "evaluation", "--workers", 0)
    assert done.code == 0, done.err
    # "red" is the label of the reddest pictures and "green" of the greenest: a perfect order.
    results = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["results"]
    assert results["samples"] == 4 and results["metrics"]["macro_ap"]["value"] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_local")
def test_workers_of_ray_write_the_same_bytes(
    server: Any, wrap: Any, label: Label, samples: Path, tmp_path: Path
) -> None:
    model = wrap("--concurrency", 2)
    assert label(model, "--shard-rows", 3).code == 0
    settings = LabelSettings(samples=samples, model=str(model), out=tmp_path / "ray", shard_rows=3, workers=2)
    record = run_job(settings, progress="none").record
    assert record["throughput"]["workers"] == 2 and record["throughput"]["gpus_per_worker"] == 0
    assert Counter(server.rows()) == Counter(list(range(12)) * 2)
    parts = sorted((tmp_path / "labels" / "data").iterdir())
    assert len(parts) == 4
    for path in parts:
        assert path.read_bytes() == (tmp_path / "ray" / "data" / path.name).read_bytes()
    here = job(tmp_path / "labels")["usage"]
    assert {key: here[key] for key in here if key != "requests"} == {
        key: value for key, value in record["usage"].items() if key != "requests"
    }


def test_each_bad_answer_is_a_row_in_quarantine(server: Any, wrap: Any, label: Label, tmp_path: Path) -> None:
    said = {
        0: server.say("I'm sorry, but I can't help with pictures of people."),
        1: server.say('```json\n{"red": 0.25, "green": 0.5, "blue": 1}\n```'),
        2: server.say('{"red": 0.5, "green": 0.5, "cyan": 0.5}'),
        3: server.say('{"red": 0.5, "gr', ended="length"),
        4: server.say(None, refusal="No faces, please."),
        5: server.say('{"red": 50, "green": 30, "blue": 20}'),
        6: server.say("Red and \ud800 a half."),
        7: server.say("", ended="content_filter"),
        8: server.say('{"red": 0.5, "green": 0.5}'),
        9: server.refuse(400, "The prompt (5000 tokens) is longer than the context."),
        10: (200, {}, {"id": "x", "choices": [], "usage": None}),
    }
    server.misbehave = lambda asked: said.get(asked.row)
    done = label(wrap(), "--max-failed", 1)
    assert done.code == 0 and "12 in = 2 good + 10 in quarantine" in done.out, done.err
    found = quarantine(tmp_path / "labels").set_index("sample_id")
    assert (found["stage"] == "ask").all()
    assert found["reason"].to_dict() == {
        "00": "refusal", "02": "answer_unknown_label", "03": "answer_cut_off", "04": "refusal",
        "05": "answer_not_probability", "06": "answer_not_json", "07": "refusal", "08": "answer_missing_label",
        "09": "request_rejected", "10": "answer_empty",
    }  # fmt: skip
    for row, start in {
        "00": "I'm sorry, but", "02": "cyan", "03": '{"red": 0.5, "gr', "04": "No faces", "06": "Red and ? a half",
        "09": "5000 tokens",
    }.items():  # fmt: skip
        assert start in found.loc[row, "message"], found.loc[row, "message"]
    labelled = raymotion.open_labels(tmp_path / "labels").set_index("sample_id")
    assert labelled.loc["01", ["red", "green", "blue"]].tolist() == [0.25, 0.5, 1.0]
    usage = job(tmp_path / "labels")["usage"]
    assert (usage["answers"], usage["answers_without_usage"], usage["prompt_tokens"]) == (11, 1, 1000)


@pytest.mark.parametrize("accepted", ["json_object", "text"])
def test_a_server_without_schemas_is_asked_in_words_and_that_is_told(
    server: Any, wrap: Any, label: Label, tmp_path: Path, accepted: str
) -> None:
    def refuse(asked: Any) -> Any:
        wanted = asked.body.get("response_format", {}).get("type", "text")
        return None if wanted == accepted else server.refuse(400, f"response_format {wanted} is not supported")

    server.misbehave = refuse
    done = label(wrap())
    assert done.code == 0 and f"asked for as {accepted}" in done.out, done.err
    assert (
        f"refused response_format json_schema: 12 answers were asked for as {accepted}"
        in (tmp_path / "labels" / "_README.md").read_text()
    )
    assert len(server.rows()) == 12, "the trial found it out, not the rows"
    assert job(tmp_path / "labels")["usage"]["answers_by_format"] == {accepted: 12}


def test_a_model_that_reads_no_pictures_is_told_before_any_row(server: Any, wrap: Any, label: Label) -> None:
    server.misbehave = lambda asked: server.refuse(400, "colours-1 is not a multimodal model")
    done = label(wrap())
    assert (
        done.code == 2 and "is not a multimodal model" in done.err and "Serve a model that reads pictures" in done.err
    )
    assert server.rows() == []


@pytest.mark.parametrize(
    "kind, body", [("text/html", b"<html>Welcome</html>"), ("application/json", b"{not"), ("application/json", b"{}")]
)
def test_another_server_is_told(server: Any, wrap: Any, label: Label, kind: str, body: bytes) -> None:
    server.misbehave = lambda asked: (200, {"Content-Type": kind}, body)
    done = label(wrap())
    assert done.code == 1 and "does not answer as an OpenAI-compatible server" in done.err, done.err
    assert done.err.count("\n") == 1 and server.rows() == []


def test_odd_counts_of_tokens_are_left_out(server: Any, wrap: Any, label: Label, tmp_path: Path) -> None:
    def odd(asked: Any) -> Any:
        status, headers, body = server.say(json.dumps(asked.shares))
        return status, headers, {**body, "usage": {"prompt_tokens": "many", "completion_tokens": None}}

    server.misbehave = odd
    assert label(wrap()).code == 0
    usage = job(tmp_path / "labels")["usage"]
    assert (usage["answers"], usage["prompt_tokens"], usage["completion_tokens"]) == (12, 0, 0)


@pytest.mark.slow
def test_retry_after_is_honoured_and_retries_are_counted(server: Any, wrap: Any, label: Label, tmp_path: Path) -> None:
    failed: Counter[int] = Counter()

    def limit(asked: Any) -> Any:
        if asked.row not in (3, 4) or failed[asked.row]:
            return None
        failed[asked.row] += 1
        return server.refuse(429, "slow down", Retry_After="2") if asked.row == 3 else server.refuse(503, "busy")

    server.misbehave = limit
    done = label(wrap())
    assert done.code == 0 and "12 in = 12 good" in done.out, done.err
    first, second = (own.at for own in server.asked if own.row == 3)
    assert 2.0 <= second - first < 4
    first, second = (own.at for own in server.asked if own.row == 4)
    assert 0.3 <= second - first < 2
    usage = job(tmp_path / "labels")["usage"]
    assert (usage["requests"], usage["retries"], usage["answers"]) == (14, 2, 12)


def test_a_picture_that_the_server_fails_on_is_a_bad_row(server: Any, wrap: Any, label: Label, tmp_path: Path) -> None:
    def fail(asked: Any) -> Any:
        if asked.row == 7:
            time.sleep(1.0)
        if asked.row == 8:
            raise ConnectionResetError
        return server.refuse(500, "CUDA out of memory") if asked.row == 5 else None

    server.misbehave = fail
    done = label(wrap("--retries", 1, "--timeout", 0.6, "--concurrency", 1))
    assert done.code == 0 and "12 in = 9 good + 3 in quarantine" in done.out, done.err
    found = quarantine(tmp_path / "labels").set_index("sample_id")
    assert found["reason"].to_dict() == {"05": "server_error", "07": "server_timeout", "08": "server_error"}
    assert "CUDA out of memory" in found.loc["05", "message"] and "within 0.6 s" in found.loc["07", "message"]
    assert server.rows().count(5) == 2 and server.rows().count(7) == 2


@pytest.mark.parametrize("fault", ["fails", "limits", "hangs up"])
def test_a_server_that_goes_down_ends_the_run_and_the_same_command_goes_on(
    server: Any, wrap: Any, label: Label, tmp_path: Path, fault: str
) -> None:
    def down(asked: Any) -> Any:
        if len(server.rows()) <= 5:
            return None
        if fault == "hangs up":
            raise ConnectionResetError
        return server.refuse(500, "engine is dead") if fault == "fails" else server.refuse(429, "quota used up")

    server.misbehave = down
    model = wrap("--retries", 1, "--concurrency", 1)
    done = label(model, "--shard-rows", 2)
    told = {"fails": "engine is dead", "limits": "quota used up", "hangs up": "cannot be reached"}[fault]
    assert done.code == 1 and told in done.err and "The same command goes on" in done.err, done.err
    assert done.err.count("\n") == 1 and not (tmp_path / "labels" / "_quarantine").exists()
    assert len(list((tmp_path / "labels" / "_commits").iterdir())) == 2

    server.misbehave, before = lambda asked: None, len(server.rows())
    # The address is no part of what was asked: another checkpoint of the same question goes on.
    moved = wrap("--retries", 3, "--timeout", 5, out="moved")
    done = label(moved, "--shard-rows", 2)
    assert done.code == 0 and "12 in = 12 good" in done.out, done.err
    assert sorted(server.rows()[before:]) == list(range(4, 12))
    assert job(tmp_path / "labels")["usage"]["answers"] == 12


@pytest.mark.parametrize("status, reason", [(401, "API key"), (403, "API key"), (404, "is not there")])
def test_what_holds_for_all_rows_ends_the_run(
    server: Any, wrap: Any, label: Label, tmp_path: Path, status: int, reason: str
) -> None:
    server.misbehave = lambda asked: server.refuse(status, "go away") if len(server.rows()) > 3 else None
    done = label(wrap("--concurrency", 1), "--shard-rows", 2)
    assert done.code == 2 and reason in done.err and "go away" in done.err, done.err
    assert not (tmp_path / "labels" / "_quarantine").exists()
    assert len(server.rows()) == 4, "asked on after the refusal"
    assert len(list((tmp_path / "labels" / "_commits").iterdir())) == 1


def test_the_key_comes_from_the_environment_and_goes_into_no_file(
    server: Any, wrap: Any, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "sk-very-secret"
    done = label(wrap(out="without"))
    assert done.code == 2 and "refuses the API key" in done.err and "--api-key-env" in done.err
    model = wrap("--api-key-env", "COLOUR_KEY")
    done = label(model)
    assert done.code == 2 and "COLOUR_KEY with the API key is not set" in done.err
    monkeypatch.setenv("COLOUR_KEY", "sk-wrong")
    done = label(model)
    assert done.code == 2 and "Set COLOUR_KEY to a valid one" in done.err and "sk-wrong" not in done.err
    assert "Bearer ***" in done.err
    monkeypatch.setenv("COLOUR_KEY", "sk-very-secret")
    server.misbehave = lambda asked: server.refuse(400, "bad key sk-very-secret") if asked.row == 2 else None
    done = label(model)
    assert done.code == 0 and "1 in quarantine" in done.out, done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if b"sk-very-secret" in path.read_bytes()] == []
    assert "bad key ***" in quarantine(tmp_path / "labels")["message"].iloc[0]


@pytest.mark.slow
def test_concurrency_and_rate_are_bounds(server: Any, wrap: Any, label: Label) -> None:
    server.misbehave = lambda asked: time.sleep(0.15)
    assert label(wrap("--concurrency", 3), "--shard-rows", 12).code == 0
    assert server.open_most == 3
    server.misbehave, server.open_most = lambda asked: None, 0
    server.asked.clear()
    assert label(wrap("--requests-per-minute", 600, out="paced"), out="slow").code == 0
    times = sorted(own.at for own in server.asked)
    assert len(times) == 13 and times[-1] - times[0] >= 12 * 0.1 - 0.02


@pytest.mark.slow
def test_a_killed_job_asks_no_row_of_a_committed_shard_again(
    server: Any, wrap: Any, label: Label, samples: Path, tmp_path: Path
) -> None:
    server.misbehave = lambda asked: time.sleep(0.2)
    out, model = tmp_path / "labels", wrap("--concurrency", 1)
    script = str(Path(sys.executable).with_name("raymotion"))
    command = ["label", str(samples), "--model", str(model), "--out", str(out), "--workers", "0", "--shard-rows", "2"]
    driver = subprocess.Popen([script, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while len(list((out / "_commits").glob("*.json"))) < 2:
        assert driver.poll() is None and time.monotonic() < give_up
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(0.5)  # its last request
    committed = {int(path.stem[-5:]) for path in (out / "_commits").glob("*.json")}
    before, server.misbehave = len(server.rows()), lambda asked: None
    assert len(committed) < 6
    done = label(model, "--shard-rows", 2)
    assert done.code == 0 and "12 in = 12 good" in done.out, done.err
    assert sorted(server.rows()[before:]) == [row for row in range(12) if row // 2 not in committed]
    usage = job(out)["usage"]
    assert (usage["answers"], usage["prompt_tokens"]) == (12, 1200), "counted once for each committed row"


def test_no_more_is_paid_for_where_nothing_is_answered(server: Any, wrap: Any, label: Label) -> None:
    monkey = pytest.MonkeyPatch()
    monkey.setattr("raymotion.pipeline.ask.MOST_WITHOUT_ANSWER", 4)
    server.misbehave = lambda asked: None if asked.row is None else server.say("A nice picture.")
    done = label(wrap("--concurrency", 1), "--max-failed", 1)
    monkey.undo()
    assert done.code == 1 and "any of the first 4 pictures" in done.err and "A nice picture." in done.err, done.err
    assert len(server.rows()) <= 6


def test_a_prompt_of_ones_own(server: Any, wrap: Any, label: Label, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('Answer as {answer}, {"never": "else"}. Größe?', encoding="utf-8")
    model = wrap("--prompt", tmp_path / "p.txt", "--max-tokens", 77, "--response-format", "text")
    assert label(model).code == 0
    own = server.asked[-1].body
    assert own["messages"][0]["content"][0]["text"] == (
        'Answer as {"blue": 0.0, "red": 0.0, "green": 0.0}, {"never": "else"}. Größe?'
    )
    assert own["max_tokens"] == 77 and "response_format" not in own
    assert "Größe?" in (model / "README.md").read_text(encoding="utf-8")
    prints = [read_checkpoint_info(folder).fingerprint for folder in (model, wrap(out="other"))]
    assert prints[0] != prints[1], "another prompt is another model"


def test_it_is_not_trained(server: Any, wrap: Any, samples: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    (tmp_path / "r.yaml").write_text(f"kind: vlm\nendpoint: {server.address}\nserved_model: m\nvocabulary: valence-3\n")
    done = runner("train", tmp_path / "r.yaml", "--samples", samples, "--out", tmp_path / "run", "--workers", 0)
    assert done.code == 2 and "is not trained" in done.err and "train a student" in done.err, done.err
    done = runner("finetune", wrap(), "--samples", samples, "--out", tmp_path / "f")
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert server.asked == []


@pytest.mark.parametrize(
    "options, told",
    [
        ({"--endpoint": "gpu-node:8000/v1"}, "http://gpu-node:8000/v1"),
        ({"--endpoint": "http://user:secret@gpu-node/v1"}, "without user, password"),
        ({"--endpoint": "http://gpu-node/v1?key=1"}, "without user, password and query"),
        ({"--endpoint": "http://gpu-node/v1/chat/completions"}, "leave /chat/completions out"),
        ({"--prompt": "no-such.txt"}, "no-such.txt: no such file"),
        ({"--vocabulary": "no-such"}, "no-such"),
    ],
)
def test_mistakes_are_told_when_it_is_wrapped(
    tmp_path: Path, runner: Callable[..., Any], options: dict[str, str], told: str
) -> None:
    given = {"--endpoint": "http://gpu-node:8000/v1/", "--model": "m", "--vocabulary": "valence-3", **options}
    done = runner("wrap", "vlm", *(part for pair in given.items() for part in pair), "--out", tmp_path / "vlm")
    assert done.code == 2 and told in done.err and done.err.count("\n") == 1, done.err
    assert not (tmp_path / "vlm").exists()


def test_without_the_package_the_extra_is_named(
    server: Any, wrap: Any, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrap()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = label(model)
    assert done.code == 2 and "pip install 'raymotion[vlm]'" in done.err, done.err


def test_settings_that_were_edited_are_checked(wrap: Any, label: Label) -> None:
    model = wrap()
    path = model / "training.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({**text, "settings": {**text["settings"], "concurrency": 0}}))
    done = label(model)
    assert done.code == 2 and "training.json, settings: setting concurrency = 0" in done.err, done.err


def test_it_is_averaged_with_stored_answers_but_not_with_a_model_of_pixels(
    wrap: Any, label: Label, tmp_path: Path, runner: Callable[..., Any]
) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    model = wrap()
    lines = ["sample_id,red,green,blue", *(f"{row:02d},0.2,0.4,0.6" for row in range(12))]
    (tmp_path / "stored.csv").write_text("\n".join(lines))
    done = runner("wrap", "stored-probabilities", tmp_path / "stored.csv", "--vocabulary", tmp_path / "colours.txt",
                  "--out", tmp_path / "stored")  # fmt: skip
    assert done.code == 0, done.err
    assert label(model, out="alone").code == 0
    assert label(model, "--model", tmp_path / "stored", out="mean").code == 0
    alone, mean = (raymotion.open_labels(tmp_path / name)[["red", "green", "blue"]] for name in ("alone", "mean"))
    np.testing.assert_allclose(mean, (alone.to_numpy() + np.array([0.2, 0.4, 0.6])) / 2, atol=1e-6)

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3,
                          id2label=dict(enumerate(("blue", "red", "green"))))  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(tmp_path / "resnet")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "resnet")
    done = runner("wrap", "hf-classifier", tmp_path / "resnet", "--vocabulary", tmp_path / "colours.txt",
                  "--out", tmp_path / "pixels")  # fmt: skip
    assert done.code == 0, done.err
    done = label(model, "--model", tmp_path / "pixels", out="refused")
    assert done.code == 2 and "one of these models answers from a service" in done.err, done.err
