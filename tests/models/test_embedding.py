"""The output of unit vectors: decoding, columns, metrics of both directions."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raymotion.errors import InputError
from raymotion.models.outputs.base import Targets
from raymotion.models.outputs.embedding import GROUP, METADATA, Embedding
from raymotion.models.outputs.table import read_outputs
from raymotion.models.recipe import LossSettings


def values_of(n: int, dim: int = 3, *, seed: int = 0) -> np.ndarray:
    raw = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 2 * dim + 2)).astype(np.float32))
    return Embedding(dim).decode(raw).numpy()


@given(st.integers(0, 6), st.data())
def test_columns_come_back_and_what_is_absent_is_null(n: int, data: st.DataObject) -> None:
    own, values = Embedding(3), values_of(n)
    absent = [[data.draw(st.booleans()) for _ in range(n)] for _ in range(2)]
    for side in range(2):
        values[np.array(absent[side], dtype=bool), 3 * side : 3 * side + 3] = 0
    table = pa.table(own.columns(values))
    assert table.column_names == ["image_embedding", "text_embedding"]
    assert [table.column(side).null_count for side in range(2)] == [sum(side) for side in absent]
    assert np.array_equal(own.values(table), values)
    assert np.array_equal(own.values(table.slice(n // 2)), values[n // 2 :])


def test_vectors_have_length_one_and_zeros_stay() -> None:
    own, raw = Embedding(2), torch.tensor([[3.0, 4, 0, 0, 1, 1]])
    assert own.decode(raw).tolist() == [[pytest.approx(0.6), pytest.approx(0.8), 0, 0]]


def test_the_loss_reads_scale_and_bias_from_the_network() -> None:
    own = Embedding(4, loss=LossSettings(name="siglip"))
    rng = np.random.default_rng(0)
    first, second = (torch.from_numpy(rng.normal(size=(5, 4)).astype(np.float32)) for _ in range(2))
    log_scale = torch.tensor(1.5, requires_grad=True)
    bias = torch.tensor(-1.0, requires_grad=True)
    targets = Targets({GROUP: np.arange(5)}, np.ones(5, dtype=bool))
    loss = own.criterion(targets, np.arange(5))(
        own.raw_of(first, second, log_scale, bias), own.batch(targets, np.arange(5), "cpu"), epoch=0, weights=None
    )
    loss.backward()
    assert log_scale.grad is not None and float(log_scale.grad) != 0
    assert bias.grad is not None and float(bias.grad) != 0


def test_both_ways_leave_out_what_is_absent() -> None:
    own, values = Embedding(3), values_of(6)
    values[0, :3], values[1, 3:] = 0, 0
    found = own.both_ways(values, np.array([0, 1, 2, 3, 4, 4]))
    assert {name: (ranks.pool, rows.tolist()) for name, (ranks, rows) in found.items()} == {
        "text_to_image": (5, [2, 3, 4, 5]),  # the caption of row 0 has no picture, and row 1 has no caption
        "image_to_text": (5, [2, 3, 4, 5]),
    }


def test_metrics_and_weighed_metrics_agree_and_a_constant_is_last() -> None:
    own, values, rows = Embedding(3), values_of(8), np.arange(8)
    targets = Targets({GROUP: np.arange(8)}, np.ones(8, dtype=bool))
    figures = own.metrics(targets, rows, values)
    measure = own.weighed("mrr", targets, rows, values, np.arange(8))
    assert measure(np.ones((1, 8)))[0] == pytest.approx(figures["mrr"])
    constant = np.broadcast_to(own.baseline(targets, rows), (8, 6))
    assert own.metrics(targets, rows, constant)["median_rank"] == 8


def test_the_description_comes_back_and_damage_is_named() -> None:
    own = Embedding(7, sides=("context", "body"), name="alignment", loss=LossSettings(name="vse++"))
    (read,) = read_outputs(json.loads(json.dumps([own.to_dict()])), where="config.json")
    assert isinstance(read, Embedding) and (read.dim, read.sides, read.loss.name) == (7, ("context", "body"), "vse++")
    assert json.loads(own.metadata()[METADATA]) == {"sides": ["context", "body"], "dim": 7}
    with pytest.raises(InputError, match="vectors of True numbers"):
        read_outputs([{**own.to_dict(), "dim": True}], where="config.json")


def test_parts_of_a_large_split_have_equal_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tail of a few rows would be nearly perfect, and lift the mean."""
    monkeypatch.setattr("raymotion.models.outputs.embedding.POOL", 10)
    own, values, rows = Embedding(3), values_of(11), np.arange(11)
    targets = Targets({GROUP: np.arange(11)}, np.ones(11, dtype=bool))
    parts = [own.both_ways(values[some], some) for some in (rows[:6], rows[6:])]
    ranks = np.concatenate([ranks.ranks for part in parts for ranks, _ in part.values()])
    assert own.metrics(targets, rows, values)["mean_rank"] == pytest.approx(ranks.mean())


def test_the_cosine_is_what_a_person_reads() -> None:
    own = Embedding(2)
    assert own.named(np.array([0.6, 0.8, 1.0, 0.0], np.float32)) == {"similarity": pytest.approx(0.6)}
    assert own.named(np.array([0.6, 0.8, 0.0, 0.0], np.float32)) == {}
