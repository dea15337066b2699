"""`evaluate_checkpoint` with real (untrained, tiny) teachers on the shared Ray: what it scores, refuses and resumes."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from raymotion import storage
from raymotion.data.parts import write_job
from raymotion.data.samples import SCHEMA, table_from_rows, write_samples
from raymotion.errors import InputError, SettingsMismatch, VocabularyMismatch
from raymotion.evaluation.evaluate import (
    MADE_ELSEWHERE,
    OTHERS_SPLIT,
    EvaluateSettings,
    EvaluationSummary,
    by_record,
    choose_samples,
    evaluate_checkpoint,
)
from raymotion.evaluation.measure import Measured
from raymotion.models.checkpoint import load_model, read_checkpoint_info, sample_mark, save_checkpoint
from raymotion.models.inputs.captions import Captions
from raymotion.models.inputs.regions import RegionInput
from raymotion.models.outputs.multilabel import MultiLabel
from raymotion.models.registry import get_kind
from raymotion.models.text.tokenizer import train_tokenizer
from raymotion.models.vision.regions import identify
from raymotion.models.visualbert.network import TeacherConfig, VisualBertTeacher
from raymotion.report.evaluation_page import summary_lines, write
from raymotion.vocabulary import Vocabulary

FOUR = Vocabulary("four", ("calm", "happy", "sad", "scared"))
OTHER = Vocabulary("other", ("calm", "happy", "sad", "bored"))
LABELS: list[list[str]] = [["calm"], ["happy", "calm"], ["sad"], ["happy"], []]


def make_teacher(folder: Path, *, regions: bool = False, facts: dict[str, Any] | None = None, **training: Any) -> str:
    """A teacher of captions, and perhaps regions. `facts` are those of its emotions."""
    tokenizer = train_tokenizer([f"caption {i} and another one" for i in range(50)], size=120)
    torch.manual_seed(7)
    config = TeacherConfig(size="tiny", vocab_size=len(tokenizer), visual_dim=1024, normalize_regions=True)  # type: ignore[call-arg]
    model = VisualBertTeacher(config, len(FOUR))
    torch.nn.init.normal_(model.head.weight, std=1.0)
    inputs: list[Any] = [Captions(64, tokenizer=tokenizer)]
    if regions:
        inputs.append(RegionInput(identify("fasterrcnn_mobilenet_v3_large_320_fpn", "random:0", 4)))
    training["outputs"] = {"emotions": facts or {}}
    save_checkpoint(folder, get_kind("teacher-visualbert"), model, inputs, [MultiLabel(FOUR)], training=training)
    return str(folder)


def row(number: int, split: str | None, **more: Any) -> dict[str, Any]:
    return {
        "sample_id": f"x:{number}", "group_id": f"x:{number}", "captions": [f"caption {number % 7}", "another"],
        "labels": LABELS[number % 5], "split": split, "source": "x", **more,
    }  # fmt: skip


def settings(teacher: str, samples: Path | str, out: Path | str, **more: Any) -> EvaluateSettings:
    return EvaluateSettings(
        model=teacher, samples=str(samples), out=str(out),
        **{"workers": 1, "max_failed": 0.5, "bootstrap": 50, "shard_rows": 10, **more},
    )  # fmt: skip


@dataclass(frozen=True)
class Made:
    teacher: str
    samples: Path
    out: Path
    summary: EvaluationSummary


@pytest.fixture(scope="module")
def text_teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("teacher") / "text"
    return make_teacher(folder, facts={"thresholds": [0.4, 0.5, 0.6, 2.0], "prior": [0.4, 0.4, 0.2, 0.05]})


def measured(summary: EvaluationSummary) -> Measured:
    assert summary.labels is not None and summary.numbers == ()
    return summary.labels.measured


@pytest.fixture(scope="module")
def scored(ray_local: Any, text_teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """30 test samples in 3 shards, two of them without a caption, one without labels; train and val beside them."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [row(i, "train") for i in range(100, 120)] + [row(i, "val") for i in range(200, 205)]
    rows += [row(i, "test", captions=[] if i in (4, 11) else [f"caption {i % 7}"]) for i in range(30)]
    rows.append(row(99, "test", labels=None))
    write_samples(folder / "samples.parquet", table_from_rows(rows, FOUR))
    job = settings(text_teacher, folder / "samples.parquet", folder / "out")
    return Made(text_teacher, folder / "samples.parquet", folder / "out", evaluate_checkpoint(job, write_page=write))


