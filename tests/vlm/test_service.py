"""A kind around a service of one's own: it names the service, and needs no network."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.inputs.answers import AnswersInput, Unanswered
from raymotion.models.kind import Kind
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.recipe import TrainRecipe
from raymotion.models.registry import register


class Brightness:
    """A service in this process: valence is how bright a picture is, and a blue one has none."""

    def __init__(self, factor: float) -> None:
        self.factor, self.concurrency, self.tally = factor, 1, Counter()

    def open(self) -> None:
        self.opened = True

    def ask(self, picture: bytes) -> np.ndarray:
        assert self.opened
        self.tally["requests"] += 1
        red, _, blue = np.asarray(Image.open(io.BytesIO(picture)), dtype=float).mean(axis=(0, 1))
        if blue > 200:
            raise Unanswered("too_blue", f"blue is {blue:.0f}")
        return np.array([self.factor * red], np.float32)

    def describe(self) -> dict[str, Any]:
        return {"factor": self.factor}


class BrightnessKind(Kind):
    """Valence from brightness."""

    name, recipe, whole_shard = "brightness", TrainRecipe, True

    def inputs(self, recipe: Any) -> Any:
        return [AnswersInput(64)]

    def outputs(self, recipe: Any, facts: Any) -> Any:
        raise NotImplementedError

    build = outputs

    def shape(self, network: Any) -> dict[str, Any]:
        return {"factor": 2.0}

    def restore(self, model: Any, inputs: Any, outputs: Any) -> Any:
        return nn.Module()

    def service(self, model: Any, training: Any, outputs: Any) -> Brightness:
        return Brightness(model["factor"])

    def predict(self, network: Any, evidence: Any, outputs: Any, **options: Any) -> dict[str, np.ndarray]:
        return {outputs[0].name: evidence["answers"].values["answer"]}


def test_it_labels(samples: Path, tmp_path: Path, runner: Callable[..., Any]) -> None:
    kind = register(BrightnessKind)()
    output = Dimensions(["valence"], scale=(0.0, 1000.0))
    save_checkpoint(tmp_path / "m", kind, nn.Module(), kind.inputs(None), [output], training={"wrapped": True})
    done = runner(
        "label", samples, "--model", tmp_path / "m", "--out", tmp_path / "l", "--workers", 0, "--max-failed", 1
    )
    assert done.code == 0, done.err
    found = pd.read_parquet(tmp_path / "l").set_index("sample_id")["valence"]
    blue = [row for row in range(12) if (70 * row) % 256 > 200]
    assert found.index.tolist() == [f"{row:02d}" for row in range(12) if row not in blue]
    for name, value in found.items():
        assert value == pytest.approx(2 * 20 * int(name), abs=5)
    record = json.loads((tmp_path / "l" / "_job.json").read_text())
    assert record["counts"]["by_reason"] == {"too_blue": len(blue)} and record["model"]["service"] == {"factor": 2.0}
    assert record["usage"]["requests"] == 12 and "cost" not in record["usage"] and len(blue) > 1
    assert "12 requests" in (tmp_path / "l" / "_README.md").read_text()
