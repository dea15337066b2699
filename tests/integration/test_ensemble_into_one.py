"""Several seeds of one recipe become one model, by the commands that docs/teacher.md gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymotion.batch.label_dataset import matrix_of, read_parts
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.models.checkpoint import load_model, read_checkpoint_info
from raymotion.models.inputs.captions import Captions
from raymotion.vocabulary import VALENCE_3

WORDS = ("gloomy", "plain", "sunny")


def write_captions(path: Path, n: int, seed: int, *, labelled: bool = True) -> str:
    """Captions whose word tells the label three times in four; without labels, they are all one split."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        label = int(rng.integers(3))
        word = WORDS[label if rng.random() < 0.6 else int(rng.integers(3))]
        text = f"a {word} day, {i % 7}"
        rows.append({
            "sample_id": f"{seed}-{i}", "group_id": f"{seed}-{i}", "source": "t", "captions": [text],
            "labels": [VALENCE_3.labels[label]] if labelled else None,
            "split": ("train", "train", "val", "test")[i % 4],
        })  # fmt: skip
    write_samples(path, table_from_rows(rows, VALENCE_3))
    return str(path)


def said(folder: Path, captions: list[list[str]]) -> np.ndarray:
    model = load_model(folder)
    reads = model.info.input("captions")
    assert isinstance(reads, Captions)
    return model.predict({"captions": reads.tokens(captions)})["emotions"]


@pytest.mark.slow
def test_an_ensemble_of_seeds_becomes_one_model(tmp_path: Path, runner: Callable[..., Any]) -> None:
    (tmp_path / "r.yaml").write_text(
        "kind: teacher-visualbert\nmodel: {size: tiny, pooling: mean}\ntokenizer: {size: 200}\nuse_gpu: false\n"
        "workers: 0\noptimiser: {epochs: 5, batch_size: 16, lr: 5.0e-3, backbone_lr: 5.0e-3}\n"
    )
    samples = write_captions(tmp_path / "s.parquet", 120, 0)
    others = write_captions(tmp_path / "o.parquet", 240, 1, labelled=False)
    for seed in (0, 1):
        done = runner(
            "train", tmp_path / "r.yaml", "--samples", samples, "--seed", seed, "--out", tmp_path / f"seed{seed}"
        )
        assert done.code == 0, done.err
    done = runner(
        "label", others, "--model", tmp_path / "seed0", "--model", tmp_path / "seed1", "--count", 1,
        "--workers", 0, "--out", tmp_path / "labels",
    )  # fmt: skip
    assert done.code == 0, done.err
    done = runner(
        "train", tmp_path / "r.yaml", "--labels", tmp_path / "labels", "--set", "data.soft_targets=true",
        "--set", "optimiser.epochs=20", "--out", tmp_path / "one",
    )  # fmt: skip
    assert done.code == 0, done.err
    # What is learned is the mean of both.
    captions = [row["captions"] for row in read_samples(others).to_pylist()]
    seeds = [said(tmp_path / f"seed{seed}", captions) for seed in (0, 1)]
    mean = np.mean(seeds, axis=0)
    learned: dict[str, np.ndarray] = {}
    for _, part in read_parts(tmp_path / "labels", ["sample_id", "probabilities"]):
        learned |= dict(zip(part.column("sample_id").to_pylist(), matrix_of(part), strict=True))
    np.testing.assert_allclose([learned[f"1-{i}"] for i in range(240)], mean, atol=1e-5)
    # On captions that none of them has seen, one model says what both say together.
    fresh = [row["captions"] for row in read_samples(write_captions(tmp_path / "f.parquet", 100, 2)).to_pylist()]
    together = np.mean([said(tmp_path / f"seed{seed}", fresh) for seed in (0, 1)], axis=0)
    gap = np.abs(said(tmp_path / "one", fresh) - together).mean()
    assert gap < 0.05 < np.abs(together - together.mean(axis=0)).mean()
    training = read_checkpoint_info(tmp_path / "one").training
    assert training["targets"]["kind"] == "pseudo-labels" and sum(training["data"]["splits"].values()) == 240