def test_it_scores_the_labelled_test_samples_and_counts_the_others(scored: Made) -> None:
    counts = scored.summary.record["samples"]
    assert counts["split"] == "test" and counts["without_labels"] == 1 and scored.summary.caution is None
    assert (counts["in"], counts["good"], counts["quarantined"]) == (30, 28, 2)
    assert counts["by_reason"] == {"no_input": 2}
    assert measured(scored.summary).evaluation.samples == 28
    text = "\n".join(summary_lines(scored.summary))
    assert "30 in = 28 scored + 2 in quarantine; 1 without labels left out" in text and "2 no_input" in text


def test_the_predictions_are_the_teachers_and_the_figures_are_theirs(scored: Made) -> None:
    table = pq.read_table(scored.out / "predictions.parquet")
    own = Vocabulary.from_metadata(table.schema.metadata)
    assert own is not None and own.labels == FOUR.labels
    assert table.column_names == ["sample_id", "image_uri", "split", "labels", "predicted", "probabilities"]
    numbers = [int(sample_id.split(":")[1]) for sample_id in table.column("sample_id").to_pylist()]
    assert sorted(numbers) == [i for i in range(30) if i not in (4, 11)]
    p = np.array(table.column("probabilities").to_pylist())
    teacher = load_model(scored.teacher)
    captions = teacher.info.input("captions")
    assert isinstance(captions, Captions)
    expected = teacher.predict({"captions": captions.tokens([[f"caption {i % 7}"] for i in numbers])})["emotions"]
    np.testing.assert_allclose(p, expected, atol=1e-5)
    assert table.column("labels").to_pylist() == [LABELS[i % 5] for i in numbers], "joined by id"
    for chosen, line in zip(table.column("predicted").to_pylist(), p, strict=True):
        assert chosen == [n for n, v, t in zip(FOUR.labels, line, (0.4, 0.5, 0.6, 2.0), strict=True) if v >= t]
    truth = np.array([[name in LABELS[i % 5] for name in FOUR.labels] for i in numbers])
    record = json.loads((scored.out / "evaluation.json").read_text())
    macro = average_precision_score(truth[:, :3], p[:, :3], average="macro")
    assert record["results"]["metrics"]["macro_ap"]["value"] == pytest.approx(macro)
    assert record["results"]["classes_left_out"] == 1, "nobody is scared"
    with open(scored.out / "per_class.csv", newline="") as file:
        classes = list(csv.DictReader(file))
    assert [line["label"] for line in classes] == list(FOUR.labels)
    assert float(classes[2]["ap"]) == pytest.approx(average_precision_score(truth[:, 2], p[:, 2]))
    assert classes[3]["ap"] == "" and float(classes[0]["prior"]) == pytest.approx(0.4)


def test_the_page_stands_alone(scored: Made) -> None:
    html = (scored.out / "evaluation.html").read_text()
    assert html.count("data:image/png;base64,") == 5 and len(list((scored.out / "plots").glob("*.png"))) == 5
    for foreign in ("http://", "https://", "<script", "file:"):
        assert foreign not in html
    for name in ("Micro F1", "Macro AUC", "Macro AP (mAP)", "ECE", "scared", "no_input"):
        assert name in html


