"""`--adapt-rates` in `label` and `select`: what is chosen, what stays, what is told, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymotion.batch.label_dataset import LabelledSet, load_labels
from raymotion.data.samples import table_from_rows, write_samples
from raymotion.learning.priors import correct, estimate_rates
from raymotion.learning.selection import top_per_image
from raymotion.learning.uncertainty import entropy
from raymotion.models.checkpoint import save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.outputs.base import Targets
from raymotion.models.outputs.multilabel import HARD, SOFT, MultiLabel
from raymotion.models.recipe import Distillation, LossSettings
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.vocabulary import MIKELS_8

Runner = Callable[..., Any]
# The last two are so far from the probabilities that the estimate runs to an end.
PRIOR = [0.45, 0.55, 0.5, 0.42, 0.58, 0.5, 0.999, 0.001]
WORDS = ["caption", "another", "one", "and", *map(str, range(30))]
DRAWN = np.random.default_rng(0)
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 5))) for _ in range(60)]
LABEL = ("--workers", 0, "--shard-rows", 16)


def teacher(
    folder: Path, *, loss: dict[str, Any] | None = None, settings: dict[str, Any] | None = None, **facts: Any
) -> Path:
    """A checkpoint that was not trained, whose logits have mean 0 and spread 1 on `TEXTS`."""
    tokenizer = train_tokenizer([f"caption {i} and another one" for i in range(50)], size=120)
    torch.manual_seed(7)
    config = TeacherConfig(size="tiny", vocab_size=len(tokenizer))  # type: ignore[call-arg]
    model = VisualBertTeacher(config, len(MIKELS_8)).eval()
    torch.nn.init.normal_(model.head.weight, std=1.0)
    captions = Captions(64, tokenizer=tokenizer)
    with torch.no_grad():
        tokens = captions.tokens([[text] for text in TEXTS]).tensors("cpu")
        found = model(**{name: value for name, value in tokens.items() if name != "owners"})
        spread = found.std(dim=0)
        model.head.weight.div_(spread[:, None])
        model.head.bias.sub_(found.mean(dim=0)).div_(spread)
    training = {"outputs": {"emotions": {"thresholds": [0.5] * 8, **facts}}, "settings": settings or {}}
    output = MultiLabel(MIKELS_8, loss=LossSettings(**(loss or {})))
    save_checkpoint(folder, get_kind("teacher-visualbert"), model, [captions], [output], training=training)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rates")
    rows = [
        {"sample_id": f"own:{i}", "group_id": f"own:{i}", "captions": [text], "source": "own"}
        for i, text in enumerate(TEXTS)
    ]
    write_samples(folder / "samples.parquet", table_from_rows(rows))
    teacher(folder / "teacher", prior=PRIOR)
    return folder


def labelled(made: Path, out: Path, runner: Runner, *words: Any) -> LabelledSet:
    done = runner("label", made / "samples.parquet", "--model", made / "teacher", "--out", out, *LABEL, *words)
    assert done.code == 0, done.err
    return load_labels(out)


def pages_of(folder: Path, runner: Runner) -> list[str]:
    """The data set card and the report."""
    page = folder.with_suffix(".html")
    assert runner("report", folder, "--out", page).code == 0
    return [(folder / "_README.md").read_text(), page.read_text()]


def test_label_chooses_by_corrected_probabilities_and_stores_the_models_own(
    made: Path, tmp_path: Path, runner: Runner
) -> None:
    plain = labelled(made, tmp_path / "plain", runner)
    words = ("label", made / "samples.parquet", "--model", made / "teacher", *LABEL, "--adapt-rates")
    done = runner(*words, "--out", tmp_path / "adapted")
    assert done.code == 0, done.err
    own = load_labels(tmp_path / "adapted")
    assert (own.probabilities == plain.probabilities).all()
    shift = estimate_rates(plain.probabilities, np.array(PRIOR), weight=1.0)
    assert (own.mask == top_per_image(shift.apply(plain.probabilities), 4)).all()
    assert (own.mask != plain.mask).any() and 0 < shift.at_edge.sum() < 8, "or the test says nothing"
    rates = own.job["choice"]["rates"]
    assert rates["training"] == PRIOR and rates["estimated"] == shift.rates.tolist() and rates["rows"] == 60
    line = next(line for line in done.out.splitlines() if line.startswith("Class rates"))
    card = (tmp_path / "adapted" / "_README.md").read_text()
    assert f"- {line}" in card and "labels were chosen from" in line and "probabilities are the model's own" in card
    for note in own.job["choice"]["notes"]:
        assert f"note: {note}" in done.out and note in card
    page = tmp_path / "page.html"
    assert runner("report", tmp_path / "adapted", "--out", page).code == 0
    assert "<span>estimated</span>" in page.read_text() and "Saerens" in page.read_text()
    assert runner("report", tmp_path / "plain", "--out", page).code == 0
    assert "<span>estimated</span>" not in page.read_text()
    # A second run of a complete job tells it again, and a job with other settings is not continued.
    assert line in runner(*words, "--out", tmp_path / "adapted").out
    other = runner(*words[:-1], "--out", tmp_path / "adapted")
    assert other.code == 2 and "adapt_rates" in other.err


@pytest.mark.parametrize(
    "policy",
    [("top-per-image", "--count", 2), ("threshold", "--threshold", 0.4), ("class-thresholds",),
     ("threshold", "--rate-weight", 0), ("top-per-class", "--count", 9, "--minimum", 0.3)],
)  # fmt: skip
def test_select_equals_label_with_every_policy(made: Path, tmp_path: Path, runner: Runner, policy: Any) -> None:
    labelled(made, tmp_path / "plain", runner)
    words = ("--policy", *policy, "--adapt-rates")
    there = labelled(made, tmp_path / "adapted", runner, *words)
    done = runner("select", tmp_path / "plain", *words, "--out", tmp_path / "chosen")
    assert done.code == 0 and "Class rates, training -> estimated here" in done.out, done.err
    here = load_labels(tmp_path / "chosen")
    assert (here.mask == there.mask).all() and (here.selected == there.selected).all()
    for name in ("rates", "notes", "labels", "selected"):
        assert here.job["choice"][name] == there.job["choice"][name]
    # Without the option nothing of the rates is left.
    assert runner("select", tmp_path / "chosen", "--out", tmp_path / "back").code == 0
    back = load_labels(tmp_path / "back")
    assert "rates" not in back.job["choice"] and (back.mask == load_labels(tmp_path / "plain").mask).all()
    assert "estimated" not in (tmp_path / "back" / "_README.md").read_text()


def test_uncertain_rows_by_corrected_probabilities(made: Path, tmp_path: Path, runner: Runner) -> None:
    plain = labelled(made, tmp_path / "plain", runner)
    words = ("--policy", "uncertain", "--count", 8, "--adapt-rates")
    done = runner("select", tmp_path / "plain", *words, "--out", tmp_path / "ask")
    assert done.code == 0 and "labels stay as they were chosen" in done.out, done.err
    own = load_labels(tmp_path / "ask")
    assert (own.mask == plain.mask).all() and own.selected.sum() == 8
    scores = entropy(estimate_rates(plain.probabilities, np.array(PRIOR), weight=1.0).apply(plain.probabilities))
    assert scores[own.selected].mean() > scores.mean()
    said = pages_of(tmp_path / "ask", runner)
    assert "rates" not in own.job["choice"] and own.job["choice"]["uncertainty_rates"]["rows"] == 60
    for text in said:
        assert (
            "selected by the uncertainty of probabilities corrected" in text and "labels were chosen from" not in text
        )
    assert "selected by probabilities corrected to it, and the labels were not" in said[1]
    assert "Labels chosen by" not in said[0]
    against = ("--against", tmp_path / "plain", "--adapt-rates")
    more = runner("select", tmp_path / "plain", *words[:4], *against, "--out", tmp_path / "both")
    assert more.code == 0, more.err


def test_uncertain_rows_of_labels_that_were_chosen_by_other_rates(made: Path, tmp_path: Path, runner: Runner) -> None:
    rates = labelled(made, tmp_path / "adapted", runner, "--adapt-rates").job["choice"]["rates"]
    words = ("select", "--policy", "uncertain", "--count", 8)
    weight = ("--adapt-rates", "--rate-weight", 3)
    assert runner(*words, tmp_path / "adapted", *weight, "--out", tmp_path / "ask").code == 0
    assert runner(*words, tmp_path / "ask", "--out", tmp_path / "again").code == 0
    choice = load_labels(tmp_path / "ask").job["choice"]
    assert choice["rates"] == rates and choice["uncertainty_rates"]["estimated"] != rates["estimated"]
    for text in pages_of(tmp_path / "ask", runner):
        assert "selected by the uncertainty of probabilities corrected" in text and "labels were chosen from" in text
    choice = load_labels(tmp_path / "again").job["choice"]
    assert choice["rates"] == rates and "uncertainty_rates" not in choice


def test_a_folder_in_an_object_store(made: Path, tmp_path: Path, s3: str, runner: Runner) -> None:
    there = labelled(made, f"{s3}/labels", runner, "--adapt-rates")  # type: ignore[arg-type]
    assert (there.mask == labelled(made, tmp_path / "here", runner, "--adapt-rates").mask).all()


def test_unknown_rates_are_refused_in_one_line(made: Path, tmp_path: Path, runner: Runner) -> None:
    teacher(tmp_path / "bare")
    words = ("label", made / "samples.parquet", "--model", tmp_path / "bare", *LABEL)
    done = runner(*words, "--out", tmp_path / "out", "--adapt-rates")
    assert done.code == 2 and "class rates" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert runner(*words, "--out", tmp_path / "out").code == 0
    done = runner("select", tmp_path / "out", "--adapt-rates", "--out", tmp_path / "chosen")
    assert done.code == 2 and "_job.json" in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "chosen").exists()
    done = runner("select", tmp_path / "out", "--rate-weight", 0.5, "--out", tmp_path / "chosen")
    assert done.code == 2 and "with adapt_rates only" in done.err


def test_a_model_of_soft_targets_is_corrected_from_their_rates(made: Path, tmp_path: Path, runner: Runner) -> None:
    soft = [0.5 * rate for rate in PRIOR]
    teacher(tmp_path / "soft", prior=PRIOR, learned_rates=soft)
    words = ("--model", tmp_path / "soft", *LABEL, "--policy", "threshold", "--adapt-rates")
    assert runner("label", made / "samples.parquet", *words, "--out", tmp_path / "out").code == 0
    own = load_labels(tmp_path / "out")
    rates = json.loads((tmp_path / "out" / "_job.json").read_text())["choice"]["rates"]
    assert rates["training"] == soft and own.job["model"]["prior"] == PRIOR
    fixed = correct(own.probabilities, np.array(soft), np.array(rates["estimated"]))
    assert (own.mask == (fixed >= 0.5)).all()


@pytest.mark.parametrize(
    ("smoothing", "soft", "distillation"),
    [(0.0, False, None), (0.2, False, None), (0.2, True, None), (0.2, True, 1.0), (0.2, True, 0.3), (0.0, True, 0.3)],
)
def test_the_recorded_rates_are_those_that_the_loss_is_lowest_at(
    smoothing: float, soft: bool, distillation: float | None
) -> None:
    rng = np.random.default_rng(3)
    hard = (rng.random((40, 8)) < 0.3).astype(np.float32)
    targets = Targets({HARD: hard, SOFT: rng.random((40, 8)).astype(np.float32)}, np.ones(40, bool))
    own = MultiLabel(
        MIKELS_8, soft=soft, loss=LossSettings(name="bce", options={"label_smoothing": smoothing}),
        distillation=None if distillation is None else Distillation(temperature=1.0, weight=distillation),
    )  # fmt: skip
    rows = np.arange(40)
    facts = own.facts(targets, {"train": rows, "val": rows}, {"val": hard})
    assert facts["prior"] == hard.mean(axis=0).tolist()
    assert ("learned_rates" in facts) == bool(smoothing or soft)
    learned = torch.tensor(facts.get("learned_rates", facts["prior"])).logit().requires_grad_()
    own.criterion(targets, rows)(
        learned.expand(40, 8), own.batch(targets, rows, "cpu"), epoch=0, weights=None
    ).backward()
    assert learned.grad is not None and learned.grad.abs().max() < 1e-6


def test_what_the_recorded_rates_leave_out_is_told(made: Path, tmp_path: Path, runner: Runner) -> None:
    smoothed = {"name": "bce", "options": {"label_smoothing": 0.2}}
    teacher(tmp_path / "older", prior=PRIOR, loss=smoothed)
    teacher(tmp_path / "newer", prior=PRIOR, learned_rates=[0.8 * rate + 0.1 for rate in PRIOR], loss=smoothed)
    teacher(tmp_path / "made", prior=PRIOR, settings={"resampling": {"method": "adasyn"}})
    teacher(tmp_path / "focal", prior=PRIOR, loss={"name": "focal"})

    def notes(*names: str) -> str:
        out = tmp_path / "-".join(names)
        models = [word for name in names for word in ("--model", (made if name == "teacher" else tmp_path) / name)]
        words = ("label", made / "samples.parquet", *models, *LABEL, "--adapt-rates")
        done = runner(*words, "--out", out.with_suffix(".labels"))
        assert done.code == 0, done.err
        return "\n".join(load_labels(out.with_suffix(".labels")).job["choice"]["notes"])

    assert "with label smoothing (0.2)" in notes("older") and "smoothing" not in notes("newer")
    assert "synthetic rows for rare labels (adasyn)" in notes("made") and "synthetic" not in notes("teacher")
    several = notes("newer", "made", "focal")
    assert "made was trained with synthetic" in several and "focal was trained with the loss focal" in several
