"""Models of one label a sample in every room: training, evaluation, labelling, selection, report, audit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from cleanlab.filter import find_label_issues
from scipy.stats import entropy
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
)
from torch import Tensor, nn

import raymotion
from raymotion.config import load_settings
from raymotion.data.samples import read_samples, table_from_rows, write_samples
from raymotion.errors import InputError
from raymotion.evaluation.classes import measure_classes
from raymotion.evaluation.evaluate import EvaluateSettings, EvaluationSummary, evaluate_checkpoint
from raymotion.learning.collapse import check_one_label
from raymotion.learning.metrics.calibration import expected_calibration_error
from raymotion.models.checkpoint import load_model, read_checkpoint_info, save_checkpoint
from raymotion.models.inputs.values import ValuesInput
from raymotion.models.kind import Kind
from raymotion.models.outputs.bands import Bands
from raymotion.models.outputs.dimensions import Dimensions
from raymotion.models.outputs.single_label import SingleLabel
from raymotion.models.recipe import SingleLabelRecipe
from raymotion.models.registry import register
from raymotion.report.evaluation_page import summary_lines, verdict_of, write
from raymotion.train.fit import fit
from raymotion.vocabulary import Vocabulary

FOUR = Vocabulary("four", ("amusement", "anger", "awe", "fear"))


class OneRecipe(SingleLabelRecipe):
    """A label, or a band of valence, and perhaps valence, or two numbers alone, from arousal and dominance."""

    kind: Literal["one-label-toy"] = "one-label-toy"
    bands: bool = False
    valence: bool = False
    numbers: bool = False


class OneNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, width))

    def forward(self, values: Tensor, value_mask: Tensor) -> Tensor:
        return self.layers(torch.cat([values, value_mask.float()], dim=1))


@register
class OneKind(Kind):
    """One label from two numbers."""

    name = "one-label-toy"
    recipe = OneRecipe

    def inputs(self, recipe):
        return [ValuesInput(["arousal", "dominance"])]

    def outputs(self, recipe, facts):
        if recipe.numbers:
            return [Dimensions.of_facts(facts, ["valence", "arousal"])]
        if recipe.bands:
            return [Bands.of_facts(facts, "valence", (3.5, 4.5), loss=recipe.loss)]
        return [
            SingleLabel.of_recipe(recipe, facts),
            *([Dimensions.of_facts(facts, ["valence"], name="valence")] if recipe.valence else []),
        ]

    def build(self, recipe, training):
        return OneNetwork(sum(own.width for own in training.outputs))

    def shape(self, network):
        return {"width": network.width}

    def restore(self, model, inputs, outputs):
        return OneNetwork(model["width"])


def rows_of(n: int = 240) -> list[dict[str, Any]]:
    """Rows whose valence follows from arousal and dominance on a scale of 1 to 7, and whose label from valence."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        arousal, dominance = rng.uniform(1, 7, 2)
        valence = float(np.clip(0.8 * arousal - 0.5 * dominance + 3 + rng.normal(0, 0.2), 1, 7))
        rows.append(
            {
                "sample_id": f"s{i}", "group_id": f"g{i}", "source": ("north", "south")[i % 3 == 0],
                "split": ("train", "train", "val", "test")[i % 4], "arousal": arousal, "dominance": dominance,
                "valence": None if i % 40 == 3 else valence, "labels": [FOUR.labels[min(3, int((valence - 1) / 1.5))]],
                "label_weights": [0.6 if i % 2 else 1.0],
            }
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("one") / "samples.parquet")
    write_samples(path, table_from_rows(rows_of(), FOUR, scale=(1.0, 7.0)))
    return path


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same rows without labels and without a vocabulary, as a table of ratings is."""
    path = str(tmp_path_factory.mktemp("ratings") / "ratings.parquet")
    bare = [{name: own for name, own in row.items() if not name.startswith("label")} for row in rows_of()]
    write_samples(path, table_from_rows(bare, None, scale=(1.0, 7.0)))
    return path


def train(samples: str, folder: Path, **more: Any) -> str:
    optimiser = {"epochs": 15, "patience": 15, "batch_size": 16, "lr": 0.03}
    options = {"kind": "one-label-toy", "data": {"samples": samples}, "optimiser": optimiser, "workers": 0}
    recipe = load_settings(OneRecipe, options={**options, "use_gpu": False, **more})
    return fit(recipe, folder).info.folder


@pytest.fixture(scope="module")
def one(samples: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(samples, tmp_path_factory.mktemp("one") / "model", valence=True)


@pytest.fixture(scope="module")
def bands(ratings: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(ratings, tmp_path_factory.mktemp("bands") / "model", bands=True)


@pytest.fixture(scope="module")
def numbers(ratings: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return train(ratings, tmp_path_factory.mktemp("numbers") / "model", numbers=True)


def write_ratings(path: Path, *without: str, groups: int | None = None) -> str:
    """Writes the ratings without some columns, and perhaps several to a group."""
    rows = [
        {
            **{name: own for name, own in row.items() if not name.startswith("label") and name not in without},
            **({} if groups is None else {"group_id": f"g{i % groups}", "split": None}),
        }
        for i, row in enumerate(rows_of())
    ]
    write_samples(path, table_from_rows(rows, None, scale=(1.0, 7.0)))
    return str(path)


@pytest.fixture(scope="module")
def flat(one: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first model, but it says fear, and a valence of about 2.7, whatever the sample."""
    model, folder = load_model(one), tmp_path_factory.mktemp("flat") / "model"
    last = model.network.layers[2]
    with torch.no_grad():
        last.weight.mul_(0.02)
        last.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 2.0, 2.7 / 7]))
    save_checkpoint(
        folder, model.info.kind, model.network, model.inputs, model.outputs, training=model.info.training
    )  # fmt: skip
    return str(folder)