def test_the_page_shows_the_worst_errors_and_leads_to_the_pictures(scored: Made, tmp_path: Path) -> None:
    table = pq.read_table(scored.out / "predictions.parquet").to_pydict()
    p = np.array(table["probabilities"])
    truth = np.array([[name in labels for name in FOUR.labels] for labels in table["labels"]])
    chosen = np.array([[name in labels for name in FOUR.labels] for labels in table["predicted"]])
    missed = truth & ~chosen
    ranks = np.where(missed, (p[None] > p[:, None]).mean(axis=1), -1)  # share of samples with a higher probability
    html = (scored.out / "evaluation.html").read_text()
    cards = html.partition("Worst errors")[2].split("<figure")[1:]
    worst = next(re.search(r"people say (\w+), the model does not", card) for card in cards if "people say" in card)
    assert worst is not None
    of = next(row for row, own in enumerate(table["sample_id"]) if f">{own}<" in worst.string)
    assert ranks[of, FOUR.labels.index(worst[1])] == ranks.max(), "the strongest first"
    told = {sample_id: card for card in cards for sample_id in table["sample_id"] if f">{sample_id}<" in card}
    assert len(told) == len(cards) > 5, "each sample once"
    for sample_id, card in told.items():
        row = table["sample_id"].index(sample_id)
        assert f"People: {', '.join(sorted(table['labels'][row])) or 'none'}" in card
        assert f"Predicted: {', '.join(table['predicted'][row]) or 'none'}" in card
    assert scored.summary.labels is not None
    write(str(scored.out), scored.summary.record, scored.summary.labels, (), review=tmp_path / "review")
    linked = (scored.out / "evaluation.html").read_text()
    write(str(scored.out), scored.summary.record, scored.summary.labels, ())
    assert linked.count('index.html#view=said&amp;emotion=calm&amp;order=disagreement">') == 1
    assert (tmp_path / "review/index.html").exists() and "<a href" not in (scored.out / "evaluation.html").read_text()


@pytest.mark.slow
def test_interrupted_it_goes_on_and_ends_in_the_same_files(scored: Made) -> None:
    """The folder as a kill in the second shard leaves it: one commit less, the job running, no evaluation."""
    names = [
        "predictions.parquet",
        "evaluation.json",
        "evaluation.html",
        "per_class.csv",
        "predictions/data/part-00001.parquet",
    ]
    before = {name: (scored.out / name).read_bytes() for name in names}
    kept = scored.out / "predictions/data/part-00000.parquet"
    stamp = kept.stat().st_mtime_ns
    (scored.out / "predictions/data/part-00001.parquet").unlink()
    (scored.out / "predictions/_commits/part-00001.json").unlink()
    job = json.loads((scored.out / "predictions/_job.json").read_text())
    write_job(scored.out / "predictions", {**job, "status": "running"})
    for name in names[:4]:
        (scored.out / name).unlink()
    again = evaluate_checkpoint(settings(scored.teacher, scored.samples, scored.out), write_page=write)
    assert again.job.record["runs"][-1]["resumed_from_shards"] == 2 and not again.job.already_complete
    assert {name: (scored.out / name).read_bytes() for name in names} == before
    assert kept.stat().st_mtime_ns == stamp, "what was committed is not predicted again"


@pytest.mark.parametrize("text", ["{", None])
def test_a_lost_record_is_written_again_from_the_commits(scored: Made, text: str | None) -> None:
    """All shards are there and neither copy of _job.json is: nothing is predicted again."""
    before = (scored.out / "evaluation.json").read_bytes()
    for name in ("_job.json", "__job.json"):
        path = scored.out / "predictions" / name
        path.unlink() if text is None else path.write_text(text)
    again = evaluate_checkpoint(settings(scored.teacher, scored.samples, scored.out), write_page=write)
    assert again.job.record["runs"][-1]["resumed_from_shards"] == 3
    assert (scored.out / "evaluation.json").read_bytes() == before


def test_a_table_of_the_users_is_not_replaced(scored: Made, tmp_path: Path) -> None:
    (tmp_path / "samples.parquet").write_bytes(before := scored.samples.read_bytes())
    with pytest.raises(InputError, match=r"samples\.parquet: "):
        evaluate_checkpoint(settings(scored.teacher, tmp_path / "samples.parquet", tmp_path))
    assert (tmp_path / "samples.parquet").read_bytes() == before


