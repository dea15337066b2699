"""Outputs of which exactly one label applies: a label of the table, and a band of a number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, log_loss

from raymotion.data.samples import table_from_rows
from raymotion.errors import InputError, VocabularyMismatch
from raymotion.models.outputs.bands import Bands
from raymotion.models.outputs.base import DataFacts
from raymotion.models.outputs.single_label import HARD, SOFT, WEIGHT, SingleLabel
from raymotion.models.outputs.table import read_outputs
from raymotion.models.recipe import LossSettings
from raymotion.vocabulary import Vocabulary

THREE = Vocabulary("three", ("calm", "happy", "sad"))
SPLITS = {"train": np.array([0, 1, 2]), "val": np.array([3, 4])}


def table(rows: list[dict[str, Any]], vocabulary: Vocabulary | None = THREE, **more: Any) -> pa.Table:
    named = [{"sample_id": f"s{i}", "group_id": f"g{i}", "source": "x", **row} for i, row in enumerate(rows)]
    return table_from_rows(named, vocabulary, **more)


def ratings(*values: float | None, scale: tuple[float, float] = (1.0, 7.0)) -> pa.Table:
    return table([{"valence": value} for value in values], None, scale=scale)


class TestSingleLabel:
    def test_targets_are_the_label_its_votes_and_what_others_may_have_said(self) -> None:
        rows = [{"labels": ["sad"], "label_weights": [0.6]}, {"labels": None}, {"labels": []}, {"labels": ["calm"]},
                {"labels": ["calm", "happy"], "label_weights": [0.3, 0.7]}]  # fmt: skip
        found = SingleLabel(THREE).read(table(rows), where="x")
        assert found.known.tolist() == [True, False, False, True, True]
        assert found.arrays[HARD][[0, 3, 4]].tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
        assert found.arrays[WEIGHT] == pytest.approx([0.6, 1, 1, 1, 0.7])
        expected = np.array([[0.2, 0.2, 0.6], [1, 0, 0], [0.3, 0.7, 0]])
        assert found.arrays[SOFT][[0, 3, 4]] == pytest.approx(expected)

    def test_two_labels_that_weigh_the_same_are_refused_by_row(self) -> None:
        with pytest.raises(InputError, match=r"row 1.*calm, sad"):
            SingleLabel(THREE).read(table([{"labels": ["sad"]}, {"labels": ["calm", "sad"]}]), where="x")
        other = Vocabulary("other", ("calm", "happy", "bored"))
        with pytest.raises(VocabularyMismatch):
            SingleLabel(THREE).read(table([{"labels": ["bored"]}], other), where="x")

    def test_votes_weigh_samples_if_asked(self) -> None:
        found = SingleLabel(THREE).read(
            table([{"labels": ["sad"], "label_weights": [0.6]}, {"labels": None}, {"labels": ["calm"]}]), where="x"
        )
        rows = np.arange(3)
        plain, weighed = (SingleLabel(THREE, weighted=own).batch(found, rows, "cpu") for own in (False, True))
        assert plain[WEIGHT].tolist() == [1, 0, 1] and weighed[WEIGHT].tolist() == pytest.approx([0.6, 0, 1])
        raw = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
        loss = SingleLabel(THREE, weighted=True).criterion(found, rows)(raw, weighed, epoch=0, weights=None)
        logs = raw.log_softmax(dim=1)
        assert loss.item() == pytest.approx(float(-(0.6 * logs[0, 2] + logs[2, 0]) / 1.6))

    def test_a_new_network_predicts_the_prior_and_its_figures_are_scikit_learns(self) -> None:
        labels = ["sad", "sad", "calm", "sad", "happy"]
        output = SingleLabel(THREE)
        found, rows = output.read(table([{"labels": [own]} for own in labels]), where="x"), np.arange(5)
        prior = output.decode(output.first_numbers(found, rows)[None])[0].numpy()
        assert prior == pytest.approx([0.2, 0.2, 0.6], rel=1e-5)
        assert output.baseline(found, rows) == pytest.approx([0.2, 0.2, 0.6], rel=1e-5)
        p = np.random.default_rng(0).dirichlet(np.ones(3), 5).astype(np.float32)
        truth = [THREE.index(own) for own in labels]
        figures = output.metrics(found, rows, p)
        assert figures["log_loss"] == pytest.approx(log_loss(truth, p.astype(float), labels=range(3)), rel=1e-5)
        assert figures["accuracy"] == pytest.approx(accuracy_score(truth, p.argmax(axis=1)))

    def test_the_fast_bootstrap_is_the_slow_one(self) -> None:
        rng = np.random.default_rng(0)
        rows = [{"labels": None if i % 7 == 0 else [THREE.labels[rng.integers(3)]]} for i in range(60)]
        output = SingleLabel(THREE)
        found, own = output.read(table(rows), where="x"), np.arange(60)
        p, units = rng.dirichlet(np.ones(3), 60), np.arange(60) // 2
        counts = rng.integers(0, 3, (10, 30)).astype(float)
        for metric in output.metric_names:
            fast = output.weighed(metric, found, own, p, units)(counts)
            slow = super(SingleLabel, output).weighed(metric, found, own, p, units)(counts)
            assert fast == pytest.approx(slow)

    def test_rows_without_a_target_do_not_count(self) -> None:
        output = SingleLabel(THREE)
        rows = [{"labels": ["sad"]}, {"labels": None}, {"labels": ["calm"]}, {"labels": ["sad"]}]
        found, p = output.read(table(rows), where="x"), np.full((4, 3), 1 / 3)
        known = output.evaluate(found, np.array([0, 2, 3]), p[1:], training=np.arange(4), seed=0)
        everything = output.evaluate(found, np.arange(4), p, training=np.arange(4), seed=0, groups=["a", "b", "c", "d"])
        assert known["samples"] == everything["samples"] == 3
        assert known["metrics"]["accuracy"]["value"] == everything["metrics"]["accuracy"]["value"]

    def test_its_description_comes_back_and_faults_of_facts_are_named(self) -> None:
        output = SingleLabel(THREE, loss=LossSettings(name="focal", options={"gamma": 1.0}))
        (back,) = read_outputs([output.to_dict()], where="config.json")
        assert back.to_dict() == output.to_dict() and back.gives == "one_label"
        output.check_facts({"prior": [0.2, 0.3, 0.5]}, where="t")
        for wrong in ([0.2, 0.8], [0.2, 0.3, "x"], [1.2, 0, 0], "x"):
            with pytest.raises(InputError, match="prior"):
                output.check_facts({"prior": wrong}, where="t")


class TestBands:
    def test_a_value_on_an_edge_is_of_the_upper_band(self) -> None:
        output = Bands("valence", (3.5, 4.5), scale=(1, 7))
        found = output.read(ratings(1.0, 3.4999, 3.5, 4.4999, 4.5, 7.0, None), where="x")
        assert found.arrays[HARD].argmax(axis=1)[:6].tolist() == [0, 0, 1, 1, 2, 2]
        assert found.known.tolist() == [True] * 6 + [False] and found.arrays[HARD][6].sum() == 0
        assert output.intervals == ["negative [1, 3.5)", "neutral [3.5, 4.5)", "positive [4.5, 7]"]

    @given(st.lists(st.integers(11, 69), min_size=1, max_size=6, unique=True).map(sorted), st.integers(10, 70))
    def test_each_value_has_the_band_whose_interval_holds_it(self, tenths: list[int], value: int) -> None:
        """In tenths, of which float32 holds few: 4.1 of a table is on the edge 4.1."""
        labels = [f"b{i}" for i in range(len(tenths) + 1)]
        output = Bands("valence", [own / 10 for own in tenths], labels, scale=(1, 7))
        (band,) = output.band_of(np.array([value / 10], np.float32)).tolist()
        assert band == sum(value >= own for own in tenths)

    def test_another_scale_is_converted_and_that_is_said(self) -> None:
        output = Bands("valence", (40, 60), scale=(0, 100))
        own = ratings(1.0, 3.4, 4.6, 7.0)  # 0, 40, 60, 100
        assert output.read(own, where="x").arrays[HARD].argmax(axis=1).tolist() == [0, 1, 2, 2]
        assert "scale of 1 to 7" in str(output.conversion(own))
        unknown = table([{"valence": 3.0}], None)
        with pytest.raises(InputError, match="does not state the scale of valence"):
            output.read(unknown, where="x")

    @pytest.mark.parametrize("edges", [(50.0, 50.0), (60, 40), (0, 50), (50, 100), (-5, 50), (float("nan"), 50)])
    def test_a_band_without_room_is_refused(self, edges: tuple[float, float]) -> None:
        """GAPED: neutral was a valence of exactly 50, and never applied (systems.md 4.5)."""
        with pytest.raises(InputError, match="never applies: give each an interval"):
            Bands("valence", edges, scale=(0, 100))

    def test_bands_and_edges_have_to_fit(self) -> None:
        for edges, labels in (((), ("one",)), ((50,), ("a", "b", "c")), ((20, 50), ("a", "b"))):
            with pytest.raises(InputError, match=r"need \d edges?"):
                Bands("valence", edges, labels, scale=(0, 100))
        with pytest.raises(InputError, match="more than once"):
            Bands("valence", (20, 50), ("a", "b", "a"), scale=(0, 100))
        with pytest.raises(InputError, match="not a dimension"):
            Bands("joy", (50,), ("a", "b"), scale=(0, 100))

    def test_a_band_that_training_lacks_is_refused(self) -> None:
        output = Bands("valence", (3.5, 4.5), scale=(1, 7))
        with pytest.raises(InputError, match=r"no training sample has valence of the band neutral \[3.5, 4.5\)"):
            output.require(output.read(ratings(1, 2, 6, 4, 4), where="x"), SPLITS, where="x")
        output.require(output.read(ratings(1, 4, 6, 4, 4), where="x"), SPLITS, where="x")
        with pytest.raises(InputError, match="split val has valence"):
            output.require(output.read(ratings(1, 4, 6, None, None), where="x"), SPLITS, where="x")

    def test_the_tables_labels_are_not_looked_at(self) -> None:
        own = table([{"labels": ["happy"], "valence": 1.5}, {"labels": ["sad"], "valence": None}], scale=(1.0, 7.0))
        output = Bands("valence", (3.5, 4.5), scale=(1, 7))
        assert output.read(own, where="x").arrays[HARD][0].argmax() == 0
        named = output.labelled(own, where="x")
        assert named.column("labels").to_pylist() == [["negative"], None]
        assert Vocabulary.from_metadata(named.schema.metadata) == output.vocabulary
        assert SingleLabel(output.vocabulary).read(named, where="x").arrays[HARD][0].tolist() == [1, 0, 0]

    def test_facts_and_descriptions(self) -> None:
        facts = DataFacts(scale=(1.0, 7.0), where="t.parquet")
        output = Bands.of_facts(facts, "valence", (3.5, 4.5), loss=LossSettings(name="focal"))
        (back,) = read_outputs([output.to_dict()], where="config.json")
        assert back.to_dict() == output.to_dict() and not back.reads_labels
        with pytest.raises(InputError, match=r"t\.parquet.*scale"):
            Bands.of_facts(DataFacts(where="t.parquet"), "valence", (3.5, 4.5))
        with pytest.raises(InputError, match=r"t\.parquet.*interval"):
            Bands.of_facts(facts, "valence", (0.5, 4.5))
        for name, wrong in (("edges", [3.5]), ("edges", "x"), ("edges", [True, 4]), ("scale", [1]), ("scale", None)):
            with pytest.raises(InputError):
                read_outputs([{**output.to_dict(), name: wrong}], where="config.json")
        other = Bands("valence", (3, 4.5), scale=(1, 7))
        own = ratings(1, 3.2, 4, 6)
        assert other.contents(other.read(own, where="x")) != output.contents(output.read(own, where="x"))