def evaluated(model: str, samples: str, out: Path, **more: Any) -> EvaluationSummary:
    settings = EvaluateSettings(model=model, samples=samples, out=str(out), workers=0, **{"bootstrap": 100, **more})
    return evaluate_checkpoint(settings, progress="none", write_page=write)


def truth_and_probabilities(out: Path, labels: tuple[str, ...]) -> tuple[list[int], np.ndarray]:
    table = pd.read_parquet(out / "predictions.parquet")
    return [labels.index(own[0]) for own in table["labels"]], np.stack(table["probabilities"])


@pytest.fixture(scope="module")
def scored(one: str, samples: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationSummary, Path]:
    out = tmp_path_factory.mktemp("scored") / "out"
    return evaluated(one, samples, out, by="source"), out


class TestEvaluation:
    def test_figures_baselines_and_confusion_are_scikit_learns(
        self, scored: tuple[EvaluationSummary, Path], samples: str
    ) -> None:
        summary, out = scored
        truth, p = truth_and_probabilities(out, FOUR.labels)
        answer = p.argmax(axis=1)
        record = json.loads((out / "evaluation.json").read_text())
        found = record["classes"]["emotions"]
        metrics = {name: own["value"] for name, own in found["metrics"].items()}
        assert metrics == pytest.approx(
            {
                "log_loss": log_loss(truth, p.astype(float), labels=range(4)),
                "accuracy": accuracy_score(truth, answer),
                "macro_f1": f1_score(truth, answer, average="macro"),
            },
            rel=1e-5,
        )
        training = pd.read_parquet(samples).query("split == 'train'")["labels"].str[0]
        prior = training.value_counts(normalize=True).reindex(FOUR.labels).to_numpy()
        assert found["metrics"]["log_loss"]["prior"] == pytest.approx(-np.log(prior[truth]).mean())
        assert found["metrics"]["accuracy"]["constant"] == pytest.approx(np.bincount(truth).max() / len(truth))
        assert found["confusion"]["counts"] == confusion_matrix(truth, answer, labels=range(4)).tolist()
        precision, recall, f1, support = precision_recall_fscore_support(truth, answer, labels=range(4))
        for j, row in enumerate(found["classes"]):
            assert (row["label"], row["support"]) == (FOUR.labels[j], support[j])
            assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[j], recall[j], f1[j]))
        error = expected_calibration_error(answer == truth, p.max(axis=1))
        assert found["calibration"]["width"]["error"] == pytest.approx(error, abs=1e-6)
        assert record["results"] is None and record["vocabulary"]["name"] == "four"
        assert verdict_of(summary).state == "good" and "always" in verdict_of(summary).text

    def test_files_page_and_terminal_show_them(self, scored: tuple[EvaluationSummary, Path]) -> None:
        summary, out = scored
        rows = list(csv.reader((out / "confusion.csv").open()))
        assert rows[0] == ["true label", *FOUR.labels] and rows[1][0] == "amusement"
        assert [row["label"] for row in csv.DictReader((out / "per_class.csv").open())] == list(FOUR.labels)
        plots = {path.name for path in (out / "plots").iterdir()}
        assert plots >= {"confusion.png", "answers.png", "reliability_width.png", "valence_valence_distribution.png"}
        page = (out / "evaluation.html").read_text()
        for text in ("Confusion: four", "By source", "Calibration of the answers", "errors by the true value"):
            assert text in page
        text = "\n".join(summary_lines(summary))
        assert "distinct answers: 4 of 4 labels" in text and "true label, answers across" in text

    def test_by_scores_each_value_and_numbers_have_their_errors_by_bin(
        self, scored: tuple[EvaluationSummary, Path], samples: str
    ) -> None:
        summary, out = scored
        truth, p = truth_and_probabilities(out, FOUR.labels)
        ids = pd.read_parquet(out / "predictions.parquet")["sample_id"]
        table = pd.read_parquet(samples).set_index("sample_id").loc[ids]
        south = (table["source"] == "south").to_numpy()
        found = summary.record["by"]["outputs"]["emotions"]["south"]["metrics"]["accuracy"]["value"]
        assert found == pytest.approx((p.argmax(axis=1) == truth)[south].mean())
        bins = summary.record["numbers"]["valence"]["by_bin"]["valence"]
        assert sum(row["count"] for row in bins) == table["valence"].notna().sum() < len(table)
        assert summary.record["numbers"]["valence"]["flat"] is None
        assert list(summary.record["by"]["outputs"]) == ["emotions", "valence"]
        rated = table["valence"].notna().to_numpy() & south
        (own,) = summary.numbers
        assert own.by["south"].samples == own.by["south"]["mae"].samples == rated.sum()

    def test_by_scores_numbers_beside_the_training_mean(self, numbers: str, ratings: str, tmp_path: Path) -> None:
        out = tmp_path / "out"
        summary = evaluated(numbers, ratings, out, by="source")
        (name, by), *others = summary.record["by"]["outputs"].items()
        assert not others and list(by) == ["north", "south"]
        table = pd.read_parquet(ratings)
        mean = table[table["split"] == "train"]["valence"].mean()
        predicted = pd.read_parquet(out / "predictions.parquet").set_index("sample_id")["valence"]
        south = table.set_index("sample_id").loc[predicted.index].query("source == 'south' and valence.notna()")
        y, p = south["valence"], predicted[south.index]
        wanted = {
            "valence_r2": (r2_score(y, p), r2_score(y, np.full(len(y), mean))),
            "valence_mae": (mean_absolute_error(y, p), mean_absolute_error(y, np.full(len(y), mean))),
            "valence_ccc": (
                2 * np.cov(y, p, ddof=0)[0, 1] / (y.var(ddof=0) + p.var(ddof=0) + (y.mean() - p.mean()) ** 2), 0.0
            ),
        }  # fmt: skip
        rows = list(csv.DictReader((out / "by.csv").open()))
        assert len(rows) == 2 * len(by["south"]["metrics"])
        for metric, (value, prior) in wanted.items():
            found = by["south"]["metrics"][metric]
            assert (found["value"], found["prior"]) == pytest.approx((value, prior), abs=1e-5)
            assert found["low"] < found["value"] < found["high"] and found["samples"] == len(south)
            (row,) = [own for own in rows if (own["column_value"], own["metric"]) == ("south", metric)]
            assert (row["output"], row["column"], float(row["value"])) == (name, "source", found["value"])
        text = "\n".join(summary_lines(summary))
        (line,) = [own for own in text.splitlines() if own.split()[:2] == ["south", "valence"]]
        assert f"{wanted['valence_r2'][0]:.4f}" in line and f"{wanted['valence_mae'][1]:.4f}" in line
        page = (out / "evaluation.html").read_text()
        assert "By source" in page and "<td>south</td><td>arousal</td>" in page
        assert evaluated(numbers, ratings, out).record["by"] is None and not (out / "by.csv").exists()

    def test_by_gives_no_interval_of_few_images(self, numbers: str, tmp_path: Path) -> None:
        """Nine images, 25 rows of three, ten, and ten of which three are rated for arousal."""
        rows = [{name: own for name, own in row.items() if not name.startswith("label")} for row in rows_of()]
        tested = [row for row in rows if row["split"] == "test" and row["valence"] is not None]
        for i, row in enumerate(tested[:54]):
            name = "nine" if i < 9 else "ten" if i < 19 else "three" if i < 44 else "part"
            row["arousal"] = row["valence"] if i < 47 else None
            row["source"], row["group_id"] = name, f"{name}{i % 3 if name == 'three' else i}"
        write_samples(path := str(tmp_path / "s.parquet"), table_from_rows(rows, None, scale=(1.0, 7.0)))
        (by,) = evaluated(numbers, path, tmp_path / "out", by="source").record["by"]["outputs"].values()
        for name, samples in {"nine": 9, "ten": 10, "three": 25, "part": 10}.items():
            found = by[name]["metrics"]["valence_mae"]
            assert found["samples"] == samples and found["value"] is not None
            assert (found["low"] is None) == (name != "ten")

    def test_a_model_that_always_says_fear_is_called_that(self, flat: str, samples: str, tmp_path: Path) -> None:
        summary = evaluated(flat, samples, tmp_path / "out")
        first = verdict_of(summary)
        assert first.state == "bad" and "says 'fear' for 100 % of the samples" in first.text
        text = "\n".join(summary_lines(summary))
        assert "never says 'awe'" in text or "never says 'anger'" in text
        assert "distinct answers: 1 of 4" in text and "nearly the same for every sample: valence 2.7" in text
        assert "nearly the same for every sample" in (tmp_path / "out" / "evaluation.html").read_text()

    def test_soft_compares_with_the_share_of_annotators(self, one: str, samples: str, tmp_path: Path) -> None:
        summary = evaluated(one, samples, tmp_path / "out", soft=True)
        truth, p = truth_and_probabilities(tmp_path / "out", FOUR.labels)
        ids = pd.read_parquet(tmp_path / "out" / "predictions.parquet")["sample_id"]
        weights = pd.read_parquet(samples).set_index("sample_id").loc[ids, "label_weights"].str[0].to_numpy()
        soft = np.repeat((1 - weights)[:, None] / 3, 4, axis=1)
        soft[np.arange(len(soft)), truth] = weights
        found = summary.record["classes"]["emotions"]["metrics"]["log_loss"]["value"]
        assert found == pytest.approx(float(-(soft * np.log(np.clip(p, 1e-7, 1))).sum(axis=1).mean()), rel=1e-4)

    def test_bands_are_read_from_the_number_and_a_foreign_vocabulary_does_not_matter(
        self, bands: str, ratings: str, samples: str, tmp_path: Path
    ) -> None:
        bare, named = (evaluated(bands, path, tmp_path / str(i)) for i, path in enumerate((ratings, samples)))
        metrics = [own.record["classes"]["emotions"]["metrics"] for own in (bare, named)]
        assert metrics[0] == metrics[1] and metrics[0]["accuracy"]["value"] > 0.8
        table = pd.read_parquet(tmp_path / "0" / "predictions.parquet").set_index("sample_id")
        valence = pd.read_parquet(ratings).set_index("sample_id").loc[table.index, "valence"]
        expected = pd.cut(valence, [1, 3.5, 4.5, 7.1], right=False, labels=["negative", "neutral", "positive"])
        assert table["labels"].str[0].tolist() == expected.astype(str).tolist()
        assert bare.record["samples"]["without_labels"] == (
            pd.read_parquet(ratings).query("split == 'test'")["valence"].isna().sum()
        )
        review = tmp_path / "0" / "samples.parquet"
        assert Vocabulary.from_metadata(read_samples(review).schema.metadata) == bands_vocabulary(bands)

    def test_the_order_of_the_rows_does_not_matter(
        self, scored: tuple[EvaluationSummary, Path], one: str, samples: str, tmp_path: Path
    ) -> None:
        """Shuffled predictions were compared with rows in file order (systems.md 4.5, 1)."""
        table = read_samples(samples)
        write_samples(tmp_path / "s.parquet", table.take(np.random.default_rng(1).permutation(table.num_rows)))
        found = evaluated(one, str(tmp_path / "s.parquet"), tmp_path / "out")
        for name in ("classes", "numbers"):
            (own,), (other,) = found.record[name].values(), scored[0].record[name].values()
            figures = [{key: metric["value"] for key, metric in of["metrics"].items()} for of in (own, other)]
            assert figures[0] == pytest.approx(figures[1])

    def test_what_does_not_apply_is_refused_in_a_line(
        self, bands: str, one: str, ratings: str, samples: str, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="Leave --soft out"):
            evaluated(bands, samples, tmp_path / "a", soft=True)
        with pytest.raises(InputError, match="has no labels to compare with"):
            evaluated(one, ratings, tmp_path / "b")
        other = tmp_path / "other.parquet"
        write_samples(other, table_from_rows([{**rows_of(1)[0], "labels": ["calm"]}], Vocabulary("x", ("calm",))))
        with pytest.raises(InputError, match="vocabulary"):
            evaluated(one, str(other), tmp_path / "c", split="all")

    def test_a_table_without_what_the_model_learns_is_refused_by_its_name(
        self, bands: str, numbers: str, tmp_path: Path
    ) -> None:
        bare = write_ratings(tmp_path / "bare.parquet", "valence")
        with pytest.raises(InputError, match="has no valence to compare with"):
            evaluated(bands, bare, tmp_path / "a")
        bare = write_ratings(tmp_path / "barer.parquet", "valence", "arousal")
        with pytest.raises(InputError, match="has no valence or arousal to compare with"):
            evaluated(numbers, bare, tmp_path / "b")
        with pytest.raises(InputError, match="no row of a split has valence or arousal"):
            train(bare, tmp_path / "model", numbers=True)

    @pytest.mark.filterwarnings("error:No artists")
    def test_a_dimension_without_ratings_is_left_out_and_told(self, numbers: str, tmp_path: Path) -> None:
        bare = write_ratings(tmp_path / "bare.parquet", "arousal")
        found = evaluated(numbers, bare, tmp_path / "out")
        (own,) = found.record["numbers"].values()
        assert own["names"] == ["valence"] and set(own["metrics"]) == {
            "r2", "mae", "rmse", "pearson", "spearman", "ccc"
        }  # fmt: skip
        assert own["metrics"]["mae"]["value"] is not None
        assert "arousal: no ratings in these samples" in found.record["notices"]
        page = (tmp_path / "out" / "evaluation.html").read_text()
        assert "On a scale of 1 to 7. The training mean" in page

    def test_ratings_are_not_labels(self, ratings: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"has no labels to learn from. Ratings are for a model of numbers"):
            train(ratings, tmp_path / "model")

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_a_further_output_without_a_target_is_refused_before_training(self, tmp_path: Path, split: str) -> None:
        rows = [{**row, "valence": None if row["split"] == split else row["valence"]} for row in rows_of()]
        write_samples(path := str(tmp_path / "s.parquet"), table_from_rows(rows, FOUR, scale=(1.0, 7.0)))
        with pytest.raises(InputError, match=f"no sample of the split {split} has valence"):
            train(path, tmp_path / "both", valence=True)
        assert not (tmp_path / "both").exists() and train(path, tmp_path / "labels_alone")

    def test_an_output_of_numbers_without_any_is_not_measured(self, one: str, tmp_path: Path) -> None:
        rows = [{name: own for name, own in row.items() if name != "valence"} for row in rows_of()]
        write_samples(tmp_path / "s.parquet", table_from_rows(rows, FOUR, scale=(1.0, 7.0)))
        found = evaluated(one, str(tmp_path / "s.parquet"), tmp_path / "out")
        assert found.numbers == () and found.record["numbers"] == {} and "emotions" in found.record["classes"]
        assert "valence: no ratings in these samples" in found.record["notices"]