def test_mended_labels_are_measured_without_predicting_again(scored: Made, tmp_path: Path) -> None:
    table = pq.read_table(scored.samples)
    labels = [None if own is None else ["sad"] for own in table.column("labels").to_pylist()]
    position = SCHEMA.get_field_index("labels")
    write_samples(tmp_path / "mended.parquet", table.set_column(position, SCHEMA.field("labels"), pa.array(labels)))
    summary = evaluate_checkpoint(settings(scored.teacher, tmp_path / "mended.parquet", scored.out))
    assert summary.job.already_complete
    assert [line.positives for line in measured(summary).classes] == [0, 0, 28, 0]
    with pytest.raises(SettingsMismatch, match=r"samples\.rows: 30 there, 5 here"):
        evaluate_checkpoint(settings(scored.teacher, scored.samples, scored.out, split="val"))
    evaluate_checkpoint(
        settings(scored.teacher, scored.samples, scored.out), write_page=write
    )  # as it was, for the other tests


@pytest.mark.slow
def test_images_that_are_missing_soft_targets_and_an_object_store(s3: str, ray_local: Any, tmp_path: Path) -> None:
    """And a checkpoint without class rates and thresholds: the table's train split stands in, and that is said."""
    teacher = make_teacher(tmp_path / "both", regions=True)
    rng = np.random.default_rng(0)
    rows = [row(i, "train", label_weights=[0.4] * len(LABELS[i % 5])) for i in range(50, 60)]
    for i in range(6):
        path = tmp_path / f"{i}.jpg"
        if i != 3:
            Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).save(path)
        shares = [0.75] * len(LABELS[i % 5])
        rows.append(row(i, "test", image_uri=str(path), captions=[], label_weights=shares))
    write_samples(f"{s3}/samples.parquet", table_from_rows(rows, FOUR))
    job = settings(teacher, f"{s3}/samples.parquet", f"{s3}/evaluation", soft=True, split="all")
    summary = evaluate_checkpoint(job, write_page=write)
    counts = summary.record["samples"]
    assert (counts["in"], counts["good"], counts["quarantined"]) == (16, 15, 1)
    assert sum(counts["by_reason"].values()) == 1 and "missing" in next(iter(counts["by_reason"]))
    assert summary_lines(summary)[0] == "These samples were trained on, 10 of 16: the figures flatter the model."
    notices = " ".join(summary.record["notices"])
    assert "RANDOM WEIGHTS" in notices and "no class rates" in notices and "F1 is at 0.5" in notices
    assert [line.prior for line in measured(summary).classes] == pytest.approx([0.4, 0.4, 0.2, 0.0])
    predicted = storage.read_table(f"{s3}/evaluation/predictions.parquet").to_pylist()
    shares = np.array([[(0.4 if line["split"] == "train" else 0.75) * (name in line["labels"]) for name in FOUR.labels]
                       for line in predicted])  # fmt: skip
    for p, value in (
        (np.array([line["probabilities"] for line in predicted]), measured(summary).evaluation["bce"].value),
        (np.array([0.16, 0.16, 0.08, 1e-7]), measured(summary).evaluation["bce"].prior),
    ):
        assert value == pytest.approx(-(shares * np.log(p) + (1 - shares) * np.log(1 - p)).mean(), rel=1e-5)
    names = {"evaluation.json", "evaluation.html", "per_class.csv", "predictions.parquet", "samples.parquet"}
    assert names <= set(storage.list_names(f"{s3}/evaluation"))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (None, ("test", 2, None)),
        ("train", ("train", 4, "These samples were trained on: ")),
        ("val", ("val", 3, "Epoch and thresholds were chosen on")),
        ("all", ("all", 10, "These samples were trained on, 4 of 10")),
    ],
)
def test_which_samples_are_scored(split: str | None, expected: tuple[str, int, str | None]) -> None:
    splits = ["train"] * 4 + ["val"] * 3 + ["test"] * 2 + [None]
    table = table_from_rows([row(i, name) for i, name in enumerate(splits)], FOUR)
    choice = choose_samples(table, MultiLabel(FOUR), split)
    name, rows, caution = expected
    assert (choice.split, choice.table.num_rows) == (name, rows)
    assert (choice.caution is None) if caution is None else (choice.caution or "").startswith(caution)


