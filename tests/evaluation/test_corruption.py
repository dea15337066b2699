"""`raymotion evaluate --corrupt`: features of which a share is noise, beside clean ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, mean_absolute_error

from raymotion.batch.embeddings import EmbeddingSettings, embed
from raymotion.data.embeddings import Embeddings
from raymotion.data.readers.emotic import EmoticReader
from raymotion.data.samples import read_samples, vocabulary_of, write_samples
from raymotion.data.synthetic.emotic import write_emotic
from raymotion.errors import InputError
from raymotion.evaluation.corruption import conditions_of, corrupted, name_of, parse_corruption
from raymotion.models.checkpoint import load_model, save_checkpoint
from raymotion.models.inputs.streams import Stream, StreamEvidence, StreamInput
from raymotion.models.outputs.dimensions import VALUES
from raymotion.models.outputs.multilabel import HARD
from raymotion.models.outputs.paths import PathLabels, PathNumbers
from raymotion.models.registry import get_kind
from raymotion.models.two_path.config import TwoPathConfig
from raymotion.models.two_path.network import TwoPath
from raymotion.models.vision.backbones import identify

NET, SIZE = "test_resnet", 32
STREAMS = ("context", "body")
IDS = [f"s{number}" for number in range(400)]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_share_is_noise_and_the_rest_is_as_it_was(share):
    values = np.full((400, 50), 77.0, np.float16)
    mean, std = np.full(50, 3.0, np.float32), np.full(50, 2.0, np.float32)
    found = corrupted(values, IDS, share, stream="body", seed=0, mean=mean, std=std)
    changed = found != 77.0
    assert changed.mean() == pytest.approx(share, abs=0.01) and found.dtype == np.float32
    # The spread of a share over samples is that of independent numbers.
    assert changed.mean(axis=1).std() == pytest.approx((share * (1 - share) / 50) ** 0.5, abs=0.01)
    noise = found[changed]
    assert noise.mean() == pytest.approx(3.0, abs=0.1) and noise.std() == pytest.approx(2.0, abs=0.1)
    assert (values == 77.0).all()


@given(order=st.permutations(range(12)), seed=st.integers(0, 5), tokens=st.booleans())
def test_noise_is_of_the_sample_not_of_its_place(order, seed, tokens):
    shape = (12, 3, 8) if tokens else (12, 8)
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    still = {"stream": "body", "seed": seed, "mean": np.zeros(8, np.float32), "std": np.ones(8, np.float32)}
    found = corrupted(values, IDS[:12], 0.5, **still)
    again = corrupted(values[order], [IDS[own] for own in order], 0.5, **still)
    assert np.array_equal(found[order], again)
    more = corrupted(values, IDS[:12], 0.8, **still)
    changed = found != values
    assert np.array_equal(found[changed], more[changed]) and ((more != values).sum() > changed.sum())
    for other in ({"seed": seed + 1}, {"stream": "context"}):
        assert not np.array_equal(corrupted(values, IDS[:12], 0.5, **{**still, **other}), found)


def test_shares_and_conditions():
    assert parse_corruption(["0.5"], STREAMS) == {"context": 0.5, "body": 0.5}
    assert parse_corruption(["body=0.25"], STREAMS) == {"body": 0.25}
    assert parse_corruption(["0.5", "body=1"], STREAMS) == {"context": 0.5, "body": 1.0}
    assert conditions_of({"context": 0.5, "body": 1.0}) == [
        {}, {"context": 0.5}, {"body": 1.0}, {"context": 0.5, "body": 1.0},
    ]  # fmt: skip
    assert conditions_of({"body": 0.25}) == [{}, {"body": 0.25}]
    assert [name_of(own) for own in ({}, {"context": 0.5, "body": 1.0})] == ["none", "context 50 % and body 100 %"]


@pytest.mark.parametrize("value", ["0", "1.1", "-1", "nan", "half", "body=", "=", "body=x"])
def test_shares_that_are_none(value):
    with pytest.raises(InputError, match="is not a share above 0, up to 1"):
        parse_corruption([value], STREAMS)


def test_a_stream_that_the_model_does_not_read():
    with pytest.raises(InputError, match=r"the model reads no face. It reads context and body"):
        parse_corruption(["face=0.5"], STREAMS)


@dataclass(frozen=True)
class World:
    samples: str
    embeddings: str
    model: str

    def evaluate(self, runner: Any, out: Path, *more: object) -> Any:
        return runner(
            "evaluate", self.model, self.samples, "--features", self.embeddings, "--split", "all", "--workers", 0,
            "--bootstrap", 60, "--progress", "none", "--out", out, *more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("corruption")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        write_emotic(folder / "emotic", 90, 1, kind="mat")
        table, _ = EmoticReader(root=str(folder / "emotic")).read()
        write_samples(folder / "e.parquet", table)
        embed(
            EmbeddingSettings(
                samples=str(folder / "e.parquet"), out=str(folder / "embeddings"), context=(NET,), body=(NET,),
                backbone_weights=("random:0",), size=(str(SIZE),), workers=0, damaged="keep",
            ),
            progress="none",
        )  # fmt: skip
        identity = identify(NET, "random:0", size=SIZE)
        torch.manual_seed(0)
        outputs = [PathLabels(vocabulary_of(table)), PathNumbers(scale=(1.0, 10.0))]
        config = TwoPathConfig(dims=dict.fromkeys(STREAMS, identity.dim), hidden=8)
        network = TwoPath(config, outputs)
        for name in STREAMS:
            torch.nn.init.normal_(network.heads["emotions"][name].weight, std=1.0)
            with torch.no_grad():
                network.heads["vad"][name].bias.fill_(0.5)
        inputs = [StreamInput([Stream(name, NET, identity) for name in STREAMS])]
        save_checkpoint(str(folder / "model"), get_kind("two-path"), network, inputs, outputs, training={"outputs": {}})
        yield World(str(folder / "e.parquet"), str(folder / "embeddings"), str(folder / "model"))


@pytest.mark.parametrize("space", ["standardised", pytest.param("raw", marks=pytest.mark.slow)])
def test_figures_are_those_of_the_corrupted_features(world, runner, tmp_path, space):
    """Against a computation by hand, with scikit-learn."""
    done = world.evaluate(runner, tmp_path / "out", "--corrupt", 0.5, "--corrupt-space", space, "--seed", 3)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "out/evaluation.json").read_text())
    found = record["corruption"]
    assert (found["space"], found["seed"]) == (space, 3)
    names = ["none", "context 50 %", "body 50 %", "context 50 % and body 50 %"]
    assert [own["name"] for own in found["conditions"]] == names

    table, model = read_samples(world.samples), load_model(world.model)
    embeddings = Embeddings(world.embeddings)
    ids = table["sample_id"].to_pylist()
    rows = embeddings.rows(ids)
    values, there = {}, {}
    for stream in STREAMS:
        block = embeddings.block(stream, NET)
        own = block.row_of[rows]
        there[stream] = own >= 0
        values[stream] = np.where(there[stream][:, None], block.array[np.maximum(own, 0), 0], 0).astype(np.float32)
    hard = model.outputs[0].read(table, where="e").arrays[HARD]
    vad = model.outputs[1].read(table, where="e").arrays[VALUES]
    labels = hard.sum(axis=0) > 0
    clean = None
    for condition in found["conditions"]:
        given = dict(values)
        for stream, share in condition["shares"].items():
            own = values[stream][there[stream]].astype(np.float64)
            mean, std = (own.mean(axis=0), own.std(axis=0)) if space == "standardised" else (0 * own[0], 0 * own[0] + 1)
            given[stream] = corrupted(
                values[stream], ids, share, stream=stream, seed=3, mean=mean.astype(np.float32),
                std=std.astype(np.float32),
            )  # fmt: skip
        said = model.predict({"streams": StreamEvidence("features", STREAMS, given, there, len(ids))})
        wanted = {
            "emotions": average_precision_score(hard[:, labels], said["emotions"][:, labels], average="macro"),
            "vad": mean_absolute_error(vad, said["vad"]),
        }
        clean = clean or wanted
        for figure in condition["figures"]:
            own = wanted[figure["output"]]
            assert figure["value"] == pytest.approx(own, abs=1e-4)
            assert figure["low"] <= figure["value"] <= figure["high"]
            if condition["name"] == "none":
                assert figure["change"] is None
            else:
                assert figure["change"] == pytest.approx(own - clean[figure["output"]], abs=2e-4)
                assert figure["change_low"] <= figure["change_high"]
    # Clean figures are those of the evaluation itself, and the constant is chance.
    first = {own["output"]: own for own in found["conditions"][0]["figures"]}
    assert first["emotions"]["value"] == pytest.approx(record["results"]["metrics"]["macro_ap"]["value"], abs=1e-4)
    assert first["emotions"]["constant"] == pytest.approx(hard[:, labels].mean(), abs=1e-4)
    assert first["vad"]["value"] == pytest.approx(record["numbers"]["vad"]["metrics"]["mae"]["value"], abs=1e-4)


@pytest.mark.slow
def test_the_table_stands_in_the_terminal_and_on_the_page(world, runner, tmp_path):
    done = world.evaluate(runner, tmp_path / "out", "--corrupt", "body=0.5")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if re.match(r"(none|body 50 %)\s", line)]
    assert len(lines) == 4
    page = (tmp_path / "out/evaluation.html").read_text()
    assert "With corrupted features" in page and "body 50 %" in page and "mean and the spread" in page
    first = (tmp_path / "out/evaluation.json").read_bytes()
    assert world.evaluate(runner, tmp_path / "out", "--corrupt", "body=0.5").code == 0
    assert (tmp_path / "out/evaluation.json").read_bytes() == first
    plain = world.evaluate(runner, tmp_path / "out")
    assert plain.code == 0 and "features replaced" not in plain.out
    assert "With corrupted features" not in (tmp_path / "out/evaluation.html").read_text()


def test_an_ablated_stream_is_not_corrupted(world, runner, tmp_path):
    more = ("--ablation", "body", "--corrupt")
    done = world.evaluate(runner, tmp_path / "out", *more, 0.5)
    assert done.code == 0, done.err
    conditions = json.loads((tmp_path / "out/evaluation.json").read_text())["corruption"]["conditions"]
    assert [own["name"] for own in conditions] == ["none", "body 50 %"]
    wrong = world.evaluate(runner, tmp_path / "other", *more, "context=0.5")
    assert wrong.code == 2 and "the model reads no context" in wrong.err and not (tmp_path / "other").exists()


def test_it_needs_cached_features(world, runner, tmp_path):
    wrong = runner("evaluate", world.model, world.samples, "--corrupt", 0.5, "--out", tmp_path / "out", "--workers", 0)
    assert wrong.code == 2 and "--corrupt replaces cached features" in wrong.err and not (tmp_path / "out").exists()