def bands_vocabulary(folder: str) -> Vocabulary:
    return read_checkpoint_info(folder).vocabulary


class TestMeasure:
    def test_a_model_below_the_majority_says_so(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.choice(3, 300, p=[0.6, 0.3, 0.1])
        p = rng.dirichlet(np.ones(3), 300)
        found = measure_classes(np.eye(3)[truth], p, labels="abc", prior=[0.6, 0.3, 0.1], bootstrap=100)
        assert found.collapse.collapsed and found.majority == "a"
        assert any("right less often than the majority class" in reason for reason in found.collapse.reasons)

    def test_good_answers_with_bad_probabilities_are_no_collapse(self) -> None:
        rng = np.random.default_rng(0)
        truth = rng.choice(3, 300, p=[0.4, 0.3, 0.3])
        answer = np.where(rng.random(300) < 0.75, truth, rng.integers(0, 3, 300))
        p = 0.999985 * np.eye(3)[answer] + 0.000005  # far too sure
        found = measure_classes(np.eye(3)[truth], p, labels="abc", prior=[0.4, 0.3, 0.3], bootstrap=200)
        assert found.evaluation["log_loss"].value > found.evaluation["log_loss"].prior
        assert not found.collapse.collapsed and "only the answers are" in found.collapse.notes[0]
        assert found.calibration[0].error > 0.1 > found.calibration[0].by_luck

    def test_an_answer_that_training_explains_is_no_collapse(self) -> None:
        rng = np.random.default_rng(0)
        p = np.column_stack([0.9 + 0.09 * rng.random(100), np.zeros(100)])
        p[:, 1] = 1 - p[:, 0]
        assert not check_one_label(p, "ab", prior=[0.95, 0.05]).collapsed
        found = check_one_label(p, "ab", prior=[0.5, 0.5])
        assert "says 'a' for 100 % of the samples, where 50 %" in found.reasons[0]
        assert "never says 'b'" in found.notes[0]
        assert check_one_label(p[:5], "ab", prior=[0.5, 0.5]).notes[0].startswith("5 samples are too few")


class TestLabelling:
    def test_each_row_gets_its_highest_label(
        self, one: str, samples: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        done = runner("label", samples, "--model", one, "--out", tmp_path / "labels", "--workers", 0)
        assert done.code == 0 and "majority class" in done.out.splitlines()[0], done.err
        table = pd.read_parquet(tmp_path / "labels")
        answer = np.stack(table["probabilities"]).argmax(axis=1)
        assert table["labels"].map(list).tolist() == [[FOUR.labels[j]] for j in answer]
        assert np.stack(table["probabilities"]).sum(axis=1) == pytest.approx(np.ones(len(table)), abs=1e-5)
        again = runner("select", tmp_path / "labels", "--out", tmp_path / "again")
        assert again.code == 0 and "240 labels" in again.out
        shown = runner("report", tmp_path / "labels", "--out", tmp_path / "report.html")
        assert shown.code == 0 and shown.out.splitlines()[0] == done.out.splitlines()[0]
        page = (tmp_path / "report.html").read_text()
        assert "Exactly one label applies" in page and "Average precision" not in page
        for option in (("--count", 2), ("--adapt-rates",)):
            for command in (("select", tmp_path / "labels"), ("label", samples, "--model", one, "--workers", 0)):
                refused = runner(*command, *option, "--out", tmp_path / "refused")
                assert refused.code == 2 and refused.err.count("\n") == 1 and option[0] in refused.err

    def test_a_flat_model_fails_the_check(
        self, flat: str, samples: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        done = runner("label", samples, "--model", flat, "--out", tmp_path / "labels", "--workers", 0)
        assert "Collapse check FAILED: The model says 'fear' for 100 % of the samples" in done.out

    def test_labels_of_bands_are_audited_against_the_number(
        self, bands: str, ratings: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        runner("label", ratings, "--model", bands, "--out", tmp_path / "labels", "--workers", 0)
        done = runner("audit", tmp_path / "labels", "--truth", ratings, "--out", tmp_path / "audit")
        assert done.code == 0 and "3 of 3 emotions" in done.out, done.err

    def test_the_report_of_bands_tells_the_entropy_of_the_one_label(
        self, bands: str, ratings: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        runner("label", ratings, "--model", bands, "--out", tmp_path / "labels", "--workers", 0)
        assert runner("report", tmp_path / "labels", "--out", tmp_path / "report.html").code == 0
        page = (tmp_path / "report.html").read_text()
        p = np.stack(pd.read_parquet(tmp_path / "labels")["probabilities"]).astype(float)
        prior = json.loads((tmp_path / "labels" / "_job.json").read_text())["model"]["prior"]
        assert f"Median {np.median(entropy(p, base=2, axis=1)):.3f} bits" in page
        assert f"The training prior has {entropy(prior, base=2):.3f} bits" in page and entropy(prior, base=2) > 1
        assert not any(word in page for word in ("bits per label", "eacher", "probable emotions"))

    @pytest.mark.parametrize("what", ["one", "bands"])
    def test_doubtful_labels_are_those_of_cleanlab_itself(
        self, what: str, samples: str, ratings: str, tmp_path: Path, request: pytest.FixtureRequest,
        runner: Callable[..., Any],
    ) -> None:  # fmt: skip
        model, table, labels = request.getfixturevalue(what), samples, FOUR.labels
        made = tmp_path / "made"
        if what == "one":  # 60 samples of the test split, of which 10 get the label of their neighbour
            rows = rows_of()
            for row in rows[3:43:4]:
                row["labels"] = [FOUR.labels[(FOUR.index(row["labels"][0]) + 1) % 4]]
            table = str(tmp_path / "wrong.parquet")
            write_samples(table, table_from_rows(rows, FOUR, scale=(1.0, 7.0)))
            done, folder = runner("evaluate", model, table, "--out", made), made / "predictions"
        else:
            table, labels = ratings, Bands("valence", (3.5, 4.5), scale=(1.0, 7.0)).vocabulary.labels
            done, folder = runner("label", table, "--model", model, "--out", made, "--workers", 0), made
        assert done.code == 0, done.err
        done = runner("audit", table, "--predictions", made, "--out", tmp_path / "audit")
        assert done.code == 0, done.err
        truth = {
            row["sample_id"]: row["labels"][0] if what == "one" else
            None if row["valence"] is None else labels[int(row["valence"] >= 3.5) + int(row["valence"] >= 4.5)]
            for row in read_samples(table).to_pylist()
        }  # fmt: skip
        predicted = pd.read_parquet(folder)
        predicted = predicted[predicted["sample_id"].map(truth).notna()]
        given = predicted["sample_id"].map(truth).map(labels.index).to_numpy()
        p = np.stack(predicted["probabilities"]).astype(np.float64)
        judged = [row["judged"] == "True" for row in csv.DictReader((tmp_path / "audit/per_emotion.csv").open())]
        wanted = find_label_issues(given, p, n_jobs=1) & np.take(judged, given) & np.take(judged, p.argmax(axis=1))
        assert wanted.sum() > 4
        found = pd.read_parquet(tmp_path / "audit/disagreements.parquet").set_index("sample_id")
        assert sorted(found.index) == sorted(predicted["sample_id"][wanted]), "each sample once"
        for name, own, answer in zip(predicted["sample_id"][wanted], given[wanted], p[wanted].argmax(axis=1)):
            assert found.loc[name, ["emotion", "suggested"]].tolist() == [labels[own], labels[answer]]
        assert f"{wanted.sum()} of {len(given)} labels (one a sample)" in done.out

    def test_an_audit_against_themes_calls_them_scenes(
        self, bands: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        themes = write_ratings(tmp_path / "themes.parquet", groups=60)
        runner("label", themes, "--model", bands, "--out", tmp_path / "labels", "--workers", 0)
        done = runner("audit", tmp_path / "labels", "--truth", themes, "--out", tmp_path / "audit")
        assert done.code == 0, done.err
        assert "rows are of 60 images or scenes: intervals draw whole ones." in done.out + done.err

    def test_what_needs_labels_refuses_numbers_and_names_evaluate(
        self, numbers: str, ratings: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        labels = tmp_path / "labels"
        assert runner("label", ratings, "--model", numbers, "--out", labels, "--workers", 0).code == 0
        for words in (("select", labels), ("report", labels), ("audit", labels, "--truth", ratings)):
            refused = runner(*words, "--out", tmp_path / "refused")
            assert refused.code == 2 and refused.err.count("\n") == 1
            assert "no labels to choose from" in refused.err and "`raymotion evaluate`" in refused.err

    def test_other_rooms_refuse_it_in_a_line(
        self, one: str, samples: str, tmp_path: Path, runner: Callable[..., Any]
    ) -> None:
        done = runner("calibrate", one, samples, "--out", tmp_path / "calibrated")
        assert done.code == 2 and "one label a sample" in done.err
        (tmp_path / "r.yaml").write_text("kind: one-label-toy\n")
        done = runner(
            "carryover", tmp_path / "r.yaml", "--samples", samples, "--domain", "source", "--out", tmp_path / "c"
        )
        assert done.code == 2 and "one label a sample" in done.err

    def test_plain_python_and_the_card(self, bands: str) -> None:
        said = raymotion.load(bands).label(values={"arousal": 6.5, "dominance": 1.5})
        assert next(iter(said)) == "positive" and sum(said.values()) == pytest.approx(1.0, abs=1e-5)
        card = Path(bands, "README.md").read_text()
        assert "neutral [3.5, 4.5)" in card and "multi-label" not in card and "thresholds" not in card