@pytest.mark.parametrize(
    ("training", "caution", "told"),
    [
        ({}, "These samples were trained on, 4 of 10", None),
        ({"data": {"seen": ["another"]}}, None, OTHERS_SPLIT),
        ({"data": {"seen": [sample_mark("x:9")]}}, "These samples were trained on, 4 of 10", None),
        ({"wrapped": True}, None, MADE_ELSEWHERE),
    ],
)
def test_a_models_record_says_what_it_has_seen(
    training: dict[str, Any], caution: str | None, told: str | None, text_teacher: str
) -> None:
    """A table's splits may call samples training that a zero-shot model, or one of another table, never saw."""
    table = table_from_rows([row(i, name) for i, name in enumerate(["train"] * 4 + ["test"] * 6)], FOUR)
    choice = choose_samples(table, MultiLabel(FOUR), "all")
    found, others = by_record(choice, replace(read_checkpoint_info(text_teacher), training=training))
    assert (found.caution or "").startswith(caution or "") and (found.caution is None) == (caution is None)
    assert others == told and found.table is choice.table
    # On the split test, the record alone tells.
    found, others = by_record(
        choose_samples(table, MultiLabel(FOUR), "test"), replace(read_checkpoint_info(text_teacher), training=training)
    )
    seen = "1 of these 6 samples" if (training.get("data") or {}).get("seen") == [sample_mark("x:9")] else None
    assert others is None and (found.caution or "").startswith(seen or "") and (found.caution is None) == (seen is None)


def test_a_table_without_splits_is_scored_whole_and_said_to_be_unknown() -> None:
    choice = choose_samples(table_from_rows([row(i, None) for i in range(5)], FOUR), MultiLabel(FOUR), None)
    assert choice.split == "all" and choice.table.num_rows == 5
    assert choice.caution is not None and "is not known" in choice.caution


def test_what_can_not_be_scored_is_refused_before_any_work(text_teacher: str, tmp_path: Path) -> None:
    def attempt(rows: list[dict[str, Any]], vocabulary: Vocabulary = FOUR, **more: Any) -> None:
        write_samples(tmp_path / "samples.parquet", table_from_rows(rows, vocabulary))
        evaluate_checkpoint(settings(text_teacher, tmp_path / "samples.parquet", tmp_path / "out", **more))

    with pytest.raises(InputError, match="no labels"):
        attempt([row(1, "test", labels=None)])
    with pytest.raises(InputError, match=r"split test.* 2 train"):
        attempt([row(1, "train"), row(2, "train"), row(3, "test", labels=None)])
    with pytest.raises(InputError, match="split val"):
        attempt([row(1, None)], split="val")
    with pytest.raises(VocabularyMismatch, match=r"vocabulary four .* other .*scared.*bored"):
        attempt([row(1, "test")], OTHER)
    with pytest.raises(InputError, match="label_weights"):
        attempt([row(1, "test")], soft=True)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.doc").write_text("mine")
    with pytest.raises(InputError, match=r"thesis\.doc.*evaluation"):
        attempt([row(1, "test")])


@pytest.mark.slow
def test_samples_that_were_split_otherwise_are_known_again(ray_local: Any, scored: Made, tmp_path: Path) -> None:
    """Split anew, four fifths of a "test" split were trained on, and nothing in the table tells."""
    seen = sorted(sample_mark(f"x:{number}") for number in (0, 1, 2, 99))
    teacher = make_teacher(tmp_path / "teacher", data={"seen": seen})
    summary = evaluate_checkpoint(settings(teacher, scored.samples, tmp_path / "out"))
    assert summary.caution is not None and summary.caution.startswith("3 of these 30 samples, by their sample_id, were")
    assert summary.caution in "\n".join(summary_lines(summary))
    # And the reverse: another collection may call its samples training, of which this model has learned none.
    other = make_teacher(tmp_path / "other", data={"seen": seen[3:]})
    summary = evaluate_checkpoint(settings(other, scored.samples, tmp_path / "other-out", split="train"))
    assert summary.caution is None and any("learned from none" in told for told in summary.record["notices"])
