"""The card of a model of vectors, and the table that `train` prints: chance and pool stand beside each figure."""

from __future__ import annotations

from pathlib import Path

from raymotion.learning.metrics.multilabel import metric_title, short_title
from raymotion.models.card import HEADER, metric_table
from raymotion.models.checkpoint import read_checkpoint_info


def test_each_figure_has_its_chance_and_its_pool(pair_model: str) -> None:
    """Bug 6: figures of pools of different sizes were compared."""
    info = read_checkpoint_info(pair_model)
    head, rows = metric_table(info.facts("embedding")["test"])
    assert head[3:6] == ("chance", "queries", "pool")
    first = dict(zip(head, rows[0], strict=True))
    assert first["metric"] == "text to image R@1" and (first["queries"], first["pool"]) == ("20", "20")
    assert first["chance"] == "0.0500" and len(rows) == 12
    card = Path(pair_model, "README.md").read_text()
    assert "| metric | model | 95 % interval | chance | queries | pool | against chance |" in card
    assert "easier than each caption for" in card and "annotators reported" not in card
    assert "pipeline_tag: feature-extraction" in card and "training split's mean" not in card


def test_other_figures_have_the_table_they_had(pair_model: str) -> None:
    own = read_checkpoint_info(pair_model).facts("embedding")["test"]
    assert metric_table({name: value for name, value in own.items() if name != "pools"})[0] == HEADER


def test_titles_of_retrieval() -> None:
    assert metric_title("image_to_text_recall_at_10") == "image to text R@10"
    assert metric_title("recall_at_3") == "Recall@3" and metric_title("valence_ccc") == "valence: CCC"
    assert short_title("mrr") == "MRR" and short_title("body_to_context_median_rank") == "body to context Median rank"
